//! Every WebSocket of the node in one list: for the pings, and for sending everyone away.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task;
use tokio::time;
use tokio::time::Instant;

use crate::config::Endpoint;
use crate::disconnect::Disconnect;
use crate::frame::websocket;
use crate::outbox::SocketOutbox;
use crate::transport::websocket::pulse::Pulse;
use crate::transport::websocket::pulse::Verdict;

/// Clients looked at under one lock, and written to between two yields.
const STRIDE: usize = 256;

/// The pause between two groups of clients that are sent away.
const DRAIN_STEP: Duration = Duration::from_millis(20);

/// All open WebSockets.
#[derive(Default)]
pub(super) struct Roster {
    list: Mutex<List>,
}

/// Invariant: `free` names the empty places of `entries`, each once.
#[derive(Default)]
struct List {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    draining: bool,
}

struct Entry {
    outbox: Arc<SocketOutbox>,
    endpoint: Arc<Endpoint>,
    pulse: Pulse,
}

/// A place in the roster, until it is dropped.
pub(super) struct Place {
    roster: Arc<Roster>,
    index: usize,
}

impl Roster {
    /// Adds a client. Who comes while the node drains is sent away at once.
    pub(super) fn enter(
        self: &Arc<Self>,
        outbox: Arc<SocketOutbox>,
        endpoint: Arc<Endpoint>,
    ) -> Place {
        let mut list = self.list.lock();
        if list.draining {
            outbox.close(Disconnect::RESTART);
        }
        let pulse = Pulse::new(Instant::now());
        let entry = Some(Entry {
            outbox,
            endpoint,
            pulse,
        });
        let index = match list.free.pop() {
            Some(index) => {
                list.entries[index] = entry;
                index
            }
            None => {
                list.entries.push(entry);
                list.entries.len() - 1
            }
        };
        Place {
            roster: Arc::clone(self),
            index,
        }
    }

    /// Pings those that have been silent, and gives up those that did not answer.
    pub(super) async fn sweep(&self, now: Instant) {
        let mut begin = 0;
        while let Some(due) = self.look(begin, now) {
            for (outbox, verdict) in due {
                match verdict {
                    Verdict::Fine => {}
                    Verdict::Ask => outbox.send(&websocket::PING),
                    Verdict::GiveUp => outbox.close(Disconnect::NO_PONG),
                }
            }
            begin += STRIDE;
            task::yield_now().await;
        }
    }

    /// Sends everyone away, evenly over `spread`, so that they do not all come back at once.
    pub(super) async fn drain(&self, spread: Duration) {
        let outboxes: Vec<_> = {
            let mut list = self.list.lock();
            list.draining = true;
            list.entries
                .iter()
                .flatten()
                .map(|entry| Arc::clone(&entry.outbox))
                .collect()
        };
        let steps = spread.div_duration_f64(DRAIN_STEP).max(1.0);
        let group = (outboxes.len() as f64 / steps).ceil().max(1.0) as usize;
        for group in outboxes.chunks(group) {
            for part in group.chunks(STRIDE) {
                part.iter()
                    .for_each(|outbox| outbox.close(Disconnect::RESTART));
                task::yield_now().await;
            }
            if !spread.is_zero() {
                time::sleep(DRAIN_STEP).await;
            }
        }
    }

    /// What is to be done about the clients of one stride; `None` behind the last.
    fn look(&self, begin: usize, now: Instant) -> Option<Vec<(Arc<SocketOutbox>, Verdict)>> {
        let mut list = self.list.lock();
        let end = list.entries.len().min(begin + STRIDE);
        let stride = list
            .entries
            .get_mut(begin..end)
            .filter(|stride| !stride.is_empty())?;
        let mut due = Vec::new();
        for entry in stride.iter_mut().flatten() {
            let heard = entry.outbox.take_heard();
            let verdict = entry.pulse.check(&entry.endpoint.ping, heard, now);
            if verdict != Verdict::Fine {
                due.push((Arc::clone(&entry.outbox), verdict));
            }
        }
        Some(due)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut list = self.roster.list.lock();
        let entry = list.entries[self.index].take();
        list.free.push(self.index);
        drop(list);
        drop(entry); // Perhaps the last handle of the socket: closed outside the lock.
    }
}
