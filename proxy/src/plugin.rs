//! The edge as a part of another Pingora server: affinity, tunnels, failover and the rest behind listeners that are not ours.

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
use crate::server::components;
use crate::server::components::Parts;
use crate::server::components::StartError;
use crate::server::components::Watch;
use crate::server::listeners::BindError;
use crate::server::listeners::Bound;
use crate::server::listeners::ListeningService;
use crate::server::logging;
use crate::server::reload::Reloader;
use crate::server::shutdown::Drain;
use crate::tls::{PoolTlsError, no_authorities_file};
use crate::upstream;

/// How much longer than `drain.timeout` Pingora has to leave the process alone: the last tunnels are closed in it.
const LAST_SECONDS: Duration = Duration::from_secs(5);

/// The edge, to be mounted in a Pingora server.
///
/// [`Plugin::edge`] is a [`ProxyHttp`](pingora_proxy::ProxyHttp) like any other. It carries upgrades too: it takes their
/// connection out of Pingora and makes a tunnel of it, which outlives the request.
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
/// Routes, affinity, the choice of a backend, waiting, retries, health checks, forwarded headers, the answers of the edge
/// itself, the access log, metrics, `GET /backends`, and everything about tunnels: bytes that come early, ends of streams,
/// idle ones, the drain with close code 1012.
///
/// # What is not
///
/// Pingora reads the requests, on listeners of yours, so what the edge does before it knows a request is missing:
///
/// - `listeners`, `threads`, `log.level` and `log.format` have no effect. Log lines go to the `tracing` subscriber of the
///   process; [`Plugin::start_logging`] makes the one that the settings describe.
/// - `timeouts.head` has no effect, and `limits.head_size` is judged when a head is complete: Pingora waits 60 s for each piece of a
///   head, and takes up to 1 MiB. There is no 408. Where clients are not trusted, that has to be limited before this server.
/// - `limits.connections` bounds tunnels alone. One more gets its 503 after its request was read.
/// - Heads are read as leniently as Pingora reads them: bare line feeds, a length beside chunks and spaces in a target pass, as
///   RFC 9112 allows. What makes a request two is refused there as well.
/// - What Pingora refuses by itself (400 for a malformed head, 405 for CONNECT) is not in the access log.
/// - A second request that comes before the first is answered may end the connection, as everywhere in Pingora.
/// - A client that ends its sending side has left (`abort_on_client_close` has no effect), and `timeouts.request_body_rate`,
///   `timeouts.http2_preface` and `limits.http2_*` have none: a body over HTTP/2 may stop for as long as it likes, until
///   `timeouts.upstream_read`.
/// - Trailers are not passed on, in either direction, and no interim response (1xx) over HTTP/2.
/// - Pingora writes a `Date` of its own, joins chunks of a response that come at about the same time, holds a body with a length
///   back until it has some of it, takes a chunk without a size for the last, and closes the client's connection behind a 502,
///   503 or 504 that follows on an attempt.
/// - Idle connections to backends are Pingora's, by the number in `upstream_keepalive_pool_size`.
/// - The sockets are yours: [`Plugin::socket_options`] has the kernel watch over clients as `timeouts.tcp_keepalive` and
///   `timeouts.tcp_user_timeout` say.
/// - Connections that wait for a request cost what Pingora's cost, 64 KiB unless the listener is told not to buffer reads.
///   Tunnels cost the same as with the edge's own listeners; over TLS they keep Pingora's stream.
/// - When the server ends, Pingora closes connections that wait for a request at once (`drain.late` has no effect), and
///   sleeps for all of `grace_period_seconds`, unless [`AfterDrain::Exit`] ends the process before.
/// - HTTP/2, if a listener offers it, is served, but for WebSockets over it (RFC 8441): `websockets_over_http2` has no effect.
///
/// # Wrapping
///
/// A [`ProxyHttp`](pingora_proxy::ProxyHttp) of your own may call the edge's phases from its own, with its
/// [`RequestContext`](crate::RequestContext) inside yours. Every phase that [`Edge`] implements has to be passed on. What you change in a
/// request before its `request_filter` is what the edge goes by. Behind it, ask
/// [`RequestContext::taken_over`](crate::RequestContext::taken_over): the connection of an upgrade is gone by then.
pub struct Plugin {
    config: Config,
    parts: Parts,
}

/// What happens when the server has been told to end, and the edge has nothing left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterDrain {
    /// Nothing: Pingora ends the process when its grace period is over.
    Stay,
    /// The process exits with status 0. For a server in which nothing else has to finish.
    Exit,
}

impl Plugin {
    /// The edge that `config` describes. It opens the access log and raises the process's limit of open files.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the access log cannot be opened, or a file for the TLS of backends is wrong.
    pub fn new(config: Config) -> Result<Self, StartError> {
        let parts = Parts::new(&config)?;
        Ok(Self { config, parts })
    }

    /// The edge itself. Several services may each have one: they share everything.
    #[must_use]
    pub fn edge(&self) -> Edge {
        self.parts.mounted_edge()
    }

