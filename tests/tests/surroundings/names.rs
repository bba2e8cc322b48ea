//! Names of backends that nobody knows any more, and then again.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    edge::{self, Edge},
    http, namespace,
    node::{self, Node},
    process::json_lines,
    scratch::Scratch,
    wait,
};
use serde_json::json;

const NAME: &str = "app.causeway.test";

/// How many probes go well while the name is unknown.
const PROBES: u64 = 20;

#[tokio::test]
async fn that_vanish_leave_their_backend_in_service() -> Result<()> {
    if !namespace::is_inside() {
        let name = "names::that_vanish_leave_their_backend_in_service";
        if !namespace::run(name, "").await? {
            eprintln!("left out: this machine gives no namespaces");
        }
        return Ok(());
    }
    let scratch = Scratch::new("names")?;
    let known = format!("127.0.0.1 localhost\n127.0.0.1 {NAME}\n");
    let hosts = scratch.write("hosts", &known)?;
    let path = hosts.to_str().context("it is UTF-8")?;
    namespace::mount(&["--bind", path, "/etc/hosts"]).await?;
    let settings = node::settings().with("listen", json!("127.0.0.1:0"));
    let node = Node::start("n1", settings, scratch.path()).await?;
    let backend = json!([{ "id": "n1", "address": format!("{NAME}:{}", node.address.port()) }]);
    let settings = edge::settings(&[])
        .with("pools", json!([{ "name": "nodes", "backends": backend }]))
        .with(
            "health",
            json!({ "interval": "100ms", "fast_interval": "100ms" }),
        );
    let edge = Edge::start(&settings, scratch.path()).await?;
    edge.backend_in_state("n1", "up").await?;

    let said = |message: &str| {
        let lines = json_lines(&edge.process.log());
        let said = lines
            .iter()
            .filter(|line| line["fields"]["message"] == message);
        said.count()
    };
    let probes = async || {
        let page = http::get(edge.admin, "/metrics").await.ok()?.text();
        let mut lines = page
            .lines()
            .filter(|line| line.contains("probes_total{") && line.contains("good"));
        lines.next()?.rsplit_once(' ')?.1.parse::<u64>().ok()
    };
    // Written in place: the mount is of this file.
    fs::write(&hosts, "127.0.0.1 localhost\n")?;
    wait::until("the log to say so", wait::SOON, async || {
        (said("cannot resolve the host name of a backend") == 1).then_some(())
    })
    .await?;
    let before = probes().await.context("there are some")?;
    wait::until("probes to go on", wait::SOON, async || {
        let response = http::get(edge.address, "/").await.ok()?;
        (response.status == 200 && before + PROBES < probes().await?).then_some(())
    })
    .await?;
    let state = edge.backends().await?[0]["state"].clone();
    ensure!(state == "up", "{state}");
    fs::write(&hosts, &known)?;
    wait::until("the log to say so", wait::SOON, async || {
        (said("the host name of a backend can be resolved again") == 1).then_some(())
    })
    .await?;
    ensure!(said("cannot resolve the host name of a backend") == 1);
    Ok(())
}
