//! Where clients and publishers say what they see: the checker with a clock, and counts for the report.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use crate::chaos::checker::{Checker, Position, Scope, Subscribed};

/// What was counted besides what the checker counts.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Messages that were sent; attempts do not count.
    pub published: u64,
    /// Those that were acknowledged.
    pub acked: u64,
    /// Those whose publisher gave up.
    pub given_up: u64,
    /// Attempts that were refused, or answered with nothing.
    pub failed_attempts: u64,
    /// The longest that a publisher tried.
    pub ack_max: Duration,
    /// Connections that came about.
    pub connected: u64,
    /// Those that did not.
    pub refused_connections: u64,
    /// Subscriptions that were refused for the moment.
    pub refused_subscriptions: u64,
    /// Ends of connections by their close code; `None`: without one.
    pub closes: BTreeMap<Option<u16>, u64>,
    /// Unsubscribes by their code.
    pub unsubscribes: BTreeMap<u64, u64>,
}

/// Shared by everybody.
#[derive(Debug)]
pub struct Record {
    began: Instant,
    channels: Vec<String>,
    numbers: HashMap<String, usize>,
    checker: Mutex<Checker>,
    tally: Mutex<Tally>,
}

impl Record {
    /// For these channels, and clients that follow some of them.
    #[must_use]
    pub fn new(channels: Vec<String>, follows: &[Vec<usize>]) -> Self {
        let numbers = channels.iter().cloned().zip(0..).collect();
        Self {
            began: Instant::now(),
            checker: Mutex::new(Checker::new(&channels, follows)),
            numbers,
            channels,
            tally: Mutex::default(),
        }
    }

    /// Since the run began.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// How many channels there are.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// The name of a channel.
    #[must_use]
    pub fn channel(&self, number: usize) -> &str {
        &self.channels[number]
    }

    /// The channel with this name.
    #[must_use]
    pub fn channel_number(&self, name: &str) -> Option<usize> {
        self.numbers.get(name).copied()
    }

    /// The checker.
    pub fn checker(&self) -> MutexGuard<'_, Checker> {
        self.checker.lock()
    }

    /// The counts.
    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock()
    }

    /// See [`Checker::fault_began`].
    pub fn fault_began(&self, label: String, scopes: Vec<Scope>) -> u64 {
        self.checker().fault_began(label, scopes, self.now())
    }

    /// See [`Checker::fault_ended`].
    pub fn fault_ended(&self, number: u64) {
        self.checker().fault_ended(number, self.now());
    }

    pub(crate) fn position(&self, client: usize, channel: usize) -> Option<Position> {
        self.checker().position(client, channel)
    }

    pub(crate) fn connected(&self, client: usize, node: usize) {
        self.tally().connected += 1;
        self.checker().connected(client, node, self.now());
    }

    pub(crate) fn disconnected(&self, client: usize, why: &str) {
        self.checker().disconnected(client, why, self.now());
    }

    pub(crate) fn closed(&self, code: Option<u16>) {
        *self.tally().closes.entry(code).or_default() += 1;
    }

    pub(crate) fn refused_connection(&self) {
        self.tally().refused_connections += 1;
    }

    pub(crate) fn refused_subscription(&self) {
        self.tally().refused_subscriptions += 1;
    }

    pub(crate) fn subscribed(&self, client: usize, channel: usize, told: &Subscribed) {
        self.checker().subscribed(client, channel, told, self.now());
    }

    pub(crate) fn heard(&self, client: usize, channel: usize, offset: u64, id: u64) {
        self.checker()
            .heard(client, channel, offset, id, self.now());
    }

    pub(crate) fn unsubscribed(&self, client: usize, channel: usize, code: u64) {
        *self.tally().unsubscribes.entry(code).or_default() += 1;
        self.checker()
            .unsubscribed(client, channel, code, self.now());
    }

    /// The client has left a channel by itself.
    pub(crate) fn left(&self, client: usize, channel: usize) {
        self.checker().unsubscribed(client, channel, 0, self.now());
    }

    pub(crate) fn sent(&self, channel: usize, id: u64) {
        self.tally().published += 1;
        self.checker().sent(channel, id, self.now());
    }

    pub(crate) fn acked(&self, channel: usize, id: u64, position: &Position, took: Duration) {
        let mut tally = self.tally();
        tally.acked += 1;
        tally.ack_max = tally.ack_max.max(took);
        drop(tally);
        self.checker().acked(channel, id, position, self.now());
    }
}
