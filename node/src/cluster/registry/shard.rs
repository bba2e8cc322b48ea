//! One shard of the registry: its desired state, and how the writes are carried out.
//!
//! Without Redis every write is carried out at once, under the same lock.
//! Events are sent under the lock too, so that they keep their order.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time;
use tokio::time::Duration;

use super::MemberListener;
use super::desired::DesiredState;
use super::desired::Event;
use super::desired::Slot;
use super::desired::StoredEntry;
use super::desired::Swept;
use super::desired::Value;
use super::desired::Write;

/// The most writes in one batch.
const BATCH_WRITES: usize = 256;

/// Where writes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backend {
    /// Nowhere: there is only this node.
    Memory,
    /// To a Redis, by a background task.
    Redis,
}

/// A shard of the registry.
pub(super) struct Shard {
    backend: Backend,
    desired: Mutex<DesiredState>,
    /// Notified when there is something to write.
    changed: Notify,
    /// Sent whenever replies to writes arrived.
    answered: watch::Sender<()>,
    listener: Arc<dyn MemberListener>,
}

impl Shard {
    pub(super) fn new(backend: Backend, listener: Arc<dyn MemberListener>) -> Self {
        Self {
            backend,
            desired: Mutex::default(),
            changed: Notify::new(),
            answered: watch::Sender::new(()),
            listener,
        }
    }

    /// Wants `value` in `slot`, see [`DesiredState::enter`]; returns the sequence number after the change.
    pub(super) fn enter(&self, slot: Slot, value: Value) -> u64 {
        self.change_desired(|desired| desired.enter(slot, value))
    }

    /// Replaces the desired value of an entered slot; returns the sequence number after the change.
    pub(super) fn change(&self, slot: &Slot, value: Value) -> u64 {
        self.change_desired(|desired| desired.change(slot, value))
    }

    /// One of the registrations of `slot` has ended.
    pub(super) fn leave(&self, slot: &Slot) {
        self.change_desired(|desired| desired.leave(slot));
    }

    /// Wants `value` in `slot`, see [`DesiredState::take_over`]; returns the sequence number after the change.
    pub(super) fn take_over(&self, slot: Slot, value: Value) -> u64 {
        self.change_desired(|desired| desired.take_over(slot, value))
    }

    /// Another node may take the entry over, or no longer, see [`DesiredState::set_offered`].
    pub(super) fn set_offered(&self, slot: &Slot, is_offered: bool) {
        self.change_desired(|desired| desired.set_offered(slot, is_offered));
    }

    /// One of the registrations of `slot` has ended, see [`DesiredState::release`].
    pub(super) fn release(&self, slot: &Slot) {
        self.change_desired(|desired| desired.release(slot));
    }

    /// Waits up to `wait_max` until all changes before `seq` are stored; whether they are.
    pub(super) async fn settled(&self, seq: u64, wait_max: Duration) -> bool {
        let mut answered = self.answered.subscribe();
        let settled = answered.wait_for(|()| self.desired.lock().is_settled(seq));
        matches!(time::timeout(wait_max, settled).await, Ok(Ok(_)))
    }

    /// Reads the desired state under the lock.
    pub(super) fn with<T>(&self, read: impl FnOnce(&DesiredState) -> T) -> T {
        read(&self.desired.lock())
    }

    /// Waits until there is something to write.
    pub(super) async fn wait_for_change(&self) {
        self.changed.notified().await;
    }

    /// The next writes.
    pub(super) fn next_batch(&self) -> Vec<Write> {
        self.desired.lock().next_batch(BATCH_WRITES)
    }

    /// Processes the replies to a batch; `None` if none arrived.
    pub(super) fn finish(&self, batch: Vec<Write>, replies: Option<Vec<bool>>) {
        {
            let mut desired = self.desired.lock();
            match replies {
                Some(replies) if replies.len() == batch.len() => {
                    for (write, is_change) in batch.into_iter().zip(replies) {
                        if let Some(event) = desired.answered(write, is_change) {
                            self.notify(event);
                        }
                    }
                }
                _ => batch
                    .into_iter()
                    .for_each(|write| desired.unanswered(write)),
            }
        }
        self.answered.send_replace(());
    }

    /// Has entries that turned out to be missing written again; returns their number.
    pub(super) fn lost<'a>(&self, stored_entries: impl Iterator<Item = &'a StoredEntry>) -> usize {
        let mut desired = self.desired.lock();
        let lost = stored_entries
            .filter(|stored_entry| desired.lost(stored_entry))
            .count();
        drop(desired);
        if 0 < lost {
            self.changed.notify_one();
        }
        lost
    }

    /// Has everything written again, under a new lease.
    pub(super) fn renew_all(&self, swept: Swept) {
        self.desired.lock().renew_all(swept);
        self.changed.notify_one();
    }

    /// Reports an event to the listener, if its member is announced.
    pub(super) fn notify(&self, event: Event) {
        use super::desired::Announce::Yes;
        match event {
            Event::Joined(Slot::Member(channel, _), value) if value.announce == Yes => {
                self.listener.joined(&channel, value.info);
            }
            Event::Left(Slot::Member(channel, _), value) if value.announce == Yes => {
                self.listener.left(&channel, value.info);
            }
            Event::Joined(..) | Event::Left(..) => {}
        }
    }

    fn change_desired<T>(&self, change: impl FnOnce(&mut DesiredState) -> T) -> T {
        let changed = {
            let mut desired = self.desired.lock();
            let changed = change(&mut desired);
            if self.backend == Backend::Memory {
                self.carry_out(&mut desired);
            }
            changed
        };
        match self.backend {
            Backend::Redis => self.changed.notify_one(),
            Backend::Memory => {
                self.answered.send_replace(());
            }
        }
        changed
    }

    /// Carries out all writes, under the lock of the change, so that none waits for another's.
    fn carry_out(&self, desired: &mut DesiredState) {
        loop {
            let batch = desired.next_batch(BATCH_WRITES);
            if batch.is_empty() {
                return;
            }
            for write in batch {
                if let Some(event) = desired.answered(write, true) {
                    self.notify(event);
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

    /// What was told of each client, in command: whether it came.
    #[derive(Default)]
    struct Told(Mutex<HashMap<Bytes, Vec<bool>>>);

    impl MemberListener for Told {
        fn joined(&self, _: &ChannelName, info: Bytes) {
            thread::yield_now(); // So that events of other threads could overtake it.
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
    fn without_redis_join_and_leave_events_are_in_order() {
        const CLIENTS: usize = 4;
        const TIMES: usize = 3000;
        let told = Arc::new(Told::default());
        let shard = Shard::new(
            Backend::Memory,
            Arc::clone(&told) as Arc<dyn MemberListener>,
        );
        let instance = Instance::random();
        let clients: [ClientId; CLIENTS] = std::array::from_fn(|_| ClientId::random(instance));
        // Two threads for each client, which enter and leave independently.
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
        assert!(
            shard.with(DesiredState::is_idle),
            "a write is still pending"
        );
        let told = told.0.lock();
        for client in clients {
            let told = &told[&Bytes::from(client.to_string())];
            assert!(told.len() % 2 == 0 && !told.is_empty());
            let alternating = [true, false].into_iter().cycle();
            assert!(told.iter().copied().eq(alternating.take(told.len())));
        }
    }
}
