//! Builds the components that the edge's services share, once, from the configuration.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use causeway_conf::TooFewOpenFiles;
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::balancer::health;
use crate::balancer::pool::Pools;
use crate::config::Config;
use crate::config::Limits;
use crate::config::Timeouts;
use crate::downstream::acceptor::Acceptors;
use crate::downstream::open_connections::Connections;
use crate::downstream::{Http2, Http2Limits};
use crate::http::http1::ResponseLimits;
use crate::limits::Gate;
use crate::limits::ThrottledLog;
use crate::metrics::Metrics;
use crate::net::descriptors::FileBudget;
use crate::net::owner_socket::{SocketError, SocketFile};
use crate::net::resolver::ADDRESSES_MAX;
use crate::net::resolver::Names;
use crate::request::access_log::AccessLog;
use crate::request::access_log::AccessLogError;
use crate::request::exchange::ProxyState;
use crate::request::exchange::Rules;
use crate::request::forward::{Engine, Parking, STALE_MAX, SessionHandoffs, TunnelContext};
use crate::request::parked::ParkConfig;
use crate::request::parked::ParkedRequests;
use crate::request::proxy_http::Edge;
use crate::server::actions::Actions;
use crate::server::admin::Admin;
use crate::server::app::EdgeApp;
use crate::server::discovery;
use crate::server::drains::Drains;
use crate::server::listeners::BindError;
use crate::server::listeners::BoundedConnections;
use crate::server::rebalance::Rebalancer;
use crate::server::reload::{Program, Reloader};
use crate::server::shutdown::Drain;
use crate::server::supervisor::keep_running;
use crate::server::watchdog;
use crate::tls::{Connectors, PoolTlsError, Terminator, TlsError};
use crate::tunnel::TunnelLimits;
use crate::tunnel::Tunnels;
use crate::upstream;
use crate::upstream::Dialer;

/// How many attempts Pingora has to allow for one request, under any later configuration.
pub(crate) fn attempts_max() -> usize {
    // The real limits are the edge's own: the first attempt, one more at the same backend, `limits.retries` elsewhere, and the
    // dials of a parked request; each may try all addresses of a name.
    let dials = Limits::RETRIES_MAX + 2 + ParkConfig::LONGEST.dials_max();
    STALE_MAX + dials * ADDRESSES_MAX
}

