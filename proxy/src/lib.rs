//! The edge: a reverse proxy that keeps each client on its server and carries WebSockets.
//!
//! The way of a request:
//!
//! ```text
//! client ─▶ server::listeners ─▶ downstream::acceptor ─▶ server::app ─▶ request::forward ─┬─ upstream ─▶ backend
//!           (a worker thread)    PROXY header, limits,   heads, HTTP/1    │ attempts      └─ tunnel (an upgrade)
//!                                TLS handshake           and HTTP/2       ▼
//!                                                                    request::exchange ─▶ balancer
//!                                                                    every decision       affinity, pick, health
//! ```
//!
//! Mounted in another Pingora server ([`Plugin`]), requests come through the phases of Pingora's proxy
//! (`request::proxy_http`), which ask `request::exchange` for the same decisions; upgrades go to the same engine.
//!
//! Imports point down: `server` · `request` · `upstream` · `balancer`, `downstream` · `limits`, `tls`, `tunnel` ·
//! `net` · `config` · `metrics`, `http`. `make structure` prints them as they are.
//!
//! `run` is the program; [`Plugin`] is the same edge for a Pingora server of your own.

mod balancer;
mod config;
mod downstream;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzz;
mod http;
mod limits;
mod metrics;
mod net;
mod plugin;
mod request;
mod server;
mod tls;
mod tunnel;
mod upstream;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use pingora::apps::http_app::HttpServer;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownWatch};
use pingora::services::background::{BackgroundService, background_service};
use tokio_util::sync::CancellationToken;

pub use crate::config::Config;
use crate::config::ListenerConfig;
use crate::downstream::acceptor::Entrance;
use crate::downstream::acceptor::Entrances;
use crate::metrics::Metrics;
pub use crate::plugin::AfterDrain;
pub use crate::plugin::Plugin;
use crate::request::access_log::AccessLog;
pub use crate::request::access_log::AccessLogError;
pub use crate::request::proxy_http::Edge;
pub use crate::request::proxy_http::RequestContext;
use crate::server::admin;
use crate::server::components;
use crate::server::components::Parts;
pub use crate::server::components::StartError;
pub use crate::server::listeners::BindError;
use crate::server::listeners::Bound;
use crate::server::listeners::ListeningService;
use crate::server::logging;
use crate::server::shutdown::Ending;
use crate::server::shutdown::Haste;
use crate::server::shutdown::Signals;
use crate::server::supervisor::keep_running;
use crate::tls::Connectors;
pub use crate::tls::{CertificateError, PoolTlsError, TicketKeyError, TlsError};

/// Longer than any drain: the end of the process is ours, not Pingora's.
const GRACE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs the edge until a signal ends the process. `config` was read from `file`, which SIGHUP has read anew.
///
/// # Errors
///
/// [`StartError`] before anything is served. It does not return otherwise: the drain exits the process.
pub fn run(config: Config, file: PathBuf) -> Result<(), StartError> {
    logging::start(&config.log).map_err(StartError::Log)?;
    let _flush = logging::FlushAtEnd;
    for warning in config.warnings(SystemTime::now()) {
        tracing::warn!(warning, "the configuration is likely not meant so");
    }
    components::open_files(&config)?;
    let bound = config
        .listeners
        .iter()
        .map(|listener| Bound::new(listener.address, &config.timeouts))
        .collect::<Result<Vec<_>, _>>()?;
    let admin = config
        .admin
        .map(|address| Bound::new(address, &config.timeouts))
        .transpose()?;
    let entrances = entrances(&config, &bound)?;
    let parts = Parts::new(&config)?;
    let entrances = Arc::new(Entrances::new(
        entrances,
        Arc::clone(&parts.proxy.gate),
        Arc::clone(&parts.proxy.metrics),
    ));
    let haste = Haste::default();
    let mut server = Server::new_with_opt_and_conf(None, server_conf(&config));
    server.bootstrap();
    server.add_service(ListeningService::new(
        "edge",
        parts.app(Arc::clone(&entrances)),
        bound,
        server.configuration.threads,
        // Whoever finds nobody listening knows that the answers to others end their connections.
        parts.connections.draining(),
    ));
    if let Some(bound) = admin {
        let answers = HttpServer::new_app(parts.admin(entrances.terminators()));
        // It answers for as long as there is a process.
        let never = CancellationToken::new();
        let service = ListeningService::new("admin", answers, vec![bound], 1, never);
        server.add_service(service.bounded(admin::LIMITS));
    }
    server.add_service(background_service("watch", parts.watch(Some(file))));
    server.add_service(background_service(
        "certificates",
        Renewal {
            entrances,
            metrics: Arc::clone(&parts.proxy.metrics),
            background: parts.background.clone(),
        },
    ));
    server.add_service(background_service(
        "drain",
        Ending {
            drain: parts.drain(&config),
            haste: haste.clone(),
        },
    ));
    server.run(RunArgs {
        shutdown_signal: Box::new(Signals {
            haste,
            reloader: Arc::clone(&parts.reloader),
            access: parts.proxy.access.clone(),
        }),
    });
    Ok(())
}

/// Follows the files of the certificates.
struct Renewal {
    entrances: Arc<Entrances>,
    metrics: Arc<Metrics>,
    background: CancellationToken,
}

#[async_trait]
impl BackgroundService for Renewal {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let (entrances, stop) = (&self.entrances, &self.background);
        let run = || entrances.renew(stop.child_token());
        keep_running("certificates", Arc::clone(&self.metrics), stop.clone(), run).await;
    }
}

/// Says whether the edge could start with `config`: whether there are enough open files, whether it may listen where it should, and
/// whether the files that it names are right: certificates, keys, authorities, the access log.
/// Returns warnings: what keeps it from nothing, and is likely not meant so.
///
/// # Errors
///
/// [`StartError`] for the first that is wrong, as [`run`] would have it.
pub fn check(config: &Config) -> Result<Vec<String>, StartError> {
    let mut warnings = config.warnings(SystemTime::now());
    components::open_files(config)?;
    for listener in &config.listeners {
        let wrong = entrance(config, listener)?.wrong_certificates(SystemTime::now());
        let address = listener.address;
        warnings.extend(wrong.into_iter().map(|why| format!("{address}: {why}")));
        Bound::check(address, &config.timeouts)?;
    }
    if let Some(address) = config.admin {
        Bound::check(address, &config.timeouts)?;
    }
    Connectors::load(config)?;
    AccessLog::check(&config.log.access)?;
    Ok(warnings)
}

fn entrance(config: &Config, listener: &ListenerConfig) -> Result<Entrance, StartError> {
    let entrance = Entrance::new(listener, config.timeouts.head);
    entrance.map_err(|source| StartError::Tls {
        listener: listener.address,
        source,
    })
}

/// The way in of each listener, by the address that it really has.
fn entrances(config: &Config, bound: &[Bound]) -> Result<Vec<(SocketAddr, Entrance)>, StartError> {
    let listeners = config.listeners.iter().zip(bound);
    listeners
        .map(|(listener, bound)| Ok((bound.address, entrance(config, listener)?)))
        .collect()
}

fn server_conf(config: &Config) -> ServerConf {
    let threads = config.worker_threads();
    ServerConf {
        threads,
        grace_period_seconds: Some(GRACE.as_secs()),
        graceful_shutdown_timeout_seconds: Some(0),
        ca_file: tls::no_authorities_file(),
        ..ServerConf::default()
    }
}
