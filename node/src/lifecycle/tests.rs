//! The same cases in memory and in Redis, then what only Redis can do to a log.

use std::collections::BTreeMap;

use tokio::sync::watch;
use tokio::time::Instant;

use super::delivery::Pending;
use super::event::Event;
use super::journal::Step;
use super::store::Entered;
use super::store::Holding;
use super::*;
use crate::cluster::registry::Lease;
use crate::config::Config;
use crate::redis::CommandError;
use crate::redis::testing::DEADLINE;
use crate::redis::testing::RedisServer;

const COALESCE: Duration = Duration::from_millis(400);

thread_local! {
    /// All nodes of a test read the log in one turn.
    static READER: Instance = Instance::random();
}

fn turn(owner: Instance) -> Turn {
    let lasts = DEADLINE;
    Turn { owner, lasts }
}

fn scope(coalesce: Duration) -> Scope {
    Scope {
        node_id: "n".into(),
        coalesce,
        keep: 1000,
    }
}

/// A node as the log sees it.
struct Node {
    writer: Arc<Writer>,
    log: Arc<dyn Log>,
    metrics: Arc<Metrics>,
    /// Whose turn it is to read the log.
    owner: Instance,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

fn alone(coalesce: Duration) -> Node {
    let shutdown = CancellationToken::new();
    let log = Arc::new(MemoryLog::new(scope(coalesce)));
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&log).run(shutdown.clone()));
    Node {
        writer: Arc::new(Writer::Memory(Arc::clone(&log))),
        log,
        metrics: Metrics::new(),
        owner: Instance::random(),
        shutdown,
        tasks,
    }
}

fn redis_log(server: &RedisServer, coalesce: Duration) -> Arc<RedisLog> {
    let text = format!(
        "broker: {{kind: redis, url: \"{}\", response_timeout: 500ms}}",
        server.url()
    );
    let broker = Config::parse("test", &text).unwrap().broker;
    let servers = crate::redis::testing::servers(&broker);
    Arc::new(RedisLog::new(&servers[0], scope(coalesce), 0))
}

/// Lets a lease live for as long as it is not [ended](end_lease).
fn take_lease(server: &RedisServer, lease: Lease) {
    server.cli(&[
        "ZADD",
        "causeway:{no}:live",
        "9000000000000",
        &lease.to_string(),
    ]);
}

fn end_lease(server: &RedisServer, lease: Lease) {
    server.cli(&["ZREM", "causeway:{no}:live", &lease.to_string()]);
}

/// A node with a lease, which it knows by the returned sender.
fn sharing(server: &RedisServer, coalesce: Duration) -> (Node, watch::Sender<Option<Lease>>) {
    let instance = Instance::random();
    let lease = Lease {
        instance,
        number: 1,
    };
    take_lease(server, lease);
    let (sender, receiver) = watch::channel(Some(lease));
    let log = redis_log(server, coalesce);
    let metrics = Metrics::new();
    let (writer, work) = Writer::in_redis(writer::Parts {
        log: Arc::clone(&log),
        lease: receiver,
        instance,
        metrics: Arc::clone(&metrics),
    });
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(work.run(shutdown.clone()));
    let node = Node {
        writer: Arc::new(writer),
        log,
        metrics,
        owner: READER.with(|owner| *owner),
        shutdown,
        tasks,
    };
    (node, sender)
}

fn client() -> ClientId {
    ClientId::random(Instance::random())
}

fn channel(name: &str) -> Key {
    Key::Channel(ChannelName::new(name).unwrap())
}

impl Node {
    fn connect(&self, client: ClientId, user: &str) {
        let subject = Subject {
            user: user.into(),
            transport: "websocket",
            from: None,
        };
        self.writer.begin(Key::Client(client), subject);
    }

    fn arrive(&self, client: ClientId, user: &str, from: Instance) {
        let subject = Subject {
            user: user.into(),
            transport: "websocket",
            from: Some(from),
        };
        self.writer.begin(Key::Client(client), subject);
    }