/// Why the edge cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listening socket cannot be created.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A unix socket cannot be created.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The program log cannot be written.
    #[error("cannot log to standard error: {0}")]
    Log(#[source] std::io::Error),
    /// The running process does not let this one take over.
    #[error("cannot take over: {0}")]
    Takeover(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It is not known where the file of this program is.
    #[error("cannot find the file of this program: {0}")]
    Program(#[source] std::io::Error),
    /// The limit of open files is too low.
    #[error(transparent)]
    OpenFiles(#[from] TooFewOpenFiles),
    /// The access log cannot be written.
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    /// The TLS settings of a listener cannot be used.
    #[error("{listener}: {source}")]
    Tls {
        /// Its address.
        listener: SocketAddr,
        /// Why.
        #[source]
        source: TlsError,
    },
    /// The TLS settings of a pool cannot be used.
    #[error(transparent)]
    PoolTls(#[from] PoolTlsError),
}

/// The components that the services share.
pub(crate) struct Components {
    pub(crate) proxy: Arc<ProxyState>,
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) names: Arc<Names>,
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) tunnels: Arc<Tunnels>,
    pub(crate) drains: Arc<Drains>,
    pub(crate) rebalancer: Arc<Rebalancer>,
    pub(crate) over_limit: Arc<Semaphore>,
    pub(crate) files: FileBudget,
    pub(crate) background: CancellationToken,
    pub(crate) timeouts: Timeouts,
    pub(crate) head_size: usize,
    http2: Http2Limits,
    response_limits: ResponseLimits,
    pub(crate) tunnel_context: Arc<TunnelContext>,
    abort_on_client_close: bool,
}

impl Components {
    /// Builds all components from `config`, and opens the access log.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the access log cannot be opened, or a TLS file of a pool cannot be used.
    pub(crate) fn new(config: &Config) -> Result<Self, StartError> {
        let tls = Connectors::load(config)?;
        let files = divide_files(open_files(config)?, config.limits.connections);
        let metrics = Arc::new(Metrics::new());
        let unix = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let connections = Connections::new(config.drain.late);
        let pools = Pools::new(config, &tls, &metrics, Instant::now(), unix);
        let gate = Gate::new(config, files.connections, &metrics, Instant::now());
        let proxy = ProxyState {
            gate: Arc::new(gate),
            rules: ArcSwap::from_pointee(Rules::new(config, Arc::new(pools), &metrics)),
            parked: ParkedRequests::new(ParkConfig::of(config)),
            shutdown: connections.draining(),
            exhausted: ThrottledLog::new(Instant::now()),
            no_port: ThrottledLog::new(Instant::now()),
            access: AccessLog::open(&config.log.access, metrics.access_lines_dropped.clone())?,
            metrics,
        };
        let names = Arc::new(Names::new());
        let proxy = Arc::new(proxy);
        let tunnels = Tunnels::new(TunnelLimits {
            idle: config.timeouts.tunnel_idle,
            lifetime: config.timeouts.tunnel_lifetime,
        });
        let drains = Drains::new(Arc::clone(&tunnels));
        let reloader = Arc::new(Reloader::new(
            Arc::clone(&proxy),
            config.clone(),
            tls,
            Arc::clone(&names),
            Arc::clone(&drains),
        ));
        let dialer = Arc::new(Dialer::new(
            config.timeouts,
            Arc::clone(&names),
            files.idle_upstream,
        ));
        let response_limits = ResponseLimits {
            head_size: config.limits.response_head_size,
            headers: config.limits.headers,
        };
        let tunnel_context = TunnelContext {
            proxy: Arc::clone(&proxy),
            dialer: Arc::clone(&dialer),
            tunnels: Arc::clone(&tunnels),
            parking: Parking::default(),
            handoffs: Arc::new(Semaphore::new(files.handoffs)),
            session_handoffs: SessionHandoffs::default(),
            response_limits,
            response_timeout: config.timeouts.connect,
        };
        Ok(Self {
            proxy,
            tunnel_context: Arc::new(tunnel_context),
            dialer,
            names,
            connections,
            rebalancer: Rebalancer::new(
                Arc::clone(&reloader),
                Arc::clone(&drains),
                Arc::clone(&tunnels),
            ),
            reloader,
            tunnels,
            drains,
            over_limit: Arc::new(Semaphore::new(files.over_limit)),
            files,
            background: CancellationToken::new(),
            timeouts: config.timeouts,
            head_size: config.limits.head_size,
            http2: Http2Limits {
                preface: config.timeouts.http2_preface,
                idle: config.timeouts.keepalive,
                streams: config.limits.http2_streams,
                send_buffer: config.limits.http2_send_buffer,
                head_size: config.limits.head_size,
                websockets: config.websockets_over_http2,
            },
            response_limits,
            abort_on_client_close: config.abort_on_client_close,
        })
    }

    /// The application behind the edge's own listeners.
    pub(crate) fn app(&self, acceptors: Arc<Acceptors>) -> EdgeApp {
        let limits = self.http2;
        EdgeApp {
            engine: self.engine(),
            http2: Http2 {
                limits,
                connections: Arc::clone(&self.connections),
            },
            acceptors,
            proxy: Arc::clone(&self.proxy),
            connections: Arc::clone(&self.connections),
            over_limit: Arc::clone(&self.over_limit),
            timeouts: self.timeouts,
            head_size: self.head_size,
            headers: self.response_limits.headers,
            websockets_over_http2: limits.websockets,
        }
    }

    /// The edge as an HTTP proxy of another Pingora server, behind the listeners of that server.
    pub(crate) fn mounted_edge(&self) -> Edge {
        Edge {
            proxy: Arc::clone(&self.proxy),
            dialer: Arc::clone(&self.dialer),
            connections: Arc::clone(&self.connections),
            timeouts: self.timeouts,
            head_size: self.head_size,
            response_limits: self.response_limits,
            engine: self.engine(),
        }
    }

    pub(crate) fn engine(&self) -> Engine {
        Engine {
            tunnel_context: Arc::clone(&self.tunnel_context),
            proxy: Arc::clone(&self.proxy),
            dialer: Arc::clone(&self.dialer),
            connections: Arc::clone(&self.connections),
            tunnels: Arc::clone(&self.tunnels),
            timeouts: self.timeouts,
            response_limits: self.response_limits,
            abort_on_client_close: self.abort_on_client_close,
        }
    }

    /// What the admin listeners show and do; `terminators` are those of the listeners with TLS, and the file of `program` can be
    /// reloaded.
    pub(crate) fn admin(
        &self,
        terminators: Vec<Arc<Terminator>>,
        program: Option<Program>,
    ) -> Arc<Admin> {
        Arc::new(Admin {
            pools: self.reloader.pools(),
            metrics: Arc::clone(&self.proxy.metrics),
            terminators,
            draining: self.connections.draining(),
            actions: self.actions(program),
            denied: ThrottledLog::new(Instant::now()),
        })
    }

    /// The actions of operators; the file of `program` can be reloaded.
    pub(crate) fn actions(&self, program: Option<Program>) -> Actions {
        Actions {
            proxy: Arc::clone(&self.proxy),
            reloader: Arc::clone(&self.reloader),
            drains: Arc::clone(&self.drains),
            rebalancer: Arc::clone(&self.rebalancer),
            tunnels: Arc::clone(&self.tunnels),
            program,
            serial: Mutex::new(()),
        }
    }

    /// The background tasks; the file of `program` is read again when a reload is requested.
    pub(crate) fn background_tasks(&self, program: Option<Program>) -> BackgroundTasks {
        BackgroundTasks {
            program,
            reloader: Arc::clone(&self.reloader),
            names: Arc::clone(&self.names),
            dialer: Arc::clone(&self.dialer),
            tunnels: Arc::clone(&self.tunnels),
            drains: Arc::clone(&self.drains),
            rebalancer: Arc::clone(&self.rebalancer),
            keepalive: self.timeouts.upstream_keepalive,
            metrics: Arc::clone(&self.proxy.metrics),
            background: self.background.clone(),
        }
    }

    /// The drain for the shutdown.
    pub(crate) fn drain(
        &self,
        sockets: Vec<Arc<SocketFile>>,
        admin: Vec<Arc<BoundedConnections>>,
    ) -> Drain {
        Drain {
            sockets,
            admin,
            reloader: Arc::clone(&self.reloader),
            connections: Arc::clone(&self.connections),
            tunnels: Arc::clone(&self.tunnels),
            access: self.proxy.access.clone(),
            background: self.background.clone(),
        }
    }
}

/// Raises the limit of open files, and returns the new one.
///
/// # Errors
///
/// [`TooFewOpenFiles`] if the edge cannot work with so few.
pub(crate) fn open_files(config: &Config) -> Result<u64, TooFewOpenFiles> {
    // The usual default: starting with few is better than not starting.
    let files = causeway_conf::raise_open_files().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot raise the limit of open files");
        1024
    });
    let needed = FileBudget::needed(config.worker_threads(), config.listeners.len());
    TooFewOpenFiles::check(files, needed as u64)
}

