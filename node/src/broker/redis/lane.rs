//! What waits to be published on the channels of one lane.
//!
//! Bounded in bytes and in time. Publishers wait for room in the order in which they came; the lane's task
//! ([`publisher`](super::publisher)) takes batches off the front and gives the room back once Redis has
//! answered, so that what is under way counts too.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::Semaphore;
use tokio::sync::oneshot;
use tokio::time;
use tokio::time::Instant;

use super::drops::Drops;
use crate::broker::PublishError;
use crate::broker::Store;
use crate::broker::StoreError;
use crate::broker::Stored;
use crate::broker::TryPublishError;
use crate::config;
use crate::metrics::DropReason;
use crate::metrics::Metrics;
use crate::protocol::channel::ChannelName;

/// What a publication costs besides its bytes, so that a flood of empty ones is bounded too.
const ENTRY_BYTES: usize = 64;

/// The most that goes to Redis in one pipeline.
const BATCH_PUBLICATIONS_MAX: usize = 512;
const BATCH_BYTES_MAX: usize = 256 << 10;

/// The waiting line of one lane.
///
/// Invariant: the permits of `room` plus the cost of all entries, waiting or under way, is `bytes_max`.
/// Probes cost nothing: they must get in when the lane is full, and are paced.
pub(super) struct Lane {
    bytes_max: usize,
    wait: time::Duration,
    room: Semaphore,
    entries: Mutex<VecDeque<Entry>>,
    arrived: Notify,
    drops: Arc<Drops>,
    metrics: Arc<Metrics>,
}

/// One publication on its way to Redis.
pub(super) struct Entry {
    /// As Redis knows it.
    pub(super) channel: ChannelName,
    pub(super) data: Bytes,
    /// What to do beyond publishing it.
    pub(super) storing: Option<Storing>,
    /// After which it is dropped rather than sent: nobody wants to read old news as new.
    expires_at: Instant,
    /// What it takes of the lane's room; a probe takes none.
    cost: usize,
}

/// A publication that somebody waits for.
pub(super) struct Storing {
    pub(super) store: Store,
    answer: oneshot::Sender<Result<Stored, StoreError>>,
}

/// What a publication has come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Redis has it.
    Taken(Stored),
    /// Redis has it, and no replica has confirmed it in time.
    Unreplicated,
    /// Redis does not want it, in its own words.
    Refused(String),
    /// Redis may have it.
    Unanswered,
}

impl Entry {
    pub(super) fn is_probe(&self) -> bool {
        self.cost == 0
    }

    /// Tells whoever waits for it.
    fn answer(self, result: Result<Stored, StoreError>) {
        if let Some(storing) = self.storing {
            // Who no longer waits does not want to know.
            let _ = storing.answer.send(result);
        }
    }
}

impl Lane {
    pub(super) fn new(config: &config::Redis, drops: Arc<Drops>, metrics: Arc<Metrics>) -> Self {
        Self {
            bytes_max: config.lane_bytes_max,
            wait: config.lane_wait,
            room: Semaphore::new(config.lane_bytes_max),
            entries: Mutex::default(),
            arrived: Notify::new(),
            drops,
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

    /// Queues a publication once there is room, and waits for what becomes of it.
    pub(super) async fn store(&self, store: Store) -> Result<Stored, StoreError> {
        let data = store.body.clone();
        let (cost, expires_at) = self.room_for(&data).await?;
        let (answer, answered) = oneshot::channel();
        self.push(Entry {
            channel: ChannelName::wire(&store.channel),
            data,
            storing: Some(Storing { store, answer }),
            expires_at,
            cost,
        });
        answered.await.unwrap_or(Err(StoreError::Stopped))
    }

    /// Waits for room, and takes it; what it costs, and until when the publication may wait.
    async fn room_for(&self, data: &Bytes) -> Result<(usize, Instant), PublishError> {
        let Some(cost) = self.cost(data) else {
            self.drops.note(DropReason::TooLarge, 1);
            return Err(PublishError::TooLarge);
        };
        let mut loss = Loss {
            drops: &self.drops,
            reason: Some(DropReason::LaneFull),
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

    /// Queues a probe behind what waits already, full or not.
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

    /// Waits until there is something to take.
    ///
    /// # Cancel safety
    ///
    /// Nothing is taken, so nothing is lost.
    pub(super) async fn arrival(&self) {
        while self.entries.lock().is_empty() {
            self.arrived.notified().await;
        }
    }

    /// Takes what goes out next, at least one if anything waits. What has expired is dropped first.
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

    /// Puts what Redis has certainly not taken back to the front, in its order.
    pub(super) fn put_back(&self, batch: Vec<Entry>) {
        let mut entries = self.entries.lock();
        for entry in batch.into_iter().rev() {
            entries.push_front(entry);
        }
    }

    /// Ends publications as Redis has answered: gives back their room, counts them, and tells who waits.
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
            entry.answer(match outcome {
                Outcome::Taken(stored) => Ok(stored),
                Outcome::Unreplicated => Err(StoreError::NotReplicated),
                Outcome::Refused(answer) => Err(StoreError::Refused(answer)),
                Outcome::Unanswered => Err(StoreError::MayBeStored),
            });
        }
        self.metrics.publications_published.inc_by(published);
        self.drops.note(DropReason::Refused, refused);
        self.drops.note(DropReason::Unacknowledged, unanswered);
    }

    /// Ends publications that Redis has certainly not taken.
    fn lose(&self, entries: Vec<Entry>, reason: DropReason, error: &StoreError) {
        let count = entries.iter().filter(|entry| !entry.is_probe()).count();
        self.drops.note(reason, count);
        for entry in entries {
            self.leave(&entry);
            entry.answer(Err(error.clone()));
        }
    }

    /// Gives back the room of an entry that is no longer the lane's concern.
    fn leave(&self, entry: &Entry) {
        self.gauge(entry, -1);
        self.room.add_permits(entry.cost);
    }

    /// Drops what has waited too long; when to look again.
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
        self.lose(expired, DropReason::LaneExpired, &StoreError::Expired);
        next
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.lock().is_empty()
    }

    /// Gives up all that waits: the node stops.
    pub(super) fn lose_all(&self) {
        let entries: Vec<Entry> = self.entries.lock().drain(..).collect();
        self.lose(entries, DropReason::Stopping, &StoreError::Stopped);
    }

    /// Takes nothing more; who waits for room is turned away.
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
            self.metrics.lane_bytes.inc_by(sign * bytes);
            self.metrics.lane_publications.inc_by(sign);
        }
    }
}

/// Notes a publication as lost when it goes out of scope, also if its publisher no longer waits.
struct Loss<'a> {
    drops: &'a Drops,
    reason: Option<DropReason>,
}

impl Drop for Loss<'_> {
    fn drop(&mut self) {
        if let Some(reason) = self.reason {
            self.drops.note(reason, 1);
        }
    }
}

fn permits(cost: usize) -> u32 {
    u32::try_from(cost).expect("no lane is set past 1 GiB")
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
