//! The same cases on both brokers, then what only Redis can do wrong.

use std::num::NonZeroUsize;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time;

use super::*;
use crate::broker::history::Order;
use crate::broker::history::Query;
use crate::broker::history::Retention;
use crate::broker::history::testing::everything;
use crate::config;
use crate::config::Config;
use crate::protocol::Position;
use crate::redis::testing;
use crate::redis::testing::DEADLINE;
use crate::redis::testing::RedisCluster;
use crate::redis::testing::RedisServer;
use crate::redis::testing::free_port;

mod demoted;
mod redis_away;
mod rights;
mod sharded;
mod tls;

/// A hub that only remembers.
#[derive(Default)]
struct Recorder {
    publications: Mutex<Vec<Publication>>,
    changed: Notify,
    /// Each shard once, as it was interrupted first.
    interrupted: Mutex<Vec<Shard>>,
    resumed: AtomicUsize,
}

impl Deliver for Recorder {
    fn deliver(&self, publications: Vec<Publication>) {
        self.publications.lock().extend(publications);
        self.changed.notify_waiters();
    }

    fn interrupted(&self, shard: Shard) {
        let mut interrupted = self.interrupted.lock();
        if !interrupted.contains(&shard) {
            interrupted.push(shard);
        }
    }

    fn resumed(&self, _: Shard) {
        self.resumed.fetch_add(1, Ordering::SeqCst);
    }
}

impl Recorder {
    /// What came on `channel` so far.
    fn on(&self, channel: &str) -> Vec<Bytes> {
        let publications = self.publications.lock();
        let on_channel = publications
            .iter()
            .filter(|publication| publication.channel.as_str() == channel);
        on_channel
            .map(|publication| publication.data.clone())
            .collect()
    }

    /// Waits until `count` publications have come on `channel`.
    async fn wait_for(&self, channel: &str, count: usize) -> Vec<Bytes> {
        let enough = async {
            loop {
                let changed = self.changed.notified();
                let publications = self.on(channel);
                if count <= publications.len() {
                    return publications;
                }
                changed.await;
            }
        };
        match time::timeout(DEADLINE, enough).await {
            Ok(publications) => publications,
            Err(_) => panic!("{} of {count} on {channel}", self.on(channel).len()),
        }
    }
}

/// A broker at work and what it brought.
struct Setup {
    broker: Arc<dyn Streams>,
    recorder: Arc<Recorder>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
    /// What follows the primary, if there are Sentinels.
    _redis: JoinSet<()>,
}

/// Settings of a broker at `server` that notices everything fast.
fn settings(server: &RedisServer, extra: &str) -> config::Broker {
    let text = format!(
        "broker: {{kind: redis, url: \"{}\", probe_interval: 200ms, probe_timeout: 400ms, \
         response_timeout: 800ms, backoff_max: 200ms{extra}}}",
        server.url()
    );
    Config::parse("test", &text).unwrap().broker
}

fn set_up(config: &config::Broker) -> Setup {
    let recorder = Arc::new(Recorder::default());
    let metrics = Metrics::new();
    let shutdown = CancellationToken::new();
    let redis = crate::redis::start(config, "test-node", &metrics, &shutdown);
    let started = start(
        &redis.servers,
        "test-node",
        Arc::clone(&recorder) as Arc<dyn Deliver>,
        Arc::clone(&metrics),
        shutdown.clone(),
    );
    Setup {
        broker: started.broker,
        recorder,
        metrics,
        shutdown,
        tasks: started.tasks,
        _redis: redis.tasks,
    }
}

/// Whether all servers are started that such a deployment has (`make e2e-redis`), or only as many as are needed.
fn is_whole() -> bool {
    std::env::var_os("CAUSEWAY_REDIS_WHOLE").is_some()
}

/// A Redis that Sentinels watch.
struct Watched {
    sentinels: Vec<RedisServer>,
    /// The primary, and its replicas.
    servers: Vec<RedisServer>,
    ports: Vec<u16>,
}

