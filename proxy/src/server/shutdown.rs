//! The end of the process: signals, and the drain that they begin.
//!
//! Pingora closes the listeners and then would sleep out its grace period. So the grace period is endless, and the drain here
//! ends the process as soon as nothing is left.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::FutureExt;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::BackgroundService;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::DrainConfig;
use crate::downstream::open_connections::Connections;
use crate::downstream::open_connections::Pace;
use crate::request::access_log::AccessLog;
use crate::server::logging;
use crate::server::reload::Reloader;
use crate::tunnel::Tunnels;

/// How long a quick end may take: a Close frame for each tunnel, and what is in flight.
const QUICK: Duration = Duration::from_secs(2);

/// How long the access log may take to write its last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// The status of a process whose drain panicked.
const FAILED: i32 = 1;

/// Whether the end is to be quick.
#[derive(Clone, Debug, Default)]
pub(crate) struct Haste(Arc<AtomicBool>);

/// Turns signals into Pingora's shutdown: SIGTERM drains, SIGINT ends quickly but cleanly. SIGHUP asks for a reload, SIGUSR1 has
/// the access log opened again.
pub(crate) struct Signals {
    pub(crate) haste: Haste,
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) access: AccessLog,
}

/// Listens to a signal from here on, even if nobody waits for it yet.
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
        loop {
            tokio::select! {
                _ = terminate.recv() => return ShutdownSignal::GracefulTerminate,
                _ = interrupt.recv() => {
                    self.haste.0.store(true, Ordering::SeqCst);
                    return ShutdownSignal::GracefulTerminate;
                }
                _ = hangup.recv() => self.reloader.ask(),
                _ = user.recv() => self.access.reopen(),
                // It would end the process by default, and an operator who sends it does not want that.
                _ = quit.recv() => tracing::warn!("SIGQUIT ignored"),
            }
        }
    }
}

/// Whatever is to be closed when the edge ends.
pub(crate) struct Drain {
    pub(crate) config: DrainConfig,
    pub(crate) connections: Arc<Connections>,
    pub(crate) tunnels: Arc<Tunnels>,
    pub(crate) access: AccessLog,
    /// What runs beside the listeners, and ends with them.
    pub(crate) background: CancellationToken,
}

impl Drain {
    /// Logs what is open as the end begins.
    pub(crate) fn announce(&self, quick: bool) {
        tracing::info!(
            quick,
            tunnels = self.tunnels.open(),
            connections = self.connections.open(),
            "draining"
        );
    }

    /// Closes everything at its own pace, and what is still open after `drain.timeout` at once.
    pub(crate) async fn drain_in_time(&self) {
        if timeout(self.config.timeout, self.drain()).await.is_err() {
            tracing::warn!(
                tunnels = self.tunnels.open(),
                connections = self.connections.open(),
                "drain timed out"
            );
            self.drain_quickly().await;
        }
    }

    /// Ends what runs in the background, and writes out the logs.
    pub(crate) fn conclude(&self, started: Instant) {
        self.background.cancel();
        tracing::info!(after = ?started.elapsed(), "drained");
        self.access.close(LAST_LINES);
        logging::flush();
    }

    /// Closes everything at its own pace, and returns when nothing is left.
    async fn drain(&self) {
        self.connections.drain();
        let (started, mut pace) = (Instant::now(), Pace::new(self.config.spread));
        while !pace.is_over() && self.tunnels.open() > 0 {
            self.tunnels
                .drain_part(pace.due(started.elapsed()), Pace::parts());
            tokio::time::sleep(pace.step()).await;
        }
        self.finish().await;
    }

    /// Closes everything at once, and returns when nothing is left.
    async fn drain_quickly(&self) {
        self.connections.refuse();
        if timeout(QUICK, self.finish()).await.is_err() {
            tracing::warn!(
                tunnels = self.tunnels.open(),
                connections = self.connections.open(),
                "cut off"
            );
        }
    }

    /// Tells all that are left, also those that are opened meanwhile, and waits for them.
    async fn finish(&self) {
        self.tunnels.drain();
        // A connection can still become a tunnel, and a tunnel nothing else: in this order none is missed.
        self.connections.gone().await;
        self.tunnels.gone().await;
    }
}

/// The end of the process, as a service that does nothing until it begins.
pub(crate) struct Ending {
    pub(crate) drain: Drain,
    pub(crate) haste: Haste,
}

#[async_trait]
impl BackgroundService for Ending {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        if shutdown.wait_for(|ending| *ending).await.is_err() {
            return;
        }
        // Nobody else awaits signals any more, and they would be swallowed.
        let (mut terminate, mut interrupt) = (
            listen(SignalKind::terminate()),
            listen(SignalKind::interrupt()),
        );
        // Whatever goes wrong here: a process that was told to end does.
        let ended = AssertUnwindSafe(self.end(&mut terminate, &mut interrupt)).catch_unwind();
        let code = match ended.await {
            Ok(()) => 0,
            Err(_) => FAILED,
        };
        logging::flush();
        std::process::exit(code);
    }
}

impl Ending {
    async fn end(&self, terminate: &mut Signal, interrupt: &mut Signal) {
        let started = Instant::now();
        let quick = self.haste.0.load(Ordering::SeqCst);
        self.drain.announce(quick);
        if quick {
            self.drain.drain_quickly().await;
        } else {
            tokio::select! {
                () = self.drain.drain_in_time() => {}
                _ = terminate.recv() => self.drain.drain_quickly().await,
                _ = interrupt.recv() => self.drain.drain_quickly().await,
            }
        }
        self.drain.conclude(started);
    }
}
