//! Newcomers are spread evenly.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    load::{Load, Plan},
    site::{Site, SiteConfig, Wires},
    wait,
};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
const TUNNELS: usize = 3_000;
const DEADLINE: Duration = Duration::from_secs(120);

/// 50 clients that GET every 100 ms make 500 requests a second, and the tunnels say little.
const PLAN: Plan = Plan {
    gets: 50,
    tunnels: TUNNELS,
    beat: Duration::from_secs(10),
    ..Plan::NOBODY
};

/// The live tunnels of each node, by the edge's account.
async fn tunnels(site: &Site) -> Result<Vec<u64>> {
    let backends = site.edge.backends().await?;
    let count = |id: &&str| {
        let mut all = backends.as_array().into_iter().flatten();
        all.find(|backend| backend["id"] == **id)?["tunnels"].as_u64()
    };
    let counts: Option<Vec<u64>> = NODES.iter().map(count).collect();
    counts.with_context(|| format!("no tunnels in {backends}"))
}

async fn site(name: &str) -> Result<Site> {
    let config = SiteConfig {
        nodes: NODES.len(),
        away: 0,
        wires: Wires::Direct,
        edge: &[],
    };
    Site::start(name, config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_thousand_tunnels_beside_requests_are_spread_evenly() -> Result<()> {
    let site = site("balance").await?;
    let load = Load::start(site.edge.address, &PLAN);
    let open = wait::until("all tunnels to be open", DEADLINE, async || {
        let counts = tunnels(&site).await.ok()?;
        (counts.iter().sum::<u64>() == TUNNELS as u64).then_some(counts)
    });
    let counts = open.await?;
    let most = counts.iter().max().copied().unwrap_or_default();
    eprintln!("tunnels {counts:?}");
    // At most 1.05 times the mean.
    ensure!(most * 3 * 100 <= TUNNELS as u64 * 105, "{counts:?}");
    let journal = load.stop().await;
    let gets = journal
        .records()
        .iter()
        .filter(|record| record.method == "GET")
        .count();
    ensure!(0 < gets, "the tunnels came in beside nothing");
    let failed = journal.records().into_iter().find(|record| !record.good);
    ensure!(failed.is_none(), "{failed:?}");
    Ok(())
}
