//! The one way out of a WebSocket: whole frames, at once if the socket takes them, else queued.
//!
//! Invariant: bytes reach the socket only under the output lock, and only as whole frames or as the
//! continuation of a frame that the socket has cut. So the hub, pongs and close frames never cut into
//! one another, and nothing that is dropped half-way (every call is synchronous) can leave a frame open.

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

/// How many queued buffers one write takes along.
const SLICES_MAX: usize = 64;

/// A WebSocket as everyone sees it who writes to it.
///
/// Senders are the hub, the client's own task and the roster. Only the task reads, and only the task
/// writes what is queued.
pub(crate) struct SocketOutbox {
    stream: TcpStream,
    format: SocketFormat,
    bytes_max: usize,
    output: Mutex<Output>,
    /// Wakes the task: the queue is no longer empty, or the outbox no longer open.
    waker: AtomicWaker,
    heard: AtomicBool,
    /// What the client sends stays in the socket.
    reading_paused: AtomicBool,
}

/// Invariant: the backlog is there while something waits or is held back. In `Dead` there is none.
struct Output {
    state: SocketState,
    /// In a box, because mostly nothing waits.
    backlog: Option<Box<Backlog>>,
    /// In a box, because it is there for a moment only.
    sent_away: Option<Box<SentAway>>,
}

/// Why a client was disconnected.
#[derive(Debug, Clone, Copy)]
struct SentAway {
    disconnect: Disconnect,
    /// What was queued for it then, in bytes.
    bytes_queued: usize,
}

/// What a socket has not taken yet.
///
/// Invariant: `queue` holds whole frames, and of its first buffer `head_sent` bytes are sent already;
/// `bytes_queued` is the summed cost of the buffers.
#[derive(Default)]
struct Backlog {
    queue: VecDeque<Waiting>,
    head_sent: usize,
    bytes_queued: usize,
    /// What came since [`SocketOutbox::hold`].
    held: Held,
}

/// How far a WebSocket is from its end, seen from our side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SocketState {
    /// Frames are taken.
    Open,
    /// The close frame is sent or queued; RFC 6455 allows no other behind it.
    Closing,
    /// The socket is of no more use.
    Dead,
}

impl SocketOutbox {
    /// The outbox of a socket on which the handshake is over.
    pub(crate) fn new(stream: TcpStream, format: SocketFormat, bytes_max: usize) -> Self {
        let output = Output {
            state: SocketState::Open,
            backlog: None,
            sent_away: None,
        };
        Self {
            stream,
            format,
            bytes_max,
            output: Mutex::new(output),
            waker: AtomicWaker::new(),
            heard: AtomicBool::new(false),
            reading_paused: AtomicBool::new(false),
        }
    }

    /// Sends whole frames, or queues what the socket does not take.
    ///
    /// If more than the limit waits already, the client is slow and closes. These frames do not count:
    /// a single large message must not end a good reader.
    pub(crate) fn send(&self, frames: &Bytes) {
        self.send_if(frames, || true);
    }

    /// The same if `is_meant` says so, which is asked under the lock.
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

    /// If `is_meant` says so, sends `frames` if nothing waits; else only `newest`, the last of them, in the
    /// place of what waits of the same `channel`: one message for each channel at most, which makes no client
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

    /// Keeps what waits of `channel` as it is, whatever newer comes.
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

    /// Keeps a place for a reply and holds back what is sent behind it, but for a close frame, until it is
    /// [released](Self::release).
    pub(crate) fn hold(&self) -> Hold {
        self.output.lock().backlog().held.hold()
    }

    /// Sends `reply` in its place, nothing if it is empty, and what was held back behind it.
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

    /// The other end of the connection, if the socket still knows it.
    pub(crate) fn peer(&self) -> Option<SocketAddr> {
        self.stream.peer_addr().ok()
    }

    /// What waits, in bytes.
    pub(crate) fn bytes_queued(&self) -> usize {
        self.output.lock().bytes_queued()
    }

