//! Whether publications make the round trip through Redis, and when to probe it.
//!
//! No I/O, time is passed in. There is one path for each publish queue: through its connection to Redis and back
//! over the subscriber's. A path is *up* while both ends are connected and all subscriptions confirmed; it is
//! *proven* once a probe was received since then. Only that makes the node ready: a Redis that delivers nothing
//! still replies to PING.
//!
//! All paths share the subscriber, so a probe of any queue proves it: if probes of one queue are missing while
//! another's are received, only its own connection is replaced. The replies to probes show whether the
//! subscriber is connected to the right server: see [`primary_check`](super::primary_check).

use std::time::Duration;
use std::time::Instant;

use super::primary_check::Finding;
use super::primary_check::PrimaryCheck;
use super::primary_check::ProbeReply;

/// How many probes in a row may be missed before the path counts as blocked.
const MISSES_MAX: u32 = 2;

/// When probes are sent and time out.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProbeIntervals {
    /// From one probe to the next.
    pub(super) interval: Duration,
    /// After which a probe is missed; the next one is then sent at once.
    pub(super) timeout: Duration,
}

/// The state of all paths.
#[derive(Debug)]
pub(super) struct Health {
    intervals: ProbeIntervals,
    /// Why publications cannot be received, if so.
    subscriber: Result<(), String>,
    queues: Vec<QueueHealth>,
    primary_check: PrimaryCheck,
    /// A queue that has lost its connection while its probes were missing: the subscriber's connection may be dead too.
    suspected_by: Option<usize>,
    since: Instant,
}

/// The path of one publish queue.
#[derive(Debug)]
struct QueueHealth {
    /// Why publications cannot be sent, if so.
    connection: Result<(), String>,
    is_proven: bool,
    /// The number of the next probe.
    number: u64,
    /// Probes below this were sent before both ends were connected as they are now.
    valid_from: u64,
    in_flight: Option<(u64, Instant)>,
    due: Instant,
    misses: u32,
    /// The misses with which the queue's connection was lost. They count for the next one, since they may be the
    /// subscriber's.
    carried_misses: u32,
    /// Since when no probe was received, set at the first of these misses.
    silent_since: Instant,
    /// When a probe was last received.
    seen_at: Option<Instant>,
}

/// Why a publish queue has no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    reason: String,
    /// Whether a reply was missing, so that the subscriber's connection may be dead too.
    is_silent: bool,
}

impl Lost {
    /// It failed without a reply to what was sent.
    pub(super) fn silent(reason: String) -> Self {
        Self {
            reason,
            is_silent: true,
        }
    }

    /// Redis has replied, or it was closed on purpose.
    pub(super) fn closed(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            is_silent: false,
        }
    }
}

/// An action to take now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Publish probe `number` through `queue`.
    Probe { queue: usize, number: u64 },
    /// A probe through `queue` was not received in time.
    Miss { queue: usize },
    /// No probe through `queue` was received: reconnect `ends`.
    Reconnect { queue: usize, ends: Ends },
}

/// The connections that may be the reason for missing probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// Only the queue's: probes of other queues were received in between.
    Queue,
    /// The subscriber's too, and those of all queues.
    All,
}

impl Health {
    pub(super) fn new(intervals: ProbeIntervals, queues: usize, now: Instant) -> Self {
        let queue = |_| QueueHealth {
            connection: Err("not connected to redis yet".to_owned()),
            is_proven: false,
            number: 0,
            valid_from: 0,
            in_flight: None,
            due: now,
            misses: 0,
            carried_misses: 0,
            silent_since: now,
            seen_at: None,
        };
        Self {
            intervals,
            subscriber: Err("not connected to redis yet".to_owned()),
            queues: (0..queues).map(queue).collect(),
            primary_check: PrimaryCheck::default(),
            suspected_by: None,
            since: now,
        }
    }

    /// Sets the subscriber's state: `Ok` when it is connected and all subscriptions are confirmed.
    pub(super) fn subscriber(&mut self, state: Result<(), String>, now: Instant) {
        let was_up = self.subscriber.is_ok();
        self.subscriber = state;
        if was_up != self.subscriber.is_ok() {
            self.primary_check.reset();
            self.suspected_by = None;
        }
        for queue in &mut self.queues {
            queue.carried_misses = 0;
            queue.turn(
                was_up && queue.connection.is_ok(),
                self.subscriber.is_ok(),
                now,
            );
        }
    }

    /// Sets the state of a publish queue's connection.
    pub(super) fn queue(&mut self, index: usize, state: Result<(), Lost>, now: Instant) {
        let last_seen_at = self.last_seen_at();
        let Some(queue) = self.queues.get_mut(index) else {
            return;
        };
        let was_up = queue.connection.is_ok() && self.subscriber.is_ok();
        if was_up && let Err(lost) = &state {
            // Both connections may be dead, and this one has shown it first.
            queue.carried_misses = u32::from(lost.is_silent && queue.in_flight.is_some());
            if queue.misses == 0
                && let Some((_, sent_at)) = queue.in_flight
            {
                queue.silent_since = queue.silent_from(sent_at);
            }
            let are_all_silent = last_seen_at.is_none_or(|at| at <= queue.silent_since);
            if lost.is_silent && 0 < queue.misses && are_all_silent {
                self.suspected_by = Some(index);
            }
        }
        queue.connection = state.map_err(|lost| lost.reason);
        queue.turn(was_up, self.subscriber.is_ok(), now);
        if queue.connection.is_ok() && !was_up {
            queue.misses = queue.carried_misses;
        }
    }

