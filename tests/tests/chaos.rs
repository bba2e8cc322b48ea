//! Nodes, Redis and what lies between them fail, all the time, under load: what was acknowledged reaches every client once and in
//! order, or the client is told. And what checks that finds a node that does otherwise.
//!
//! `make chaos` runs it for 30 minutes (`MINUTES`) with one Redis, or with what `TOPOLOGY` says. `SEED` repeats a run's choices;
//! what the machine does at which moment is new each time. When it fails, it says where the logs of all programs are.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Result;
use causeway_tests::{
    chaos::{self, Plan, kind, report::Report, topology::Topology, violation::Kind},
    harness::{environment, wait},
};
use tokio::sync::Mutex;

/// Without `make chaos`.
const SECONDS: u64 = 145;

/// The short runs with Sentinels and with a cluster.
const SECONDS_SHORT: u64 = 9;

/// The least that has to be acknowledged a second.
const RATE: f64 = 200.0;

/// One at a time: two at once would only measure each other.
static TURN: Mutex<()> = Mutex::const_new(());

fn seed() -> u64 {
    let seed = environment::number("CAUSEWAY_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    eprintln!("seed {seed}");
    seed
}

/// A run with faults that leaves everything as it should be.
async fn goes_well(plan: Plan) -> Result<Report> {
    let report = chaos::run(&plan).await?;
    eprintln!("{}", report.outcome);
    assert_eq!(report.violations_count, 0, "{}", report.outcome);
    assert!(report.errors.is_empty(), "{}", report.outcome);
    Ok(report)
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_repeated_or_reordered_in_silence() -> Result<()> {
    let _turn = TURN.lock().await;
    let topology = Topology::from_environment()?;
    let minutes = environment::number("CAUSEWAY_MINUTES").map(|minutes: u64| minutes * 60);
    let seconds = minutes
        .or(environment::number("CAUSEWAY_SECONDS"))
        .unwrap_or(SECONDS);
    let kinds = kind::Kind::on(topology);
    let report = goes_well(Plan {
        name: "chaos".to_owned(),
        lasts: Duration::from_secs(seconds),
        topology,
        seed: seed(),
        kinds: kinds.clone(),
        sabotage: Vec::new(),
        settle: wait::SOON,
        rate: 300,
    })
    .await?;
    let missing = { kinds.iter() }.filter(|kind| !report.faults.contains_key(kind));
    assert_eq!(missing.count(), 0, "every kind of fault has its turn");
    assert!(
        RATE <= report.rate(),
        "there was less load than there has to be"
    );
    assert!(0 < report.lost_writes, "a primary took nothing with it");
    Ok(())
}

/// A few faults of what only this topology has.
async fn short(topology: Topology, kinds: Vec<kind::Kind>) -> Result<()> {
    let _turn = TURN.lock().await;
    goes_well(Plan {
        name: format!("chaos-{topology}"),
        lasts: Duration::from_secs(SECONDS_SHORT),
        topology,
        seed: seed(),
        kinds,
        sabotage: Vec::new(),
        settle: wait::SOON,
        rate: 300,
    })
    .await
    .map(drop)
}

#[tokio::test]
async fn failovers_by_sentinels_are_told_of_what_they_lose() -> Result<()> {
    let kinds = vec![kind::Kind::Failover, kind::Kind::PrimaryReplaced];
    short(Topology::Sentinel, kinds).await
}

#[tokio::test]
async fn failovers_in_a_cluster_are_told_of_what_they_lose_and_slots_move_unnoticed() -> Result<()>
{
    let kinds = vec![kind::Kind::SlotsMoved, kind::Kind::Failover];
    short(Topology::Cluster, kinds).await
}

/// Runs nodes that do something wrong now and then, by turns; what the checker found at each of them.
async fn found(topology: Topology, deeds: &[&str]) -> Result<BTreeSet<(Option<usize>, Kind)>> {
    let _turn = TURN.lock().await;
    let plan = Plan {
        name: format!("chaos-{topology}-{}", deeds.join("-")),
        lasts: Duration::from_secs(3),
        topology,
        seed: seed(),
        kinds: Vec::new(),
        sabotage: deeds.iter().map(|deed| format!("{deed}:200")).collect(),
        settle: Duration::from_secs(2),
        rate: 300,
    };
    let report = chaos::run(&plan).await?;
    let violations = report.violations.iter();
    let found = violations.map(|violation| (violation.node, violation.kind));
    if let Some(first) = report.violations.first() {
        eprintln!("{deeds:?}: {} violations: {first}", report.violations_count);
    }
    // Where it met the last message of a channel.
    Ok(found
        .filter(|(_, kind)| !matches!(kind, Kind::Overdue | Kind::Unsettled))
        .collect())
}

/// What nodes are found to do that all do the same.
async fn found_everywhere(deed: &str) -> Result<BTreeSet<Kind>> {
    let found = found(Topology::One, &[deed]).await?;
    Ok(found.into_iter().map(|(_, kind)| kind).collect())
}

#[tokio::test]
async fn a_node_that_drops_a_publication_is_found() -> Result<()> {
    assert_eq!(
        found_everywhere("drop").await?,
        BTreeSet::from([Kind::Lost])
    );
    Ok(())
}

#[tokio::test]
async fn a_node_that_repeats_a_publication_is_found() -> Result<()> {
    assert_eq!(
        found_everywhere("repeat").await?,
        BTreeSet::from([Kind::Repeated])
    );
    Ok(())
}

#[tokio::test]
async fn a_node_that_swaps_two_publications_is_found() -> Result<()> {
    assert_eq!(
        found_everywhere("swap").await?,
        BTreeSet::from([Kind::Reordered])
    );
    Ok(())
}

/// The three of them at once, a node each.
async fn each_is_found(topology: Topology) -> Result<()> {
    let found = found(topology, &["drop", "repeat", "swap"]).await?;
    let expected = [
        (Some(0), Kind::Lost),
        (Some(1), Kind::Repeated),
        (Some(2), Kind::Reordered),
    ];
    assert_eq!(found, BTreeSet::from(expected));
    Ok(())
}

#[tokio::test]
async fn nodes_that_do_wrong_are_found_with_sentinels() -> Result<()> {
    each_is_found(Topology::Sentinel).await
}

#[tokio::test]
async fn nodes_that_do_wrong_are_found_in_a_cluster() -> Result<()> {
    each_is_found(Topology::Cluster).await
}
