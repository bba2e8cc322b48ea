//! Which backend is chosen: affinity, states, drains, sessions, and how evenly new clients are spread.

mod spread;

use std::collections::HashMap;

use futures_util::FutureExt;
use http::StatusCode;
use pingora::http::RequestHeader;
use proptest::prelude::*;

use super::*;
use crate::balancer::affinity::SessionKey;
use crate::tls::Connectors;

const UNIX: Duration = Duration::from_secs(1_000_000);

/// A pool and its clock.
struct Bench {
    pool: Arc<Pool>,
    metrics: Arc<Metrics>,
    start: Instant,
}

impl Bench {
    /// Backends `n1`, `n2`, ... with these weights, all up.
    fn new(pick: &str, weights: &[u32]) -> Self {
        let bench = Self::unknown(pick, weights, "{}");
        for backend in bench.pool.backends() {
            bench.pool.probed(&backend, ProbeResult::Good, bench.start);
        }
        bench
    }

    /// The same, not probed yet. Without a grace period, so that three failed probes take one down.
    fn unknown(pick: &str, weights: &[u32], health: &str) -> Self {
        let backends: Vec<String> = (1..)
            .zip(weights)
            .map(|(n, weight)| format!("{{id: n{n}, address: '127.0.0.1:{n}', weight: {weight}}}"))
            .collect();
        let backends = backends.join(", ");
        let file = format!(
            "pools: [{{name: nodes, pick: {pick}, health: {health}, backends: [{backends}]}}]
affinity: {{hold: 0s, hold_timeout: 0s}}"
        );
        Self::from_file(&file)
    }

    fn from_file(file: &str) -> Self {
        let config = Config::parse("f", file).unwrap();
        let metrics = Arc::new(Metrics::new());
        let start = Instant::now();
        let pools = Pools::new(&config, &Connectors::default(), &metrics, start, UNIX);
        Self {
            pool: Arc::clone(pools.get(PoolId(0))),
            metrics,
            start,
        }
    }

    fn backend(&self, id: &str) -> Arc<Backend> {
        let id = id.parse().unwrap();
        Arc::clone(self.pool.table.load().get(&id).unwrap())
    }

    /// A moment, `seconds` after the start.
    fn at(&self, seconds: u64) -> Instant {
        self.start + Duration::from_secs(seconds)
    }

    fn probe(&self, id: &str, result: ProbeResult) {
        self.pool.probed(&self.backend(id), result, self.start);
    }

    fn down(&self, id: &str) {
        (0..3).for_each(|_| self.probe(id, ProbeResult::NoResponse(String::new())));
        assert_eq!(self.backend(id).state(), State::Down);
    }

    fn drain(&self, id: &str) {
        self.probe(id, ProbeResult::Draining);
    }

    fn refuse(&self, id: &str) {
        let backend = self.backend(id);
        self.pool
            .report(&backend, Evidence::ConnectRefused, self.start);
    }

    fn choose(&self, claim: &Claim, tried: &[&str]) -> Result<Choice, NoBackend> {
        let mut list = Tried::default();
        tried.iter().for_each(|id| list.add(&self.backend(id)));
        self.pool
            .choose(claim, RequestKind::Plain, &list, self.start)
    }

    fn new_client(&self) -> String {
        let choice = self.choose(&Claim::default(), &[]).unwrap();
        assert_eq!(choice.affinity, AffinityOutcome::Miss);
        assert_eq!(choice.cookie, CookieChange::Set);
        choice.backend.id.to_string()
    }

    /// How many of `count` new clients go to each backend.
    fn spread(&self, count: usize) -> HashMap<String, usize> {
        let mut spread = HashMap::new();
        for _ in 0..count {
            *spread.entry(self.new_client()).or_default() += 1;
        }
        spread
    }
}

/// The claim of a client that was bound to `id` a second after the start.
fn bound_to(id: &str) -> Claim {
    bound_at(id, UNIX.as_secs() + 1)
}

