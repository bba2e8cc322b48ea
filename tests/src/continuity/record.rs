//! What each client saw.
//!
//! Messages are checked by the checker of [`chaos`](crate::chaos): each channel is a stream, and a client that is subscribed gets
//! every message of it once and in order. In a channel without a history the place in the stream is the number that the publisher
//! gives the message. What the other checker has no eyes for is counted here: ends of connections, joins and leaves, pauses.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use parking_lot::{Mutex, MutexGuard};

use crate::{
    chaos::{
        checker::{Position, Subscribed},
        record::Record as Streams,
        violation::{Kind as Fault, Violation},
    },
    continuity::{
        pauses::Pauses,
        population::{Kind, Population, Stream},
    },
};

/// The epoch of a stream whose places its publisher numbers.
const NUMBERED: &str = "numbered";

/// How long a message is at least.
const MESSAGE_BYTES: usize = 120;

/// Ends of connections whose reasons are kept.
const REASONS_MAX: usize = 40;

/// What was seen of one kind of clients.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Messages that reached one.
    pub messages: u64,
    /// Connections, or sessions over HTTP, that ended.
    pub ended: u64,
    /// Attempts to connect that failed.
    pub refused: u64,
    /// Messages that were published while a client had no connection.
    pub missed_while_away: u64,
    /// Leaves, and joins of clients that were there, that a client was told of.
    pub presence: u64,
    /// What the checker found, by what it is.
    pub faults: BTreeMap<Fault, usize>,
}

/// The pauses of all clients in one part of the run.
#[derive(Clone, Debug)]
pub struct Window {
    /// What happened in it.
    pub name: String,
    /// Of clients over WebSocket.
    pub websocket: Pauses,
    /// Of SockJS clients over HTTP.
    pub http: Pauses,
}

/// All that was seen.
#[derive(Clone, Debug)]
pub struct Seen {
    /// By kind of client.
    pub kinds: BTreeMap<Kind, Tally>,
    /// What publishers were refused, and what was acknowledged.
    pub publishing: Publishing,
    /// Parts of the run.
    pub windows: Vec<Window>,
    /// The first reasons for which connections ended.
    pub reasons: Vec<String>,
    /// The first violations.
    pub violations: Vec<Violation>,
    /// Violations that show in what was acknowledged, and at no client.
    pub of_nobody: usize,
}

/// What publishers counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Publishing {
    /// Messages.
    pub published: u64,
    /// Attempts through the server API that failed, and were repeated.
    pub failed_attempts: u64,
    /// Commands of clients that were refused.
    pub refused: u64,
}

/// Shared by everybody.
#[derive(Debug)]
pub struct Record {
    /// The checker of messages.
    pub streams: Arc<Streams>,
    kinds: Vec<Kind>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    clients: Vec<Client>,
    kinds: BTreeMap<Kind, Tally>,
    channels: Vec<Numbers>,
    refused: u64,
    windows: Vec<Window>,
    reasons: Vec<String>,
    /// The clients leave, one before the other.
    is_over: bool,
}

/// A client, between its messages.
#[derive(Clone, Debug, Default)]
struct Client {
    is_connected: bool,
    /// It has connected, and its first message says where it begins.
    begins: bool,
    /// The last number that it saw.
    last: Option<u64>,
    /// In this window.
    pause: Duration,
    /// Those that it was told have joined.
    others: HashSet<String>,
}

/// The numbers of a channel.
#[derive(Clone, Debug, Default)]
struct Numbers {
    sent: u64,
    /// Which of them reached somebody.
    reached: u64,
}

impl Record {
    /// For these.
    #[must_use]
    pub fn new(population: &Population) -> Self {
        let channels = population.channels.iter();
        let names = channels.map(|channel| channel.name.clone()).collect();
        let members = population.members.iter();
        let follows: Vec<Vec<usize>> = members.map(|member| vec![member.channel]).collect();
        let members = population.members.iter();
        Self {
            streams: Arc::new(Streams::new(names, &follows)),
            kinds: members.map(|member| member.kind).collect(),
            state: Mutex::new(State {
                clients: vec![Client::default(); population.members.len()],
                kinds: BTreeMap::new(),
                channels: vec![Numbers::default(); population.channels.len()],
                refused: 0,
                windows: Vec::new(),
                reasons: Vec::new(),
                is_over: false,
            }),
        }
    }

