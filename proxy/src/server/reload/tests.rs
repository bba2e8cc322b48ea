use std::collections::HashSet;

use super::*;
use crate::balancer::affinity::Binding;
use crate::balancer::affinity::Claim;
use crate::balancer::affinity::Freshness;
use crate::balancer::affinity::SessionKey;
use crate::balancer::pool::AffinityOutcome;
use crate::balancer::pool::Backend;
use crate::balancer::pool::Pool;
use crate::balancer::pool::ProbeResult;
use crate::balancer::pool::RequestKind;
use crate::balancer::pool::State;
use crate::balancer::pool::Tried;
use crate::server::components::Components;
use crate::server::reload::plan::BackendChange;

/// The settings of one pool with these backends.
fn config(backends: &str) -> Config {
    configured(backends, "")
}

fn configured(backends: &str, more: &str) -> Config {
    let text = format!(
        "pools: [{{ name: p, backends: [{backends}] }}]\nroutes: [{{ path: /, pool: p }}]\nlog: {{ access: off }}\n{more}"
    );
    Config::parse("test.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"))
}

const N1: &str = "{ id: n1, address: '127.0.0.1:1' }";
const N2: &str = "{ id: n2, address: '127.0.0.1:2' }";
const N3: &str = "{ id: n3, address: '127.0.0.1:3' }";

/// An edge in which every backend is up.
struct Scene {
    components: Components,
    now: Instant,
}

impl Scene {
    fn new(backends: &str) -> Self {
        let scene = Self {
            components: Components::new(&config(backends)).unwrap(),
            now: Instant::now(),
        };
        scene.all_up();
        scene
    }

    fn all_up(&self) {
        for backend in self.pool().backends() {
            self.pool().probed(&backend, ProbeResult::Good, self.now);
        }
    }

    fn reload(&self, backends: &str) {
        self.components
            .reloader
            .apply(&config(backends), self.now)
            .unwrap();
    }

    fn pool(&self) -> Arc<Pool> {
        let pools = self.components.proxy.pools();
        let pool = pools.iter().next().unwrap();
        Arc::clone(pool)
    }

    fn backend(&self, id: &str) -> Option<Arc<Backend>> {
        let all = self.pool().backends();
        all.into_iter().find(|backend| backend.id.as_str() == id)
    }

    fn state(&self, id: &str) -> Option<State> {
        Some(self.backend(id)?.state())
    }

    /// The backend that is chosen for a client with this claim.
    fn choose(&self, claim: &Claim) -> (String, AffinityOutcome) {
        let choice = self
            .pool()
            .choose(claim, RequestKind::Plain, &Tried::default(), self.now);
        let choice = choice.unwrap();
        (choice.backend.id.to_string(), choice.affinity)
    }

    /// The backends that are chosen for many new clients.
    fn chosen_for_new_clients(&self) -> HashSet<String> {
        let mut seen = HashSet::new();
        for _ in 0..50 {
            seen.insert(self.choose(&Claim::default()).0);
        }
        seen
    }
}

fn bound_to(id: &str) -> Claim {
    Claim {
        bindings: vec![Binding {
            id: id.parse().unwrap(),
            bound_at: 999_999_999_999,
            freshness: Freshness::Current,
        }],
        ..Claim::default()
    }
}

fn session(id: &str) -> Claim {
    Claim {
        session: Some(SessionKey::new(id)),
        ..Claim::default()
    }
}

fn names(ids: &[&str]) -> HashSet<String> {
    ids.iter().map(ToString::to_string).collect()
}

