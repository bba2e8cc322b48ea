//! Members of real streams, with a real hub and both brokers: the replies and publications that they receive.

use std::num::NonZeroUsize;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::broker;
use crate::broker::Idempotency;
use crate::broker::StoreError;
use crate::broker::history::Query;
use crate::broker::history::testing::everything;
use crate::config;
use crate::config::Ack;
use crate::config::Config;
use crate::config::Fanout;
use crate::config::SlowReader;
use crate::hub::HubConfig;
use crate::hub::outbox::QueueFormat;
use crate::hub::outbox::QueueOutbox;
use crate::redis::testing::DEADLINE;
use crate::redis::testing::RedisServer;

mod faults;

/// One node without its transports.
struct Node {
    streams: Arc<ChannelStreams>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

fn node_with(broker: &config::Broker, streams: config::ChannelStreams) -> Node {
    let metrics = Metrics::new();
    let fanout = Fanout {
        window: Duration::from_millis(2),
        factor: 2.7,
        batch_bytes_max: 256 << 10,
    };
    let pinned = Vec::new();
    let hub = Hub::new(HubConfig { fanout, pinned }, Arc::clone(&metrics));
    let streams = ChannelStreams::new(streams, Arc::clone(&hub), Arc::clone(&metrics));
    let shutdown = CancellationToken::new();
    let deliver = Arc::clone(&streams) as Arc<dyn Deliver>;
    let servers = crate::redis::testing::servers(broker);
    let started = broker::start(
        &servers,
        "n",
        deliver,
        Arc::clone(&metrics),
        shutdown.clone(),
    );
    streams.start(Arc::clone(&started.broker));
    let mut tasks = started.tasks;
    tasks.spawn(hub.run(started.broker, shutdown.clone()));
    tasks.spawn(Arc::clone(&streams).run(shutdown.clone()));
    Node {
        streams,
        metrics,
        shutdown,
        tasks,
    }
}

/// Settings of a broker at `servers` with short timeouts.
fn settings(servers: &[RedisServer]) -> config::Broker {
    let urls: Vec<String> = servers
        .iter()
        .map(|server| format!("\"{}\"", server.url()))
        .collect();
    let text = format!(
        "broker: {{kind: redis, urls: [{}], probe_interval: 200ms, probe_timeout: 400ms, \
         response_timeout: 800ms, backoff_max: 200ms}}",
        urls.join(", ")
    );
    Config::parse("test", &text).unwrap().broker
}

fn node(broker: &config::Broker) -> Node {
    node_with(broker, Config::default_without_file().channels.streams)
}

fn retention(size: usize) -> Retention {
    Retention {
        size: NonZeroUsize::new(size).unwrap(),
        ttl: Duration::from_secs(60),
        meta_ttl: Duration::from_secs(3600),
    }
}

fn name(channel: &str) -> ChannelName {
    ChannelName::new(channel).unwrap()
}

/// The reply to a member's join.
#[derive(Debug, Clone, PartialEq)]
struct JoinReply {
    position: Option<Position>,
    is_recovered: bool,
    missed: Vec<u64>,
}

/// A member and everything that it received.
struct Client {
    outbox: Arc<QueueOutbox>,
    reply: JoinReply,
    membership: Membership,
}

impl Node {
    async fn join(
        &self,
        channel: &str,
        retention: Option<Retention>,
        since: Option<&Position>,
    ) -> Result<Client, Unavailable> {
        let outbox = Arc::new(QueueOutbox::with_format(QueueFormat::JsonLine, 64 << 20));
        let member = Member::Queue(Arc::clone(&outbox));
        let channel = name(channel);
        let joining = JoinRequest {
            channel: &channel,
            retention,
            slow: SlowReader::Disconnect,
            member: &member,
            receives_joins: false,
            since,
            has_lifecycle: false,
            arriving: None,
        };
        let mut joined_with = None;
        let reply = |joined: Joined<'_>| {
            let missed = joined.publications.iter().map(|one| one.offset).collect();
            joined_with = Some(JoinReply {
                position: joined.position.cloned(),
                is_recovered: joined.is_recovered,
                missed,
            });
            Bytes::from_static(b"reply")
        };
        let membership = self.streams.join(joining, reply).await?;
        Ok(Client {
            outbox,
            reply: joined_with.unwrap(),
            membership,
        })
    }

