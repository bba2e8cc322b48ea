//! Which tunnels a drain closes, and when.

use super::*;
use crate::balancer::pool::ProbeResult;
use crate::config::Config;
use crate::server::components::Components;
use crate::tunnel::{Entry, TunnelInfo};

const HOUR: Duration = Duration::from_secs(3600);

/// An edge with two backends that are up.
fn components(more: &str) -> Components {
    let text = format!(
        "pools: [{{ name: p, backends: [{{ id: n1, address: 'a:1' }}, {{ id: n2, address: 'a:2' }}] }}]\nlog: {{ access: off }}\n{more}"
    );
    let config = Config::parse("test.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"));
    Components::new(&config).unwrap()
}

fn backend(components: &Components, id: &str) -> Arc<Backend> {
    components.proxy.pools().find(id).unwrap().1
}

fn open(components: &Components, backend: &Backend, number: usize) -> Vec<Entry> {
    let info = || TunnelInfo::of(&backend.tunnels);
    let now = Instant::now();
    let open = |_| components.tunnels.register(info(), now);
    (0..number).map(open).collect()
}

fn closing(entries: &[Entry]) -> usize {
    let closing = entries
        .iter()
        .filter(|entry| entry.close_request() == Some(CloseRequest::BackendDrain));
    closing.count()
}

#[test]
fn the_tunnels_of_one_backend_are_closed_one_after_the_other_and_those_of_others_stay() {
    let components = components("");
    let (drains, n1, n2) = (
        &components.drains,
        backend(&components, "n1"),
        backend(&components, "n2"),
    );
    let (ours, others) = (open(&components, &n1, 3), open(&components, &n2, 3));
    let begun = Instant::now();
    assert_eq!(drains.start(&n1, Cause::Operator, HOUR, begun), 3);
    assert!(drains.close_due(begun).is_some());
    assert_eq!((closing(&ours), drains.left(&n1)), (1, Some(2)));
    drains.close_due(begun + HOUR / 2);
    assert_eq!(closing(&ours), 2);
    assert!(drains.close_due(begun + HOUR).is_none(), "it is over");
    assert_eq!((closing(&ours), drains.left(&n1)), (3, None));
    assert!(others.iter().all(|entry| entry.close_request().is_none()));
    let page = components.proxy.metrics.encode();
    assert!(
        page.contains("drains_total{backend=\"n1\",cause=\"operator\"} 1"),
        "{page}"
    );
    assert!(
        page.contains("drain_tunnels_left{backend=\"n1\"} 0"),
        "{page}"
    );
}

#[test]
fn a_second_drain_of_a_backend_goes_on_with_the_first() {
    let components = components("");
    let (drains, n1) = (&components.drains, backend(&components, "n1"));
    let ours = open(&components, &n1, 4);
    let begun = Instant::now();
    drains.start(&n1, Cause::Operator, HOUR, begun);
    drains.close_due(begun);
    let settings = Cause::Settings(DrainCause::Reload);
    assert_eq!(drains.start(&n1, settings, Duration::ZERO, begun), 3);
    drains.close_due(begun);
    assert_eq!(closing(&ours), 1);
}

#[test]
fn a_drain_that_is_called_off_closes_no_more() {
    let components = components("");
    let (drains, n1) = (&components.drains, backend(&components, "n1"));
    let ours = open(&components, &n1, 4);
    let begun = Instant::now();
    drains.start(&n1, Cause::Operator, HOUR, begun);
    drains.close_due(begun);
    drains.stop(&n1);
    assert!(drains.close_due(begun + HOUR).is_none());
    assert_eq!(closing(&ours), 1);
    // Also none whose request was on its way when the drain began.
    let info = TunnelInfo::of(&n1.tunnels);
    let late = components.tunnels.register(info, begun);
    assert_eq!(late.close_request(), None);
}

#[test]
fn a_drain_takes_the_place_of_a_rebalance_but_not_the_other_way_round() {
    let components = components("");
    let (drains, n1) = (&components.drains, backend(&components, "n1"));
    let ours = open(&components, &n1, 4);
    let begun = Instant::now();
    let some = components.tunnels.idlest_of(&n1.tunnels, 2);
    drains.rebalance(&n1, some.clone(), HOUR, begun);
    assert!(drains.is_rebalancing(&n1));
    drains.stop(&n1);
    assert_eq!(drains.left(&n1), Some(2), "it is no drain");
    assert_eq!(drains.start(&n1, Cause::Operator, Duration::ZERO, begun), 4);
    drains.rebalance(&n1, some, HOUR, begun);
    assert!(!drains.is_rebalancing(&n1));
    drains.close_due(begun);
    assert_eq!(closing(&ours), 4);
}

/// How many of three tunnels are closed when their backend announces that it drains.
fn closed_when_announced(more: &str) -> usize {
    let components = components(more);
    let n1 = backend(&components, "n1");
    let ours = open(&components, &n1, 3);
    let pools = components.proxy.pools();
    let (pool, _) = pools.find("n1").unwrap();
    pool.probed(&n1, ProbeResult::Good, Instant::now());
    pool.probed(&n1, ProbeResult::Draining, Instant::now());
    let config = components.reloader.drain_config();
    components.drains.start_announced(&pools, &config);
    components.drains.close_now();
    assert!(!n1.take_drain_announcement(), "it is looked at once");
    closing(&ours)
}

#[test]
fn an_announced_drain_closes_tunnels_if_the_settings_say_so() {
    let closes = "drain: { backend_spread: 0s, close_tunnels: [announced] }";
    assert_eq!(closed_when_announced(closes), 3);
    let others = "drain: { backend_spread: 0s, close_tunnels: [reload, discovery] }";
    assert_eq!(closed_when_announced(others), 0);
    assert_eq!(closed_when_announced(""), 0);
}
