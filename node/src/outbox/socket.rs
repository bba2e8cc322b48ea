//! The one way out of a WebSocket: whole frames, at once if the socket takes them, else queued.
//!
//! Invariant: bytes reach the socket only under the output lock, and only as whole frames or as the
//! continuation of a frame that the socket has cut. So the hub, pongs and close frames never cut into
//! one another, and nothing that is dropped half-way (every call is synchronous) can leave a frame open.

use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::net::Shutdown;
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

use crate::disconnect::Disconnect;
use crate::frame::websocket;
use crate::frame::websocket::SocketFormat;
use crate::outbox::Waiting;
use crate::outbox::cost;

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

/// Invariant: `queue` holds whole frames, and of its first buffer `head_sent` bytes are sent already;
/// `bytes_queued` is the summed cost of the buffers. In `Dead` there are none.
struct Output {
    queue: VecDeque<Waiting>,
    head_sent: usize,
    bytes_queued: usize,
    state: SocketState,
    /// In a box, because it is there for a moment only.
    disconnect: Option<Box<Disconnect>>,
    /// What came since [`SocketOutbox::hold`]; it counts as queued.
    held: Option<Vec<Bytes>>,
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
            queue: VecDeque::new(),
            head_sent: 0,
            bytes_queued: 0,
            state: SocketState::Open,
            disconnect: None,
            held: None,
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
        let mut output = self.output.lock();
        if output.state != SocketState::Open {
            return;
        }
        if self.bytes_max < output.bytes_queued {
            self.close_with(&mut output, Disconnect::SLOW, Disconnect::SLOW.reason);
        } else if output.hold_back(frames) || !self.write_or_queue(&mut output, frames) {
            return;
        }
        drop(output);
        self.waker.wake();
    }

    /// Sends `frames` if nothing waits; else only `newest`, the last of them, in the place of what waits
    /// of the same `channel`: one message for each channel at most, which makes nobody slow.
    pub(crate) fn send_latest(&self, channel: u64, frames: &Bytes, newest: Bytes) {
        let mut output = self.output.lock();
        if output.state == SocketState::Open && output.held.is_none() && !output.queue.is_empty() {
            return output.queue_latest(channel, newest);
        }
        drop(output);
        self.send(frames);
    }

    /// Holds back what is sent from now on, but for a close frame.
    pub(crate) fn hold(&self) {
        self.output.lock().held.get_or_insert_default();
    }

    /// Sends `first`, then what was held back.
    pub(crate) fn release(&self, first: &Bytes) {
        let mut output = self.output.lock();
        let held = output.held.take().unwrap_or_default();
        if output.state != SocketState::Open {
            return;
        }
        output.bytes_queued -= held.iter().map(cost).sum::<usize>();
        let mut wake = self.write_or_queue(&mut output, first);
        for frames in held.iter() {
            wake |= self.write_or_queue(&mut output, frames);
        }
        drop(output);
        if wake {
            self.waker.wake();
        }
    }

    /// What waits, in bytes.
    pub(crate) fn bytes_queued(&self) -> usize {
        self.output.lock().bytes_queued
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
        while !output.queue.is_empty() {
            let written = match ready!(self.stream.poll_write_ready(cx)) {
                Ok(()) => self.write_queued(&output),
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
        self.output.lock().disconnect.as_deref().copied()
    }

    /// Whether nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.output.lock().queue.is_empty()
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
        let was_empty = output.queue.is_empty();
        let sent = if was_empty {
            self.stream.try_write(frames)
        } else {
            Ok(0)
        };
        match sent {
            Ok(sent) if sent == frames.len() => return false, // Nearly always.
            Ok(sent) => output.queue(frames.clone(), sent),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                output.queue(frames.clone(), 0)
            }
            Err(_) => output.die(),
        }
        was_empty
    }

    /// The client of a slow outbox gets the rest of the frame in hand and the close frame, nothing else.
    fn close_with(&self, output: &mut Output, disconnect: Disconnect, reason: &str) {
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
        output.disconnect = Some(Box::new(disconnect));
        if output.state == SocketState::Open {
            output.state = SocketState::Closing;
        }
    }

    fn write_queued(&self, output: &Output) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let mut skip = output.head_sent;
        for (slice, frames) in slices.iter_mut().zip(&output.queue) {
            *slice = IoSlice::new(&frames.bytes[skip..]);
            skip = 0;
            count += 1;
        }
        self.stream.try_write_vectored(&slices[..count])
    }
}

impl Output {
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

    /// Whether `frames` are held back.
    fn hold_back(&mut self, frames: &Bytes) -> bool {
        let Some(held) = &mut self.held else {
            return false;
        };
        self.bytes_queued += cost(frames);
        held.push(frames.clone());
        true
    }

    /// Takes `written` bytes off the queue.
    fn advance(&mut self, written: usize) {
        self.head_sent += written;
        while let Some(head) = self.queue.front()
            && head.bytes.len() <= self.head_sent
        {
            self.head_sent -= head.bytes.len();
            self.bytes_queued -= head.cost();
            self.queue.pop_front();
        }
        if self.queue.is_empty() {
            self.queue = VecDeque::new(); // An idle client owns no buffer.
        }
    }

    /// Keeps of the queue only the rest of a frame that the socket has cut.
    fn drop_unsent_frames(&mut self) {
        let head = self.queue.pop_front();
        self.queue = VecDeque::new();
        self.held = None;
        self.bytes_queued = 0;
        let Some(head) = head.map(|head| head.bytes) else {
            return;
        };
        let end = websocket::boundary(&head, self.head_sent);
        let sent = std::mem::take(&mut self.head_sent);
        if sent < end {
            // A copy: the rest of the batch is not kept alive for it.
            self.queue(Bytes::copy_from_slice(&head[sent..end]), 0);
        }
    }

    fn die(&mut self) {
        self.queue = VecDeque::new();
        self.held = None;
        self.head_sent = 0;
        self.bytes_queued = 0;
        self.state = SocketState::Dead;
    }
}

#[cfg(test)]
mod tests;
