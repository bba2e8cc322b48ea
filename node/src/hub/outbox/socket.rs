//! All writes to a WebSocket: whole frames, written at once if the socket accepts them, else queued.
//!
//! Invariant: bytes are written only under the output lock, and only as whole frames or as the rest of a frame that was
//! written partially. So the hub, pongs and close frames never interleave within a frame, and no dropped future can leave
//! a frame incomplete (every call is synchronous).

use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;
use bytes::BytesMut;
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::hub::outbox::Hold;
use crate::hub::outbox::Queued;
use crate::hub::outbox::Waiting;
use crate::hub::outbox::cost;
use crate::hub::outbox::held::Held;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::frame::websocket;
use crate::protocol::frame::websocket::SocketFormat;

/// How many queued buffers one vectored write includes.
const SLICES_MAX: usize = 64;

/// The outbox of a WebSocket.
///
/// Senders are the hub, the client's own task and the roster. Only the task reads the socket, and only the task writes
/// what is queued.
pub(crate) struct SocketOutbox {
    stream: TcpStream,
    format: SocketFormat,
    /// Whether the client's edge can hand it off to another node.
    can_hand_off: bool,
    bytes_max: usize,
    output: Mutex<Output>,
    /// Wakes the task: the queue is no longer empty, or the outbox no longer open.
    waker: AtomicWaker,
    received: AtomicBool,
    /// Whether reading from the client is paused.
    reading_paused: AtomicBool,
}

/// Invariant: there is a backlog while something is queued or held back, and none in `Dead`.
struct Output {
    state: SocketState,
    /// Boxed because rarely present.
    backlog: Option<Box<Backlog>>,
    /// Boxed because only present while the connection closes.
    disconnected: Option<Box<Disconnected>>,
}

/// Why a client was disconnected.
#[derive(Debug, Clone, Copy)]
struct Disconnected {
    disconnect: Disconnect,
    /// What was queued for it at that moment, in bytes.
    bytes_queued: usize,
}

/// What a socket has not accepted yet.
///
/// Invariant: `queue` holds whole frames, and of its first buffer `head_sent` bytes are sent already;
/// `bytes_queued` is the summed cost of the buffers.
#[derive(Default)]
struct Backlog {
    queue: VecDeque<Waiting>,
    head_sent: usize,
    bytes_queued: usize,
    /// What was sent since [`SocketOutbox::hold`].
    held: Held,
}

/// The state of a WebSocket's sending direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SocketState {
    /// Frames are accepted.
    Open,
    /// The close frame is sent or queued; RFC 6455 allows no frame after it.
    Closing,
    /// The socket has failed or is shut down.
    Dead,
}

impl SocketOutbox {
    /// Creates the outbox of a socket after the handshake.
    pub(crate) fn new(stream: TcpStream, format: SocketFormat, bytes_max: usize) -> Self {
        let output = Output {
            state: SocketState::Open,
            backlog: None,
            disconnected: None,
        };
        Self {
            stream,
            format,
            can_hand_off: false,
            bytes_max,
            output: Mutex::new(output),
            waker: AtomicWaker::new(),
            received: AtomicBool::new(false),
            reading_paused: AtomicBool::new(false),
        }
    }

    /// The same for a client that its edge can hand off to another node.
    pub(crate) fn with_handoff(self) -> Self {
        Self {
            can_hand_off: true,
            ..self
        }
    }

    /// Whether the client's edge can hand it off to another node.
    pub(crate) fn can_hand_off(&self) -> bool {
        self.can_hand_off
    }

    /// Sends whole frames, or queues what the socket does not accept.
    ///
    /// If more than the limit is queued already, the client is disconnected as slow. These frames do not count: a single
    /// large message must not disconnect a client that reads.
    pub(crate) fn send(&self, frames: &Bytes) {
        self.send_if(frames, || true);
    }

    /// The same if `is_meant` returns true, which is called under the lock.
    pub(crate) fn send_if(&self, frames: &Bytes, is_meant: impl FnOnce() -> bool) {
        let mut output = self.output.lock();
        if output.state != SocketState::Open || !is_meant() {
            return;
        }
        if self.bytes_max < output.bytes_queued() {
            self.close_with(&mut output, Disconnect::SLOW, Disconnect::SLOW.reason);
        } else if output.hold_back(frames) || !self.write_or_queue(&mut output, frames) {
            return;
        }
        drop(output);
        self.waker.wake();
    }

