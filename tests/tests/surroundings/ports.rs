//! Local ports that run out.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use causeway_tests::{
    harness::{
        edge::{self, Edge, Program},
        http, namespace,
        node::{self, Node},
        scratch::Scratch,
        wait,
    },
    on_edge_and_plugin,
};
use serde_json::json;
use tokio::net::TcpStream;

/// How many ports connections may leave from.
const PORTS: usize = 40;

/// So few ports are left to the namespace, above those that are listened on.
const SETUP: &str = "echo 40000 40039 > /proc/sys/net/ipv4/ip_local_port_range";

/// How many probes have to be skipped.
const SKIPPED: u64 = 5;

on_edge_and_plugin!(a_probe_that_cannot_be_sent_says_nothing);

async fn a_probe_that_cannot_be_sent_says_nothing(program: Program) -> Result<()> {
    let place = match program {
        Program::Edge => "on_the_edge",
        Program::Plugin => "on_the_plugin",
    };
    if !namespace::is_inside() {
        let name = format!("ports::{place}::a_probe_that_cannot_be_sent_says_nothing");
        if !namespace::run(&name, SETUP).await? {
            eprintln!("left out: this machine gives no network namespaces");
        }
        return Ok(());
    }
    let scratch = Scratch::new("ports")?;
    let listen = |port: u16| json!(SocketAddr::from(([127, 0, 0, 1], port)).to_string());
    let settings = node::patient(node::settings()).with("listen", listen(20_001));
    let node = Node::start("n1", settings, scratch.path()).await?;
    let settings = edge::settings(&[("n1", node.address)])
        .with("listeners", json!([{ "address": listen(20_002) }]))
        .with("admin.address", listen(20_003))
        .with(
            "health",
            json!({ "interval": "100ms", "fast_interval": "100ms" }),
        );
    let edge = Edge::start_in(program, &settings, scratch.path()).await?;
    edge.backend_in_state("n1", "up").await?;

    // To this address each port can be used once. Some are between being closed and being free.
    let mut taken = Vec::new();
    wait::until("all ports to be taken", wait::SOON, async || {
        while let Ok(stream) = TcpStream::connect(node.address).await {
            taken.push(stream);
        }
        (PORTS - 8 < taken.len()).then_some(())
    })
    .await?;
    let skipped = async || {
        let page = http::get(edge.admin, "/metrics").await.ok()?.text();
        let line = page.lines().find(|line| {
            line.starts_with("causeway_proxy_probes_total") && line.contains("\"skipped\"")
        })?;
        line.rsplit_once(' ')?.1.parse::<u64>().ok()
    };
    wait::until("probes that cannot be sent", wait::SOON, async || {
        while let Ok(stream) = TcpStream::connect(node.address).await {
            taken.push(stream);
        }
        (SKIPPED <= skipped().await?).then_some(())
    })
    .await?;
    // Those who have just asked this address have used up its ports too, for a second.
    let (backends, page) = wait::until("the admin address to be reached", wait::SOON, async || {
        let backends = edge.backends().await.ok()?;
        let page = http::get(edge.admin, "/metrics").await.ok()?.text();
        Some((backends, page))
    })
    .await?;
    let state = &backends[0]["state"];
    ensure!(state == "up", "{state}");
    ensure!(
        page.contains("causeway_proxy_transitions_total{backend=\"n1\",to=\"up\"} 1")
            && !page.contains("to=\"suspect\"")
            && !page.contains("to=\"down\""),
        "{page}"
    );
    let log = edge.process.log();
    let lines = log.matches("health check skipped").count();
    ensure!((1..=SKIPPED as usize).contains(&lines), "{log}");

    drop(taken);
    wait::until("the node to be served", wait::SOON, async || {
        let response = http::get(edge.address, "/").await.ok()?;
        (response.status == 200).then_some(())
    })
    .await
}
