//! Work for edges: every client goes through to one backend of ours.

use std::env;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use tokio::process::Command;

use crate::bench::Options;
use crate::bench::contender::causeway;
use crate::bench::contender::envoy::Envoy;
use crate::bench::contender::haproxy::Haproxy;
use crate::bench::contender::http_proxy::HttpProxy;
use crate::bench::contender::nginx::Nginx;
use crate::bench::contender::pingora::Pingora;
use crate::bench::contender::traefik::Traefik;
use crate::bench::contender::{Contender, Contenders, Place, Running};
use crate::bench::dialect::Dialect;
use crate::bench::load::{Latency, Load, Plan, Segments};
use crate::bench::report::Figure;
use crate::bench::scenario::measuring::Work;
use crate::bench::scenario::{SMALL_BYTES, Scenario, Stage, explained, idle};
use crate::harness::http::{self, Response};
use crate::harness::process::Process;
use crate::harness::wait;

static EDGES: Contenders = &[
    &causeway::Edge,
    &causeway::OtherEdge,
    &Haproxy,
    &Nginx,
    &Pingora,
    &Envoy,
    &Traefik,
    &HttpProxy,
];

const IDLE_CLIENTS: usize = 4_000;
const BUSY_CLIENTS: usize = 64;
/// The body of a request that has one.
const POST_BYTES: usize = 1_024;

/// One kind of work for edges.
pub(super) struct EdgeWork {
    name: &'static str,
    title: &'static str,
    peer: &'static str,
    kind: Kind,
    wire: Wire,
}

/// What clients do.
#[derive(Clone, Copy)]
enum Kind {
    /// They hold on to a WebSocket.
    Idle,
    /// They come, have a message echoed, and go.
    Connect,
    /// They have messages echoed without a pause.
    Echo,
    /// They ask without a pause.
    Http,
    /// They send POST requests without a pause.
    Post(Segments),
}

/// What clients connect over.
#[derive(Clone, Copy)]
enum Wire {
    Plain,
    Tls,
}

pub(super) static IDLE: EdgeWork = EdgeWork {
    name: "edge-idle",
    title: "edge: idle proxied WebSocket",
    peer: "haproxy",
    kind: Kind::Idle,
    wire: Wire::Plain,
};

pub(super) static IDLE_TLS: EdgeWork = EdgeWork {
    name: "edge-idle-tls",
    title: "edge: idle proxied WebSocket over TLS",
    peer: "haproxy",
    kind: Kind::Idle,
    wire: Wire::Tls,
};

pub(super) static CONNECT: EdgeWork = EdgeWork {
    name: "edge-connect",
    title: "edge: new tunnel",
    peer: "haproxy",
    kind: Kind::Connect,
    wire: Wire::Plain,
};

pub(super) static ECHO: EdgeWork = EdgeWork {
    name: "edge-echo",
    title: "edge: echo round trip",
    peer: "nginx",
    kind: Kind::Echo,
    wire: Wire::Plain,
};

pub(super) static ECHO_TLS: EdgeWork = EdgeWork {
    name: "edge-echo-tls",
    title: "edge: echo round trip over TLS",
    peer: "nginx",
    kind: Kind::Echo,
    wire: Wire::Tls,
};

pub(super) static HTTP: EdgeWork = EdgeWork {
    name: "edge-http",
    title: "edge: plain keep-alive request",
    peer: "pingora",
    kind: Kind::Http,
    wire: Wire::Plain,
};

pub(super) static POST: EdgeWork = EdgeWork {
    name: "edge-post",
    title: "edge: POST of 1 KiB with its head",
    peer: "pingora",
    kind: Kind::Post(Segments::One),
    wire: Wire::Plain,
};

pub(super) static POST_IN_TWO: EdgeWork = EdgeWork {
    name: "edge-post-in-two",
    title: "edge: POST of 1 KiB in a second segment",
    peer: "pingora",
    kind: Kind::Post(Segments::Two),
    wire: Wire::Plain,
};

