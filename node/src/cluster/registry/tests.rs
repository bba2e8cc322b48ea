//! The same cases with and without Redis, then cases with several nodes.

use std::collections::BTreeMap;

use tokio::time;

use super::*;
use crate::config::Config;
use crate::redis::testing::DEADLINE;
use crate::redis::testing::RedisServer;

/// Records joined (+) and left (-) members.
#[derive(Default)]
struct Recorder(Mutex<Vec<String>>);

impl Recorder {
    fn note(&self, sign: &str, channel: &ChannelName, info: &Bytes) {
        let info = String::from_utf8_lossy(info);
        self.0.lock().push(format!("{sign}{channel}/{info}"));
    }

    fn count(&self, sign: char) -> usize {
        self.0
            .lock()
            .iter()
            .filter(|event| event.starts_with(sign))
            .count()
    }
}

impl MemberListener for Recorder {
    fn joined(&self, channel: &ChannelName, info: Bytes) {
        self.note("+", channel, &info);
    }

    fn left(&self, channel: &ChannelName, info: Bytes) {
        self.note("-", channel, &info);
    }
}

mod evicted;
mod full;
mod rights;

struct Setup {
    registry: Arc<Registry>,
    events: Arc<Recorder>,
    metrics: Arc<Metrics>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

/// Short leases: a node that does not renew for a second is dead.
const FAST: &str = "registry: {renew: 250ms, lease: 1s}";

fn config(text: &str) -> Config {
    Config::parse("test", text).unwrap()
}

fn with_redis(server: &RedisServer, registry: &str) -> Config {
    config(&format!(
        "broker: {{kind: redis, url: \"{}\", response_timeout: 500ms, connect_timeout: 500ms, \
         backoff_max: 200ms}}\n{registry}",
        server.url()
    ))
}

/// A node that uses Redis only for the registry.
fn set_up(config: &Config) -> Setup {
    let needs = Needs {
        registry: true,
        streams: false,
        values: false,
        lifecycle: false,
    };
    set_up_with(config, &Instance::random().to_string(), needs)
}

fn set_up_with(config: &Config, id: &str, needs: Needs) -> Setup {
    let events = Arc::new(Recorder::default());
    let metrics = Metrics::new();
    let shutdown = CancellationToken::new();
    let about = Node {
        instance: Instance::random(),
        id: id.to_owned(),
        address: None,
        zone: None,
        generation: None,
        leaving: false,
    };
    let dependencies = Dependencies {
        about,
        listener: Arc::clone(&events) as Arc<dyn MemberListener>,
        needs,
        draining: CancellationToken::new(),
        metrics: Arc::clone(&metrics),
        shutdown: shutdown.clone(),
    };
    let servers = crate::redis::testing::servers(&config.broker);
    let started = start(&servers, &config.registry, dependencies);
    Setup {
        registry: started.registry,
        events,
        metrics,
        shutdown,
        tasks: started.tasks,
    }
}

impl Setup {
    fn member(&self, channel: &str, info: &str) -> Registration {
        let client = ClientId::random(self.registry.instance());
        let value = Value {
            info: Bytes::copy_from_slice(info.as_bytes()),
            announce: Announce::Yes,
        };
        self.registry
            .enter(Slot::Member(name(channel), client), value)
    }

    async fn seen_member(&self, channel: &str, info: &str) -> Registration {
        let entered = self.member(channel, info);
        assert!(entered.seen(DEADLINE).await);
        entered
    }

    async fn members(&self, channel: &str) -> Vec<String> {
        let members = self.registry.members(&name(channel)).await.unwrap();
        let infos = members
            .iter()
            .map(|(_, info)| String::from_utf8_lossy(info).into_owned());
        let mut infos: Vec<String> = infos.collect();
        infos.sort_unstable();
        infos
    }

    async fn until_members(&self, channel: &str, expected: &[&str]) {
        until(async || {
            let members = self.registry.members(&name(channel)).await;
            members.is_ok_and(|members| members.len() == expected.len())
        })
        .await;
        assert_eq!(self.members(channel).await, expected);
    }

