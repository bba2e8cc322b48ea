//! A backend goes away, or goes wrong, under constant load: what its clients see, and that nobody else sees anything.
//!
//! `CAUSEWAY_ROUNDS` is how often each test runs (1), `CAUSEWAY_HOLD` for how many seconds a known client waits for its
//! backend (3, for short tests). `make faults` runs each ten times with the edge's own default, 10. A time is checked only
//! where it is what is promised, and then with slack for how slow the machine was for clients that were not concerned.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    environment,
    faulty::Fault,
    http,
    load::{Kind, Load, Place, Plan, Record, Story, clients_of},
    process::Signal,
    site::{Site, SiteConfig, Wires},
    wait,
};
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, sleep},
};

/// The one that suffers.
const VICTIM: &str = "n1";
const NODES: [&str; 3] = [VICTIM, "n2", "n3"];

/// For everything that should come at once: a slow machine has its time.
const DEADLINE: Duration = Duration::from_secs(60);

/// What the promise adds to the hold.
const PROMISE: Duration = Duration::from_secs(3);

const PLAN: Plan = Plan {
    gets: 40,
    posts: 15,
    newcomers: 5,
    sessions: 30,
    tunnels: 500,
    ..Plan::NOBODY
};

/// One load at a time: two at once would only measure each other.
static TURN: Mutex<()> = Mutex::const_new(());

/// Three nodes, an edge and clients. The fields are dropped in this order.
struct Scene {
    load: Load,
    site: Site,
    _turn: MutexGuard<'static, ()>,
}

impl Scene {
    /// Starts everything and waits until each client is served, and each node has clients of every kind. Which node gets a
    /// client is partly chance: with fifteen clients of a kind, one start in some hundreds leaves a node without.
    async fn set(name: &str, wires: Wires, plan: &Plan, edge: &[(&str, Value)]) -> Result<Self> {
        let turn = TURN.lock().await;
        let config = SiteConfig {
            nodes: NODES.len(),
            away: 0,
            wires,
            edge,
        };
        let site = Site::start(name, config).await?;
        let begun = Instant::now();
        let load = loop {
            let load = Load::start(site.edge.address, plan);
            load.served(Instant::now(), DEADLINE, |_| true).await?;
            match missing(&load.journal().places()) {
                None => break load,
                Some((kind, id)) => ensure!(
                    begun.elapsed() < DEADLINE,
                    "no {kind:?} at {id}: a fault there would prove nothing"
                ),
            }
            load.stop().await;
        };
        Ok(Self {
            load,
            site,
            _turn: turn,
        })
    }

    /// The clients of the victim.
    fn struck(&self) -> BTreeSet<usize> {
        clients_of(&self.load.journal().places(), VICTIM)
    }
}

/// A node without clients of a kind.
fn missing(places: &[Place]) -> Option<(Kind, &'static str)> {
    let kinds = [Kind::Get, Kind::Post, Kind::Session, Kind::Tunnel];
    let mut all = kinds.iter().flat_map(|kind| NODES.map(|id| (*kind, id)));
    all.find(|(kind, id)| {
        !places
            .iter()
            .any(|place| place.kind == *kind && is_at(place, id))
    })
}

fn is_at(place: &Place, id: &str) -> bool {
    place.node.as_deref() == Some(id)
}

fn hold() -> Duration {
    Duration::from_secs(environment::number("CAUSEWAY_HOLD").unwrap_or(3))
}

fn seconds(span: Duration) -> Value {
    json!(format!("{}s", span.as_secs()))
}

