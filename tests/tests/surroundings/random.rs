//! Faults of all kinds at random, under the load of `make chaos`. `make surroundings` runs it for 20 minutes (`MINUTES`); `SEED`
//! repeats a run's choices. Without it, there are as many faults as fit into half a minute.

use std::time::Duration;

use anyhow::Result;
use causeway_tests::{
    harness::{environment, namespace},
    surroundings::{self, Plan},
};

/// Without `make surroundings`.
const SECONDS: u64 = 18;

/// The least that has to be acknowledged a second.
const RATE: f64 = 100.0;

#[tokio::test]
async fn faults_under_load_lose_nothing_and_leave_nothing_behind() -> Result<()> {
    // Ports, disk and names can only be taken away from programs in namespaces.
    if !namespace::is_inside() {
        let name = "random::faults_under_load_lose_nothing_and_leave_nothing_behind";
        if namespace::run(name, "").await? {
            return Ok(());
        }
        eprintln!("left out: ports, disk and names, this machine gives no namespaces");
    }
    let seconds = environment::number("CAUSEWAY_MINUTES").map(|minutes: u64| minutes * 60);
    let seed = environment::number("CAUSEWAY_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    eprintln!("seed {seed}");
    let plan = Plan {
        lasts: Duration::from_secs(seconds.unwrap_or(SECONDS)),
        seed,
    };
    let report = surroundings::run(&plan).await?;
    eprintln!("{}", report.outcome);
    assert_eq!(report.violations_count, 0, "{}", report.outcome);
    assert!(report.panics.is_empty(), "{}", report.outcome);
    assert!(
        RATE <= report.rate(),
        "there was less load than there has to be\n{}",
        report.outcome
    );
    Ok(())
}
