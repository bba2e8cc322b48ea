//! Polling sessions live on one node each: those stay where they are while other nodes come and go.

use std::time::Duration;

use anyhow::{Result, ensure};
use causeway_tests::harness::{
    load::{Cookies, Kind, Load, Place, Plan},
    process::Signal,
    site::{Site, SiteConfig, Wires},
};
use serde_json::json;
use tokio::time::Instant;

const SESSIONS: usize = 200;
const DEADLINE: Duration = Duration::from_secs(60);

/// What goes on around them.
#[derive(Clone, Copy, Debug)]
enum Step {
    Start(&'static str),
    Kill(&'static str),
    Drain(&'static str),
}

const STEPS: [Step; 7] = [
    Step::Start("n3"),
    Step::Start("n4"),
    Step::Kill("n3"),
    Step::Start("n3"),
    Step::Drain("n4"),
    Step::Start("n4"),
    Step::Kill("n3"),
];

impl Step {
    async fn take(self, site: &mut Site) -> Result<()> {
        match self {
            Self::Start(id) => site.bring_back(id).await,
            Self::Kill(id) => site.lose(id).await,
            Self::Drain(id) => {
                let process = &mut site.node(id)?.process;
                process.signal(Signal::Terminate);
                process.exit(DEADLINE).await?;
                site.edge.backend_in_state(id, "down").await
            }
        }
    }
}

async fn two_hundred_sessions_stay(name: &str, cookies: Cookies) -> Result<()> {
    let config = SiteConfig {
        nodes: 2,
        away: 2,
        wires: Wires::Direct,
        edge: &[("affinity.hold", json!("1s"))],
    };
    let mut site = Site::start(name, config).await?;
    let plan = Plan {
        sessions: SESSIONS,
        newcomers: 10,
        session_cookies: cookies,
        ..Plan::NOBODY
    };
    let begun = Instant::now();
    let load = Load::start(site.edge.address, &plan);
    load.served(begun, DEADLINE, |_| true).await?;
    for step in STEPS {
        step.take(&mut site).await?;
        let taken = Instant::now();
        let is_session = |place: &Place| place.kind == Kind::Session;
        // Newcomers go where they are sent: to a node that is killed, too.
        load.served_all(taken, DEADLINE, is_session).await?;
    }
    let journal = load.stop().await;
    let homes = journal.homes_of_sessions()?;
    ensure!(homes.len() == SESSIONS, "{} sessions", homes.len());
    Ok(())
}

#[tokio::test]
async fn two_hundred_polling_sessions_stay_while_other_nodes_come_and_go() -> Result<()> {
    two_hundred_sessions_stay("sessions", Cookies::Kept).await
}

#[tokio::test]
async fn two_hundred_polling_sessions_without_cookies_stay_too() -> Result<()> {
    two_hundred_sessions_stay("sessions-cookieless", Cookies::Off).await
}
