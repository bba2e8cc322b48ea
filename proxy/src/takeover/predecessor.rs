//! The running process: waits for a successor, and hands everything over to it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use causeway_conf::{ServiceManager, ServiceState};
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::downstream::open_connections::Connections;
use crate::limits::ThrottledLog;
use crate::net::owner_socket::OwnerSocket;
use crate::request::forward::TunnelContext;
use crate::server::listeners::SharedListener;
use crate::server::reload::Reloader;
use crate::server::successors::{NoSuccessor, SuccessorRequests};
use crate::takeover::Launcher;
use crate::takeover::channel::{Channel, MESSAGE_WAIT, TakeoverError};
use crate::takeover::transfer::{IDLE_MAX, IdleReceiver, Transfer, Transferred};
use crate::takeover::wire;
use crate::takeover::wire::{BackendOverride, Kind, Legacy, ListenerName};

/// How long a successor may take to load everything that it needs.
const READY_WAIT: Duration = Duration::from_secs(120);

/// How long a successor may take to begin to accept.
const ACCEPT_WAIT: Duration = Duration::from_secs(30);

/// How long a successor that this process has started may take until it accepts: that it connects takes no more than the rest.
const SUCCESSOR_WAIT: Duration = READY_WAIT.saturating_add(ACCEPT_WAIT).saturating_mul(2);

/// The pause after an accept failed.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// Waits for a successor.
pub(crate) struct Predecessor {
    /// Where successors connect; `None` if there can be none.
    pub(crate) socket: Mutex<Option<OwnerSocket>>,
    pub(crate) launcher: Launcher,
    /// What a successor gets. Empty when this process drains: the sockets would stay open.
    pub(crate) listeners: Mutex<Vec<SharedListener>>,
    pub(crate) context: Arc<TunnelContext>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) manager: Arc<ServiceManager>,
    /// Cancelled when a successor accepts: listeners that are not closed by the drain are closed then.
    pub(crate) taken_over: CancellationToken,
    /// Cancelled when what is left is to be drained.
    pub(crate) handed_over: CancellationToken,
    /// Ready when this process has no predecessor any more that sends something.
    pub(crate) inherited: CancellationToken,
    /// Asks for a successor to be started.
    pub(crate) requests: Arc<SuccessorRequests>,
}

#[async_trait]
impl BackgroundService for Predecessor {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let draining = self.connections.draining();
        let socket = self.socket.lock().take();
        let path = socket.as_ref().map(|it| it.file().path().to_owned());
        let succession = async {
            tokio::select! {
                channel = self.succession(socket) => channel,
                never = self.launch_successors(path.as_deref()) => never,
            }
        };
        let channel = tokio::select! {
            biased;
            channel = succession => Some(channel),
            () = draining.cancelled() => None,
        };
        self.listeners.lock().clear();
        self.requests.close();
        if let Some((channel, idle)) = channel {
            // Also after a panic: this process does not accept any more.
            let _handed_over = self.handed_over.clone().drop_guard();
            self.hand_over(&channel, idle).await;
        }
    }
}

impl Predecessor {
    /// Starts a successor each time that one is requested, and tells if it does not take over.
    async fn launch_successors<T>(&self, path: Option<&Path>) -> T {
        loop {
            self.requests.requested().await;
            let error = match path {
                Some(path) => {
                    // Until then it would be refused.
                    self.inherited.cancelled().await;
                    self.launch_successor(path).await
                }
                None => NoSuccessor::NoSocket,
            };
            tracing::error!(%error, "no successor has taken over, still serving");
            self.requests.failed(&error);
        }
    }

    /// Starts a successor, and waits until it is clear that it does not take over.
    async fn launch_successor(&self, path: &Path) -> NoSuccessor {
        let program = self.launcher.program().display();
        let mut child = match self.launcher.launch(path) {
            Ok(child) => child,
            Err(source) => {
                return NoSuccessor::Start {
                    program: program.to_string(),
                    source: Arc::new(source),
                };
            }
        };
        tracing::info!(%program, process = child.id(), "successor started");
        match timeout(SUCCESSOR_WAIT, child.wait()).await {
            Ok(Ok(status)) => NoSuccessor::Ended(status),
            Ok(Err(source)) => NoSuccessor::Start {
                program: program.to_string(),
                source: Arc::new(source),
            },
            Err(_) => {
                // It may have ended by itself meanwhile.
                let _ = child.kill().await;
                NoSuccessor::TooSlow(SUCCESSOR_WAIT)
            }
        }
    }

