//! Restarts of nodes, upgrades of the edge and a new node, of which clients over WebSocket notice nothing. And what checks that finds
//! a handoff that goes wrong.
//!
//! `make continuity` has the same with thousands of clients, and pauses that are no longer than they may be.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use causeway_tests::{
    chaos::violation::Kind,
    continuity::{
        self, Pace, Plan, Scenario,
        report::Report,
        requests::RequestsPlan,
        rivals::{self, Happening, System},
    },
};
use tokio::sync::Mutex;

/// One at a time: two at once would only measure each other.
static TURN: Mutex<()> = Mutex::const_new(());

fn plan(scenario: Scenario) -> Plan {
    Plan {
        scenario,
        clients: 240,
        rate: 60,
        nodes: 3,
        pace: Pace::Short,
        sabotage: None,
        pauses: None,
    }
}

async fn run(plan: &Plan) -> Result<Report> {
    let _turn = TURN.lock().await;
    let report = continuity::run(plan).await?;
    eprintln!("{}", report.outcome);
    Ok(report)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_all_nodes_is_noticed_by_no_websocket() -> Result<()> {
    let report = run(&plan(Scenario::Nodes { rounds: 1 })).await?;
    assert!(report.failures().is_empty(), "{}", report.outcome);
    // Each client was on one node when that was stopped.
    assert!(216 <= report.handoffs.moved, "{}", report.outcome);
    assert_eq!(report.events.len(), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_of_the_edge_is_noticed_by_no_websocket_and_fails_no_request() -> Result<()> {
    let requests = RequestsPlan {
        connections: 60,
        requests: 120,
    };
    let upgrades = 1;
    let report = run(&plan(Scenario::Edge { upgrades, requests })).await?;
    assert!(report.failures().is_empty(), "{}", report.outcome);
    let served = report.requests.as_ref();
    assert!(
        served.is_some_and(|served| 0 < served.connections && 0 < served.requests),
        "{}",
        report.outcome
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_added_gets_its_share_and_no_websocket_notices() -> Result<()> {
    let report = run(&plan(Scenario::ScaleOut)).await?;
    assert!(report.failures().is_empty(), "{}", report.outcome);
    assert!(0 < report.handoffs.moved, "{}", report.outcome);
    Ok(())
}

/// Restarts a node whose handoffs go wrong; what clients over WebSocket found.
async fn found(deed: &str) -> Result<BTreeSet<Kind>> {
    let report = run(&Plan {
        clients: 60,
        nodes: 2,
        sabotage: Some(deed.to_owned()),
        ..plan(Scenario::Nodes { rounds: 1 })
    })
    .await?;
    assert!(!report.failures().is_empty(), "{}", report.outcome);
    assert!(0 < report.handoffs.moved, "{}", report.outcome);
    Ok(report.sum(true).faults.into_keys().collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_before_the_mark_is_found() -> Result<()> {
    assert!(found("mark-ignored").await?.contains(&Kind::Lost));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_begins_before_the_mark_is_found() -> Result<()> {
    assert!(found("b-early").await?.contains(&Kind::Repeated));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_goes_on_after_the_mark_is_found() -> Result<()> {
    assert!(found("a-late").await?.contains(&Kind::Repeated));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_sends_its_state_before_it_has_stopped_is_found() -> Result<()> {
    assert!(found("state-early").await?.contains(&Kind::Repeated));
    Ok(())
}

/// What becomes of our nodes in the comparison with Centrifugo and Socket.IO.
async fn beside(happening: Happening) -> Result<rivals::Outcome> {
    let _turn = TURN.lock().await;
    let (outcome, _files) = rivals::run(&rivals::Plan {
        system: System::Causeway,
        happening,
        clients: 60,
        rate: 20,
        calm: Duration::from_secs(1),
    })
    .await?;
    eprintln!("{outcome}");
    Ok(outcome)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_channels_alone_is_noticed_by_no_client() -> Result<()> {
    let outcome = beside(Happening::Restart { rounds: 1 }).await?;
    assert!(outcome.failures().is_empty(), "{outcome}");
    assert_eq!(outcome.events.len(), 3);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_of_redis_loses_nothing_silently() -> Result<()> {
    let outcome = beside(Happening::Failover {
        rounds: 1,
        down_after: Duration::from_millis(500),
    })
    .await?;
    assert!(outcome.failures().is_empty(), "{outcome}");
    Ok(())
}