fn bound_at(id: &str, bound_at: u64) -> Claim {
    let binding = Binding {
        id: id.parse().unwrap(),
        bound_at,
        freshness: Freshness::Current,
    };
    Claim {
        bindings: vec![binding],
        ..Claim::default()
    }
}

fn session(session: &str) -> Claim {
    Claim {
        session: Some(SessionKey::new(session)),
        ..Claim::default()
    }
}

fn is(choice: &Result<Choice, NoBackend>, id: &str, affinity: AffinityOutcome) -> bool {
    let choice = choice.as_ref().unwrap();
    choice.backend.id.as_str() == id && choice.affinity == affinity
}

use AffinityOutcome::{Hit, Miss, Rebound};

#[test]
fn a_bound_client_goes_to_the_backend_in_its_cookie() {
    let bench = Bench::new("least", &[1, 1, 1]);
    for id in ["n1", "n2", "n3", "n2"] {
        let choice = bench.choose(&bound_to(id), &[]);
        assert!(is(&choice, id, Hit));
        assert_eq!(choice.unwrap().cookie, CookieChange::Keep);
    }
}

#[test]
fn the_first_cookie_that_names_a_known_backend_wins() {
    let bench = Bench::new("least", &[1, 1]);
    let mut claim = bound_to("gone");
    claim.bindings.extend(bound_to("n2").bindings);
    claim.bindings.extend(bound_to("n1").bindings);
    assert!(is(&bench.choose(&claim, &[]), "n2", Hit));
}

#[test]
fn a_cookie_signed_with_an_old_key_is_set_again() {
    let bench = Bench::new("least", &[1, 1]);
    let mut claim = bound_to("n2");
    claim.bindings[0].freshness = Freshness::OldKey;
    let choice = bench.choose(&claim, &[]);
    assert!(is(&choice, "n2", Hit));
    assert_eq!(choice.unwrap().cookie, CookieChange::Set);
}

#[test]
fn a_client_of_an_unknown_backend_is_bound_again() {
    let bench = Bench::new("least", &[1]);
    let choice = bench.choose(&bound_to("gone"), &[]);
    assert!(is(&choice, "n1", Rebound));
    assert_eq!(choice.unwrap().cookie, CookieChange::Set);
}

#[test]
fn a_backend_that_was_tried_is_not_chosen_again_for_the_request() {
    let bench = Bench::new("least", &[1, 1]);
    assert!(is(&bench.choose(&bound_to("n1"), &["n1"]), "n2", Rebound));
    assert!(bench.choose(&bound_to("n1"), &["n1", "n2"]).is_err());
    assert!(is(&bench.choose(&session("s"), &["n1"]), "n2", Miss));
}

#[test]
fn a_suspect_backend_keeps_its_clients_and_gets_no_new_ones() {
    let bench = Bench::new("least", &[1, 1]);
    bench.refuse("n1");
    assert_eq!(bench.backend("n1").state(), State::Suspect);
    assert!(is(&bench.choose(&bound_to("n1"), &[]), "n1", Hit));
    assert_eq!(bench.spread(10), HashMap::from([("n2".to_owned(), 10)]));
    bench.probe("n1", ProbeResult::Good);
    assert_eq!(bench.backend("n1").state(), State::Up);
    assert!(bench.spread(10)["n1"] > 5);
}

#[test]
fn clients_of_a_backend_that_is_down_are_bound_again() {
    let bench = Bench::new("least", &[1, 1]);
    bench.down("n1");
    assert!(is(&bench.choose(&bound_to("n1"), &[]), "n2", Rebound));
}

#[test]
fn backends_are_chosen_in_the_order_of_their_health() {
    let bench = Bench::unknown("least", &[1, 1, 1, 1, 1], "{}");
    bench.probe("n1", ProbeResult::Good);
    bench.refuse("n3");
    (0..3).for_each(|_| bench.probe("n4", ProbeResult::UnexpectedResponse(String::new())));
    bench.down("n5");
    let mut tried: Vec<&str> = Vec::new();
    for id in ["n1", "n2", "n3", "n4", "n5"] {
        let choice = bench.choose(&Claim::default(), &tried);
        assert!(is(&choice, id, Miss), "{id}");
        tried.push(id);
    }
}