#[test]
fn a_reload_keeps_backends_that_stay_and_adds_new_ones() {
    let scene = Scene::new(&format!("{N1}, {N2}"));
    let before = scene.backend("n1").unwrap();
    let _tunnel = before.open_tunnel();
    scene.reload(&format!("{N3}, {N1}, {N2}"));
    let after = scene.backend("n1").unwrap();
    assert!(Arc::ptr_eq(&before, &after));
    assert_eq!(after.status(scene.now).tunnels, 1);
    assert_eq!(scene.state("n1"), Some(State::Up));
    assert_eq!(scene.state("n3"), Some(State::Unknown));
    scene.all_up();
    assert_eq!(scene.chosen_for_new_clients(), names(&["n1", "n2", "n3"]));
    assert_eq!(scene.choose(&bound_to("n1")).1, AffinityOutcome::Hit);
}

#[test]
fn sessions_stay_at_their_backend_when_backends_are_added() {
    let scene = Scene::new(&format!("{N1}, {N2}"));
    let sessions: Vec<Claim> = (0..500)
        .map(|number| session(&format!("s{number}")))
        .collect();
    let before: Vec<String> = sessions.iter().map(|claim| scene.choose(claim).0).collect();
    scene.reload(&format!("{N1}, {N2}, {N3}"));
    scene.all_up();
    for (claim, before) in sessions.iter().zip(before) {
        assert_eq!(scene.choose(claim), (before, AffinityOutcome::Hit));
    }
    let new = (0..500).map(|number| scene.choose(&session(&format!("t{number}"))).0);
    assert!(new.into_iter().any(|id| id == "n3"), "the ring has it too");
}

#[test]
fn a_removed_backend_keeps_its_sessions_and_gets_no_other_clients() {
    let scene = Scene::new(&format!("{N1}, {N2}"));
    let held = (0..).map(|number| session(&format!("s{number}")));
    let held = held
        .into_iter()
        .find(|claim| scene.choose(claim).0 == "n1")
        .unwrap();
    scene.reload(N2);
    assert_eq!(scene.state("n1"), Some(State::Draining));
    assert_eq!(scene.choose(&held), ("n1".to_owned(), AffinityOutcome::Hit));
    assert_eq!(
        scene.choose(&bound_to("n1")),
        ("n2".to_owned(), AffinityOutcome::Rebound)
    );
    assert_eq!(scene.chosen_for_new_clients(), names(&["n2"]));
    // Not even if no other backend is up.
    let n2 = scene.backend("n2").unwrap();
    for _ in 0..10 {
        let gone = ProbeResult::UnexpectedResponse("bad".to_owned());
        scene.pool().probed(&n2, gone, scene.now);
    }
    assert_eq!(scene.state("n2"), Some(State::Down));
    assert_eq!(scene.choose(&bound_to("n1")).0, "n2");
}

#[test]
fn a_removed_backend_is_forgotten_once_it_is_unused() {
    let scene = Scene::new(&format!("{N1}, {N2}"));
    let n1 = scene.backend("n1").unwrap();
    let tunnel = n1.open_tunnel();
    scene.reload(N2);
    let after = |seconds| scene.now + Duration::from_secs(seconds);
    let forget = |seconds| {
        scene.components.reloader.forget(after(seconds));
        scene.backend("n1").is_none()
    };
    assert!(!forget(0) && !forget(1000), "it has a tunnel");
    drop(tunnel);
    assert!(!forget(1001) && !forget(1060));
    // A short request of a session in between.
    n1.metrics.responded(http::StatusCode::OK);
    assert!(!forget(1061) && !forget(1120));
    assert!(forget(1121));
    let page = scene.components.proxy.metrics.encode();
    assert!(!page.contains("backend=\"n1\""), "{page}");
    assert!(page.contains("state{backend=\"n2\""), "{page}");
}

#[test]
fn a_removed_backend_can_be_added_again() {
    let scene = Scene::new(&format!("{N1}, {N2}"));
    let before = scene.backend("n1").unwrap();
    scene.reload(N2);
    // The result of a probe that was running does not change its state.
    scene.pool().probed(&before, ProbeResult::Good, scene.now);
    assert_eq!(scene.state("n1"), Some(State::Draining));
    scene.reload(&format!("{N1}, {N2}"));
    assert!(Arc::ptr_eq(&before, &scene.backend("n1").unwrap()));
    assert_eq!(scene.state("n1"), Some(State::Unknown));
    scene.all_up();
    assert_eq!(scene.chosen_for_new_clients(), names(&["n1", "n2"]));
}

