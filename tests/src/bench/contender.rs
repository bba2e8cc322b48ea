//! The servers under test: ours and their rivals, each started with the fairest settings known to us.

mod causeway;
mod haproxy;
mod nginx;
mod pingora;
mod tungstenite;
mod ws;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::net::TcpStream;

use crate::bench::certificate::Certificate;
use crate::bench::proc::Family;
use crate::harness::process::{Process, Signal};
use crate::harness::wait;

/// A server that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Our edge.
    CausewayProxy,
    /// nginx as a proxy.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// Pingora without the edge.
    Pingora,
    /// Our node.
    CausewayNode,
    /// A plain tokio-tungstenite loop.
    Tungstenite,
    /// The npm package ws.
    Ws,
}

/// Where and how a server is to run.
pub(crate) struct Place<'a> {
    /// For its configuration and logs.
    pub(crate) directory: &'a Path,
    /// How many threads or workers it may use.
    pub(crate) threads: usize,
    /// What an edge stands in front of.
    pub(crate) backend: Option<SocketAddr>,
    /// What an edge serves TLS with.
    pub(crate) tls: Option<&'a Certificate>,
}

/// A server that has been started.
pub(crate) struct Running {
    /// Where clients connect.
    pub(crate) address: SocketAddr,
    /// Where they connect over TLS, if they can.
    pub(crate) tls_address: Option<SocketAddr>,
    process: Process,
    stop: Signal,
}

impl Contender {
    /// What it is called in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CausewayProxy => "causeway-proxy",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Pingora => "pingora",
            Self::CausewayNode => "causeway-node",
            Self::Tungstenite => "tungstenite",
            Self::Ws => "ws",
        }
    }

    /// The settings that matter for what is measured.
    pub(crate) fn settings(self) -> &'static str {
        match self {
            Self::CausewayProxy => causeway::EDGE_SETTINGS,
            Self::Nginx => nginx::SETTINGS,
            Self::Haproxy => haproxy::SETTINGS,
            Self::Pingora => pingora::SETTINGS,
            Self::CausewayNode => causeway::NODE_SETTINGS,
            Self::Tungstenite => tungstenite::SETTINGS,
            Self::Ws => ws::SETTINGS,
        }
    }

    /// The version that is installed.
    ///
    /// # Errors
    ///
    /// None is; the error says what to do about it.
    pub(crate) fn version(self) -> Result<String> {
        match self {
            Self::CausewayProxy => causeway::version("causeway-proxy"),
            Self::Nginx => nginx::version(),
            Self::Haproxy => haproxy::version(),
            Self::Pingora => pingora::version(),
            Self::CausewayNode => causeway::version("causeway-node"),
            Self::Tungstenite => Ok("tokio-tungstenite as in Cargo.lock".to_owned()),
            Self::Ws => ws::version(),
        }
    }

    /// Starts it and waits until it takes connections.
    pub(crate) async fn start(self, place: &Place<'_>) -> Result<Running> {
        let running = match self {
            Self::CausewayProxy => causeway::start_edge(place).await,
            Self::Nginx => nginx::start(place).await,
            Self::Haproxy => haproxy::start(place).await,
            Self::Pingora => pingora::start(place).await,
            Self::CausewayNode => causeway::start_node(place).await,
            Self::Tungstenite => tungstenite::start(place).await,
            Self::Ws => ws::start(place).await,
        };
        running.with_context(|| format!("cannot start {}", self.name()))
    }
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
    /// A server that ends at once when it is killed.
    fn new(process: Process, address: SocketAddr) -> Self {
        Self {
            address,
            tls_address: None,
            process,
            stop: Signal::Kill,
        }
    }

    /// The same server, which takes TLS there too.
    fn with_tls(mut self, address: SocketAddr) -> Self {
        self.tls_address = Some(address);
        self
    }

    /// A server with workers, which outlive it unless it is asked to stop.
    fn with_workers(process: Process, address: SocketAddr) -> Self {
        Self {
            address,
            tls_address: None,
            process,
            stop: Signal::Terminate,
        }
    }

    /// Its processes, to be measured.
    pub(crate) fn family(&self) -> Result<Family> {
        Family::of(self.process.pid())
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
        TcpStream::connect(address).await.ok()
    });
    accepted.await.with_context(|| process.tail()).map(drop)
}

/// What a program prints about its version: the last word of the first line that names one.
fn version_line(program: &Path, flag: &str) -> Result<String> {
    let output = Command::new(program)
        .arg(flag)
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    Ok(printed.lines().next().unwrap_or_default().trim().to_owned())
}
