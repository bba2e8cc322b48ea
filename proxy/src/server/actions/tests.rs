//! What the actions of operators do to backends, tunnels and settings.

use std::collections::HashMap;

use super::*;
use crate::balancer::affinity::{Binding, Claim, Freshness};
use crate::balancer::pool::{AffinityOutcome, ProbeResult, RequestKind, State, Tried};
use crate::config::Config;
use crate::server::components::Components;
use crate::tunnel::{Entry, TunnelInfo};

const TWO: &str = "{ id: n1, address: 'a:1' }, { id: n2, address: 'a:2' }";

fn config(backends: &str, more: &str) -> Config {
    let text =
        format!("pools: [{{ name: p, backends: [{backends}] }}]\nlog: {{ access: off }}\n{more}");
    Config::parse("test.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// An edge whose backends are up.
struct Scene {
    components: Components,
    actions: Actions,
}

impl Scene {
    fn new(backends: &str, more: &str) -> Self {
        let components = Components::new(&config(backends, more)).unwrap();
        let scene = Self {
            actions: components.actions(None),
            components,
        };
        scene.probe_all(&ProbeResult::Good);
        scene
    }

    fn pool(&self) -> Arc<Pool> {
        Arc::clone(self.components.proxy.pools().iter().next().unwrap())
    }

    fn backend(&self, id: &str) -> Arc<Backend> {
        self.components.proxy.pools().find(id).unwrap().1
    }

    fn state(&self, id: &str) -> State {
        self.backend(id).state()
    }

    fn probe_all(&self, result: &ProbeResult) {
        for backend in self.pool().backends() {
            self.pool().probed(&backend, result.clone(), Instant::now());
        }
    }

    fn reload(&self, backends: &str) {
        let config = config(backends, "");
        self.components
            .reloader
            .apply(&config, Instant::now())
            .unwrap();
    }

    /// Opens a tunnel to `backend`.
    fn open(&self, backend: &Arc<Backend>) -> (Entry, crate::balancer::pool::TunnelCount) {
        let info = TunnelInfo::of(&backend.tunnels);
        let entry = self.components.tunnels.register(info, Instant::now());
        (entry, backend.open_tunnel())
    }

    fn choose(&self, claim: &Claim) -> Option<(String, AffinityOutcome)> {
        let choice = self.pool().choose(
            claim,
            RequestKind::Upgrade,
            &Tried::default(),
            Instant::now(),
        );
        let choice = choice.ok()?;
        Some((choice.backend.id.to_string(), choice.affinity))
    }

    fn new_clients(&self) -> Vec<String> {
        let chosen = (0..20).filter_map(|_| self.choose(&Claim::default()));
        let mut ids: Vec<String> = chosen.map(|(id, _)| id).collect();
        ids.sort();
        ids.dedup();
        ids
    }
}

/// A client that was bound to `id` some time ago.
fn bound_to(id: &str) -> Claim {
    Claim {
        bindings: vec![Binding {
            id: id.parse().unwrap(),
            bound_at: 1,
            freshness: Freshness::Current,
        }],
        ..Claim::default()
    }
}

fn drained(scene: &Scene, id: &str) -> usize {
    let open = OpenTunnels::Close(Some(Duration::ZERO));
    let acted = scene.actions.drain(id, open, Force::No);
    acted.map(|acted| acted.closing).unwrap()
}

#[test]
fn a_drained_backend_gets_nobody_until_it_is_ready_and_its_clients_do_not_come_back() {
    let scene = Scene::new(TWO, "");
    let (open, _count) = scene.open(&scene.backend("n1"));
    assert_eq!(
        scene.choose(&bound_to("n1")).unwrap().1,
        AffinityOutcome::Hit
    );
    assert_eq!(drained(&scene, "n1"), 1);
    scene.components.drains.close_now();
    assert_eq!(open.close_request(), Some(CloseRequest::BackendDrain));
    assert_eq!(scene.state("n1"), State::Draining);
    // Whatever its probes say.
    scene.probe_all(&ProbeResult::Good);
    assert_eq!(scene.state("n1"), State::Draining);
    assert_eq!(scene.new_clients(), ["n2"]);
    let moved = ("n2".to_owned(), AffinityOutcome::Rebound);
    assert_eq!(scene.choose(&bound_to("n1")), Some(moved.clone()));

    scene.actions.ready("n1").unwrap();
    assert_eq!(scene.state("n1"), State::Up, "its last probe has passed");
    let back = scene.choose(&bound_to("n1")).unwrap();
    assert_eq!(
        back.1,
        AffinityOutcome::Rebound,
        "that was before the drain"
    );
}

#[test]
fn a_backend_in_maintenance_keeps_its_tunnels_and_is_still_probed() {
    let scene = Scene::new(TWO, "");
    let n1 = scene.backend("n1");
    let (open, _count) = scene.open(&n1);
    scene.actions.maintenance("n1", Force::No).unwrap();
    scene.components.drains.close_now();
    assert_eq!(open.close_request(), None);
    assert_eq!(scene.state("n1"), State::Maintenance);
    assert_eq!(scene.new_clients(), ["n2"]);
    assert_eq!(scene.choose(&bound_to("n1")).unwrap().0, "n2");
    assert!(n1.is_probed());
    // It fails meanwhile, so that it is not up when it is ready again.
    for _ in 0..3 {
        scene.probe_all(&ProbeResult::UnexpectedResponse("500".to_owned()));
    }
    scene.actions.ready("n1").unwrap();
    assert_eq!(scene.state("n1"), State::Down);
    let page = scene.components.proxy.metrics.encode();
    let lifted = "overrides{backend=\"n1\",override=\"maintenance\"} 0";
    assert!(page.contains(lifted), "{page}");
}

#[test]
fn what_an_operator_has_set_holds_over_a_reload_and_a_weight_does_not() {
    let scene = Scene::new(TWO, "");
    drained(&scene, "n1");
    scene.actions.set_weight("n2", 7).unwrap();
    let n2 = scene.backend("n2");
    assert_eq!((n2.weight(), n2.configured_weight()), (7, 1));
    scene.reload("{ id: n1, address: 'a:1' }, { id: n2, address: 'a:2', weight: 3 }");
    assert_eq!(scene.state("n1"), State::Draining);
    assert_eq!((n2.weight(), n2.configured_weight()), (3, 3));
    // The file is stronger than the operator, for as long as it says so.
    scene.reload("{ id: n1, address: 'a:1', maintenance: true }, { id: n2, address: 'a:2' }");
    assert_eq!(scene.state("n1"), State::Maintenance);
    assert!(matches!(
        scene.actions.ready("n1"),
        Err(ActionError::ByConfiguration(_))
    ));
    scene.reload(TWO);
    assert_eq!(scene.state("n1"), State::Draining);
    // At another address it is another server.
    scene.reload("{ id: n1, address: 'a:9' }, { id: n2, address: 'a:2' }");
    assert_eq!(scene.state("n1"), State::Unknown);
}

#[test]
fn a_weight_changes_what_new_clients_get() {
    let scene = Scene::new(TWO, "");
    scene.actions.set_weight("n2", 3).unwrap();
    let mut counts = HashMap::new();
    let mut open = Vec::new();
    for _ in 0..400 {
        let (id, _) = scene.choose(&Claim::default()).unwrap();
        open.push(scene.open(&scene.backend(&id)));
        *counts.entry(id).or_insert(0) += 1;
    }
    assert_eq!(counts["n1"], 100, "{counts:?}");
    for weight in [0, 1001, u64::MAX] {
        let refused = scene.actions.set_weight("n2", weight);
        assert!(matches!(refused, Err(ActionError::Weight(_))));
    }
}

#[test]
fn the_last_backend_in_service_is_taken_out_only_by_force() {
    let scene = Scene::new(TWO, "");
    drained(&scene, "n1");
    let refused = scene
        .actions
        .drain("n2", OpenTunnels::Keep, Force::No)
        .map(|_| ());
    assert!(matches!(refused, Err(ActionError::LastBackend { .. })));
    let refused = scene.actions.maintenance("n2", Force::No).map(|_| ());
    assert!(matches!(refused, Err(ActionError::LastBackend { .. })));
    assert_eq!(scene.state("n2"), State::Up);
    scene.actions.maintenance("n2", Force::Yes).unwrap();
    assert!(scene.new_clients().is_empty());
}

#[test]
fn a_removed_backend_can_be_emptied_and_nothing_else() {
    let scene = Scene::new(TWO, "");
    let (open, _count) = scene.open(&scene.backend("n1"));
    scene.reload("{ id: n2, address: 'a:2' }");
    assert_eq!(open.close_request(), None);
    for refused in [
        scene.actions.ready("n1"),
        scene.actions.maintenance("n1", Force::Yes),
        scene.actions.set_weight("n1", 2),
    ] {
        assert!(matches!(refused, Err(ActionError::Removed(_))));
    }
    assert_eq!(drained(&scene, "n1"), 1);
    scene.components.drains.close_now();
    assert_eq!(open.close_request(), Some(CloseRequest::BackendDrain));
}

#[test]
fn unknown_names_are_refused_with_those_that_exist() {
    let scene = Scene::new(TWO, "");
    let error = scene.actions.ready("n9").map(|_| ()).unwrap_err();
    expect_test::expect![[r#"there is no backend "n9"; the backends are n1, n2"#]]
        .assert_eq(&error.to_string());
    let error = scene.actions.rebalance(Some("q"), None, Run::Do);
    expect_test::expect![[r#"there is no pool "q"; the pools are p"#]]
        .assert_eq(&error.unwrap_err().to_string());
    let gone = scene
        .actions
        .close_tunnel(7, CloseRequest::OperatorRestart)
        .unwrap_err();
    expect_test::expect!["no tunnel has the number 7; it may have ended"]
        .assert_eq(&gone.to_string());
}

/// 120 tunnels at each of two backends, and a third one that has just come up.
fn scaled_out() -> (Scene, Vec<(Entry, crate::balancer::pool::TunnelCount)>) {
    let scene = Scene::new(TWO, "rebalance: { quiet: 1h }");
    let mut open = Vec::new();
    for id in ["n1", "n2"] {
        open.extend((0..120).map(|_| scene.open(&scene.backend(id))));
    }
    scene.components.reloader.apply(
        &config(
            "{ id: n1, address: 'a:1' }, { id: n2, address: 'a:2' }, { id: n3, address: 'a:3' }",
            "rebalance: { quiet: 1h }",
        ),
        Instant::now(),
    )
    .unwrap();
    scene.probe_all(&ProbeResult::Good);
    (scene, open)
}

/// Reconnects the clients of tunnels that are asked to close. How many those are.
fn reconnect(scene: &Scene, open: &mut Vec<(Entry, crate::balancer::pool::TunnelCount)>) -> usize {
    let is_closing = |(entry, _): &(Entry, _)| entry.close_request().is_some();
    let (closed, kept): (Vec<_>, Vec<_>) = open.drain(..).partition(is_closing);
    *open = kept;
    let moved = closed.len();
    for (entry, count) in closed {
        let id = entry.info().group.backend.to_string();
        drop((entry, count));
        let (id, _) = scene.choose(&bound_to(&id)).unwrap();
        open.push(scene.open(&scene.backend(&id)));
    }
    moved
}

#[test]
fn a_rebalance_moves_no_more_than_the_surplus_and_leaves_all_backends_even() {
    let (scene, mut open) = scaled_out();
    let dry = scene
        .actions
        .rebalance(None, Some(Duration::ZERO), Run::Dry)
        .unwrap();
    scene.components.drains.close_now();
    assert_eq!((dry.closing, reconnect(&scene, &mut open)), (80, 0));
    let done = scene
        .actions
        .rebalance(Some("p"), Some(Duration::ZERO), Run::Do)
        .unwrap();
    assert_eq!(done.closing, 80);
    scene.components.drains.close_now();
    assert_eq!(reconnect(&scene, &mut open), 80);
    for id in ["n1", "n2", "n3"] {
        assert_eq!(scene.backend(id).tunnels_open(), 80, "{id}");
    }
    let again = scene
        .actions
        .rebalance(None, Some(Duration::ZERO), Run::Do)
        .unwrap();
    assert_eq!(again.closing, 0);
}

#[test]
fn clients_that_were_moved_are_not_moved_again_within_the_quiet_time() {
    let (scene, mut open) = scaled_out();
    let rebalance = || {
        let done = scene.actions.rebalance(None, Some(Duration::ZERO), Run::Do);
        scene.components.drains.close_now();
        done.unwrap()
    };
    rebalance();
    reconnect(&scene, &mut open);
    // All clients of the first two leave: the third has only clients that were moved.
    open.retain(|(entry, _)| entry.info().group.backend.as_str() == "n3");
    let spared = rebalance();
    assert_eq!(spared.closing, 0);
    let n3 = spared.backends.iter().find(|share| share.backend == "n3");
    assert_eq!(n3.map(|share| share.spared), Some(80 - 27));
    assert_eq!(reconnect(&scene, &mut open), 0);
}

#[test]
fn a_rebalance_goes_by_weight_and_leaves_backends_alone_that_get_no_new_clients() {
    let (scene, mut open) = scaled_out();
    scene.actions.set_weight("n3", 2).unwrap();
    drained(&scene, "n2");
    scene.components.drains.stop(&scene.backend("n2"));
    scene
        .actions
        .rebalance(None, Some(Duration::ZERO), Run::Do)
        .unwrap();
    scene.components.drains.close_now();
    reconnect(&scene, &mut open);
    let tunnels = |id| scene.backend(id).tunnels_open();
    assert_eq!([tunnels("n1"), tunnels("n2"), tunnels("n3")], [40, 120, 80]);
}

#[test]
fn without_a_socket_for_it_no_successor_is_started() {
    let refused = Scene::new(TWO, "").actions.upgrade();
    assert!(matches!(refused, Err(ActionError::NoTakeover)));
}

#[tokio::test]
async fn without_a_file_there_is_nothing_to_reload() {
    let scene = Scene::new(TWO, "");
    let refused = scene.actions.reload(Run::Do).await;
    assert!(matches!(refused, Err(ActionError::NoFile)));
}
