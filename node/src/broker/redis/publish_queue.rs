//! The publications that wait to be sent to Redis, for a subset of the channels.
//!
//! Bounded in bytes and in time. Callers wait for room in the order of their calls; the queue's task
//! ([`publisher`](super::publisher)) takes batches off the front and releases their room once Redis has
//! replied, so that publications in flight count too.

use std::collections::HashSet;
use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::Semaphore;
use tokio::sync::oneshot;
use tokio::time;
use tokio::time::Instant;

use super::drop_counters::DropCounters;
use crate::broker::PublishError;
use crate::broker::Store;
use crate::broker::StoreError;
use crate::broker::Stored;
use crate::broker::TryPublishError;
use crate::config;
use crate::metrics::DropReason;
use crate::metrics::Metrics;
use crate::protocol::channel::ChannelName;
use crate::redis::Slot;

/// The overhead of a publication besides its bytes, so that empty ones are bounded too.
const ENTRY_BYTES: usize = 64;

/// The limits of one pipeline.
const BATCH_PUBLICATIONS_MAX: usize = 512;
const BATCH_BYTES_MAX: usize = 256 << 10;

/// A bounded queue of publications.
///
/// Invariant: the permits of `room` plus the cost of all entries, waiting or in flight, is `bytes_max`.
/// Probes cost nothing: they must be accepted when the queue is full, and their rate is limited.
pub(super) struct PublishQueue {
    bytes_max: usize,
    wait: time::Duration,
    room: Semaphore,
    entries: Mutex<VecDeque<Entry>>,
    arrived: Notify,
    drop_counters: Arc<DropCounters>,
    metrics: Arc<Metrics>,
}

/// One publication in the queue.
pub(super) struct Entry {
    /// The name in Redis.
    pub(super) channel: ChannelName,
    pub(super) data: Bytes,
    /// How to store it, if it is not only published.
    pub(super) storing: Option<Storing>,
    /// After which it is dropped rather than sent late.
    expires_at: Instant,
    /// What it takes of the queue's room; a probe takes none.
    cost: usize,
    is_probe: bool,
    /// Of the channel, in a cluster.
    pub(super) slot: Slot,
    /// Why Redis did not accept it the last time.
    refusal: Option<String>,
}

/// Room in a queue that a publication is about to take.
pub(super) struct Room {
    cost: usize,
    /// Until when the publication may wait.
    expires_at: Instant,
}

/// The result of a publication, once it is there.
pub(super) type StoreReply = oneshot::Receiver<Result<Stored, StoreError>>;

/// A publication whose caller waits for the result.
pub(super) struct Storing {
    pub(super) store: Store,
    reply: oneshot::Sender<Result<Stored, StoreError>>,
}

/// The outcome of a publication.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Redis has published it.
    Taken(Stored),
    /// Redis has published it, and no replica has confirmed it in time.
    Unreplicated,
    /// Redis has rejected it, with this error.
    Refused(String),
    /// Redis has not replied and may have published it.
    Unanswered,
}

impl Entry {
    pub(super) fn is_probe(&self) -> bool {
        self.is_probe
    }

    /// Notes why Redis has not accepted it yet.
    pub(super) fn refused(&mut self, why: &str) {
        self.refusal = Some(why.to_owned());
    }

    /// Sends the result to the caller, if it waits.
    fn reply(self, result: Result<Stored, StoreError>) {
        if let Some(storing) = self.storing {
            // The caller may have stopped waiting.
            let _ = storing.reply.send(result);
        }
    }
}

