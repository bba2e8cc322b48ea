//! Whether the way to Redis and back is open, and when to try it.
//!
//! Plain, time passed in. There is one way for each lane: through its connection into Redis and back over
//! the subscriber's. A way is *up* while both ends are connected and all subscriptions confirmed; it is
//! *proven* once a probe came back since then. Only that makes the node ready: a PING is answered by a
//! Redis that delivers nothing.
//!
//! All ways share the subscriber, so a probe of any lane proves it: a lane whose probes stay away while
//! another's come back is blocked alone, and only its own connection is given up. What Redis answers to
//! probes says whether the subscriber is at the right server: see [`whereabouts`](super::whereabouts).

use std::time::Duration;
use std::time::Instant;

use super::whereabouts::Answer;
use super::whereabouts::Finding;
use super::whereabouts::Whereabouts;

/// How many probes in a row may be missed before the way counts as blocked.
const MISSES_MAX: u32 = 2;

/// Pace of the probes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// From one probe to the next.
    pub(super) interval: Duration,
    /// After which a probe is missed; the next one then goes out at once.
    pub(super) timeout: Duration,
}

/// What is known of all ways.
#[derive(Debug)]
pub(super) struct Health {
    pace: Pace,
    /// Why publications cannot come back, if they cannot.
    subscriber: Result<(), String>,
    lanes: Vec<Lane>,
    whereabouts: Whereabouts,
    since: Instant,
}

/// One lane's way.
#[derive(Debug)]
struct Lane {
    /// Why publications cannot go out, if they cannot.
    connection: Result<(), String>,
    is_proven: bool,
    /// The number of the next probe.
    number: u64,
    /// Probes below this were sent before both ends were connected as they are now.
    valid_from: u64,
    under_way: Option<(u64, Instant)>,
    due: Instant,
    misses: u32,
    /// Since when nothing has come back, at the first of these misses.
    silent_since: Instant,
    /// When a probe last came back.
    seen_at: Option<Instant>,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Publish probe `number` through `lane`.
    Probe { lane: usize, number: u64 },
    /// A probe through `lane` did not come back in time.
    Miss { lane: usize },
    /// Nothing came back through `lane`: connect anew, on `ends`.
    Reconnect { lane: usize, ends: Ends },
}

/// Which connections may be the reason that probes do not come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// The lane's alone: other lanes' probes have come back meanwhile.
    Lane,
    /// The subscriber's too, and then those of all lanes.
    All,
}

impl Health {
    pub(super) fn new(pace: Pace, lanes: usize, now: Instant) -> Self {
        let lane = |_| Lane {
            connection: Err("not connected to redis yet".to_owned()),
            is_proven: false,
            number: 0,
            valid_from: 0,
            under_way: None,
            due: now,
            misses: 0,
            silent_since: now,
            seen_at: None,
        };
        Self {
            pace,
            subscriber: Err("not connected to redis yet".to_owned()),
            lanes: (0..lanes).map(lane).collect(),
            whereabouts: Whereabouts::default(),
            since: now,
        }
    }

    /// What the subscriber has to say: `Ok` when it is connected and everything is confirmed.
    pub(super) fn subscriber(&mut self, state: Result<(), String>, now: Instant) {
        let was_up = self.subscriber.is_ok();
        self.subscriber = state;
        if was_up != self.subscriber.is_ok() {
            self.whereabouts.reset();
        }
        for lane in &mut self.lanes {
            lane.turn(
                was_up && lane.connection.is_ok(),
                self.subscriber.is_ok(),
                now,
            );
        }
    }

    /// What a lane has to say of its connection.
    pub(super) fn lane(&mut self, index: usize, state: Result<(), String>, now: Instant) {
        let Some(lane) = self.lanes.get_mut(index) else {
            return;
        };
        let was_up = lane.connection.is_ok() && self.subscriber.is_ok();
        lane.connection = state;
        lane.turn(was_up, self.subscriber.is_ok(), now);
    }

