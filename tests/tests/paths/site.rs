//! What the table runs against: the edge, the edge in a Pingora server with and without TLS, and the backends behind them.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    edge::{self, Edge, Program as Runs},
    http, loopback,
    scratch::Scratch,
    settings::Settings,
    tls::Authority,
    wait,
};
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    backend::{Backend, Exchanges},
    exchange::{Exchange, ID},
    path::{Path, Program},
};

/// For what the clients leave behind to be gone.
const GONE: Duration = Duration::from_secs(15);

/// Of each deadline of the edge that a row waits for.
const DEADLINE: &str = "5s";

/// Who the backend is that speaks TLS.
const BACKEND_NAME: &str = "backend.example";

/// The largest request body that is let through.
pub(crate) const BODY_MAX: usize = 2 * 1024 * 1024;

/// The fields are dropped in this order: the programs first, their files last.
pub(crate) struct Site {
    pub(crate) edge: Edge,
    pub(crate) plugin: Edge,
    pub(crate) plugin_tls: Edge,
    /// The listener of the edge that speaks TLS.
    tls: SocketAddr,
    pub(crate) exchanges: Arc<Exchanges>,
    /// What the affinity cookie of a client holds.
    pub(crate) cookie: String,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    _backends: Vec<Backend>,
    _scratch: Scratch,
}

impl Site {
    /// Starts all of it: `/` goes to one backend, `/two` to two, `/closing` to one of its own, `/tls` to one that speaks
    /// TLS, `/down` to one that is not there.
    pub(crate) async fn start() -> Result<Self> {
        let scratch = Scratch::new("paths")?;
        let exchanges = Arc::new(Exchanges::default());
        let mut backends = Vec::new();
        for _ in 0..4 {
            backends.push(Backend::start(&exchanges).await?);
        }
        let authority = Authority::new(scratch.path())?;
        let certificate = authority.certify(BACKEND_NAME)?;
        backends.push(Backend::start_tls(&exchanges, certificate).await?);
        let certificates = folder(&scratch, "certificates")?;
        authority.renew(&certificates)?;
        let settings = settings(&backends, &scratch.path().join("authority.ca"))?;

        let (plain, tls) = (free_address()?, free_address()?);
        let listeners = json!([
            { "address": plain.to_string() },
            { "address": tls.to_string(), "tls": { "folder": certificates } },
        ]);
        let both = settings.clone().with("listeners", listeners);
        let mut edge = Edge::start(&both, &folder(&scratch, "edge")?).await?;
        edge.address = plain;
        let plugin = Edge::start_in(Runs::Plugin, &settings, &folder(&scratch, "plugin")?).await?;
        let plugin_tls = Edge::start_plugin_tls(
            &settings,
            &folder(&scratch, "plugin-tls")?,
            &certificates.join("site.crt"),
            &certificates.join("site.key"),
        )
        .await?;
        for program in [&edge, &plugin, &plugin_tls] {
            for id in ["b1", "b2", "b3", "c1", "t1"] {
                program.backend_in_state(id, "up").await?;
            }
        }
        for address in [plain, tls] {
            wait::until("the edge to listen", wait::SOON, async || {
                TcpStream::connect(address).await.ok()
            })
            .await?;
        }
        let mut site = Self {
            edge,
            plugin,
            plugin_tls,
            tls,
            exchanges,
            cookie: String::new(),
            http1: authority.clients("http/1.1")?,
            http2: authority.clients("h2")?,
            _backends: backends,
            _scratch: scratch,
        };
        let asked = Exchange::next();
        site.exchanges.add(&asked);
        let id = asked.id.to_string();
        let response = http::get_with(site.edge.address, "/", &[(ID, &id)]).await?;
        site.cookie = response.cookie("causeway").context("no affinity cookie")?;
        Ok(site)
    }

    /// Where clients of this path connect.
    pub(crate) fn address(&self, path: Path) -> SocketAddr {
        match path.program() {
            Program::Edge if path.is_tls() => self.tls,
            Program::Edge => self.edge.address,
            Program::Plugin => self.plugin.address,
            Program::PluginTls => self.plugin_tls.address,
        }
    }

    pub(crate) fn clients(&self, path: Path) -> &Arc<ClientConfig> {
        if path.is_h2() {
            &self.http2
        } else {
            &self.http1
        }
    }

