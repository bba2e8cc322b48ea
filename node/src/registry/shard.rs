//! One share of the registry: its ledger, and whoever carries the ledger's writes out.
//!
//! Without Redis there is nobody else, so every write is carried out as soon as it is wanted.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time;
use tokio::time::Duration;

use super::News;
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
        let place = self.ledger.lock().enter(slot, value);
        self.on_change();
        place
    }

    /// Wants `value` where somebody has entered; returns the place of the wish.
    pub(super) fn change(&self, slot: &Slot, value: Value) -> u64 {
        let place = self.ledger.lock().change(slot, value);
        self.on_change();
        place
    }

    /// One of those who have entered wants nothing in `slot` any more.
    pub(super) fn leave(&self, slot: &Slot) {
        self.ledger.lock().leave(slot);
        self.on_change();
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
        let mut events = Vec::new();
        {
            let mut ledger = self.ledger.lock();
            match answers {
                Some(answers) if answers.len() == batch.len() => {
                    for (write, is_change) in batch.into_iter().zip(answers) {
                        events.extend(ledger.answered(write, is_change));
                    }
                }
                _ => batch.into_iter().for_each(|write| ledger.unanswered(write)),
            }
        }
        self.answered.send_replace(());
        for event in events {
            self.tell(event);
        }
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

    fn on_change(&self) {
        match self.backing {
            Backing::Redis => self.changed.notify_one(),
            Backing::Memory => {
                let batch = self.next_batch();
                let answers = vec![true; batch.len()];
                self.finish(batch, Some(answers));
            }
        }
    }
}
