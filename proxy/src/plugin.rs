//! The edge as part of another Pingora server: everything but the listeners and the reading of requests.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::apps::http_app::HttpServer;
use pingora::listeners::TcpSocketOptions;
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora::services::ServiceWithDependents;
use pingora::services::background::{BackgroundService, background_service};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::request::access_log::AccessLog;
use crate::request::proxy_http::Edge;
use crate::server::admin;
use crate::server::admin::AdminApp;
use crate::server::components;
use crate::server::components::BackgroundTasks;
use crate::server::components::Components;
use crate::server::components::StartError;
use crate::server::listeners::BindError;
use crate::server::listeners::BoundListener;
use crate::server::listeners::BoundedConnections;
use crate::server::listeners::ListeningService;
use crate::server::logging;
use crate::server::reload::Reloader;
use crate::server::shutdown::Drain;
use crate::tls::{PoolTlsError, no_authorities_file};
use crate::upstream;

/// How much longer than `drain.timeout` Pingora's grace period has to be: the last tunnels are closed in this time.
const LAST_SECONDS: Duration = Duration::from_secs(5);

/// The edge, to be mounted in a Pingora server.
///
/// [`Plugin::edge`] is a [`ProxyHttp`](pingora_proxy::ProxyHttp) like any other. It serves upgrades too: it detaches their
/// connection from Pingora and makes a tunnel of it, which outlives the request.
///
/// ```no_run
/// use std::path::Path;
///
/// use causeway_proxy::{AfterDrain, Config, Plugin};
/// use pingora::server::Server;
/// use pingora::server::configuration::ServerConf;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let plugin = Plugin::new(Config::load(Path::new("edge.yaml"))?)?;
///
/// let mut conf = ServerConf::default();
/// plugin.configure(&mut conf);
/// let mut server = Server::new_with_opt_and_conf(None, conf);
/// server.bootstrap();
///
/// let mut proxy = pingora_proxy::http_proxy_service(&server.configuration, plugin.edge());
/// proxy.add_tcp("0.0.0.0:8080");
/// server.add_service(proxy);
/// server.add_service(plugin.background(AfterDrain::Exit));
/// if let Some(admin) = plugin.admin()? {
///     server.add_service(admin);
/// }
/// server.run_forever();
/// # }
/// ```
///
/// `examples/plugin.rs` is a whole program, with TLS and socket options.
///
/// # What is the same
///
/// Routes, affinity, the choice of a backend, parking, retries, health checks, forwarded headers, the error responses of the
/// edge, the access log, metrics, `GET /backends`, and everything about tunnels: bytes sent early, half-closes, idle timeouts,
/// the drain with close code 1012.
///
/// # What is not
///
/// Pingora reads the requests, on your listeners, so what the edge does before it has a request is missing:
///
/// - `takeover.socket` has no effect, and the action to upgrade is refused: the listeners are those of your server, and tunnels end
///   with the process that has them.
/// - `admin.socket` has no effect, and the action to reload is refused: call [`Plugin::reload`].
/// - `listeners`, `threads`, `log.level` and `log.format` have no effect. Log lines go to the `tracing` subscriber of the
///   process; [`Plugin::start_logging`] installs the one that the settings describe.
/// - `timeouts.head` has no effect, and `limits.head_size` is checked when a head is complete: Pingora waits 60 s for each piece of
///   a head, and accepts up to 1 MiB. There is no 408. Where clients are not trusted, limit that in front of this server.
/// - `limits.connections` limits only tunnels. One more is rejected with 503 after its request was read.
/// - Heads are parsed as leniently as Pingora does: bare line feeds, a length beside chunks and spaces in a target are accepted, as
///   RFC 9112 allows. What would split one request into two is rejected there as well.
/// - Requests that Pingora itself rejects (400 for a malformed head, 405 for CONNECT) are not in the access log.
/// - A second request that arrives before the response to the first may end the connection, as everywhere in Pingora.
/// - A client that half-closes its connection counts as disconnected (`abort_on_client_close` has no effect), and
///   `timeouts.request_body_rate`, `timeouts.http2_preface` and `limits.http2_*` have no effect: a body over HTTP/2 may stall
///   until `timeouts.upstream_read`.
/// - Trailers are not forwarded, in either direction, nor interim responses (1xx) over HTTP/2.
/// - Pingora writes its own `Date`, joins chunks of a response that arrive at about the same time, delays a body with a length
///   until it has some of it, reads a chunk without a size as the last one, and closes the client's connection after a 502, 503
///   or 504 for a failed attempt.
/// - Pingora keeps the idle connections to backends, limited by `upstream_keepalive_pool_size`.
/// - You own the listening sockets: [`Plugin::socket_options`] sets TCP keepalive by `timeouts.tcp_keepalive` and
///   `timeouts.tcp_user_timeout`.
/// - Idle client connections cost as much memory as in Pingora, 64 KiB unless the listener does not buffer reads. Tunnels cost the
///   same as with the edge's own listeners; over TLS they keep Pingora's stream.
/// - When the server shuts down, Pingora closes idle client connections at once (`drain.late` has no effect), and sleeps for all
///   of `grace_period_seconds`, unless [`AfterDrain::Exit`] ends the process before. That period is by the `drain.timeout` at the
///   start: a reload cannot make it longer.
/// - HTTP/2 is served if a listener offers it, but not WebSockets over it (RFC 8441): `websockets_over_http2` has no effect.
///
/// # Wrapping
///
/// A [`ProxyHttp`](pingora_proxy::ProxyHttp) of your own may call the edge's phases from its own, with its
/// [`RequestContext`](crate::RequestContext) inside yours. Every phase that [`Edge`] implements has to be called. The edge sees the
/// request as you have changed it before its `request_filter`. After that, check
/// [`RequestContext::is_detached`](crate::RequestContext::is_detached): the connection of an upgrade is detached by then.
pub struct Plugin {
    config: Config,
    components: Components,
}

