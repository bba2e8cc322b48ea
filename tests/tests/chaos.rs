//! Nodes, Redis and what lies between them fail, all the time, under load: what was acknowledged reaches every client once and in
//! order, or the client is told.
//!
//! `make chaos` runs it for 30 minutes (`MINUTES`). `SEED` repeats a run's choices; what the machine does at which moment is new
//! each time.

use std::{env, time::Duration};

use anyhow::Result;
use causeway_tests::chaos::{self, Plan, faults::Kind};

/// Without `make chaos`.
const SECONDS: u64 = 110;

/// The least that has to be acknowledged a second.
const RATE: f64 = 200.0;

fn setting(name: &str) -> Option<u64> {
    env::var(name).ok().and_then(|text| text.parse().ok())
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_repeated_or_reordered_in_silence() -> Result<()> {
    let minutes = setting("CAUSEWAY_MINUTES");
    let seconds = setting("CAUSEWAY_SECONDS").unwrap_or(SECONDS);
    let plan = Plan {
        name: "chaos".to_owned(),
        lasts: Duration::from_secs(minutes.map_or(seconds, |minutes| minutes * 60)),
        seed: setting("CAUSEWAY_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000)),
        rate: 300,
    };
    eprintln!("seed {}", plan.seed);
    let report = chaos::run(&plan).await?;
    eprintln!("{report}");
    assert_eq!(report.violations_count, 0, "{report}");
    assert!(report.errors.is_empty(), "{report}");
    let missing = Kind::ALL
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