    async fn publish(&self, channel: &str, data: &str, retention: Option<Retention>) -> u64 {
        let options = PublishOptions {
            ack: Ack::Stored,
            retention,
            idempotency: None,
        };
        let stored = self
            .streams
            .publish(&name(channel), publication(data), options)
            .await;
        let Some(position) = stored.unwrap().position else {
            return 0;
        };
        // Redis confirms it before this node has received it.
        let wire = ChannelName::wire(&name(channel));
        let stream = self.streams.streams.read().get(&wire).cloned();
        let received = || stream.as_ref().and_then(|stream| stream.position());
        self.until(|| received().is_none_or(|received| position.offset <= received.offset))
            .await;
        position.offset
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        let poll = async {
            while !condition() {
                time::sleep(Duration::from_millis(2)).await;
            }
        };
        let met = time::timeout(DEADLINE, poll).await;
        assert!(met.is_ok(), "{}", self.metrics.render());
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        let ended = async { while self.tasks.join_next().await.transpose().unwrap().is_some() {} };
        time::timeout(DEADLINE, ended)
            .await
            .expect("a task goes on");
    }
}

fn publication(data: &str) -> crate::protocol::Publication {
    crate::protocol::Publication {
        data: Bytes::from(data.to_owned()),
        ..Default::default()
    }
}

/// A message that a member receives.
#[derive(Debug, Clone, PartialEq)]
enum Message {
    Reply,
    Publication { offset: u64, data: String },
    Unsubscribed(u64),
}

fn parse(message: &Bytes) -> Message {
    if message == "reply" {
        return Message::Reply;
    }
    let push = &serde_json::from_slice::<serde_json::Value>(message).unwrap()["push"];
    if let Some(code) = push["unsubscribe"]["code"].as_u64() {
        return Message::Unsubscribed(code);
    }
    Message::Publication {
        offset: push["pub"]["offset"].as_u64().unwrap_or(0),
        data: push["pub"]["data"].to_string(),
    }
}

impl Client {
    /// The next `count` messages.
    async fn next(&self, count: usize) -> Vec<Message> {
        let mut messages = Vec::new();
        let taking = async {
            while messages.len() < count {
                self.outbox.wait().await;
                messages.extend(self.outbox.take(1).iter().map(parse));
            }
        };
        let taken = time::timeout(DEADLINE, taking).await;
        assert!(taken.is_ok(), "{} of {count}", messages.len());
        messages
    }

    /// The offsets of the `count` publications after the reply, which is the next message.
    async fn offsets_after_the_reply(&self, count: usize) -> Vec<u64> {
        assert_eq!(self.next(1).await, [Message::Reply]);
        self.offsets(count).await
    }

    /// The offsets of the next `count` messages, which are publications.
    async fn offsets(&self, count: usize) -> Vec<u64> {
        let offset = |received: Message| match received {
            Message::Publication { offset, .. } => offset,
            other => panic!("no publication: {other:?}"),
        };
        self.next(count).await.into_iter().map(offset).collect()
    }
}

/// One test for each broker, in modules `on_memory`, `on_redis` and `on_two_servers`.
macro_rules! same_on_both {
    ($($case:ident),* $(,)?) => {
        mod on_memory {
            $(#[tokio::test] async fn $case() {
                super::$case(super::node(&super::config::Broker::Memory)).await;
            })*
        }
        mod on_redis {
            $(#[tokio::test] async fn $case() {
                let server = super::RedisServer::start().await;
                let node = super::node(&super::settings(std::slice::from_ref(&server)));
                node.until(|| node.streams.broker().readiness().is_ok()).await;
                super::$case(node).await;
            })*
        }
        mod on_two_servers {
            $(#[tokio::test] async fn $case() {
                let servers = [super::RedisServer::start().await, super::RedisServer::start().await];
                let node = super::node(&super::settings(&servers));
                node.until(|| node.streams.broker().readiness().is_ok()).await;
                super::$case(node).await;
            })*
        }
    };
}