/// Two zones, each with a primary and a backup, seen from the east.
const ZONES: &str = "zone: east
pools:
  - name: nodes
    backends:
      - {id: west, address: 'a:1', zone: west}
      - {id: west-backup, address: 'a:2', zone: west, backup: true}
      - {id: east-backup, address: 'a:3', zone: east, backup: true}
      - {id: east, address: 'a:4', zone: east}
affinity: {hold: 0s, hold_timeout: 0s}
health: {ignore_below: IGNORE}";

fn zones(ignore_below: &str) -> Bench {
    let bench = Bench::from_file(&ZONES.replace("IGNORE", ignore_below));
    for id in ["west", "west-backup", "east-backup", "east"] {
        bench.probe(id, ProbeResult::Good);
    }
    bench
}

#[test]
fn new_clients_go_to_the_own_zone_then_to_others_then_to_backups() {
    let bench = zones("0");
    for id in ["east", "west", "east-backup", "west-backup"] {
        assert_eq!(bench.spread(10), HashMap::from([(id.to_owned(), 10)]));
        bench.down(id);
    }
    // All are down: the same order as if all were up.
    assert_eq!(bench.new_client(), "east");
    // One that responds with errors is better than one that does not respond.
    bench.probe(
        "west-backup",
        ProbeResult::UnexpectedResponse("503".to_owned()),
    );
    assert_eq!(bench.new_client(), "west-backup");
}

#[test]
fn new_clients_go_to_the_newest_generation_that_is_up_and_bound_ones_stay() {
    for pick in ["least", "round_robin", "random"] {
        let bench = Bench::from_file(&format!(
            "pools:
  - name: nodes
    pick: {pick}
    backends:
      - {{id: old, address: 'a:1'}}
      - {{id: new-1, address: 'a:2', generation: 8}}
      - {{id: new-2, address: 'a:3', generation: 8}}
      - {{id: first, address: 'a:4', generation: 7}}
affinity: {{hold: 0s, hold_timeout: 0s}}"
        ));
        bench.probe("old", ProbeResult::Good);
        // Nobody knows whether a newer one works.
        assert_eq!(bench.new_client(), "old", "{pick}");
        for id in ["first", "new-1", "new-2"] {
            bench.probe(id, ProbeResult::Good);
        }
        let spread = bench.spread(100);
        assert_eq!(spread["new-1"] + spread["new-2"], 100, "{pick}");
        assert!(
            spread.values().all(|count| 20 < *count),
            "{pick}: {spread:?}"
        );
        let session = Claim {
            session: Some(SessionKey::new("a session")),
            ..Claim::default()
        };
        let by_ring = bench.choose(&session, &[]).unwrap();
        assert!(by_ring.backend.id.as_str().starts_with("new"), "{pick}");

        assert!(is(&bench.choose(&bound_to("old"), &[]), "old", Hit));
        let tried = ["new-1", "new-2"];
        let next = bench.choose(&Claim::default(), &tried).unwrap();
        assert_eq!(next.backend.id.as_str(), "first", "{pick}");
        bench.down("new-1");
        bench.drain("new-2");
        bench.drain("first");
        assert_eq!(bench.new_client(), "old", "{pick}");
    }
}

#[test]
fn what_a_node_says_of_its_generation_counts_unless_the_file_says_it() {
    let bench = Bench::from_file(
        "pools: [{name: a, backends: [{id: n1, address: 'a:1'}, {id: n2, address: 'a:2', generation: 3}]}]",
    );
    for id in ["n1", "n2"] {
        bench.probe(id, ProbeResult::Good);
        bench.backend(id).announce_generation(Some(9));
    }
    assert_eq!(bench.backend("n2").generation(), Some(3));
    assert_eq!(bench.spread(10)["n1"], 10);
    // It was restarted, and the one that runs now says nothing.
    bench.backend("n1").announce_generation(None);
    assert_eq!(bench.backend("n1").generation(), None);
    assert_eq!(bench.spread(10)["n2"], 10);
}

