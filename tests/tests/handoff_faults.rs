//! Clients are handed off between nodes while nodes, Redis, the edge and other clients fail: each of them has everything once and in
//! order, or is told. And what checks that finds a handoff that goes wrong.
//!
//! `make handoff-faults` makes 1,000 faults (`FAULTS`). A round's choices follow from its seed: `SEED=N FAULTS=1` repeats it; what the
//! machine does at which moment is new each time. When it fails, it says where the logs of all programs are.

use anyhow::Result;
use causeway_tests::{
    handoff_faults::{self, Outcome, Plan, faults::Fault, record::Finding},
    harness::environment,
};
use futures_util::future::join_all;
use tokio::sync::Mutex;

/// Without `make handoff-faults`.
const FAULTS: u64 = 20;
const SEED: u64 = 20;

/// As many runs beside each other: they mostly wait.
const RUNS: u64 = 3;

/// One at a time: two at once would only measure each other.
static TURN: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_lose_nothing_silently_while_something_fails_in_each_handoff() -> Result<()> {
    let _turn = TURN.lock().await;
    let faults = environment::number("CAUSEWAY_FAULTS").unwrap_or(FAULTS);
    let seed = environment::number("CAUSEWAY_SEED").unwrap_or(SEED);
    eprintln!("{faults} faults, seed {seed}");
    let runs = RUNS.min(faults);
    let mut plans = Vec::new();
    let mut first = seed;
    for run in 0..runs {
        let rounds = faults / runs + u64::from(run < faults % runs);
        plans.push(Plan {
            name: format!("handoff-faults-{run}"),
            seed: first,
            rounds,
            faults: Fault::ALL.to_vec(),
            sabotage: None,
        });
        first += rounds;
    }
    let mut outcome = Outcome::default();
    for ended in join_all(plans.iter().map(handoff_faults::run)).await {
        outcome.add(ended?);
    }
    eprintln!("{outcome}");
    assert!(outcome.bad.is_empty(), "{outcome}");
    assert_eq!(outcome.rounds(), faults);
    assert!(0 < outcome.moved(), "nobody was handed off");
    Ok(())
}

/// Hands clients off by nodes that do something wrong; whether that is found.
async fn finds(deed: &str, finding: Finding) -> Result<bool> {
    let _turn = TURN.lock().await;
    let plan = Plan {
        name: format!("handoff-faults-{deed}"),
        seed: 1,
        rounds: 3,
        faults: vec![Fault::ReservedOpcode],
        sabotage: Some(deed.to_owned()),
    };
    let outcome = handoff_faults::run(&plan).await?;
    Ok(outcome.has(finding))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_that_is_ignored_is_found() -> Result<()> {
    assert!(finds("mark-ignored", Finding::Lost).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_begins_before_the_mark_is_found() -> Result<()> {
    assert!(finds("b-early", Finding::Repeated).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_goes_on_after_the_mark_is_found() -> Result<()> {
    assert!(finds("a-late", Finding::Repeated).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_sent_while_messages_are_still_written_is_found() -> Result<()> {
    assert!(finds("state-early", Finding::Repeated).await?);
    Ok(())
}
