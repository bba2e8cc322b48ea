//! Lifecycle events while nodes are killed, drained and frozen, while the application fails to take them, and while Redis is
//! full: each beginning has one end, none is missing, and what is delivered again has the same id.
//!
//! `make lifecycle` runs the first test for five minutes (`CAUSEWAY_LIFECYCLE_MINUTES`).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    env,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    backend::{Backend, Request},
    http, loopback,
    node::{self, Node},
    process::Signal,
    redis::Redis,
    scratch::Scratch,
    settings::Settings,
    subscriber::{self, Subscriber},
    wait,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt as _,
    task::JoinSet,
    time::{self, Instant},
};

const SECRET: &str = "a secret that is long enough for HS256";

/// The stream of events, and the nodes that have entered some.
const STREAM: &str = "causeway:{lc}:events";
const HOLDERS: &str = "causeway:{lc}:holders";
const LIVE_LEASES: &str = "causeway:{no}:live";

/// From one fault to the next.
const FAULT_INTERVAL: Duration = Duration::from_secs(3);

/// For a command of a client whose node may be frozen.
const RESPONSE_WITHIN: Duration = Duration::from_secs(5);

/// For everything to be delivered once the clients have left.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// How many channels the clients subscribe to.
const CHANNELS: usize = 300;

/// What the application was sent.
#[derive(Default)]
struct Application {
    received: Mutex<Received>,
    mood: Mutex<Mood>,
}

#[derive(Debug, Clone, Copy, Default)]
enum Mood {
    #[default]
    TakesAll,
    /// Refuses some batches, and takes others without saying so.
    TakesSome,
    RefusesAll,
}

#[derive(Default)]
struct Received {
    /// In the order in which they came first.
    events: Vec<Value>,
    /// Where each is, by its id.
    places: HashMap<String, usize>,
    repeated: usize,
    /// Ids that came again with something else.
    changed: Vec<String>,
}

impl Application {
    async fn start() -> Result<(Arc<Self>, Backend)> {
        let application = Arc::new(Self::default());
        let taking = Arc::clone(&application);
        let backend = Backend::start(move |request| Arc::clone(&taking).take(request)).await?;
        Ok((application, backend))
    }

    /// Takes a batch, or not.
    async fn take(self: Arc<Self>, mut request: Request) {
        let length = request.header("content-length").unwrap_or_default();
        let length: usize = length.parse().unwrap_or_default();
        while request.rest.len() < length {
            if !matches!(request.stream.read_buf(&mut request.rest).await, Ok(1..)) {
                return;
            }
        }
        let mood = *self.mood.lock();
        let fate = match mood {
            Mood::TakesAll => u8::MAX,
            Mood::TakesSome => fastrand::u8(..20),
            Mood::RefusesAll => 0,
        };
        if fate != 0 {
            let batch: Value = serde_json::from_slice(&request.rest).unwrap_or_default();
            let mut received = self.received.lock();
            for event in batch["events"].as_array().into_iter().flatten() {
                received.take(event);
            }
        }
        let status = match fate {
            0 => "503 Service Unavailable",
            1 => return, // The connection ends without a response.
            2 => "500 Internal Server Error",
            _ => "204 No Content",
        };
        request.respond(status, "", "").await.ok();
    }

    fn events(&self) -> Vec<Value> {
        self.received.lock().events.clone()
    }
}

impl Received {
    fn take(&mut self, event: &Value) {
        let id = event["id"].as_str().unwrap_or_default().to_owned();
        match self.places.get(&id) {
            None => {
                self.places.insert(id, self.events.len());
                self.events.push(event.clone());
            }
            Some(&place) => {
                self.repeated += 1;
                if self.events[place] != *event {
                    self.changed.push(id);
                }
            }
        }
    }

    /// Each beginning is followed by one end, none is missing, and what came again is the same.
    fn check(&self) -> Result<()> {
        let mut has_begun: HashMap<String, bool> = HashMap::new();
        for event in &self.events {
            let (subject, begins) = subject(event);
            let before = has_begun.insert(subject.clone(), begins).unwrap_or(false);
            ensure!(before != begins, "{subject} twice the same, at {event}");
        }
        let numbers = self.events.iter().map(|event| event["number"].as_u64());
        ensure!(
            numbers.eq((1..=self.events.len() as u64).map(Some)),
            "events are missing or out of order"
        );
        let changed = &self.changed;
        ensure!(changed.is_empty(), "other events with the ids {changed:?}");
        Ok(())
    }

