//! The shutdown: signals, and the drain that they start.
//!
//! Pingora closes the listeners and then sleeps for its whole grace period. That period is therefore set longer than any drain,
//! and the drain here exits the process as soon as no connection and no tunnel is left.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use causeway_conf::{ServiceManager, ServiceState};
use futures_util::FutureExt;
use futures_util::future::join_all;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::DrainConfig;
use crate::downstream::open_connections::Connections;
use crate::net::owner_socket::SocketFile;
use crate::request::access_log::AccessLog;
use crate::server::listeners::BoundedConnections;
use crate::server::logging;
use crate::server::reload::Reloader;
use crate::server::successors::SuccessorRequests;
use crate::tunnel::{CloseRequest, PacedClose, Tunnels};

/// How long a fast shutdown may take: a Close frame for each tunnel, and the requests in flight.
const FAST_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the access log may take to write its last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// How long the responses to operators may take that are not sent yet, such as that another process has taken over.
const LAST_RESPONSES: Duration = Duration::from_secs(1);

/// The exit status if the drain panicked.
const FAILED: i32 = 1;

/// Whether the shutdown is graceful (`false`) or fast.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShutdownMode(Arc<AtomicBool>);

/// Turns signals into Pingora's shutdown: SIGTERM is a graceful one, SIGINT a fast one. SIGHUP requests a reload, SIGUSR1 reopens
/// the access log, SIGUSR2 starts a successor.
pub(crate) struct Signals {
    pub(crate) mode: ShutdownMode,
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) access: AccessLog,
    /// What is told that the process is ready.
    pub(crate) manager: Arc<ServiceManager>,
    /// Another process has taken over: this one drains.
    pub(crate) handed_over: CancellationToken,
    /// Whether this process takes over from another one, and is ready only then.
    pub(crate) takes_over: bool,
    /// Asks for a successor.
    pub(crate) successors: Arc<SuccessorRequests>,
}

/// Subscribes to a signal; one that arrives before the first `recv` is not lost.
fn listen(kind: SignalKind) -> Signal {
    signal(kind)
        .expect("the runtime has its signal driver on, and the kind is one that can be caught")
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let (mut terminate, mut interrupt) = (
            listen(SignalKind::terminate()),
            listen(SignalKind::interrupt()),
        );
        let (mut quit, mut hangup) = (listen(SignalKind::quit()), listen(SignalKind::hangup()));
        let mut user = listen(SignalKind::user_defined1());
        let mut upgrade = listen(SignalKind::user_defined2());
        // Pingora has started the services, and no signal ends the process any more.
        if !self.takes_over {
            self.manager.notify(ServiceState::Ready);
        }
        loop {
            tokio::select! {
                () = self.handed_over.cancelled() => return ShutdownSignal::GracefulTerminate,
                _ = terminate.recv() => return ShutdownSignal::GracefulTerminate,
                _ = interrupt.recv() => {
                    self.mode.0.store(true, Ordering::SeqCst);
                    return ShutdownSignal::GracefulTerminate;
                }
                _ = hangup.recv() => self.reloader.request_reload(),
                _ = user.recv() => self.access.reopen(),
                _ = upgrade.recv() => self.successors.request(),
                // The default action would kill the process without a drain.
                _ = quit.recv() => tracing::warn!("SIGQUIT ignored"),
            }
        }
    }
}

/// Everything that a shutdown closes.
pub(crate) struct Drain {
    /// Has the current settings.
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) tunnels: Arc<Tunnels>,
    pub(crate) access: AccessLog,
    /// The files of unix sockets, which are removed at the end.
    pub(crate) sockets: Vec<Arc<SocketFile>>,
    /// Those of operators.
    pub(crate) admin: Vec<Arc<BoundedConnections>>,
    /// Stops the background tasks.
    pub(crate) background: CancellationToken,
}

impl Drain {
    /// Logs how much is open when the shutdown begins.
    pub(crate) fn log_start(&self, fast: bool) {
        tracing::info!(
            fast,
            tunnels = self.tunnels.open(),
            connections = self.connections.open(),
            "draining"
        );
    }

