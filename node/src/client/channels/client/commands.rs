//! The pending commands of one client.
//!
//! ```text
//! messages ─▶ Commands: decoded one by one ─▶ started ─▶ replies, in the order in which they are ready
//!                 └ commands about the same channel are queued
//! ```
//! The task that reads from the client polls this, so several commands can wait (for a hook, for Redis) concurrently. It
//! exists only while a command is pending: an idle client has none.
//!
//! Invariants: commands about one channel are executed one after the other, in order, so publications keep theirs; while
//! `connect` is pending, no other command runs. At most `commands_max` commands are decoded and not done: the rest of a
//! message stays encoded.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hash as _;
use std::hash::Hasher as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use futures_util::task::noop_waker_ref;
use tokio::time::Instant;
use tracing::debug;

use crate::client::channels::client::ChannelClient;
use crate::client::channels::command_rate::Admission;
use crate::client::channels::failure::Failure;
use crate::protocol;
use crate::protocol::Command;
use crate::protocol::ErrorCode;
use crate::protocol::ProtocolError;
use crate::protocol::Request;
use crate::protocol::disconnect::Disconnect;

/// How many commands are started before other tasks of the thread may run.
const STARTS_MAX: usize = 128;

/// The commands of one client.
pub(crate) struct Commands {
    client: Arc<ChannelClient>,
    /// The rest of the last message.
    unread: Bytes,
    /// Commands that wait for something; `None`: there was none yet.
    running: Option<FuturesUnordered<Running>>,
    /// For each channel with a running command, the commands queued after it.
    turns: Vec<Turns>,
    /// Commands that run or are queued.
    under_way: usize,
    is_connecting: bool,
    /// No command is started any more: the client is disconnected.
    is_closed: bool,
}

/// The result of a command.
type Outcome = Result<(), Failure>;

/// A command that had to wait for something.
struct Running {
    id: u32,
    key: OrderKey,
    command: Pin<Box<dyn Future<Output = Outcome> + Send>>,
}

/// A command that is done.
struct Done {
    id: u32,
    key: OrderKey,
    outcome: Outcome,
}

/// Commands with the same key are executed in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OrderKey {
    /// In no order.
    None,
    /// No other command runs at the same time.
    Alone,
    /// Commands about the connection.
    Connection,
    /// Commands about the channel with this hash. A collision only makes commands of two channels wait for each other.
    Channel(u64),
}

struct Turns {
    key: OrderKey,
    waiting: VecDeque<Command>,
}

/// The result of starting a command.
pub(super) enum Started {
    /// It is done.
    Done(Outcome),
    /// It may have to wait; this future executes it.
    Waits(Pin<Box<dyn Future<Output = Outcome> + Send>>),
}

impl Future for Running {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        let outcome = ready!(self.command.as_mut().poll(cx));
        let Self { id, key, .. } = *self;
        Poll::Ready(Done { id, key, outcome })
    }
}

impl Commands {
    /// Creates an empty set of commands.
    pub(crate) fn new(client: &Arc<ChannelClient>) -> Self {
        Self {
            client: Arc::clone(client),
            unread: Bytes::new(),
            running: None,
            turns: Vec::new(),
            under_way: 0,
            is_connecting: false,
            is_closed: false,
        }
    }

    /// Adds a message of the client, and starts commands of it.
    pub(crate) fn push(&mut self, message: Bytes) {
        debug_assert!(self.takes_more(), "the last message is not consumed yet");
        self.client.note_received();
        self.unread = message;
        self.start(&mut STARTS_MAX.clone());
    }

    /// Whether another message may be pushed now. If not, the caller must not read from the client.
    pub(crate) fn takes_more(&self) -> bool {
        self.unread.is_empty() && !self.is_full()
    }

    /// Whether no command is pending.
    pub(crate) fn is_done(&self) -> bool {
        self.unread.is_empty() && self.under_way == 0
    }