// After the macro, which it uses.
mod unstarted;

same_on_both! {
    a_member_gets_its_position_and_the_publications_after_it,
    a_channel_without_history_has_no_positions,
    a_member_that_recovers_gets_missed_publications_once,
    a_member_that_was_away_too_long_is_told_that_it_is_not_recovered,
    a_repetition_is_published_once,
    contradicting_options_are_rejected,
    history_is_read_from_either_end_and_removed,
    a_publication_that_is_not_stored_has_no_offset,
    members_that_join_and_leave_during_publishing_receive_everything_once,
    a_member_that_is_handed_off_receives_the_rest_elsewhere,
}

async fn a_member_gets_its_position_and_the_publications_after_it(node: Node) {
    let keep = Some(retention(10));
    assert_eq!(node.publish("a", "1", keep).await, 1);
    let client = node.join("a", keep, None).await.unwrap();
    assert_eq!(client.reply.position.as_ref().unwrap().offset, 1);
    assert!(!client.reply.is_recovered);
    assert_eq!(client.reply.missed, [0; 0]);
    assert_eq!(node.publish("a", "2", keep).await, 2);
    node.publish("other", "0", keep).await;
    assert_eq!(node.publish("a", "3", keep).await, 3);
    let publication = |offset: u64| Message::Publication {
        offset,
        data: offset.to_string(),
    };
    assert_eq!(
        client.next(3).await,
        [Message::Reply, publication(2), publication(3)]
    );
    assert!(!client.membership.has_ended());
    node.stop().await;
}

async fn a_member_that_is_handed_off_receives_the_rest_elsewhere(node: Node) {
    for (channel, retention) in [("past", Some(retention(10))), ("live", None)] {
        let before = node.join(channel, retention, None).await.unwrap();
        let outbox = Arc::new(QueueOutbox::with_format(QueueFormat::JsonLine, 64 << 20));
        let member = Member::Queue(Arc::clone(&outbox));
        let channel_name = name(channel);
        let joining = JoinRequest {
            channel: &channel_name,
            retention,
            slow: SlowReader::Disconnect,
            member: &member,
            receives_joins: false,
            since: None,
            has_lifecycle: false,
            arriving: None,
        };
        let arriving = node.streams.expect(joining, 1 << 20).await.unwrap();
        for number in 0..3 {
            node.publish(channel, &number.to_string(), retention).await;
        }
        // Both at one place of the stream: nothing is received in between.
        arriving.mark();
        let cut = before.membership.cut().unwrap();
        for number in 3..6 {
            node.publish(channel, &number.to_string(), retention).await;
        }
        for written in cut.written {
            written.await.unwrap();
        }
        assert_eq!(cut.position.is_some(), retention.is_some());
        let joining = JoinRequest {
            since: cut.position.as_ref(),
            ..joining
        };
        let mut missed = Vec::new();
        let reply = |joined: Joined<'_>| {
            let stored = joined.publications.iter().map(|one| one.data.clone());
            let held = joined.held.expect("the mark was received").iter();
            let held = held.map(|event| match event {
                crate::protocol::Event::Publication(publication) => publication.data.clone(),
                other => panic!("{other:?}"),
            });
            missed.extend(stored.chain(held));
            Bytes::from_static(b"reply")
        };
        let resumed = ChannelStreams::resume(&arriving, joining, reply).await;
        let after = Client {
            outbox,
            reply: before.reply.clone(),
            membership: resumed.unwrap(),
        };
        node.publish(channel, "6", retention).await;

        let data = |message: &Message| match message {
            Message::Publication { data, .. } => Some(data.clone()),
            _ => None,
        };
        let early: Vec<_> = before.outbox.take(1 << 20).iter().map(parse).collect();
        let mut all: Vec<String> = early.iter().filter_map(data).collect();
        all.extend(
            missed
                .iter()
                .map(|data| String::from_utf8_lossy(data).into_owned()),
        );
        while all.last().is_none_or(|last| last != "6") {
            all.extend(after.next(1).await.iter().filter_map(data));
        }
        let expected: Vec<_> = (0..7).map(|number| number.to_string()).collect();
        assert_eq!(all, expected, "{channel}");
        assert!(before.outbox.take(1 << 20).is_empty());
    }
    node.stop().await;
}

