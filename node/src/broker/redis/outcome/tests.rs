use deadpool_redis::redis::parse_redis_value;

use super::*;
use crate::broker::redis::publish_queue::testing::relayed;
use crate::broker::redis::publish_queue::testing::storing;

const TAKEN: &str = ":1\r\n";
const STORED_AT_7: &str = "*2\r\n$1\r\n7\r\n$1\r\ne\r\n";
const READ_ONLY: &str = "-READONLY You can't write against a read only replica.\r\n";
const NO_SCRIPT: &str = "-NOSCRIPT No matching script.\r\n";
const NO_MEMORY: &str = "-OOM command not allowed\r\n";

/// What Redis says, as the client library hands it over.
fn parsed(reply: &str) -> Value {
    parse_redis_value(reply.as_bytes()).unwrap()
}

fn sorted(batch: Vec<Entry>, replies: Vec<Value>) -> (Vec<String>, Vec<String>) {
    let sorted = sort(batch, replies, false);
    let ended = sorted.ended.iter().map(|(entry, outcome)| {
        let outcome = match outcome {
            Outcome::Taken(stored) => match &stored.position {
                Some(position) => format!("at {}", position.offset),
                None => "taken".to_owned(),
            },
            Outcome::Unreplicated => "unreplicated".to_owned(),
            Outcome::Refused(_) => "refused".to_owned(),
            Outcome::Unanswered => "unanswered".to_owned(),
        };
        format!("{} {outcome}", text(entry))
    });
    (ended.collect(), sorted.retried.iter().map(text).collect())
}

fn text(entry: &Entry) -> String {
    String::from_utf8(entry.data.to_vec()).unwrap()
}

#[test]
fn what_was_redirected_is_retried_in_a_cluster_alone() {
    const MOVED: &str = "-MOVED 1 a:1\r\n";
    for (is_cluster, retried) in [(true, 1), (false, 0)] {
        let sorted = sort(vec![relayed("a", "a1")], vec![parsed(MOVED)], is_cluster);
        assert_eq!(sorted.retried.len(), retried);
        assert_eq!(sorted.ended.len(), 1 - retried);
    }
    // Unless a later one of the channel was published.
    let batch = vec![relayed("a", "a1"), relayed("a", "a2")];
    let sorted = sort(batch, vec![parsed(MOVED), parsed(TAKEN)], true);
    assert!(sorted.retried.is_empty());
}

/// A batch on channels `a`, `b` ..., of which each publication is named by its channel and number.
fn batch(channels: &str) -> Vec<Entry> {
    let numbered = channels.chars().zip(1..);
    numbered
        .map(|(channel, number)| relayed(&channel.to_string(), &format!("{channel}{number}")))
        .collect()
}

#[test]
fn each_reply_is_for_one_publication() {
    for (channels, replies, ended, retried) in [
        (
            "ab",
            vec![TAKEN, TAKEN],
            vec!["a1 taken", "b2 taken"],
            vec![],
        ),
        (
            "ab",
            vec![NO_MEMORY, TAKEN],
            vec!["a1 refused", "b2 taken"],
            vec![],
        ),
        ("aa", vec![TAKEN, READ_ONLY], vec!["a1 taken"], vec!["a2"]),
        ("aa", vec![READ_ONLY, READ_ONLY], vec![], vec!["a1", "a2"]),
        // What was overtaken must not come after what has overtaken it.
        (
            "aa",
            vec![READ_ONLY, TAKEN],
            vec!["a1 refused", "a2 taken"],
            vec![],
        ),
        ("ab", vec![READ_ONLY, TAKEN], vec!["b2 taken"], vec!["a1"]),
        (
            "aa",
            vec![READ_ONLY, NO_MEMORY],
            vec!["a2 refused"],
            vec!["a1"],
        ),
        ("aa", vec![TAKEN], vec!["a1 taken", "a2 unanswered"], vec![]),
        (
            "aa",
            vec![READ_ONLY],
            vec!["a1 refused", "a2 unanswered"],
            vec![],
        ),
    ] {
        let replies = replies.into_iter().map(parsed).collect();
        let (has_ended, is_retried) = sorted(batch(channels), replies);
        assert_eq!(
            (has_ended, is_retried),
            (texts(&ended), texts(&retried)),
            "{channels}"
        );
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

#[test]
fn what_is_stored_has_its_place_and_an_unexpected_reply_proves_nothing() {
    for (reply, expected) in [
        (STORED_AT_7, "a at 7"),
        ("*2\r\n$1\r\n0\r\n$0\r\n\r\n", "a taken"),
        (TAKEN, "a unanswered"),
        ("*1\r\n$1\r\n7\r\n", "a unanswered"),
        ("*2\r\n$1\r\nx\r\n$1\r\ne\r\n", "a unanswered"),
        (NO_MEMORY, "a refused"),
    ] {
        let (ended, _) = sorted(vec![storing("a")], vec![parsed(reply)]);
        assert_eq!(ended, [expected]);
    }
    // In a cluster no script is needed for what is not stored.
    let sorted_in_cluster = sort(vec![storing("a")], vec![parsed(TAKEN)], true);
    let outcome = sorted_in_cluster.ended.into_iter().next().unwrap().1;
    assert_eq!(outcome, Outcome::Taken(Stored { position: None }));
    let (ended, retried) = sorted(vec![storing("a")], vec![parsed(NO_SCRIPT)]);
    assert_eq!((ended, retried), (vec![], texts(&["a"])));
}

#[test]
fn what_no_replica_confirms_is_not_replicated() {
    for (confirmed, expected) in [
        (
            Some(Value::Int(1)),
            Outcome::Taken(Stored { position: None }),
        ),
        (
            Some(Value::Int(2)),
            Outcome::Taken(Stored { position: None }),
        ),
        (Some(Value::Int(0)), Outcome::Unreplicated),
        (Some(parsed(NO_MEMORY)), Outcome::Unreplicated),
        (None, Outcome::Unreplicated),
    ] {
        let taken = Outcome::Taken(Stored { position: None });
        let refused = Outcome::Refused("OOM".to_owned());
        let mut ended = vec![(storing("a"), taken), (storing("b"), refused)];
        need_replica(&mut ended, confirmed.as_ref());
        assert_eq!(ended[0].1, expected);
        assert_eq!(ended[1].1, Outcome::Refused("OOM".to_owned()));
    }
}
