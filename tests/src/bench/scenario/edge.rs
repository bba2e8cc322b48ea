//! Work for edges: every client goes through to one backend of ours.

use std::env;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use tokio::process::Command;

use crate::bench::Options;
use crate::bench::certificate::Certificate;
use crate::bench::contender::Running;
use crate::bench::load::{Load, Plan};
use crate::bench::report::Figure;
use crate::bench::scenario::{SMALL_BYTES, Scenario, Work};
use crate::harness::http::{self, Answer};
use crate::harness::process::Process;
use crate::harness::wait;

/// What stands behind the edges.
pub(super) struct Backend {
    pub(super) address: SocketAddr,
    _process: Process,
}

/// Starts the echo server as a process of its own.
pub(super) async fn start_backend(directory: &Path) -> Result<Backend> {
    let mut command =
        Command::new(env::current_exe().context("cannot tell where this program is")?);
    command.arg("backend");
    let mut process = Process::spawn("backend", command, directory)?;
    let address = process.listening("bench").await?;
    Ok(Backend {
        address,
        _process: process,
    })
}

/// Clients that upgrade, over TLS if there is a certificate for it.
fn websockets(server: &Running, tls: Option<&Certificate>) -> Result<Plan> {
    let Some(tls) = tls else {
        return Ok(Plan::websocket(server.address, "/"));
    };
    let address = server.tls_address.context("it serves no TLS")?;
    Ok(Plan::websocket(address, "/").over_tls(&tls.clients))
}

/// Measures what idle WebSockets take.
pub(super) async fn idle(
    server: &Running,
    tls: Option<&Certificate>,
    scenario: Scenario,
    options: &Options,
) -> Result<Vec<Figure>> {
    first_answer(server.address).await?;
    super::idle(websockets(server, tls)?, server, scenario, options)
}

/// Measures WebSocket round trips.
pub(super) async fn echo(
    server: &Running,
    tls: Option<&Certificate>,
    scenario: Scenario,
    options: &Options,
) -> Result<Vec<Figure>> {
    first_answer(server.address).await?;
    let mut load = Load::new(websockets(server, tls)?)?;
    load.open(scenario.clients(options))?;
    volley(server, &mut load, options, "CPU of a round trip")
}

/// Measures HTTP requests, as of a client that has its affinity cookie already.
pub(super) async fn http(
    server: &Running,
    scenario: Scenario,
    options: &Options,
) -> Result<Vec<Figure>> {
    let answer = first_answer(server.address).await?;
    let cookie = answer
        .header("set-cookie")
        .and_then(|set| set.split(';').next());
    let mut load = Load::new(Plan::http(server.address, "/", cookie))?;
    load.open(scenario.clients(options))?;
    volley(server, &mut load, options, "CPU of a request")
}

fn volley(
    server: &Running,
    load: &mut Load,
    options: &Options,
    what: &'static str,
) -> Result<Vec<Figure>> {
    load.volley(SMALL_BYTES, options.warm_up())?;
    let work = Work::start(server)?;
    let volleyed = load.volley(SMALL_BYTES, options.duration())?;
    let cpu = work.per_unit(volleyed.answers)?;
    Ok(vec![
        Figure::microseconds(what, cpu),
        Figure::per_second(
            "rate",
            volleyed.answers as f64 / options.duration().as_secs_f64(),
        ),
        Figure::milliseconds("p50", volleyed.latency.quantile_ms(0.5)),
        Figure::milliseconds("p99", volleyed.latency.quantile_ms(0.99)),
    ])
}

/// Waits until the edge answers from its backend: it may not know yet that it is up.
async fn first_answer(address: SocketAddr) -> Result<Answer> {
    wait::until("the edge to reach its backend", wait::SOON, async || {
        http::get(address, "/")
            .await
            .ok()
            .filter(|answer| answer.status == 200)
    })
    .await
}