    fn count(&self, kind: &str) -> usize {
        let of_kind = |event: &&Value| event["type"] == kind;
        self.events.iter().filter(of_kind).count()
    }
}

/// The session or channel of an event, and whether it begins.
fn subject(event: &Value) -> (String, bool) {
    let text = |name: &str| event[name].as_str().unwrap_or_default();
    match text("type") {
        kind @ ("connected" | "disconnected") => {
            (format!("session {}", text("session")), kind == "connected")
        }
        kind => (format!("channel {}", text("channel")), kind == "occupied"),
    }
}

/// What has begun and not ended.
fn open(events: &[Value]) -> HashSet<String> {
    let mut open = HashSet::new();
    for event in events {
        match subject(event) {
            (subject, true) => open.insert(subject),
            (subject, false) => open.remove(&subject),
        };
    }
    open
}

/// Settings of a node with channel clients, whose connections and channels have events.
fn with_events(settings: Settings, coalesce: &str) -> Settings {
    settings
        .with("auth.keys", json!([{ "algorithm": "HS256", "key": SECRET }]))
        .with("registry", json!({ "renew": "200ms", "lease": "1s" }))
        .with("lifecycle", json!({ "connections": true, "coalesce": coalesce, "keep": 1_000_000 }))
        .with("endpoints", json!([{ "path": "/connection", "mode": "channels" }]))
        .with(
            "channels",
            json!({ "linger": "0s", "namespaces": [{ "name": "c", "subscribe": "anyone", "lifecycle": true }] }),
        )
}

fn hook(backend: &Backend) -> Value {
    json!(format!("http://{}/lifecycle", backend.address))
}

/// Nodes with one Redis, and the application that their events go to.
struct Scene {
    application: Arc<Application>,
    _backend: Backend,
    nodes: Vec<Node>,
    redis: Redis,
    _scratch: Scratch,
}