    /// Looks at all that waits and at what is held back.
    pub(crate) fn each_queued(&self, look: &mut dyn FnMut(&Bytes)) {
        let output = self.output.lock();
        if let Some(backlog) = &output.backlog {
            backlog.queue.iter().for_each(|one| look(&one.bytes));
            backlog.held.messages().for_each(look);
        }
    }

    /// Sends `frames` as the last ones: the answer to the client's close frame.
    pub(crate) fn send_last(&self, frames: &Bytes) {
        let mut output = self.output.lock();
        if output.state == SocketState::Open {
            self.write_or_queue(&mut output, frames);
            if output.state == SocketState::Open {
                output.state = SocketState::Closing;
            }
        }
    }

    /// Sends the client away: its close frame is the last that it gets, and its task sees to the rest.
    pub(crate) fn close(&self, disconnect: Disconnect) {
        self.close_saying(disconnect, disconnect.reason);
    }

    /// The same, in other words than those of `disconnect`.
    pub(crate) fn close_saying(&self, disconnect: Disconnect, reason: &str) {
        let mut output = self.output.lock();
        if output.state == SocketState::Open {
            self.close_with(&mut output, disconnect, reason);
            drop(output);
            self.waker.wake();
        }
    }

    /// Writes what is queued. Ready when nothing is, or when the socket is dead.
    ///
    /// Only for the client's task, which is woken from now on.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker()); // Before the look at the state, or a wake between them is lost.
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

    /// Gives the socket up: both directions end, whoever may still hold the outbox.
    pub(crate) fn shut_down(&self) {
        self.output.lock().die();
        // It fails if the peer has been faster, and then there is nothing to do.
        let _ = SockRef::from(&self.stream).shutdown(Shutdown::Both);
    }

    /// Ends our direction, so that the client sees the end right behind the close frame.
    pub(crate) fn shut_down_write(&self) {
        let _ = SockRef::from(&self.stream).shutdown(Shutdown::Write);
    }

    /// How far it is from its end.
    pub(crate) fn state(&self) -> SocketState {
        self.output.lock().state
    }

    /// Why we have sent the client away, if we have.
    pub(crate) fn disconnect(&self) -> Option<Disconnect> {
        let output = self.output.lock();
        output.sent_away.as_ref().map(|away| away.disconnect)
    }

    /// What was queued, in bytes, when the client was disconnected because it reads too slowly; `None` if it was not.
    pub(crate) fn slow_bytes(&self) -> Option<usize> {
        let output = self.output.lock();
        let away = output.sent_away.as_ref()?;
        (away.disconnect == Disconnect::SLOW).then_some(away.bytes_queued)
    }