    /// If `is_meant` returns true, sends `frames` if nothing is queued. Otherwise queues only `newest`, the last of them,
    /// and replaces what is queued of the same `channel`: at most one message for each channel, which never makes a client
    /// slow.
    pub(crate) fn send_latest(
        &self,
        channel: u64,
        frames: &Bytes,
        newest: Bytes,
        is_meant: impl FnOnce() -> bool,
    ) {
        let mut output = self.output.lock();
        if output.state == SocketState::Open
            && let Some(backlog) = &mut output.backlog
            && backlog.held.is_empty()
        {
            if is_meant() {
                backlog.queue_latest(channel, newest);
            }
            return;
        }
        drop(output);
        self.send_if(frames, is_meant);
    }

    /// Keeps what is queued of `channel`: newer publications do not replace it.
    pub(crate) fn keep_latest(&self, channel: u64) {
        let mut output = self.output.lock();
        let waiting = output
            .backlog
            .iter_mut()
            .flat_map(|backlog| &mut backlog.queue);
        for kept in waiting.filter(|waiting| waiting.latest_of == channel) {
            kept.latest_of = 0;
        }
    }

    /// Reserves the place of a reply and holds back what is sent after it, except a close frame, until it is
    /// [released](Self::release).
    pub(crate) fn hold(&self) -> Hold {
        self.output.lock().backlog().held.hold()
    }

    /// Sends `reply` in its place, nothing if it is empty, and what was held back after it.
    pub(crate) fn release(&self, hold: Hold, reply: &Bytes) {
        let mut output = self.output.lock();
        let ready = output.release(&hold, reply);
        if output.state != SocketState::Open {
            return;
        }
        let mut wake = false;
        for frames in &ready {
            wake |= self.write_or_queue(&mut output, frames);
        }
        drop(output);
        if wake {
            self.waker.wake();
        }
    }

    /// The peer's address, if the socket is still connected.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }

    /// What is queued and held back, in bytes.
    pub(crate) fn bytes_queued(&self) -> usize {
        self.output.lock().bytes_queued()
    }

    /// Calls `visit` with everything that is queued or held back.
    pub(crate) fn each_queued(&self, visit: &mut dyn FnMut(&Bytes)) {
        let output = self.output.lock();
        if let Some(backlog) = &output.backlog {
            backlog.queue.iter().for_each(|one| visit(&one.bytes));
            backlog.held.messages().for_each(visit);
        }
    }

    /// Sends `frames` as the last ones: the reply to the client's close frame.
    pub(crate) fn send_last(&self, frames: &Bytes) {
        let mut output = self.output.lock();
        if output.state == SocketState::Open {
            self.write_or_queue(&mut output, frames);
            if output.state == SocketState::Open {
                output.state = SocketState::Closing;
            }
        }
    }

    /// Disconnects the client: sends a close frame, and wakes its task to close the connection.
    pub(crate) fn close(&self, disconnect: Disconnect) {
        self.close_with_reason(disconnect, disconnect.reason);
    }

    /// Disconnects the client so that it connects again, after a handoff that has failed.
    pub(crate) fn close_to_reconnect(&self) {
        self.close(match self.format {
            SocketFormat::Raw | SocketFormat::Sockjs => Disconnect::RESTART,
            SocketFormat::Json | SocketFormat::Protobuf => Disconnect::SHUTDOWN, // Of a channel client.
        });
    }

    /// The same as [`close`](Self::close) with another reason text than that of `disconnect`.
    pub(crate) fn close_with_reason(&self, disconnect: Disconnect, reason: &str) {
        let mut output = self.output.lock();
        if output.state == SocketState::Open {
            self.close_with(&mut output, disconnect, reason);
            drop(output);
            self.waker.wake();
        }
    }

