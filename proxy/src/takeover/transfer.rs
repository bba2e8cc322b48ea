//! What the running process hands over once its successor accepts: tunnels and idle connections, in batches.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{timeout, timeout_at};

use crate::downstream::ParkedIdle;
use crate::downstream::open_connections::Connections;
use crate::request::forward::{ParkReply, ParkedTunnel, TunnelContext};
use crate::takeover::BATCH_TUNNELS_MAX;
use crate::takeover::channel::{Channel, DESCRIPTORS_MAX, MESSAGE_WAIT, TakeoverError};
use crate::takeover::wire;
use crate::takeover::wire::{Bytes, Kind, TUNNEL_MAX, Taken};
use crate::tunnel::TunnelHandle;

/// The tunnels of a batch: their clients wait until it is committed, and the others while both processes work on it.
const BATCH_TUNNELS: usize = 32;

const _: () = assert!(BATCH_TUNNELS <= BATCH_TUNNELS_MAX);

/// The most idle connections of a batch.
const BATCH_CONNECTIONS: usize = 200;

/// The most bytes of a batch, unless it has only one tunnel or connection.
const BATCH_BYTES: usize = 2 << 20;

/// How many idle connections may wait to be handed over.
pub(super) const IDLE_MAX: usize = 2 * BATCH_CONNECTIONS;

/// How long tunnels may take to be parked. Only a thread that is stuck takes longer than some milliseconds.
const PARK_WAIT: Duration = Duration::from_secs(5);

/// How long no tunnel has to respond before it is checked whether any still will.
const QUIET: Duration = Duration::from_millis(10);

/// The pause between two passes over the tunnels, in which requests may become tunnels.
const PASS_PAUSE: Duration = Duration::from_millis(200);

/// The same before the first pass: idle connections are parked at once.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

const _: () = assert!(BATCH_CONNECTIONS <= DESCRIPTORS_MAX);

/// Where idle connections arrive that are to be handed over.
pub(super) type IdleReceiver = mpsc::Receiver<ParkedIdle>;

/// How much the successor has taken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Transferred {
    pub(super) tunnels: usize,
    pub(super) idle_connections: usize,
}

/// What is handed over, and how far that is.
pub(super) struct Transfer<'a> {
    channel: &'a Channel,
    context: &'a TunnelContext,
    idle: Option<IdleReceiver>,
    transferred: Transferred,
    /// The successor can take no more.
    is_full: bool,
}

impl<'a> Transfer<'a> {
    /// Without `idle` the successor takes tunnels alone.
    pub(super) fn new(
        channel: &'a Channel,
        context: &'a TunnelContext,
        idle: Option<IdleReceiver>,
    ) -> Self {
        Self {
            channel,
            context,
            idle,
            transferred: Transferred::default(),
            is_full: false,
        }
    }

    /// Idle connections that wait to be handed over stay.
    pub(super) fn end(self) -> Transferred {
        self.transferred
    }

    /// Hands tunnels and idle connections over until no connection is left that could become either, the successor can take no more,
    /// or `limit` is over.
    ///
    /// # Errors
    ///
    /// [`TakeoverError`]: what the successor has not taken goes on here.
    pub(super) async fn run(
        &mut self,
        connections: &Connections,
        limit: Duration,
    ) -> Result<(), TakeoverError> {
        let started = Instant::now();
        let (mut was_empty, mut pause) = (false, FIRST_PAUSE);
        loop {
            self.idle_connections(pause).await?;
            pause = PASS_PAUSE;
            // A connection can become a tunnel, but not the other way round. One that was just accepted is not counted yet.
            let is_empty = connections.open() == 0;
            let is_last = was_empty && is_empty;
            was_empty = is_empty;
            self.tunnels().await?;
            if is_last || self.is_full || limit < started.elapsed() {
                return Ok(());
            }
        }
    }

    /// Hands idle connections over as they come, for so long.
    ///
    /// # Errors
    ///
    /// [`TakeoverError`]: those that were not taken stay.
    async fn idle_connections(&mut self, wait: Duration) -> Result<(), TakeoverError> {
        let until = tokio::time::Instant::now() + wait;
        let Some(mut idle) = self.idle.take() else {
            tokio::time::sleep_until(until).await;
            return Ok(());
        };
        let mut parked = Vec::new();
        while !self.is_full
            && let Ok(1..) = timeout_at(until, idle.recv_many(&mut parked, BATCH_CONNECTIONS)).await
        {
            for batch in batches(std::mem::take(&mut parked), wire::idle_size) {
                let sent = send_idle(self.channel, batch).await?;
                self.transferred.idle_connections += sent.taken;
                self.note_full(sent.is_full);
            }
        }
        self.idle = Some(idle);
        Ok(())
    }

    /// Hands over all tunnels that can be handed over now.
    ///
    /// # Errors
    ///
    /// [`TakeoverError`]: those that were not taken stay.
    async fn tunnels(&mut self) -> Result<(), TakeoverError> {
        let mut replies = self.context.parking.open(2 * BATCH_TUNNELS);
        let handed = self.pass(&mut replies).await;
        // Parked too late for their batch.
        replies.close();
        while let Some(reply) = replies.recv().await {
            if let ParkReply::Parked(tunnel) = reply {
                tunnel.resume();
            }
        }
        handed
    }

    async fn pass(&mut self, replies: &mut mpsc::Receiver<ParkReply>) -> Result<(), TakeoverError> {
        for handles in self.context.tunnels.all().chunks(BATCH_TUNNELS) {
            if self.is_full {
                break;
            }
            let started = Instant::now();
            handles.iter().for_each(|handle| handle.request_park());
            let parked = collect(handles, replies).await;
            self.send_tunnels(parked).await?;
            // The clients, the backends and the tunnels that have moved need the processors as well: they get half of the time.
            self.idle_connections(started.elapsed()).await?;
        }
        Ok(())
    }

    /// Sends or resumes all of them, whatever happens.
    async fn send_tunnels(
        &mut self,
        parked: Vec<Box<dyn ParkedTunnel>>,
    ) -> Result<(), TakeoverError> {
        let mut result = Ok(());
        for batch in batches(parked, |tunnel| wire::tunnel_size(&**tunnel)) {
            if result.is_err() || self.is_full {
                batch.into_iter().for_each(|tunnel| tunnel.resume());
                continue;
            }
            result = send_batch(self.channel, batch).await.map(|sent| {
                self.transferred.tunnels += sent.taken;
                self.note_full(sent.is_full);
            });
        }
        result
    }

    fn note_full(&mut self, is_full: bool) {
        if is_full && !self.is_full {
            tracing::warn!("the successor can take no more connections");
        }
        self.is_full |= is_full;
    }
}

/// What the successor has taken of a batch.
#[derive(Clone, Copy, Debug, Default)]
struct Handed {
    taken: usize,
    /// The successor can take no more.
    is_full: bool,
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
