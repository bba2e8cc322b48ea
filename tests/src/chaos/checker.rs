//! Compares what was acknowledged with what each client saw.
//!
//! Plain, time passed in (since the run began). It knows nothing of how the programs work: only what a publisher was answered, what
//! a client was told, and what stood in whose way.
//!
//! - Behind the position that a client was told when it subscribed, every offset comes once and in order. A connection that was lost
//!   and a subscription that recovered excuse nothing. Only a response without `recovered` begins anew: the client was told.
//! - An acknowledged message that was sent while a client was subscribed, or that is behind its position in its epoch, comes within
//!   [`PROMISE`], or the client is told by then: by `recovered: false`, an unsubscribe or a disconnect. The time counts from the
//!   acknowledgement, or from the moment on which nothing stands in this client's way any more. So a write that Redis acknowledged
//!   and lost has to show as a notice to everyone who is subscribed.
//! - A place in a stream has one message, and a message one place, also if its publisher had to try again.
//! - What nobody acknowledged may come or not, but as much in order, and once.

use std::{collections::BTreeMap, time::Duration};

use crate::chaos::violation::{Kind, Violation};

mod follower;
mod ledger;
mod trouble;

pub use follower::Subscribed;
pub use ledger::Position;
pub use trouble::Scope;

use follower::{Finding, Follower};
use ledger::Ledger;
use trouble::Troubles;

/// Within which a client has to be told of a loss.
pub const PROMISE: Duration = Duration::from_secs(5);

/// The most violations that are kept whole; more are counted.
const VIOLATIONS_MAX: usize = 100;

/// What was counted.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Publications of live subscriptions.
    pub heard: u64,
    /// Publications in responses to those who came back.
    pub recovered_publications: u64,
    /// Subscriptions without a position to come back with.
    pub fresh: u64,
    /// Those that recovered.
    pub recovered: u64,
    /// Those that were told that they cannot.
    pub not_recovered: u64,
    /// Acknowledged messages that lay behind the positions of the latter.
    pub excused: u64,
    /// The longest from an acknowledgement to the publication at a subscriber.
    pub lateness_max: Duration,
}

/// All clients and all channels.
#[derive(Debug)]
pub struct Checker {
    channels: Vec<Channel>,
    clients: Vec<Client>,
    troubles: Troubles,
    violations: Vec<Violation>,
    violations_count: usize,
    found: BTreeMap<(Kind, Option<usize>), usize>,
    /// What was counted so far.
    pub counts: Counts,
}

#[derive(Debug)]
struct Channel {
    name: String,
    ledger: Ledger,
    /// Clients, and which of their followers hears this channel.
    followers: Vec<(usize, usize)>,
}

#[derive(Debug)]
struct Client {
    node: Option<usize>,
    followers: Vec<(usize, Follower)>,
}

impl Checker {
    /// For channels with these names, and clients that each follow some of them, by number.
    #[must_use]
    pub fn new(channels: &[String], clients: &[Vec<usize>]) -> Self {
        let channel = |(number, name): (usize, &String)| Channel {
            name: name.clone(),
            ledger: Ledger::default(),
            followers: (clients.iter().enumerate())
                .filter_map(|(client, follows)| {
                    let place = follows.iter().position(|channel| *channel == number)?;
                    Some((client, place))
                })
                .collect(),
        };
        let client = |follows: &Vec<usize>| Client {
            node: None,
            followers: follows
                .iter()
                .map(|channel| (*channel, Follower::default()))
                .collect(),
        };
        Self {
            channels: channels.iter().enumerate().map(channel).collect(),
            clients: clients.iter().map(client).collect(),
            troubles: Troubles::default(),
            violations: Vec::new(),
            violations_count: 0,
            found: BTreeMap::new(),
            counts: Counts::default(),
        }
    }

    /// Message `id` is about to be published, for the first time.
    pub fn sent(&mut self, channel: usize, id: u64, at: Duration) {
        self.channels[channel].ledger.sent(id, at);
    }

    /// Message `id` was acknowledged.
    pub fn acked(&mut self, channel: usize, id: u64, position: &Position, at: Duration) {
        let ledger = &mut self.channels[channel].ledger;
        let sent_at = ledger.sent_at(id).unwrap_or(at);
        if let Some(detail) = ledger.acked(position, id, at) {
            self.report(channel, None, (Kind::Muddled, detail), at);
        }
        for (client, place) in self.channels[channel].followers.clone() {
            let (_, follower) = &mut self.clients[client].followers[place];
            if let Some(finding) = follower.acked(position, sent_at, at) {
                self.report(channel, Some(client), finding, at);
            }
        }
    }