    /// The next message of a channel whose publisher numbers them, which is about to be sent, and its number.
    pub(super) fn next_message(&self, channel: usize) -> (u64, String) {
        let number = {
            let mut state = self.state.lock();
            let numbers = &mut state.channels[channel];
            numbers.sent += 1;
            numbers.sent
        };
        self.streams.sent(channel, number);
        let sent = self.streams.now().as_micros();
        let mut message = format!("{number} {sent} ");
        message.extend(std::iter::repeat_n('x', MESSAGE_BYTES - message.len()));
        (number, message)
    }

    /// A client is connected, and its first message says where it begins.
    pub(super) fn joined(&self, client: usize) {
        {
            let client = &mut self.state.lock().clients[client];
            client.is_connected = true;
            client.begins = true;
        }
        self.streams.connected(client, 0);
    }

    /// A client is subscribed to a channel with a history.
    pub(super) fn subscribed(&self, client: usize, channel: usize, told: &Subscribed) {
        self.state.lock().clients[client].is_connected = true;
        self.streams.connected(client, 0);
        self.streams.subscribed(client, channel, told);
    }

    /// A message that its publisher has numbered reached a client.
    ///
    /// # Errors
    ///
    /// It is none of ours.
    pub(super) fn numbered(&self, client: usize, channel: usize, message: &str) -> Result<()> {
        let mut words = message.split(' ');
        let number: u64 = words
            .next()
            .and_then(|word| word.parse().ok())
            .context("a number")?;
        let sent: u64 = words
            .next()
            .and_then(|word| word.parse().ok())
            .context("a time")?;
        let (begins, is_first) = {
            let mut state = self.state.lock();
            self.note(&mut state, client, Duration::from_micros(sent));
            let seen = &mut state.clients[client];
            let last = seen.last.replace(number);
            let begins = std::mem::take(&mut seen.begins);
            if begins && let Some(last) = last {
                let missed = (number - 1).saturating_sub(last);
                state.tally(self.kinds[client]).missed_while_away += missed;
            }
            let numbers = &mut state.channels[channel];
            let is_first = numbers.reached < number;
            numbers.reached = numbers.reached.max(number);
            (begins, is_first)
        };
        let position = |offset| Position {
            epoch: NUMBERED.into(),
            offset,
        };
        if is_first {
            self.streams
                .acked(channel, number, &position(number), Duration::ZERO);
        }
        if begins {
            let told = Subscribed {
                since: None,
                recovered: false,
                position: position(number - 1),
                publications: Vec::new(),
            };
            self.streams.subscribed(client, channel, &told);
        }
        self.streams.heard(client, channel, number, number);
        Ok(())
    }

    /// A message of a channel with a history reached a client. `sent`: by the clock of [`Streams::now`].
    pub(super) fn stored(&self, client: usize, channel: usize, at: (u64, u64), sent: Duration) {
        self.note(&mut self.state.lock(), client, sent);
        let (offset, id) = at;
        self.streams.heard(client, channel, offset, id);
    }

    fn note(&self, state: &mut State, client: usize, sent: Duration) {
        let pause = self.streams.now().saturating_sub(sent);
        let longest = &mut state.clients[client].pause;
        *longest = pause.max(*longest);
        state.tally(self.kinds[client]).messages += 1;
    }

    /// A client was told that another one has joined. A second time for the same one is wrong: it has never left.
    pub(super) fn join(&self, client: usize, other: &str) {
        let mut state = self.state.lock();
        if !state.is_over && !state.clients[client].others.insert(other.to_owned()) {
            state.tally(self.kinds[client]).presence += 1;
            self.reason(
                &mut state,
                &format!("client {client} is told of a second join of {other}"),
            );
        }
    }

    /// A client was told that another one has left.
    pub(super) fn leave(&self, client: usize, other: &str) {
        let mut state = self.state.lock();
        if state.is_over {
            return;
        }
        state.tally(self.kinds[client]).presence += 1;
        self.reason(
            &mut state,
            &format!("client {client} is told that {other} has left"),
        );
    }