#[test]
fn weight_and_maintenance_change_in_place() {
    let scene = Scene::new(&format!("{N1}, {N2}"));
    let n1 = scene.backend("n1").unwrap();
    scene.reload(&format!(
        "{{ id: n1, address: '127.0.0.1:1', weight: 7, maintenance: true }}, {N2}"
    ));
    assert_eq!((n1.weight(), n1.state()), (7, State::Maintenance));
    assert_eq!(scene.chosen_for_new_clients(), names(&["n2"]));
    scene.reload(&format!("{N1}, {N2}"));
    assert_eq!((n1.weight(), n1.state()), (1, State::Unknown));
}

#[test]
fn zone_and_backup_change_in_place_and_tunnels_stay() {
    let scene = Scene::new(&format!("{N1}, {N2}"));
    let n1 = scene.backend("n1").unwrap();
    let _tunnel = n1.open_tunnel();
    scene.reload(&format!(
        "{{ id: n1, address: '127.0.0.1:1', zone: east, backup: true }}, {N2}"
    ));
    assert!(Arc::ptr_eq(&n1, &scene.backend("n1").unwrap()));
    assert_eq!(n1.zone().as_deref(), Some("east"));
    assert_eq!(n1.status(scene.now).tunnels, 1);
    assert_eq!(scene.state("n1"), Some(State::Up));
    assert_eq!(scene.chosen_for_new_clients(), names(&["n2"]));
    scene.reload(&format!("{N1}, {N2}"));
    assert_eq!(scene.chosen_for_new_clients(), names(&["n1", "n2"]));
}

#[test]
fn a_backend_with_a_new_address_is_a_new_backend_for_the_same_clients() {
    let scene = Scene::new(&format!("{N1}, {N2}"));
    let before = scene.backend("n1").unwrap();
    let _tunnel = before.open_tunnel();
    scene.reload(&format!("{{ id: n1, address: '127.0.0.1:9' }}, {N2}"));
    let after = scene.backend("n1").unwrap();
    assert!(!Arc::ptr_eq(&before, &after));
    assert_eq!(after.state(), State::Unknown);
    assert_eq!(after.status(scene.now).tunnels, 0);
    assert_eq!(scene.choose(&bound_to("n1")).0, "n1");
}

#[test]
fn pools_are_matched_by_name_and_subscribers_see_the_change() {
    let scene = Scene::new(N1);
    let mut subscription = scene.components.reloader.pools();
    let text = format!(
        "pools: [{{ name: q, backends: [{N2}] }}, {{ name: p, backends: [{N1}] }}]\nroutes: [{{ path: /, pool: q }}]\nlog: {{ access: off }}\n"
    );
    let before = scene.backend("n1").unwrap();
    let two = Config::parse("test.yaml", &text).unwrap();
    scene.components.reloader.apply(&two, scene.now).unwrap();
    assert!(subscription.has_changed().unwrap());
    let pools = Arc::clone(&subscription.borrow_and_update());
    let found: Vec<String> = pools.iter().map(|pool| pool.name.clone()).collect();
    assert_eq!(found, ["q", "p"]);
    let after = pools.iter().nth(1).unwrap().backends().remove(0);
    assert!(Arc::ptr_eq(&before, &after));
}