impl Scene {
    async fn new(name: &str, coalesce: &str, count: usize) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let redis = Redis::start(Ipv4Addr::LOCALHOST, scratch.path()).await?;
        let (application, backend) = Application::start().await?;
        let settings = with_events(node::settings_with_redis(&redis.url()), coalesce)
            .with("hooks.lifecycle", hook(&backend));
        let mut nodes = Vec::new();
        for number in 0..count {
            let settings = settings
                .clone()
                .with("listen", json!(loopback::own_any_port()));
            let name = format!("node-{number}");
            let node = Node::start(&name, settings, scratch.path()).await?;
            node.ready().await?;
            nodes.push(node);
        }
        Ok(Self {
            application,
            _backend: backend,
            nodes,
            redis,
            _scratch: scratch,
        })
    }

    /// Lets `clients` come and go for `duration` while nodes fail; the ids of all that were connected.
    async fn run(&mut self, clients: usize, duration: Duration) -> Result<Churn> {
        *self.application.mood.lock() = Mood::TakesSome;
        let end = Instant::now() + duration;
        // More of them stay longer, so that the machine can keep up.
        let stay_max = Duration::from_secs(1) * (clients / 100).max(1) as u32;
        let connected = Arc::new(Mutex::new(HashSet::new()));
        let mut running = JoinSet::new();
        for number in 0..clients {
            let addresses: Vec<_> = self.nodes.iter().map(|node| node.address).collect();
            let connected = Arc::clone(&connected);
            running.spawn(async move {
                // Two share a user.
                let token = subscriber::token(SECRET, &format!("user-{}", number / 2));
                while Instant::now() < end {
                    let node = addresses[fastrand::usize(..addresses.len())];
                    let stay = stay_max.mul_f64(fastrand::f64());
                    let stay = stay.min(end.saturating_duration_since(Instant::now()));
                    come_and_go(node, &token, stay, &connected).await;
                }
            });
        }
        let mut faults = Faults::default();
        let mut pace = time::interval(FAULT_INTERVAL);
        pace.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        pace.tick().await;
        while Instant::now() + FAULT_INTERVAL < end {
            pace.tick().await;
            self.fail_once(&mut faults).await?;
        }
        running.join_all().await;
        *self.application.mood.lock() = Mood::TakesAll;
        let connected = connected.lock().clone();
        ensure!(!connected.is_empty(), "no client was connected");
        Ok(Churn { connected, faults })
    }

    async fn fail_once(&mut self, faults: &mut Faults) -> Result<()> {
        let victim = fastrand::usize(..self.nodes.len());
        // Each kind in turn, so that a short run has all of them.
        match (faults.killed + faults.drained + faults.frozen) % 4 {
            0 | 2 => {
                faults.killed += 1;
                self.nodes[victim].kill().await?;
                self.nodes[victim].restart().await?;
                self.nodes[victim].ready().await
            }
            1 => {
                faults.frozen += 1;
                self.freeze_until_taken_for_dead(victim).await
            }
            _ => {
                faults.drained += 1;
                self.nodes[victim].drain();
                self.nodes[victim].process.exit(wait::SOON).await?;
                self.nodes[victim].restart().await?;
                self.nodes[victim].ready().await
            }
        }
    }

    /// Stops the process until the others have ended what it holds, then lets it go on.
    async fn freeze_until_taken_for_dead(&mut self, victim: usize) -> Result<()> {
        // None of a killed node, so that the one that goes is this node's.
        self.holders("holders that are alive", async |leases| {
            let live = self.redis.cli(&["ZRANGE", LIVE_LEASES, "0", "-1"]).await;
            leases.len() == self.nodes.len() && leases == sorted_lines(&live.unwrap_or_default())
        })
        .await?;
        let token = subscriber::token(SECRET, "witness");
        let witness = Subscriber::connect(self.nodes[victim].address, &token).await?;
        self.nodes[victim].process.signal(Signal::Stop);
        let others = self.nodes.len() - 1;
        let is_gone = async |leases: Vec<String>| leases.len() == others;
        let gone = self
            .holders("the frozen node's holder to go", is_gone)
            .await;
        self.nodes[victim].process.signal(Signal::Continue);
        gone?;
        // A kill that comes earlier would take what begins anew with it.
        wait::until("a client to begin anew", wait::SOON, async || {
            let events = self.application.events();
            let begun = events
                .iter()
                .filter(|event| event["type"] == "connected" && event["client"] == *witness.id);
            (2 <= begun.count()).then_some(())
        })
        .await
    }

    /// Waits until the leases of all that may enter events are as they should be.
    async fn holders(
        &self,
        what: &str,
        are_right: impl AsyncFn(Vec<String>) -> bool,
    ) -> Result<()> {
        wait::until(what, wait::SOON, async || {
            let leases = self.redis.cli(&["HVALS", HOLDERS]).await.ok()?;
            are_right(sorted_lines(&leases)).await.then_some(())
        })
        .await
    }

    /// Waits until nothing is open, and no event comes any more that could be missing.
    async fn settled(&self) -> Result<()> {
        let settled = wait::until("the end of everything", SETTLED_WITHIN, async || {
            let stored = self.redis.cli(&["XLEN", STREAM]).await.ok()?;
            let stored: usize = stored.trim().parse().ok()?;
            let events = self.application.events();
            (events.len() == stored && open(&events).is_empty()).then_some(())
        });
        settled.await.with_context(|| {
            let events = self.application.events();
            let open = open(&events);
            format!("of {} events, these go on: {open:?}", events.len())
        })
    }
}

/// What happened in a run.
struct Churn {
    connected: HashSet<String>,
    faults: Faults,
}

#[derive(Debug, Default)]
struct Faults {
    killed: usize,
    drained: usize,
    frozen: usize,
}