    /// Writes what is queued. Ready when the queue is empty, or when the socket is dead.
    ///
    /// Only for the client's task, which is registered to be woken.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker()); // Before the state is read, or a wake in between is lost.
        let mut output = self.output.lock();
        while let Some(backlog) = output.waiting() {
            let written = match ready!(self.stream.poll_write_ready(cx)) {
                Ok(()) => self.write_queued(backlog),
                Err(error) => Err(error),
            };
            match written {
                Ok(written) => output.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {} // Now it is not ready.
                Err(_) => output.die(),
            }
        }
        Poll::Ready(())
    }

    /// Shuts down both directions of the socket, even if the outbox is still shared.
    pub(crate) fn shut_down(&self) {
        self.output.lock().die();
        // It fails if the peer has closed the connection: then there is nothing to do.
        let _ = SockRef::from(&self.stream).shutdown(Shutdown::Both);
    }

    /// Shuts down the sending direction, so that the client sees the end directly after the close frame.
    pub(crate) fn shut_down_write(&self) {
        let _ = SockRef::from(&self.stream).shutdown(Shutdown::Write);
    }

    /// The state of the sending direction.
    pub(crate) fn state(&self) -> SocketState {
        self.output.lock().state
    }

    /// Why the client was disconnected, if it was.
    pub(crate) fn disconnect(&self) -> Option<Disconnect> {
        let output = self.output.lock();
        output.disconnected.as_ref().map(|away| away.disconnect)
    }

    /// What was queued, in bytes, when the client was disconnected because it reads too slowly; `None` if it was not.
    pub(crate) fn slow_bytes(&self) -> Option<usize> {
        let output = self.output.lock();
        let away = output.disconnected.as_ref()?;
        (away.disconnect == Disconnect::SLOW).then_some(away.bytes_queued)
    }

    /// Whether nothing is queued.
    pub(crate) fn is_idle(&self) -> bool {
        self.output.lock().waiting().is_none()
    }

    /// The encoding of messages on this WebSocket.
    pub(crate) fn format(&self) -> SocketFormat {
        self.format
    }

    /// The socket, for reading.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Notes that the client has sent something.
    pub(crate) fn mark_received(&self) {
        self.received.store(true, Ordering::Relaxed);
    }

    /// Notes that reading from the client is paused, so that it does not count as silent.
    pub(crate) fn pause_reading(&self) {
        self.reading_paused.store(true, Ordering::Relaxed);
    }

    /// Notes that reading from the client is resumed. What it has sent meanwhile is not read yet.
    pub(crate) fn resume_reading(&self) {
        self.mark_received();
        self.reading_paused.store(false, Ordering::Relaxed);
    }

    /// Whether reading from the client is paused.
    pub(crate) fn is_reading_paused(&self) -> bool {
        self.reading_paused.load(Ordering::Relaxed)
    }

    /// Whether the client has sent something since the last call, or reading is paused.
    pub(crate) fn take_received(&self) -> bool {
        let received = self.received.swap(false, Ordering::Relaxed);
        received || self.is_reading_paused()
    }

    /// Returns whether the task has to be woken: the queue has become non-empty, or the socket has failed.
    fn write_or_queue(&self, output: &mut Output, frames: &Bytes) -> bool {
        let was_empty = output.waiting().is_none();
        let sent = if was_empty {
            self.stream.try_write(frames)
        } else {
            Ok(0)
        };
        match sent {
            Ok(sent) if sent == frames.len() => return false, // The usual case.
            Ok(sent) => output.backlog().queue(frames.clone(), sent),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                output.backlog().queue(frames.clone(), 0)
            }
            Err(_) => output.die(),
        }
        was_empty
    }

    /// A slow client gets only the rest of a partially written frame, and the close frame.
    fn close_with(&self, output: &mut Output, disconnect: Disconnect, reason: &str) {
        let bytes_queued = output.bytes_queued();
        if disconnect == Disconnect::SLOW {
            output.drop_unsent_frames();
        }
        // A client that does not send SockJS frames gets a WebSocket close frame only, as from sockjs-node.
        let format = match disconnect {
            Disconnect::BROKEN_FRAMING => SocketFormat::Raw,
            _ => self.format,
        };
        let mut close = BytesMut::new();
        websocket::append_close(&mut close, format, disconnect.code, reason);
        self.write_or_queue(output, &close.freeze());
        output.disconnected = Some(Box::new(Disconnected {
            disconnect,
            bytes_queued,
        }));
        if output.state == SocketState::Open {
            output.state = SocketState::Closing;
        }
    }

    fn write_queued(&self, backlog: &Backlog) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let mut skip = backlog.head_sent;
        for (slice, frames) in slices.iter_mut().zip(&backlog.queue) {
            *slice = IoSlice::new(&frames.bytes[skip..]);
            skip = 0;
            count += 1;
        }
        self.stream.try_write_vectored(&slices[..count])
    }
}