/// What happens when the server shuts down and the edge has drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDrain {
    /// Pingora ends the process when its grace period is over.
    Stay,
    /// The process exits with status 0 at once. For a server in which nothing else has to finish.
    Exit,
}

impl Plugin {
    /// Creates the edge of `config`. Opens the access log and raises the open-file limit of the process.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the access log cannot be opened, or a file for TLS to backends is not valid.
    pub fn new(config: Config) -> Result<Self, StartError> {
        let components = Components::new(&config)?;
        Ok(Self { config, components })
    }

    /// The edge as a Pingora proxy. Several services may each have one: they share all state.
    #[must_use]
    pub fn edge(&self) -> Edge {
        self.components.mounted_edge()
    }

    /// Sets in `conf` what the edge needs: enough attempts for each request, a grace period longer than a drain, and no more idle
    /// connections to backends than the open-file limit allows. Set `threads` before.
    pub fn configure(&self, conf: &mut ServerConf) {
        let idle = self.components.files.idle_upstream_each(conf.threads);
        conf.upstream_keepalive_pool_size = conf.upstream_keepalive_pool_size.min(idle);
        conf.max_retries = conf.max_retries.max(components::attempts_max());
        let drain = (self.config.drain.timeout + LAST_SECONDS).as_secs();
        if conf.ca_file.is_none() {
            conf.ca_file = no_authorities_file();
        }
        conf.grace_period_seconds = Some(conf.grace_period_seconds.unwrap_or_default().max(drain));
    }

    /// The addresses of `listeners` in the settings, which the edge does not use here.
    #[must_use]
    pub fn listeners(&self) -> Vec<SocketAddr> {
        let listeners = self.config.listeners.iter();
        listeners.map(|listener| listener.address).collect()
    }

    /// Socket options for a listener, with TCP keepalive by the settings.
    #[must_use]
    pub fn socket_options(&self) -> TcpSocketOptions {
        let mut options = TcpSocketOptions::default();
        options.tcp_keepalive = Some(upstream::keepalive(&self.config.timeouts));
        options
    }

    /// The background service of the edge: health checks, closing of idle tunnels, and the drain when the server shuts down. It
    /// handles SIGUSR1, which reopens the file of the access log and would otherwise end the process.
    ///
    /// Without it the state of backends follows from dials alone, and tunnels break when the process ends. Add it once.
    #[must_use]
    pub fn background(&self, then: AfterDrain) -> impl ServiceWithDependents + use<> {
        let task = Background {
            watch: self.components.background_tasks(None),
            drain: self.components.drain(Vec::new(), Vec::new()),
            access: self.components.proxy.access.clone(),
            then,
        };
        background_service("causeway", task)
    }