#[test]
fn a_healthy_backup_comes_before_a_suspect_primary() {
    let bench = zones("0");
    bench.refuse("east");
    bench.refuse("west");
    assert_eq!(bench.new_client(), "east-backup");
    bench.refuse("east-backup");
    bench.refuse("west-backup");
    assert_eq!(bench.new_client(), "east");
}

#[test]
fn a_backend_without_a_zone_is_local_and_without_an_own_zone_all_are() {
    let both = |file: &str| {
        let bench = Bench::from_file(file);
        for id in ["n1", "n2"] {
            bench.probe(id, ProbeResult::Good);
        }
        assert_eq!(bench.spread(10)["n1"], 5, "{file}");
    };
    both(
        "zone: east
pools: [{name: a, backends: [{id: n1, address: 'a:1'}, {id: n2, address: 'a:2', zone: east}]}]",
    );
    both(
        "pools: [{name: a, backends: [{id: n1, address: 'a:1', zone: west}, {id: n2, address: 'a:2', zone: east}]}]",
    );
}

#[test]
fn bound_clients_stay_in_another_zone_and_on_a_backup() {
    let bench = zones("0");
    for id in ["west", "west-backup", "east-backup"] {
        assert!(is(&bench.choose(&bound_to(id), &[]), id, Hit));
    }
    bench.down("west-backup");
    assert!(is(
        &bench.choose(&bound_to("west-backup"), &[]),
        "east",
        Rebound
    ));
}

#[test]
fn if_health_is_ignored_new_clients_go_to_all_primaries_and_to_no_backup() {
    let bench = zones("60");
    bench.down("east");
    assert_eq!(bench.spread(10), HashMap::from([("west".to_owned(), 10)]));
    bench.down("east-backup");
    let spread = bench.spread(10);
    assert_eq!(spread["east"] + spread["west"], 10);
    assert!(0 < spread["west"], "{spread:?}");
    assert!(is(
        &bench.choose(&Claim::default(), &["east"]),
        "west",
        Miss
    ));
    let choice = bench.choose(&Claim::default(), &["east", "west"]);
    assert!(choice.unwrap().backend.id.as_str().ends_with("backup"));
}

#[test]
fn a_client_of_a_backend_that_is_down_moves_to_one_that_responds() {
    let bench = Bench::new("least", &[1, 1]);
    bench.down("n1");
    (0..3).for_each(|_| bench.probe("n2", ProbeResult::UnexpectedResponse("503".to_owned())));
    assert!(is(&bench.choose(&bound_to("n1"), &[]), "n2", Rebound));
    assert!(is(&bench.choose(&bound_to("n2"), &[]), "n2", Hit));
}

#[test]
fn with_no_backend_up_health_is_ignored_and_bound_clients_stay() {
    let bench = Bench::new("least", &[1, 1]);
    bench.down("n1");
    bench.down("n2");
    assert_eq!(bench.spread(10)["n1"], 5);
    assert!(is(&bench.choose(&bound_to("n2"), &[]), "n2", Hit));
}

#[test]
fn below_the_threshold_health_is_ignored() {
    let bench = Bench::unknown("round_robin", &[1, 1, 1, 1], "{ignore_below: 50}");
    for id in ["n1", "n2", "n3", "n4"] {
        bench.probe(id, ProbeResult::Good);
    }
    bench.down("n1");
    bench.down("n2");
    assert_eq!(bench.spread(8).len(), 2);
    bench.down("n3");
    assert_eq!(bench.spread(8).len(), 4);
}

#[test]
fn a_draining_backend_gets_no_new_clients_and_its_clients_move() {
    let bench = Bench::new("least", &[1, 1]);
    bench.drain("n1");
    assert!(is(&bench.choose(&bound_to("n1"), &[]), "n2", Rebound));
    assert_eq!(bench.spread(10), HashMap::from([("n2".to_owned(), 10)]));
    assert!(bench.choose(&Claim::default(), &["n2"]).is_err());
}

