//! The running process: waits for a successor, and hands everything over to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use causeway_conf::{ServiceManager, ServiceState};
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::{timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::downstream::ParkedIdle;
use crate::downstream::open_connections::Connections;
use crate::limits::ThrottledLog;
use crate::net::owner_socket::OwnerSocket;
use crate::request::forward::{ParkReply, ParkedTunnel, TunnelContext};
use crate::server::listeners::SharedListener;
use crate::server::reload::Reloader;
use crate::takeover::BATCH_TUNNELS;
use crate::takeover::Launcher;
use crate::takeover::channel::{Channel, MESSAGE_WAIT, TakeoverError};
use crate::takeover::wire;
use crate::takeover::wire::{
    BackendOverride, Bytes, Kind, Legacy, ListenerName, TUNNEL_MAX, Taken,
};
use crate::tunnel::TunnelHandle;

/// How long a successor may take to load everything that it needs.
const READY_WAIT: Duration = Duration::from_secs(120);

/// How long a successor may take to begin to accept.
const ACCEPT_WAIT: Duration = Duration::from_secs(30);

/// How long tunnels may take to be parked. Only a thread that is stuck takes longer than some milliseconds.
const PARK_WAIT: Duration = Duration::from_secs(5);

/// How long no tunnel has to respond before it is checked whether any still will.
const QUIET: Duration = Duration::from_millis(10);

/// The pause between two passes over the tunnels, in which requests may become tunnels.
const PASS_PAUSE: Duration = Duration::from_millis(200);

/// The same before the first pass: idle connections are parked at once.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The most idle connections of a batch.
const BATCH_CONNECTIONS: usize = 2 * BATCH_TUNNELS;

/// The pause after an accept failed.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// The most bytes of the tunnels in one message, unless it has only one.
const BATCH_BYTES: usize = 2 << 20;

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
    /// Notified when a successor is to be started.
    pub(crate) upgrade: Arc<Notify>,
}

/// Where idle connections arrive that are to be handed over.
type IdleReceiver = mpsc::Receiver<ParkedIdle>;

/// How many tunnels or idle connections were handed over.
#[derive(Clone, Copy, Debug, Default)]
struct Handed {
    taken: usize,
    /// The successor can take no more.
    is_full: bool,
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
        if let Some((channel, idle)) = channel {
            // Also after a panic: this process does not accept any more.
            let _handed_over = self.handed_over.clone().drop_guard();
            self.hand_over(&channel, idle).await;
        }
    }
}