#[async_trait(?Send)]
impl Scenario for EdgeWork {
    fn name(&self) -> &'static str {
        self.name
    }

    fn title(&self) -> &'static str {
        self.title
    }

    fn group(&self) -> &'static str {
        "edge"
    }

    fn work(&self, options: &Options) -> String {
        let seconds = options.duration().as_secs_f64();
        let idle = options.clients(IDLE_CLIENTS);
        let busy = options.clients(BUSY_CLIENTS);
        let over_tls = match self.wire {
            Wire::Plain => "",
            Wire::Tls => " over TLS",
        };
        match self.kind {
            Kind::Idle => format!("{idle} proxied WebSockets{over_tls}, idle"),
            Kind::Connect => format!(
                "proxied WebSockets{over_tls} come, have {SMALL_BYTES} B echoed and go, without a pause for {seconds} s"
            ),
            Kind::Echo => format!(
                "{busy} proxied WebSockets{over_tls} echo {SMALL_BYTES} B without a pause for {seconds} s"
            ),
            Kind::Http => {
                format!("{busy} keep-alive connections ask without a pause for {seconds} s")
            }
            Kind::Post(segments) => {
                let body = match segments {
                    Segments::One => "in the same segment as the head",
                    Segments::Two => "in a second segment, once the head has been read",
                };
                format!(
                    "{busy} keep-alive connections POST {POST_BYTES} B, {body}, without a pause for {seconds} s"
                )
            }
        }
    }

    fn contenders(&self) -> Contenders {
        EDGES
    }

    fn peer(&self) -> &'static str {
        self.peer
    }

    fn shown(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Idle => &["fresh"],
            Kind::Connect => &["CPU of a tunnel"],
            Kind::Echo => &["CPU of a round trip"],
            Kind::Http | Kind::Post(_) => &["CPU of a request"],
        }
    }

    fn rounds(&self) -> usize {
        match self.kind {
            Kind::Idle => 1,
            _ => 3,
        }
    }

    async fn measure(&self, contender: &dyn Contender, options: &Options) -> Result<Vec<Figure>> {
        let stage = Stage::new(options)?;
        let backend = start_backend(stage.scratch.path()).await?;
        let tls = stage.certificate()?;
        let place = Place {
            backend: Some(backend.address),
            tls: Some(&tls),
            ..stage.place()
        };
        let server = contender.start(&place).await?;
        let response = explained(&server, first_response(server.address).await)?;
        let plan = match self.wire {
            Wire::Plain => server.clients(),
            Wire::Tls => server.tls_clients(&tls)?,
        };
        explained(&server, self.run(&server, plan, &response, options))
    }
}

impl EdgeWork {
    fn run(
        &self,
        server: &Running,
        plan: Plan,
        response: &Response,
        options: &Options,
    ) -> Result<Vec<Figure>> {
        match self.kind {
            Kind::Idle => idle::echoed(plan, server, options.clients(IDLE_CLIENTS), options),
            Kind::Connect => connect(plan, server, options),
            Kind::Echo => {
                let question = (SMALL_BYTES, Segments::One);
                volley(plan, server, options, question, "CPU of a round trip")
            }
            Kind::Http => {
                let plan = Plan::new(server.address, Dialect::http("/", cookie_of(response)));
                let question = (0, Segments::One);
                volley(plan, server, options, question, "CPU of a request")
            }
            Kind::Post(segments) => {
                let plan = Plan::new(server.address, Dialect::http_post("/", cookie_of(response)));
                let question = (POST_BYTES, segments);
                volley(plan, server, options, question, "CPU of a request")
            }
        }
    }
}

/// The `Cookie` of a client that has its affinity cookie already.
fn cookie_of(response: &Response) -> Option<&str> {
    let cookie = response.header("set-cookie");
    cookie.and_then(|set| set.split(';').next())
}

fn connect(plan: Plan, server: &Running, options: &Options) -> Result<Vec<Figure>> {
    let mut load = Load::new(plan)?;
    load.churn(SMALL_BYTES, options.warm_up())?;
    let work = Work::start(server)?;
    let churned = load.churn(SMALL_BYTES, options.duration())?;
    let cpu = work.per_unit(churned.clients)?;
    Ok(busy_figures(
        "CPU of a tunnel",
        cpu,
        churned.clients,
        &churned.latency,
        options,
    ))
}

fn volley(
    plan: Plan,
    server: &Running,
    options: &Options,
    (payload_bytes, segments): (usize, Segments),
    what: &'static str,
) -> Result<Vec<Figure>> {
    let mut load = Load::new(plan)?;
    load.open(options.clients(BUSY_CLIENTS))?;
    load.volley(payload_bytes, options.warm_up(), segments)?;
    let work = Work::start(server)?;
    let volleyed = load.volley(payload_bytes, options.duration(), segments)?;
    let cpu = work.per_unit(volleyed.responses)?;
    Ok(busy_figures(
        what,
        cpu,
        volleyed.responses,
        &volleyed.latency,
        options,
    ))
}

fn busy_figures(
    what: &'static str,
    cpu: f64,
    count: u64,
    latency: &Latency,
    options: &Options,
) -> Vec<Figure> {
    vec![
        Figure::microseconds(what, cpu),
        Figure::per_second("rate", count as f64 / options.duration().as_secs_f64()),
        Figure::milliseconds("p50", latency.quantile_ms(0.5)),
        Figure::milliseconds("p99", latency.quantile_ms(0.99)),
        Figure::milliseconds("p99.9", latency.quantile_ms(0.999)),
    ]
}

/// What stands behind the edges.
pub(in crate::bench) struct Backend {
    pub(in crate::bench) address: SocketAddr,
    _process: Process,
}

/// Starts the echo server as a process of its own.
pub(in crate::bench) async fn start_backend(directory: &Path) -> Result<Backend> {
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

/// Waits until the edge responds from its backend: it may not know yet that it is up.
async fn first_response(address: SocketAddr) -> Result<Response> {
    wait::until("the edge to reach its backend", wait::SOON, async || {
        http::get(address, "/")
            .await
            .ok()
            .filter(|response| response.status == 200)
    })
    .await
}