    /// Drains connections and tunnels over `drain.spread`; what is still open after `drain.timeout` is closed at once.
    pub(crate) async fn drain_in_time(&self) {
        let config = self.reloader.drain_config();
        if timeout(config.timeout, self.drain(&config)).await.is_err() {
            tracing::warn!(
                tunnels = self.tunnels.open(),
                connections = self.connections.open(),
                "drain timed out"
            );
            self.drain_fast().await;
        }
    }

    /// Stops the background tasks, lets operators have their responses, and flushes the logs.
    pub(crate) async fn finish(&self, started: Instant) {
        self.background.cancel();
        let responded = join_all(self.admin.iter().map(|open| open.wait_closed()));
        // A silent connection has none to get.
        let _ = timeout(LAST_RESPONSES, responded).await;
        for socket in &self.sockets {
            socket.remove();
        }
        tracing::info!(after = ?started.elapsed(), "drained");
        self.access.close(LAST_LINES);
        logging::flush();
    }

    /// Drains connections and tunnels over `drain.spread`, and returns when none is left.
    async fn drain(&self, config: &DrainConfig) {
        self.connections.set_late(config.late);
        self.connections.drain();
        let (started, tunnels) = (Instant::now(), self.tunnels.all());
        let mut close = PacedClose::new(tunnels, CloseRequest::Drain, config.spread);
        loop {
            close.close_due(started.elapsed());
            let is_over = close.left() == 0 && config.spread <= started.elapsed();
            if is_over || self.tunnels.open() == 0 {
                break;
            }
            tokio::time::sleep(close.pause()).await;
        }
        self.close_all().await;
    }

    /// Closes idle connections and all tunnels at once, and returns when none is left, or after [`FAST_TIMEOUT`].
    async fn drain_fast(&self) {
        self.connections.close_idle();
        if timeout(FAST_TIMEOUT, self.close_all()).await.is_err() {
            tracing::warn!(
                tunnels = self.tunnels.open(),
                connections = self.connections.open(),
                "connections or tunnels are still open, ending anyway"
            );
        }
    }

    /// Closes the remaining tunnels, including those that are opened meanwhile, and waits for all connections and tunnels.
    async fn close_all(&self) {
        self.tunnels.drain();
        // A connection can still become a tunnel, but not the other way round: in this order none is missed.
        self.connections.wait_closed().await;
        self.tunnels.wait_closed().await;
    }
}

/// A background service that waits for the shutdown, drains, and exits the process.
pub(crate) struct ShutdownService {
    pub(crate) drain: Drain,
    pub(crate) mode: ShutdownMode,
    /// What is told that the drain begins.
    pub(crate) manager: Arc<ServiceManager>,
    /// Cancelled when another process has taken over: for the service manager the service goes on.
    pub(crate) taken_over: CancellationToken,
}

#[async_trait]
impl BackgroundService for ShutdownService {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        if shutdown.wait_for(|is_shutdown| *is_shutdown).await.is_err() {
            return;
        }
        // `Signals` has returned by now: without these, further signals would have no effect.
        let (mut terminate, mut interrupt) = (
            listen(SignalKind::terminate()),
            listen(SignalKind::interrupt()),
        );
        // Even if the drain panics, the process exits.
        let ended = AssertUnwindSafe(self.run(&mut terminate, &mut interrupt)).catch_unwind();
        let code = match ended.await {
            Ok(()) => 0,
            Err(_) => FAILED,
        };
        logging::flush();
        std::process::exit(code);
    }
}

impl ShutdownService {
    async fn run(&self, terminate: &mut Signal, interrupt: &mut Signal) {
        let started = Instant::now();
        let fast = self.mode.0.load(Ordering::SeqCst);
        if !self.taken_over.is_cancelled() {
            self.manager.notify(ServiceState::Stopping);
        }
        self.drain.log_start(fast);
        if fast {
            self.drain.drain_fast().await;
        } else {
            tokio::select! {
                () = self.drain.drain_in_time() => {}
                _ = terminate.recv() => self.drain.drain_fast().await,
                _ = interrupt.recv() => self.drain.drain_fast().await,
            }
        }
        self.drain.finish(started).await;
    }
}