async fn a_channel_without_history_has_no_positions(node: Node) {
    let client = node.join("a", None, None).await.unwrap();
    assert_eq!(client.reply.position, None);
    node.publish("a", "1", None).await;
    let options = PublishOptions {
        ack: Ack::Fast,
        retention: None,
        idempotency: None,
    };
    node.streams
        .publish(&name("a"), publication("2"), options)
        .await
        .unwrap();
    client.next(1).await;
    assert_eq!(client.offsets(2).await, [0, 0]);
    let since = Position {
        epoch: "e".into(),
        offset: 3,
    };
    let again = node.join("a", None, Some(&since)).await.unwrap();
    assert!(
        !again.reply.is_recovered,
        "there is nothing to recover from"
    );
    node.stop().await;
}

async fn a_member_that_recovers_gets_missed_publications_once(node: Node) {
    let keep = Some(retention(10));
    let first = node.join("a", keep, None).await.unwrap();
    let since = first.reply.position.clone().unwrap();
    drop(first.membership);
    for number in 1..=10 {
        node.publish("a", &number.to_string(), keep).await;
    }
    let again = node.join("a", keep, Some(&since)).await.unwrap();
    assert!(again.reply.is_recovered);
    assert!(again.reply.missed.iter().copied().eq(1..=10));
    node.publish("a", "11", keep).await;
    again.next(1).await;
    assert_eq!(again.offsets(1).await, [11]);
    let up_to_date = Position {
        offset: 11,
        ..since
    };
    let same = node.join("a", keep, Some(&up_to_date)).await.unwrap();
    assert_eq!(
        (same.reply.is_recovered, same.reply.missed.len()),
        (true, 0)
    );
    node.stop().await;
}

async fn a_member_that_was_away_too_long_is_told_that_it_is_not_recovered(node: Node) {
    let keep = Some(retention(3));
    let first = node.join("a", keep, None).await.unwrap();
    let since = first.reply.position.unwrap();
    for number in 1..=4 {
        node.publish("a", &number.to_string(), keep).await;
    }
    for offset in [0, 5] {
        let since = Position {
            offset,
            ..since.clone()
        };
        let lost = node.join("a", keep, Some(&since)).await.unwrap();
        assert_eq!(
            (lost.reply.is_recovered, lost.reply.missed.len()),
            (false, 0)
        );
        assert_eq!(lost.reply.position.unwrap().offset, 4);
    }
    let other = Position {
        epoch: "other".into(),
        offset: 4,
    };
    let lost = node.join("a", keep, Some(&other)).await.unwrap();
    assert!(!lost.reply.is_recovered);
    let text = node.metrics.render();
    assert!(
        text.contains("recoveries_total{result=\"miss\"} 3\n"),
        "{text}"
    );
    node.stop().await;
}

/// Low limits for the cache and for recoveries.
fn little() -> config::ChannelStreams {
    config::ChannelStreams {
        ring_bytes_max: 2500,
        recovery_max: 100,
        reply_bytes_max: 64 << 10,
        ..Config::default_without_file().channels.streams
    }
}

#[tokio::test]
async fn publications_over_the_cache_limit_are_recovered_up_to_the_limits() {
    recover_up_to_the_limits(node_with(&config::Broker::Memory, little())).await;
}

#[tokio::test]
async fn publications_over_the_cache_limit_are_recovered_from_redis_up_to_the_limits() {
    let server = RedisServer::start().await;
    let node = node_with(&settings(std::slice::from_ref(&server)), little());
    node.until(|| node.streams.broker().readiness().is_ok())
        .await;
    recover_up_to_the_limits(node).await;
}