    /// A client is connected to a node, and not subscribed yet.
    pub fn connected(&mut self, client: usize, node: usize, at: Duration) {
        self.clients[client].node = Some(node);
        for (_, follower) in &mut self.clients[client].followers {
            follower.note(at, &format!("connected to node {}", node + 1));
        }
    }

    /// A client has been answered that it is subscribed.
    pub fn subscribed(&mut self, client: usize, channel: usize, told: &Subscribed, at: Duration) {
        let Some(place) = self.place(client, channel) else {
            return;
        };
        let follower = &mut self.clients[client].followers[place].1;
        match (&told.since, told.recovered) {
            (None, _) => self.counts.fresh += 1,
            (Some(_), true) => self.counts.recovered += 1,
            (Some(since), false) => {
                self.counts.not_recovered += 1;
                let excused = self.channels[channel].ledger.acked_behind(since);
                self.counts.excused += excused as u64;
            }
        }
        self.counts.recovered_publications += told.publications.len() as u64;
        let findings = follower.subscribed(told, at);
        for finding in findings {
            self.report(channel, Some(client), finding, at);
        }
        for (offset, id) in &told.publications {
            let position = Position {
                offset: *offset,
                ..told.position.clone()
            };
            self.at(client, channel, &position, *id, at);
        }
    }

    /// A client has heard a publication.
    pub fn heard(&mut self, client: usize, channel: usize, offset: u64, id: u64, at: Duration) {
        let Some(place) = self.place(client, channel) else {
            return;
        };
        self.counts.heard += 1;
        let follower = &mut self.clients[client].followers[place].1;
        let finding = follower.heard(offset, id, at);
        let position = follower.position.clone();
        if let Some(finding) = finding {
            self.report(channel, Some(client), finding, at);
        }
        if let Some(position) = position {
            let position = Position { offset, ..position };
            if let Some(acked) = self.channels[channel].ledger.acked_at(&position) {
                let late = at.saturating_sub(acked);
                self.counts.lateness_max = self.counts.lateness_max.max(late);
            }
            self.at(client, channel, &position, id, at);
        }
    }

    /// A client was told that its subscription is over.
    pub fn unsubscribed(&mut self, client: usize, channel: usize, code: u64, at: Duration) {
        if let Some(place) = self.place(client, channel) {
            let follower = &mut self.clients[client].followers[place].1;
            follower.is_subscribed = false;
            follower.elsewhere = None;
            follower.note(at, &format!("unsubscribed with {code}"));
        }
    }

    /// A client's connection has ended.
    pub fn disconnected(&mut self, client: usize, why: &str, at: Duration) {
        self.clients[client].node = None;
        for (_, follower) in &mut self.clients[client].followers {
            follower.is_subscribed = false;
            follower.elsewhere = None;
            follower.note(at, &format!("disconnected: {why}"));
        }
    }

    /// Where a client was in a channel, to come back with.
    #[must_use]
    pub fn position(&self, client: usize, channel: usize) -> Option<Position> {
        let place = self.place(client, channel)?;
        self.clients[client].followers[place].1.position.clone()
    }

    /// How many messages behind `offset` were acknowledged in the epoch in which the last one of the channel was.
    #[must_use]
    pub fn acked_last_behind(&self, channel: usize, offset: u64) -> u64 {
        self.channels[channel].ledger.acked_last_behind(offset)
    }

    /// A fault begins; what [`fault_ended`](Self::fault_ended) takes.
    pub fn fault_began(&mut self, label: String, scopes: Vec<Scope>, at: Duration) -> u64 {
        self.troubles.begin(label, scopes, at)
    }

    /// Nothing of the fault is left.
    pub fn fault_ended(&mut self, number: u64, at: Duration) {
        self.troubles.end(number, at);
    }

    /// Looks for what is overdue. `slack` is for how slow the machine is.
    pub fn look(&mut self, now: Duration, slack: Duration) {
        let mut found = Vec::new();
        for (number, client) in self.clients.iter_mut().enumerate() {
            let clear = self.troubles.clear_since(number, client.node);
            for (channel, follower) in &mut client.followers {
                let old = now.saturating_sub(PROMISE);
                let lost = follower.passed_over_before(old);
                found.extend(lost.into_iter().map(|lost| (*channel, number, lost)));
                let Some(clear) = clear.filter(|_| follower.is_subscribed) else {
                    continue;
                };
                let ledger = &self.channels[*channel].ledger;
                if let Some(finding) = overdue(follower, ledger, clear, now, slack) {
                    found.push((*channel, number, finding));
                }
            }
        }
        for (channel, client, finding) in found {
            self.report(channel, Some(client), finding, now);
        }
    }