fn sorted_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// A connection for a while, with a channel or without.
async fn come_and_go(
    node: SocketAddr,
    token: &str,
    stay: Duration,
    connected: &Mutex<HashSet<String>>,
) {
    let connecting = time::timeout(RESPONSE_WITHIN, Subscriber::connect(node, token));
    let Ok(Ok(mut client)) = connecting.await else {
        time::sleep(Duration::from_millis(100)).await; // The node is down.
        return;
    };
    connected.lock().insert(client.id.clone());
    if fastrand::bool() {
        let channel = format!("c:{}", fastrand::usize(..CHANNELS));
        let subscribe = client.subscribe(&channel);
        time::timeout(RESPONSE_WITHIN, subscribe).await.ok();
    }
    time::sleep(stay).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_connection_has_one_end_whatever_happens_to_its_node() -> Result<()> {
    let minutes = env::var("CAUSEWAY_LIFECYCLE_MINUTES").ok();
    let minutes: Option<u64> = minutes.map(|text| text.parse()).transpose()?;
    let duration = Duration::from_secs(minutes.map_or(20, |minutes| minutes * 60));
    let mut scene = Scene::new("lifecycle", "0s", 3).await?;
    let churn = scene.run(1000, duration).await?;
    scene.settled().await?;
    let received = scene.application.received.lock();
    received.check()?;

    let mut beginnings: BTreeMap<&str, usize> = BTreeMap::new();
    for event in &received.events {
        if event["type"] == "connected" {
            let client = event["client"].as_str().unwrap_or_default();
            *beginnings.entry(client).or_default() += 1;
        }
    }
    let connected = churn.connected.iter().map(String::as_str);
    let missing = connected.filter(|client| !beginnings.contains_key(client));
    let missing = missing.count();
    // A node that was frozen for longer than its lease has clients that were ended and go on.
    let begun_anew = beginnings.values().filter(|count| **count != 1).count();
    println!(
        "{} clients connected, {:?}: {} events ({} connected, {} occupied), {begun_anew} clients begun anew, {} events repeated",
        churn.connected.len(),
        churn.faults,
        received.events.len(),
        received.count("connected"),
        received.count("occupied"),
        received.repeated,
    );
    ensure!(missing == 0, "{missing} clients have no event");
    ensure!(received.count("connected") == received.count("disconnected"));
    ensure!(received.count("occupied") == received.count("vacated"));
    ensure!(0 < received.count("occupied") && 0 < received.repeated);
    ensure!(
        0 < begun_anew,
        "the suspended node did not find its entries ended"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_that_reconnect_soon_continue_their_session() -> Result<()> {
    let mut scene = Scene::new("lifecycle-coalesced", "1s", 2).await?;
    let churn = scene.run(60, Duration::from_secs(8)).await?;
    scene.settled().await?;
    let received = scene.application.received.lock();
    received.check()?;
    let (clients, sessions) = (churn.connected.len(), received.count("connected"));
    println!("{clients} clients, {sessions} sessions");
    ensure!(sessions < clients, "no session was continued");
    Ok(())
}

#[tokio::test]
async fn a_full_redis_holds_events_back_and_loses_none() -> Result<()> {
    let scene = Scene::new("lifecycle-full", "0s", 1).await?;
    let node = &scene.nodes[0];
    let token = subscriber::token(SECRET, "ann");
    let before = Subscriber::connect(node.address, &token).await?;
    let full = scene.redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    ensure!(full.await?.trim() == "OK");
    let during = Subscriber::connect(node.address, &token).await?;
    let ids = [before.id.clone(), during.id.clone()];
    drop((before, during));
    metric(node, "lifecycle_waiting 3").await?;
    let free = scene.redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    ensure!(free.await?.trim() == "OK");
    scene.settled().await?;
    let received = scene.application.received.lock();
    received.check()?;
    for id in ids {
        let mut events = received.events.iter();
        ensure!(events.any(|event| event["client"] == *id), "{id} is lost");
    }
    Ok(())
}

/// Waits until a metric of the node has this value.
async fn metric(node: &Node, line: &str) -> Result<()> {
    let line = format!("causeway_node_{line}\n");
    wait::until(&line, wait::SOON, async || {
        let metrics = http::get(node.admin, "/metrics").await.ok()?;
        metrics.text().contains(&line).then_some(())
    })
    .await
}

#[tokio::test]
async fn the_stream_tells_what_a_killed_node_held_without_a_hook() -> Result<()> {
    let scratch = Scratch::new("lifecycle-stream")?;
    let redis = Redis::start(Ipv4Addr::LOCALHOST, scratch.path()).await?;
    let settings = with_events(node::settings_with_redis(&redis.url()), "0s");
    let mut killed = Node::start("killed", settings.clone(), scratch.path()).await?;
    let other = Node::start("other", settings, scratch.path()).await?;
    killed.ready().await?;
    other.ready().await?;
    let token = subscriber::token(SECRET, "ann");
    let mut client = Subscriber::connect(killed.address, &token).await?;
    client.subscribe("c:x").await?;
    stored(&redis, &[("connected", 1), ("occupied", 1)]).await?;
    killed.kill().await?;
    stored(&redis, &[("disconnected", 1), ("vacated", 1)]).await?;
    let events = redis.cli(&["XRANGE", STREAM, "-", "+"]).await?;
    ensure!(events.matches(client.id.as_str()).count() == 4, "{events}");
    Ok(())
}

/// Waits until so many events of these types are in the stream.
pub(super) async fn stored(redis: &Redis, counts: &[(&str, usize)]) -> Result<()> {
    wait::until("events in the stream", wait::SOON, async || {
        let events = redis.cli(&["XRANGE", STREAM, "-", "+"]).await.ok()?;
        let count = |kind: &str| events.lines().filter(|line| *line == kind).count();
        let is_there = counts.iter().all(|(kind, wanted)| count(kind) == *wanted);
        is_there.then_some(())
    })
    .await
}

#[tokio::test]
async fn without_redis_the_hook_has_all_events_when_the_node_has_stopped() -> Result<()> {
    let scratch = Scratch::new("lifecycle-memory")?;
    let (application, backend) = Application::start().await?;
    let settings = with_events(node::settings(), "1h").with("hooks.lifecycle", hook(&backend));
    let mut node = Node::start("alone", settings, scratch.path()).await?;
    let token = subscriber::token(SECRET, "ann");
    let mut first = Subscriber::connect(node.address, &token).await?;
    first.subscribe("c:x").await?;
    let received = wait::until("two events", wait::SOON, async || {
        let events = application.events();
        (events.len() == 2).then_some(events)
    });
    ensure!(open(&received.await?).len() == 2);
    // The second goes on with the session of the first, which would wait for an hour.
    drop(first);
    let second = Subscriber::connect(node.address, &token).await?;
    node.drain();
    node.process.exit(wait::SOON).await?;
    drop(second);
    let received = application.received.lock();
    received.check()?;
    ensure!(open(&received.events).is_empty(), "{:?}", received.events);
    Ok(())
}

#[tokio::test]
async fn events_that_are_not_taken_are_kept_up_to_a_bound_and_counted_beyond_it() -> Result<()> {
    let scratch = Scratch::new("lifecycle-lost")?;
    let (application, backend) = Application::start().await?;
    *application.mood.lock() = Mood::RefusesAll;
    let settings = with_events(node::settings(), "0s")
        .with("lifecycle.keep", json!(100))
        .with("hooks.lifecycle", hook(&backend));
    let node = Node::start("alone", settings, scratch.path()).await?;
    let token = subscriber::token(SECRET, "ann");
    let mut clients = Vec::new();
    for _ in 0..150 {
        clients.push(Subscriber::connect(node.address, &token).await?);
    }
    metric(&node, "lifecycle_delivered_total 0").await?;
    *application.mood.lock() = Mood::TakesAll;
    metric(&node, "lifecycle_delivered_total 100").await?;
    metric(&node, "lifecycle_lost_total 50").await?;
    let events = application.events();
    let numbers = events.iter().map(|event| event["number"].as_u64());
    ensure!(numbers.eq((51..=150).map(Some)), "the newest are kept");
    Ok(())
}

#[tokio::test]
async fn a_node_without_lifecycle_events_asks_nothing_of_redis_for_them() -> Result<()> {
    let scratch = Scratch::new("lifecycle-off")?;
    let redis = Redis::start(Ipv4Addr::LOCALHOST, scratch.path()).await?;
    let settings = with_events(node::settings_with_redis(&redis.url()), "0s")
        .with("lifecycle", json!({}))
        .with(
            "channels.namespaces",
            json!([{ "name": "c", "subscribe": "anyone" }]),
        );
    let node = Node::start("off", settings, scratch.path()).await?;
    node.ready().await?;
    let mut client = Subscriber::connect(node.address, &subscriber::token(SECRET, "ann")).await?;
    client.subscribe("c:x").await?;
    let keys = redis.cli(&["KEYS", "causeway:{lc}*"]).await?;
    ensure!(keys.trim().is_empty(), "{keys}");
    let connections = redis.cli(&["CLIENT", "LIST"]).await?;
    ensure!(!connections.contains("lifecycle"), "{connections}");
    let scripts = redis.cli(&["INFO", "commandstats"]).await?;
    ensure!(!scripts.contains("cmdstat_hrandfield"), "{scripts}");
    Ok(())
}