impl Watched {
    async fn start() -> Self {
        let (replicas, sentinels) = if is_whole() { (2, 3) } else { (0, 1) };
        let mut watched = Self {
            sentinels: Vec::new(),
            servers: Vec::new(),
            ports: Vec::new(),
        };
        let primary = free_port().to_string();
        for number in 0..=replicas {
            let mut server = RedisServer::absent();
            if number == 0 {
                server.launch(&["--port", &primary]).await;
            } else {
                let port = free_port().to_string();
                server.launch(&["--port", &port]).await;
                server.cli(&["REPLICAOF", "127.0.0.1", &primary]);
                testing::until(|| server.is_in_sync()).await;
            }
            watched.servers.push(server);
        }
        for _ in 0..sentinels {
            let (mut sentinel, port) = (RedisServer::absent(), free_port());
            let (primary, quorum) = (primary.parse().unwrap(), sentinels / 2 + 1);
            sentinel.launch_sentinel(port, primary, quorum).await;
            watched.sentinels.push(sentinel);
            watched.ports.push(port);
        }
        watched
    }

    fn settings(&self) -> config::Broker {
        for sentinel in self.servers.iter().chain(&self.sentinels) {
            assert!(sentinel.cli(&["PING"]).contains("PONG"));
        }
        let text = format!(
            "broker: {{kind: redis, sentinel: {{master: main, servers: [{}]}}}}",
            testing::addresses(&self.ports)
        );
        Config::parse("test", &text).unwrap().broker
    }
}

/// Settings of a broker on `cluster`.
fn settings_of(cluster: &RedisCluster) -> config::Broker {
    let servers = cluster.addresses();
    let text = format!("broker: {{kind: redis, cluster: {{servers: [{servers}]}}}}");
    Config::parse("test", &text).unwrap().broker
}

impl Setup {
    async fn subscribe(&self, channels: &[&str]) {
        for channel in channels {
            self.broker.subscribe(&name(channel));
        }
        self.until_settled(channels.len()).await;
    }

    /// Waits until the broker has confirmed `channels` channels.
    async fn until_settled(&self, channels: usize) {
        let channels = i64::try_from(channels).unwrap();
        self.until(|| self.metrics.subscriptions.get() == channels)
            .await;
    }

    async fn until_ready(&self) {
        self.until(|| self.broker.readiness().is_ok()).await;
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        let poll = async {
            while !condition() {
                time::sleep(Duration::from_millis(2)).await;
            }
        };
        let met = time::timeout(DEADLINE, poll).await;
        assert!(
            met.is_ok(),
            "{:?}\n{}",
            self.broker.readiness(),
            self.metrics.render()
        );
    }

    /// Publishes as a client does: at once if there is room, else waiting.
    async fn publish(&self, channel: &str, data: impl Into<Bytes>) -> Result<(), PublishError> {
        let channel = name(channel);
        match self.broker.try_publish(&channel, data.into()) {
            Ok(()) => Ok(()),
            Err(TryPublishError::Full(data)) => self.broker.publish(&channel, data).await,
        }
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.counted(&format!("dropped_total{{reason=\"{reason}\"}}"))
    }

    fn connects(&self, side: &str) -> u64 {
        self.counted(&format!("broker_connects_total{{side=\"{side}\"}}"))
    }

