//! What all clients, publishers and the rounds share: the record, and where each client is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::handoff_faults::record::{Finding, Kept, Record};

/// What a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A plain WebSocket of the relay endpoint.
    Relay,
    /// SockJS over WebSocket, on the same channel.
    Sockjs,
    /// SockJS by xhr-polling, on the same channel.
    Polling,
    /// A channel with a history, over WebSocket.
    History,
    /// A channel without one and with presence, over WebSocket.
    Live,
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// For people, and for counting.
    pub why: String,
    /// Whether the client was told by the protocol, and not only by the end of the connection.
    pub is_told: bool,
}

impl End {
    /// By a Close frame.
    #[must_use]
    pub fn closed(code: Option<u16>) -> Self {
        Self {
            why: match code {
                Some(code) => format!("close code {code}"),
                None => "close without a code".to_owned(),
            },
            is_told: code.is_some(),
        }
    }

    /// By a frame or a response that says so.
    #[must_use]
    pub fn told(why: &str) -> Self {
        Self {
            why: why.to_owned(),
            is_told: true,
        }
    }

    /// Without a word.
    #[must_use]
    pub fn broken(why: &str) -> Self {
        Self {
            why: format!("broken: {why}"),
            is_told: false,
        }
    }
}

/// A client, as the rounds see it.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// Whether it is connected.
    pub is_connected: bool,
    /// The id of a channel client.
    pub id: Option<String>,
    /// The stream that it publishes.
    pub stream: Option<usize>,
    /// How its connections have ended in this round.
    pub ends: Vec<End>,
    /// The last reason for which it could not connect.
    pub refused: Option<String>,
}

/// Shared by everybody.
#[derive(Debug)]
pub struct Shared {
    /// Where clients connect.
    pub edge: SocketAddr,
    /// What was seen.
    pub record: Mutex<Record>,
    /// The streams of the application: on the relay channel,
    pub relay: usize,
    /// in the channel with a history,
    pub past: usize,
    /// and in the one without.
    pub live: usize,
    /// By client.
    pub statuses: Mutex<Vec<Status>>,
    /// Ids of which somebody was told in this round that they have left, and by which client.
    left: Mutex<BTreeMap<String, usize>>,
    /// Ids of which each client was told that they have joined, and whether it was told again.
    joined: Mutex<BTreeMap<(usize, String), bool>>,
    /// Whether all clients are to go.
    pub over: watch::Sender<bool>,
}

impl Shared {
    /// For so many clients of the edge at this address.
    #[must_use]
    pub fn new(edge: SocketAddr, clients: usize) -> Self {
        let mut record = Record::default();
        let relay = record.add_stream("the relay channel".to_owned(), Kept::Nowhere);
        let past = record.add_stream("the channel with a history".to_owned(), Kept::History);
        let live = record.add_stream("the channel without one".to_owned(), Kept::Nowhere);
        Self {
            edge,
            record: Mutex::new(record),
            relay,
            past,
            live,
            statuses: Mutex::new(vec![Status::default(); clients]),
            left: Mutex::default(),
            joined: Mutex::default(),
            over: watch::Sender::new(false),
        }
    }

    /// Whether all clients are to go.
    #[must_use]
    pub fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// A new stream for what a client publishes over one connection.
    pub fn stream_of(&self, client: usize) -> usize {
        let name = format!("what client {client} publishes");
        self.record.lock().add_stream(name, Kept::Nowhere)
    }

    /// A client is connected.
    pub fn connected(&self, client: usize, id: Option<String>, stream: Option<usize>) {
        self.joined.lock().retain(|(told, _), _| *told != client);
        let status = &mut self.statuses.lock()[client];
        status.is_connected = true;
        status.id = id;
        status.stream = stream;
        status.refused = None;
    }

    /// A client's connection has ended, which it did not ask for.
    pub fn ended(&self, client: usize, end: &End) {
        {
            let status = &mut self.statuses.lock()[client];
            status.is_connected = false;
            status.id = None;
            status.stream = None;
            status.ends.push(end.clone());
        }
        let mut record = self.record.lock();
        let why = match end.is_told {
            true => end.why.clone(),
            false => "end of the connection".to_owned(),
        };
        *record.told.entry(why).or_default() += 1;
    }

    /// A client could not connect.
    pub fn refused(&self, client: usize, why: &str) {
        self.statuses.lock()[client].refused = Some(why.to_owned());
    }

    /// A client got a message of any publisher.
    pub fn message(&self, client: usize, message: &str) {
        if let Some((stream, number)) = parse(message) {
            self.record.lock().received(client, stream, number);
        }
    }

    /// A client got a SockJS frame.
    ///
    /// # Errors
    ///
    /// It ends the session.
    pub fn sockjs(&self, client: usize, frame: &str) -> Result<(), End> {
        if let Some(messages) = frame.strip_prefix('a') {
            let messages: Result<Vec<String>, _> = serde_json::from_str(messages);
            let messages = messages.map_err(|error| End::broken(&error.to_string()))?;
            messages
                .iter()
                .for_each(|message| self.message(client, message));
            return Ok(());
        }
        match frame {
            "h" => Ok(()),
            "o" => Err(End::told("another session")),
            _ => Err(End::told(&format!("SockJS close {frame}"))),
        }
    }

    /// A client was told that one has joined.
    pub fn joined(&self, client: usize, id: &str) {
        let mut joined = self.joined.lock();
        let key = (client, id.to_owned());
        let is_again = joined.contains_key(&key);
        joined.insert(key, is_again);
    }

    /// A client was told that one has left.
    pub fn left(&self, client: usize, id: &str) {
        self.left.lock().insert(id.to_owned(), client);
    }

    /// Begins a round.
    pub fn begin_round(&self) {
        self.left.lock().clear();
        self.joined
            .lock()
            .values_mut()
            .for_each(|again| *again = false);
        for status in self.statuses.lock().iter_mut() {
            status.ends.clear();
        }
    }

    /// Checks joins and leaves that were told in this round: none of those who were `there` at its beginning, and still are.
    pub fn check_joins(&self, there: &BTreeSet<String>) {
        let statuses = self.statuses.lock().clone();
        let still: BTreeSet<String> = { statuses.into_iter() }
            .filter_map(|status| status.id)
            .filter(|id| there.contains(id))
            .collect();
        for (id, client) in self
            .left
            .lock()
            .iter()
            .filter(|(id, _)| still.contains(*id))
        {
            let detail = format!("client {client} is told that {id} has left, which is there");
            self.record.lock().violation(Finding::JoinLeave, detail);
        }
        let joined = self.joined.lock();
        let again = joined.iter().filter(|(_, is_again)| **is_again);
        for ((client, id), _) in again.filter(|((_, id), _)| still.contains(id)) {
            let detail = format!("client {client} is told again that {id} has joined");
            self.record.lock().violation(Finding::JoinLeave, detail);
        }
    }

    /// The ids of channel clients that are connected.
    #[must_use]
    pub fn ids(&self) -> BTreeSet<String> {
        let statuses = self.statuses.lock();
        let statuses = statuses.iter();
        statuses.filter_map(|status| status.id.clone()).collect()
    }
}

/// The stream and the number in a message of ours.
#[must_use]
pub fn parse(message: &str) -> Option<(usize, u64)> {
    let mut words = message.split(' ');
    if words.next() != Some("s") {
        return None;
    }
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}
