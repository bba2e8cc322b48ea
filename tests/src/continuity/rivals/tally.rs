//! What was accepted, and what each client received of it.
//!
//! The messages of a channel are numbered from 1 by its only publisher, which sends the next one when the last one was accepted. All
//! clients are subscribed before the first one.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::continuity::pauses::Pauses;

/// The pauses of all clients in one part of the run.
#[derive(Clone, Debug)]
pub struct Window {
    /// What happened in it.
    pub name: String,
    /// For each client: from the moment a message was due to the moment when that one, or a later one, came.
    pub pauses: Pauses,
}

/// All that was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Messages that reached a client.
    pub messages: u64,
    /// Messages that were accepted.
    pub accepted: u64,
    /// Attempts to publish that failed, and were repeated.
    pub failed_attempts: u64,
    /// Connections that ended.
    pub ended: u64,
    /// Attempts to connect that failed.
    pub refused: u64,
    /// Accepted messages that did not reach a client.
    pub lost: u64,
    /// Those without a sign that something may be missing: a new connection that is not recovered, or the reply that says so.
    pub lost_silently: u64,
    /// Messages that reached a client more than once.
    pub repeated: u64,
    /// Messages that came after a later one.
    pub out_of_order: u64,
    /// Parts of the run.
    pub windows: Vec<Window>,
    /// For each client its longest pause, behind the first part.
    pub longest: Pauses,
    /// Why connections ended or were refused.
    pub reasons: BTreeMap<String, u64>,
}

/// Shared by clients and publishers.
#[derive(Debug)]
pub(super) struct Tally {
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    channels: Vec<Channel>,
    clients: Vec<Client>,
    failed_attempts: u64,
    windows: Vec<Window>,
    reasons: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default)]
struct Channel {
    /// When each message was due.
    due: Vec<Duration>,
    accepted: usize,
}

#[derive(Clone, Debug, Default)]
struct Client {
    is_connected: bool,
    /// Which messages it has received.
    received: Vec<bool>,
    /// Which it was told that it may have missed.
    announced: Vec<bool>,
    /// The next message is the first after such a sign.
    is_announced: bool,
    highest: usize,
    /// In this window.
    pause: Duration,
    /// In all windows that have ended, but the first.
    longest: Duration,
    messages: u64,
    ended: u64,
    refused: u64,
    repeated: u64,
    out_of_order: u64,
}

impl Tally {
    /// Client N is on channel N modulo the number of channels.
    pub(super) fn new(clients: usize, channels: usize) -> Self {
        Self {
            began: Instant::now(),
            state: Mutex::new(State {
                channels: vec![Channel::default(); channels],
                clients: vec![Client::default(); clients],
                failed_attempts: 0,
                windows: Vec::new(),
                reasons: BTreeMap::new(),
            }),
        }
    }

    /// Since the run began.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The number of the next message of a channel, which is due at this time.
    pub(super) fn next_message(&self, channel: usize, due: Duration) -> usize {
        let due_all = &mut self.state.lock().channels[channel].due;
        due_all.push(due);
        due_all.len()
    }

    /// The last message of a channel was accepted.
    pub(super) fn accepted(&self, channel: usize) {
        let channel = &mut self.state.lock().channels[channel];
        channel.accepted = channel.due.len();
    }

    /// An attempt to publish failed.
    pub(super) fn attempt_failed(&self) {
        self.state.lock().failed_attempts += 1;
    }

    /// A client is connected and subscribed.
    pub(super) fn connected(&self, client: usize) {
        self.state.lock().clients[client].is_connected = true;
    }

    /// A client was told that it may have missed something.
    pub(super) fn announced(&self, client: usize) {
        self.state.lock().clients[client].is_announced = true;
    }

    /// A message reached a client at this time.
    pub(super) fn received(&self, client: usize, number: usize, now: Duration) {
        let mut state = self.state.lock();
        let channel = client % state.channels.len();
        let State {
            channels, clients, ..
        } = &mut *state;
        let client = &mut clients[client];
        client.received(&channels[channel].due, number, now);
    }

    /// A client's connection has ended, which nobody has asked for.
    pub(super) fn ended(&self, client: usize, why: String) {
        let mut state = self.state.lock();
        let client = &mut state.clients[client];
        client.is_connected = false;
        client.ended += 1;
        *state.reasons.entry(why).or_default() += 1;
    }

    /// A client could not connect.
    pub(super) fn refused(&self, client: usize, why: String) {
        let mut state = self.state.lock();
        state.clients[client].refused += 1;
        *state.reasons.entry(why).or_default() += 1;
    }

    /// How many clients are connected.
    pub(super) fn connections(&self) -> usize {
        let state = self.state.lock();
        let clients = state.clients.iter();
        clients.filter(|client| client.is_connected).count()
    }

    /// Whether every client has received the last message that was accepted.
    pub(super) fn is_settled(&self) -> bool {
        let state = self.state.lock();
        let count = state.channels.len();
        let mut clients = state.clients.iter().enumerate();
        clients.all(|(number, client)| state.channels[number % count].accepted <= client.highest)
    }

