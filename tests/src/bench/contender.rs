//! The servers under test: ours and their rivals, each started with the fairest settings known to us.
//!
//! One file for each. What has to be installed first is found by `installed`, and named where it is missing.

pub(crate) mod causeway;
pub(crate) mod centrifugo;
pub(crate) mod envoy;
pub(crate) mod haproxy;
pub(crate) mod http_proxy;
pub(crate) mod installed;
pub(crate) mod nchan;
pub(crate) mod nginx;
pub(crate) mod pingora;
pub(crate) mod socketio;
pub(crate) mod sockjs;
pub(crate) mod traefik;
pub(crate) mod tungstenite;
pub(crate) mod uwebsockets;
pub(crate) mod ws;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use tokio::net::TcpStream;

use crate::bench::certificate::Certificate;
use crate::bench::dialect::Dialect;
use crate::bench::load::Plan;
use crate::bench::proc::Family;
use crate::harness::process::{Process, Signal};
use crate::harness::programs::version_line;
use crate::harness::wait;

/// A server that takes part.
#[async_trait(?Send)]
pub(crate) trait Contender: Sync {
    /// What it is called in the report.
    fn name(&self) -> &'static str;

    /// The settings that matter for what is measured, and what only its paid edition has.
    fn settings(&self) -> &'static str;

    /// The version that is installed.
    ///
    /// # Errors
    ///
    /// None is; the error says what to do about it.
    fn version(&self) -> Result<String>;

    /// Starts it and waits until it takes connections.
    ///
    /// # Errors
    ///
    /// It does not start, or not soon.
    async fn start(&self, place: &Place<'_>) -> Result<Running>;
}

/// Contenders in the order of their rows.
pub(crate) type Contenders = &'static [&'static dyn Contender];

/// Where and how a server is to run.
pub(crate) struct Place<'a> {
    /// For its configuration and logs.
    pub(crate) directory: &'a Path,
    /// How many threads or workers it may use.
    pub(crate) threads: usize,
    /// What an edge stands in front of.
    pub(crate) backend: Option<SocketAddr>,
    /// What it serves TLS with: an edge besides, a relay alone.
    pub(crate) tls: Option<&'a Certificate>,
    /// What it shares its messages over with other nodes.
    pub(crate) redis: Option<SocketAddr>,
    /// The primaries of a Redis Cluster that it shares them over instead; none otherwise.
    pub(crate) redis_cluster: &'a [SocketAddr],
}

/// A server that has been started, of one or more programs.
pub(crate) struct Running {
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// Where operators connect, for a node.
    pub(crate) admin: Option<SocketAddr>,
    /// Where they connect over TLS, if they can.
    pub(crate) tls_address: Option<SocketAddr>,
    dialect: Dialect,
    process: Process,
    stop: Signal,
    /// Those that clients take turns with.
    beside: Vec<Running>,
    /// Those that it needs itself.
    behind: Vec<Running>,
}

impl Place<'_> {
    /// The address behind an edge.
    fn backend(&self) -> Result<SocketAddr> {
        self.backend.context("an edge needs a backend")
    }

    fn tls(&self) -> Result<&Certificate> {
        self.tls.context("an edge needs a certificate")
    }
}

impl Running {
    /// A server that ends at once when it is killed, and passes on what comes on its WebSockets.
    fn new(process: Process, address: SocketAddr) -> Self {
        Self {
            address,
            admin: None,
            tls_address: None,
            dialect: Dialect::websocket("/ws/{}"),
            process,
            stop: Signal::Kill,
            beside: Vec::new(),
            behind: Vec::new(),
        }
    }

    /// A server with workers, which outlive it unless it is asked to stop.
    fn with_workers(process: Process, address: SocketAddr) -> Self {
        let mut running = Self::new(process, address);
        running.stop = Signal::Terminate;
        running
    }

    /// The same server, with an admin listener.
    fn with_admin(mut self, address: SocketAddr) -> Self {
        self.admin = Some(address);
        self
    }

    /// The same server, which takes TLS there too.
    fn with_tls(mut self, address: SocketAddr) -> Self {
        self.tls_address = Some(address);
        self
    }

    /// The same server, whose clients speak `dialect`.
    fn speaking(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// The same server, with another one that clients take turns with.
    pub(crate) fn beside(mut self, other: Self) -> Self {
        self.beside.push(other);
        self
    }

    /// The same server, with another one that it needs.
    fn before(mut self, other: Self) -> Self {
        self.behind.push(other);
        self
    }

    /// Clients of it, and of those beside it.
    pub(crate) fn clients(&self) -> Plan {
        let plan = Plan::new(self.address, self.dialect.clone());
        let beside = self.beside.iter();
        beside.fold(plan, |plan, other| plan.and(other.address))
    }

    /// The same clients, over TLS.
    pub(crate) fn tls_clients(&self, tls: &Certificate) -> Result<Plan> {
        let address = self.tls_address.context("it serves no TLS")?;
        Ok(Plan::new(address, self.dialect.clone()).over_tls(&tls.clients))
    }

    /// Its processes, with those beside and behind it, to be measured.
    pub(crate) fn family(&self) -> Result<Family> {
        let mut family = Family::of(self.process.pid())?;
        for other in self.beside.iter().chain(&self.behind) {
            family.add(other.family()?);
        }
        Ok(family)
    }

    /// The end of its log, for an error.
    pub(crate) fn tail(&self) -> String {
        self.process.tail()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.process.signal(self.stop);
        let end = Instant::now() + Duration::from_secs(3);
        while self.process.is_running() && Instant::now() < end {
            std::thread::yield_now();
        }
    }
}

/// An address that is free now, for servers that cannot say which one the kernel gave them.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

/// Waits until something listens at `address`.
async fn accepting(process: &mut Process, address: SocketAddr) -> Result<()> {
    let what = format!("{} to listen at {address}", process.name());
    let accepted = wait::until(&what, wait::SOON, async || {
        match TcpStream::connect(address).await {
            Ok(_) => Some(true),
            Err(_) => (!process.is_running()).then_some(false),
        }
    });
    match accepted.await.with_context(|| process.tail())? {
        true => Ok(()),
        false => anyhow::bail!("{} ended at its start\n{}", process.name(), process.tail()),
    }
}