    /// Waits until all its steps are in the log.
    async fn entered(&self) {
        let entered = self.writer.entered(self.writer.position());
        time::timeout(DEADLINE, entered).await.unwrap();
    }

    fn disconnect(&self, client: ClientId) {
        self.writer.end(&Key::Client(client));
    }

    fn occupy(&self, name: &str) {
        self.writer.begin(channel(name), Subject::default());
    }

    fn vacate(&self, name: &str) {
        self.writer.end(&channel(name));
    }

    /// Waits until so many events are in the log.
    async fn at_least(&self, count: usize) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let pending = self.log.pending(turn(self.owner), 10_000).await;
            let events = pending.ok().flatten().map(|pending| pending.events);
            if count <= events.unwrap_or_default().len() {
                return;
            }
            assert!(Instant::now() < deadline);
            time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What is in the log once as many events are as `count`, and never more.
    async fn events(&self, count: usize) -> Vec<Event> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let pending = self.log.pending(turn(self.owner), 10_000).await;
            let events = pending.ok().flatten().map(|pending| pending.events);
            let events = events.unwrap_or_default();
            assert!(events.len() <= count, "{events:#?}");
            if events.len() == count {
                return events;
            }
            assert!(Instant::now() < deadline, "{events:#?}");
            time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        let ended = async { while self.tasks.join_next().await.transpose().unwrap().is_some() {} };
        time::timeout(DEADLINE, ended)
            .await
            .expect("a task goes on");
    }
}

/// An event in short: its type and subject.
fn short(event: &Event) -> String {
    let field = |name: &str| event.fields.get(name).map_or("", String::as_str);
    let subject = match field("channel") {
        "" => field("session"),
        channel => channel,
    };
    format!("{} {subject}", field("type"))
}

fn shorts(events: &[Event]) -> Vec<String> {
    events.iter().map(short).collect()
}

macro_rules! same_on_both {
    ($($case:ident),* $(,)?) => {
        mod in_memory {
            $(#[tokio::test] async fn $case() {
                super::$case(|coalesce| super::alone(coalesce)).await;
            })*
        }
        mod in_redis {
            $(#[tokio::test] async fn $case() {
                let server = super::RedisServer::start().await;
                let senders = std::cell::RefCell::new(Vec::new());
                super::$case(|coalesce| {
                    server.cli(&["FLUSHALL"]);
                    let (node, sender) = super::sharing(&server, coalesce);
                    senders.borrow_mut().push(sender);
                    node
                })
                .await;
            })*
        }
    };
}

same_on_both! {
    everything_that_begins_and_ends_is_in_the_log_in_its_order,
    a_user_that_reconnects_soon_continues_its_session,
    a_channel_that_is_occupied_again_soon_was_never_vacated,
    what_was_delivered_is_no_longer_pending,
}

async fn everything_that_begins_and_ends_is_in_the_log_in_its_order(
    start: impl Fn(Duration) -> Node,
) {
    let node = start(Duration::ZERO);
    let (ann, nobody) = (client(), client());
    node.connect(ann, "ann");
    node.occupy("a");
    node.connect(nobody, "");
    node.disconnect(ann);
    node.vacate("a");
    node.occupy("a");
    node.disconnect(nobody);
    let events = node.events(7).await;
    let expected = [
        format!("connected {ann}"),
        "occupied a".to_owned(),
        format!("connected {nobody}"),
        format!("disconnected {ann}"),
        "vacated a".to_owned(),
        "occupied a".to_owned(),
        format!("disconnected {nobody}"),
    ];
    assert_eq!(shorts(&events), expected);
    let first = &events[0].fields;
    let ann = ann.to_string();
    let fields = [
        ("client", ann.as_str()),
        ("node", "n"),
        ("session", &ann),
        ("transport", "websocket"),
        ("type", "connected"),
        ("user", "ann"),
    ];
    let fields: BTreeMap<String, String> = fields
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(*first, fields);
    let numbers: Vec<u64> = events.iter().map(|event| event.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    let ids: std::collections::HashSet<&str> =
        events.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids.len(), 7);
    node.stop().await;
}