    /// Waits until a successor accepts. This process does not, then, and its idle connections arrive here.
    async fn succession(&self, socket: Option<OwnerSocket>) -> (Channel, Option<IdleReceiver>) {
        let Some(socket) = socket else {
            return std::future::pending().await;
        };
        let path = socket.file();
        let listener = match UnixListener::from_std(socket.socket) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "cannot listen on the takeover socket");
                return std::future::pending().await;
            }
        };
        tracing::info!(path = %path.path().display(), "takeover socket");
        let failures = ThrottledLog::new(Instant::now());
        loop {
            let (stream, process) = self.accept(&listener, socket.user, &failures).await;
            let channel = Channel::new(stream);
            let negotiated = async {
                tokio::select! {
                    negotiated = self.negotiate(&channel, process) => negotiated,
                    never = self.refuse_others(&listener, socket.user, &failures) => never,
                }
            };
            match negotiated.await {
                Ok(idle) => return (channel, idle),
                Err(error) => {
                    tracing::warn!(process, %error, "a successor has not taken over, still serving");
                    // Without a connection it notices as well.
                    let refused = wire::refused(&error.to_string());
                    let _ = channel.send(&refused, &[]).await;
                }
            }
        }
    }

    /// The next connection of a process of the same user, and its id.
    async fn accept(
        &self,
        listener: &UnixListener,
        user: u32,
        failures: &ThrottledLog,
    ) -> (UnixStream, Option<i32>) {
        loop {
            let accepted = listener.accept().await;
            let accepted = accepted.and_then(|(stream, _)| Ok((stream.peer_cred()?, stream)));
            match accepted {
                Ok((peer, stream)) if peer.uid() == user => return (stream, peer.pid()),
                Ok((peer, stream)) => {
                    let process = peer.pid();
                    tracing::warn!(user = peer.uid(), process, "refused to be taken over");
                    let refused = wire::refused("only a process of the same user can take over");
                    let _ = Channel::new(stream).send(&refused, &[]).await;
                }
                Err(error) => {
                    if let Some(times) = failures.note(Instant::now()) {
                        tracing::error!(%error, times, "cannot accept on the takeover socket");
                    }
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
            }
        }
    }

    async fn refuse_others<T>(
        &self,
        listener: &UnixListener,
        user: u32,
        failures: &ThrottledLog,
    ) -> T {
        loop {
            let (stream, process) = self.accept(listener, user, failures).await;
            tracing::warn!(process, "another successor is taking over, refused");
            let refused = wire::refused("another process is taking over already");
            let _ = Channel::new(stream).send(&refused, &[]).await;
        }
    }

    /// Hands the listeners over. Returns where idle connections arrive, if the successor takes them.
    ///
    /// # Errors
    ///
    /// [`TakeoverError`]: this process accepts as before.
    async fn negotiate(
        &self,
        channel: &Channel,
        process: Option<i32>,
    ) -> Result<Option<IdleReceiver>, TakeoverError> {
        if !self.inherited.is_cancelled() {
            let why = "the running process is still taking over from its own predecessor";
            return Err(TakeoverError::Unsuitable(why.to_owned()));
        }
        let hello = channel.expect(Kind::Hello, MESSAGE_WAIT).await?;
        let version = wire::read_hello(&hello.payload).map_err(TakeoverError::Unsuitable)?;
        channel.send(&wire::version(version), &[]).await?;
        let (legacy, descriptors) = self.legacy()?;
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        channel.send(&wire::legacy(&legacy), &borrowed).await?;
        tracing::info!(process, "a successor starts");
        channel.expect(Kind::Ready, READY_WAIT).await?;
        self.send_sessions(channel).await?;
        channel.send(&wire::empty(Kind::Go), &[]).await?;
        channel.expect(Kind::Accepting, ACCEPT_WAIT).await?;
        channel.send(&wire::empty(Kind::Yours), &[]).await?;
        // From here on this process does not accept, whatever becomes of the other one.
        tracing::info!(process, "a successor accepts, handing over");
        if let Some(process) =
            process.and_then(|process| process.try_into().ok().filter(|id| 0 < *id))
        {
            self.manager.notify(ServiceState::MainProcess(process));
        }
        self.taken_over.cancel();
        self.requests.taken_over();
        if version < wire::IDLE_SINCE {
            self.connections.drain();
            return Ok(None);
        }
        Ok(Some(self.connections.drain_parking(IDLE_MAX)))
    }

    /// Sends the sessions that the pools remember. Those that begin later are found by the ring, as this process has placed them.
    async fn send_sessions(&self, channel: &Channel) -> Result<(), TakeoverError> {
        for pool in self.context.proxy.pools().iter() {
            let mut from = Some(0);
            while let Some(part) = from.and_then(|place| pool.sessions_part(place)) {
                channel
                    .send(&wire::sessions(&pool.name, &part), &[])
                    .await?;
                from = part.next;
            }
        }
        Ok(())
    }

    /// What a successor gets first, and descriptors of the listeners.
    fn legacy(&self) -> Result<(Legacy, Vec<OwnedFd>), TakeoverError> {
        let listeners = self.listeners.lock();
        let descriptors = listeners.iter().map(|shared| shared.socket.try_clone());
        let descriptors = descriptors.collect::<Result<_, _>>()?;
        let listeners = listeners.iter().map(|shared| ListenerName {
            requested: shared.requested,
            address: shared.address,
        });
        let pools = self.context.proxy.pools();
        let mut legacy = Legacy {
            listeners: listeners.collect(),
            ..Legacy::default()
        };
        for pool in pools.iter() {
            let backends = pool.backends();
            if !backends.is_empty() {
                legacy.pools.push(pool.name.clone());
            }
            let overridden = backends.iter().filter_map(|backend| {
                Some(BackendOverride {
                    pool: pool.name.clone(),
                    backend: backend.id.to_string(),
                    to: backend.status(Instant::now()).operator?,
                })
            });
            legacy.overrides.extend(overridden);
        }
        Ok((legacy, descriptors))
    }

    /// Hands tunnels and idle connections over until no connection is left that could become either, or `drain.timeout` is over.
    async fn hand_over(&self, channel: &Channel, idle: Option<IdleReceiver>) {
        let (started, limit) = (Instant::now(), self.reloader.drain_config().timeout);
        let mut transfer = Transfer::new(channel, &self.context, idle);
        let transferred = transfer.run(&self.connections, limit).await;
        let Transferred {
            tunnels,
            idle_connections,
        } = transfer.end();
        if let Err(error) = transferred {
            tracing::error!(%error, "the successor has failed, closing the tunnels that it has not taken");
        } else if let Err(error) = channel.send(&wire::empty(Kind::End), &[]).await {
            tracing::warn!(%error, "the successor has gone");
        }
        let tunnels_left = self.context.tunnels.open();
        let after = started.elapsed();
        tracing::info!(
            tunnels,
            tunnels_left,
            idle_connections,
            ?after,
            "handed over"
        );
    }
}