    /// The value of a counter that has a label.
    fn counted(&self, series: &str) -> u64 {
        let text = self.metrics.render();
        let head = format!("causeway_node_{series} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&head));
        line.map_or(0, |count| count.parse().unwrap())
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        let ended = async { while self.tasks.join_next().await.transpose().unwrap().is_some() {} };
        time::timeout(DEADLINE, ended)
            .await
            .expect("a task goes on");
    }
}

/// A question for all that `channel` has kept.
fn ask(channel: &str) -> Ask {
    Ask {
        channel: name(channel),
        retention: retention(),
        query: everything(),
    }
}

/// A publication that `channel` keeps.
fn store(channel: &str, until: Until) -> Store {
    Store {
        channel: name(channel),
        body: Bytes::from_static(b"0:"),
        retention: Some(retention()),
        idempotency: None,
        until,
    }
}

fn retention() -> Retention {
    Retention {
        size: NonZeroUsize::new(100).unwrap(),
        ttl: Duration::from_secs(60),
        meta_ttl: Duration::from_secs(3600),
    }
}

fn name(channel: &str) -> ChannelName {
    ChannelName::new(channel).unwrap()
}

/// One test for each broker, one for a Redis that Sentinels name and one for a Redis Cluster, in modules of their own.
macro_rules! same_on_all {
    ($($case:ident),* $(,)?) => {
        mod on_memory {
            $(#[tokio::test] async fn $case() {
                super::$case(super::set_up(&super::config::Broker::Memory)).await;
            })*
        }
        mod on_redis {
            $(#[tokio::test] async fn $case() {
                let server = super::RedisServer::start().await;
                let setup = super::set_up(&super::settings(&server, ""));
                setup.until_ready().await;
                super::$case(setup).await;
            })*
        }
        mod on_sentinel {
            $(#[tokio::test] async fn $case() {
                let watched = super::Watched::start().await;
                let setup = super::set_up(&watched.settings());
                setup.until_ready().await;
                super::$case(setup).await;
            })*
        }
        mod on_cluster {
            $(#[tokio::test] async fn $case() {
                let cluster = super::RedisCluster::start(usize::from(super::is_whole())).await;
                let setup = super::set_up(&super::settings_of(&cluster));
                setup.until_ready().await;
                super::$case(setup).await;
            })*
        }
    };
}

same_on_all! {
    what_is_published_comes_back_unchanged_and_in_order,
    channels_keep_their_order_whatever_their_queue,
    only_wanted_channels_come,
    the_last_request_holds,
    stopping_publishes_what_was_accepted,
    a_read_of_a_stream_is_bounded_from_either_end,
}

async fn a_read_of_a_stream_is_bounded_from_either_end(setup: Setup) {
    const COUNT: u64 = 1000;
    // Small ones and large ones by turns: what fits is not to be told from the first.
    let body =
        |offset: u64| Bytes::from(vec![b'x'; if offset.is_multiple_of(7) { 300 } else { 10 }]);
    let retention = Retention {
        size: NonZeroUsize::new(10_000).unwrap(),
        ..retention()
    };
    for offset in 1..=COUNT {
        let store = Store {
            body: body(offset),
            retention: Some(retention),
            ..store("a", Until::Stored)
        };
        setup.broker.store(store).await.unwrap();
    }
    let read = async |query: Query| {
        let ask = Ask {
            query,
            retention,
            ..ask("a")
        };
        setup.broker.history(ask).await.unwrap()
    };
    let epoch = read(everything()).await.position.epoch;
    let at = |offset| {
        let epoch = epoch.clone();
        Some(Position { epoch, offset })
    };
    for order in [Order::OldestFirst, Order::NewestFirst] {
        for since in [None, at(0), at(1), at(500), at(COUNT), at(COUNT + 1)] {
            for (limit, bytes_max) in [
                (0, 1 << 20),
                (1, 1 << 20),
                (300, 1 << 20),
                (100_000, 1 << 20),
                (100_000, 0),
                (100_000, 309),
                (100_000, 20_000),
            ] {
                let all: Vec<u64> = match (order, &since) {
                    (Order::OldestFirst, None) => (1..=COUNT).collect(),
                    (Order::OldestFirst, Some(since)) => (since.offset + 1..=COUNT).collect(),
                    (Order::NewestFirst, None) => (1..=COUNT).rev().collect(),
                    (Order::NewestFirst, Some(since)) => {
                        (1..since.offset.min(COUNT + 1)).rev().collect()
                    }
                };
                let mut bytes = 0;
                let fitting = all.iter().take_while(|offset| {
                    bytes += body(**offset).len();
                    bytes <= bytes_max
                });
                let count = fitting.count().max(1).min(limit).min(all.len());
                let query = Query {
                    since: since.clone(),
                    limit,
                    bytes_max,
                    order,
                };
                let page = read(query.clone()).await;
                let offsets: Vec<u64> = page.entries.iter().map(|entry| entry.offset).collect();
                assert_eq!(offsets, all[..count], "{query:?}");
                assert_eq!(page.position.offset, COUNT);
                if 0 < limit {
                    assert!(page.is_cut || count == all.len(), "{query:?}");
                    assert!(
                        !page.is_cut || count < all.len() || count == limit,
                        "{query:?}"
                    );
                }
            }
        }
    }
    setup.stop().await;
}

