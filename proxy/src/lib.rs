//! The edge: a reverse proxy that keeps each client on its server and carries WebSockets.
//!
//! A client connection comes in through `listeners` and is served by `app`, which reads its requests. Plain ones go through
//! Pingora's proxy (`service`), upgrades become tunnels (`takeover`); both ask `exchange` what to do: which route, who the client is, where it
//! belongs, which backend, what next. `upstream` reaches backends, `health` watches over them, `shutdown` ends it all.

mod access;
mod admin;
mod affinity;
mod app;
mod backend;
mod carrier;
mod config;
mod drain;
mod error;
mod exchange;
mod forwarded;
mod health;
mod limits;
mod listeners;
mod logging;
mod metrics;
mod open_files;
mod pool;
mod scheme;
mod service;
mod shutdown;
mod takeover;
mod tunnel;
mod upstream;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use pingora::apps::http_app::HttpServer;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownWatch};
use pingora::services::background::{BackgroundService, background_service};
use pingora_proxy::http_proxy;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::access::AccessLog;
pub use crate::access::AccessLogError;
use crate::admin::Admin;
use crate::app::EdgeApp;
pub use crate::config::Config;
use crate::drain::Connections;
use crate::exchange::Policy;
use crate::forwarded::Forwarder;
use crate::limits::ConnectionLimit;
use crate::limits::RetryBudget;
pub use crate::listeners::BindError;
use crate::listeners::Bound;
use crate::listeners::ListeningService;
use crate::metrics::Metrics;
use crate::pool::Pools;
use crate::service::Edge;
use crate::shutdown::Drain;
use crate::shutdown::Haste;
use crate::shutdown::Signals;
use crate::takeover::Takeover;
use crate::tunnel::Tunnels;
use crate::upstream::ADDRESSES_MAX;
use crate::upstream::Dialer;

/// Longer than any drain: the end of the process is ours, not Pingora's.
const GRACE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Idle connections to backends that are kept, over all of them.
const IDLE_UPSTREAM: usize = 1024;

/// Why the edge cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listening socket cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The access log cannot be written.
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
}

/// Runs the edge until a signal ends the process.
///
/// # Errors
///
/// [`StartError`] before anything is served. It does not return otherwise: the drain exits the process.
pub fn run(config: Config) -> Result<(), StartError> {
    logging::start(&config.log);
    let bound = config
        .listeners
        .iter()
        .map(|address| Bound::new(*address, &config.timeouts))
        .collect::<Result<Vec<_>, _>>()?;
    let admin = config
        .admin
        .map(|address| Bound::new(address, &config.timeouts))
        .transpose()?;
    let parts = Parts::new(&config)?;
    let haste = Haste::default();
    let mut server = Server::new_with_opt_and_conf(None, server_conf(&config));
    server.bootstrap();
    server.add_service(ListeningService::new(
        "edge",
        parts.app(&server.configuration),
        bound,
    ));
    if let Some(bound) = admin {
        let answers = HttpServer::new_app(parts.admin());
        server.add_service(
            ListeningService::new("admin", answers, vec![bound]).until_the_process_ends(),
        );
    }
    server.add_service(background_service("watch", parts.watch()));
    server.add_service(background_service(
        "drain",
        parts.drain(&config, haste.clone()),
    ));
    server.run(RunArgs {
        shutdown_signal: Box::new(Signals { haste }),
    });
    Ok(())
}

fn server_conf(config: &Config) -> ServerConf {
    let processors = available_parallelism().map_or(1, std::num::NonZero::get);
    ServerConf {
        threads: config.threads.unwrap_or(processors),
        grace_period_seconds: Some(GRACE.as_secs()),
        graceful_shutdown_timeout_seconds: Some(0),
        upstream_keepalive_pool_size: IDLE_UPSTREAM,
        // The real limit is ours; one more attempt is for a kept connection that turns out to be closed, the others for the
        // addresses of a name.
        max_retries: config.limits.retries + 2 + ADDRESSES_MAX,
        ..ServerConf::default()
    }
}