#[tokio::test]
async fn a_file_that_is_not_valid_changes_nothing() {
    let scene = Scene::new(N1);
    let before = scene.components.proxy.pools();
    let file = std::env::temp_dir().join(format!("causeway-reload-{}", fastrand::u64(..)));
    std::fs::write(&file, "pools: []\n").unwrap();
    let load = |file: PathBuf| move || Config::load(&file);
    let refused = scene.components.reloader.reload(load(file.clone())).await;
    assert!(refused.is_err());
    std::fs::remove_file(&file).unwrap();
    let refused = scene.components.reloader.reload(load(file)).await;
    assert!(refused.is_err());
    assert!(Arc::ptr_eq(&before, &scene.components.proxy.pools()));
    let page = scene.components.proxy.metrics.encode();
    assert!(
        page.contains("reloads_total{outcome=\"refused\"} 2"),
        "{page}"
    );
    assert!(page.contains("configuration_ok 0"), "{page}");
    scene.reload(N1);
    let page = scene.components.proxy.metrics.encode();
    assert!(page.contains("configuration_ok 1"), "{page}");
}

#[test]
fn settings_that_need_a_restart_are_named() {
    let before = config(N1);
    assert_eq!(fixed(&before, &config(N2)), [""; 0]);
    let reloadable = "limits: { retries: 5, retry_budget: 1, waiting: 7, requests: 3, handshakes_per_address: 9 }\naffinity: { hold: 1s, cookie: c }\nhealth: { fall: 9 }\ntrusted_proxies: [10.0.0.0/8]\ndrain: { late: 3s }\nrebalance: { quiet: 1s }\nadmin: { token: 0123456789abcdef }\n";
    assert_eq!(fixed(&before, &configured(N1, reloadable)), [""; 0]);
    for (more, name) in [
        ("listeners: [{ address: '127.0.0.1:7' }]", "listeners"),
        ("admin: { address: '127.0.0.1:7' }", "admin.address"),
        ("admin: { socket: /run/edge.sock }", "admin.socket"),
        ("takeover: { socket: /run/edge.sock }", "takeover"),
        ("threads: 3", "threads"),
        ("websockets_over_http2: true", "websockets_over_http2"),
        ("timeouts: { head: 3s }", "timeouts"),
        (
            "affinity: { sockjs_sessions: 3000 }",
            "affinity.sockjs_sessions",
        ),
        ("limits: { connections: 3000 }", "limits.connections"),
        ("limits: { head_size: 3KiB }", "limits.head_size"),
    ] {
        assert_eq!(fixed(&before, &configured(N1, more)), [name], "{more}");
    }
}

fn discovering(more: &str) -> Config {
    discovering_at("redis://127.0.0.1:1", more)
}