async fn recover_up_to_the_limits(node: Node) {
    let keep = Some(retention(100_000));
    let options = PublishOptions {
        ack: Ack::Stored,
        retention: keep,
        idempotency: None,
    };
    let publish = async |data: String| {
        let channel = name("a");
        let published = node
            .streams
            .publish(&channel, publication(&data), options.clone());
        published.await.unwrap().position.unwrap()
    };
    for number in 1..300 {
        publish(number.to_string()).await;
    }
    let last = publish("300".to_owned()).await;
    let recover = async |offset| {
        let since = Position {
            offset,
            ..last.clone()
        };
        let reply = node.join("a", keep, Some(&since)).await.unwrap().reply;
        (reply.is_recovered, reply.missed)
    };
    assert_eq!(recover(298).await, (true, vec![299, 300]));
    assert_eq!(recover(200).await, (true, (201..=300).collect()));
    assert_eq!(recover(199).await, (false, vec![]));
    assert_eq!(recover(0).await, (false, vec![]));
    let large = format!("\"{}\"", "x".repeat(10 << 10));
    for _ in 0..8 {
        node.publish("a", &large, keep).await;
    }
    assert_eq!(recover(303).await, (true, (304..=308).collect()));
    assert_eq!(recover(300).await, (false, vec![]));
    let text = node.metrics.render();
    let counted = "recoveries_total{result=\"over_limit\"} 3\n";
    assert!(text.contains(counted), "{text}");
    node.stop().await;
}

async fn a_repetition_is_published_once(node: Node) {
    for keep in [Some(retention(10)), None] {
        let channel = if keep.is_some() { "kept" } else { "unkept" };
        let client = node.join(channel, keep, None).await.unwrap();
        let mut results = Vec::new();
        for key in ["x", "x", "y"] {
            let options = PublishOptions {
                ack: Ack::Stored,
                retention: keep,
                idempotency: Some(Idempotency {
                    key: key.into(),
                    ttl: Duration::from_secs(60),
                }),
            };
            let publication = publication(&format!("\"{key}\""));
            results.push(
                node.streams
                    .publish(&name(channel), publication, options)
                    .await
                    .unwrap(),
            );
        }
        assert_eq!(results[0], results[1]);
        assert_eq!(results[0] == results[2], keep.is_none());
        client.next(1).await;
        let data: Vec<_> = client.next(2).await;
        assert!(matches!(&data[0], Message::Publication { data, .. } if data == "\"x\""));
        assert!(matches!(&data[1], Message::Publication { data, .. } if data == "\"y\""));
    }
    node.stop().await;
}

async fn contradicting_options_are_rejected(node: Node) {
    let key = Idempotency {
        key: "x".into(),
        ttl: Duration::from_secs(1),
    };
    for (ack, retention, idempotency, expected) in [
        (
            Ack::Fast,
            Some(retention(1)),
            None,
            PublishFailed::FastWithHistory,
        ),
        (Ack::Fast, None, Some(key), PublishFailed::FastWithKey),
        (
            Ack::Replicated,
            None,
            None,
            PublishFailed::NothingToReplicate,
        ),
        (
            Ack::Replicated,
            Some(retention(1)),
            None,
            StoreError::NotReplicated.into(),
        ),
    ] {
        let options = PublishOptions {
            ack,
            retention,
            idempotency,
        };
        let published = node
            .streams
            .publish(&name("a"), publication("1"), options)
            .await;
        assert_eq!(published, Err(expected));
    }
    node.stop().await;
}