    /// What the programs still have open, once nobody is there any more: connections of clients, requests, tunnels.
    pub(crate) async fn left_over(&self) -> Vec<String> {
        let mut left = Vec::new();
        for (name, edge) in self.programs() {
            let gone = wait::until("nothing to be left", GONE, async || {
                let page = http::get(edge.admin, "/metrics").await.ok()?.text();
                open(&page).is_empty().then_some(())
            });
            if gone.await.is_err() {
                let page = http::get(edge.admin, "/metrics").await;
                let page = page.map(|page| page.text()).unwrap_or_default();
                left.push(format!("the {name} still has {:?}", open(&page)));
            }
        }
        left
    }

    pub(crate) fn programs(&self) -> [(&'static str, &Edge); 3] {
        [
            (Program::Edge.name(), &self.edge),
            (Program::Plugin.name(), &self.plugin),
            (Program::PluginTls.name(), &self.plugin_tls),
        ]
    }

    /// Names of the programs that have ended, which none should.
    pub(crate) fn ended(&mut self) -> Vec<&'static str> {
        let programs = [
            (Program::Edge.name(), &mut self.edge),
            (Program::Plugin.name(), &mut self.plugin),
            (Program::PluginTls.name(), &mut self.plugin_tls),
        ];
        let ended = programs
            .into_iter()
            .filter_map(|(name, edge)| (!edge.process.is_running()).then_some(name));
        ended.collect()
    }
}

/// The lines of a page of metrics that count what is open now, and count any.
pub(crate) fn open(page: &str) -> Vec<&str> {
    const OPEN: [&str; 4] = [
        "causeway_proxy_connections_open",
        "causeway_proxy_requests_in_flight",
        "causeway_proxy_requests_waiting",
        "causeway_proxy_tunnels_open",
    ];
    let of = |line: &str| line.split(['{', ' ']).next().unwrap_or_default().to_owned();
    let lines = page.lines().filter(|line| OPEN.contains(&&*of(line)));
    lines.filter(|line| !line.ends_with(" 0")).collect()
}

fn settings(backends: &[Backend], authority: &std::path::Path) -> Result<Settings> {
    let backend =
        |id: &str, address: SocketAddr| json!({ "id": id, "address": address.to_string() });
    let [one, two, three, closing, tls] = backends else {
        anyhow::bail!("five backends are needed");
    };
    let pool = |name: &str, backends: Value| json!({ "name": name, "backends": backends });
    let pools = json!([
        pool("one", json!([backend("b1", one.address)])),
        pool(
            "two",
            json!([backend("b2", two.address), backend("b3", three.address)])
        ),
        pool("closing", json!([backend("c1", closing.address)])),
        json!({
            "name": "tls",
            "tls": { "ca": authority, "server_name": BACKEND_NAME },
            "backends": [backend("t1", tls.address)],
        }),
        // Nobody else takes the port: the address is ours alone.
        pool("down", json!([backend("d1", free_address()?)])),
    ]);
    Ok(edge::settings(&[])
        .with("pools", pools)
        .with(
            "routes",
            json!([
                { "path": "/", "pool": "one" },
                { "path": "/two", "pool": "two" },
                { "path": "/closing", "pool": "closing" },
                { "path": "/tls", "pool": "tls" },
                { "path": "/down", "pool": "down" },
            ]),
        )
        .with("websockets_over_http2", json!(true))
        .with("health.kind", json!("tcp"))
        // A probe that a busy machine responds late must not look like a fault.
        .with("health.timeout", json!("10s"))
        .with("timeouts.connect", json!("10s"))
        .with("timeouts.upstream_read", json!(DEADLINE))
        .with("timeouts.downstream_read", json!(DEADLINE))
        .with("timeouts.upgrade", json!(DEADLINE))
        .with(
            "limits.body_size",
            json!(format!("{}MiB", BODY_MAX / 1024 / 1024)),
        )
        .with("trusted_proxies", json!(["127.0.77.0/24"])))
}

fn folder(scratch: &Scratch, name: &str) -> Result<PathBuf> {
    let folder = scratch.path().join(name);
    std::fs::create_dir(&folder)?;
    Ok(folder)
}

pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(loopback::own_any_port())?.local_addr()?)
}
