//! The edge: a reverse proxy that keeps each client on its server and carries WebSockets.
//!
//! The path of a request:
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
//! Imports point down: `server` · `request` · `upstream` · `balancer`, `downstream` · `tunnel` · `limits`, `tls` ·
//! `net` · `config` · `metrics`, `http`. `make structure` prints them as they are.
//!
//! `run` is the program, `ctl` the client of its admin listener; [`Plugin`] is the same edge as a part of another Pingora server.

mod balancer;
mod config;
#[doc(hidden)]
pub mod ctl;
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
use causeway_conf::ServiceManager;
use pingora::apps::http_app::HttpServer;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownWatch};
use pingora::services::background::{BackgroundService, background_service};
use tokio_util::sync::CancellationToken;

pub use crate::config::Config;
use crate::config::ListenerConfig;
use crate::downstream::acceptor::Acceptor;
use crate::downstream::acceptor::Acceptors;
use crate::metrics::Metrics;
pub use crate::plugin::AfterDrain;
pub use crate::plugin::Plugin;
use crate::request::access_log::AccessLog;
pub use crate::request::access_log::AccessLogError;
pub use crate::request::proxy_http::Edge;
pub use crate::request::proxy_http::RequestContext;
use crate::server::admin;
pub use crate::server::admin::SocketError;
use crate::server::admin::{AdminApp, AdminSocket, SocketService};
use crate::server::components;
use crate::server::components::Components;
pub use crate::server::components::StartError;
pub use crate::server::listeners::BindError;
use crate::server::listeners::BoundListener;
use crate::server::listeners::ListeningService;
use crate::server::logging;
use crate::server::reload::Program;
use crate::server::shutdown::ShutdownMode;
use crate::server::shutdown::ShutdownService;
use crate::server::shutdown::Signals;
use crate::server::supervisor::keep_running;
use crate::tls::Connectors;
pub use crate::tls::{CertificateError, PoolTlsError, TicketKeyError, TlsError};

/// Longer than any drain: the edge exits the process itself, before Pingora does.
const GRACE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs the edge until a signal ends the process. `config` was read from `file`, if there is one, and the environment, which are
/// read again on SIGHUP.
///
/// # Errors
///
/// [`StartError`] before any connection is accepted. It does not return otherwise: the drain exits the process.
pub fn run(config: Config, file: Option<PathBuf>) -> Result<(), StartError> {
    logging::start(&config.log).map_err(StartError::Log)?;
    let _flush = logging::FlushAtEnd;
    for warning in config.warnings(SystemTime::now()) {
        tracing::warn!(warning, "configuration warning");
    }
    components::open_files(&config)?;
    let bound = config
        .listeners
        .iter()
        .map(|listener| BoundListener::new(listener.address, &config.timeouts))
        .collect::<Result<Vec<_>, _>>()?;
    let admin = config
        .admin
        .address
        .map(|address| BoundListener::new(address, &config.timeouts))
        .transpose()?;
    let socket = config.admin.socket.as_deref();
    let socket = socket.map(AdminSocket::bind).transpose()?;
    let acceptors = acceptors(&config, &bound)?;
    let components = Components::new(&config)?;
    let acceptors = Arc::new(Acceptors::new(
        acceptors,
        Arc::clone(&components.proxy.gate),
        Arc::clone(&components.proxy.metrics),
    ));
    let mode = ShutdownMode::default();
    let manager = Arc::new(ServiceManager::from_environment());
    let mut server = Server::new_with_opt_and_conf(None, server_conf(&config));
    server.bootstrap();
    server.add_service(ListeningService::new(
        "edge",
        components.app(Arc::clone(&acceptors)),
        bound,
        server.configuration.threads,
        // Listeners close only once the drain is visible to requests: their responses then close the connections.
        components.connections.draining(),
    ));
    let program = Program {
        file,
        manager: Arc::clone(&manager),
    };
    let socket_file = socket.as_ref().map(AdminSocket::file);
    let shown = components.admin(acceptors.terminators(), Some(program.clone()));
    if let Some(socket) = socket {
        let shown = Arc::clone(&shown);
        let app = move |peer| HttpServer::new_app(AdminApp::over_socket(Arc::clone(&shown), peer));
        server.add_service(SocketService::new(app, socket));
    }
    if let Some(bound) = admin {
        let app = HttpServer::new_app(AdminApp::over_tcp(shown));
        // The admin listener stays open until the process exits.
        let never = CancellationToken::new();
        let service = ListeningService::new("admin", app, vec![bound], 1, never);
        server.add_service(service.bounded(admin::LIMITS));
    }
    server.add_service(background_service(
        "watch",
        components.background_tasks(Some(program)),
    ));
    server.add_service(background_service(
        "certificates",
        CertificateWatch {
            acceptors,
            metrics: Arc::clone(&components.proxy.metrics),
            background: components.background.clone(),
        },
    ));
    server.add_service(background_service(
        "drain",
        ShutdownService {
            drain: components.drain(socket_file),
            mode: mode.clone(),
            manager: Arc::clone(&manager),
        },
    ));
    server.run(RunArgs {
        shutdown_signal: Box::new(Signals {
            mode,
            reloader: Arc::clone(&components.reloader),
            access: components.proxy.access.clone(),
            manager,
        }),
    });
    Ok(())
}

/// The background service that reloads certificates when their files change.
struct CertificateWatch {
    acceptors: Arc<Acceptors>,
    metrics: Arc<Metrics>,
    background: CancellationToken,
}

#[async_trait]
impl BackgroundService for CertificateWatch {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let (acceptors, stop) = (&self.acceptors, &self.background);
        let run = || acceptors.watch_certificates(stop.child_token());
        keep_running("certificates", Arc::clone(&self.metrics), stop.clone(), run).await;
    }
}

/// Checks whether the edge could start with `config`: the limit of open files, the addresses to listen on, and the files that
/// are named in it (certificates, keys, authorities, the access log). Returns warnings about settings that are valid, but
/// probably not intended.
///
/// # Errors
///
/// [`StartError`] for the first problem, as [`run`] would return it.
pub fn check(config: &Config) -> Result<Vec<String>, StartError> {
    let mut warnings = config.warnings(SystemTime::now());
    components::open_files(config)?;
    for listener in &config.listeners {
        let problems = acceptor(config, listener)?.certificate_problems(SystemTime::now());
        let address = listener.address;
        warnings.extend(problems.into_iter().map(|why| format!("{address}: {why}")));
        BoundListener::check(address, &config.timeouts)?;
    }
    if let Some(address) = config.admin.address {
        BoundListener::check(address, &config.timeouts)?;
    }
    if let Some(socket) = &config.admin.socket {
        AdminSocket::check_file(socket)?;
    }
    Connectors::load(config)?;
    AccessLog::check(&config.log.access)?;
    Ok(warnings)
}

fn acceptor(config: &Config, listener: &ListenerConfig) -> Result<Acceptor, StartError> {
    let acceptor = Acceptor::new(listener, config.timeouts.head);
    acceptor.map_err(|source| StartError::Tls {
        listener: listener.address,
        source,
    })
}

/// The acceptor of each listener, with the listener's real address.
fn acceptors(
    config: &Config,
    bound: &[BoundListener],
) -> Result<Vec<(SocketAddr, Acceptor)>, StartError> {
    let listeners = config.listeners.iter().zip(bound);
    listeners
        .map(|(listener, bound)| Ok((bound.address, acceptor(config, listener)?)))
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
