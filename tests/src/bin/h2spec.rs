//! `make h2spec`: the conformance of the edge's HTTP/2 beside that of plain Pingora, which it stands on.
//!
//! Ends with an error if h2spec finds something at the edge that it does not find at Pingora in the same run.

use std::env;
use std::io;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use causeway_tests::harness::delayed::Delayed;
use causeway_tests::harness::edge::{self, Edge};
use causeway_tests::harness::node::{self, Node};
use causeway_tests::harness::process::Process;
use causeway_tests::harness::scratch::Scratch;
use causeway_tests::harness::tls::Authority;
use causeway_tests::harness::{loopback, programs, wait};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::process::Command;

/// How long a byte takes to the backend. Some cases send several frames on a stream and expect an error about the last one, which
/// there is only while the stream is open: behind a fast backend the response may have ended it.
const BACKEND_DELAY: Duration = Duration::from_millis(50);

/// How many cases there are, and which of them failed.
struct Report {
    cases: usize,
    failed: Vec<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let h2spec = h2spec()?;
    let scratch = Scratch::new("h2spec")?;
    let certificates = scratch.path().join("certificates");
    std::fs::create_dir(&certificates)?;
    Authority::new(scratch.path())?.renew(&certificates)?;
    let node = Node::start("n1", node::settings(), scratch.path()).await?;

    let delayed = Delayed::start(node.address, BACKEND_DELAY).await?;
    let backend = delayed.address;
    let listener = json!({ "address": "127.0.0.1:0", "tls": { "folder": certificates } });
    let settings = edge::settings(&[("n1", backend)]).with("listeners", json!([listener]));
    let edge = Edge::start(&settings, scratch.path()).await?;
    edge.backend_in_state("n1", "up").await?;
    let (_pingora, address) = pingora(&certificates, backend, scratch.path()).await?;

    let ours = run(&h2spec, edge.address, scratch.path()).await?;
    let stock = run(&h2spec, address, scratch.path()).await?;
    let mut out = io::stdout();
    for (what, report) in [("causeway-proxy", &ours), ("plain Pingora", &stock)] {
        let failed = report.failed.len();
        writeln!(
            out,
            "{what}: {} of {} cases pass",
            report.cases - failed,
            report.cases
        )?;
        for case in &report.failed {
            writeln!(out, "    {case}")?;
        }
    }
    let more = ours
        .failed
        .iter()
        .filter(|case| !stock.failed.contains(case));
    let more: Vec<&String> = more.collect();
    if !more.is_empty() {
        bail!("fails at the edge alone: {more:?}");
    }
    Ok(())
}

/// On the `PATH`, or where `go install` puts it.
fn h2spec() -> Result<PathBuf> {
    let home = env::var_os("GOPATH").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join("go")));
    let installed = home.map(|home| home.join("bin/h2spec"));
    installed.filter(|path| path.is_file()).map_or_else(
        || {
            programs::installed(&["h2spec"])
                .context("go install github.com/summerwind/h2spec/cmd/h2spec@latest")
        },
        Ok,
    )
}

async fn pingora(
    certificates: &Path,
    backend: SocketAddr,
    directory: &Path,
) -> Result<(Process, SocketAddr)> {
    let free = || anyhow::Ok(TcpListener::bind(loopback::own_any_port())?.local_addr()?);
    let (plain, tls) = (free()?, free()?);
    let mut command = Command::new(programs::ours("causeway-bench-pingora")?);
    command
        .args([
            "--listen",
            &plain.to_string(),
            "--listen-tls",
            &tls.to_string(),
        ])
        .args(["--backend", &backend.to_string(), "--certificate"])
        .arg(certificates.join("site.crt"))
        .arg("--key")
        .arg(certificates.join("site.key"));
    let process = Process::spawn("pingora", command, directory)?;
    wait::until("Pingora to listen", wait::SOON, async || {
        TcpStream::connect(tls).await.ok()
    })
    .await?;
    Ok((process, tls))
}

async fn run(h2spec: &Path, address: SocketAddr, directory: &Path) -> Result<Report> {
    let file = directory.join("report.xml");
    let output = Command::new(h2spec)
        .args([
            "--tls",
            "--insecure",
            "--strict",
            "--timeout",
            "5",
            "--path",
            "/echo",
        ])
        .args([
            "--host",
            &address.ip().to_string(),
            "--port",
            &address.port().to_string(),
        ])
        .arg("--junit-report")
        .arg(&file)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let report = std::fs::read_to_string(&file).with_context(|| format!("no report: {said}"))?;
    Ok(read(&report))
}

/// Reads the cases of a report in JUnit's XML, one element after the other.
fn read(report: &str) -> Report {
    let cases = || report.split("<testcase ").skip(1);
    let failed = cases().filter(|case| {
        let own = case.split("</testcase>").next().unwrap_or_default();
        own.contains("<failure") || own.contains("<error")
    });
    let name = |case: &str| {
        let attribute = |name: &str| {
            let start = format!("{name}=\"");
            let value = case
                .split(&start)
                .nth(1)
                .and_then(|rest| rest.split('"').next());
            value.unwrap_or_default().to_owned()
        };
        format!("{}: {}", attribute("package"), attribute("classname"))
    };
    Report {
        cases: cases().count(),
        failed: failed.map(name).collect(),
    }
}
