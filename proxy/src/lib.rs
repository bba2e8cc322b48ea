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
//! A new process takes the sockets of the running one over (`takeover`).
//!
//! Imports point down: `takeover` · `server` · `request` · `upstream` · `balancer`, `downstream` · `tunnel` · `limits`, `tls` ·
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
mod takeover;
mod tls;
mod tunnel;
mod upstream;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use causeway_conf::ServiceManager;
use parking_lot::Mutex;
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
pub use crate::net::owner_socket::SocketError;
use crate::net::owner_socket::{OwnerSocket, SocketFile};
pub use crate::plugin::AfterDrain;
pub use crate::plugin::Plugin;
use crate::request::access_log::AccessLog;
pub use crate::request::access_log::AccessLogError;
pub use crate::request::proxy_http::Edge;
pub use crate::request::proxy_http::RequestContext;
use crate::server::admin;
use crate::server::admin::{AdminApp, SOCKET_NAME as ADMIN_SOCKET, SocketService};
use crate::server::components;
use crate::server::components::Components;
pub use crate::server::components::StartError;
pub use crate::server::listeners::BindError;
use crate::server::listeners::BoundListener;
use crate::server::listeners::BoundedConnections;
use crate::server::listeners::ListeningService;
use crate::server::listeners::Opening;
use crate::server::logging;
use crate::server::reload::Program;
use crate::server::shutdown::ShutdownMode;
use crate::server::shutdown::ShutdownService;
use crate::server::shutdown::Signals;
use crate::server::successors::SuccessorRequests;
use crate::server::supervisor::keep_running;
use crate::takeover::{Inheritance, Launcher, Predecessor, Successor};
use crate::tls::Connectors;
pub use crate::tls::{CertificateError, PoolTlsError, TicketKeyError, TlsError};