async fn history_is_read_from_either_end_and_removed(node: Node) {
    let keep = retention(5);
    let read = async |query: Query| {
        let history = node.streams.history(&name("a"), keep, query).await.unwrap();
        let offsets: Vec<u64> = history.publications.iter().map(|one| one.offset).collect();
        (history.position, offsets)
    };
    let (empty, offsets) = read(everything()).await;
    assert_eq!((empty.offset, offsets.len()), (0, 0));
    for number in 1..=6 {
        node.publish("a", &number.to_string(), Some(keep)).await;
    }
    let newest = Query {
        limit: 2,
        order: crate::broker::history::Order::NewestFirst,
        ..everything()
    };
    let (position, offsets) = read(newest.clone()).await;
    assert_eq!(position.offset, 6);
    assert!(crate::broker::history::Unstarted::of(&empty.epoch).is_some());
    assert_eq!(offsets, [6, 5]);
    let at = |offset| {
        let epoch = position.epoch.clone();
        Some(Position { epoch, offset })
    };
    assert_eq!(
        read(Query {
            since: at(5),
            ..newest.clone()
        })
        .await
        .1,
        [4, 3]
    );
    assert_eq!(
        read(Query {
            since: at(3),
            ..everything()
        })
        .await
        .1,
        [4, 5, 6]
    );
    assert_eq!(
        read(Query {
            limit: 1,
            ..everything()
        })
        .await
        .1,
        [2]
    );
    assert_eq!(
        read(Query {
            limit: 0,
            ..everything()
        })
        .await
        .1,
        [0; 0]
    );
    let other = Some(Position {
        epoch: "other".into(),
        offset: 3,
    });
    assert_eq!(
        read(Query {
            since: other,
            ..everything()
        })
        .await
        .1,
        [0; 0]
    );

    node.streams.remove_history(&name("a")).await.unwrap();
    assert_eq!(read(everything()).await, (position.clone(), vec![]));
    assert_eq!(node.publish("a", "7", Some(keep)).await, 7);
    assert_eq!(read(everything()).await.1, [7]);
    node.stop().await;
}

async fn a_publication_that_is_not_stored_has_no_offset(node: Node) {
    let keep = Some(retention(5));
    let client = node.join("a", keep, None).await.unwrap();
    node.publish("a", "1", keep).await;
    node.publish("a", "2", None).await;
    node.publish("a", "3", keep).await;
    client.next(1).await;
    assert_eq!(client.offsets(3).await, [1, 0, 2]);
    node.stop().await;
}

async fn members_that_join_and_leave_during_publishing_receive_everything_once(node: Node) {
    const PUBLICATIONS: u64 = 3000;
    let keep = Some(retention(100_000));
    let node = Arc::new(node);
    let mut publishers = JoinSet::new();
    for _ in 0..3 {
        let node = Arc::clone(&node);
        publishers.spawn(async move {
            for _ in 0..PUBLICATIONS / 3 {
                node.publish("a", "0", keep).await;
                if fastrand::u8(..) < 16 {
                    time::sleep(Duration::from_micros(500)).await;
                }
            }
        });
    }
    let mut members = JoinSet::new();
    for _ in 0..20 {
        let node = Arc::clone(&node);
        members.spawn(async move {
            let mut since: Option<Position> = None;
            let mut seen = Vec::new();
            while since
                .as_ref()
                .is_none_or(|since| since.offset < PUBLICATIONS)
            {
                let client = node.join("a", keep, since.as_ref()).await.unwrap();
                let reply = &client.reply;
                let position = reply.position.clone().unwrap();
                match &since {
                    None => seen.push(position.offset),
                    Some(_) => assert!(reply.is_recovered),
                }
                seen.extend(&reply.missed);
                assert_eq!(seen.last(), Some(&position.offset));
                let stay = Duration::from_micros(fastrand::u64(..5000));
                time::sleep(stay).await;
                drop(client.membership);
                time::sleep(Duration::from_millis(fastrand::u64(..30))).await;
                let messages = client.outbox.take(usize::MAX);
                assert_eq!(parse(&messages[0]), Message::Reply);
                seen.extend(messages[1..].iter().map(|message| match parse(message) {
                    Message::Publication { offset, .. } => offset,
                    other => panic!("{other:?}"),
                }));
                let offset = *seen.last().unwrap();
                since = Some(Position { offset, ..position });
            }
            let first = seen[0];
            assert!(
                seen.into_iter().eq(first..=PUBLICATIONS),
                "a gap or a repeat"
            );
        });
    }
    let done = async {
        while publishers.join_next().await.transpose().unwrap().is_some() {}
        while members.join_next().await.transpose().unwrap().is_some() {}
    };
    time::timeout(2 * DEADLINE, done).await.unwrap();
    assert_eq!(node.metrics.gaps_noticed.get(), 0);
    Arc::into_inner(node).unwrap().stop().await;
}

