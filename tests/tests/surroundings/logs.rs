//! Standard output and standard error are closed, full, or never read.

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    http::{self, Connection},
    output::{Fault, Output},
    process::{Streams, json_lines},
    scratch::Scratch,
    wait,
};
use serde_json::Value;

use crate::subject::{Kind, Subject, on_each_program};

/// What the programs say once standard error works again.
const LINES_LOST: &str =
    "log lines were lost: standard error could not be written, or not fast enough";

/// What the edge says once its access log works again.
const ACCESS_LINES_LOST: &str = "the access log can be written again, lines were lost";

on_each_program!(
    a_closed_stderr_costs_lines_alone,
    a_stderr_that_nobody_reads_costs_lines_alone,
    a_full_stderr_costs_lines_alone,
);

async fn a_closed_stderr_costs_lines_alone(kind: Kind) -> Result<()> {
    stderr_fails(kind, Fault::Closed).await
}

async fn a_stderr_that_nobody_reads_costs_lines_alone(kind: Kind) -> Result<()> {
    stderr_fails(kind, Fault::Unread).await
}

async fn a_full_stderr_costs_lines_alone(kind: Kind) -> Result<()> {
    stderr_fails(kind, Fault::Full).await
}

/// How many lines were lost, by all log lines that say so, and how many of those there are.
fn told_of(log: &str, message: &str) -> (u64, usize) {
    let lines = json_lines(log);
    let fields = lines.iter().map(|line| &line["fields"]);
    let told: Vec<u64> = fields
        .filter(|fields| fields["message"] == message)
        .filter_map(|fields| fields["lost"].as_u64())
        .collect();
    (told.iter().sum(), told.len())
}

async fn stderr_fails(kind: Kind, fault: Fault) -> Result<()> {
    let scratch = Scratch::new("stderr-fails")?;
    let mut stderr = Output::new(fault, scratch.path(), "stderr")?;
    let streams = Streams {
        stderr: Some(stderr.stdio()?),
        ..Streams::default()
    };
    let started = Subject::start(kind, &scratch, |settings| settings, streams);
    let mut subject = reading(&mut stderr, started).await?;
    let pid = subject.process.pid();

    stderr.fail(pid)?;
    subject.work().await?;
    // Nobody can have a node log so much that it does not fit into the queue.
    let is_lossless = (kind, fault) == (Kind::Node, Fault::Unread);
    if fault == Fault::Unread && !is_lossless {
        subject.log_too_much().await?;
    }
    if is_lossless {
        ensure!(subject.lost_lines().await? == 0, "lines were lost");
    } else {
        // The log has a thread of its own, and counts what it could not write.
        wait::until("lines to be lost", wait::SOON, async || {
            (0 < subject.lost_lines().await.ok()?).then_some(())
        })
        .await?;
    }

    stderr.recover(pid)?;
    wait::until(
        "the log to tell of all lost lines",
        wait::SOON,
        async || {
            let (lost, notices) = told_of(&stderr.text(), LINES_LOST);
            let counted = subject.lost_lines().await.ok()?;
            (lost == counted && (0 < notices) != is_lossless).then_some(())
        },
    )
    .await
    .with_context(|| format!("{:?}", told_of(&stderr.text(), LINES_LOST)))?;
    let lines = json_lines(&stderr.text()).len();
    wait::until("another line", wait::SOON, async || {
        subject.log_something().await.ok()?;
        (lines < json_lines(&stderr.text()).len()).then_some(())
    })
    .await?;

    let client = subject.client().await?;
    stderr.fail(pid)?;
    subject.end(client).await
}

/// Waits for what `starting` gives, while a pipe is read.
async fn reading<T>(output: &mut Output, starting: impl Future<Output = Result<T>>) -> Result<T> {
    let read = async {
        loop {
            output.text();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        started = starting => started,
        never = read => never,
    }
}

mod stdout {
    use super::*;

    macro_rules! on_edge_and_plugin {
        ($($test:ident: $fault:expr),+ $(,)?) => {
            mod on_the_edge {
                $(#[tokio::test] async fn $test() -> anyhow::Result<()> {
                    super::fails(crate::subject::Kind::Edge, $fault).await
                })+
            }
            mod on_the_plugin {
                $(#[tokio::test] async fn $test() -> anyhow::Result<()> {
                    super::fails(crate::subject::Kind::Plugin, $fault).await
                })+
            }
        };
    }

    on_edge_and_plugin!(
        that_is_closed_costs_access_lines_alone: causeway_tests::harness::output::Fault::Closed,
        that_nobody_reads_costs_access_lines_alone: causeway_tests::harness::output::Fault::Unread,
        that_is_full_costs_access_lines_alone: causeway_tests::harness::output::Fault::Full,
    );

    async fn fails(kind: Kind, fault: Fault) -> Result<()> {
        let scratch = Scratch::new("stdout-fails")?;
        let mut stdout = Output::new(fault, scratch.path(), "stdout")?;
        let streams = Streams {
            stdout: Some(stdout.stdio()?),
            ..Streams::default()
        };
        let mut subject = Subject::start(kind, &scratch, |settings| settings, streams).await?;
        let pid = subject.process.pid();
        let lost = async |subject: &Subject| subject.metric("access_lines_dropped_total").await;

        stdout.fail(pid)?;
        while lost(&subject).await? == 0 {
            many_requests(&subject).await?;
        }
        subject.work().await?;

        stdout.recover(pid)?;
        wait::until(
            "the log to tell of all lost lines",
            wait::SOON,
            async || {
                stdout.text();
                http::get(subject.address, "/").await.ok()?;
                let (told, notices) = told_of(&subject.process.log(), ACCESS_LINES_LOST);
                (told == lost(&subject).await.ok()? && 0 < notices).then_some(())
            },
        )
        .await?;
        http::get(subject.address, "/recovered").await?;
        wait::until("a line of the access log", wait::SOON, async || {
            let lines: Vec<Value> = json_lines(&stdout.text());
            lines
                .iter()
                .any(|line| line["path"] == "/recovered")
                .then_some(())
        })
        .await?;

        let client = subject.client().await?;
        stdout.fail(pid)?;
        subject.end(client).await
    }

    /// Requests that the edge responds itself.
    async fn many_requests(subject: &Subject) -> Result<()> {
        const AT_ONCE: usize = 20;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\n\r\n", subject.address);
        let mut connection = Connection::open(subject.address).await?;
        for _ in 0..AT_ONCE {
            connection.send(&request).await?;
            let response = connection.response().await?;
            ensure!(response.status == 404, "{response:?}");
            if response.header("connection") == Some("close") {
                break;
            }
        }
        Ok(())
    }
}
