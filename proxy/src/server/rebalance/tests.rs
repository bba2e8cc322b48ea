//! Which tunnels a rebalance moves, by an operator and by itself.

use super::*;
use crate::balancer::pool::ProbeResult;
use crate::server::scene::{OpenTunnel, Scene, TWO, bound_to};
use crate::tunnel::Entry;

const THREE: &str =
    "{ id: n1, address: 'a:1' }, { id: n2, address: 'a:2' }, { id: n3, address: 'a:3' }";

const SECOND: Duration = Duration::from_secs(1);

/// 120 tunnels at each of two backends, and a third one that has just come up.
fn scaled_out() -> (Scene, Vec<OpenTunnel>) {
    scaled_out_with("rebalance: { quiet: 1h }", 120)
}

/// The same with other settings, and `each` tunnels.
fn scaled_out_with(settings: &str, each: usize) -> (Scene, Vec<OpenTunnel>) {
    let scene = Scene::new(TWO, settings);
    let mut open = Vec::new();
    for id in ["n1", "n2"] {
        open.extend((0..each).map(|_| scene.open(&scene.backend(id))));
    }
    scene.reload_with(THREE, settings);
    scene.probe_all(&ProbeResult::Good);
    (scene, open)
}

/// The background task of an edge, with a clock that tests set.
struct ByItself<'a> {
    scene: &'a Scene,
    watched: Watched,
    start: Instant,
}

impl<'a> ByItself<'a> {
    fn of(scene: &'a Scene) -> Self {
        Self {
            scene,
            watched: Watched::new(None),
            start: Instant::now(),
        }
    }

    /// What it does after so many seconds: how many tunnels it closes.
    fn moves_at(&mut self, seconds: u32, open: &mut Vec<OpenTunnel>) -> usize {
        let components = &self.scene.components;
        let (pools, now) = (components.proxy.pools(), self.start + seconds * SECOND);
        let rebalancer = &components.rebalancer;
        rebalancer.rebalance_uneven(&mut self.watched, &pools, now);
        components.drains.close_now();
        reconnect(self.scene, open)
    }
}

/// Reconnects the clients of tunnels that are asked to close. How many those are.
fn reconnect(scene: &Scene, open: &mut Vec<OpenTunnel>) -> usize {
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
    scene.drain("n2");
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

const BY_ITSELF: &str = "rebalance: { threshold: 20, after: 30s, spread: 0s, quiet: 10m }";

#[test]
fn an_uneven_pool_is_rebalanced_by_itself_once_its_backends_have_been_the_same_for_long_enough() {
    let (scene, mut open) = scaled_out_with(BY_ITSELF, 120);
    let mut edge = ByItself::of(&scene);
    assert_eq!([0, 20].map(|at| edge.moves_at(at, &mut open)), [0, 0]);
    // One is restarted: the time begins anew when it is back, and anew when its weight changes.
    scene.drain("n3");
    assert_eq!(edge.moves_at(25, &mut open), 0);
    scene.actions.ready("n3").unwrap();
    assert_eq!([26, 55].map(|at| edge.moves_at(at, &mut open)), [0, 0]);
    scene.actions.set_weight("n3", 2).unwrap();
    assert_eq!([56, 85].map(|at| edge.moves_at(at, &mut open)), [0, 0]);
    assert_eq!(edge.moves_at(86, &mut open), 120);
    let tunnels = |id| scene.backend(id).tunnels_open();
    assert_eq!(["n1", "n2", "n3"].map(tunnels), [60, 60, 120]);
}

#[test]
fn nobody_is_moved_by_itself_within_the_quiet_time_of_a_rebalance_or_a_takeover() {
    let (scene, mut open) = scaled_out_with(BY_ITSELF, 120);
    let mut edge = ByItself::of(&scene);
    edge.watched.took_over = Some(edge.start);
    assert_eq!([0, 599].map(|at| edge.moves_at(at, &mut open)), [0, 0]);
    assert_eq!(edge.moves_at(600, &mut open), 80);
    // All clients of the first leave, so that the others have too many; but some of theirs were moved.
    open.retain(|(entry, _)| entry.info().group.backend.as_str() != "n1");
    assert_eq!([601, 1190].map(|at| edge.moves_at(at, &mut open)), [0, 0]);
}

#[test]
fn a_pool_is_not_rebalanced_by_itself_below_the_threshold_for_few_tunnels_or_unless_it_is_set() {
    let settings = |threshold: &str| format!("rebalance: {{ {threshold}after: 0s, spread: 0s }}");
    for (threshold, each, moved) in [
        // With three backends instead of two, each of two has half as many again as its share.
        ("threshold: 50, ", 120, 0),
        ("threshold: 49, ", 120, 80),
        ("threshold: 5, ", 27, 0),
        ("threshold: 5, ", 30, 20),
        ("", 120, 0),
        ("threshold: null, ", 120, 0),
    ] {
        let (scene, mut open) = scaled_out_with(&settings(threshold), each);
        let mut edge = ByItself::of(&scene);
        let at = [0, 1].map(|at| edge.moves_at(at, &mut open));
        assert_eq!(at, [0, moved], "{threshold}{each}");
    }
}