    /// Ends a part of the run.
    pub(super) fn end_window(&self, name: &str) {
        let mut state = self.state.lock();
        let is_first = state.windows.is_empty();
        let clients = state.clients.iter_mut();
        let pauses = clients.map(|client| {
            let pause = std::mem::take(&mut client.pause);
            if !is_first {
                client.longest = client.longest.max(pause);
            }
            pause
        });
        let pauses = Pauses::new(pauses.collect());
        let name = name.to_owned();
        state.windows.push(Window { name, pauses });
    }

    /// All that was seen.
    pub(super) fn seen(&self) -> Seen {
        let state = self.state.lock();
        let sum = |count: fn(&Client) -> u64| state.clients.iter().map(count).sum();
        let (mut lost, mut lost_silently) = (0, 0);
        for (number, client) in state.clients.iter().enumerate() {
            let channel = &state.channels[number % state.channels.len()];
            for number in 1..=channel.accepted {
                if client.has(&client.received, number) {
                    continue;
                }
                lost += 1;
                let was_announced = match number <= client.highest {
                    true => client.has(&client.announced, number),
                    false => client.is_announced,
                };
                lost_silently += u64::from(!was_announced);
            }
        }
        Seen {
            messages: sum(|client| client.messages),
            accepted: { state.channels.iter() }
                .map(|channel| channel.accepted as u64)
                .sum(),
            failed_attempts: state.failed_attempts,
            ended: sum(|client| client.ended),
            refused: sum(|client| client.refused),
            lost,
            lost_silently,
            repeated: sum(|client| client.repeated),
            out_of_order: sum(|client| client.out_of_order),
            windows: state.windows.clone(),
            longest: Pauses::new(
                { state.clients.iter() }
                    .map(|client| client.longest.max(client.pause))
                    .collect(),
            ),
            reasons: state.reasons.clone(),
        }
    }
}

impl Client {
    fn has(&self, which: &[bool], number: usize) -> bool {
        which.get(number).copied().unwrap_or(false)
    }

    /// `due`: when each message of its channel was.
    fn received(&mut self, due: &[Duration], number: usize, now: Duration) {
        self.messages += 1;
        if self.has(&self.received, number) {
            self.repeated += 1;
            return;
        }
        set(&mut self.received, number);
        if number < self.highest {
            self.out_of_order += 1;
            return;
        }
        // What it has waited for: the message after the last one that it had.
        if let Some(due) = due.get(self.highest) {
            self.pause = self.pause.max(now.saturating_sub(*due));
        }
        if std::mem::take(&mut self.is_announced) {
            for missed in self.highest + 1..number {
                set(&mut self.announced, missed);
            }
        }
        self.highest = number;
    }
}

fn set(which: &mut Vec<bool>, number: usize) {
    if which.len() <= number {
        which.resize(number + 1, false);
    }
    which[number] = true;
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Ten messages were accepted, due every 100 ms, and one client received these.
    fn seen(received: &[usize]) -> Seen {
        let tally = Tally::new(1, 1);
        for number in 1..=10 {
            assert_eq!(tally.next_message(0, MS * 100 * number), number as usize);
            tally.accepted(0);
        }
        for number in received {
            if *number == 0 {
                tally.announced(0);
            } else {
                // 5 ms later than it was due.
                let due = MS * 100 * u32::try_from(*number).unwrap();
                tally.received(0, *number, due + MS * 5);
            }
        }
        tally.end_window("all");
        tally.end_window("after");
        tally.seen()
    }

    #[test]
    fn where_all_is_well_nothing_is_found() {
        let seen = seen(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        let found = (seen.lost, seen.repeated, seen.out_of_order);
        assert_eq!(found, (0, 0, 0));
        assert_eq!(seen.windows[0].pauses.most(), MS * 5);
        assert_eq!((seen.messages, seen.accepted), (10, 10));
    }

    #[test]
    fn lost_messages_are_found_and_whether_they_were_announced() {
        // A zero is a sign that something may be missing.
        let seen = seen(&[1, 2, 4, 0, 6, 7, 9]);
        assert_eq!((seen.lost, seen.lost_silently), (4, 3));
        // From the third message, which was lost, to the fourth.
        assert_eq!(seen.windows[0].pauses.most(), MS * 105);
        let end = super::tests::seen(&[1, 2, 3, 4, 5, 6, 7, 8, 0]);
        assert_eq!((end.lost, end.lost_silently), (2, 0));
    }

    #[test]
    fn the_longest_pause_of_a_client_is_behind_the_first_part() {
        let tally = Tally::new(1, 1);
        for (number, pause) in [(1, 900), (2, 300), (3, 100)] {
            tally.next_message(0, MS * number);
            tally.received(0, number as usize, MS * (number + pause));
            tally.end_window("part");
        }
        assert_eq!(tally.seen().longest.most(), MS * 300);
    }

    #[test]
    fn repeated_and_reordered_messages_are_found() {
        let seen = seen(&[1, 2, 3, 3, 5, 4, 6, 7, 8, 9, 10]);
        assert_eq!((seen.lost, seen.repeated, seen.out_of_order), (0, 1, 1));
    }
}