impl PublishQueue {
    pub(super) fn new(
        config: &config::Redis,
        drop_counters: Arc<DropCounters>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            bytes_max: config.publish_queue_bytes_max,
            wait: config.publish_queue_wait,
            room: Semaphore::new(config.publish_queue_bytes_max),
            entries: Mutex::default(),
            arrived: Notify::new(),
            drop_counters,
            metrics,
        }
    }

    /// Queues `data` if there is room. `slot` is that of the channel, in a cluster.
    pub(super) fn try_publish(
        &self,
        channel: &ChannelName,
        slot: Slot,
        data: Bytes,
    ) -> Result<(), TryPublishError> {
        let Some(cost) = self.cost(&data) else {
            return Err(TryPublishError::Full(data));
        };
        let Ok(permit) = self.room.try_acquire_many(permits(cost)) else {
            return Err(TryPublishError::Full(data));
        };
        permit.forget();
        let expires_at = Instant::now() + self.wait;
        self.push_publication(Room { cost, expires_at }, channel, slot, data);
        Ok(())
    }

    /// Queues `data` once there is room; its time runs from now.
    pub(super) async fn publish(
        &self,
        channel: &ChannelName,
        slot: Slot,
        data: Bytes,
    ) -> Result<(), PublishError> {
        let room = self.room_for(&data, None).await?;
        self.push_publication(room, channel, slot, data);
        Ok(())
    }

    /// Queues a publication once there is room, and waits for the result.
    pub(super) async fn store(&self, slot: Slot, store: Store) -> Result<Stored, StoreError> {
        let room = self.room_for(&store.body, None).await?;
        let answered = self.push_store(room, slot, store);
        answered.await.unwrap_or(Err(StoreError::Stopped))
    }

    pub(super) fn push_publication(
        &self,
        room: Room,
        channel: &ChannelName,
        slot: Slot,
        data: Bytes,
    ) {
        self.push(Entry {
            channel: channel.clone(),
            data,
            storing: None,
            expires_at: room.expires_at,
            cost: room.cost,
            is_probe: false,
            slot,
            refusal: None,
        });
    }

    pub(super) fn push_store(&self, room: Room, slot: Slot, store: Store) -> StoreReply {
        let (reply, answered) = oneshot::channel();
        self.push(Entry {
            channel: ChannelName::wire(&store.channel),
            data: store.body.clone(),
            storing: Some(Storing { store, reply }),
            expires_at: room.expires_at,
            cost: room.cost,
            is_probe: false,
            slot,
            refusal: None,
        });
        answered
    }

    /// Waits for room, and takes it. The publication may wait until `expires_at`, or as long as usual from now.
    pub(super) async fn room_for(
        &self,
        data: &Bytes,
        expires_at: Option<Instant>,
    ) -> Result<Room, PublishError> {
        let Some(cost) = self.cost(data) else {
            self.drop_counters.note(DropReason::TooLarge, 1);
            return Err(PublishError::TooLarge);
        };
        let mut loss = Loss {
            drop_counters: &self.drop_counters,
            reason: Some(DropReason::QueueFull),
        };
        let expires_at = expires_at.unwrap_or_else(|| Instant::now() + self.wait);
        let room = self.room.acquire_many(permits(cost));
        match time::timeout_at(expires_at, room).await {
            Ok(Ok(permit)) => {
                permit.forget();
                loss.reason = None;
                Ok(Room { cost, expires_at })
            }
            Ok(Err(_closed)) => {
                loss.reason = Some(DropReason::Stopping);
                Err(PublishError::Stopped)
            }
            Err(_elapsed) => Err(PublishError::Expired),
        }
    }

    /// Returns room that was not used after all.
    pub(super) fn release(&self, room: &Room) {
        self.room.add_permits(room.cost);
    }

    /// Queues a probe at the end, even if the queue is full.
    pub(super) fn push_probe(&self, channel: &ChannelName, slot: Slot, data: Bytes) {
        self.push(Entry {
            channel: channel.clone(),
            data,
            storing: None,
            expires_at: Instant::now() + self.wait,
            cost: 0,
            is_probe: true,
            slot,
            refusal: None,
        });
    }

    /// Moves all publications of slots that `leaves` is true for, except probes, to the end of the queues that `target`
    /// returns, in their order. None of them may be in flight. Their time goes on, and they take room there, as far as there
    /// is some.
    pub(super) fn move_slots<'a>(
        &self,
        leaves: impl Fn(Slot) -> bool,
        target: impl Fn(Slot) -> &'a PublishQueue,
    ) {
        let mut entries = self.entries.lock();
        let (moved, stay): (VecDeque<Entry>, VecDeque<Entry>) =
            { entries.drain(..) }.partition(|entry| !entry.is_probe && leaves(entry.slot));
        *entries = stay;
        drop(entries);
        for mut entry in moved {
            self.room.add_permits(entry.cost);
            let target = target(entry.slot);
            entry.cost = target.room.forget_permits(entry.cost);
            target.entries.lock().push_back(entry);
            target.arrived.notify_one();
        }
    }

    fn push(&self, entry: Entry) {
        self.gauge(&entry, 1);
        self.entries.lock().push_back(entry);
        self.arrived.notify_one();
    }

    /// Waits until the queue is not empty.
    ///
    /// # Cancel safety
    ///
    /// Nothing is taken, so nothing is lost.
    pub(super) async fn arrival(&self) {
        while self.entries.lock().is_empty() {
            self.arrived.notified().await;
        }
    }

    /// Waits until there is an entry whose slot is not one of `held`.
    ///
    /// # Cancel safety
    ///
    /// Nothing is taken, so nothing is lost.
    pub(super) async fn arrival_but(&self, held: &HashSet<Slot>) {
        let is_ready = || {
            let entries = self.entries.lock();
            entries.iter().any(|entry| !held.contains(&entry.slot))
        };
        while !is_ready() {
            self.arrived.notified().await;
        }
    }

    /// Takes the next batch, of at least one entry if the queue is not empty. Expired entries are dropped first; those of
    /// slots in `held` stay.
    pub(super) fn take_batch(&self, held: &HashSet<Slot>) -> Vec<Entry> {
        self.expire();
        let mut entries = self.entries.lock();
        let mut batch: Vec<Entry> = Vec::new();
        let mut stay = VecDeque::new();
        let mut bytes = 0;
        while let Some(entry) = entries.front() {
            if !held.is_empty() && held.contains(&entry.slot) {
                stay.extend(entries.pop_front());
                continue;
            }
            bytes += entry.data.len();
            let is_full = BATCH_PUBLICATIONS_MAX <= batch.len() || BATCH_BYTES_MAX < bytes;
            if is_full && !batch.is_empty() {
                break;
            }
            batch.extend(entries.pop_front());
        }
        while let Some(entry) = stay.pop_back() {
            entries.push_front(entry);
        }
        batch
    }

    /// Puts entries that Redis has certainly not executed back to the front, in their order.
    pub(super) fn put_back(&self, batch: Vec<Entry>) {
        let mut entries = self.entries.lock();
        for entry in batch.into_iter().rev() {
            entries.push_front(entry);
        }
    }

    /// Completes publications by the replies of Redis: releases their room, counts them, and sends the results.
    pub(super) fn settle(&self, outcomes: impl IntoIterator<Item = (Entry, Outcome)>) {
        let (mut published, mut refused, mut unanswered) = (0, 0, 0);
        for (entry, outcome) in outcomes {
            self.leave(&entry);
            if !entry.is_probe() {
                match outcome {
                    Outcome::Taken(_) | Outcome::Unreplicated => published += 1,
                    Outcome::Refused(_) => refused += 1,
                    Outcome::Unanswered => unanswered += 1,
                }
            }
            entry.reply(match outcome {
                Outcome::Taken(stored) => Ok(stored),
                Outcome::Unreplicated => Err(StoreError::NotReplicated),
                Outcome::Refused(reply) => Err(StoreError::Refused(reply)),
                Outcome::Unanswered => Err(StoreError::MayBeStored),
            });
        }
        self.metrics.publications_published.inc_by(published);
        self.drop_counters.note(DropReason::Refused, refused);
        self.drop_counters
            .note(DropReason::Unacknowledged, unanswered);
    }

    /// Drops publications that Redis has certainly not executed.
    fn lose(&self, entries: Vec<Entry>, reason: DropReason, error: &StoreError) {
        let count = entries.iter().filter(|entry| !entry.is_probe()).count();
        self.drop_counters.note(reason, count);
        for entry in entries {
            self.leave(&entry);
            entry.reply(Err(error.clone()));
        }
    }

    /// Releases the room of an entry that has left the queue.
    fn leave(&self, entry: &Entry) {
        self.gauge(entry, -1);
        self.room.add_permits(entry.cost);
    }

    /// Drops expired entries; returns when the next one expires.
    pub(super) fn expire(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut expired = Vec::new();
        let next = {
            let mut entries = self.entries.lock();
            while let Some(entry) = entries.pop_front_if(|entry| entry.expires_at <= now) {
                expired.push(entry);
            }
            entries.front().map(|entry| entry.expires_at)
        };
        let (refused, waited): (Vec<_>, Vec<_>) =
            { expired.into_iter() }.partition(|entry| entry.refusal.is_some());
        self.lose(waited, DropReason::QueueExpired, &StoreError::Expired);
        for entry in refused {
            let why = entry.refusal.clone().unwrap_or_default();
            self.drop_counters.note_reply(why.clone());
            self.lose(vec![entry], DropReason::Refused, &StoreError::Refused(why));
        }
        next
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.lock().is_empty()
    }

    /// Drops all entries: the node is stopping.
    pub(super) fn lose_all(&self) {
        let entries: Vec<Entry> = self.entries.lock().drain(..).collect();
        self.lose(entries, DropReason::Stopping, &StoreError::Stopped);
    }

    /// Accepts nothing more; callers that wait for room get an error.
    pub(super) fn close(&self) {
        self.room.close();
    }

    fn cost(&self, data: &Bytes) -> Option<usize> {
        let fits = data.len() <= self.bytes_max;
        fits.then(|| (data.len() + ENTRY_BYTES).min(self.bytes_max))
    }

    fn gauge(&self, entry: &Entry, sign: i64) {
        if !entry.is_probe() {
            let bytes = i64::try_from(entry.data.len()).unwrap_or(i64::MAX);
            self.metrics.publish_queue_bytes.inc_by(sign * bytes);
            self.metrics.publish_queue_publications.inc_by(sign);
        }
    }
}

/// Counts a publication as dropped when it goes out of scope, also if its caller no longer waits.
struct Loss<'a> {
    drop_counters: &'a DropCounters,
    reason: Option<DropReason>,
}

impl Drop for Loss<'_> {
    fn drop(&mut self) {
        if let Some(reason) = self.reason {
            self.drop_counters.note(reason, 1);
        }
    }
}

fn permits(cost: usize) -> u32 {
    u32::try_from(cost).expect("no publish queue is set past 1 GiB")
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
