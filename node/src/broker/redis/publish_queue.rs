//! The publications that wait to be sent to Redis, for a subset of the channels.
//!
//! Bounded in bytes and in time. Callers wait for room in the order of their calls; the queue's task
//! ([`publisher`](super::publisher)) takes batches off the front and releases their room once Redis has
//! replied, so that publications in flight count too.

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
}

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
        self.cost == 0
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

    /// Queues `data` if there is room.
    pub(super) fn try_publish(
        &self,
        channel: &ChannelName,
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
        self.push(Entry {
            channel: channel.clone(),
            data,
            storing: None,
            expires_at,
            cost,
        });
        Ok(())
    }

    /// Queues `data` once there is room; its time runs from now.
    pub(super) async fn publish(
        &self,
        channel: &ChannelName,
        data: Bytes,
    ) -> Result<(), PublishError> {
        let (cost, expires_at) = self.room_for(&data).await?;
        self.push(Entry {
            channel: channel.clone(),
            data,
            storing: None,
            expires_at,
            cost,
        });
        Ok(())
    }

    /// Queues a publication once there is room, and waits for the result.
    pub(super) async fn store(&self, store: Store) -> Result<Stored, StoreError> {
        let data = store.body.clone();
        let (cost, expires_at) = self.room_for(&data).await?;
        let (reply, answered) = oneshot::channel();
        self.push(Entry {
            channel: ChannelName::wire(&store.channel),
            data,
            storing: Some(Storing { store, reply }),
            expires_at,
            cost,
        });
        answered.await.unwrap_or(Err(StoreError::Stopped))
    }

    /// Waits for room, and takes it; returns the cost, and until when the publication may wait.
    async fn room_for(&self, data: &Bytes) -> Result<(usize, Instant), PublishError> {
        let Some(cost) = self.cost(data) else {
            self.drop_counters.note(DropReason::TooLarge, 1);
            return Err(PublishError::TooLarge);
        };
        let mut loss = Loss {
            drop_counters: &self.drop_counters,
            reason: Some(DropReason::QueueFull),
        };
        let expires_at = Instant::now() + self.wait;
        let room = self.room.acquire_many(permits(cost));
        match time::timeout_at(expires_at, room).await {
            Ok(Ok(permit)) => {
                permit.forget();
                loss.reason = None;
                Ok((cost, expires_at))
            }
            Ok(Err(_closed)) => {
                loss.reason = Some(DropReason::Stopping);
                Err(PublishError::Stopped)
            }
            Err(_elapsed) => Err(PublishError::Expired),
        }
    }

    /// Queues a probe at the end, even if the queue is full.
    pub(super) fn push_probe(&self, channel: &ChannelName, data: Bytes) {
        self.push(Entry {
            channel: channel.clone(),
            data,
            storing: None,
            expires_at: Instant::now() + self.wait,
            cost: 0,
        });
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

    /// Takes the next batch, of at least one entry if the queue is not empty. Expired entries are dropped first.
    pub(super) fn take_batch(&self) -> Vec<Entry> {
        self.expire();
        let mut entries = self.entries.lock();
        let mut batch: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        while let Some(entry) = entries.front() {
            bytes += entry.data.len();
            let is_full = BATCH_PUBLICATIONS_MAX <= batch.len() || BATCH_BYTES_MAX < bytes;
            if is_full && !batch.is_empty() {
                break;
            }
            batch.extend(entries.pop_front());
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
        self.lose(expired, DropReason::QueueExpired, &StoreError::Expired);
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