async fn a_user_that_reconnects_soon_continues_its_session(start: impl Fn(Duration) -> Node) {
    let node = start(COALESCE);
    let (first, second, third, other) = (client(), client(), client(), client());
    node.connect(first, "ann");
    node.disconnect(first);
    node.connect(other, "bob");
    node.connect(second, "ann");
    node.events(2).await;
    node.disconnect(second);
    let events = node.events(3).await;
    let expected = [
        format!("connected {first}"),
        format!("connected {other}"),
        format!("disconnected {first}"),
    ];
    assert_eq!(shorts(&events), expected);
    assert_eq!(
        events[2].fields["client"],
        second.to_string(),
        "the one that was there last"
    );
    node.connect(third, "ann");
    assert_eq!(
        short(&node.events(4).await[3]),
        format!("connected {third}")
    );
    // An anonymous client continues none.
    let nobody = [client(), client()];
    node.connect(nobody[0], "");
    node.disconnect(nobody[0]);
    node.connect(nobody[1], "");
    node.events(7).await;
    node.stop().await;
}

async fn a_channel_that_is_occupied_again_soon_was_never_vacated(start: impl Fn(Duration) -> Node) {
    let node = start(COALESCE);
    for _ in 0..3 {
        node.occupy("a");
        node.vacate("a");
    }
    assert_eq!(shorts(&node.events(2).await), ["occupied a", "vacated a"]);
    node.occupy("a");
    assert_eq!(short(&node.events(3).await[2]), "occupied a");
    node.stop().await;
}

async fn what_was_delivered_is_no_longer_pending(start: impl Fn(Duration) -> Node) {
    let node = start(Duration::ZERO);
    for name in ["a", "b", "c"] {
        node.occupy(name);
    }
    let events = node.events(3).await;
    let turn = turn(node.owner);
    node.log.delivered(turn, &events[1]).await.unwrap();
    let pending = node.log.pending(turn, 100).await.unwrap().unwrap();
    let expected = Pending {
        delivered: 2,
        events: events[2..].to_vec(),
    };
    assert_eq!(pending, expected);
    node.stop().await;
}

#[tokio::test]
async fn a_client_waits_until_its_event_is_in_the_log_unless_redis_is_not_there() {
    let server = RedisServer::start().await;
    let lease = Lease {
        instance: Instance::random(),
        number: 1,
    };
    take_lease(&server, lease);
    let (sender, receiver) = watch::channel(Some(lease));
    let (writer, work) = Writer::in_redis(writer::Parts {
        log: redis_log(&server, Duration::ZERO),
        lease: receiver,
        instance: lease.instance,
        metrics: Metrics::new(),
    });
    let position = writer.begin(channel("a"), Subject::default());
    let waiting = writer.entered(position);
    tokio::pin!(waiting);
    assert!(time::timeout(Duration::ZERO, &mut waiting).await.is_err());
    let mut tasks = JoinSet::new();
    tasks.spawn(work.run(CancellationToken::new()));
    time::timeout(DEADLINE, waiting).await.unwrap();
    assert_eq!(server.cli(&["XLEN", "causeway:{lc}:events"]), "1\n");

    server.freeze();
    sender.send_replace(Some(Lease { number: 2, ..lease }));
    let position = writer.begin(channel("b"), Subject::default());
    // Until the task has found out. The client was told that it is connected before that, after a while.
    let told = async {
        while time::timeout(Duration::from_millis(10), writer.entered(position))
            .await
            .is_err()
        {}
    };
    time::timeout(DEADLINE, told).await.unwrap();
    server.thaw();
}

#[tokio::test]
async fn what_finds_no_room_is_counted() {
    let server = RedisServer::start().await;
    let metrics = Metrics::new();
    let (writer, _work) = Writer::in_redis(writer::Parts {
        log: redis_log(&server, Duration::ZERO),
        lease: watch::channel(None).1,
        instance: Instance::random(),
        metrics: Arc::clone(&metrics),
    });
    for number in 0..100_003 {
        writer.begin(channel(&number.to_string()), Subject::default());
    }
    assert_eq!(metrics.lifecycle_dropped.get(), 3);
}