#[tokio::test]
async fn publications_are_not_delayed_while_a_reply_is_written() {
    let node = node(&config::Broker::Memory);
    let keep = Some(retention(10));
    let other = node.join("a", keep, None).await.unwrap();
    let outbox = Arc::new(QueueOutbox::with_format(QueueFormat::JsonLine, 64 << 20));
    let channel = name("a");
    let joining = JoinRequest {
        channel: &channel,
        retention: keep,
        slow: SlowReader::Disconnect,
        member: &Member::Queue(Arc::clone(&outbox)),
        receives_joins: false,
        since: None,
        has_lifecycle: false,
        arriving: None,
    };
    let reply = |joined: Joined<'_>| {
        assert_eq!(joined.position.unwrap().offset, 0);
        let options = PublishOptions {
            ack: Ack::Stored,
            retention: keep,
            idempotency: None,
        };
        let (streams, channel) = (Arc::clone(&node.streams), channel.clone());
        let (done, published) = std::sync::mpsc::channel();
        // The publisher's own thread delivers it.
        std::thread::spawn(move || {
            let publish = streams.publish(&channel, publication("1"), options);
            let stored = futures_util::FutureExt::now_or_never(publish);
            done.send(stored.is_some()).unwrap();
        });
        assert_eq!(published.recv_timeout(DEADLINE), Ok(true));
        Bytes::from_static(b"reply")
    };
    let membership = node.streams.join(joining, reply).await.unwrap();
    let client = Client {
        outbox,
        reply: other.reply.clone(),
        membership,
    };
    assert_eq!(other.offsets_after_the_reply(1).await, [1]);
    assert_eq!(client.offsets_after_the_reply(1).await, [1]);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_outlives_its_last_member_by_the_linger_and_no_more() {
    let node = node(&config::Broker::Memory);
    let keep = Some(retention(10));
    let wanted = || node.metrics.subscriptions.get();
    let client = node.join("a", keep, None).await.unwrap();
    assert_eq!((node.metrics.channel_streams.get(), wanted()), (1, 1));
    drop(client.membership);
    time::sleep(Duration::from_secs(9)).await;
    let again = node.join("a", keep, None).await.unwrap();
    time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        (node.metrics.channel_streams.get(), wanted()),
        (1, 1),
        "it is in use"
    );
    drop(again.membership);
    time::sleep(Duration::from_millis(9_900)).await;
    assert_eq!(wanted(), 1);
    time::sleep(Duration::from_millis(200)).await;
    assert_eq!((node.metrics.channel_streams.get(), wanted()), (0, 0));
    node.publish("a", "1", keep).await;
    let back = node.join("a", keep, None).await.unwrap();
    assert_eq!(back.reply.position.unwrap().offset, 1);
    drop(back.membership);
    node.stop().await;
}

#[tokio::test]
async fn members_are_unsubscribed_when_the_hub_drops_a_publication() {
    let node = node(&config::Broker::Memory);
    let keep = Some(retention(100_000));
    let client = node.join("a", keep, None).await.unwrap();
    let data = format!("\"{}\"", "x".repeat(64 << 10));
    // One thread: the hub's task does not run while this one publishes.
    while !client.membership.has_ended() {
        let options = PublishOptions {
            ack: Ack::Stored,
            retention: keep,
            idempotency: None,
        };
        node.streams
            .publish(&name("a"), publication(&data), options)
            .await
            .unwrap();
    }
    let mut offsets = 0;
    assert_eq!(client.next(1).await, [Message::Reply]);
    loop {
        match client.next(1).await.as_slice() {
            [Message::Publication { offset, .. }] => {
                offsets += 1;
                assert_eq!(*offset, offsets);
            }
            reply => {
                assert_eq!(reply, [Message::Unsubscribed(2500)]);
                break;
            }
        }
    }
    assert_eq!(node.metrics.gaps_announced.get(), 1);
    node.stop().await;
}