    /// Sets in `conf` what the edge needs of a server: enough attempts for each request, a grace period that is longer than a
    /// drain, and no more idle connections to backends than the limit of open files has room for. `threads` comes before it.
    pub fn configure(&self, conf: &mut ServerConf) {
        let idle = self.parts.files.idle_upstream_each(conf.threads);
        conf.upstream_keepalive_pool_size = conf.upstream_keepalive_pool_size.min(idle);
        conf.max_retries = conf.max_retries.max(components::attempts_max());
        let drain = (self.config.drain.timeout + LAST_SECONDS).as_secs();
        if conf.ca_file.is_none() {
            conf.ca_file = no_authorities_file();
        }
        conf.grace_period_seconds = Some(conf.grace_period_seconds.unwrap_or_default().max(drain));
    }

    /// The addresses in `listeners` of the settings, for whoever wants to listen there.
    #[must_use]
    pub fn listeners(&self) -> Vec<SocketAddr> {
        let listeners = self.config.listeners.iter();
        listeners.map(|listener| listener.address).collect()
    }

    /// Socket options of a listener that has the kernel find out when a client is gone.
    #[must_use]
    pub fn socket_options(&self) -> TcpSocketOptions {
        let mut options = TcpSocketOptions::default();
        options.tcp_keepalive = Some(upstream::keepalive(&self.config.timeouts));
        options
    }

    /// What has to run beside the edge: health checks, the search for idle tunnels, and the drain when the server ends. SIGUSR1,
    /// which would end the process, has the file of the access log opened again.
    ///
    /// Without it backends are judged by dials alone, and tunnels are cut when the process ends. Add it once.
    #[must_use]
    pub fn background(&self, then: AfterDrain) -> impl ServiceWithDependents + use<> {
        let task = Background {
            watch: self.parts.watch(None),
            drain: self.parts.drain(&self.config),
            access: self.parts.proxy.access.clone(),
            then,
        };
        background_service("causeway", task)
    }

    /// The admin listener, if the settings have one: `/live`, `/ready`, `/metrics`, `/backends`. It listens from here on.
    ///
    /// # Errors
    ///
    /// [`BindError`] if it cannot listen on `admin.address`.
    pub fn admin(&self) -> Result<Option<impl ServiceWithDependents + use<>>, BindError> {
        let Some(address) = self.config.admin else {
            return Ok(None);
        };
        let bound = Bound::new(address, &self.config.timeouts)?;
        let answers = HttpServer::new_app(self.parts.admin(Vec::new()));
        let service = ListeningService::new(
            "admin",
            answers,
            vec![bound],
            1,
            // It answers for as long as there is a process.
            CancellationToken::new(),
        );
        Ok(Some(service.bounded(admin::LIMITS)))
    }

    /// The metrics of the edge in the OpenMetrics format, for a server that has an endpoint of its own.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.parts.proxy.metrics.encode()
    }

    /// A service that has SIGHUP read `file` anew, as the program does. Where the server has other plans for that signal, call
    /// [`Plugin::reload`] instead.
    #[must_use]
    pub fn reload_on_hangup(&self, file: PathBuf) -> impl ServiceWithDependents + use<> {
        let reloader = Arc::clone(&self.parts.reloader);
        background_service("causeway-reload", Hangups { reloader, file })
    }

    /// Goes by `config` from now on, as the program does after SIGHUP: backends in both keep their clients, those that are gone
    /// drain. Settings that take a restart are named in a log line.
    ///
    /// # Errors
    ///
    /// [`PoolTlsError`] if a file for the TLS of backends is wrong; then nothing changes.
    pub fn reload(&self, config: &Config) -> Result<(), PoolTlsError> {
        self.parts.reloader.apply(config, Instant::now())
    }

    /// Sends the log lines of the process to standard error, as `log` says, through a thread of their own: one that cannot be
    /// written is dropped and counted, and holds nobody up. Panics become lines too. A subscriber that is there already stays,
    /// and so does the panic hook then.
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
                Some(()) => self.reloader.reload(&self.file).await,
                None => return,
            }
        }
    }
}

/// All that runs beside the edge.
struct Background {
    watch: Watch,
    drain: Drain,
    access: AccessLog,
    then: AfterDrain,
}

impl Background {
    /// Opens the access log again at each SIGUSR1.
    async fn reopen_on_signal(&self) {
        let mut signals = signal(SignalKind::user_defined1())
            .expect("the runtime has its signal driver on, and the kind is one that can be caught");
        while signals.recv().await.is_some() {
            self.access.reopen();
        }
    }

    /// Drains once `shutdown` says so.
    async fn drain(&self, mut shutdown: ShutdownWatch) {
        if shutdown.wait_for(|ending| *ending).await.is_err() {
            return;
        }
        let started = Instant::now();
        self.drain.announce(false);
        self.drain.drain_in_time().await;
        self.drain.conclude(started);
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