#[test]
fn bound_clients_stay_on_a_draining_backend_if_no_other_is_healthy() {
    let bench = Bench::new("least", &[1, 1]);
    bench.drain("n1");
    bench.down("n2");
    assert!(is(&bench.choose(&bound_to("n1"), &[]), "n1", Hit));
    assert!(is(&bench.choose(&Claim::default(), &[]), "n2", Miss));
}

#[test]
fn clients_of_a_backend_that_announced_its_stop_move_as_soon_as_it_refuses_connections() {
    let bench = Bench::new("least", &[1, 1]);
    let backend = bench.backend("n1");
    bench.pool.report(&backend, Evidence::Stopping, bench.start);
    assert_eq!(
        backend.state(),
        State::Up,
        "an announcement changes no state"
    );
    assert!(backend.probe_wanted().now_or_never().is_some());
    assert!(bench.pool.is_worth_waiting_for(&backend));
    bench.refuse("n1");
    assert_eq!(backend.state(), State::Draining);
    assert!(!bench.pool.is_worth_waiting_for(&backend));
    let choice = bench.choose(&bound_to("n1"), &[]).unwrap();
    assert_eq!(choice.backend.id.as_str(), "n2");
    assert_eq!(choice.affinity, AffinityOutcome::Rebound);
    // Cookies from before are not valid when it is up again, as after any other drain.
    bench.probe("n1", ProbeResult::Good);
    let before = bound_at("n1", UNIX.as_secs());
    let choice = bench.choose(&before, &[]).unwrap();
    assert_eq!(choice.affinity, AffinityOutcome::Rebound);
}

#[test]
fn a_draining_backend_is_worth_waiting_for_only_if_no_other_is_healthy() {
    let bench = Bench::new("least", &[1, 1]);
    bench.drain("n1");
    let backend = bench.backend("n1");
    assert!(!bench.pool.is_worth_waiting_for(&backend));
    bench.refuse("n2");
    assert!(
        !bench.pool.is_worth_waiting_for(&backend),
        "it is suspect and no worse"
    );
    bench.down("n2");
    assert!(bench.pool.is_worth_waiting_for(&backend));
    assert!(!bench.pool.is_worth_waiting_for(&bench.backend("n2")));
}

#[test]
fn cookies_from_before_a_drain_are_not_valid_after_it() {
    let bench = Bench::new("least", &[1, 1]);
    let drained = UNIX.as_secs() + 100;
    let backend = bench.backend("n1");
    bench
        .pool
        .probed(&backend, ProbeResult::Draining, bench.at(100));
    bench
        .pool
        .probed(&backend, ProbeResult::Good, bench.at(120));
    let outcome = |at| bench.choose(&bound_at("n1", at), &[]).unwrap().affinity;
    assert_eq!(outcome(drained), Rebound);
    assert_eq!(outcome(drained + 1), Hit);
}

#[test]
fn a_draining_backend_does_not_keep_clients_if_health_is_ignored() {
    let bench = Bench::unknown("least", &[1, 1, 1, 1], "{ignore_below: 60}");
    for id in ["n1", "n2", "n3", "n4"] {
        bench.probe(id, ProbeResult::Good);
    }
    bench.drain("n1");
    bench.down("n2");
    bench.down("n3");
    assert_eq!(
        bench.choose(&bound_to("n1"), &[]).unwrap().affinity,
        Rebound
    );
    assert!(is(&bench.choose(&bound_to("n2"), &[]), "n2", Hit));
}

#[test]
fn a_session_stays_on_a_backend_that_responds_to_probes_with_errors() {
    let bench = Bench::new("least", &[1, 1, 1]);
    let claim = session("s");
    let home = bench.choose(&claim, &[]).unwrap().backend;
    for _ in 0..3 {
        bench.probe(
            home.id.as_str(),
            ProbeResult::UnexpectedResponse("503".to_owned()),
        );
    }
    assert_eq!(home.state(), State::Down);
    assert!(is(&bench.choose(&claim, &[]), home.id.as_str(), Hit));
}