fn discovering_at(url: &str, more: &str) -> Config {
    let text = format!(
        "pools: [{{ name: p, backends: [{N1}], discover: {{ redis: '{url}'{more} }} }}]\n\
         routes: [{{ path: /, pool: p }}]\nlog: {{ access: off }}"
    );
    Config::parse("test.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// Reports these backends as found by the current discovery of the only pool.
fn find(scene: &Scene, backends: &str) {
    let discovery = current_discovery(scene);
    let reloader = &scene.components.reloader;
    reloader.found(&discovery, found(backends), scene.now);
}

fn current_discovery(scene: &Scene) -> Discovery {
    scene.components.reloader.discoveries().borrow()[0].clone()
}

fn found(backends: &str) -> Vec<BackendConfig> {
    config(backends).pools.remove(0).backends
}

#[test]
fn discovered_backends_are_added_to_those_of_the_file_and_removed_again() {
    let scene = Scene::new(N1);
    let reloader = &scene.components.reloader;
    reloader.apply(&discovering(""), scene.now).unwrap();
    find(&scene, &format!("{N2}, {N3}"));
    scene.all_up();
    assert_eq!(scene.chosen_for_new_clients(), names(&["n1", "n2", "n3"]));
    let n2 = scene.backend("n2").unwrap();
    find(&scene, N2);
    assert_eq!(scene.chosen_for_new_clients(), names(&["n1", "n2"]));
    // A reload keeps discovered backends as long as the registry is the same.
    for same in ["", ", every: 5s", ", allow: [127.0.0.0/8]"] {
        reloader.apply(&discovering(same), scene.now).unwrap();
        assert!(Arc::ptr_eq(&n2, &scene.backend("n2").unwrap()));
        assert_eq!(
            scene.chosen_for_new_clients(),
            names(&["n1", "n2"]),
            "{same}"
        );
        assert_eq!(reloader.known("p").len(), 1);
    }
    let elsewhere = discovering_at("redis://127.0.0.1:2", "");
    reloader.apply(&elsewhere, scene.now).unwrap();
    assert_eq!(scene.chosen_for_new_clients(), names(&["n1"]));
}

#[test]
fn new_credentials_do_not_make_it_another_registry() {
    let scene = Scene::new(N1);
    let reloader = &scene.components.reloader;
    let apply = |url: &str| {
        reloader.apply(&discovering_at(url, ""), scene.now).unwrap();
        scene.all_up();
        scene.chosen_for_new_clients()
    };
    apply("redis://:old@127.0.0.1:1");
    find(&scene, N2);
    assert_eq!(apply("redis://u:new@127.0.0.1:1"), names(&["n1", "n2"]));
    assert_eq!(apply("redis://u:new@127.0.0.1:1/3"), names(&["n1"]));
}

#[test]
fn results_of_a_former_discovery_are_ignored() {
    let scene = Scene::new(N1);
    let reloader = &scene.components.reloader;
    reloader.apply(&discovering(""), scene.now).unwrap();
    find(&scene, N2);
    let stale = current_discovery(&scene);
    // Another registry, another allow list, or no discovery at all.
    let elsewhere = discovering_at("redis://127.0.0.1:2", "");
    for after in [elsewhere, discovering(", allow: [10.0.0.0/8]"), config(N1)] {
        reloader.apply(&after, scene.now).unwrap();
        reloader.found(&stale, found(&format!("{N2}, {N3}")), scene.now);
        scene.all_up();
        assert_eq!(scene.chosen_for_new_clients(), names(&["n1"]));
    }
    // Nor is the result of an earlier discovery with the same settings used.
    reloader.apply(&discovering(""), scene.now).unwrap();
    reloader.found(&stale, found(N2), scene.now);
    assert_eq!(scene.chosen_for_new_clients(), names(&["n1"]));
}

#[test]
fn ever_new_ids_grow_no_table_and_leave_no_series() {
    let scene = Scene::new(N1);
    let reloader = &scene.components.reloader;
    reloader.apply(&discovering(""), scene.now).unwrap();
    let start = scene.components.proxy.metrics.encode().lines().count();
    let nodes = |round: usize, number: usize| {
        let node = |index| {
            let index = round * 10_000 + index;
            format!("{{ id: m{index}, address: 'm{index}.example:9000' }}")
        };
        let all: Vec<String> = (0..number).map(node).collect();
        all.join(", ")
    };
    let pool_len = || scene.pool().len();
    find(&scene, &nodes(0, 6_000));
    assert_eq!(pool_len(), 6_001);
    // The first ones are removed, and count until they are forgotten.
    find(&scene, &nodes(1, 6_000));
    assert_eq!(pool_len(), 10_000);
    let later = |seconds| scene.now + Duration::from_secs(seconds);
    reloader.forget(later(1));
    assert_eq!(pool_len(), 10_000);
    reloader.forget(later(61));
    assert_eq!(pool_len(), 6_001, "now there is room for all");
    let backend = scene.backend("m15999").unwrap();
    backend.metrics.waited("returned");
    backend.metrics.connect_failed("refused");
    backend
        .metrics
        .tunnel_closed("client", Duration::from_secs(1), 1, 1);
    let host = |index: usize| (format!("m{index}.example"), 9000);
    assert!(scene.components.names.knows(&host(15_999)));
    reloader.found(&current_discovery(&scene), Vec::new(), scene.now);
    drop(backend);
    reloader.forget(later(62));
    reloader.forget(later(130));
    assert_eq!(pool_len(), 1);
    assert!(
        !scene.components.names.knows(&host(0)) && !scene.components.names.knows(&host(15_999))
    );
    let page = scene.components.proxy.metrics.encode();
    assert!(!page.contains("backend=\"m"), "{page}");
    assert_eq!(page.lines().count(), start);
}

#[test]
fn a_node_with_the_id_of_another_backend_is_not_used() {
    let scene = Scene::new(N1);
    let reloader = &scene.components.reloader;
    reloader.apply(&discovering(""), scene.now).unwrap();
    let duplicate = "{ id: n1, address: '127.0.0.1:9' }";
    find(&scene, &format!("{duplicate}, {N2}"));
    scene.all_up();
    assert_eq!(scene.chosen_for_new_clients(), names(&["n1", "n2"]));
    let address = scene.backend("n1").unwrap().address.to_string();
    assert_eq!(address, "127.0.0.1:1");
}

#[test]
fn discoveries_change_only_with_their_settings() {
    let scene = Scene::new(N1);
    let reloader = &scene.components.reloader;
    let mut discoveries = reloader.discoveries();
    assert!(discoveries.borrow_and_update().is_empty());
    reloader.apply(&discovering(""), scene.now).unwrap();
    assert!(discoveries.has_changed().unwrap());
    assert_eq!(discoveries.borrow_and_update()[0].pool, "p");
    reloader.apply(&discovering(""), scene.now).unwrap();
    assert!(!discoveries.has_changed().unwrap());
}

/// Opens a tunnel to `id`, in the registry and in the backend's count.
fn open(scene: &Scene, id: &str) -> (crate::tunnel::Entry, crate::balancer::pool::TunnelCount) {
    let backend = scene.backend(id).unwrap();
    let info = crate::tunnel::TunnelInfo::of(&backend.tunnels);
    let entry = scene.components.tunnels.register(info, Instant::now());
    (entry, backend.open_tunnel())
}

#[test]
fn a_reload_closes_tunnels_of_backends_that_it_removes_only_if_the_settings_say_so() {
    let closes = "drain: { backend_spread: 0s, close_tunnels: [reload] }";
    let moved = "{ id: n2, address: '127.0.0.1:9' }";
    for (more, backends, id, is_closed) in [
        ("", N2, "n1", false),
        (
            "drain: { close_tunnels: [announced, discovery] }",
            N2,
            "n1",
            false,
        ),
        (closes, N2, "n1", true),
        (closes, N2, "n2", false),
        (closes, moved, "n2", true),
        ("", moved, "n2", false),
    ] {
        let scene = Scene::new(&format!("{N1}, {N2}"));
        let (entry, _count) = open(&scene, id);
        let config = configured(backends, more);
        scene.components.reloader.apply(&config, scene.now).unwrap();
        scene.components.drains.close_now();
        assert_eq!(
            entry.close_request().is_some(),
            is_closed,
            "{more} {backends} {id}"
        );
    }
}

#[test]
fn discovery_closes_tunnels_of_nodes_that_are_gone_only_if_the_settings_say_so() {
    for (causes, is_closed) in [
        ("[]", false),
        ("[reload, announced]", false),
        ("[discovery]", true),
    ] {
        let scene = Scene::new(N1);
        let text = format!(
            "pools: [{{ name: p, backends: [{N1}], discover: {{ redis: 'redis://127.0.0.1:1' }} }}]\n\
             log: {{ access: off }}\ndrain: {{ backend_spread: 0s, close_tunnels: {causes} }}"
        );
        let config = Config::parse("test.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"));
        scene.components.reloader.apply(&config, scene.now).unwrap();
        find(&scene, N2);
        let (kept, _kept_count) = open(&scene, "n1");
        let (entry, _count) = open(&scene, "n2");
        let none = current_discovery(&scene);
        scene
            .components
            .reloader
            .found(&none, Vec::new(), scene.now);
        scene.components.drains.close_now();
        assert_eq!(entry.close_request().is_some(), is_closed, "{causes}");
        assert_eq!(kept.close_request(), None);
    }
}

#[test]
fn a_plan_says_what_would_change_and_changes_nothing() {
    let scene = Scene::new(&format!("{N1}, {N2}"));
    let (entry, _count) = open(&scene, "n1");
    let before = scene.components.proxy.pools();
    let after = configured(
        "{ id: n2, address: '127.0.0.1:2', weight: 3, backup: true }, { id: n3, address: '127.0.0.1:3' }",
        "drain: { close_tunnels: [reload] }\nthreads: 7\n",
    );
    let plan = scene
        .components
        .reloader
        .plan(&after, ChangedBy::Restart)
        .unwrap();
    let shown = serde_json::to_string_pretty(&plan).unwrap();
    expect_test::expect![[r#"
        {
          "sections": [
            "pools",
            "drain",
            "threads"
          ],
          "needs_restart": [
            "threads"
          ],
          "hands_over": false,
          "backends": [
            {
              "pool": "p",
              "backend": "n2",
              "change": "changed",
              "settings": [
                "weight",
                "backup"
              ],
              "tunnels": 0,
              "closes_tunnels": false
            },
            {
              "pool": "p",
              "backend": "n3",
              "change": "added",
              "tunnels": 0,
              "closes_tunnels": false
            },
            {
              "pool": "p",
              "backend": "n1",
              "change": "removed",
              "tunnels": 1,
              "closes_tunnels": true
            }
          ],
          "tunnels_closed": 1,
          "warnings": []
        }"#]]
    .assert_eq(&shown);
    assert!(Arc::ptr_eq(&before, &scene.components.proxy.pools()));
    assert_eq!(entry.close_request(), None);
    let applied = scene.components.reloader.apply(&after, scene.now).unwrap();
    assert_eq!(applied, plan);
}

#[test]
fn a_plan_keeps_discovered_backends_as_the_reload_does() {
    let scene = Scene::new(N1);
    let reloader = &scene.components.reloader;
    reloader.apply(&discovering(""), scene.now).unwrap();
    find(&scene, N2);
    assert_eq!(
        reloader
            .plan(&discovering(""), ChangedBy::Restart)
            .unwrap()
            .backends,
        []
    );
    for gone in [
        discovering(", allow: [10.0.0.0/8]"),
        discovering_at("redis://127.0.0.1:2", ""),
        config(N1),
    ] {
        let plan = reloader.plan(&gone, ChangedBy::Restart).unwrap().backends;
        assert_eq!(plan.len(), 1);
        assert_eq!(
            (&*plan[0].backend, plan[0].change),
            ("n2", BackendChange::Removed)
        );
    }
}

#[test]
fn a_successor_takes_over_only_for_settings_that_a_running_process_cannot_change() {
    let scene = Scene::new(&format!("{N1}, {N2}"));
    let (_entry, _count) = open(&scene, "n1");
    let reloader = &scene.components.reloader;
    for (more, hands_over, closed) in [
        ("drain: { late: 1s }", false, 0),
        // What the successor has no backend for stays with this process, which ends.
        ("threads: 7", true, 1),
        ("timeouts: { connect: 3s }", true, 1),
        ("listeners: [{ address: '127.0.0.1:1' }]", true, 1),
        ("takeover: { socket: /s }", true, 1),
    ] {
        let after = configured(N2, more);
        let plan = reloader.plan(&after, ChangedBy::Successor).unwrap();
        assert_eq!(plan.hands_over, hands_over, "{more}");
        assert_eq!(plan.tunnels_closed, closed, "{more}");
        let plan = reloader.plan(&after, ChangedBy::Restart).unwrap();
        assert!(!plan.hands_over, "{more}");
        assert_eq!(plan.tunnels_closed, 0, "{more}");
    }
}
