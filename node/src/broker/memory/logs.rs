//! The streams of all channels, and what was published under which idempotency key.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use parking_lot::RwLock;

use crate::broker::Ask;
use crate::broker::Store;
use crate::broker::Stored;
use crate::channel::ChannelName;
use crate::history::Log;
use crate::history::Page;
use crate::history::Retention;
use crate::protocol::envelope;

/// What is kept of channels.
#[derive(Default)]
pub(super) struct Logs {
    channels: RwLock<HashMap<ChannelName, Arc<Mutex<Kept>>>>,
}

/// What is kept of one channel.
#[derive(Default)]
struct Kept {
    log: Option<Log>,
    results: HashMap<Arc<str>, PastResult>,
}

/// What a publication with an idempotency key came to.
struct PastResult {
    stored: Stored,
    forgotten_at: Instant,
}

impl Logs {
    /// Stores a publication and hands its envelope to `deliver`, in the order of the stream: unless it is
    /// a repetition, which gets the result of the first.
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
                let log = kept.log(retention, now);
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
        deliver(envelope); // Under the lock: nobody overtakes it.
        stored
    }

    pub(super) fn page(&self, ask: &Ask, now: Instant) -> Page {
        let kept = self.kept(&ask.channel);
        let mut kept = kept.lock();
        let log = kept.log(&ask.retention, now);
        log.page(&ask.query, &ask.retention, now)
    }

    pub(super) fn clear(&self, channel: &ChannelName) {
        let kept = self.channels.read().get(channel).cloned();
        if let Some(kept) = kept
            && let Some(log) = &mut kept.lock().log
        {
            log.clear();
        }
    }

    /// Lets go of what has had its time.
    pub(super) fn sweep(&self, now: Instant) {
        self.channels.write().retain(|_, kept| {
            // Whoever has taken it out of the map is about to use it.
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
    fn log(&mut self, retention: &Retention, now: Instant) -> &mut Log {
        self.log.get_or_insert_with(|| Log::new(retention, now))
    }

    /// Drops what is over; whether nothing is left.
    fn is_over(&mut self, now: Instant) -> bool {
        self.results.retain(|_, past| now < past.forgotten_at);
        self.log.take_if(|log| log.is_forgotten(now));
        if let Some(log) = &mut self.log {
            log.expire(now);
        }
        self.log.is_none() && self.results.is_empty()
    }
}