#[test]
fn a_stale_cookie_does_not_hide_a_valid_one() {
    let bench = Bench::new("least", &[1, 1]);
    bench.drain("n1");
    bench.probe("n1", ProbeResult::Good);
    let mut claim = bound_at("n1", 1);
    claim.bindings.extend(bound_to("n2").bindings);
    assert!(is(&bench.choose(&claim, &[]), "n2", Hit));
}

#[test]
fn a_polling_session_stays_on_a_draining_backend_until_it_ends() {
    let bench = Bench::new("least", &[1, 1, 1]);
    let mut claim = session("s");
    let home = bench.choose(&claim, &[]).unwrap().backend;
    bench.drain(home.id.as_str());
    assert!(is(&bench.choose(&claim, &[]), home.id.as_str(), Hit));
    // Its cookie has the same backend, or is not valid.
    claim.bindings = bound_to(home.id.as_str()).bindings;
    assert!(is(&bench.choose(&claim, &[]), home.id.as_str(), Hit));
    let other = bench.choose(&session("t"), &[]).unwrap();
    assert_ne!(other.backend.id, home.id);
}

#[test]
fn a_session_without_a_cookie_keeps_its_backend_and_gets_the_cookie_once() {
    let bench = Bench::new("least", &[1, 1, 1]);
    for number in 0..100 {
        let claim = session(&format!("s{number}"));
        let first = bench.choose(&claim, &[]).unwrap();
        assert_eq!((first.affinity, first.cookie), (Miss, CookieChange::Set));
        let next = bench.choose(&claim, &[]).unwrap();
        assert_eq!((next.affinity, next.cookie), (Hit, CookieChange::Keep));
        assert_eq!(first.backend.id, next.backend.id);
    }
}

#[test]
fn independent_edges_send_a_session_to_the_same_backend() {
    let (one, other) = (
        Bench::new("least", &[1, 1, 1]),
        Bench::new("least", &[1, 1, 1]),
    );
    other.spread(7);
    for number in 0..100 {
        let claim = session(&format!("s{number}"));
        let (one, other) = (one.choose(&claim, &[]), other.choose(&claim, &[]));
        assert_eq!(one.unwrap().backend.id, other.unwrap().backend.id);
    }
}

#[test]
fn a_session_whose_backend_is_down_is_bound_again_and_stays_there() {
    let bench = Bench::new("least", &[1, 1, 1]);
    let claim = session("s");
    let home = bench.choose(&claim, &[]).unwrap().backend;
    bench.down(home.id.as_str());
    let moved = bench.choose(&claim, &[]).unwrap();
    assert_eq!(moved.affinity, Rebound);
    bench.probe(home.id.as_str(), ProbeResult::Good);
    bench.probe(home.id.as_str(), ProbeResult::Good);
    assert_eq!(home.state(), State::Up);
    assert!(is(
        &bench.choose(&claim, &[]),
        moved.backend.id.as_str(),
        Hit
    ));
}

#[test]
fn a_release_names_another_healthy_backend_or_none() {
    let bench = Bench::new("least", &[1, 1]);
    let (one, other) = (bench.backend("n1"), bench.backend("n2"));
    let released = bench.pool.release(&one, bench.start).unwrap();
    assert_eq!(released.id, other.id);
    bench.down("n2");
    assert!(bench.pool.release(&one, bench.start).is_none());
}

#[test]
fn maintenance_is_never_chosen() {
    let file = "pools: [{name: a, backends: [{id: n1, address: 'a:1', maintenance: true}]}]";
    let config = Config::parse("f", file).unwrap();
    let metrics = Arc::new(Metrics::new());
    let pools = Pools::new(
        &config,
        &Connectors::default(),
        &metrics,
        Instant::now(),
        UNIX,
    );
    let pool = pools.get(PoolId(0));
    for claim in [Claim::default(), bound_to("n1"), session("s")] {
        assert!(
            pool.choose(
                &claim,
                RequestKind::Plain,
                &Tried::default(),
                Instant::now()
            )
            .is_err()
        );
    }
    assert!(!pool.is_ready());
}