    async fn until_held(&self, user: &str, nodes: &[&Setup]) {
        let mut expected: Vec<Instance> =
            nodes.iter().map(|node| node.registry.instance()).collect();
        expected.sort_unstable();
        until(async || {
            let held = self.registry.nodes_of(user).await;
            held.is_ok_and(|held| held == expected)
        })
        .await;
    }

    /// Ends the node as kill -9 would: nothing is removed.
    fn kill(mut self) -> Arc<Recorder> {
        self.tasks.abort_all();
        Arc::clone(&self.events)
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        let ended = async { while self.tasks.join_next().await.transpose().unwrap().is_some() {} };
        time::timeout(DEADLINE, ended)
            .await
            .expect("a task goes on");
    }
}

async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let met = async {
        while !condition().await {
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    time::timeout(DEADLINE, met)
        .await
        .expect("it never happens");
}

fn name(channel: &str) -> ChannelName {
    ChannelName::new(channel).unwrap()
}

/// One test without Redis and one with, in modules of their own.
macro_rules! same_on_both {
    ($($case:ident),* $(,)?) => {
        mod on_memory {
            $(#[tokio::test] async fn $case() {
                super::$case(super::set_up(&super::config(""))).await;
            })*
        }
        mod on_redis {
            $(#[tokio::test] async fn $case() {
                let server = super::RedisServer::start().await;
                super::$case(super::set_up(&super::with_redis(&server, ""))).await;
            })*
        }
    };
}

same_on_both! {
    a_user_is_held_while_it_has_clients,
    members_are_listed_and_announced,
    the_info_of_a_member_can_change,
    a_node_finds_itself,
}

async fn a_user_is_held_while_it_has_clients(setup: Setup) {
    setup.until_held("ann", &[]).await;
    setup.registry.connected(&"ann".into());
    setup.until_held("ann", &[&setup]).await;
    setup.until_held("an", &[]).await;
    setup.registry.disconnected(&"ann".into());
    setup.until_held("ann", &[]).await;
    setup.stop().await;
}

async fn members_are_listed_and_announced(setup: Setup) {
    let ann = setup.seen_member("room", "ann").await;
    let _bob = setup.seen_member("room", "bob").await;
    let _eve = setup.seen_member("other", "eve").await;
    assert_eq!(setup.members("room").await, ["ann", "bob"]);
    drop(ann);
    setup.until_members("room", &["bob"]).await;
    assert_eq!(setup.members("nowhere").await, [""; 0]);
    let expected = ["+room/ann", "+room/bob", "+other/eve", "-room/ann"];
    until(async || setup.events.0.lock().len() == expected.len()).await;
    assert_eq!(*setup.events.0.lock(), expected);
    setup.stop().await;
}

async fn the_info_of_a_member_can_change(setup: Setup) {
    let mut ann = setup.seen_member("room", "ann").await;
    ann.change(Value {
        info: Bytes::from_static(b"ann, tired"),
        announce: Announce::Yes,
    });
    assert!(ann.seen(DEADLINE).await);
    assert_eq!(setup.members("room").await, ["ann, tired"]);
    assert_eq!(*setup.events.0.lock(), ["+room/ann"]);
    drop(ann);
    until(async || setup.events.count('-') == 1).await;
    assert_eq!(setup.events.0.lock()[1], "-room/ann, tired");
    setup.stop().await;
}

async fn a_node_finds_itself(setup: Setup) {
    until(async || {
        setup
            .registry
            .nodes()
            .await
            .is_ok_and(|nodes| nodes.len() == 1)
    })
    .await;
    let nodes = setup.registry.nodes().await.unwrap();
    assert_eq!(nodes[0], setup.registry.about);
    assert!(
        setup
            .registry
            .is_alive(setup.registry.instance())
            .await
            .unwrap()
    );
    assert!(!setup.registry.is_alive(Instance::random()).await.unwrap());
    setup.stop().await;
}