#[tokio::test]
async fn a_channel_is_vacated_by_the_last_of_its_subscribers() {
    let node = alone(Duration::ZERO);
    let lifecycle = Lifecycle::new(false, vec![Arc::clone(&node.writer)]);
    let (a, b) = (
        ChannelName::new("a").unwrap(),
        ChannelName::new("b").unwrap(),
    );
    for channel in [&a, &a, &b] {
        lifecycle.subscribed(channel);
    }
    lifecycle.unsubscribed(&a);
    lifecycle.unsubscribed(&b);
    assert_eq!(
        shorts(&node.events(3).await),
        ["occupied a", "occupied b", "vacated b"]
    );
    lifecycle.subscribed(&a);
    lifecycle.unsubscribed(&a);
    lifecycle.unsubscribed(&a);
    assert_eq!(short(&node.events(4).await[3]), "vacated a");
    assert!(lifecycle.connected(client(), "ann", "websocket").is_none());
    node.stop().await;
}

#[tokio::test]
async fn what_a_killed_node_held_is_ended_by_another() {
    let server = RedisServer::start().await;
    let (survivor, _kept) = sharing(&server, COALESCE);
    let (mut dead, sender) = sharing(&server, COALESCE);
    let (ann, bob) = (client(), client());
    dead.connect(ann, "ann");
    dead.connect(bob, "bob");
    for name in ["shared", "own"] {
        dead.occupy(name);
    }
    dead.events(4).await;
    survivor.occupy("shared");
    dead.disconnect(ann);
    // The end of this one is in the log, and waits there.
    let begun = dead.writer.begin(channel("last"), Subject::default());
    dead.writer.entered(begun).await;
    dead.tasks.abort_all();
    end_lease(&server, sender.borrow().unwrap());
    let events = survivor.events(9).await;
    let mut told = shorts(&events[5..]);
    told.sort();
    let mut expected = [
        format!("disconnected {ann}"),
        format!("disconnected {bob}"),
        "vacated last".to_owned(),
        "vacated own".to_owned(),
    ];
    expected.sort();
    assert_eq!(told, expected);
    let left = server.cli(&["KEYS", "causeway:{lc}:at:*"]);
    assert_eq!(left.lines().count(), 1, "{left}");
    survivor.stop().await;
}

#[tokio::test]
async fn a_client_that_is_handed_off_goes_on_in_its_session_without_an_event() {
    for coalesce in [Duration::ZERO, COALESCE] {
        let server = RedisServer::start().await;
        let (first, first_lease) = sharing(&server, coalesce);
        let (mut second, second_lease) = sharing(&server, coalesce);
        let instance = |lease: &watch::Sender<Option<Lease>>| lease.borrow().unwrap().instance;
        let (ann, bob) = (client(), client());
        first.connect(ann, "ann");
        first.connect(bob, "");
        first.occupy("room");
        first.events(3).await;
        second.occupy("room");
        second.arrive(ann, "ann", instance(&first_lease));
        second.arrive(bob, "", instance(&first_lease));
        second.entered().await;
        first.disconnect(ann);
        first.disconnect(bob);
        first.vacate("room");
        first.entered().await;
        // Back again.
        first.arrive(bob, "", instance(&second_lease));
        first.entered().await;
        second.disconnect(bob);
        second.entered().await;
        time::sleep(2 * coalesce).await; // An end would be due by then.
        first.events(3).await;
        // Each ends with the node that it is at.
        first.disconnect(bob);
        let events = first.events(4).await;
        assert_eq!(short(&events[3]), format!("disconnected {bob}"));
        second.tasks.abort_all();
        end_lease(&server, second_lease.borrow().unwrap());
        let events = shorts(&first.events(6).await);
        assert!(events[4..].contains(&format!("disconnected {ann}")));
        assert!(events[4..].contains(&"vacated room".to_owned()));
        // The entry of one whose node was taken for dead has ended.
        first.arrive(ann, "ann", instance(&second_lease));
        let events = first.events(7).await;
        assert_eq!(short(&events[6]), format!("connected {ann}"));
        first.stop().await;
    }
}

