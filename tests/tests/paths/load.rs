//! Uploads, aborts and slow readers of four client libraries at once, over HTTP/1.1 and HTTP/2, through one edge to two backends
//! that check what they get.
//!
//! A request has an id, and the sum of its body in a header before it; its response has both. So a response that belongs to
//! another request shows at the client, and a body that is not whole, or has something behind it, at the backend.

#[path = "load/backend.rs"]
mod backend;
#[path = "load/curl.rs"]
mod curl;
#[path = "load/h2.rs"]
mod h2;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    clients, descriptors,
    edge::{self, Edge},
    environment, http, memory,
    process::Process,
    scratch::Scratch,
    tls::{Authority, NAME},
    wait,
};
use rustls::ClientConfig;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::site::free_address;

use self::backend::Checker;

/// How long it lasts without `make mixed-load`.
const SECONDS: u64 = 20;

/// How many requests each client has under way in each version of HTTP.
const WORKERS: usize = 4;

/// For all of them to end after their time: what they wait for, and a slow machine.
const LATE: Duration = Duration::from_secs(90);

/// For what the load leaves behind to be gone: idle connections to backends last for [`IDLE`].
const GONE: Duration = Duration::from_secs(30);
const IDLE: &str = "2s";

/// How much the edge may grow between the first third of the run and its end. Bodies take no memory, and the load is the same
/// all the time: this is what the allocator may do.
const GROWTH_MAX: u64 = 24 * 1024 * 1024;

/// Files that the edge may have open at the end and not at the start, such as a probe's.
const FILES_MORE: usize = 3;

/// What a client found.
#[derive(Debug, Default, Deserialize)]
struct Report {
    /// How many requests of each kind it has sent.
    kinds: BTreeMap<String, usize>,
    failures: Vec<String>,
}

impl Report {
    fn sent(&mut self, kind: String) {
        *self.kinds.entry(kind).or_default() += 1;
    }

    fn is_busy(&self) -> bool {
        20 <= self.failures.len()
    }
}

/// What a load is put on.
#[derive(Clone)]
struct Target {
    plain: SocketAddr,
    tls: SocketAddr,
    authority: PathBuf,
    http2: Arc<ClientConfig>,
    until: Instant,
}

/// How long the run lasts.
fn length() -> Duration {
    let minutes = environment::number("CAUSEWAY_MIXED_MINUTES");
    Duration::from_secs(minutes.map_or(SECONDS, |minutes: u64| minutes * 60))
}

