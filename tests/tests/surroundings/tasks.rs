//! Background tasks that panic: the edge logs and counts it and runs them again; the node, whose clients' state is in them, ends.

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    http, loopback,
    node::{self, Node},
    process::{Streams, json_lines},
    redis::Redis,
    scratch::Scratch,
    wait,
};
use serde_json::json;

use crate::subject::{Kind, Subject};

/// By the names that the log calls them.
const TASKS: [&str; 5] = [
    "health",
    "tunnels",
    "idle_connections",
    "discovery",
    "reload",
];

#[tokio::test]
async fn that_panic_run_again_in_the_edge() -> Result<()> {
    for task in TASKS {
        panics(Kind::Edge, task).await?;
    }
    panics(Kind::Edge, "certificates").await
}

#[tokio::test]
async fn that_panic_run_again_in_the_plugin() -> Result<()> {
    for task in TASKS {
        panics(Kind::Plugin, task).await?;
    }
    Ok(())
}

#[tokio::test]
async fn of_the_registry_that_panics_ends_the_node() -> Result<()> {
    let scratch = Scratch::new("tasks-node")?;
    let redis = Redis::start(loopback::own(), scratch.path()).await?;
    let settings =
        node::settings_with_redis(&redis.url()).with("node.advertise", json!("127.0.0.1:9000")); // The registry is needed.
    let variables = [("CAUSEWAY_SABOTAGE", "panic:registry")];
    let mut node = Node::start_with("n1", settings, scratch.path(), &variables).await?;
    let status = node.process.exit(wait::SOON).await?;
    ensure!(status.code() == Some(1), "{status}");
    let lines = json_lines(&node.process.log());
    let mut fields = lines.iter().map(|line| &line["fields"]);
    let line =
        fields.find(|fields| fields["message"] == "a background task panicked, the node ends");
    ensure!(
        line.is_some_and(|fields| fields["task"] == "registry"),
        "{lines:?}"
    );
    Ok(())
}

async fn panics(kind: Kind, task: &str) -> Result<()> {
    let scratch = Scratch::new("tasks")?;
    let quick = json!({ "interval": "100ms", "fast_interval": "100ms" });
    let subject = Subject::start_changed(
        kind,
        &scratch,
        |settings| settings.with("health", quick),
        Streams::default(),
        |command| {
            command.env("CAUSEWAY_SABOTAGE", format!("panic:{task}"));
        },
    );
    let mut subject = subject.await?;
    wait::until("the restart", wait::SOON, async || {
        (subject.metric("task_restarts_total").await.ok()? == 1).then_some(())
    })
    .await?;
    // The log has a thread of its own, and may be behind the metric.
    wait::until("the log to say so", wait::SOON, async || {
        let lines = json_lines(&subject.process.log());
        let said = |message: &str| {
            let mut fields = lines.iter().map(|line| &line["fields"]);
            fields.find(|fields| fields["message"] == message)
        };
        // A panic is a line of the log like any other.
        let panic = said("panicked")?;
        let restart = said("background task panicked, restarting it")?;
        let is_whole = panic["panic"] == "requested by a test" && panic["at"].is_string();
        (is_whole && restart["task"] == task).then_some(())
    })
    .await
    .with_context(|| subject.process.tail())?;
    // A backend that goes and comes, and a configuration: what the tasks are for.
    subject.work().await?;
    ensure!(http::get(subject.address, "/").await?.status == 200);
    let client = subject.client().await?;
    subject.end(client).await
}
