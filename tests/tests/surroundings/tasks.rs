//! What the edge does all the time panics: the log says so, it is counted, and it is done again.

use anyhow::{Result, ensure};
use causeway_tests::harness::{
    http,
    process::{Streams, json_lines},
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
    let lines = json_lines(&subject.process.log());
    let said = |message: &str| {
        let mut fields = lines.iter().map(|line| &line["fields"]);
        fields.find(|fields| fields["message"] == message).cloned()
    };
    // A panic is a line of the log like any other.
    let panic = said("panicked");
    ensure!(
        panic
            .is_some_and(|fields| fields["panic"] == "a test wants it" && fields["at"].is_string()),
        "{lines:?}"
    );
    let restart = said("a background task panicked, running it again");
    ensure!(
        restart.is_some_and(|fields| fields["task"] == task),
        "{lines:?}"
    );
    // A backend that goes and comes, and a configuration: what the tasks are for.
    subject.work().await?;
    ensure!(http::get(subject.address, "/").await?.status == 200);
    let client = subject.client().await?;
    subject.end(client).await
}
