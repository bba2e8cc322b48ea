//! What the programs say when they do not start, to those who do not listen; and signals that are meant for others.

use std::{fs::File, io, os::fd::OwnedFd, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    http,
    log_pipe::LogPipe,
    process::{Process, Signal, Streams, json_lines},
    programs,
    scratch::Scratch,
    wait,
};
use serde_json::json;
use tokio::process::Command;

use crate::subject::{Kind, Subject, on_each_program};

/// A program refuses a file that is wrong.
async fn refuses(program: &str, stderr: Stdio) -> Result<()> {
    let scratch = Scratch::new("refuses")?;
    let file = scratch.write("wrong.yaml", "nothing: of this kind\n")?;
    let mut command = Command::new(programs::ours(program)?);
    command.arg("--config").arg(file);
    let streams = Streams {
        stderr: Some(stderr),
        ..Streams::default()
    };
    let mut process = Process::spawn_on("refusing", command, scratch.path(), streams)?;
    let status = process.exit(wait::SOON).await?;
    ensure!(status.code() == Some(2), "{program}: {status}");
    Ok(())
}

#[tokio::test]
async fn the_exit_code_says_that_the_file_is_wrong_also_where_stderr_is_closed() -> Result<()> {
    for program in ["causeway-proxy", "causeway-node"] {
        let (reader, writer) = io::pipe()?;
        drop(reader);
        refuses(program, File::from(OwnedFd::from(writer)).into()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_exit_code_says_that_the_file_is_wrong_also_where_nobody_reads_stderr() -> Result<()> {
    let scratch = Scratch::new("unread")?;
    let pipe = LogPipe::new(scratch.path(), "stderr")?;
    for program in ["causeway-proxy", "causeway-node"] {
        let writer = pipe.writer()?;
        pipe.fill()?;
        refuses(program, writer).await?;
    }
    Ok(())
}

on_each_program!(
    a_signal_to_rotate_logs_ends_nothing,
    what_is_closed_at_the_start_is_no_matter,
);

async fn a_signal_to_rotate_logs_ends_nothing(kind: Kind) -> Result<()> {
    let scratch = Scratch::new("rotate")?;
    let subject = Subject::start(kind, &scratch, |settings| settings, Streams::default());
    let mut subject = subject.await?;
    let client = subject.client().await?;
    subject.process.signal(Signal::User1);
    // Whatever a signal does is done before a later one.
    subject.work().await?;
    let client = match kind {
        Kind::Node => client,
        Kind::Edge | Kind::Plugin => subject.client().await?,
    };
    subject.end(client).await
}

async fn what_is_closed_at_the_start_is_no_matter(kind: Kind) -> Result<()> {
    let scratch = Scratch::new("closed")?;
    let closing = |command: &mut Command| {
        #[expect(
            unsafe_code,
            reason = "there is no other way to start a program without its streams"
        )]
        // SAFETY: the closure makes three system calls between fork and exec, and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                for stream in 0..=2 {
                    libc::close(stream);
                }
                Ok(())
            });
        }
    };
    let subject = Subject::start_changed(
        kind,
        &scratch,
        |settings| settings,
        Streams::default(),
        closing,
    );
    let mut subject = subject.await?;
    subject.work().await?;
    let client = subject.client().await?;
    subject.end(client).await
}

mod access_log {
    use super::*;

    #[tokio::test]
    async fn that_was_renamed_is_made_anew_by_the_edge() -> Result<()> {
        renamed(Kind::Edge).await
    }

    #[tokio::test]
    async fn that_was_renamed_is_made_anew_by_the_plugin() -> Result<()> {
        renamed(Kind::Plugin).await
    }

    async fn renamed(kind: Kind) -> Result<()> {
        let scratch = Scratch::new("renamed")?;
        let (path, old) = (
            scratch.path().join("access.log"),
            scratch.path().join("access.log.1"),
        );
        let subject = Subject::start(
            kind,
            &scratch,
            |settings| settings.with("log.access", json!(path)),
            Streams::default(),
        );
        let mut subject = subject.await?;
        let logged = async |subject: &Subject, name: &str| {
            let line = format!("\"path\":\"/{name}\"");
            http::get(subject.address, &format!("/{name}")).await?;
            let what = format!("a line for {name}");
            wait::until(&what, wait::SOON, async || {
                let text = std::fs::read_to_string(&path).ok()?;
                text.contains(&line).then_some(())
            })
            .await
        };
        logged(&subject, "first").await?;

        // logrotate renames the file, and then sends the signal.
        std::fs::rename(&path, &old)?;
        subject.process.signal(Signal::User1);
        wait::until("the log to be reopened", wait::SOON, async || {
            let lines = json_lines(&subject.process.log());
            let is_said =
                |line: &serde_json::Value| line["fields"]["message"] == "access log reopened";
            (path.exists() && lines.iter().any(is_said)).then_some(())
        })
        .await?;
        logged(&subject, "second").await?;
        let before = std::fs::read_to_string(&old)?;
        ensure!(before.contains("/first") && !before.contains("/second"));

        // Without a signal it is noticed as well.
        std::fs::rename(&path, &old)?;
        wait::until("the file to be made anew", wait::SOON, async || {
            http::get(subject.address, "/tick").await.ok()?;
            path.exists().then_some(())
        })
        .await?;
        logged(&subject, "third").await?;
        ensure!(subject.metric("access_lines_dropped_total").await? == 0);
        let client = subject.client().await?;
        subject.end(client).await
    }

    #[tokio::test]
    async fn that_is_a_pipe_without_a_reader_is_one_clear_error() -> Result<()> {
        let scratch = Scratch::new("fifo")?;
        let mut pipe = LogPipe::new(scratch.path(), "access")?;
        pipe.close();
        let text = format!(
            "log: {{ access: '{}' }}\npools: [{{ name: p, backends: [{{ id: b, address: 127.0.0.1:1 }}] }}]\n\
             routes: [{{ path: /, pool: p }}]\nlisteners: [{{ address: '127.0.0.1:0' }}]\nadmin: {{ address: '127.0.0.1:0' }}\n",
            pipe.path().display()
        );
        let file = scratch.write("edge.yaml", &text)?;
        for arguments in [&["--check"][..], &[]] {
            let mut command = Command::new(programs::ours("causeway-proxy")?);
            command.arg("--config").arg(&file).args(arguments);
            let ended = tokio::time::timeout(Duration::from_secs(30), command.output());
            let output = ended.await.context("it neither starts nor ends")??;
            let stderr = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code() == Some(2), "{}", output.status);
            ensure!(stderr.contains("it is a pipe without a reader"), "{stderr}");
        }
        Ok(())
    }
}