    /// Whether nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.output.lock().waiting().is_none()
    }

    /// How messages stand on this wire.
    pub(crate) fn format(&self) -> SocketFormat {
        self.format
    }

    /// The socket, for reading.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Notes that the client has sent something.
    pub(crate) fn mark_heard(&self) {
        self.heard.store(true, Ordering::Relaxed);
    }

    /// Notes that the client is not read for now, so that nobody takes it for silent.
    pub(crate) fn pause_reading(&self) {
        self.reading_paused.store(true, Ordering::Relaxed);
    }

    /// Notes that it is read again. What it sent meanwhile is yet to be read.
    pub(crate) fn resume_reading(&self) {
        self.mark_heard();
        self.reading_paused.store(false, Ordering::Relaxed);
    }

    /// Whether the client is not read for now.
    pub(crate) fn is_reading_paused(&self) -> bool {
        self.reading_paused.load(Ordering::Relaxed)
    }

    /// Whether the client has sent something since the last call, or could not be heard.
    pub(crate) fn take_heard(&self) -> bool {
        let heard = self.heard.swap(false, Ordering::Relaxed);
        heard || self.is_reading_paused()
    }

    /// Whether the task has to be woken: the queue was empty and is not, or the socket has died.
    fn write_or_queue(&self, output: &mut Output, frames: &Bytes) -> bool {
        let was_empty = output.waiting().is_none();
        let sent = if was_empty {
            self.stream.try_write(frames)
        } else {
            Ok(0)
        };
        match sent {
            Ok(sent) if sent == frames.len() => return false, // Nearly always.
            Ok(sent) => output.backlog().queue(frames.clone(), sent),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                output.backlog().queue(frames.clone(), 0)
            }
            Err(_) => output.die(),
        }
        was_empty
    }

    /// The client of a slow outbox gets the rest of the frame in hand and the close frame, nothing else.
    fn close_with(&self, output: &mut Output, disconnect: Disconnect, reason: &str) {
        let bytes_queued = output.bytes_queued();
        if disconnect == Disconnect::SLOW {
            output.drop_unsent_frames();
        }
        // Who does not speak SockJS is told in WebSocket's words alone, as by sockjs-node.
        let format = match disconnect {
            Disconnect::BROKEN_FRAMING => SocketFormat::Raw,
            _ => self.format,
        };
        let mut close = BytesMut::new();
        websocket::append_close(&mut close, format, disconnect.code, reason);
        self.write_or_queue(output, &close.freeze());
        output.sent_away = Some(Box::new(SentAway {
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
    fn each_queued(&self, look: &mut dyn FnMut(&Bytes)) {
        Self::each_queued(self, look);
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

    /// The backlog if the socket has to take something of it.
    fn waiting(&self) -> Option<&Backlog> {
        self.backlog
            .as_deref()
            .filter(|backlog| !backlog.queue.is_empty())
    }

    /// The backlog, for something to be put there.
    fn backlog(&mut self) -> &mut Backlog {
        self.backlog.get_or_insert_default()
    }

    /// Whether `frames` are held back.
    fn hold_back(&mut self, frames: &Bytes) -> bool {
        let backlog = self.backlog.as_mut();
        backlog.is_some_and(|backlog| backlog.hold_back(frames))
    }

    /// What can be sent once `reply` is in its place.
    fn release(&mut self, hold: &Hold, reply: &Bytes) -> Vec<Bytes> {
        let Some(backlog) = &mut self.backlog else {
            return Vec::new();
        };
        let ready = backlog.held.release(hold, reply);
        self.drop_empty_backlog();
        ready
    }

    /// Takes `written` bytes off the queue.
    fn advance(&mut self, written: usize) {
        if let Some(backlog) = &mut self.backlog {
            backlog.advance(written);
            self.drop_empty_backlog();
        }
    }

    /// An idle client owns no buffer.
    fn drop_empty_backlog(&mut self) {
        self.backlog
            .take_if(|backlog| backlog.queue.is_empty() && backlog.held.is_empty());
    }

    /// Keeps of the queue only the rest of a frame that the socket has cut.
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
    /// Queues `frames`, of which `sent` bytes are out; only the first in the queue may have any.
    fn queue(&mut self, frames: Bytes, sent: usize) {
        debug_assert!(sent == 0 || self.queue.is_empty());
        self.bytes_queued += cost(&frames);
        self.head_sent += sent;
        self.queue.push_back(Waiting::new(frames));
    }

    /// Queues `newest` in the place of what waits of `channel`, unless the socket has some of that.
    fn queue_latest(&mut self, channel: u64, newest: Bytes) {
        self.bytes_queued += cost(&newest);
        let untouched = usize::from(0 < self.head_sent);
        let mut waiting = self.queue.iter_mut().skip(untouched);
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

    /// What the socket still has to get of a frame that it has cut.
    fn take_rest_of_frame(&mut self) -> Option<Bytes> {
        let head = self.queue.pop_front()?.bytes;
        let end = websocket::boundary(&head, self.head_sent);
        // A copy: the rest of the batch is not kept alive for it.
        (self.head_sent < end).then(|| Bytes::copy_from_slice(&head[self.head_sent..end]))
    }
}

#[cfg(test)]
mod tests;