    /// A probe came back: how long it took, if it is the one that was waited for.
    pub(super) fn seen(&mut self, index: usize, number: u64, now: Instant) -> Option<Duration> {
        let is_subscribed = self.subscriber.is_ok();
        let lane = self.lanes.get_mut(index)?;
        if !is_subscribed || lane.connection.is_err() {
            return None;
        }
        // Late or not, it went in and came out.
        lane.is_proven = true;
        lane.misses = 0;
        lane.seen_at = Some(now);
        let (_, sent_at) = lane
            .under_way
            .take_if(|(under_way, _)| *under_way == number)?;
        Some(now.saturating_duration_since(sent_at))
    }

    /// Redis has answered to a probe; what follows from it.
    pub(super) fn answered(
        &mut self,
        index: usize,
        number: u64,
        answer: Answer,
        now: Instant,
    ) -> Option<Finding> {
        let lane = self.lanes.get(index)?;
        if self.subscriber.is_err() || lane.connection.is_err() || number < lane.valid_from {
            return None; // Who was to hear it was another one.
        }
        self.whereabouts.answered(answer, now)
    }

    /// Everything that is due. Tasks are given out once.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Task> {
        let mut tasks = Vec::new();
        if self.subscriber.is_err() {
            return tasks;
        }
        let last_seen_at = self.lanes.iter().filter_map(|lane| lane.seen_at).max();
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            if lane.connection.is_err() {
                continue;
            }
            if let Some((_, sent_at)) = lane.under_way
                && self.pace.timeout <= now.saturating_duration_since(sent_at)
            {
                lane.under_way = None;
                if lane.misses == 0 {
                    // A probe from before may have come late, after this one was sent.
                    lane.silent_since =
                        lane.seen_at.map_or(sent_at, |seen_at| sent_at.max(seen_at));
                }
                lane.misses += 1;
                tasks.push(Task::Miss { lane: index });
                lane.due = now;
                if MISSES_MAX <= lane.misses {
                    lane.misses = 0;
                    lane.is_proven = false;
                    // Later than that only the probe of another lane can have been.
                    let ends = match last_seen_at {
                        Some(at) if lane.silent_since < at => Ends::Lane,
                        _ => Ends::All,
                    };
                    tasks.push(Task::Reconnect { lane: index, ends });
                }
            }
            if lane.under_way.is_none() && lane.due <= now {
                lane.under_way = Some((lane.number, now));
                lane.due = now + self.pace.interval;
                tasks.push(Task::Probe {
                    lane: index,
                    number: lane.number,
                });
                lane.number += 1;
            }
        }
        tasks
    }

    /// When [`due`](Self::due) has something to do next; `None` while no way is up.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.subscriber.as_ref().ok()?;
        let up = self.lanes.iter().filter(|lane| lane.connection.is_ok());
        up.map(|lane| match lane.under_way {
            Some((_, sent_at)) => sent_at + self.pace.timeout,
            None => lane.due,
        })
        .min()
    }

    /// How long ago the lane that was proven longest ago was proven.
    pub(super) fn probe_age(&self, now: Instant) -> Duration {
        let ages = self.lanes.iter().map(|lane| {
            let seen_at = lane.seen_at.unwrap_or(self.since);
            now.saturating_duration_since(seen_at)
        });
        ages.max().unwrap_or_default()
    }

    /// Why a publication may not come back, if so: the first reason on its way.
    pub(super) fn readiness(&self) -> Result<(), String> {
        self.subscriber.clone()?;
        for (index, lane) in self.lanes.iter().enumerate() {
            lane.connection.clone()?;
            if !lane.is_proven {
                return Err(format!("no probe came back through lane {index} of redis"));
            }
        }
        Ok(())
    }
}

impl Lane {
    /// Starts over when the way has just come up or gone down.
    fn turn(&mut self, was_up: bool, is_subscribed: bool, now: Instant) {
        let is_up = is_subscribed && self.connection.is_ok();
        if was_up != is_up {
            self.is_proven = false;
            self.valid_from = self.number;
            self.under_way = None;
            self.misses = 0;
            self.due = now;
        }
    }
}

#[cfg(test)]
mod tests;
