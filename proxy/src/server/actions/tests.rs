//! What the actions of operators do to backends, tunnels and settings.

use std::collections::HashMap;

use super::*;
use crate::balancer::affinity::Claim;
use crate::balancer::pool::{AffinityOutcome, ProbeResult, State};
use crate::server::scene::{Scene, TWO, bound_to};

#[test]
fn a_drained_backend_gets_nobody_until_it_is_ready_and_its_clients_do_not_come_back() {
    let scene = Scene::new(TWO, "");
    let (open, _count) = scene.open(&scene.backend("n1"));
    assert_eq!(
        scene.choose(&bound_to("n1")).unwrap().1,
        AffinityOutcome::Hit
    );
    assert_eq!(scene.drain("n1"), 1);
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
    scene.drain("n1");
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
    scene.drain("n1");
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
    assert_eq!(scene.drain("n1"), 1);
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

#[tokio::test]
async fn without_a_socket_for_it_no_successor_is_started() {
    let refused = Scene::new(TWO, "").actions.upgrade().await;
    assert!(matches!(refused, Err(ActionError::NoTakeover)));
}

#[tokio::test]
async fn without_a_file_there_is_nothing_to_reload() {
    let scene = Scene::new(TWO, "");
    let refused = scene.actions.reload(Run::Do).await;
    assert!(matches!(refused, Err(ActionError::NoFile)));
}
