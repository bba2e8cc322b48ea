//! Newcomers are spread evenly, and a backend that has just come back is not flooded.

use std::{collections::VecDeque, time::Duration};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    load::{Kind, Load, Plan},
    site::{Site, SiteConfig, Wires},
    wait,
    websocket::WebSocket,
};
use serde_json::json;
use tokio::time::{Instant, sleep};

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Newcomers that open a tunnel together, and how often such a wave comes: 3,000 in all.
const WAVE: usize = 60;
const WAVES: usize = 50;
/// By how many tunnels the fullest node may be above its share after each wave. Picks are made side by side, so that two
/// may take the same one for the emptiest.
const ABOVE: u64 = 3;
const DEADLINE: Duration = Duration::from_secs(120);

/// 50 clients that GET every 100 ms make 500 requests a second.
const REQUESTS: Plan = Plan {
    gets: 50,
    ..Plan::NOBODY
};

/// Clients whose tunnels say little.
const fn quiet(tunnels: usize) -> Plan {
    Plan {
        tunnels,
        beat: Duration::from_secs(10),
        ..Plan::NOBODY
    }
}

/// How many newcomers are looked at at a time.
const WINDOW: usize = 120;

/// By how many a few may differ from the rule: newcomers are counted in whole numbers.
const ODD: usize = WINDOW / 10;

/// From one newcomer to the next.
const PACE: Duration = Duration::from_millis(5);

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
        edge: &[
            ("affinity.hold", json!("1s")),
            ("health.slow_start", json!("2s")),
        ],
    };
    Site::start(name, config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_thousand_tunnels_beside_requests_are_spread_evenly_all_the_way() -> Result<()> {
    let site = site("balance").await?;
    let requests = Load::start(site.edge.address, &REQUESTS);
    let (mut waves, mut most_above) = (Vec::new(), 0);
    for number in 1..=WAVES {
        waves.push(Load::start(site.edge.address, &quiet(WAVE)));
        let count = (number * WAVE) as u64;
        let what = format!("{count} tunnels to be open");
        let counts = wait::until(&what, DEADLINE, async || {
            let counts = tunnels(&site).await.ok()?;
            (counts.iter().sum::<u64>() == count).then_some(counts)
        })
        .await?;
        let share = count / NODES.len() as u64;
        let above = counts
            .iter()
            .max()
            .map_or(0, |most| most.saturating_sub(share));
        // Chance would be this even after one wave in two, and after fifty in a row never.
        ensure!(above <= ABOVE, "after {count}: {counts:?}");
        most_above = most_above.max(above);
    }
    eprintln!("at most {most_above} above its share, in any of {WAVES} waves");
    for load in waves.into_iter().chain([requests]) {
        let records = load.stop().await.records();
        ensure!(!records.is_empty(), "they came in beside nothing");
        let failed = records.into_iter().find(|record| !record.good);
        ensure!(failed.is_none(), "{failed:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_back_gets_its_share_and_no_flood() -> Result<()> {
    let mut site = site("balance-back").await?;
    let plan = Plan {
        gets: 20,
        ..quiet(600)
    };
    let begun = Instant::now();
    let load = Load::start(site.edge.address, &plan);
    load.served(begun, DEADLINE, |_| true).await?;
    site.lose("n1").await?;
    let lost = Instant::now();
    load.served(lost, DEADLINE, |place| place.node.as_deref() != Some("n1"))
        .await?;
    site.bring_back("n1").await?;
    let left = load
        .journal()
        .places()
        .into_iter()
        .filter(|place| place.kind == Kind::Tunnel);
    ensure!(left.count() == 600, "the others carry everything");

    // The backend is empty, and the others are full. Newcomers are looked at in their order: how fast they come does not matter.
    let deadline = Instant::now() + DEADLINE;
    let (mut sockets, mut window) = (Vec::new(), VecDeque::new());
    let (mut most, mut had_its_share) = (0, 0);
    loop {
        ensure!(
            Instant::now() < deadline,
            "{} newcomers, and it has not had its share",
            sockets.len()
        );
        let socket = WebSocket::open(site.edge.address, "/echo/websocket").await?;
        window.push_back(socket.node().to_owned());
        sockets.push(socket);
        sleep(PACE).await;
        if window.len() < WINDOW {
            continue;
        }
        let back = window.iter().filter(|node| *node == "n1").count();
        let neighbour = (WINDOW - back) / 2;
        most = most.max(back);
        ensure!(
            back <= 2 * neighbour + ODD,
            "{back} of {WINDOW} newcomers went to it, {neighbour} to each other"
        );
        if had_its_share == 0 && WINDOW / 3 <= back {
            had_its_share = sockets.len();
        }
        if 0 < had_its_share && had_its_share + 2 * WINDOW <= sockets.len() {
            break;
        }
        window.pop_front();
    }
    eprintln!(
        "it had its share after {had_its_share} newcomers; at most {most} of {WINDOW} in a row"
    );
    Ok(())
}
