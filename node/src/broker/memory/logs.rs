//! The streams of all channels, and the results of publications with idempotency keys.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use parking_lot::RwLock;

use crate::broker::Ask;
use crate::broker::Store;
use crate::broker::Stored;
use crate::broker::history::Log;
use crate::broker::history::Page;
use crate::broker::history::Retention;
use crate::broker::history::Unstarted;
use crate::protocol::Epoch;
use crate::protocol::channel::ChannelName;
use crate::protocol::envelope;

/// The stored state of channels.
pub(super) struct Logs {
    channels: RwLock<HashMap<ChannelName, Arc<Mutex<Kept>>>>,
    /// Identifies this process, whose streams end with it.
    process: Epoch,
    started: Instant,
}

/// The stored state of one channel.
#[derive(Default)]
struct Kept {
    log: Option<Log>,
    results: HashMap<Arc<str>, PastResult>,
}

/// The result of a publication with an idempotency key.
struct PastResult {
    stored: Stored,
    forgotten_at: Instant,
}

impl Logs {
    /// Without streams.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            channels: RwLock::default(),
            process: Epoch::random(),
            started: now,
        }
    }

    /// This moment, for a stream that does not exist or that begins.
    fn moment(&self, retention: &Retention, now: Instant) -> Unstarted {
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2);
        let at = milliseconds(now.saturating_duration_since(self.started));
        Unstarted {
            server: self.process.to_string(),
            evicted: 0,
            at,
            until: at + milliseconds(retention.meta_ttl),
        }
    }

    /// Stores a publication and passes its envelope to `deliver`, in the order of the stream. A repetition is not
    /// delivered and gets the result of the first.
    pub(super) fn store(&self, store: Store, now: Instant, deliver: impl FnOnce(Bytes)) -> Stored {
        if store.retention.is_none() && store.idempotency.is_none() {
            deliver(envelope::unstored_body(&store.body));
            return Stored { position: None };
        }
        let kept = self.kept(&store.channel);
        let mut kept = kept.lock();
        if let Some(idempotency) = &store.idempotency
            && let Some(past) = kept.results.get(&idempotency.key)
            && now < past.forgotten_at
        {
            return past.stored.clone();
        }
        let (position, envelope) = match &store.retention {
            Some(retention) => {
                let log = kept.log_to_write(|| self.moment(retention, now), retention, now);
                let position = log.append(store.body.clone(), retention, now);
                let envelope = envelope::stored(&position, &store.body);
                (Some(position), envelope)
            }
            None => (None, envelope::unstored_body(&store.body)),
        };
        let stored = Stored { position };
        if let Some(idempotency) = store.idempotency {
            let past = PastResult {
                stored: stored.clone(),
                forgotten_at: now + idempotency.ttl,
            };
            kept.results.insert(idempotency.key, past);
        }
        deliver(envelope); // Under the lock, to keep the order.
        stored
    }

    pub(super) fn page(&self, ask: &Ask, now: Instant) -> Page {
        // Reading a channel does not create its stream.
        let kept = self.channels.read().get(&ask.channel).cloned();
        if let Some(kept) = kept
            && let Some(log) = kept.lock().log(now)
        {
            return log.page(&ask.query, &ask.retention, now);
        }
        let moment = self.moment(&ask.retention, now);
        Page {
            position: moment.position(),
            entries: Vec::new(),
            is_cut: false,
            origin: Some(moment),
        }
    }

    pub(super) fn clear(&self, channel: &ChannelName) {
        let kept = self.channels.read().get(channel).cloned();
        if let Some(kept) = kept
            && let Some(log) = &mut kept.lock().log
        {
            log.clear();
        }
    }

    /// Removes expired streams and results.
    pub(super) fn sweep(&self, now: Instant) {
        self.channels.write().retain(|_, kept| {
            // A caller that has a reference is about to use it.
            Arc::strong_count(kept) != 1 || !kept.lock().is_over(now)
        });
    }

    fn kept(&self, channel: &ChannelName) -> Arc<Mutex<Kept>> {
        if let Some(kept) = self.channels.read().get(channel) {
            return Arc::clone(kept);
        }
        let mut channels = self.channels.write();
        Arc::clone(channels.entry(channel.clone()).or_default())
    }
}

impl Kept {
    fn log(&mut self, now: Instant) -> Option<&mut Log> {
        self.log.take_if(|log| log.is_forgotten(now));
        self.log.as_mut()
    }

    fn log_to_write(
        &mut self,
        moment: impl FnOnce() -> Unstarted,
        retention: &Retention,
        now: Instant,
    ) -> &mut Log {
        self.log.take_if(|log| log.is_forgotten(now));
        self.log
            .get_or_insert_with(|| Log::new(Some(moment()), retention, now))
    }

    /// Removes what has expired; whether nothing is left.
    fn is_over(&mut self, now: Instant) -> bool {
        self.results.retain(|_, past| now < past.forgotten_at);
        self.log.take_if(|log| log.is_forgotten(now));
        if let Some(log) = &mut self.log {
            log.expire(now);
        }
        self.log.is_none() && self.results.is_empty()
    }
}
