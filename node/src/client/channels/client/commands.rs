//! One client's commands that are under way.
//!
//! ```text
//! messages ─▶ Commands: decoded one by one ─▶ started ─▶ replies, in the order in which they are ready
//!                 └ what is about the same channel waits for its turn
//! ```
//! Whichever task reads the client polls this, so what one command waits for (a hook, Redis) is awaited beside that of
//! others. There is one only while something is under way: an idle client has none.
//!
//! Invariants: commands about one channel are carried out one after the other, in their order, so publications keep
//! theirs; while `connect` is under way, nothing else is. At most `commands_max` commands are decoded and not done: what
//! stands behind them in a message stays as it came.

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

/// How many commands are started before other tasks of the thread have their turn.
const STARTS_MAX: usize = 128;

/// The commands of one client.
pub(crate) struct Commands {
    client: Arc<ChannelClient>,
    /// What is left of the message that came last.
    unread: Bytes,
    /// `None`: nothing has had to wait yet.
    running: Option<FuturesUnordered<Running>>,
    /// For each channel that a running command is about, the commands behind it.
    turns: Vec<Turns>,
    /// Commands that run, or wait for their turn.
    under_way: usize,
    is_connecting: bool,
    /// No command is started any more: the client is sent away.
    is_closed: bool,
}

/// What a command comes to.
type Outcome = Result<(), Failure>;

/// A command that had to wait for something.
struct Running {
    id: u32,
    order: Order,
    command: Pin<Box<dyn Future<Output = Outcome> + Send>>,
}

/// A command that is done.
struct Done {
    id: u32,
    order: Order,
    outcome: Outcome,
}

/// What a command has to keep its order with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// With nothing.
    None,
    /// With everything: it is carried out alone.
    Alone,
    /// With other commands about the connection.
    Connection,
    /// With other commands about the channel that has this hash. Two channels with one hash only wait for each other.
    Channel(u64),
}

struct Turns {
    order: Order,
    waiting: VecDeque<Command>,
}

/// What has become of a command at its start.
pub(super) enum Started {
    /// It is done.
    Done(Outcome),
    /// It may have to wait; nothing of it has happened yet.
    Waits(Pin<Box<dyn Future<Output = Outcome> + Send>>),
}

impl Future for Running {
    type Output = Done;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Done> {
        let outcome = ready!(self.command.as_mut().poll(cx));
        let Self { id, order, .. } = *self;
        Poll::Ready(Done { id, order, outcome })
    }
}

impl Commands {
    /// None yet.
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

    /// Takes a message of the client, and starts what can be started of it at once.
    pub(crate) fn push(&mut self, message: Bytes) {
        debug_assert!(self.takes_more(), "the last message comes first");
        self.client.note_heard();
        self.unread = message;
        self.start(&mut STARTS_MAX.clone());
    }

    /// Whether another message may be pushed now. If not, the client is not to be read further.
    pub(crate) fn takes_more(&self) -> bool {
        self.unread.is_empty() && !self.is_full()
    }

    /// Whether nothing is under way.
    pub(crate) fn is_done(&self) -> bool {
        self.unread.is_empty() && self.under_way == 0
    }

    /// Whether the client was sent away, so that nothing that it sends counts any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Starts nothing any more; what runs goes on.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
        self.unread = Bytes::new();
        for turns in &mut self.turns {
            self.under_way -= turns.waiting.len();
            turns.waiting = VecDeque::new();
        }
    }

    /// Carries on with what is under way. Ready once nothing is.
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

    /// Decodes and starts what there is room for, `starts_left` commands at most.
    fn start(&mut self, starts_left: &mut usize) {
        while !self.unread.is_empty() && !self.is_full() && 0 < *starts_left {
            *starts_left -= 1;
            let before = self.unread.len();
            match self.client.member.codec().take_command(&mut self.unread) {
                Ok(Some(command)) => self.take(command, before - self.unread.len()),
                Ok(None) => {}
                Err(error) => {
                    debug!(client = %self.client.id, %error, "a client's message holds no commands");
                    self.client.member.close(Disconnect::BAD_REQUEST);
                    self.close();
                }
            }
        }
        if self.unread.is_empty() {
            self.unread = Bytes::new(); // An empty slice would keep the message.
        }
    }

    /// Starts a command that took so many bytes, or has it wait for its turn.
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
        let order = Order::of(&command);
        if let Some(turns) = self.turns.iter_mut().find(|turns| turns.order == order) {
            self.under_way += 1;
            return turns.waiting.push_back(command);
        }
        if self.run(order, command) {
            self.under_way += 1;
            if order != Order::None {
                let waiting = VecDeque::new();
                self.turns.push(Turns { order, waiting });
            }
        }
    }

    /// Carries a command out as far as it goes without waiting. Whether it has to wait.
    fn run(&mut self, order: Order, command: Command) -> bool {
        let id = command.id;
        let mut command = match self.client.start(command) {
            Started::Done(outcome) => {
                self.finish(id, outcome);
                return false;
            }
            Started::Waits(command) => command,
        };
        // Mostly it is done then. The next poll has the task's waker.
        let mut nobody = Context::from_waker(noop_waker_ref());
        if let Poll::Ready(outcome) = command.as_mut().poll(&mut nobody) {
            self.finish(id, outcome);
            return false;
        }
        self.is_connecting |= order == Order::Alone;
        let running = self.running.get_or_insert_default();
        running.push(Running { id, order, command });
        true
    }

    /// Notes that a running command is done, and starts those whose turn it is.
    fn end(&mut self, done: Done) {
        let Done { id, order, outcome } = done;
        self.under_way -= 1;
        if order == Order::Alone {
            self.is_connecting = false;
        }
        self.finish(id, outcome);
        let Some(at) = self.turns.iter().position(|turns| turns.order == order) else {
            return;
        };
        while let Some(next) = self.turns[at].waiting.pop_front() {
            if self.run(order, next) {
                return; // It was counted when it began to wait.
            }
            // Closing has counted those off that wait.
            self.under_way -= 1;
        }
        self.turns.swap_remove(at);
    }

    /// Tells the client what came of a command, unless the command did so itself.
    fn finish(&mut self, id: u32, outcome: Outcome) {
        match outcome {
            Ok(()) => {}
            Err(Failure::Disconnect(farewell)) => {
                self.client.member.close(farewell);
                self.close();
            }
            Err(Failure::Error(error)) if 0 < id => {
                self.client.reply(id, protocol::Outcome::Error(error));
            }
            Err(Failure::Error(_)) => {}
        }
    }
}

impl Order {
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

/// What a command over the limit comes to. Its client is told, so that it does not send it again and again; one that
/// cannot be told is sent away.
fn too_large(command: &Command, bytes: usize, bytes_max: usize) -> Outcome {
    if command.id == 0 {
        return Err(Disconnect::TOO_LARGE.into());
    }
    let message = format!(
        "the command has {bytes} bytes, at most {bytes_max} are taken (setting message_size of the endpoint)"
    );
    Err(Failure::Error(ProtocolError {
        message,
        ..ErrorCode::LimitExceeded.into()
    }))
}

#[cfg(test)]
mod tests;