async fn what_is_published_comes_back_unchanged_and_in_order(setup: Setup) {
    setup.subscribe(&["a"]).await;
    let mut expected = vec![
        Bytes::new(),
        Bytes::from_static(b"\xff\x00\r\n$5\r\n"),
        Bytes::from(vec![b'x'; 300_000]),
    ];
    expected.extend((0..5000).map(|number| Bytes::from(format!("message {number}"))));
    for data in &expected {
        setup.publish("a", data.clone()).await.unwrap();
    }
    let publications = setup.recorder.wait_for("a", expected.len()).await;
    assert!(publications == expected, "changed or out of order");
    assert_eq!(setup.metrics.publications_received.get(), 5003);
    setup
        .until(|| setup.metrics.publications_published.get() == 5003)
        .await;
    setup
        .until(|| setup.metrics.publish_queue_bytes.get() == 0)
        .await;
    setup.stop().await;
}

async fn channels_keep_their_order_whatever_their_queue(setup: Setup) {
    let channels: Vec<String> = (0..20).map(|number| format!("channel-{number}")).collect();
    let names: Vec<&str> = channels.iter().map(String::as_str).collect();
    setup.subscribe(&names).await;
    for number in 0..200 {
        for channel in &names {
            setup.publish(channel, number.to_string()).await.unwrap();
        }
    }
    let expected: Vec<Bytes> = (0..200).map(|number| number.to_string().into()).collect();
    for channel in &names {
        assert_eq!(
            setup.recorder.wait_for(channel, 200).await,
            expected,
            "{channel}"
        );
    }
    setup.stop().await;
}

async fn only_wanted_channels_come(setup: Setup) {
    setup.subscribe(&["wanted", "left"]).await;
    setup.broker.unsubscribe(&name("left"));
    setup.broker.unsubscribe(&name("never wanted"));
    setup.until_settled(1).await;
    setup.publish("left", "no").await.unwrap();
    setup.publish("other", "no").await.unwrap();
    setup.publish("wanted", "yes").await.unwrap();
    setup.recorder.wait_for("wanted", 1).await;
    setup
        .until(|| setup.metrics.publications_published.get() == 3)
        .await;
    assert_eq!(setup.recorder.publications.lock().len(), 1);
    setup.stop().await;
}

async fn the_last_request_holds(setup: Setup) {
    for round in 0..50 {
        for channel in ["on", "off"] {
            setup.broker.subscribe(&name(channel));
            setup.broker.subscribe(&name(channel));
            setup.broker.unsubscribe(&name(channel));
        }
        if round % 10 == 0 {
            tokio::task::yield_now().await;
        }
    }
    setup.broker.subscribe(&name("on"));
    setup.until_settled(1).await;
    setup.publish("off", "no").await.unwrap();
    setup.publish("on", "yes").await.unwrap();
    assert_eq!(setup.recorder.wait_for("on", 1).await, ["yes"]);
    assert_eq!(setup.recorder.on("off"), [""; 0]);
    setup.stop().await;
}

async fn stopping_publishes_what_was_accepted(setup: Setup) {
    for number in 0..2000 {
        setup.publish("a", number.to_string()).await.unwrap();
    }
    let metrics = Arc::clone(&setup.metrics);
    setup.stop().await;
    assert_eq!(metrics.publications_published.get(), 2000);
}

#[tokio::test]
async fn all_nodes_receive_what_one_publishes_and_what_redis_cli_does() {
    let server = RedisServer::start().await;
    let nodes: Vec<Setup> = (0..3).map(|_| set_up(&settings(&server, ""))).collect();
    for node in &nodes {
        node.subscribe(&["global"]).await;
    }
    nodes[0].until_ready().await;
    nodes[0].publish("global", "from a node").await.unwrap();
    nodes[2].recorder.wait_for("global", 1).await;
    server.cli(&["PUBLISH", "global", "from elsewhere"]);
    for node in &nodes {
        let received = node.recorder.wait_for("global", 2).await;
        assert_eq!(received, ["from a node", "from elsewhere"]);
        node.until_ready().await; // Though all have the same node id.
    }
}

