//! What a client sends by requests of their own, beside the stream that it is told everything over.
//!
//! A task carries the messages out for as long as there are any, so that the client's [`Commands`] are the same as over a
//! WebSocket: in order where order counts, and within the same limits.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::client::channels::client::ChannelClient;
use crate::client::channels::client::commands::Commands;
use crate::cluster::directory::OrderRefused;

/// Messages that may wait.
const MESSAGES_MAX: usize = 128;

/// How many of the largest messages may wait.
const LARGEST_MAX: usize = 2;

/// Messages of one client that wait until its task takes them. While there is this, there is a task, or the client is sent
/// away.
///
/// Invariant: `bytes_queued` is the summed length of `messages`.
pub(super) struct Input {
    messages: VecDeque<Bytes>,
    bytes_queued: usize,
    /// A message has come, or the client has gone.
    changed: Arc<Notify>,
}

/// What the task finds.
enum Next {
    Message(Bytes),
    Nothing,
    /// The client has gone.
    Gone,
}

impl Input {
    fn push(&mut self, message: Bytes, bytes_max: usize) -> Result<(), OrderRefused> {
        let bytes_queued = self.bytes_queued + message.len();
        if MESSAGES_MAX <= self.messages.len() || LARGEST_MAX * bytes_max < bytes_queued {
            return Err(OrderRefused::Busy);
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
    /// Takes a message of the client, to be carried out behind those before it.
    ///
    /// # Errors
    ///
    /// Too much waits already.
    pub(crate) fn take_input(self: &Arc<Self>, message: Bytes) -> Result<(), OrderRefused> {
        self.note_heard();
        let bytes_max = self.endpoint.received_bytes_max();
        let begun = {
            let mut orders = self.orders.lock();
            let input = &mut orders.get_or_insert_default().input;
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
        self.clients.errands.spawn(carrying);
        Ok(())
    }

    /// Drops what has come from outside and is not begun: the client has gone.
    pub(super) fn drop_orders(&self) {
        let orders = self.orders.lock().take();
        if let Some(Input { changed, .. }) = orders.and_then(|orders| orders.input) {
            changed.notify_one();
        }
    }

    /// Carries out what comes until nothing is left. What runs when the client goes is carried to its end.
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
                return; // What a client that is sent away still says waits until it has gone.
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
        let mut orders = self.orders.lock();
        let input = orders
            .as_deref_mut()
            .and_then(|orders| orders.input.as_mut());
        match input.map(Input::pop) {
            None => Next::Gone,
            Some(None) => Next::Nothing,
            Some(Some(message)) => Next::Message(message),
        }
    }

    /// Ends the task, unless a message has come. Under one lock: whoever finds no input begins a task.
    fn end_input(&self) -> bool {
        let mut all = self.orders.lock();
        let Some(orders) = all.as_deref_mut() else {
            return true;
        };
        if orders
            .input
            .as_ref()
            .is_some_and(|input| !input.messages.is_empty())
        {
            return false;
        }
        orders.input = None;
        if orders.is_idle() {
            *all = None;
        }
        true
    }
}