/// What the services share.
struct Parts {
    policy: Arc<Policy>,
    dialer: Arc<Dialer>,
    connections: Arc<Connections>,
    tunnels: Arc<Tunnels>,
    limit: ConnectionLimit,
    over_limit: Arc<Semaphore>,
    background: CancellationToken,
    timeouts: config::Timeouts,
    head_size: usize,
}

impl Parts {
    fn new(config: &Config) -> Result<Self, AccessLogError> {
        let tunnels = tunnels_by_files();
        let metrics = Arc::new(Metrics::new());
        let unix = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let policy = Policy {
            routes: config.routes.clone(),
            no_route: config.no_route.clone(),
            pools: Arc::new(Pools::new(config, &metrics, Instant::now(), unix)),
            forwarder: Forwarder::new(config.trusted_proxies.clone()),
            retries_max: config.limits.retries,
            retry_budget: RetryBudget::new(config.limits.retry_budget),
            access: AccessLog::open(&config.log.access, metrics.access_lines_dropped.clone())?,
            metrics,
        };
        let open = policy.metrics.connections_open.clone();
        Ok(Self {
            policy: Arc::new(policy),
            dialer: Arc::new(Dialer::new(config.timeouts)),
            connections: Connections::new(config.drain.late),
            tunnels: Tunnels::new(config.timeouts.tunnel_idle),
            limit: ConnectionLimit::new(config.limits.connections.unwrap_or(tunnels), open),
            over_limit: Arc::new(Semaphore::new(app::OVER_LIMIT)),
            background: CancellationToken::new(),
            timeouts: config.timeouts,
            head_size: config.limits.head_size,
        })
    }

    fn app(&self, conf: &Arc<ServerConf>) -> EdgeApp {
        let edge = Edge {
            policy: Arc::clone(&self.policy),
            dialer: Arc::clone(&self.dialer),
            connections: Arc::clone(&self.connections),
            timeouts: self.timeouts,
        };
        EdgeApp {
            proxy: Arc::new(http_proxy(conf, edge)),
            policy: Arc::clone(&self.policy),
            connections: Arc::clone(&self.connections),
            limit: self.limit.clone(),
            over_limit: Arc::clone(&self.over_limit),
            upgrades: Arc::new(self.upgrades()),
            timeouts: self.timeouts,
            head_size: self.head_size,
        }
    }

    fn upgrades(&self) -> Takeover {
        Takeover {
            policy: Arc::clone(&self.policy),
            dialer: Arc::clone(&self.dialer),
            tunnels: Arc::clone(&self.tunnels),
            timeouts: self.timeouts,
        }
    }

    fn admin(&self) -> Admin {
        Admin {
            pools: Arc::clone(&self.policy.pools),
            metrics: Arc::clone(&self.policy.metrics),
            draining: self.connections.draining(),
        }
    }

    fn watch(&self) -> Watch {
        Watch {
            pools: Arc::clone(&self.policy.pools),
            tunnels: Arc::clone(&self.tunnels),
            background: self.background.clone(),
        }
    }

    fn drain(&self, config: &Config, haste: Haste) -> Drain {
        Drain {
            config: config.drain,
            haste,
            connections: Arc::clone(&self.connections),
            tunnels: Arc::clone(&self.tunnels),
            access: self.policy.access.clone(),
            background: self.background.clone(),
        }
    }
}

/// Raises the limit of open files and says how many tunnels that allows.
fn tunnels_by_files() -> usize {
    // What POSIX guarantees at least is little, and better than not to start.
    let files = open_files::raise_limit().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot raise the limit of open files");
        1024
    });
    let tunnels = open_files::tunnels_in(files);
    tracing::info!(files, tunnels, "open files");
    tunnels
}

/// What runs beside the listeners: health checks and the search for idle tunnels.
struct Watch {
    pools: Arc<Pools>,
    tunnels: Arc<Tunnels>,
    background: CancellationToken,
}

#[async_trait]
impl BackgroundService for Watch {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let mut tasks = JoinSet::new();
        tasks.spawn(health::run(
            Arc::clone(&self.pools),
            self.background.child_token(),
        ));
        tasks.spawn(Arc::clone(&self.tunnels).sweep(self.background.child_token()));
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a background task panicked");
            }
        }
    }
}
