//! Messages that a client sends in separate HTTP requests, besides the response that streams its replies.
//!
//! A task executes the messages while there are any, so that the client's [`Commands`] have the same order and limits as
//! over a WebSocket.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::client::channels::client::ChannelClient;
use crate::client::channels::client::commands::Commands;
use crate::cluster::directory::CommandRejected;

/// Messages that may be queued.
const MESSAGES_MAX: usize = 128;

/// How many messages of the largest size may be queued.
const LARGEST_MAX: usize = 2;

/// Messages of one client, queued for its task. While this exists, the task runs or the client is disconnected.
///
/// Invariant: `bytes_queued` is the summed length of `messages`.
pub(super) struct Input {
    messages: VecDeque<Bytes>,
    bytes_queued: usize,
    /// Notified when a message is queued, or when the client has gone.
    changed: Arc<Notify>,
}

/// What the task does next.
enum Next {
    Message(Bytes),
    Nothing,
    /// The client has gone.
    Gone,
}

impl Input {
    fn push(&mut self, message: Bytes, bytes_max: usize) -> Result<(), CommandRejected> {
        let bytes_queued = self.bytes_queued + message.len();
        if MESSAGES_MAX <= self.messages.len() || LARGEST_MAX * bytes_max < bytes_queued {
            return Err(CommandRejected::Busy);
        }
        self.bytes_queued = bytes_queued;
        self.messages.push_back(message);
        Ok(())
    }

    fn pop(&mut self) -> Option<Bytes> {
        let message = self.messages.pop_front()?;
        self.bytes_queued -= message.len();
        Some(message)
    }
}

impl ChannelClient {
    /// Queues a message of the client.
    ///
    /// # Errors
    ///
    /// The queue is full.
    pub(crate) fn take_input(self: &Arc<Self>, message: Bytes) -> Result<(), CommandRejected> {
        self.note_received();
        let bytes_max = self.endpoint.received_bytes_max();
        let begun = {
            let mut control = self.control.lock();
            let input = &mut control.get_or_insert_default().input;
            if let Some(input) = input {
                input.push(message, bytes_max)?;
                input.changed.notify_one();
                return Ok(());
            }
            let changed = Arc::new(Notify::new());
            *input = Some(Input {
                bytes_queued: message.len(),
                messages: VecDeque::from([message]),
                changed: Arc::clone(&changed),
            });
            changed
        };
        let carrying = Arc::clone(self).carry_input_out(begun);
        self.clients.background_tasks.spawn(carrying);
        Ok(())
    }

    /// Drops queued control commands and messages: the client has gone.
    pub(super) fn drop_control(&self) {
        let mut control = self.control.lock();
        let control = control.take_if(|control| !control.has_moved());
        if let Some(Input { changed, .. }) = control.and_then(|control| control.input) {
            changed.notify_one();
        }
    }

    /// Executes messages until none is queued. Commands that run when the client goes are completed.
    async fn carry_input_out(self: Arc<Self>, changed: Arc<Notify>) {
        let mut commands = Commands::new(&self);
        loop {
            while commands.takes_more() && !commands.is_closed() {
                match self.next_input() {
                    Next::Message(message) => commands.push(message),
                    Next::Nothing => break,
                    Next::Gone => commands.close(),
                }
            }
            if commands.is_done() && (commands.is_closed() || self.end_input()) {
                return; // Further messages of a disconnected client stay queued until it has gone.
            }
            let (had_room, is_open) = (commands.takes_more(), !commands.is_closed());
            let progress = poll_fn(|cx| match commands.poll(cx) {
                Poll::Pending if commands.takes_more() == had_room => Poll::Pending,
                Poll::Pending | Poll::Ready(()) => Poll::Ready(()),
            });
            tokio::select! {
                () = progress => {}
                () = changed.notified(), if is_open => {}
            }
        }
    }

    fn next_input(&self) -> Next {
        let mut control = self.control.lock();
        let input = control
            .as_deref_mut()
            .and_then(|control| control.input.as_mut());
        match input.map(Input::pop) {
            None => Next::Gone,
            Some(None) => Next::Nothing,
            Some(Some(message)) => Next::Message(message),
        }
    }

    /// Ends the task, unless a message is queued. Under one lock: a message that finds no input starts a new task.
    fn end_input(&self) -> bool {
        let mut all = self.control.lock();
        let Some(control) = all.as_deref_mut() else {
            return true;
        };
        if control
            .input
            .as_ref()
            .is_some_and(|input| !input.messages.is_empty())
        {
            return false;
        }
        control.input = None;
        if control.is_idle() {
            *all = None;
        }
        true
    }
}
