//! Descriptors that are few, run out, or are held by those who say nothing.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    http::{self, Connection},
    limits::{self, Resource},
    process::Streams,
    programs,
    scratch::Scratch,
    wait,
};
use tokio::{process::Command, time::timeout};

use crate::subject::{Kind, Subject, on_each_program};

/// More than there may be connections to an admin listener.
const SILENT: usize = 200;

mod admin {
    use super::*;

    #[tokio::test]
    async fn of_the_edge_is_kept_from_nobody_by_silent_connections() -> Result<()> {
        silence(Kind::Edge).await
    }

    #[tokio::test]
    async fn of_the_node_is_kept_from_nobody_by_silent_connections() -> Result<()> {
        silence(Kind::Node).await
    }

    #[tokio::test]
    async fn of_the_plugin_is_kept_from_nobody_by_silent_connections() -> Result<()> {
        silence(Kind::Plugin).await
    }

    async fn silence(kind: Kind) -> Result<()> {
        let scratch = Scratch::new("silence")?;
        let subject = Subject::start(kind, &scratch, |settings| settings, Streams::default());
        let subject = subject.await?;
        let open = || descriptors_of(subject.process.pid());
        let before = open()?;
        let mut silent = Vec::new();
        for number in 0..SILENT {
            let mut connection = Connection::open(subject.admin).await?;
            if number % 2 == 0 {
                connection.send("GET /live HTTP/1.1\r\nHo").await?;
            }
            silent.push(connection);
        }
        ensure!(http::get(subject.admin, "/metrics").await?.status == 200);
        wait::until("most of them to be closed", wait::SOON, async || {
            (open().ok()? < before + SILENT / 2).then_some(())
        })
        .await?;
        for connection in &mut silent[..SILENT / 4] {
            ensure!(connection.is_closed_soon().await);
        }
        ensure!(http::get(subject.address, "/").await?.status == 200);
        Ok(())
    }
}

fn descriptors_of(pid: i32) -> Result<usize> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
    Ok(entries.context("the process is gone")?.count())
}

#[tokio::test]
async fn too_few_to_start_are_one_clear_error() -> Result<()> {
    let scratch = Scratch::new("few")?;
    let edge = scratch.write(
        "edge.yaml",
        "listeners: [{ address: '127.0.0.1:0' }]\nadmin: { address: '127.0.0.1:0' }\n\
         pools: [{ name: p, backends: [{ id: b, address: '127.0.0.1:1' }] }]\nroutes: [{ path: /, pool: p }]\n",
    )?;
    let node = scratch.write("node.yaml", "listen: 127.0.0.1:0\n")?;
    let programs = [
        ("causeway-proxy", &edge),
        ("examples/plugin", &edge),
        ("causeway-node", &node),
    ];
    for (program, file) in programs {
        for check in [false, true] {
            if check && program == "examples/plugin" {
                continue;
            }
            let mut command = Command::new("sh");
            command
                .args(["-c", "ulimit -n 24; exec \"$@\"", "sh"])
                .arg(programs::ours(program)?)
                .arg("--config")
                .arg(file)
                .args(check.then_some("--check"))
                .stdin(Stdio::null())
                .kill_on_drop(true);
            let ended = timeout(Duration::from_secs(30), command.output()).await;
            let output = ended.with_context(|| format!("{program} runs"))??;
            let stderr = String::from_utf8_lossy(&output.stderr);
            let stderr = stderr.split("\nStack backtrace").next().unwrap_or_default();
            ensure!(!output.status.success(), "{program}");
            let errors: Vec<&str> = stderr.trim().lines().collect();
            ensure!(errors.len() == 1, "{program}: {stderr}");
            ensure!(
                errors[0].contains("the limit of open files is 24, and at least "),
                "{program}: {stderr}"
            );
        }
    }
    Ok(())
}

on_each_program!(that_run_out_while_it_serves_cost_new_connections_alone);

async fn that_run_out_while_it_serves_cost_new_connections_alone(kind: Kind) -> Result<()> {
    let scratch = Scratch::new("run-out")?;
    let subject = Subject::start(kind, &scratch, |settings| settings, Streams::default());
    let mut subject = subject.await?;
    let client = subject.client().await?;
    let pid = subject.process.pid();
    let open = descriptors_of(pid)?;
    limits::set(pid, Resource::OpenFiles, Some(open as u64))?;
    // Each of them is accepted by the kernel and waits: the program has no descriptor for it.
    let mut waiting = Vec::new();
    for _ in 0..5 {
        let mut connection = Connection::open(subject.address).await?;
        let request = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", subject.address);
        connection.send(request).await?;
        waiting.push(connection);
    }
    wait::until("the log to say so", wait::SOON, async || {
        let log = subject.process.log();
        (log.contains("cannot accept") || log.contains("Too many open files")).then_some(())
    })
    .await?;
    limits::set(pid, Resource::OpenFiles, None)?;
    for connection in &mut waiting {
        let response = connection.response().await?;
        ensure!(response.status < 500, "{response:?}");
    }
    let lines = subject.process.log().matches("cannot accept").count();
    ensure!(lines < 40, "it is throttled: {lines} lines");
    drop(waiting);
    subject.work().await?;
    let client = match kind {
        Kind::Node => client,
        Kind::Edge | Kind::Plugin => subject.client().await?,
    };
    subject.end(client).await
}