#[test]
fn a_pool_is_ready_once_a_probe_was_answered() {
    let bench = Bench::unknown("least", &[1, 1], "{}");
    assert!(!bench.pool.is_ready());
    bench.probe("n2", ProbeResult::Good);
    assert!(bench.pool.is_ready());
    bench.probe("n2", ProbeResult::NoResponse(String::new()));
    assert!(bench.pool.is_ready(), "it may be restarting");
    bench.down("n2");
    assert!(!bench.pool.is_ready());
    bench.refuse("n1");
    assert_eq!(bench.backend("n1").state(), State::Suspect);
    assert!(!bench.pool.is_ready(), "it has never responded");
    (0..3).for_each(|_| bench.probe("n1", ProbeResult::UnexpectedResponse(String::new())));
    assert!(bench.pool.is_ready());
}

#[tokio::test]
async fn only_too_many_bad_responses_request_a_probe() {
    let bench = Bench::new("least", &[1, 1]);
    let backend = bench.backend("n1");
    let report = |evidence, at| bench.pool.report(&backend, evidence, bench.at(at));
    let is_probe_wanted = || backend.probe_wanted().now_or_never().is_some();
    for status in [400, 404, 429, 500, 200, 101] {
        let status = StatusCode::from_u16(status).unwrap();
        (0..100).for_each(|_| report(Evidence::Responded(status), 0));
    }
    (0..100).for_each(|_| report(Evidence::UpgradeRejected(StatusCode::FORBIDDEN), 0));
    assert!(!is_probe_wanted());
    let bad = [
        Evidence::Responded(StatusCode::BAD_GATEWAY),
        Evidence::UpgradeRejected(StatusCode::INTERNAL_SERVER_ERROR),
        Evidence::ConnectionLost,
        Evidence::TimedOut,
    ];
    for (minutes, evidence) in (1..).zip(bad) {
        (0..9).for_each(|_| report(evidence, 60 * minutes));
        assert!(!is_probe_wanted());
        report(evidence, 60 * minutes);
        assert!(is_probe_wanted());
        assert_eq!(backend.state(), State::Up);
    }
}

#[test]
fn a_backend_that_is_unreachable_until_its_grace_period_ends_is_down() {
    let bench = Bench::from_file(
        "pools: [{name: nodes, backends: [{id: n1, address: 'a:1'}, {id: n2, address: 'a:2'}]}]",
    );
    for id in ["n1", "n2"] {
        bench.probe(id, ProbeResult::Good);
    }
    let backend = bench.backend("n1");
    let mut health_status = backend.health_status();
    bench.refuse("n1");
    assert_eq!(backend.grace_end(), Some(bench.at(10)));
    assert!(health_status.has_changed().unwrap());
    assert_eq!(health_status.borrow_and_update().state, State::Suspect);
    (1..100).for_each(|_| bench.probe("n1", ProbeResult::Unreachable(String::new())));
    bench
        .pool
        .tick(&backend, bench.at(10) - Duration::from_millis(1));
    assert!(!health_status.has_changed().unwrap());
    assert!(is(&bench.choose(&bound_to("n1"), &[]), "n1", Hit));
    bench.pool.tick(&backend, bench.at(10));
    assert_eq!(health_status.borrow_and_update().state, State::Down);
    assert!(is(&bench.choose(&bound_to("n1"), &[]), "n2", Rebound));
}

#[test]
fn the_health_status_is_updated_by_each_response_to_a_probe() {
    let bench = Bench::new("least", &[1]);
    let mut health_status = bench.backend("n1").health_status();
    let before = health_status.borrow_and_update().responses;
    bench.probe("n1", ProbeResult::Good);
    assert_eq!(health_status.borrow_and_update().responses, before + 1);
    bench.refuse("n1");
    bench.probe("n1", ProbeResult::UnexpectedResponse("503".to_owned()));
    bench.probe("n1", ProbeResult::NoResponse("no response".to_owned()));
    let now = *health_status.borrow_and_update();
    assert_eq!((now.responses, now.state), (before + 2, State::Suspect));
    let waiting = bench.backend("n1").start_waiting();
    assert_eq!(bench.backend("n1").status(bench.start).waiting, 1);
    drop(waiting);
    assert_eq!(bench.backend("n1").status(bench.start).waiting, 0);
}