    /// The admin listener, if the settings have one: `/live`, `/ready`, `/metrics`, `/backends`, and actions for those who have
    /// `admin.token`. Its port is bound by this call.
    ///
    /// # Errors
    ///
    /// [`BindError`] if it cannot listen on `admin.address`.
    pub fn admin(&self) -> Result<Option<impl ServiceWithDependents + use<>>, BindError> {
        let Some(address) = self.config.admin.address else {
            return Ok(None);
        };
        let bound = BoundListener::new(address, &self.config.timeouts)?;
        let app = HttpServer::new_app(AdminApp::over_tcp(self.components.admin(Vec::new(), None)));
        let service = ListeningService::new(
            "admin",
            app,
            vec![bound],
            1,
            // It serves until the process ends.
            CancellationToken::new(),
        );
        Ok(Some(
            service.bounded(BoundedConnections::new(admin::LIMITS)),
        ))
    }

    /// The metrics of the edge in the OpenMetrics format, for a server with its own endpoint.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.components.proxy.metrics.encode()
    }

    /// A service that reloads `file` at SIGHUP, as the program does. If the server uses that signal otherwise, call
    /// [`Plugin::reload`] instead.
    #[must_use]
    pub fn reload_on_hangup(&self, file: PathBuf) -> impl ServiceWithDependents + use<> {
        let reloader = Arc::clone(&self.components.reloader);
        background_service("causeway-reload", Hangups { reloader, file })
    }

    /// Applies `config`, as the program does after SIGHUP: backends in both configurations keep their clients, removed ones drain.
    /// Changed settings that need a restart are named in a log line.
    ///
    /// # Errors
    ///
    /// [`PoolTlsError`] if a file for TLS to backends is not valid; then nothing changes.
    pub fn reload(&self, config: &Config) -> Result<(), PoolTlsError> {
        self.components
            .reloader
            .apply(config, Instant::now())
            .map(drop)
    }

    /// Writes the log lines of the process to standard error, by the settings in `log`, in a thread of their own: a line that cannot
    /// be written is dropped and counted, and delays nothing. Panics are logged too. If a subscriber is already installed, it
    /// stays, and so does the panic hook.
    pub fn start_logging(config: &Config) {
        if let Err(error) = logging::start(&config.log) {
            causeway_conf::print_error(&format!("cannot log to standard error: {error}"));
        }
    }
}

/// Reloads at each SIGHUP.
struct Hangups {
    reloader: Arc<Reloader>,
    file: PathBuf,
}

#[async_trait]
impl BackgroundService for Hangups {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut hangups = signal(SignalKind::hangup())
            .expect("the runtime has its signal driver on, and the kind is one that can be caught");
        loop {
            let hangup = tokio::select! {
                biased;
                _ = shutdown.wait_for(|ending| *ending) => None,
                hangup = hangups.recv() => hangup,
            };
            match hangup {
                // The outcome is in the log.
                Some(()) => {
                    let file = self.file.clone();
                    drop(self.reloader.reload(move || Config::load(&file)).await);
                }
                None => return,
            }
        }
    }
}

/// The background service of the edge.
struct Background {
    watch: BackgroundTasks,
    drain: Drain,
    access: AccessLog,
    then: AfterDrain,
}

impl Background {
    /// Reopens the access log at each SIGUSR1.
    async fn reopen_on_signal(&self) {
        let mut signals = signal(SignalKind::user_defined1())
            .expect("the runtime has its signal driver on, and the kind is one that can be caught");
        while signals.recv().await.is_some() {
            self.access.reopen();
        }
    }

    /// Drains once `shutdown` is set.
    async fn drain(&self, mut shutdown: ShutdownWatch) {
        if shutdown.wait_for(|ending| *ending).await.is_err() {
            return;
        }
        let started = Instant::now();
        self.drain.log_start(false);
        self.drain.drain_in_time().await;
        self.drain.finish(started).await;
        if self.then == AfterDrain::Exit {
            std::process::exit(0);
        }
    }
}

#[async_trait]
impl BackgroundService for Background {
    async fn start(&self, shutdown: ShutdownWatch) {
        let reopening = self.reopen_on_signal();
        let rest = async { tokio::join!(self.watch.start(shutdown.clone()), self.drain(shutdown)) };
        tokio::select! {
            _ = rest => {}
            () = reopening => {}
        }
    }
}
