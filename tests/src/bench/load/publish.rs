//! Open loop: a few clients publish at a fixed rate, and every delivery to every client is counted.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use crate::bench::load::{Connection, Driver, Latency, Load, Patience};

/// Hexadecimal digits of the send time, in microseconds of the run, that each message begins with.
const STAMP_DIGITS: usize = 16;
/// How long after the last delivery what is missing counts as lost.
const LATE: Duration = Duration::from_secs(2);
/// How long after the last message whatever is missing counts as lost: a server that far behind has failed.
const OVERDUE: Duration = Duration::from_secs(30);

/// What is published.
pub(crate) struct Publishing {
    /// How many of the clients take turns in publishing.
    pub(crate) publishers: usize,
    /// Messages in each second, of all publishers together.
    pub(crate) per_second: u32,
    /// The size of a message, at least 16.
    pub(crate) payload_bytes: usize,
    /// For how long.
    pub(crate) duration: Duration,
}

/// What came of it.
pub(crate) struct Published {
    /// Messages that were sent.
    pub(crate) messages: u64,
    /// How often one of them reached a client.
    pub(crate) deliveries: u64,
    /// From sending to each delivery.
    pub(crate) latency: Latency,
}

impl Load {
    /// Publishes, and returns when all deliveries have come or no more do.
    pub(crate) fn publish(&mut self, publishing: &Publishing) -> anyhow::Result<Published> {
        let start = Instant::now();
        let mut hearing = Hearing {
            start,
            deliveries: 0,
            latency: Latency::default(),
        };
        let end = start + publishing.duration;
        let interval = Duration::from_secs(1) / publishing.per_second;
        let mut messages = 0_u64;
        let mut next = start;
        while next < end {
            // Stamped with the time it was due: a generator that is late makes no latency vanish.
            while next < end && next <= Instant::now() {
                let message = self.plan.message(&payload(publishing, next - start));
                self.send(messages as usize % publishing.publishers, &message);
                messages += 1;
                next += interval;
            }
            let wait = next.saturating_duration_since(Instant::now());
            self.turn(&mut hearing, wait)?;
        }
        let due = messages * self.clients() as u64;
        let mut patience = Patience::new();
        let given_up = Instant::now() + OVERDUE;
        while hearing.deliveries < due
            && !patience.over(hearing.deliveries, LATE)
            && Instant::now() < given_up
        {
            self.turn(&mut hearing, Duration::from_millis(50))?;
        }
        Ok(Published {
            messages,
            deliveries: hearing.deliveries,
            latency: hearing.latency,
        })
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
    start: Instant,
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
        let sent_at = self.start + Duration::from_micros(sent);
        self.deliveries += 1;
        self.latency
            .record(read_at.saturating_duration_since(sent_at));
        Ok(())
    }
}