impl Predecessor {
    /// Starts a successor each time that one is wanted, if none is under way.
    async fn launch_successors<T>(&self, path: Option<&Path>) -> T {
        let mut child: Option<Child> = None;
        loop {
            self.upgrade.notified().await;
            let program = self.launcher.program().display();
            let is_running = |child: &mut Child| matches!(child.try_wait(), Ok(None));
            if child.as_mut().is_some_and(is_running) {
                tracing::warn!("a successor was started already and has not taken over yet");
                continue;
            }
            let Some(path) = path else {
                tracing::error!("cannot start a successor: takeover.socket is not set");
                continue;
            };
            match self.launcher.launch(path) {
                Ok(started) => {
                    tracing::info!(%program, process = started.id(), "successor started");
                    child = Some(started);
                }
                Err(error) => tracing::error!(%program, %error, "cannot start a successor"),
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
        if version < wire::IDLE_SINCE {
            self.connections.drain();
            return Ok(None);
        }
        Ok(Some(self.connections.drain_parking(2 * BATCH_CONNECTIONS)))
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
    async fn hand_over(&self, channel: &Channel, mut idle: Option<IdleReceiver>) {
        let (started, limit) = (Instant::now(), self.reloader.drain_config().timeout);
        let (mut taken, mut idle_taken) = (0, 0);
        let passes = async {
            let mut was_empty = false;
            let mut pause = FIRST_PAUSE;
            loop {
                let handed = hand_over_idle(channel, &mut idle, pause).await?;
                idle_taken += handed.taken;
                if handed.is_full {
                    return Ok(());
                }
                pause = PASS_PAUSE;
                // A connection can become a tunnel, but not the other way round. One that was just accepted is not counted yet.
                let is_empty = self.connections.open() == 0;
                let is_last = was_empty && is_empty;
                was_empty = is_empty;
                let handed = self.pass(channel).await?;
                taken += handed.taken;
                if is_last || handed.is_full || limit < started.elapsed() {
                    return Ok::<(), TakeoverError>(());
                }
            }
        };
        let passed = passes.await;
        // Those that wait in it stay.
        drop(idle);
        if let Err(error) = passed {
            tracing::error!(%error, "the successor has failed, closing the tunnels that it has not taken");
        } else if let Err(error) = channel.send(&wire::empty(Kind::End), &[]).await {
            tracing::warn!(%error, "the successor has gone");
        }
        let tunnels_left = self.context.tunnels.open();
        let after = started.elapsed();
        tracing::info!(
            tunnels = taken,
            tunnels_left,
            idle_connections = idle_taken,
            ?after,
            "handed over"
        );
    }

    /// Hands over all tunnels that can be handed over now.
    async fn pass(&self, channel: &Channel) -> Result<Handed, TakeoverError> {
        let mut replies = self.context.parking.open(2 * BATCH_TUNNELS);
        let handed = self.pass_with(channel, &mut replies).await;
        // Parked too late for their batch.
        replies.close();
        while let Some(reply) = replies.recv().await {
            if let ParkReply::Parked(tunnel) = reply {
                tunnel.resume();
            }
        }
        handed
    }

    async fn pass_with(
        &self,
        channel: &Channel,
        replies: &mut mpsc::Receiver<ParkReply>,
    ) -> Result<Handed, TakeoverError> {
        let mut handed = Handed::default();
        let mut failure = None;
        for handles in self.context.tunnels.all().chunks(BATCH_TUNNELS) {
            handles.iter().for_each(|handle| handle.request_park());
            let parked = collect(handles, replies).await;
            // All of them are sent or resumed, whatever happens.
            for batch in batches(parked, |tunnel| wire::tunnel_size(&**tunnel)) {
                if failure.is_some() || handed.is_full {
                    batch.into_iter().for_each(|tunnel| tunnel.resume());
                    continue;
                }
                match send_batch(channel, batch).await {
                    Ok(sent) => {
                        handed.taken += sent.taken;
                        handed.is_full |= sent.is_full;
                    }
                    Err(error) => failure = Some(error),
                }
            }
            if let Some(error) = failure.take() {
                return Err(error);
            }
            if handed.is_full {
                tracing::warn!("the successor can take no more tunnels");
                break;
            }
        }
        Ok(handed)
    }
}

/// Hands idle connections over as they come, for so long.
///
/// # Errors
///
/// [`TakeoverError`]: those that were not taken stay.
async fn hand_over_idle(
    channel: &Channel,
    idle: &mut Option<IdleReceiver>,
    wait: Duration,
) -> Result<Handed, TakeoverError> {
    let until = tokio::time::Instant::now() + wait;
    let mut handed = Handed::default();
    let Some(idle) = idle else {
        tokio::time::sleep_until(until).await;
        return Ok(handed);
    };
    let mut parked = Vec::new();
    while !handed.is_full
        && let Ok(_) = timeout_at(until, idle.recv_many(&mut parked, BATCH_CONNECTIONS)).await
    {
        for batch in batches(std::mem::take(&mut parked), wire::idle_size) {
            let sent = send_idle(channel, batch).await?;
            handed.taken += sent.taken;
            handed.is_full |= sent.is_full;
        }
    }
    if handed.is_full {
        tracing::warn!("the successor can take no more connections");
    }
    Ok(handed)
}

/// Sends a batch of idle connections, and commits it: those that the successor has taken are given up, the others stay.
///
/// # Errors
///
/// [`TakeoverError`]: the successor has none of them, and all stay.
async fn send_idle(channel: &Channel, batch: Vec<ParkedIdle>) -> Result<Handed, TakeoverError> {
    let size = batch.iter().map(wire::idle_size).sum();
    if TUNNEL_MAX < size && batch.len() == 1 {
        return Ok(Handed::default());
    }
    let mut writer = wire::batch(Kind::Idle, batch.len(), size);
    for parked in &batch {
        wire::write_idle(&mut writer, parked);
    }
    let descriptors: Vec<_> = { batch.iter() }
        .map(|parked| parked.connection().socket.as_fd())
        .collect();
    let taken = settle(channel, writer.finish(), &descriptors, batch.len()).await?;
    let mut handed = Handed {
        taken: 0,
        is_full: taken.is_full,
    };
    for (parked, is_taken) in batch.into_iter().zip(taken.each) {
        if is_taken {
            handed.taken += 1;
            parked.release();
        }
    }
    Ok(handed)
}

/// The tunnels of these that are parked, as soon as all have responded or ended.
async fn collect(
    handles: &[TunnelHandle],
    replies: &mut mpsc::Receiver<ParkReply>,
) -> Vec<Box<dyn ParkedTunnel>> {
    let (mut parked, mut responses) = (Vec::with_capacity(handles.len()), 0);
    let started = Instant::now();
    while responses < handles.len() {
        match timeout(QUIET, replies.recv()).await {
            Ok(reply) => {
                responses += 1;
                if let Some(ParkReply::Parked(tunnel)) = reply {
                    parked.push(tunnel);
                }
            }
            // Those that have ended do not respond.
            Err(_) if !handles.iter().any(TunnelHandle::is_park_pending) => break,
            Err(_) if PARK_WAIT < started.elapsed() => {
                tracing::warn!("some tunnels do not respond, they stay");
                break;
            }
            Err(_) => {}
        }
    }
    parked
}

/// Divides tunnels into batches of at most [`BATCH_BYTES`]; each has at least one.
fn batches<T>(tunnels: Vec<T>, size_of: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut batches: Vec<Vec<T>> = Vec::new();
    let mut left = 0;
    for tunnel in tunnels {
        let size = size_of(&tunnel);
        match batches.last_mut().filter(|_| size <= left) {
            Some(batch) => {
                batch.push(tunnel);
                left -= size;
            }
            None => {
                batches.push(vec![tunnel]);
                left = BATCH_BYTES.saturating_sub(size);
            }
        }
    }
    batches
}

/// Sends a batch, and commits it: those that the successor has taken are given up, the others resumed.
///
/// # Errors
///
/// [`TakeoverError`]: the successor has none of them, and all are resumed.
async fn send_batch(
    channel: &Channel,
    batch: Vec<Box<dyn ParkedTunnel>>,
) -> Result<Handed, TakeoverError> {
    let size = batch.iter().map(|it| wire::tunnel_size(&**it)).sum();
    let offered = match batch.len() {
        1 if TUNNEL_MAX < size => {
            tracing::debug!(size, "a tunnel with too much under way stays");
            Ok(Taken::default())
        }
        _ => offer(channel, &batch, size).await,
    };
    let (taken, result) = match offered {
        Ok(taken) => (taken, Ok(())),
        Err(error) => (Taken::default(), Err(error)),
    };
    let mut handed = Handed {
        taken: 0,
        is_full: taken.is_full,
    };
    let is_taken = taken.each.into_iter().chain(std::iter::repeat(false));
    for (tunnel, is_taken) in batch.into_iter().zip(is_taken) {
        if is_taken {
            handed.taken += 1;
            tunnel.release();
        } else {
            tunnel.resume();
        }
    }
    result.map(|()| handed)
}

/// Offers a batch to the successor, and commits what it can take.
///
/// # Errors
///
/// [`TakeoverError`]: it has not got the commit, and never will, if the channel is closed.
async fn offer(
    channel: &Channel,
    batch: &[Box<dyn ParkedTunnel>],
    size: usize,
) -> Result<Taken, TakeoverError> {
    let mut writer = wire::batch(Kind::Tunnels, batch.len(), size);
    for tunnel in batch {
        wire::write_tunnel(&mut writer, &**tunnel);
    }
    let sockets = batch.iter().map(|parked| parked.tunnel());
    let descriptors: Vec<_> = sockets
        .flat_map(|tunnel| [tunnel.client.as_fd(), tunnel.backend.as_fd()])
        .collect();
    settle(channel, writer.finish(), &descriptors, batch.len()).await
}

/// Sends a batch of `count`, and commits what the successor can take.
///
/// # Errors
///
/// [`TakeoverError`]: it has not got the commit, and never will, if the channel is closed.
async fn settle(
    channel: &Channel,
    message: Bytes,
    descriptors: &[BorrowedFd<'_>],
    count: usize,
) -> Result<Taken, TakeoverError> {
    channel.send(&message, descriptors).await?;
    let took = channel.expect(Kind::Took, MESSAGE_WAIT).await?;
    let taken = wire::read_took(&took.payload, count).ok_or(TakeoverError::Malformed)?;
    // An error means that it was not sent: it is one piece.
    channel.send(&wire::empty(Kind::Commit), &[]).await?;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_bounded_in_bytes_and_have_at_least_one_tunnel() {
        let sizes = vec![1, BATCH_BYTES, BATCH_BYTES - 1, 1, 1, 5 * BATCH_BYTES];
        let divided = batches(sizes, |size| *size);
        assert_eq!(
            divided,
            [
                vec![1],
                vec![BATCH_BYTES],
                vec![BATCH_BYTES - 1, 1],
                vec![1],
                vec![5 * BATCH_BYTES]
            ]
        );
        assert!(batches(Vec::<usize>::new(), |size| *size).is_empty());
    }
}