#[test]
fn the_cookie_has_the_current_unix_time() {
    let bench = Bench::new("least", &[1]);
    let cookie = bench
        .pool
        .set_cookie(&bench.backend("n1"), bench.at(5), Scheme::Http)
        .unwrap();
    let expected = format!("causeway=u1.n1.{}; ", UNIX.as_secs() + 5);
    assert!(cookie.to_str().unwrap().starts_with(&expected));
    let mut request = RequestHeader::build("GET", b"/", None).unwrap();
    request.insert_header("cookie", cookie).unwrap();
    let claim = bench.pool.affinity.read(&request, "/");
    assert!(is(&bench.choose(&claim, &[]), "n1", Hit));
}

#[test]
fn choices_and_states_are_counted() {
    let bench = Bench::new("least", &[1, 1]);
    bench.choose(&bound_to("n1"), &[]).unwrap();
    bench.choose(&bound_to("n1"), &["n1"]).unwrap();
    bench.refuse("n1");
    let page = bench.metrics.encode();
    for line in [
        r#"causeway_proxy_affinity_total{outcome="hit"} 1"#,
        r#"causeway_proxy_affinity_total{outcome="bound_anew"} 1"#,
        r#"causeway_proxy_connect_errors_total{backend="n1",kind="refused"} 1"#,
        r#"causeway_proxy_state{backend="n1",state="suspect"} 1"#,
        r#"causeway_proxy_state{backend="n1",state="up"} 0"#,
        r#"causeway_proxy_probes_total{backend="n2",result="good"} 1"#,
    ] {
        assert!(page.contains(line), "{line} in\n{page}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Probe(usize, ProbeResult),
    Refuse(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let result = prop_oneof![
        3 => Just(ProbeResult::Good),
        2 => Just(ProbeResult::NoResponse(String::new())),
        1 => Just(ProbeResult::UnexpectedResponse(String::new())),
        1 => Just(ProbeResult::Draining),
    ];
    prop_oneof![
        (1..5_usize, result).prop_map(|(n, result)| Step::Probe(n, result)),
        (1..5_usize).prop_map(Step::Refuse),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In all states: a tried backend is never chosen, new clients get a backend of the highest priority, and one is chosen as long
    /// as any backend gets clients.
    #[test]
    fn choices_follow_the_states(
        steps in prop::collection::vec(step(), 0..30),
        tried in prop::collection::vec(1..5_usize, 0..4),
        pick in prop_oneof![Just("least"), Just("random"), Just("round_robin")],
        claimed in 1..5_usize,
    ) {
        let bench = Bench::from_file(&format!("zone: east
pools:
  - name: nodes
    pick: {pick}
    backends:
      - {{id: n1, address: 'n:1', zone: east}}
      - {{id: n2, address: 'n:2', zone: west, weight: 2}}
      - {{id: n3, address: 'n:3', backup: true, weight: 3}}
      - {{id: n4, address: 'n:4', weight: 4}}
affinity: {{hold: 0s, hold_timeout: 0s}}"));
        for step in steps {
            match step {
                Step::Probe(n, result) => bench.probe(&format!("n{n}"), result),
                Step::Refuse(n) => bench.refuse(&format!("n{n}")),
            }
        }
        let tried: Vec<String> = tried.into_iter().map(|n| format!("n{n}")).collect();
        let tried: Vec<&str> = tried.iter().map(String::as_str).collect();
        let left = || bench.pool.backends().into_iter().filter(|b| !tried.contains(&b.id.as_str()));
        let best = left().filter_map(|backend| backend.priority()).min();
        match bench.choose(&Claim::default(), &tried) {
            Ok(choice) => prop_assert_eq!(choice.backend.priority(), best),
            Err(NoBackend) => prop_assert_eq!(best, None),
        }
        for claim in [bound_to(&format!("n{claimed}")), session(&format!("s{claimed}"))] {
            if let Ok(choice) = bench.choose(&claim, &tried) {
                prop_assert!(!tried.contains(&choice.backend.id.as_str()));
            }
        }
    }
}