impl Queued for SocketOutbox {
    fn each_queued(&self, visit: &mut dyn FnMut(&Bytes)) {
        Self::each_queued(self, visit);
    }

    fn shed(&self) {
        self.close(Disconnect::SLOW);
    }
}

impl Output {
    fn bytes_queued(&self) -> usize {
        let backlog = self.backlog.as_ref();
        backlog.map_or(0, |backlog| backlog.bytes_queued + backlog.held.bytes())
    }

    /// The backlog if something of it is queued for the socket.
    fn waiting(&self) -> Option<&Backlog> {
        self.backlog
            .as_deref()
            .filter(|backlog| !backlog.queue.is_empty())
    }

    /// The backlog, created if there is none.
    fn backlog(&mut self) -> &mut Backlog {
        self.backlog.get_or_insert_default()
    }

    /// Holds `frames` back if a reply is not ready yet; returns whether it did.
    fn hold_back(&mut self, frames: &Bytes) -> bool {
        let backlog = self.backlog.as_mut();
        backlog.is_some_and(|backlog| backlog.hold_back(frames))
    }

    /// Puts `reply` in its place; returns what can be sent now.
    fn release(&mut self, hold: &Hold, reply: &Bytes) -> Vec<Bytes> {
        let Some(backlog) = &mut self.backlog else {
            return Vec::new();
        };
        let ready = backlog.held.release(hold, reply);
        self.drop_empty_backlog();
        ready
    }

    /// Removes `written` bytes from the queue.
    fn advance(&mut self, written: usize) {
        if let Some(backlog) = &mut self.backlog {
            backlog.advance(written);
            self.drop_empty_backlog();
        }
    }

    /// An idle client has no buffer.
    fn drop_empty_backlog(&mut self) {
        self.backlog
            .take_if(|backlog| backlog.queue.is_empty() && backlog.held.is_empty());
    }

    /// Drops the queue, except the rest of a partially written frame.
    fn drop_unsent_frames(&mut self) {
        if let Some(mut backlog) = self.backlog.take()
            && let Some(rest) = backlog.take_rest_of_frame()
        {
            self.backlog().queue(rest, 0);
        }
    }

    fn die(&mut self) {
        self.backlog = None;
        self.state = SocketState::Dead;
    }
}

impl Backlog {
    /// Queues `frames`, of which `sent` bytes are written; only the first in the queue may be partially written.
    fn queue(&mut self, frames: Bytes, sent: usize) {
        debug_assert!(sent == 0 || self.queue.is_empty());
        self.bytes_queued += cost(&frames);
        self.head_sent += sent;
        self.queue.push_back(Waiting::new(frames));
    }

    /// Replaces what is queued of `channel` by `newest`, unless it is partially written; appends `newest` otherwise.
    fn queue_latest(&mut self, channel: u64, newest: Bytes) {
        self.bytes_queued += cost(&newest);
        let partially_written = usize::from(0 < self.head_sent);
        let mut waiting = self.queue.iter_mut().skip(partially_written);
        if let Some(waiting) = waiting.find(|waiting| waiting.latest_of == channel) {
            self.bytes_queued -= waiting.cost();
            waiting.bytes = newest;
        } else {
            self.queue.push_back(Waiting {
                bytes: newest,
                latest_of: channel,
            });
        }
    }

    fn hold_back(&mut self, frames: &Bytes) -> bool {
        if self.held.is_empty() {
            return false;
        }
        self.held.push(frames);
        true
    }

    fn advance(&mut self, written: usize) {
        self.head_sent += written;
        while let Some(head) = self.queue.front()
            && head.bytes.len() <= self.head_sent
        {
            self.head_sent -= head.bytes.len();
            self.bytes_queued -= head.cost();
            self.queue.pop_front();
        }
    }

    /// The rest of a partially written frame.
    fn take_rest_of_frame(&mut self) -> Option<Bytes> {
        let head = self.queue.pop_front()?.bytes;
        let end = websocket::boundary(&head, self.head_sent);
        // A copy, so that the rest of the batch is not kept in memory.
        (self.head_sent < end).then(|| Bytes::copy_from_slice(&head[self.head_sent..end]))
    }
}

#[cfg(test)]
mod tests;