#[tokio::test]
async fn every_node_sees_the_entries_of_all() {
    let server = RedisServer::start().await;
    let nodes: Vec<Setup> = (0..3).map(|_| set_up(&with_redis(&server, ""))).collect();
    let mut held = Vec::new();
    for (number, node) in nodes.iter().enumerate() {
        node.registry.connected(&"ann".into());
        held.push(node.seen_member("room", &format!("client {number}")).await);
    }
    nodes[1].registry.connected(&"bob".into());
    for node in &nodes {
        node.until_held("ann", &[&nodes[0], &nodes[1], &nodes[2]])
            .await;
        node.until_held("bob", &[&nodes[1]]).await;
        node.until_members("room", &["client 0", "client 1", "client 2"])
            .await;
        assert_eq!(node.registry.nodes().await.unwrap().len(), 3);
    }
}

#[tokio::test]
async fn a_node_that_stops_removes_its_entries() {
    let server = RedisServer::start().await;
    let stays = set_up(&with_redis(&server, ""));
    let stops = set_up(&with_redis(&server, ""));
    stops.registry.connected(&"ann".into());
    let member = stops.seen_member("room", "ann").await;
    stays.until_members("room", &["ann"]).await;
    drop(member);
    stops.registry.disconnected(&"ann".into());
    let events = Arc::clone(&stops.events);
    stops.stop().await;
    assert_eq!(*events.0.lock(), ["+room/ann", "-room/ann"]);
    assert_eq!(stays.members("room").await, [""; 0]);
    assert_eq!(stays.registry.nodes().await.unwrap().len(), 1);
    assert_eq!(
        server.cli(&["EXISTS", "causeway:us:{ann}", "causeway:pr:{room}"]),
        "0\n"
    );
}

#[tokio::test]
async fn entries_of_a_killed_node_are_removed_with_its_lease_and_reported_as_left() {
    const MEMBERS: usize = 2_000;
    let server = RedisServer::start().await;
    let others = [(); 2].map(|()| set_up(&with_redis(&server, "")));
    let killed = set_up(&with_redis(&server, ""));
    let _stays = others[0].seen_member("room", "stays").await;
    killed.registry.connected(&"ann".into());
    let members: Vec<Registration> = (0..MEMBERS)
        .map(|number| killed.member("room", &number.to_string()))
        .collect();
    assert!(members[MEMBERS - 1].seen(DEADLINE).await);
    others[1].until_held("ann", &[&killed]).await;
    assert_eq!(others[1].members("room").await.len(), MEMBERS + 1);

    killed.kill();
    // The default lease lapses after 8 s, however many entries there are; the test's deadline is far from that.
    let began = Instant::now();
    others[0].until_members("room", &["stays"]).await;
    others[1].until_held("ann", &[]).await;
    until(async || {
        others
            .iter()
            .map(|node| node.events.count('-'))
            .sum::<usize>()
            == MEMBERS
    })
    .await;
    eprintln!("exact after {:?}", began.elapsed());
    let mut left: Vec<String> = Vec::new();
    for node in &others {
        left.extend(
            node.events
                .0
                .lock()
                .iter()
                .filter(|event| event.starts_with('-'))
                .cloned(),
        );
    }
    left.sort_unstable();
    left.dedup();
    assert_eq!(left.len(), MEMBERS, "each left once");
    // Nothing is left behind: the member that stays, its lease's entries, and two living leases.
    until(async || server.cli(&["ZCARD", "causeway:{no}:dead"]) == "0\n").await;
    assert_eq!(server.cli(&["HLEN", "causeway:pr:{room}"]), "1\n");
    assert_eq!(server.cli(&["EXISTS", "causeway:us:{ann}"]), "0\n");
    assert_eq!(server.cli(&["ZCARD", "causeway:{no}:live"]), "2\n");
    assert_eq!(server.cli(&["HLEN", "causeway:{no}:info"]), "2\n");
    assert_eq!(
        server
            .cli(&["--scan", "--pattern", "causeway:ix:*"])
            .lines()
            .count(),
        1
    );
    drop(members);
}

