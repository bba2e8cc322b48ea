//! Channels before their first publication.

use super::*;
use crate::broker::history::Unstarted;
use crate::broker::history::testing::everything;

same_on_both! {
    a_member_that_subscribed_before_the_first_publication_recovers_it_on_any_node,
    publications_since_the_beginning_can_be_read,
}

async fn a_member_that_subscribed_before_the_first_publication_recovers_it_on_any_node(node: Node) {
    let keep = Some(retention(10));
    let first = node.join("a", keep, None).await.unwrap();
    let since = first.reply.position.clone().unwrap();
    assert!(Unstarted::of(&since.epoch).is_some() && since.offset == 0);
    let other = node.join("a", keep, Some(&since)).await.unwrap();
    assert_eq!(
        (other.reply.is_recovered, other.reply.missed.len()),
        (true, 0)
    );
    for number in 1..=3_u64 {
        node.publish("a", &number.to_string(), keep).await;
    }
    assert_eq!(first.next(1).await, [Message::Reply]);
    assert_eq!(first.offsets(3).await, [1, 2, 3]);
    // A new stream, as on another node, that was created after the history began.
    drop((first, other));
    node.streams.streams.write().clear();
    for received in 0..=3 {
        let since = Position {
            offset: received,
            ..since.clone()
        };
        let again = node.join("a", keep, Some(&since)).await.unwrap();
        assert!(again.reply.is_recovered, "{received}");
        assert!(again.reply.missed.iter().copied().eq(received + 1..=3));
    }
    node.stop().await;
}

async fn publications_since_the_beginning_can_be_read(node: Node) {
    let keep = retention(10);
    let channel = name("a");
    let empty = node.streams.history(&channel, keep, everything());
    let since = empty.await.unwrap().position;
    node.publish("a", "1", Some(keep)).await;
    let query = Query {
        since: Some(since.clone()),
        ..everything()
    };
    let history = node.streams.history(&name("a"), keep, query).await.unwrap();
    assert!(history.continues(&since));
    assert_eq!(history.publications.len(), 1);
    node.stop().await;
}

#[tokio::test]
async fn nothing_is_written_for_a_channel_before_its_first_publication() {
    let server = RedisServer::start().await;
    let node = node(&settings(std::slice::from_ref(&server)));
    node.until(|| node.streams.broker().readiness().is_ok())
        .await;
    let keep = Some(retention(10));
    let mut clients = Vec::new();
    for number in 0..50 {
        let channel = format!("invented {number}");
        clients.push(node.join(&channel, keep, None).await.unwrap());
        let channel = name(&channel);
        let read = node.streams.history(&channel, retention(10), everything());
        read.await.unwrap();
    }
    let keys = || server.cli(&["KEYS", "causeway:*{invented*"]);
    assert_eq!(keys().trim(), "");
    node.publish("invented 7", "1", keep).await;
    assert_eq!(keys().lines().count(), 2, "the stream and its meta");
    node.stop().await;
}

#[tokio::test]
async fn a_history_that_was_created_and_evicted_meanwhile_is_not_mistaken_for_none() {
    let server = RedisServer::start().await;
    let node = node(&settings(std::slice::from_ref(&server)));
    node.until(|| node.streams.broker().readiness().is_ok())
        .await;
    let keep = Some(retention(10));
    let since = {
        let client = node.join("a", keep, None).await.unwrap();
        client.reply.position.clone().unwrap()
    };
    let forget = || node.streams.streams.write().clear();
    let is_recovered = async || {
        forget();
        let client = node.join("a", keep, Some(&since)).await.unwrap();
        client.reply.is_recovered
    };
    assert!(is_recovered().await);
    forget();
    node.publish("a", "1", keep).await;
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-random"]);
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    node.until(|| server.cli(&["EXISTS", "causeway:me:{a}"]) == "0\n")
        .await;
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert!(
        !is_recovered().await,
        "the history seems never to have existed"
    );
    forget();
    node.publish("a", "2", keep).await;
    assert!(!is_recovered().await, "the history is incomplete");
    node.stop().await;
}

#[tokio::test]
async fn a_history_that_may_have_expired_meanwhile_is_not_mistaken_for_none() {
    let server = RedisServer::start().await;
    let node = node(&settings(std::slice::from_ref(&server)));
    node.until(|| node.streams.broker().readiness().is_ok())
        .await;
    let short = Duration::from_millis(300);
    let keep = Some(Retention {
        ttl: short,
        meta_ttl: short,
        ..retention(10)
    });
    let client = node.join("a", keep, None).await.unwrap();
    let since = client.reply.position.clone().unwrap();
    drop(client);
    node.streams.streams.write().clear();
    node.publish("a", "1", keep).await;
    node.until(|| server.cli(&["EXISTS", "causeway:me:{a}"]) == "0\n")
        .await;
    let again = node.join("a", keep, Some(&since)).await.unwrap();
    assert!(!again.reply.is_recovered);
    node.stop().await;
}

#[tokio::test]
async fn a_full_redis_rejects_publications_that_have_to_be_stored() {
    let server = RedisServer::start().await;
    let node = node(&settings(std::slice::from_ref(&server)));
    node.until(|| node.streams.broker().readiness().is_ok())
        .await;
    let keep = Some(retention(10));
    node.publish("old", "1", keep).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for channel in ["old", "new"] {
        let options = PublishOptions {
            ack: Ack::Stored,
            retention: keep,
            idempotency: None,
        };
        let channel = name(channel);
        let stored = node.streams.publish(&channel, publication("2"), options);
        let refused = stored.await.unwrap_err().to_string();
        assert!(refused.contains("OOM"), "{refused}");
    }
    assert_eq!(server.cli(&["HGET", "causeway:me:{old}", "offset"]), "1\n");
    assert_eq!(server.cli(&["EXISTS", "causeway:me:{new}"]), "0\n");
    node.stop().await;
}
