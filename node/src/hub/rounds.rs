//! The hub's task: which channel has its round when.

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
use crate::hub::audience::Audience;
use crate::hub::batch::Closed;
use crate::hub::channel::Channel;
use crate::hub::channel::Departures;
use crate::hub::channel::Stay;
use crate::hub::channel::Urgency;
use crate::hub::cpu;
use crate::hub::window::Window;

/// Members written to between two yields: about 2 ms, in which this thread's other tasks wait.
const STRIDE: usize = 256;

/// The task's own state.
pub(super) struct Rounds<'a> {
    hub: &'a Hub,
    broker: Arc<dyn Broker>,
    audiences: HashMap<u64, Audience>,
    /// Channels whose window is not over, the first to end on top. One that had its round early stays in
    /// it, once however often that happens; what it gathered since goes out with its turn at the latest.
    waiting: BinaryHeap<Reverse<Waiting>>,
    written: usize,
}

struct Waiting {
    until: Instant,
    channel: Arc<Channel>,
}

impl<'a> Rounds<'a> {
    pub(super) fn new(hub: &'a Hub, broker: Arc<dyn Broker>) -> Self {
        for channel in hub.channels.read().values() {
            if channel.stay == Stay::Pinned {
                broker.subscribe(&channel.name);
            }
        }
        Self {
            hub,
            broker,
            audiences: HashMap::new(),
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
                self.visit(channel).await;
            }
            while let Some(channel) = self.pop_over(Instant::now()) {
                self.visit(channel).await;
            }
        }
    }

    /// Gives the channel its round, now or when its window is over.
    async fn visit(&mut self, channel: Arc<Channel>) {
        let urgency = channel.urgency();
        if urgency == Urgency::None {
            return; // It had its round early, or is no longer in the map.
        }
        let audience = self.audiences.entry(channel.id).or_insert_with(|| {
            if channel.stay == Stay::WhileHeard {
                self.broker.subscribe(&channel.name);
            }
            let fanout = &self.hub.fanout;
            Audience::new(&channel, Window::new(fanout.window, fanout.factor))
        });
        match audience.window.end(Instant::now()) {
            Some(until) if urgency == Urgency::AfterWindow => {
                if !mem::replace(&mut audience.is_waiting, true) {
                    self.waiting.push(Reverse(Waiting { until, channel }));
                }
            }
            _ => self.round(&channel).await,
        }
    }

    async fn round(&mut self, channel: &Channel) {
        let Some(audience) = self.audiences.get_mut(&channel.id) else {
            return;
        };
        let (taken, mut departures) = channel.take();
        let batch = taken.batch.close();
        self.hub.count_dropped(channel, &batch, taken.dropped);
        let pending = audience.leave(taken.changes);
        if 0 < batch.messages {
            let began = Instant::now();
            let busy = write(audience, &batch, &mut departures, &mut self.written).await;
            audience.window.end_round(began, busy);
            self.hub
                .metrics
                .deliveries
                .inc_by(audience.deliveries(&batch) as u64);
            self.hub.metrics.delivered(&batch.published);
        }
        audience.join(pending, &batch, &mut departures);
        if taken.is_last {
            audience.clear();
            self.hub.note_over(channel);
        }
        if audience.is_empty() && self.hub.remove_if_unused(channel) {
            self.audiences.remove(&channel.id);
            if channel.stay == Stay::WhileHeard {
                self.broker.unsubscribe(&channel.name);
            }
        }
    }

    fn pop_over(&mut self, now: Instant) -> Option<Arc<Channel>> {
        self.waiting
            .peek()
            .filter(|Reverse(first)| first.until <= now)?;
        let Reverse(Waiting { channel, .. }) = self.waiting.pop()?;
        if let Some(audience) = self.audiences.get_mut(&channel.id) {
            audience.is_waiting = false;
        }
        Some(channel)
    }
}

/// Gives the batch to every member that has not left, and tells how much CPU that took.
async fn write(
    audience: &Audience,
    batch: &Closed,
    departures: &mut Departures<'_>,
    written: &mut usize,
) -> Duration {
    let mut busy = Duration::ZERO;
    let mut since = cpu::thread_time();
    for chunk in 0..audience.chunks() {
        *written += audience.deliver(chunk, batch, departures);
        if STRIDE <= *written {
            *written = 0;
            busy += cpu::thread_time().saturating_sub(since);
            // What this thread's clients send meanwhile goes into the next batch.
            task::yield_now().await;
            since = cpu::thread_time(); // It may be another thread now.
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
    async fn a_channel_that_is_often_full_waits_once() {
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
        let memory = broker::start(&config::Broker::Memory, "n", deliver, metrics, shutdown);
        let name = ChannelName::new("global").unwrap();
        let outbox = Arc::new(QueueOutbox::new(1 << 20));
        let _member = hub.join(&name, Member::Queue(Arc::clone(&outbox)));
        let mut rounds = Rounds::new(&hub, memory.broker);
        for channel in hub.take_listed() {
            rounds.visit(channel).await;
        }
        for count in 1..=3 {
            for audience in rounds.audiences.values_mut() {
                audience.window.end_round(Instant::now(), hour);
            }
            for data in ["short".to_owned(), "x".repeat(64)] {
                let data = Bytes::from(data);
                let channel = name.clone();
                hub.deliver(vec![Publication { channel, data }]);
                for channel in hub.take_listed() {
                    rounds.visit(channel).await;
                }
            }
            assert_eq!(
                outbox.take(usize::MAX).len(),
                2,
                "a full batch goes at once"
            );
            assert_eq!(rounds.waiting.len(), 1, "after {count} full batches");
        }
        assert!(rounds.pop_over(Instant::now() + 2 * hour).is_some());
        assert!(
            rounds
                .audiences
                .values()
                .all(|audience| !audience.is_waiting)
        );
    }
}