#[tokio::test]
async fn deployments_with_different_prefixes_share_relay_channels_and_nothing_else() {
    let server = RedisServer::start().await;
    let wire = ChannelName::wire(&name("a"));
    let nodes = ["", ", prefix: staging"].map(|prefix| set_up(&settings(&server, prefix)));
    for node in &nodes {
        node.broker.subscribe(&wire);
        node.broker.subscribe(&name("global"));
        node.until_settled(2).await;
        node.until_ready().await;
    }
    for (node, prefix) in nodes.iter().zip(["causeway", "staging"]) {
        for expected in 1..=2 {
            let stored = node.broker.store(store("a", Until::Stored)).await.unwrap();
            assert_eq!(stored.position.unwrap().offset, expected);
        }
        node.publish(wire.as_str(), prefix).await.unwrap();
        node.publish("global", prefix).await.unwrap();
    }
    for (node, prefix) in nodes.iter().zip(["causeway", "staging"]) {
        assert_eq!(node.recorder.wait_for(wire.as_str(), 3).await[2], prefix);
        assert_eq!(node.recorder.wait_for("global", 2).await.len(), 2);
        let history = node.broker.history(ask("a")).await.unwrap();
        assert_eq!(history.entries.len(), 2);
    }
    nodes[0].broker.remove_history(&name("a")).await.unwrap();
    let history = nodes[1].broker.history(ask("a")).await.unwrap();
    assert_eq!(history.entries.len(), 2);
    assert_eq!(nodes[0].recorder.on(wire.as_str()).len(), 3);
    let names = server.cli(&["KEYS", "*"]) + &server.cli(&["PUBSUB", "CHANNELS"]);
    for name in names.lines().filter(|name| *name != "global") {
        let (prefix, _) = name.split_once(':').unwrap();
        assert!(["causeway", "staging"].contains(&prefix), "{name}");
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_hundred_thousand_channels_are_received() {
    const CHANNELS: usize = 100_000;
    let server = RedisServer::start().await;
    let text = format!(
        "broker: {{kind: redis, url: \"{}\", response_timeout: 20s}}",
        server.url()
    );
    let setup = set_up(&Config::parse("test", &text).unwrap().broker);
    setup.until_ready().await;
    let wires: Vec<ChannelName> = (0..CHANNELS)
        .map(|number| ChannelName::wire(&name(&number.to_string())))
        .collect();
    for wire in &wires {
        setup.broker.subscribe(wire);
    }
    for wire in wires.iter().step_by(5000) {
        setup.broker.subscribed(wire).await.unwrap();
        assert_eq!(server.cli(&["PUBLISH", wire.as_str(), "x"]), "1\n");
        setup.recorder.wait_for(wire.as_str(), 1).await;
    }
    setup.until_settled(CHANNELS).await;
    assert_eq!(setup.metrics.subscriptions_wanted.get(), 100_000);
    for wire in &wires {
        setup.broker.unsubscribe(wire);
    }
    setup.until_settled(0).await;
    let gone = setup.broker.subscribed(&wires[0]).await;
    assert!(gone.is_err(), "nobody wants it");
    setup.stop().await;
}

#[tokio::test]
async fn thousands_of_channels_are_subscribed_in_batches_and_again_after_a_loss() {
    let server = RedisServer::start().await;
    let setup = set_up(&settings(&server, ""));
    let channels: Vec<String> = (0..3000)
        .map(|number| format!("channel-{number}"))
        .collect();
    let names: Vec<&str> = channels.iter().map(String::as_str).collect();
    setup.subscribe(&names).await;
    setup.until_ready().await;
    server.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    setup.until(|| setup.metrics.broker_gaps.get() == 1).await;
    setup.until_ready().await;
    setup.until_settled(3000).await;
    for channel in names.iter().step_by(100) {
        assert_eq!(
            server.cli(&["PUBLISH", channel, "back"]),
            "1\n",
            "{channel}"
        );
    }
    setup.stop().await;
}