    /// Whether the client is disconnected, so that no command is started any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Drops queued commands; running ones continue.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
        self.unread = Bytes::new();
        for turns in &mut self.turns {
            self.under_way -= turns.waiting.len();
            turns.waiting = VecDeque::new();
        }
    }

    /// Polls pending commands. Ready once none is pending.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut starts_left = STARTS_MAX;
        loop {
            self.start(&mut starts_left);
            let done = match &mut self.running {
                Some(running) => running.poll_next_unpin(cx),
                None => Poll::Ready(None),
            };
            match done {
                Poll::Ready(Some(done)) => self.end(done),
                Poll::Ready(None) if self.is_done() => return Poll::Ready(()),
                Poll::Ready(None) | Poll::Pending => {
                    if starts_left == 0 {
                        cx.waker().wake_by_ref();
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn is_full(&self) -> bool {
        self.is_connecting || self.client.commands_max() <= self.under_way
    }

    /// Decodes and starts commands within the limit, at most `starts_left`.
    fn start(&mut self, starts_left: &mut usize) {
        while !self.unread.is_empty() && !self.is_full() && 0 < *starts_left {
            *starts_left -= 1;
            let before = self.unread.len();
            match self.client.member.codec().take_command(&mut self.unread) {
                Ok(Some(command)) => self.take(command, before - self.unread.len()),
                Ok(None) => {}
                Err(error) => {
                    debug!(client = %self.client.id, %error, "client disconnected: its message cannot be decoded as commands");
                    self.client.member.close(Disconnect::BAD_REQUEST);
                    self.close();
                }
            }
        }
        if self.unread.is_empty() {
            self.unread = Bytes::new(); // An empty slice would keep the message in memory.
        }
    }

    /// Starts a command of this size in bytes, or queues it.
    fn take(&mut self, command: Command, bytes: usize) {
        if command.is_pong() {
            return;
        }
        self.client.metrics().messages_received.inc();
        let bytes_max = self.client.endpoint().message_bytes_max;
        if bytes_max < bytes {
            return self.finish(command.id, too_large(&command, bytes, bytes_max));
        }
        match self.client.admit_command(&command, Instant::now()) {
            Admission::Within => {}
            Admission::TooFast => {
                return self.finish(command.id, Err(ErrorCode::TooManyRequests.into()));
            }
            Admission::Flood => {
                return self.finish(command.id, Err(Disconnect::TOO_MANY_ERRORS.into()));
            }
        }
        let key = OrderKey::of(&command);
        if let Some(turns) = self.turns.iter_mut().find(|turns| turns.key == key) {
            self.under_way += 1;
            return turns.waiting.push_back(command);
        }
        if self.run(key, command) {
            self.under_way += 1;
            if key != OrderKey::None {
                let waiting = VecDeque::new();
                self.turns.push(Turns { key, waiting });
            }
        }
    }

    /// Executes a command up to its first wait. Returns whether it has to wait.
    fn run(&mut self, key: OrderKey, command: Command) -> bool {
        let id = command.id;
        let mut command = match self.client.start(command) {
            Started::Done(outcome) => {
                self.finish(id, outcome);
                return false;
            }
            Started::Waits(command) => command,
        };
        // Usually it is done then. The next poll registers the task's waker.
        let mut context = Context::from_waker(noop_waker_ref());
        if let Poll::Ready(outcome) = command.as_mut().poll(&mut context) {
            self.finish(id, outcome);
            return false;
        }
        self.is_connecting |= key == OrderKey::Alone;
        let running = self.running.get_or_insert_default();
        running.push(Running { id, key, command });
        true
    }

    /// Handles a command that is done, and starts those queued after it.
    fn end(&mut self, done: Done) {
        let Done { id, key, outcome } = done;
        self.under_way -= 1;
        if key == OrderKey::Alone {
            self.is_connecting = false;
        }
        self.finish(id, outcome);
        let Some(at) = self.turns.iter().position(|turns| turns.key == key) else {
            return;
        };
        while let Some(next) = self.turns[at].waiting.pop_front() {
            if self.run(key, next) {
                return; // It was counted when it was queued.
            }
            // `close` has subtracted those that are queued.
            self.under_way -= 1;
        }
        self.turns.swap_remove(at);
    }

    /// Sends the client an error or disconnects it, if the command failed.
    fn finish(&mut self, id: u32, outcome: Outcome) {
        match outcome {
            Ok(()) => {}
            Err(Failure::Disconnect(disconnect_message)) => {
                self.client.member.close(disconnect_message);
                self.close();
            }
            Err(Failure::Error(error)) if 0 < id => {
                self.client.reply(id, protocol::Outcome::Error(error));
            }
            Err(Failure::Error(_)) => {}
        }
    }
}

impl OrderKey {
    fn of(command: &Command) -> Self {
        let channel = match &command.request {
            Some(Request::Connect(_)) => return Self::Alone,
            Some(Request::Refresh(_)) => return Self::Connection,
            Some(Request::Ping(_) | Request::Send(_) | Request::Rpc(_)) | None => {
                return Self::None;
            }
            Some(Request::Subscribe(request)) => &request.channel,
            Some(Request::Unsubscribe(request)) => &request.channel,
            Some(Request::Publish(request)) => &request.channel,
            Some(Request::Presence(request)) => &request.channel,
            Some(Request::PresenceStats(request)) => &request.channel,
            Some(Request::History(request)) => &request.channel,
            Some(Request::SubRefresh(request)) => &request.channel,
        };
        let mut hasher = DefaultHasher::new();
        channel.hash(&mut hasher);
        Self::Channel(hasher.finish())
    }
}

/// The failure for a command over the limit. The client gets an error, so that it does not send the command again; if the
/// command has no id to reply to, the client is disconnected.
fn too_large(command: &Command, bytes: usize, bytes_max: usize) -> Outcome {
    if command.id == 0 {
        return Err(Disconnect::TOO_LARGE.into());
    }
    let message = format!(
        "the command has {bytes} bytes, at most {bytes_max} are accepted (setting message_size of the endpoint)"
    );
    Err(Failure::Error(ProtocolError {
        message,
        ..ErrorCode::LimitExceeded.into()
    }))
}

#[cfg(test)]
mod tests;
