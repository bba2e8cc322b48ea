//! curl, as the system has it: uploads of known and of unknown length in HTTP/1.1 and HTTP/2, one process for each.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result};
use causeway_tests::harness::{programs, tls::NAME};
use tokio::{
    io::AsyncWriteExt as _,
    process::Command,
    time::{Instant, sleep, timeout},
};

use super::{Report, Target, h2::Plan};

/// Between two processes: they are for their own way to send, not for the load.
const PAUSE: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_secs(40);

/// Nothing if curl is not there.
pub(super) async fn load(target: &Target) -> Result<Report> {
    let mut report = Report::default();
    let Ok(curl) = programs::installed(&["curl"]) else {
        eprintln!("curl is not installed: its part is left out");
        return Ok(report);
    };
    let mut number = 0;
    while Instant::now() < target.until && !report.is_busy() {
        number += 1;
        let plan = Plan::new(&format!("curl-{number}"));
        let http2 = fastrand::bool();
        // A file has a length, what comes through a pipe has none.
        let kind = ["stream", "length", "cut"][fastrand::usize(..3)];
        let version = if http2 { "http2" } else { "http1" };
        let mut command = Command::new(&curl);
        command.args(["--silent", "--show-error", "--include", "--max-time", "30"]);
        if http2 {
            let place = format!("{NAME}:{}:{}", target.tls.port(), target.tls.ip());
            command.args(["--http2", "--resolve", &place, "--cacert"]);
            command.arg(&target.authority);
            command.arg(format!("https://{NAME}:{}/load", target.tls.port()));
        } else {
            command.args(["--http1.1", &format!("http://{}/load", target.plain)]);
        }
        for (name, value) in plan.headers() {
            command.args(["--header", &format!("{name}: {value}")]);
        }
        match kind {
            "length" => command.args(["--request", "POST", "--data-binary", "@-"]),
            _ => command.args(["--request", "POST", "--upload-file", "-"]),
        };
        let done = timeout(PATIENCE, one(command, &plan, kind == "cut")).await;
        let done = done.unwrap_or_else(|_| Err(anyhow::anyhow!("no end")));
        if let Err(error) = done {
            let bytes = plan.body.len();
            report
                .failures
                .push(format!("{version} {kind} of {bytes} bytes: {error:#}"));
        }
        report.sent(format!("{version} {kind}"));
        sleep(PAUSE).await;
    }
    Ok(report)
}

/// Runs it with the body on its input. One that is cut is killed within it.
async fn one(mut command: Command, plan: &Plan, cut: bool) -> Result<()> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().context("cannot start curl")?;
    let mut input = child.stdin.take().context("its input is piped")?;
    let pieces = plan.pieces();
    if cut {
        for piece in &pieces[..pieces.len() / 2] {
            input.write_all(piece).await.ok();
        }
        input.flush().await.ok();
        sleep(PAUSE).await;
        child.kill().await?;
        return Ok(());
    }
    let sending = async {
        for piece in pieces {
            if input.write_all(piece).await.is_err() {
                return;
            }
        }
        drop(input);
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), sending);
    let output = output?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Behind interim responses, which end as heads do.
    let mut rest = &*text;
    let (head, body) = loop {
        let (head, behind) = rest
            .split_once("\r\n\r\n")
            .with_context(|| format!("no response: {output:?}"))?;
        if head.split(' ').nth(1) != Some("100") {
            break (head, behind);
        }
        rest = behind;
    };
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        let mut named = lines.filter(|(found, _)| found.eq_ignore_ascii_case(name));
        named
            .next()
            .map(|(_, value)| value.to_owned())
            .unwrap_or_default()
    };
    plan.check(status.unwrap_or_default(), &header("x-id"), body.as_bytes())
}
