//! Channels before their first publication.

use super::*;
use crate::broker::history::Unborn;
use crate::broker::history::testing::everything;

same_on_both! {
    who_subscribed_before_the_first_publication_recovers_it_anywhere,
    who_asks_for_what_came_after_the_beginning_gets_it,
}

async fn who_subscribed_before_the_first_publication_recovers_it_anywhere(node: Node) {
    let keep = Some(retention(10));
    let first = node.join("a", keep, None).await.unwrap();
    let since = first.told.position.clone().unwrap();
    assert!(Unborn::of(&since.epoch).is_some() && since.offset == 0);
    let other = node.join("a", keep, Some(&since)).await.unwrap();
    assert_eq!(
        (other.told.is_recovered, other.told.missed.len()),
        (true, 0)
    );
    for number in 1..=3_u64 {
        node.publish("a", &number.to_string(), keep).await;
    }
    assert_eq!(first.next(1).await, [Heard::Reply]);
    assert_eq!(first.offsets(3).await, [1, 2, 3]);
    // Another feed, which was never without a stream: as on another node.
    drop((first, other));
    node.feeds.feeds.write().clear();
    for heard in 0..=3 {
        let since = Position {
            offset: heard,
            ..since.clone()
        };
        let again = node.join("a", keep, Some(&since)).await.unwrap();
        assert!(again.told.is_recovered, "{heard}");
        assert!(again.told.missed.iter().copied().eq(heard + 1..=3));
    }
    node.stop().await;
}

async fn who_asks_for_what_came_after_the_beginning_gets_it(node: Node) {
    let keep = retention(10);
    let channel = name("a");
    let empty = node.feeds.history(&channel, keep, everything());
    let since = empty.await.unwrap().position;
    node.publish("a", "1", Some(keep)).await;
    let query = Query {
        since: Some(since.clone()),
        ..everything()
    };
    let history = node.feeds.history(&name("a"), keep, query).await.unwrap();
    assert!(history.continues(&since));
    assert_eq!(history.publications.len(), 1);
    node.stop().await;
}

#[tokio::test]
async fn nothing_is_written_for_a_channel_before_its_first_publication() {
    let server = RedisServer::start().await;
    let node = node(&settings(std::slice::from_ref(&server)));
    node.until(|| node.feeds.broker().readiness().is_ok()).await;
    let keep = Some(retention(10));
    let mut clients = Vec::new();
    for number in 0..50 {
        let channel = format!("invented {number}");
        clients.push(node.join(&channel, keep, None).await.unwrap());
        let channel = name(&channel);
        let read = node.feeds.history(&channel, retention(10), everything());
        read.await.unwrap();
    }
    let keys = || server.cli(&["KEYS", "causeway:*{invented*"]);
    assert_eq!(keys().trim(), "");
    node.publish("invented 7", "1", keep).await;
    assert_eq!(keys().lines().count(), 2, "the stream and its meta");
    node.stop().await;
}

#[tokio::test]
async fn a_stream_that_came_and_was_evicted_meanwhile_is_not_taken_for_none() {
    let server = RedisServer::start().await;
    let node = node(&settings(std::slice::from_ref(&server)));
    node.until(|| node.feeds.broker().readiness().is_ok()).await;
    let keep = Some(retention(10));
    let since = {
        let client = node.join("a", keep, None).await.unwrap();
        client.told.position.clone().unwrap()
    };
    let forget = || node.feeds.feeds.write().clear();
    let is_recovered = async || {
        forget();
        let client = node.join("a", keep, Some(&since)).await.unwrap();
        client.told.is_recovered
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
        "it looks as if nothing had been there"
    );
    forget();
    node.publish("a", "2", keep).await;
    assert!(!is_recovered().await, "what is there is not all that was");
    node.stop().await;
}

#[tokio::test]
async fn a_stream_that_may_have_ended_by_its_lifetime_meanwhile_is_not_taken_for_none() {
    let server = RedisServer::start().await;
    let node = node(&settings(std::slice::from_ref(&server)));
    node.until(|| node.feeds.broker().readiness().is_ok()).await;
    let short = Duration::from_millis(300);
    let keep = Some(Retention {
        ttl: short,
        meta_ttl: short,
        ..retention(10)
    });
    let client = node.join("a", keep, None).await.unwrap();
    let since = client.told.position.clone().unwrap();
    drop(client);
    node.feeds.feeds.write().clear();
    node.publish("a", "1", keep).await;
    node.until(|| server.cli(&["EXISTS", "causeway:me:{a}"]) == "0\n")
        .await;
    let again = node.join("a", keep, Some(&since)).await.unwrap();
    assert!(!again.told.is_recovered);
    node.stop().await;
}

#[tokio::test]
async fn a_full_redis_takes_no_publication_that_it_would_have_to_keep() {
    let server = RedisServer::start().await;
    let node = node(&settings(std::slice::from_ref(&server)));
    node.until(|| node.feeds.broker().readiness().is_ok()).await;
    let keep = Some(retention(10));
    node.publish("old", "1", keep).await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    for channel in ["old", "new"] {
        let how = How {
            ack: Ack::Stored,
            retention: keep,
            idempotency: None,
        };
        let channel = name(channel);
        let stored = node.feeds.publish(&channel, publication("2"), how);
        let refused = stored.await.unwrap_err().to_string();
        assert!(refused.contains("OOM"), "{refused}");
    }
    assert_eq!(server.cli(&["HGET", "causeway:me:{old}", "offset"]), "1\n");
    assert_eq!(server.cli(&["EXISTS", "causeway:me:{new}"]), "0\n");
    node.stop().await;
}