    /// From now on the clients leave, and are told of it.
    pub(super) fn end(&self) {
        self.state.lock().is_over = true;
    }

    /// Keeps the first reasons, with their time.
    fn reason(&self, state: &mut State, reason: &str) {
        if state.reasons.len() < REASONS_MAX {
            let now = self.streams.now().as_secs_f64();
            state.reasons.push(format!("{now:.3} s, {reason}"));
        }
    }

    /// A client's connection, or its session, has ended, which nobody has asked for.
    pub(super) fn ended(&self, client: usize, why: &str) {
        self.streams.disconnected(client, why);
        let kind = self.kinds[client];
        let mut state = self.state.lock();
        state.clients[client].is_connected = false;
        state.tally(kind).ended += 1;
        let is_known = state.reasons.iter().any(|reason| reason.ends_with(why));
        if !is_known {
            self.reason(&mut state, &format!("client {client} ({kind}): {why}"));
        }
    }

    /// A client could not connect.
    pub(super) fn refused(&self, client: usize, why: &str) {
        let kind = self.kinds[client];
        let mut state = self.state.lock();
        state.tally(kind).refused += 1;
        self.reason(
            &mut state,
            &format!("client {client} ({kind}) is refused: {why}"),
        );
    }

    /// A client's command to publish was refused.
    pub(super) fn publish_refused(&self, why: &str) {
        let mut state = self.state.lock();
        state.refused += 1;
        self.reason(
            &mut state,
            &format!("a command to publish is refused: {why}"),
        );
    }

    /// Ends a part of the run.
    pub fn end_window(&self, name: &str) {
        let mut state = self.state.lock();
        let (mut websocket, mut http) = (Vec::new(), Vec::new());
        for (client, kind) in state.clients.iter_mut().zip(&self.kinds) {
            let pause = std::mem::take(&mut client.pause);
            if kind.is_websocket() {
                websocket.push(pause);
            } else {
                http.push(pause);
            }
        }
        state.windows.push(Window {
            name: name.to_owned(),
            websocket: Pauses::new(websocket),
            http: Pauses::new(http),
        });
    }

    /// The positions that every client has to reach: of channels with a history those in `stored`.
    pub(super) fn marks(
        &self,
        population: &Population,
        stored: &BTreeMap<usize, Position>,
    ) -> Result<Vec<Position>> {
        let state = self.state.lock();
        let numbered = population.channels.iter().enumerate();
        let mark = |(number, channel): (usize, &super::population::Channel)| match channel.stream {
            Stream::History => stored.get(&number).cloned().context("it has a publisher"),
            _ => Ok(Position {
                epoch: NUMBERED.into(),
                offset: state.channels[number].sent,
            }),
        };
        numbered.map(mark).collect()
    }

    /// How many clients are connected.
    #[must_use]
    pub fn connections(&self) -> usize {
        let state = self.state.lock();
        let clients = state.clients.iter();
        clients.filter(|client| client.is_connected).count()
    }

    /// Messages that reached a client so far.
    #[must_use]
    pub fn messages(&self) -> u64 {
        let state = self.state.lock();
        state.kinds.values().map(|tally| tally.messages).sum()
    }

    /// All that was seen.
    #[must_use]
    pub fn seen(&self) -> Seen {
        let checker = self.streams.checker();
        let state: MutexGuard<'_, State> = self.state.lock();
        let mut kinds = state.kinds.clone();
        let mut of_nobody = 0;
        for ((fault, client), count) in checker.found() {
            match client {
                Some(client) => {
                    let tally = kinds.entry(self.kinds[*client]).or_default();
                    *tally.faults.entry(*fault).or_default() += count;
                }
                None => of_nobody += count,
            }
        }
        let tally = self.streams.tally();
        Seen {
            kinds,
            publishing: Publishing {
                published: tally.published,
                failed_attempts: tally.failed_attempts,
                refused: state.refused,
            },
            windows: state.windows.clone(),
            reasons: state.reasons.clone(),
            violations: checker.violations().to_vec(),
            of_nobody,
        }
    }
}

impl State {
    fn tally(&mut self, kind: Kind) -> &mut Tally {
        self.kinds.entry(kind).or_default()
    }
}

#[cfg(test)]
mod tests;
