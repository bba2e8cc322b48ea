//! Faults of Redis, and what the members of a channel then receive.

use std::net::TcpListener;

use super::*;

const KEEP: usize = 1000;

/// The body of a publication of `1`, as Redis stores it.
const BODY: &str = "0:\"\u{1}1";

const TOLD_TO_START_OVER: Message = Message::Unsubscribed(2500);

async fn ready(server: &RedisServer) -> Node {
    let node = node(&settings(std::slice::from_ref(server)));
    node.until(|| node.streams.broker().readiness().is_ok())
        .await;
    node
}

/// A member of channel `a` that has its reply.
async fn member(node: &Node, since: Option<&Position>) -> Client {
    let client = node.join("a", Some(retention(KEEP)), since).await.unwrap();
    assert_eq!(client.next(1).await, [Message::Reply]);
    client
}

/// Publishes again and again, until the publication is stored.
async fn store(node: &Node) -> Position {
    let options = PublishOptions {
        ack: Ack::Stored,
        retention: Some(retention(KEEP)),
        idempotency: None,
    };
    let channel = name("a");
    let stored = async {
        loop {
            let published = node
                .streams
                .publish(&channel, publication("1"), options.clone());
            if let Ok(stored) = published.await {
                return stored.position.unwrap();
            }
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    time::timeout(DEADLINE, stored).await.unwrap()
}

/// Stores a publication on `a` without sending it to any node.
fn store_unsent(server: &RedisServer) {
    let offset = server.cli(&["HINCRBY", "causeway:me:{a}", "offset", "1"]);
    let id = format!("{}-0", offset.trim());
    server.cli(&["XADD", "causeway:st:{a}", &id, "p", BODY]);
}

#[tokio::test]
async fn missed_publications_are_read_and_delivered_in_order() {
    let server = RedisServer::start().await;
    let node = ready(&server).await;
    let client = member(&node, None).await;
    store(&node).await;
    for _ in 0..3 {
        store_unsent(&server);
    }
    store(&node).await;
    assert_eq!(client.offsets(5).await, [1, 2, 3, 4, 5]);
    assert_eq!(node.metrics.gaps_noticed.get(), 1);
    assert_eq!(node.metrics.gaps_filled.get(), 1);
    assert_eq!(node.metrics.gaps_announced.get(), 0);
    node.stop().await;
}

#[tokio::test]
async fn more_than_is_read_at_once_is_delivered_in_order() {
    const MISSED: usize = 2500;
    let server = RedisServer::start().await;
    let node = ready(&server).await;
    let keep = Some(retention(10 * MISSED));
    let client = node.join("a", keep, None).await.unwrap();
    assert_eq!(client.next(1).await, [Message::Reply]);
    node.publish("a", "1", keep).await;
    let fill = format!(
        "for offset = 2, {MISSED} do redis.call('XADD', KEYS[1], offset .. '-0', 'p', ARGV[1]) end
         redis.call('HSET', KEYS[2], 'offset', {MISSED})"
    );
    server.cli(&[
        "EVAL",
        &fill,
        "2",
        "causeway:st:{a}",
        "causeway:me:{a}",
        BODY,
    ]);
    node.publish("a", "1", keep).await;
    let offsets: Vec<u64> = (1..=MISSED as u64 + 1).collect();
    assert_eq!(client.offsets(MISSED + 1).await, offsets);
    assert_eq!(node.metrics.gaps_announced.get(), 0);
    node.stop().await;
}

#[tokio::test]
async fn members_are_unsubscribed_when_missed_publications_are_gone() {
    let server = RedisServer::start().await;
    let node = ready(&server).await;
    let client = member(&node, None).await;
    let received = store(&node).await;
    store_unsent(&server);
    server.cli(&["DEL", "causeway:st:{a}"]);
    store(&node).await;
    assert_eq!(client.offsets(1).await, [1]);
    assert_eq!(client.next(1).await, [TOLD_TO_START_OVER]);
    assert!(client.membership.has_ended());
    let again = member(&node, Some(&received)).await;
    assert!(!again.reply.is_recovered);
    assert_eq!(again.reply.position.as_ref().unwrap().offset, 3);
    store(&node).await;
    assert_eq!(again.offsets(1).await, [4]);
    assert!(
        client.outbox.is_empty(),
        "a member that does not rejoin receives nothing"
    );
    node.stop().await;
}

#[tokio::test]
async fn no_publication_is_lost_with_the_subscriber_connection() {
    let server = RedisServer::start().await;
    let (subscribed, publishing) = (ready(&server).await, ready(&server).await);
    let client = member(&subscribed, None).await;
    for round in 0..5 {
        let connects = || subscribed.metrics.broker_gaps.get();
        let before = connects();
        server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        for _ in 0..40 {
            store(&publishing).await;
        }
        subscribed.until(|| before < connects()).await;
        let offsets = client.offsets(40).await;
        assert!(offsets.into_iter().eq(round * 40 + 1..=round * 40 + 40));
    }
    assert_eq!(subscribed.metrics.gaps_announced.get(), 0);
    subscribed.stop().await;
    publishing.stop().await;
}

#[tokio::test]
async fn members_are_unsubscribed_when_redis_has_lost_its_data_and_the_epoch_changes() {
    let mut server = RedisServer::start().await;
    let node = ready(&server).await;
    let client = member(&node, None).await;
    let before = store(&node).await;
    assert_eq!(client.offsets(1).await, [1]);
    server.kill();
    server.launch(&[]).await;
    assert_eq!(client.next(1).await, [TOLD_TO_START_OVER]);
    let again = member(&node, Some(&before)).await;
    assert!(!again.reply.is_recovered);
    let position = again.reply.position.clone().unwrap();
    assert_ne!(position.epoch, before.epoch);
    assert_eq!(position.offset, 0);
    assert_eq!(store(&node).await.offset, 1);
    assert_eq!(again.offsets(1).await, [1]);
    node.stop().await;
}

#[tokio::test]
async fn positions_are_not_recovered_on_a_redis_that_lost_its_last_writes() {
    let mut server = RedisServer::start().await;
    let node = ready(&server).await;
    let client = member(&node, None).await;
    for _ in 0..3 {
        store(&node).await;
    }
    server.cli(&["SAVE"]);
    for _ in 0..2 {
        store(&node).await;
    }
    assert_eq!(client.offsets(5).await, [1, 2, 3, 4, 5]);
    let at_5 = client.reply.position.clone().map(|position| Position {
        offset: 5,
        ..position
    });
    server.kill();
    server.launch(&[]).await; // What was saved is there again.
    assert_eq!(client.next(1).await, [TOLD_TO_START_OVER]);
    let again = member(&node, at_5.as_ref()).await;
    assert!(!again.reply.is_recovered);
    assert_eq!(again.reply.position.as_ref().unwrap().offset, 3);
    for _ in 0..2 {
        store(&node).await; // Other ones under the old offsets.
    }
    assert_eq!(again.offsets(2).await, [4, 5]);
    let late = member(&node, at_5.as_ref()).await;
    assert!(!late.reply.is_recovered);
    node.stop().await;
}

#[tokio::test]
async fn a_primary_that_was_briefly_a_replica_is_detected_on_the_same_connection() {
    let server = RedisServer::start().await;
    let node = ready(&server).await;
    let client = member(&node, None).await;
    let before = store(&node).await;
    let other = listening_on_tcp().await;
    server.cli(&["REPLICAOF", "127.0.0.1", &other.port.to_string()]);
    node.until(|| {
        server
            .cli(&["INFO", "replication"])
            .contains("master_link_status:up")
    })
    .await;
    server.cli(&["REPLICAOF", "NO", "ONE"]);
    let after = store(&node).await;
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(client.offsets(1).await, [1]);
    assert_eq!(client.next(1).await, [TOLD_TO_START_OVER]);
    node.stop().await;
}

#[tokio::test]
async fn a_publication_to_be_replicated_waits_for_a_replica() {
    let primary = listening_on_tcp().await;
    let node = ready(&primary.server).await;
    let client = member(&node, None).await;
    let publish = async || {
        let options = PublishOptions {
            ack: Ack::Replicated,
            retention: Some(retention(KEEP)),
            idempotency: None,
        };
        node.streams
            .publish(&name("a"), publication("1"), options)
            .await
    };
    assert_eq!(publish().await, Err(StoreError::NotReplicated.into()));
    let replica = RedisServer::start().await;
    replica.cli(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
    // The replica reports the link as up before the primary counts it for WAIT, which is after its first ACK.
    node.until(|| {
        let primary = primary.server.cli(&["INFO", "replication"]);
        primary.contains("state=online")
    })
    .await;
    // A replica on a busy machine may take longer than a publication waits for it: that is stored then, and not confirmed.
    let mut offset = 2;
    let confirmed = async {
        loop {
            match publish().await {
                Ok(stored) => break stored,
                Err(error) => assert_eq!(error, StoreError::NotReplicated.into()),
            }
            offset += 1;
        }
    };
    let stored = time::timeout(DEADLINE, confirmed).await.unwrap();
    assert_eq!(stored.position.unwrap().offset, offset);
    let held = replica.cli(&["XLEN", "causeway:st:{a}"]);
    assert_eq!(held, format!("{offset}\n"));
    assert_eq!(client.offsets(1).await, [1]);
    // A primary changes its replication id with its first replica. No data is lost, but this node cannot know that.
    assert_eq!(client.next(1).await, [TOLD_TO_START_OVER]);
    node.stop().await;
}

#[tokio::test]
async fn a_position_ahead_of_this_node_that_another_node_gave_out_is_valid_here() {
    let server = RedisServer::start().await;
    let node = ready(&server).await;
    let client = member(&node, None).await;
    let received = store(&node).await;
    store_unsent(&server);
    let elsewhere = Position {
        offset: 2,
        ..received
    };
    let came = member(&node, Some(&elsewhere)).await;
    assert!(came.reply.is_recovered);
    assert_eq!(client.offsets(2).await, [1, 2]);
    let invented = Position {
        offset: 9,
        ..elsewhere
    };
    assert!(!member(&node, Some(&invented)).await.reply.is_recovered);
    node.stop().await;
}

#[tokio::test]
async fn thousands_of_recoveries_share_one_read_of_redis() {
    let server = RedisServer::start().await;
    let node = Arc::new(ready(&server).await);
    for _ in 0..20 {
        store(&node).await;
    }
    let mut since = store(&node).await;
    since.offset = 1;
    let reads = || {
        let stats = server.cli(&["INFO", "commandstats"]);
        stats
            .lines()
            .find_map(|line| line.strip_prefix("cmdstat_xrevrange:calls="))
            .and_then(|rest| rest.split(',').next()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let before = reads();
    let mut clients = JoinSet::new();
    for _ in 0..2000 {
        let (node, since) = (Arc::clone(&node), since.clone());
        clients.spawn(async move { member(&node, Some(&since)).await });
    }
    let mut members = Vec::new();
    while let Some(client) = clients.join_next().await {
        let client = client.unwrap();
        assert!(client.reply.is_recovered);
        assert!(client.reply.missed.iter().copied().eq(2..=21));
        members.push(client);
    }
    assert_eq!(reads() - before, 2, "one script, which reads in pieces");
    drop(members);
    Arc::into_inner(node).unwrap().stop().await;
}

/// A server that others can replicate.
struct OnTcp {
    server: RedisServer,
    port: u16,
}

async fn listening_on_tcp() -> OnTcp {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let mut server = RedisServer::absent();
    server
        .launch(&["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .await;
    OnTcp { server, port }
}