#[tokio::test]
async fn a_node_that_was_suspended_past_its_lease_registers_everything_again() {
    let server = RedisServer::start().await;
    let awake = set_up(&with_redis(&server, FAST));
    // It runs in a thread of its own, which can be stopped.
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(1).enable_all().build().unwrap();
    let sleeper = {
        let _inside = runtime.enter();
        set_up(&with_redis(&server, FAST))
    };
    sleeper.registry.connected(&"ann".into());
    let _member = sleeper.seen_member("room", "ann").await;
    awake.until_members("room", &["ann"]).await;
    let (wake, asleep) = std::sync::mpsc::channel::<()>();
    runtime.spawn(async move { asleep.recv() });
    awake.until_members("room", &[]).await;
    awake.until_held("ann", &[]).await;
    until(async || awake.events.count('-') == 1).await;
    assert_eq!(sleeper.metrics.registry_lapses.get(), 0);
    drop(wake);
    awake.until_held("ann", &[&sleeper]).await;
    awake.until_members("room", &["ann"]).await;
    until(async || sleeper.events.count('+') == 2).await;
    assert_eq!(sleeper.metrics.registry_lapses.get(), 1);
    assert_eq!(
        *sleeper.events.0.lock(),
        ["+room/ann", "+room/ann"],
        "told again"
    );
    assert_eq!(*awake.events.0.lock(), ["-room/ann"]);
    runtime.shutdown_background();
}

#[tokio::test]
async fn a_redis_that_lost_all_data_gets_everything_again() {
    let mut server = RedisServer::start().await;
    let setup = set_up(&with_redis(&server, ""));
    setup.registry.connected(&"ann".into());
    let _member = setup.seen_member("room", "ann").await;
    server.kill();
    assert!(setup.registry.members(&name("room")).await.is_err());
    assert!(setup.registry.nodes_of("ann").await.is_err());
    let late = setup.member("room", "bob");
    assert!(!late.seen(Duration::from_millis(50)).await);
    server.launch(&[]).await;
    assert!(late.seen(DEADLINE).await);
    setup.until_members("room", &["ann", "bob"]).await;
    setup.until_held("ann", &[&setup]).await;
    // No leave event of ann was published, so no join event is either.
    until(async || setup.events.0.lock().len() == 2).await;
    assert_eq!(*setup.events.0.lock(), ["+room/ann", "+room/bob"]);
    setup.stop().await;
}

#[tokio::test]
async fn a_redis_with_outdated_data_does_not_list_members_that_left() {
    let server = RedisServer::start().await;
    let setup = set_up(&with_redis(&server, ""));
    let _stays = setup.seen_member("room", "stays").await;
    let ghost = setup.seen_member("room", "ghost").await;
    let Slot::Member(_, client) = ghost.slot.clone() else {
        panic!("a member is expected")
    };
    let value = server.cli(&["HGET", "causeway:pr:{room}", &client.to_string()]);
    drop(ghost);
    setup.until_members("room", &["stays"]).await;
    // As a replica would that has not received the removal.
    let lease = format!("{}.1", setup.registry.instance());
    let entry = format!("m {client} room");
    server.cli(&[
        "HSET",
        "causeway:pr:{room}",
        &client.to_string(),
        value.trim_end(),
    ]);
    server.cli(&["SADD", &format!("causeway:ix:{{{lease}}}"), &entry]);
    setup.until_members("room", &["ghost", "stays"]).await;
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    setup.until_members("room", &["stays"]).await;
    until(async || server.cli(&["ZCARD", "causeway:{no}:live"]) == "1\n").await;
    setup.stop().await;
}