/// Runs `one` as often as asked for; what it returns is for people.
async fn rounds(name: &str, mut one: impl AsyncFnMut() -> Result<String>) -> Result<()> {
    for round in 1..=environment::number("CAUSEWAY_ROUNDS").unwrap_or(1_u64) {
        let figures = one().await.with_context(|| format!("in round {round}"))?;
        eprintln!("{name}, round {round}: {figures}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_killed_and_never_back_costs_nobody_a_request() -> Result<()> {
    rounds("killed", async || {
        let change = [("affinity.hold", seconds(hold()))];
        let mut scene = Scene::set("killed", Wires::Direct, &PLAN, &change).await?;
        let struck = scene.struck();
        let killed = Instant::now();
        scene.site.node(VICTIM)?.kill().await?;
        let gone = Instant::now();
        scene
            .load
            .served(gone, hold() + DEADLINE, |place| !is_at(place, VICTIM))
            .await?;
        let story = Story::of(scene.load, struck).await;
        let in_flight = story.only_posts_in_flight_failed(gone)?;
        story.nobody_else_noticed()?;
        story.nobody_moved_twice(killed)?;
        story.no_newcomer_waited(hold())?;
        let longest = story.all_elsewhere_after(killed, VICTIM)?;
        let lag = story.lag();
        ensure!(longest <= hold() + PROMISE + lag * 3, "{longest:?}, with a lag of {lag:?}");
        Ok(format!(
            "{} requests; {in_flight} POSTs in flight got 502, nothing else failed; the last of {} clients was elsewhere \
             after {longest:.1?}; slowest other response {lag:.1?}",
            story.records.len(),
            story.struck.len(),
        ))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_killed_and_back_in_time_keeps_all_its_clients() -> Result<()> {
    rounds("killed and back", async || {
        // The default of the edge: what it leaves beyond the outage is for slow machines, and costs no time.
        let change = [("affinity.hold", json!("10s"))];
        let mut scene = Scene::set("killed-back", Wires::Direct, &PLAN, &change).await?;
        let struck = scene.struck();
        scene.site.node(VICTIM)?.kill().await?;
        let gone = Instant::now();
        sleep(hold() / 2).await;
        scene.site.node(VICTIM)?.restart().await?;
        let back = Instant::now();
        let at_home = |place: &Place| !struck.contains(&place.client) || is_at(place, VICTIM);
        scene.load.served(back, DEADLINE, at_home).await?;
        let story = Story::of(scene.load, struck.clone()).await;
        let in_flight = story.only_posts_in_flight_failed(gone)?;
        story.nobody_moved()?;
        story.nobody_else_noticed()?;
        Ok(format!(
            "{} requests; {in_flight} POSTs in flight got 502, nothing else failed; back after {:.1?}, and none of {} clients \
             was bound elsewhere",
            story.records.len(),
            back - gone,
            story.struck.len(),
        ))
    })
    .await
}

/// A fault of a backend that still takes connections, from its begin to its end.
struct Fails {
    name: &'static str,
    wires: Wires,
    begin: fn(&mut Site) -> Result<()>,
    end: fn(&mut Site) -> Result<()>,
    /// Whether WebSockets that are open go on as if nothing was.
    tunnels_stay: bool,
    /// Whether a SockJS session stays with the backend that holds it: it responds, and nobody else knows the session.
    sessions_stay: bool,
}

impl Fails {
    /// Until the edge knows of it, clients of the backend may see it; after that they are served elsewhere and see nothing
    /// more. Nobody ever moves twice, and clients of other backends see nothing at all. When it is over, the backend takes
    /// newcomers again.
    async fn run(&self) -> Result<()> {
        rounds(self.name, async || {
            let plan = Plan {
                patience: Duration::from_secs(5),
                ..PLAN
            };
            let change = [
                ("health.timeout", json!("2s")),
                ("health.interval", json!("500ms")),
                // An operator's whose app responds at once; with the default of 60 s the test would only take longer.
                ("timeouts.upstream_read", json!("10s")),
                ("timeouts.upgrade", json!("10s")),
            ];
            let mut scene = Scene::set(self.name, self.wires, &plan, &change).await?;
            let struck = scene.struck();
            let begun = Instant::now();
            (self.begin)(&mut scene.site)?;
            scene.site.edge.backend_in_state(VICTIM, "down").await?;
            let known = Instant::now();
            let stays = |place: &Place| self.tunnels_stay && place.kind == Kind::Tunnel;
            let elsewhere = |place: &Place| !is_at(place, VICTIM) || stays(place);
            scene.load.served(known, DEADLINE, elsewhere).await?;
            let moved = Instant::now();
            (self.end)(&mut scene.site)?;
            scene.site.edge.backend_in_state(VICTIM, "up").await?;
            let up = Instant::now();
            // One of them: no backend gets so many more than its neighbours that all would be there at a time.
            let is_welcome = |place: &Place| {
                place.kind == Kind::Newcomer && is_at(place, VICTIM) && place.served_since(up)
            };
            wait::until("a newcomer to be there", DEADLINE, async || {
                let places = scene.load.journal().places();
                places.iter().any(is_welcome).then_some(())
            })
            .await?;
            scene.load.served(up, DEADLINE, |_| true).await?;

            let story = Story::of(scene.load, struck).await;
            let old = sessions_before(&story.records, known);
            let of_old_session = |record: &Record| {
                self.sessions_stay && session_of(record).is_some_and(|id| old.contains(id))
            };
            story.nothing_fails_after(known, of_old_session)?;
            story.nobody_else_noticed()?;
            story.nobody_moved_twice(begun)?;
            Ok(format!(
                "{} requests; down after {:.1?}, until then {} failed; all elsewhere {:.1?} later; {} clients concerned",
                story.records.len(),
                known - begun,
                story.failed(),
                moved - known,
                story.struck.len(),
            ))
        })
        .await
    }
}

/// The SockJS session that a request is for.
fn session_of(record: &Record) -> Option<&str> {
    record.path.strip_prefix("/echo/000/")?.split('/').next()
}

fn sessions_before(records: &[Record], since: Instant) -> BTreeSet<String> {
    let before = records.iter().filter(|record| record.begun < since);
    before.filter_map(session_of).map(str::to_owned).collect()
}

fn break_wire(site: &mut Site, fault: Fault) -> Result<()> {
    let wire = site.wires.first().context("the victim has a wire")?;
    wire.set(fault);
    Ok(())
}

fn mend_wire(site: &mut Site) -> Result<()> {
    break_wire(site, Fault::None)
}

fn signal(site: &mut Site, signal: Signal) -> Result<()> {
    site.node(VICTIM)?.process.signal(signal);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_stopped_backend_go_to_others() -> Result<()> {
    let stopped = Fails {
        name: "stopped",
        wires: Wires::Direct,
        begin: |site| signal(site, Signal::Stop),
        end: |site| signal(site, Signal::Continue),
        tunnels_stay: false,
        sessions_stay: false,
    };
    stopped.run().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_backend_that_accepts_and_says_nothing_go_to_others() -> Result<()> {
    let silent = Fails {
        name: "silent",
        wires: Wires::Faulty,
        begin: |site| break_wire(site, Fault::Silent),
        end: mend_wire,
        tunnels_stay: false,
        sessions_stay: false,
    };
    silent.run().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_backend_that_responds_503_to_everything_go_to_others() -> Result<()> {
    let unavailable = Fails {
        name: "unavailable",
        wires: Wires::Faulty,
        begin: |site| break_wire(site, Fault::Unavailable),
        end: mend_wire,
        tunnels_stay: true,
        sessions_stay: true,
    };
    unavailable.run().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_a_backend_that_resets_in_the_middle_of_responses_go_to_others() -> Result<()> {
    let resets = Fails {
        name: "resets",
        wires: Wires::Faulty,
        begin: |site| break_wire(site, Fault::ResetsMidway),
        end: mend_wire,
        tunnels_stay: true,
        sessions_stay: false,
    };
    resets.run().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_are_down_the_first_one_back_takes_everybody() -> Result<()> {
    rounds("all down", async || {
        let change = [("affinity.hold", seconds(hold()))];
        let mut scene = Scene::set("all-down", Wires::Direct, &PLAN, &change).await?;
        for id in NODES {
            scene.site.node(id)?.kill().await?;
        }
        for id in NODES {
            scene.site.edge.backend_in_state(id, "down").await?;
        }
        let dead = Instant::now();
        let response = http::get(scene.site.edge.address, "/").await?;
        ensure!(
            response.status == 503 && response.header("retry-after").is_some(),
            "{response:?}"
        );

        scene.site.bring_back("n2").await?;
        let up = Instant::now();
        scene
            .load
            .served(up, DEADLINE, |place| is_at(place, "n2"))
            .await?;
        let served = Instant::now();

        scene.site.bring_back("n1").await?;
        scene.site.bring_back("n3").await?;
        let all = Instant::now();
        let stays = |place: &Place| (place.kind == Kind::Newcomer) != is_at(place, "n2");
        scene.load.served(all, DEADLINE, stays).await?;
        let story = Story::of(scene.load, BTreeSet::new()).await;
        story.nothing_fails_after(up, |_| false)?;
        story.nobody_moved_twice(dead)?;
        Ok(format!(
            "{} requests; everybody was at the first one back {:.1?} after it was up, and stayed",
            story.records.len(),
            served - up
        ))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_comes_and_goes_moves_no_client_twice() -> Result<()> {
    rounds("flapping", async || {
        let change = [("affinity.hold", json!("1s"))];
        let mut scene = Scene::set("flapping", Wires::Direct, &PLAN, &change).await?;
        let struck = scene.struck();
        let begun = Instant::now();
        for _ in 0..3 {
            scene.site.lose(VICTIM).await?;
            scene.site.bring_back(VICTIM).await?;
        }
        let steady = Instant::now();
        scene.load.served(steady, DEADLINE, |_| true).await?;
        let story = Story::of(scene.load, struck).await;
        story.nobody_moved_twice(begun)?;
        story.nobody_else_noticed()?;
        story.nothing_fails_after(steady, |_| false)?;
        Ok(format!(
            "{} requests; {} of {} clients moved, each once",
            story.records.len(),
            story.journal.moves(begun).len(),
            story.struck.len()
        ))
    })
    .await
}