/// Longer than any drain: the edge exits the process itself, before Pingora does.
const GRACE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Runs the edge until a signal ends the process. `config` was read from `file`, if there is one, and the environment, which are
/// read again on SIGHUP. With `predecessor`, it takes over from the process that listens on that socket.
///
/// # Errors
///
/// [`StartError`] before any connection is accepted. It does not return otherwise: the drain exits the process.
pub fn run(
    config: Config,
    file: Option<PathBuf>,
    predecessor: Option<&Path>,
) -> Result<(), StartError> {
    logging::start(&config.log).map_err(StartError::Log)?;
    let _flush = logging::FlushAtEnd;
    for warning in config.warnings(SystemTime::now()) {
        tracing::warn!(warning, "configuration warning");
    }
    components::open_files(&config)?;
    let launcher = Launcher::of_this_process().map_err(StartError::Program)?;
    let mut inheritance = predecessor
        .map(Inheritance::request)
        .transpose()
        .map_err(|error| StartError::Takeover(error.into()))?;
    let mut bind = |address| match &mut inheritance {
        Some(inheritance) => inheritance.listener(address, &config.timeouts),
        None => BoundListener::new(address, &config.timeouts),
    };
    let addresses = config.listeners.iter().map(|listener| listener.address);
    let bound = addresses.map(&mut bind).collect::<Result<Vec<_>, _>>()?;
    let admin = config.admin.address.map(&mut bind).transpose()?;
    let takes_over = inheritance.is_some();
    let sockets = UnixSockets::new(&config, takes_over)?;
    let acceptors = acceptors(&config, &bound).inspect_err(|_| sockets.discard())?;
    let components = Components::new(&config).inspect_err(|_| sockets.discard())?;
    let shared = match config.takeover.socket {
        Some(_) => bound
            .iter()
            .chain(&admin)
            .map(BoundListener::share)
            .collect(),
        None => Ok(Vec::new()),
    };
    let shared = shared.inspect_err(|_| sockets.discard())?;
    let acceptors = Arc::new(Acceptors::new(
        acceptors,
        Arc::clone(&components.proxy.gate),
        Arc::clone(&components.proxy.metrics),
    ));
    let mode = ShutdownMode::default();
    let manager = Arc::new(ServiceManager::from_environment());
    let opening = match takes_over {
        true => Opening::later(),
        false => Opening::at_once(),
    };
    let (taken_over, handed_over) = (CancellationToken::new(), CancellationToken::new());
    let (inherited, successors) = (
        CancellationToken::new(),
        Arc::<SuccessorRequests>::default(),
    );
    let mut server = Server::new_with_opt_and_conf(None, server_conf(&config));
    server.bootstrap();
    let service = ListeningService::new(
        "edge",
        components.app(Arc::clone(&acceptors)),
        bound,
        server.configuration.threads,
        // Listeners close only once the drain is visible to requests: their responses then close the connections.
        components.connections.draining(),
    );
    server.add_service(service.opened_by(opening.clone()));
    let can_upgrade = config.takeover.socket.is_some();
    let program = Program {
        file,
        manager: Arc::clone(&manager),
        successors: can_upgrade.then(|| Arc::clone(&successors)),
        took_over: takes_over.then(Instant::now),
    };
    let files = sockets.files();
    let admin_connections = [admin::SOCKET_LIMITS, admin::LIMITS].map(BoundedConnections::new);
    let shown = components.admin(acceptors.terminators(), Some(program.clone()));
    if let Some(socket) = sockets.admin {
        let shown = Arc::clone(&shown);
        let app = move |peer| HttpServer::new_app(AdminApp::over_socket(Arc::clone(&shown), peer));
        let connections = Arc::clone(&admin_connections[0]);
        server.add_service(SocketService::new(app, socket, connections));
    }
    if let Some(bound) = admin {
        let app = HttpServer::new_app(AdminApp::over_tcp(shown));
        // The admin listener stays open until the process exits, or another one has it.
        let service = ListeningService::new("admin", app, vec![bound], 1, taken_over.clone());
        let service = service.opened_by(opening.beside());
        server.add_service(service.bounded(Arc::clone(&admin_connections[1])));
    }
    server.add_service(background_service(
        "watch",
        components.background_tasks(Some(program)),
    ));
    server.add_service(background_service(
        "certificates",
        CertificateWatch {
            acceptors: Arc::clone(&acceptors),
            metrics: Arc::clone(&components.proxy.metrics),
            background: components.background.clone(),
        },
    ));
    server.add_service(background_service(
        "drain",
        ShutdownService {
            drain: components.drain(files.clone(), admin_connections.to_vec()),
            mode: mode.clone(),
            manager: Arc::clone(&manager),
            taken_over: taken_over.clone(),
        },
    ));
    if inheritance.is_none() {
        inherited.cancel();
    }
    server.add_service(background_service(
        "successor",
        Successor {
            inheritance: Mutex::new(inheritance),
            app: Arc::new(components.app(acceptors)),
            reloader: Arc::clone(&components.reloader),
            manager: Arc::clone(&manager),
            opening,
            files,
            inherited: inherited.clone(),
            handed_over: handed_over.clone(),
        },
    ));
    server.add_service(background_service(
        "predecessor",
        Predecessor {
            socket: Mutex::new(sockets.takeover),
            launcher,
            listeners: Mutex::new(shared),
            context: Arc::clone(&components.tunnel_context),
            connections: Arc::clone(&components.connections),
            reloader: Arc::clone(&components.reloader),
            manager: Arc::clone(&manager),
            taken_over,
            handed_over: handed_over.clone(),
            inherited,
            requests: Arc::clone(&successors),
        },
    ));
    server.run(RunArgs {
        shutdown_signal: Box::new(Signals {
            mode,
            reloader: Arc::clone(&components.reloader),
            access: components.proxy.access.clone(),
            manager,
            handed_over,
            takes_over,
            successors,
        }),
    });
    Ok(())
}

/// The unix sockets of the configuration, and what they are called in errors.
fn unix_sockets(config: &Config) -> impl Iterator<Item = (&'static str, &Path)> {
    let admin = config
        .admin
        .socket
        .as_deref()
        .map(|path| (ADMIN_SOCKET, path));
    let takeover = config.takeover.socket.as_deref();
    let takeover = takeover.map(|path| (takeover::SOCKET_NAME, path));
    admin.into_iter().chain(takeover)
}

/// The listening unix sockets.
#[derive(Default)]
struct UnixSockets {
    admin: Option<OwnerSocket>,
    takeover: Option<OwnerSocket>,
}

impl UnixSockets {
    /// Listens on all of them. If this process takes over, they are not placed yet.
    fn new(config: &Config, takes_over: bool) -> Result<Self, SocketError> {
        let mut sockets = Self::default();
        for (name, path) in unix_sockets(config) {
            let socket = match takes_over {
                true => OwnerSocket::draft(name, path),
                false => OwnerSocket::bind(name, path),
            };
            let socket = socket.inspect_err(|_| sockets.discard())?;
            match name {
                ADMIN_SOCKET => sockets.admin = Some(socket),
                _ => sockets.takeover = Some(socket),
            }
        }
        Ok(sockets)
    }

    fn files(&self) -> Vec<Arc<SocketFile>> {
        let sockets = self.admin.iter().chain(&self.takeover);
        sockets.map(OwnerSocket::file).collect()
    }

    /// Removes those that are not placed: the process ends.
    fn discard(&self) {
        self.files().iter().for_each(|file| file.discard());
    }
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
    for (name, path) in unix_sockets(config) {
        OwnerSocket::check_file(name, path)?;
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
