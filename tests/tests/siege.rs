//! Thousands of clients that only hold on: heads that come byte by byte, and handshakes that never come. Clients from other
//! addresses notice nothing, memory stays bounded, and when their time is over all are gone.
//!
//! `make siege` runs it with 9,000 of each.

#[path = "siege/attack.rs"]
mod attack;
#[path = "siege/bystanders.rs"]
mod bystanders;

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    descriptors,
    edge::{self, Edge},
    environment, loopback, memory,
    node::{self, Node},
    scratch::Scratch,
    tls::Authority,
    wait,
};
use serde_json::json;

use crate::{
    attack::{Attack, Weapon},
    bystanders::Bystanders,
};

/// Until a head or a handshake has to be there: long enough for all attackers to be connected at once.
const DEADLINE: &str = "10s";

/// How long the attackers may take to be gone: the deadline, and what a slow machine takes to close so many.
const GONE: Duration = Duration::from_secs(120);

/// The most that one attacker may cost the edge, in bytes. An idle connection costs a few KB, a handshake that has begun the
/// state of rustls.
const COST_MAX: u64 = 24 * 1024;

/// How many attackers there are.
fn attackers() -> usize {
    environment::number("CAUSEWAY_SIEGE").unwrap_or(1_000)
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(loopback::own_any_port())?.local_addr()?)
}

#[tokio::test]
async fn who_only_holds_on_is_noticed_by_nobody_and_gone_after_the_deadline() -> Result<()> {
    descriptors::raise_limit()?;
    let scratch = Scratch::new("siege")?;
    let folder = scratch.path().join("certificates");
    std::fs::create_dir(&folder)?;
    let authority = Authority::new(scratch.path())?;
    authority.renew(&folder)?;
    let node = Node::start("n1", node::settings(), scratch.path()).await?;
    let (plain, tls) = (free_address()?, free_address()?);
    let settings = edge::settings(&[("n1", node.address)])
        .with(
            "listeners",
            json!([
                { "address": plain.to_string() },
                { "address": tls.to_string(), "tls": { "folder": folder, "handshake": DEADLINE } },
            ]),
        )
        .with("timeouts.head", json!(DEADLINE))
        .with("log.access", json!("off"));
    let edge = Edge::start(&settings, scratch.path()).await?;
    edge.backend_in_state("n1", "up").await?;

    let clients = authority.clients("http/1.1")?;
    let mut bystanders = Bystanders::start(plain, tls, &clients);
    bystanders.all_go_on().await?;
    let pid = edge.process.pid();
    let number = attackers();
    for (weapon, target) in [(Weapon::SlowHead, plain), (Weapon::IdleHandshake, tls)] {
        let before = memory::pss(pid)?;
        let attack = Attack::begin(weapon, target, number).await?;
        assert_eq!(attack.left(), number, "all of them hold on at once");
        let during = memory::pss(pid)?;
        bystanders.all_go_on().await?;
        wait::until("the attackers to be gone", GONE, async || {
            (attack.left() == 0).then_some(())
        })
        .await?;
        let lasted = attack.shortest().context("all of them have ended")?;
        bystanders.all_go_on().await?;
        let after = memory::pss(pid)?;
        let each = during.saturating_sub(before) / number as u64;
        println!(
            "{weapon:?}: {number} connections, Pss {} KiB before, {} with all of them ({each} bytes each), {} after, \
             the first one was closed after {lasted:?}",
            before / 1_024,
            during / 1_024,
            after / 1_024,
        );
        assert!(each < COST_MAX, "{each} bytes for each {weapon:?}");
    }
    let served = bystanders.stop().await?;
    println!("bystanders, all served: {served:?}");
    Ok(())
}