#[tokio::test]
async fn a_node_that_was_taken_for_dead_begins_anew() {
    let server = RedisServer::start().await;
    let (other, _kept) = sharing(&server, Duration::ZERO);
    let (node, sender) = sharing(&server, Duration::ZERO);
    let ann = client();
    node.connect(ann, "ann");
    node.occupy("a");
    node.events(2).await;
    end_lease(&server, sender.borrow().unwrap());
    let Lease { instance, number } = sender.borrow().unwrap();
    // It begins anew with the lease that it knows, if it finds out before it has the next.
    other.at_least(4).await;
    let next = Lease {
        instance,
        number: number + 1,
    };
    take_lease(&server, next);
    sender.send_replace(Some(next));
    let events = node.events(6).await;
    let mut ended = shorts(&events[2..4]);
    ended.sort();
    assert_eq!(
        ended,
        [format!("disconnected {ann}"), "vacated a".to_owned()]
    );
    let mut anew = shorts(&events[4..]);
    anew.sort();
    assert_eq!(anew, [format!("connected {ann}"), "occupied a".to_owned()]);
    node.disconnect(ann);
    assert_eq!(
        short(&node.events(7).await[6]),
        format!("disconnected {ann}")
    );
    node.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn what_a_redis_has_forgotten_begins_anew() {
    let server = RedisServer::start().await;
    let (node, _kept) = sharing(&server, Duration::ZERO);
    let ann = client();
    node.connect(ann, "ann");
    node.events(1).await;
    server.cli(&["FLUSHALL"]);
    assert_eq!(
        shorts(&node.events(1).await),
        [format!("connected {ann}")],
        "once more"
    );
    node.disconnect(ann);
    assert_eq!(
        short(&node.events(2).await[1]),
        format!("disconnected {ann}")
    );
    node.stop().await;
}

/// Or a Redis that was away, or full, for longer than a lease would make all nodes end what all nodes hold.
#[tokio::test]
async fn a_node_without_a_lease_takes_no_other_for_dead() {
    let server = RedisServer::start().await;
    let log = redis_log(&server, Duration::ZERO);
    let (ours, theirs) = (holding("ours"), holding("theirs"));
    for holding in [&ours, &theirs] {
        log.register(holding, None, 0).await.unwrap();
    }
    assert_eq!(log.without_lease("l").await.unwrap(), []);
    server.cli(&["ZADD", "causeway:{no}:live", "9000000000000", "k"]);
    let mut gone = log.without_lease("k").await.unwrap();
    gone.sort_by(|one, other| one.holder.cmp(&other.holder));
    assert_eq!(gone, [ours, theirs]);
}

#[tokio::test]
async fn another_lease_in_time_changes_nothing() {
    let server = RedisServer::start().await;
    let (other, _kept) = sharing(&server, Duration::ZERO);
    let (node, sender) = sharing(&server, Duration::ZERO);
    node.occupy("a");
    node.events(1).await;
    let before = sender.borrow().unwrap();
    let next = Lease {
        number: before.number + 1,
        ..before
    };
    take_lease(&server, next);
    sender.send_replace(Some(next));
    end_lease(&server, before);
    let holders = || server.cli(&["HVALS", "causeway:{lc}:holders"]);
    let deadline = Instant::now() + DEADLINE;
    while !holders().contains(&next.to_string()) {
        assert!(Instant::now() < deadline, "{}", holders());
        time::sleep(Duration::from_millis(10)).await;
    }
    node.occupy("b");
    assert_eq!(shorts(&node.events(2).await), ["occupied a", "occupied b"]);
    node.stop().await;
    other.stop().await;
}

fn step(name: &str, begins: bool) -> Step {
    Step {
        key: channel(name),
        begins: begins.then(Subject::default),
    }
}

fn holding(holder: &str) -> Holding {
    Holding {
        holder: holder.to_owned(),
        lease: "l".to_owned(),
    }
}

async fn all_events(log: &RedisLog) -> Vec<String> {
    let pending = log.pending(turn(READER.with(|owner| *owner)), 100).await;
    shorts(&pending.unwrap().unwrap().events)
}

#[tokio::test]
async fn steps_whose_reply_was_lost_are_entered_once() {
    let server = RedisServer::start().await;
    let log = redis_log(&server, Duration::ZERO);
    assert_eq!(log.enter("h", 0, &[]).await.unwrap(), Entered::Fenced);
    let holding = holding("h");
    assert_eq!(log.renew(&holding, 0).await.unwrap(), Entered::Fenced);
    assert_eq!(log.register(&holding, None, 0).await.unwrap(), Some(0));
    assert_eq!(log.renew(&holding, 0).await.unwrap(), Entered::Yes);
    let steps = [step("a", true), step("a", false), step("b", true)];
    for _ in 0..3 {
        assert_eq!(log.enter("h", 0, &steps).await.unwrap(), Entered::Yes);
    }
    let more = [step("b", true), step("b", false), step("c", true)];
    assert_eq!(log.enter("h", 2, &more).await.unwrap(), Entered::Yes);
    let expected = [
        "occupied a",
        "vacated a",
        "occupied b",
        "vacated b",
        "occupied c",
    ];
    assert_eq!(all_events(&log).await, expected);
    let other = Holding {
        lease: "other".to_owned(),
        ..holding.clone()
    };
    log.fence(&other).await.unwrap();
    assert_eq!(log.enter("h", 5, &[]).await.unwrap(), Entered::Yes);
    log.fence(&holding).await.unwrap();
    assert_eq!(log.enter("h", 5, &[]).await.unwrap(), Entered::Fenced);
}

/// Or an application would see a client connect that it knows already, and then disconnect while it is there.
#[tokio::test]
async fn a_holder_takes_the_place_of_another_once_that_one_is_ended() {
    let server = RedisServer::start().await;
    let log = redis_log(&server, Duration::ZERO);
    log.register(&holding("h.1"), None, 0).await.unwrap();
    let steps: Vec<Step> = (0..300).map(|n| step(&n.to_string(), true)).collect();
    log.enter("h.1", 0, &steps).await.unwrap();
    // The node does not know that its steps were entered: the reply was lost.
    let register = || async { log.register(&holding("h.2"), Some("h.1"), 0).await.unwrap() };
    assert_eq!(register().await, None, "it is not fenced yet");
    log.fence(&holding("h.1")).await.unwrap();
    let mut rounds = 0;
    let entered = loop {
        match register().await {
            Some(entered) => break entered,
            None => assert!(log.tend().await.unwrap()),
        }
        rounds += 1;
    };
    assert_eq!((entered, rounds), (300, 3));
    assert_eq!(server.cli(&["XLEN", "causeway:{lc}:events"]), "600\n");
    // Steps of both count on.
    log.enter("h.2", 299, &[step("299", true), step("x", true)])
        .await
        .unwrap();
    assert_eq!(server.cli(&["XLEN", "causeway:{lc}:events"]), "601\n");
}

#[tokio::test]
async fn a_redis_that_has_lost_steps_has_the_holder_begin_anew() {
    let server = RedisServer::start().await;
    let log = redis_log(&server, Duration::ZERO);
    log.register(&holding("h"), None, 0).await.unwrap();
    log.enter("h", 0, &[step("a", true), step("b", true)])
        .await
        .unwrap();
    // As if a replica had taken over that knew the first step alone.
    server.cli(&["SET", "causeway:{lc}:steps:h", "1"]);
    assert_eq!(log.renew(&holding("h"), 2).await.unwrap(), Entered::Fenced);
    while log.tend().await.unwrap() {}
    let mut ended = all_events(&log).await.split_off(2);
    ended.sort();
    assert_eq!(ended, ["vacated a", "vacated b"]);
}

#[tokio::test]
async fn a_full_redis_takes_steps_as_a_whole_or_not_at_all() {
    let server = RedisServer::start().await;
    let log = redis_log(&server, Duration::ZERO);
    log.register(&holding("h"), None, 0).await.unwrap();
    log.enter("h", 0, &[step("a", true)]).await.unwrap();
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let turn = turn(READER.with(|owner| *owner));
    let steps = [step("a", false), step("b", true)];
    let refused = log.enter("h", 1, &steps).await;
    assert!(matches!(refused, Err(CommandError::Full(_))), "{refused:?}");
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(all_events(&log).await, ["occupied a"]);
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    // What is in the log is delivered meanwhile.
    let pending = log.pending(turn, 100).await.unwrap().unwrap();
    log.delivered(turn, &pending.events[0]).await.unwrap();
    let pending = log.pending(turn, 100).await.unwrap().unwrap();
    assert_eq!((pending.delivered, pending.events.len()), (1, 0));
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    log.enter("h", 1, &steps).await.unwrap();
    assert_eq!(all_events(&log).await, ["vacated a", "occupied b"]);
}

#[tokio::test]
async fn the_log_keeps_as_many_events_as_are_set() {
    let server = RedisServer::start().await;
    let log = redis_log(&server, Duration::ZERO); // 1000 of them.
    log.register(&holding("h"), None, 0).await.unwrap();
    for round in 0..30 {
        let steps = (0..100).map(|channel| step(&channel.to_string(), round % 2 == 0));
        let steps: Vec<Step> = steps.collect();
        log.enter("h", round * 100, &steps).await.unwrap();
    }
    let length: usize = server
        .cli(&["XLEN", "causeway:{lc}:events"])
        .trim()
        .parse()
        .unwrap();
    assert!((1000..1200).contains(&length), "{length}");
}

#[tokio::test]
async fn one_node_at_a_time_delivers_and_another_when_it_is_gone() {
    let server = RedisServer::start().await;
    let log = redis_log(&server, Duration::ZERO);
    let (first, second) = (turn(Instance::random()), turn(Instance::random()));
    assert!(log.pending(first, 1).await.unwrap().is_some());
    assert!(log.pending(second, 1).await.unwrap().is_none());
    assert!(log.pending(first, 1).await.unwrap().is_some());
    log.hand_over(second).await.unwrap();
    assert!(log.pending(second, 1).await.unwrap().is_none());
    log.hand_over(first).await.unwrap();
    assert!(log.pending(second, 1).await.unwrap().is_some());
    let event = Event {
        id: "0-5-0".to_owned(),
        number: 1,
        time: 0,
        fields: BTreeMap::new(),
    };
    log.delivered(first, &event).await.unwrap();
    assert_eq!(server.cli(&["EXISTS", "causeway:{lc}:delivered"]), "0\n");
    log.delivered(second, &event).await.unwrap();
    assert_eq!(server.cli(&["GET", "causeway:{lc}:delivered"]), "5-0 1\n");
    let ttl = server.cli(&["PTTL", "causeway:{lc}:delivery"]);
    assert!(0 < ttl.trim().parse::<i64>().unwrap(), "{ttl}");
}

#[tokio::test]
async fn what_happens_while_redis_is_away_is_entered_later_and_in_order() {
    let server = RedisServer::start().await;
    let (node, _kept) = sharing(&server, Duration::ZERO);
    node.occupy("a");
    node.events(1).await;
    server.freeze();
    for _ in 0..50 {
        node.vacate("a");
        node.occupy("a");
    }
    // Until a reply is late, and everything else waits behind it.
    let deadline = Instant::now() + DEADLINE;
    while node.metrics.lifecycle_waiting.get() < 100 {
        assert!(Instant::now() < deadline, "nothing waits");
        time::sleep(Duration::from_millis(10)).await;
    }
    server.thaw();
    let events = node.events(101).await;
    for (event, kind) in events
        .iter()
        .zip(["occupied", "vacated"].into_iter().cycle())
    {
        assert_eq!(event.fields["type"], kind);
    }
    let metrics = Arc::clone(&node.metrics);
    node.stop().await;
    assert_eq!(metrics.lifecycle_waiting.get(), 0);
}
