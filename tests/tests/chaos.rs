//! Nodes, Redis and what lies between them fail, all the time, under load: what was acknowledged reaches every client once and in
//! order, or the client is told. And what checks that finds a node that does otherwise.
//!
//! `make chaos` runs it for 30 minutes (`MINUTES`). `SEED` repeats a run's choices; what the machine does at which moment is new
//! each time. When it fails, it says where the logs of all programs are.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use causeway_tests::{
    chaos::{self, Plan, faults, violation::Kind},
    harness::{environment, wait},
};
use tokio::sync::Mutex;

/// Without `make chaos`.
const SECONDS: u64 = 145;

/// The least that has to be acknowledged a second.
const RATE: f64 = 200.0;

/// One at a time: two at once would only measure each other.
static TURN: Mutex<()> = Mutex::const_new(());

fn seed() -> u64 {
    let seed = environment::number("CAUSEWAY_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    eprintln!("seed {seed}");
    seed
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_repeated_or_reordered_in_silence() -> Result<()> {
    let _turn = TURN.lock().await;
    let minutes = environment::number("CAUSEWAY_MINUTES").map(|minutes: u64| minutes * 60);
    let seconds = minutes
        .or(environment::number("CAUSEWAY_SECONDS"))
        .unwrap_or(SECONDS);
    let plan = Plan {
        name: "chaos".to_owned(),
        lasts: Duration::from_secs(seconds),
        seed: seed(),
        kinds: faults::Kind::ALL.to_vec(),
        sabotage: None,
        settle: wait::SOON,
        rate: 300,
    };
    let report = chaos::run(&plan).await?;
    eprintln!("{}", report.outcome);
    assert_eq!(report.violations_count, 0, "{}", report.outcome);
    assert!(report.errors.is_empty(), "{}", report.outcome);
    let missing = faults::Kind::ALL
        .iter()
        .filter(|kind| !report.faults.contains_key(kind));
    assert_eq!(missing.count(), 0, "every kind of fault has its turn");
    assert!(
        RATE <= report.rate(),
        "there was less load than there has to be"
    );
    assert!(0 < report.lost_writes, "a primary took nothing with it");
    Ok(())
}

/// Runs nodes that do something wrong now and then; what the checker found.
async fn found(deed: &str) -> Result<BTreeSet<Kind>> {
    let _turn = TURN.lock().await;
    let plan = Plan {
        name: format!("chaos-{deed}"),
        lasts: Duration::from_secs(3),
        seed: seed(),
        kinds: Vec::new(),
        sabotage: Some(format!("{deed}:200")),
        settle: Duration::from_secs(2),
        rate: 300,
    };
    let report = chaos::run(&plan).await?;
    let violations = report.violations.iter();
    let mut kinds: BTreeSet<Kind> = violations.map(|violation| violation.kind).collect();
    if let Some(first) = report.violations.first() {
        eprintln!("{deed}: {} violations: {first}", report.violations_count);
    }
    // Where it met the last message of a channel.
    kinds.remove(&Kind::Overdue);
    kinds.remove(&Kind::Unsettled);
    Ok(kinds)
}

#[tokio::test]
async fn a_node_that_drops_a_publication_is_found() -> Result<()> {
    assert_eq!(found("drop").await?, BTreeSet::from([Kind::Lost]));
    Ok(())
}

#[tokio::test]
async fn a_node_that_repeats_a_publication_is_found() -> Result<()> {
    assert_eq!(found("repeat").await?, BTreeSet::from([Kind::Repeated]));
    Ok(())
}

#[tokio::test]
async fn a_node_that_swaps_two_publications_is_found() -> Result<()> {
    assert_eq!(found("swap").await?, BTreeSet::from([Kind::Reordered]));
    Ok(())
}
