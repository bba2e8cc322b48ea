//! The hub's task: decides which channel is flushed when, and flushes it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::HashMap;
use std::future;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tokio::task;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::hub::Hub;
use crate::hub::batch::Closed;
use crate::hub::channel::Channel;
use crate::hub::channel::ChannelKind;
use crate::hub::channel::Departures;
use crate::hub::channel::Urgency;
use crate::hub::cpu;
use crate::hub::subscribers::Subscribers;
use crate::hub::window::Window;

/// Members written to between two yields: about 2 ms, during which this thread's other tasks wait.
const STRIDE: usize = 256;

/// The state of the task.
pub(super) struct FlushLoop<'a> {
    hub: &'a Hub,
    broker: Arc<dyn Broker>,
    subscribers: HashMap<u64, Subscribers>,
    /// Channels whose window has not ended, the first to end on top. A channel that is flushed early stays in it, at most
    /// once; what it has collected since is flushed at the end of that window at the latest.
    waiting: BinaryHeap<Reverse<Waiting>>,
    written: usize,
}

struct Waiting {
    until: Instant,
    channel: Arc<Channel>,
}

impl<'a> FlushLoop<'a> {
    pub(super) fn new(hub: &'a Hub, broker: Arc<dyn Broker>) -> Self {
        for channel in hub.channels.read().values() {
            if channel.kind == ChannelKind::PinnedRelay {
                broker.subscribe(&channel.name);
            }
        }
        Self {
            hub,
            broker,
            subscribers: HashMap::new(),
            waiting: BinaryHeap::new(),
            written: 0,
        }
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let first_end = self.waiting.peek().map(|Reverse(waiting)| waiting.until);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                () = self.hub.wake.notified() => {}
                () = sleep_until(first_end) => {}
            }
            for channel in self.hub.take_listed() {
                self.flush_or_wait(channel).await;
            }
            while let Some(channel) = self.pop_due(Instant::now()) {
                self.flush_or_wait(channel).await;
            }
        }
    }

    /// Flushes the channel, now or when its window has ended.
    async fn flush_or_wait(&mut self, channel: Arc<Channel>) {
        let urgency = channel.urgency();
        if urgency == Urgency::None {
            return; // It was flushed early, or is no longer in the map.
        }
        let subscribers = self.subscribers.entry(channel.id).or_insert_with(|| {
            if channel.kind == ChannelKind::Relay {
                self.broker.subscribe(&channel.name);
            }
            let fanout = &self.hub.fanout;
            Subscribers::new(&channel, Window::new(fanout.window, fanout.factor))
        });
        match subscribers.window.end(Instant::now()) {
            Some(until) if urgency == Urgency::AfterWindow => {
                if !mem::replace(&mut subscribers.is_waiting, true) {
                    self.waiting.push(Reverse(Waiting { until, channel }));
                }
            }
            _ => self.flush(&channel).await,
        }
    }

    async fn flush(&mut self, channel: &Channel) {
        let Some(subscribers) = self.subscribers.get_mut(&channel.id) else {
            return;
        };
        let (taken, mut departures) = channel.take();
        let batch = taken.batch.close();
        self.hub.count_dropped(channel, &batch, taken.dropped);
        let pending = subscribers.leave(taken.changes);
        if 0 < batch.messages {
            let began = Instant::now();
            let busy = write(subscribers, &batch, &mut departures, &mut self.written).await;
            subscribers.window.end_flush(began, busy);
            self.hub
                .metrics
                .deliveries
                .inc_by(subscribers.deliveries(&batch) as u64);
            self.hub.metrics.delivered(&batch.published);
        }
        subscribers.join(pending, &batch, &mut departures);
        if taken.is_last {
            subscribers.clear();
            self.hub.note_over(channel);
        }
        if subscribers.is_empty() && self.hub.remove_if_unused(channel) {
            self.subscribers.remove(&channel.id);
            if channel.kind == ChannelKind::Relay {
                self.broker.unsubscribe(&channel.name);
            }
        }
    }

    fn pop_due(&mut self, now: Instant) -> Option<Arc<Channel>> {
        self.waiting
            .peek()
            .filter(|Reverse(first)| first.until <= now)?;
        let Reverse(Waiting { channel, .. }) = self.waiting.pop()?;
        if let Some(subscribers) = self.subscribers.get_mut(&channel.id) {
            subscribers.is_waiting = false;
        }
        Some(channel)
    }
}

/// Writes the batch to every member that has not left. Returns the CPU time that this took.
async fn write(
    subscribers: &Subscribers,
    batch: &Closed,
    departures: &mut Departures<'_>,
    written: &mut usize,
) -> Duration {
    let mut busy = Duration::ZERO;
    let mut since = cpu::thread_time();
    for chunk in 0..subscribers.chunks() {
        *written += subscribers.deliver(chunk, batch, departures);
        if STRIDE <= *written {
            *written = 0;
            busy += cpu::thread_time().saturating_sub(since);
            // Messages that arrive meanwhile go into the next batch.
            task::yield_now().await;
            since = cpu::thread_time(); // The task may run on another thread now.
        }
    }
    busy + cpu::thread_time().saturating_sub(since)
}

async fn sleep_until(end: Option<Instant>) {
    match end {
        Some(end) => time::sleep_until(end).await,
        None => future::pending().await,
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.until == other.until
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.until.cmp(&other.until)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::broker;
    use crate::broker::Deliver;
    use crate::config;
    use crate::hub::HubConfig;
    use crate::hub::Member;
    use crate::hub::outbox::QueueOutbox;
    use crate::metrics::Metrics;
    use crate::protocol::channel::ChannelName;
    use crate::protocol::publication::Publication;

    #[tokio::test]
    async fn a_channel_that_is_often_full_is_in_the_waiting_heap_once() {
        let hour = Duration::from_secs(3600);
        let fanout = config::Fanout {
            window: hour,
            factor: 1.0,
            batch_bytes_max: 64,
        };
        let pinned = Vec::new();
        let metrics = Metrics::new();
        let hub = Hub::new(HubConfig { fanout, pinned }, Arc::clone(&metrics));
        let deliver = Arc::clone(&hub) as Arc<dyn Deliver>;
        let shutdown = CancellationToken::new();
        let memory = broker::start(&[], "n", deliver, metrics, shutdown);
        let name = ChannelName::new("global").unwrap();
        let outbox = Arc::new(QueueOutbox::new(1 << 20));
        let _member = hub.join(&name, Member::Queue(Arc::clone(&outbox)));
        let mut flush_loop = FlushLoop::new(&hub, memory.broker);
        for channel in hub.take_listed() {
            flush_loop.flush_or_wait(channel).await;
        }
        for count in 1..=3 {
            for subscribers in flush_loop.subscribers.values_mut() {
                subscribers.window.end_flush(Instant::now(), hour);
            }
            for data in ["short".to_owned(), "x".repeat(64)] {
                let data = Bytes::from(data);
                let channel = name.clone();
                hub.deliver(vec![Publication { channel, data }]);
                for channel in hub.take_listed() {
                    flush_loop.flush_or_wait(channel).await;
                }
            }
            assert_eq!(
                outbox.take(usize::MAX).len(),
                2,
                "a full batch is flushed at once"
            );
            assert_eq!(flush_loop.waiting.len(), 1, "after {count} full batches");
        }
        assert!(flush_loop.pop_due(Instant::now() + 2 * hour).is_some());
        assert!(
            flush_loop
                .subscribers
                .values()
                .all(|subscribers| !subscribers.is_waiting)
        );
    }
}