/// Divides `files` open files by purpose, and logs the result.
fn divide_files(files: u64, wanted: Option<usize>) -> FileBudget {
    let budget = FileBudget::new(files);
    tracing::info!(
        files,
        connections = budget.connections,
        idle_upstream = budget.idle_upstream,
        "open files"
    );
    if let Some(wanted) = wanted.filter(|wanted| budget.connections < *wanted) {
        tracing::warn!(
            wanted,
            fitting = budget.connections,
            "limits.connections is more than the limit of open files allows"
        );
    }
    budget
}

/// The background tasks: health checks, the sweep for idle tunnels and idle connections, discovery, reloads.
pub(crate) struct BackgroundTasks {
    /// `None` when the edge is mounted in another Pingora server.
    program: Option<Program>,
    reloader: Arc<Reloader>,
    names: Arc<Names>,
    dialer: Arc<Dialer>,
    tunnels: Arc<Tunnels>,
    drains: Arc<Drains>,
    rebalancer: Arc<Rebalancer>,
    /// How long an idle connection to a backend is kept open.
    keepalive: Duration,
    metrics: Arc<Metrics>,
    background: CancellationToken,
}

#[async_trait]
impl BackgroundService for BackgroundTasks {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let mut tasks = JoinSet::new();
        let (reloader, names) = (Arc::clone(&self.reloader), Arc::clone(&self.names));
        self.keep_running(&mut tasks, "health", move |stop| {
            health::run(reloader.pools(), Arc::clone(&names), stop)
        });
        let tunnels = Arc::clone(&self.tunnels);
        self.keep_running(&mut tasks, "tunnels", move |stop| {
            Arc::clone(&tunnels).sweep(stop)
        });
        let (reloader, drains) = (Arc::clone(&self.reloader), Arc::clone(&self.drains));
        self.keep_running(&mut tasks, "drains", move |stop| {
            let (pools, reloader) = (reloader.pools(), Arc::clone(&reloader));
            Arc::clone(&drains).run(pools, move || reloader.drain_config(), stop)
        });
        let (reloader, rebalancer) = (Arc::clone(&self.reloader), Arc::clone(&self.rebalancer));
        let took_over = self.program.as_ref().and_then(|program| program.took_over);
        self.keep_running(&mut tasks, "rebalance", move |stop| {
            Arc::clone(&rebalancer).run(reloader.pools(), took_over, stop)
        });
        let (reloader, keepalive) = (Arc::clone(&self.reloader), self.keepalive);
        let dialer = Arc::clone(&self.dialer);
        self.keep_running(&mut tasks, "idle_connections", move |stop| {
            upstream::sweep(Arc::clone(&dialer), reloader.pools(), keepalive, stop)
        });
        let reloader = Arc::clone(&self.reloader);
        self.keep_running(&mut tasks, "discovery", move |stop| {
            discovery::run(Arc::clone(&reloader), stop)
        });
        let (reloader, program) = (Arc::clone(&self.reloader), self.program.clone());
        self.keep_running(&mut tasks, "reload", move |stop| {
            Arc::clone(&reloader).run(program.clone(), stop)
        });
        if let Some(Program { manager, .. }) = self.program.clone() {
            self.keep_running(&mut tasks, "watchdog", move |stop| {
                let manager = Arc::clone(&manager);
                async move { watchdog::run(&manager, stop).await }
            });
        }
        while tasks.join_next().await.is_some() {}
    }
}

impl BackgroundTasks {
    /// Spawns `task` on `tasks`, restarted if it panics or ends, until the shutdown.
    fn keep_running<F: Future<Output = ()> + Send + 'static>(
        &self,
        tasks: &mut JoinSet<()>,
        name: &'static str,
        task: impl Fn(CancellationToken) -> F + Send + 'static,
    ) {
        let (metrics, background) = (Arc::clone(&self.metrics), self.background.clone());
        let stop = background.clone();
        let run = move || task(stop.child_token());
        tasks.spawn(keep_running(name, metrics, background, run));
    }
}
