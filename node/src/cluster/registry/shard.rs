//! One share of the registry: its ledger, and whoever carries the ledger's writes out.
//!
//! Without Redis there is nobody else, so every write is carried out as soon as it is wanted, in the same step.
//! What comes of a write is told under the lock too: in the order in which it came about.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time;
use tokio::time::Duration;

use super::News;
use super::ledger::Claim;
use super::ledger::Event;
use super::ledger::Ledger;
use super::ledger::Slot;
use super::ledger::Swept;
use super::ledger::Value;
use super::ledger::Write;

/// Writes that go out in one piece.
const BATCH_WRITES: usize = 256;

/// Where writes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backing {
    /// Nowhere: this node is alone.
    Memory,
    /// To a Redis, by a task of their own.
    Redis,
}

/// A share of the registry.
pub(super) struct Shard {
    backing: Backing,
    ledger: Mutex<Ledger>,
    /// Something is to be written.
    changed: Notify,
    /// Sent whenever writes were answered.
    answered: watch::Sender<()>,
    news: Arc<dyn News>,
}

impl Shard {
    pub(super) fn new(backing: Backing, news: Arc<dyn News>) -> Self {
        Self {
            backing,
            ledger: Mutex::default(),
            changed: Notify::new(),
            answered: watch::Sender::new(()),
            news,
        }
    }

    /// Wants `value` in `slot`, see [`Ledger::enter`]; returns the place of the wish.
    pub(super) fn enter(&self, slot: Slot, value: Value) -> u64 {
        self.change_ledger(|ledger| ledger.enter(slot, value))
    }

    /// Wants `value` where somebody has entered; returns the place of the wish.
    pub(super) fn change(&self, slot: &Slot, value: Value) -> u64 {
        self.change_ledger(|ledger| ledger.change(slot, value))
    }

    /// One of those who have entered wants nothing in `slot` any more.
    pub(super) fn leave(&self, slot: &Slot) {
        self.change_ledger(|ledger| ledger.leave(slot));
    }

    /// Waits until all wishes before `place` are fulfilled, or for as long as `patience`.
    pub(super) async fn settled(&self, place: u64, patience: Duration) -> bool {
        let mut answered = self.answered.subscribe();
        let settled = answered.wait_for(|()| self.ledger.lock().is_settled(place));
        matches!(time::timeout(patience, settled).await, Ok(Ok(_)))
    }

    /// Looks at the ledger.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.ledger.lock())
    }

    /// Waits until something is to be written.
    pub(super) async fn wait_for_change(&self) {
        self.changed.notified().await;
    }

    /// What to write next.
    pub(super) fn next_batch(&self) -> Vec<Write> {
        self.ledger.lock().next_batch(BATCH_WRITES)
    }

    /// Takes the answers to a batch; without them nobody knows what became of it.
    pub(super) fn finish(&self, batch: Vec<Write>, answers: Option<Vec<bool>>) {
        {
            let mut ledger = self.ledger.lock();
            match answers {
                Some(answers) if answers.len() == batch.len() => {
                    for (write, is_change) in batch.into_iter().zip(answers) {
                        if let Some(event) = ledger.answered(write, is_change) {
                            self.tell(event);
                        }
                    }
                }
                _ => batch.into_iter().for_each(|write| ledger.unanswered(write)),
            }
        }
        self.answered.send_replace(());
    }

    /// Has what was claimed in vain written again; how much of it that is.
    pub(super) fn lost<'a>(&self, claims: impl Iterator<Item = &'a Claim>) -> usize {
        let mut ledger = self.ledger.lock();
        let lost = claims.filter(|claim| ledger.lost(claim)).count();
        drop(ledger);
        if 0 < lost {
            self.changed.notify_one();
        }
        lost
    }

    /// Writes everything anew, under a new lease.
    pub(super) fn renew_all(&self, swept: Swept) {
        self.ledger.lock().renew_all(swept);
        self.changed.notify_one();
    }

    /// Tells others what has happened.
    pub(super) fn tell(&self, event: Event) {
        use super::ledger::Announce::Yes;
        match event {
            Event::Came(Slot::Member(channel, _), value) if value.announce == Yes => {
                self.news.came(&channel, value.info);
            }
            Event::Left(Slot::Member(channel, _), value) if value.announce == Yes => {
                self.news.left(&channel, value.info);
            }
            Event::Came(..) | Event::Left(..) => {}
        }
    }

    fn change_ledger<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let changed = {
            let mut ledger = self.ledger.lock();
            let changed = change(&mut ledger);
            if self.backing == Backing::Memory {
                self.carry_out(&mut ledger);
            }
            changed
        };
        match self.backing {
            Backing::Redis => self.changed.notify_one(),
            Backing::Memory => {
                self.answered.send_replace(());
            }
        }
        changed
    }

    /// Carries out all that is wanted. Under the same lock as the wish, so that none waits for another's.
    fn carry_out(&self, ledger: &mut Ledger) {
        loop {
            let batch = ledger.next_batch(BATCH_WRITES);
            if batch.is_empty() {
                return;
            }
            for write in batch {
                if let Some(event) = ledger.answered(write, true) {
                    self.tell(event);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::thread;

    use bytes::Bytes;

    use super::*;
    use crate::cluster::registry::Announce;
    use crate::protocol::channel::ChannelName;
    use crate::protocol::instance::ClientId;
    use crate::protocol::instance::Instance;

    /// What was told of each client, in order: whether it came.
    #[derive(Default)]
    struct Told(Mutex<HashMap<Bytes, Vec<bool>>>);

    impl News for Told {
        fn came(&self, _: &ChannelName, info: Bytes) {
            thread::yield_now(); // So that what is told elsewhere could overtake it.
            self.0.lock().entry(info).or_default().push(true);
        }

        fn left(&self, _: &ChannelName, info: Bytes) {
            self.0.lock().entry(info).or_default().push(false);
        }
    }

    fn slot_and_value(client: ClientId) -> (Slot, Value) {
        let slot = Slot::Member(ChannelName::new("a").unwrap(), client);
        let value = Value {
            info: Bytes::from(client.to_string()),
            announce: Announce::Yes,
        };
        (slot, value)
    }

    #[test]
    fn without_redis_each_coming_and_going_is_told_in_order() {
        const CLIENTS: usize = 4;
        const TIMES: usize = 3000;
        let told = Arc::new(Told::default());
        let shard = Shard::new(Backing::Memory, Arc::clone(&told) as Arc<dyn News>);
        let instance = Instance::random();
        let clients: [ClientId; CLIENTS] = std::array::from_fn(|_| ClientId::random(instance));
        // Two threads for each client, which come and go as they like.
        thread::scope(|scope| {
            for thread in 0..2 * CLIENTS {
                let (slot, value) = slot_and_value(clients[thread % CLIENTS]);
                let shard = &shard;
                scope.spawn(move || {
                    for _ in 0..TIMES {
                        shard.enter(slot.clone(), value.clone());
                        shard.leave(&slot);
                    }
                });
            }
        });
        assert!(shard.look(Ledger::is_idle), "something is held back");
        let told = told.0.lock();
        for client in clients {
            let told = &told[&Bytes::from(client.to_string())];
            assert!(told.len() % 2 == 0 && !told.is_empty());
            let alternating = [true, false].into_iter().cycle();
            assert!(told.iter().copied().eq(alternating.take(told.len())));
        }
    }
}