    /// Who has not heard everything up to these positions, one for each channel; nobody when all is well.
    #[must_use]
    pub fn unsettled(&self, marks: &[Position]) -> Vec<(usize, usize)> {
        let mut unsettled = Vec::new();
        for (channel, mark) in self.channels.iter().zip(marks) {
            for (client, place) in &channel.followers {
                let (number, follower) = &self.clients[*client].followers[*place];
                let is_there = follower.is_subscribed
                    && follower.position.as_ref().is_some_and(|position| {
                        position.epoch == mark.epoch && mark.offset <= position.offset
                    });
                if !is_there {
                    unsettled.push((*client, *number));
                }
            }
        }
        unsettled
    }

    /// Whether every client is subscribed to all channels that it follows.
    #[must_use]
    pub fn is_everybody_subscribed(&self) -> bool {
        let mut followers = self.clients.iter().flat_map(|client| &client.followers);
        followers.all(|(_, follower)| follower.is_subscribed)
    }

    /// Ends the run: whoever is not at the marks by now never will be.
    pub fn finish(&mut self, marks: &[Position], at: Duration) {
        for (client, channel) in self.unsettled(marks) {
            let position = self.position(client, channel);
            let position = position.map(|position| position.to_string());
            let detail = format!("is at {position:?} and not at {}", marks[channel]);
            self.report(channel, Some(client), (Kind::Unsettled, detail), at);
        }
        for client in 0..self.clients.len() {
            for place in 0..self.clients[client].followers.len() {
                let (channel, follower) = &mut self.clients[client].followers[place];
                let (channel, lost) = (*channel, follower.passed_over());
                for finding in lost {
                    self.report(channel, Some(client), finding, at);
                }
            }
        }
    }

    /// What was found; the first of them whole.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// How many were found.
    #[must_use]
    pub fn violations_count(&self) -> usize {
        self.violations_count
    }

    /// How many were found, by what they are and which client saw them.
    #[must_use]
    pub fn found(&self) -> &BTreeMap<(Kind, Option<usize>), usize> {
        &self.found
    }

    /// How many epochs all channels together have had.
    #[must_use]
    pub fn epochs(&self) -> usize {
        let each = self.channels.iter();
        each.map(|channel| channel.ledger.epochs()).sum()
    }

    fn at(&mut self, client: usize, channel: usize, position: &Position, id: u64, at: Duration) {
        let ledger = &mut self.channels[channel].ledger;
        if let Some(detail) = ledger.at(position, id) {
            self.report(channel, Some(client), (Kind::Muddled, detail), at);
        }
    }

    fn place(&self, client: usize, channel: usize) -> Option<usize> {
        let followers = &self.clients[client].followers;
        followers.iter().position(|(number, _)| *number == channel)
    }

    fn report(&mut self, channel: usize, client: Option<usize>, finding: Finding, at: Duration) {
        self.violations_count += 1;
        *self.found.entry((finding.0, client)).or_default() += 1;
        if VIOLATIONS_MAX <= self.violations.len() {
            return;
        }
        let (kind, detail) = finding;
        let follower = client.and_then(|client| {
            let place = self.place(client, channel)?;
            Some(&self.clients[client].followers[place].1)
        });
        self.violations.push(Violation {
            at,
            kind,
            channel: self.channels[channel].name.clone(),
            client,
            node: client.and_then(|client| self.clients[client].node),
            detail,
            faults: self.troubles.recent(at),
            around: follower.map(Follower::around).unwrap_or_default(),
        });
    }
}

fn overdue(
    follower: &mut Follower,
    ledger: &Ledger,
    clear: Duration,
    now: Duration,
    slack: Duration,
) -> Option<Finding> {
    if follower.is_overdue {
        return None;
    }
    let position = follower.position.as_ref()?;
    let next = ledger.next_acked(position);
    let next = next.map(|(offset, at)| (at.max(follower.since), format!("offset {offset}")));
    let elsewhere = follower.elsewhere;
    let elsewhere = elsewhere.map(|at| (at, "a message of another epoch".to_owned()));
    let (since, what) = next.into_iter().chain(elsewhere).min()?;
    let since = since.max(clear);
    if now <= since + PROMISE + slack {
        return None;
    }
    let detail = format!(
        "is at {position}; {what} was acknowledged and came not, and nothing was in its way for {:?} (slack {slack:?})",
        now - since
    );
    follower.is_overdue = true;
    Some((Kind::Overdue, detail))
}

#[cfg(test)]
mod tests;
