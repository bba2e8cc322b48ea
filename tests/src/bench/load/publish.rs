//! Open loop: a few clients publish at a fixed rate, and every delivery to every client is counted.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use crate::bench::load::{Connection, Driver, Latency, Load, Patience};

/// Hexadecimal digits of the send time, in microseconds of the load, that each message begins with.
const STAMP_DIGITS: usize = 16;
/// How long after the last delivery what is missing counts as lost.
const LATE: Duration = Duration::from_secs(2);
/// How long after the last message whatever is missing counts as lost: a server that far behind has failed.
const OVERDUE: Duration = Duration::from_secs(5);

/// What is published.
pub(crate) struct Publishing {
    /// How many of a channel's clients take turns in publishing, where clients publish.
    pub(crate) publishers: usize,
    /// Messages in each second, of all publishers together.
    pub(crate) per_second: u32,
    /// The size of a message, at least 16.
    pub(crate) payload_bytes: usize,
}

/// What came of it.
pub(crate) struct Published {
    /// Deliveries that the messages should have led to.
    pub(crate) due: u64,
    /// How often one of them reached a client.
    pub(crate) deliveries: u64,
    /// From sending to each delivery.
    pub(crate) latency: Latency,
}

impl Published {
    /// The share of what was due that did not come, in hundredths.
    pub(crate) fn lost_percent(&self) -> f64 {
        let lost = self.due.saturating_sub(self.deliveries);
        lost as f64 / self.due.max(1) as f64 * 100.0
    }
}

impl Load {
    /// Publishes for `duration`, and returns when all deliveries have come or no more do.
    pub(crate) fn publish(
        &mut self,
        publishing: &Publishing,
        duration: Duration,
    ) -> anyhow::Result<Published> {
        let start = Instant::now();
        let mut hearing = Hearing {
            born: self.born,
            since: start - self.born,
            deliveries: 0,
            latency: Latency::default(),
        };
        let end = start + duration;
        let interval = Duration::from_secs(1) / publishing.per_second;
        let mut messages = 0_u64;
        let mut next = start;
        while next < end {
            // Stamped with the time it was due: a generator that is late makes no latency vanish.
            while next < end && next <= Instant::now() {
                let payload = payload(publishing, next - self.born);
                self.publish_one(messages as usize, publishing.publishers, &payload)?;
                messages += 1;
                next += interval;
            }
            let wait = next.saturating_duration_since(Instant::now());
            self.turn(&mut hearing, wait)?;
        }
        let hearers = self.clients() / self.plan.channels - self.stalled;
        let due = messages * hearers as u64;
        let mut patience = Patience::new();
        let given_up = Instant::now() + OVERDUE;
        while hearing.deliveries < due
            && !patience.over(hearing.deliveries, LATE)
            && Instant::now() < given_up
        {
            self.turn(&mut hearing, Duration::from_millis(50))?;
        }
        anyhow::ensure!(
            hearing.deliveries <= due,
            "{} deliveries came where {due} were due",
            hearing.deliveries
        );
        Ok(Published {
            due,
            deliveries: hearing.deliveries,
            latency: hearing.latency,
        })
    }
}

impl Load {
    /// Publishes `payload` on the channel whose turn it is with the message of this number.
    pub(super) fn publish_one(
        &mut self,
        number: usize,
        publishers: usize,
        payload: &[u8],
    ) -> io::Result<()> {
        let channels = self.plan.channels;
        let channel = number % channels;
        let address = self.plan.address(number);
        if let Some(request) = self.plan.dialect.post(address, channel, payload) {
            let poster = self.poster.as_mut();
            let poster = poster.ok_or_else(|| io::Error::other("nobody is here to publish"))?;
            poster.post(&request);
            return poster.check();
        }
        // A channel's clients are so many apart.
        let publisher = channel + channels * (number / channels % publishers);
        let message = self.message(payload);
        self.send(publisher, &message);
        Ok(())
    }
}

fn payload(publishing: &Publishing, due: Duration) -> Vec<u8> {
    let mut payload = Vec::with_capacity(publishing.payload_bytes);
    let stamp = write!(payload, "{:0STAMP_DIGITS$x}", due.as_micros());
    debug_assert!(stamp.is_ok(), "a vector takes everything");
    payload.resize(publishing.payload_bytes.max(STAMP_DIGITS), b'x');
    payload
}

struct Hearing {
    /// What stamps count from.
    born: Instant,
    /// When the first message that counts was due: one of an earlier publishing may still come.
    since: Duration,
    deliveries: u64,
    latency: Latency,
}

impl Driver for Hearing {
    fn message(&mut self, _: &mut Connection, payload: &[u8], read_at: Instant) -> io::Result<()> {
        let sent = payload
            .get(..STAMP_DIGITS)
            .and_then(|stamp| std::str::from_utf8(stamp).ok())
            .and_then(|stamp| u64::from_str_radix(stamp, 16).ok())
            .ok_or_else(|| io::Error::other("a message without a stamp came"))?;
        let sent = Duration::from_micros(sent);
        // The stamp has lost the nanoseconds.
        if self.since <= sent + Duration::from_micros(1) {
            self.deliveries += 1;
            self.latency
                .record(read_at.saturating_duration_since(self.born + sent));
        }
        Ok(())
    }
}