#[tokio::test]
async fn ten_thousand_members_cost_redis_no_more_than_one_command_a_second() {
    const MEMBERS: usize = 10_000;
    let server = RedisServer::start().await;
    // The periodic checks of a node cost the same however many entries it has.
    let nothing = Needs {
        registry: false,
        streams: false,
        values: false,
        lifecycle: false,
    };
    let config = with_redis(&server, "");
    let nodes = ["n1", "n2", "n3"].map(|id| set_up_with(&config, id, nothing));
    let mut members = Vec::new();
    for number in 0..MEMBERS {
        members.push(nodes[number % 3].member(&format!("room {}", number % 100), "x"));
    }
    for last in &members[MEMBERS - 3..] {
        assert!(last.seen(DEADLINE).await);
    }
    let before = commands(&server);
    let began = Instant::now();
    // Long enough for every node to renew, to look for lapsed leases and to ask for the time.
    until(async || 10 <= commands(&server).get("zadd").unwrap() - before["zadd"]).await;
    until(async || Duration::from_secs(12) <= began.elapsed()).await;
    let after = commands(&server);
    let of_ours = |commands: &BTreeMap<String, u64>| {
        // HMGET compares stored entries, one for each channel in `registry.verify`; all nodes begin in this time.
        let of_test = ["info", "command", "command|docs", "hello", "hmget"];
        let ours = commands
            .iter()
            .filter(|(name, _)| !of_test.contains(&name.as_str()));
        ours.map(|(_, count)| count).sum::<u64>()
    };
    let count = of_ours(&after) - of_ours(&before);
    let node_seconds = began.elapsed().as_secs_f64() * 3.0;
    let rate = count as f64 / node_seconds;
    eprintln!("{count} commands in {node_seconds:.1} node-seconds: {after:?}");
    assert!(
        rate <= 1.0,
        "{rate} commands for each node and second: {after:?}"
    );
    let compared = after.get("hmget").copied().unwrap_or_default();
    assert!(
        compared <= 3 * 100,
        "more than one for each node and channel: {after:?}"
    );
    assert_eq!(nodes[0].members("room 0").await.len(), MEMBERS / 100);
}

/// How often each command was called, within scripts too.
fn commands(server: &RedisServer) -> BTreeMap<String, u64> {
    let text = server.cli(&["INFO", "commandstats"]);
    let lines = text.lines().filter_map(|line| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
    });
    lines.collect()
}

#[tokio::test]
async fn entries_are_spread_over_servers_and_an_unreachable_one_affects_only_its_own() {
    let mut servers = [RedisServer::start().await, RedisServer::start().await];
    let urls: Vec<String> = servers
        .iter()
        .map(|server| format!("\"{}\"", server.url()))
        .collect();
    let config = config(&format!(
        "broker: {{kind: redis, urls: [{}], response_timeout: 500ms, connect_timeout: 500ms, backoff_max: 200ms}}\n{FAST}",
        urls.join(", ")
    ));
    let (node, other) = (set_up(&config), set_up(&config));
    let mut members = Vec::new();
    for number in 0..20 {
        let channel = format!("room:{number}");
        members.push(node.seen_member(&channel, "ann").await);
        other.until_members(&channel, &["ann"]).await;
    }
    let keys = |server: &RedisServer| {
        let keys = server.cli(&["KEYS", "causeway:pr:*"]);
        keys.lines().filter(|line| !line.is_empty()).count()
    };
    let counts = servers.each_ref().map(keys);
    assert_eq!(counts.iter().sum::<usize>(), 20);
    assert!(counts.iter().all(|count| 0 < *count), "{counts:?}");

    servers[1].kill();
    let mut readable = 0;
    for number in 0..20 {
        let members = other
            .registry
            .members(&name(&format!("room:{number}")))
            .await;
        readable += usize::from(members.is_ok_and(|members| members.len() == 1));
    }
    assert_eq!(readable, counts[0]);
    assert_eq!(other.registry.nodes().await.unwrap().len(), 2);
    servers[1].launch(&[]).await;
    for number in 0..20 {
        other
            .until_members(&format!("room:{number}"), &["ann"])
            .await;
    }
    servers[0].kill();
    assert_eq!(other.registry.nodes().await.unwrap().len(), 2);
    drop(members);
    node.shutdown.cancel();
    other.shutdown.cancel();
}