    /// When a probe of any queue was received last.
    fn last_seen_at(&self) -> Option<Instant> {
        self.queues.iter().filter_map(|queue| queue.seen_at).max()
    }

    /// A probe was received. Returns its round-trip time, if it is the expected one.
    pub(super) fn seen(&mut self, index: usize, number: u64, now: Instant) -> Option<Duration> {
        let is_subscribed = self.subscriber.is_ok();
        let queue = self.queues.get_mut(index)?;
        if !is_subscribed || queue.connection.is_err() {
            return None;
        }
        // A late probe proves the path too.
        queue.is_proven = true;
        queue.misses = 0;
        queue.seen_at = Some(now);
        let (_, sent_at) = queue
            .in_flight
            .take_if(|(in_flight, _)| *in_flight == number)?;
        Some(now.saturating_duration_since(sent_at))
    }

    /// Redis has replied to a probe; returns what follows from the reply.
    pub(super) fn answered(
        &mut self,
        index: usize,
        number: u64,
        reply: ProbeReply,
        now: Instant,
    ) -> Option<Finding> {
        let queue = self.queues.get(index)?;
        if self.subscriber.is_err() || queue.connection.is_err() || number < queue.valid_from {
            return None; // It was sent before the subscriber's current connection.
        }
        self.primary_check.answered(reply, now)
    }

    /// All actions that are due, each returned once.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Task> {
        let mut tasks = Vec::new();
        if self.subscriber.is_err() {
            return tasks;
        }
        if let Some(queue) = self.suspected_by.take() {
            let ends = Ends::All;
            tasks.push(Task::Reconnect { queue, ends });
        }
        let last_seen_at = self.last_seen_at();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if queue.connection.is_err() {
                continue;
            }
            if let Some((_, sent_at)) = queue.in_flight
                && self.intervals.timeout <= now.saturating_duration_since(sent_at)
            {
                queue.in_flight = None;
                if queue.misses == 0 {
                    queue.silent_since = queue.silent_from(sent_at);
                }
                queue.misses += 1;
                tasks.push(Task::Miss { queue: index });
                queue.due = now;
                if MISSES_MAX <= queue.misses {
                    queue.misses = 0;
                    queue.is_proven = false;
                    // A later probe can only be that of another queue.
                    let ends = match last_seen_at {
                        Some(at) if queue.silent_since < at => Ends::Queue,
                        _ => Ends::All,
                    };
                    tasks.push(Task::Reconnect { queue: index, ends });
                }
            }
            if queue.in_flight.is_none() && queue.due <= now {
                queue.in_flight = Some((queue.number, now));
                queue.due = now + self.intervals.interval;
                tasks.push(Task::Probe {
                    queue: index,
                    number: queue.number,
                });
                queue.number += 1;
            }
        }
        tasks
    }

    /// When [`due`](Self::due) next has actions; `None` while no path is up.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.subscriber.as_ref().ok()?;
        let up = self.queues.iter().filter(|queue| queue.connection.is_ok());
        up.map(|queue| match queue.in_flight {
            Some((_, sent_at)) => sent_at + self.intervals.timeout,
            None => queue.due,
        })
        .min()
    }

    /// The time since the last proof, of the queue for which it is longest.
    pub(super) fn probe_age(&self, now: Instant) -> Duration {
        let ages = self.queues.iter().map(|queue| {
            let seen_at = queue.seen_at.unwrap_or(self.since);
            now.saturating_duration_since(seen_at)
        });
        ages.max().unwrap_or_default()
    }

    /// Why publications may not be received, if so: the first reason on the path.
    pub(super) fn readiness(&self) -> Result<(), String> {
        self.subscriber.clone()?;
        for (index, queue) in self.queues.iter().enumerate() {
            queue.connection.clone()?;
            if !queue.is_proven {
                return Err(format!(
                    "no probe was received through publish queue {index}"
                ));
            }
        }
        Ok(())
    }
}

impl QueueHealth {
    /// Since when no probe was received, if the one sent at `sent_at` is missing. A previous one may have arrived late,
    /// after this one was sent.
    fn silent_from(&self, sent_at: Instant) -> Instant {
        self.seen_at.map_or(sent_at, |seen_at| sent_at.max(seen_at))
    }

    /// Starts over when the path has just come up or gone down.
    fn turn(&mut self, was_up: bool, is_subscribed: bool, now: Instant) {
        let is_up = is_subscribed && self.connection.is_ok();
        if was_up != is_up {
            self.is_proven = false;
            self.valid_from = self.number;
            self.in_flight = None;
            self.misses = 0;
            self.due = now;
        }
    }
}

#[cfg(test)]
mod tests;