/// Runs all of it, and returns what it came to, for a person.
pub(crate) async fn run() -> Result<String> {
    descriptors::raise_limit()?;
    let scratch = Scratch::new("load")?;
    let authority = Authority::new(scratch.path())?;
    let certificates = scratch.path().join("certificates");
    std::fs::create_dir(&certificates)?;
    authority.renew(&certificates)?;
    let raw = Checker::start().await?;
    let command = clients::command("apps/checker.mjs", &json!({}))?;
    let mut node = Process::spawn("checker", command, scratch.path())?;
    let node_address = node.listening("app").await?;

    let (plain, tls) = (free_address()?, free_address()?);
    let settings = edge::settings(&[("raw", raw.address), ("node", node_address)])
        .with(
            "listeners",
            json!([
                { "address": plain.to_string() },
                { "address": tls.to_string(), "tls": { "folder": certificates } },
            ]),
        )
        .with("health.kind", json!("tcp"))
        .with("health.timeout", json!("10s"))
        .with("timeouts.upstream_keepalive", json!(IDLE))
        .with("log.access", json!("off"));
    let mut edge = Edge::start(&settings, scratch.path()).await?;
    for id in ["raw", "node"] {
        edge.backend_in_state(id, "up").await?;
    }
    let files = files_of(&edge)?;
    let target = Target {
        plain,
        tls,
        authority: scratch.path().join("authority.ca"),
        http2: authority.clients("h2")?,
        until: Instant::now() + length(),
    };

    let watched = async {
        sleep(length() / 3).await;
        memory::pss(edge.process.pid())
    };
    let (node_clients, python_clients, of_curl, of_rust, warm) = tokio::join!(
        library("load.mjs", &target, &scratch),
        library("load.py", &target, &scratch),
        curl::load(&target),
        h2::load(&target),
        watched,
    );
    let reports = [
        ("Node", node_clients?),
        ("httpx", python_clients?),
        ("curl", of_curl?),
        ("h2", of_rust?),
    ];
    let (warm, end) = (warm?, memory::pss(edge.process.pid())?);

    let mut faults = Vec::new();
    let mut text = String::new();
    for (name, report) in &reports {
        let requests: usize = report.kinds.values().sum();
        text.push_str(&format!(
            "{name}: {requests} requests, {:?}\n",
            report.kinds
        ));
        let failures = report.failures.iter();
        faults.extend(failures.map(|failure| format!("{name}: {failure}")));
    }
    let stats = http::get(node_address, "/stats").await?;
    let stats: Stats = serde_json::from_slice(&stats.body).context("the stats of the checker")?;
    text.push_str(&format!(
        "backends: {} and {} whole requests, {} and {} cut off\nmemory: {} KiB after a third, {} KiB at the end\n",
        raw.requests(),
        stats.requests,
        raw.cut(),
        stats.cut,
        warm / 1024,
        end / 1024
    ));
    faults.extend(
        stats
            .faults
            .iter()
            .map(|fault| format!("the backend of Node: {fault}")),
    );
    faults.extend(
        raw.faults()
            .into_iter()
            .map(|fault| format!("the raw backend: {fault}")),
    );
    if warm + GROWTH_MAX < end {
        faults.push(format!("the edge has grown from {warm} to {end} bytes"));
    }
    faults.extend(left_over(&edge, files).await);
    ensure!(edge.process.is_running(), "the edge has ended");
    ensure!(faults.is_empty(), "{text}\n{}", faults.join("\n"));
    Ok(text)
}

/// What the backend of Node counts.
#[derive(Debug, Deserialize)]
struct Stats {
    requests: usize,
    cut: usize,
    faults: Vec<String>,
}

/// The clients of a library, in a process of their own.
async fn library(script: &str, target: &Target, scratch: &Scratch) -> Result<Report> {
    let left = target.until.saturating_duration_since(Instant::now());
    let settings = json!({
        "plain": target.plain.to_string(),
        "tls": target.tls.to_string(),
        "name": NAME,
        "ca": target.authority,
        "seconds": left.as_secs_f64(),
        "workers": WORKERS,
    });
    let command = clients::command(script, &settings)?;
    let mut process = Process::spawn(script, command, scratch.path())?;
    let status = process.exit(left + LATE).await?;
    ensure!(status.success(), "{script} failed\n{}", process.tail());
    let output = process.output();
    serde_json::from_str(&output).with_context(|| format!("{script} said {output:?}"))
}

/// What the edge has open that it had not at the start, once it has had the time to close it.
async fn left_over(edge: &Edge, files: usize) -> Option<String> {
    let gone = wait::until("nothing to be left", GONE, async || {
        let page = http::get(edge.admin, "/metrics").await.ok()?.text();
        let more = files_of(edge).ok()?.saturating_sub(files);
        (crate::site::open(&page).is_empty() && more <= FILES_MORE).then_some(())
    });
    if gone.await.is_ok() {
        return None;
    }
    let page = http::get(edge.admin, "/metrics").await;
    let page = page.map(|page| page.text()).unwrap_or_default();
    let now = files_of(edge).unwrap_or_default();
    Some(format!(
        "the edge still has {:?}, and {now} files open where it had {files}",
        crate::site::open(&page)
    ))
}

/// How many files a process has open.
fn files_of(edge: &Edge) -> Result<usize> {
    let folder = format!("/proc/{}/fd", edge.process.pid());
    Ok(std::fs::read_dir(&folder)
        .with_context(|| format!("cannot read {folder}"))?
        .count())
}
