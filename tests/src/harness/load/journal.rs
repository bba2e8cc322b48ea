//! What the clients asked, what they got, and where each of them is.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// GETs a page over and over.
    Get,
    /// POSTs over and over.
    Post,
    /// GETs a page over and over and keeps no cookie.
    Newcomer,
    /// Keeps a SockJS session over xhr-polling.
    Session,
    /// Keeps a WebSocket.
    Tunnel,
}

/// One request and its response.
#[derive(Clone, Debug)]
pub struct Record {
    /// Whose.
    pub client: usize,
    /// The method, or `upgrade`.
    pub method: &'static str,
    /// What was asked for.
    pub path: String,
    /// When it was sent.
    pub begun: Instant,
    /// When the end of the response was there.
    pub ended: Instant,
    /// The status, or why there was no whole response.
    pub outcome: std::result::Result<u16, String>,
    /// Whether it is what the client wanted.
    pub good: bool,
    /// The node that answered.
    pub node: Option<String>,
    /// The backend that the client's cookie named when it asked, and afterwards.
    pub bound_before: Option<String>,
    /// See `bound_before`.
    pub bound_after: Option<String>,
    /// Whether the client's cookie named another backend until this response came.
    pub moved: bool,
}

impl Record {
    /// Whether it failed by no doing of the client's: a 5xx, or no whole response.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.outcome.as_ref().map_or(true, |status| 500 <= *status)
    }

    /// How long the response took.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.ended - self.begun
    }
}

/// How a client fares now.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its number.
    pub client: usize,
    /// What it does.
    pub kind: Kind,
    /// The backend that its cookie names.
    pub bound: Option<String>,
    /// The node that served it last.
    pub node: Option<String>,
    /// When it asked for what it was served last; `None` as long as it is not served.
    served: Option<Instant>,
}

impl Place {
    /// Whether it has been served what it asked for after `since`, and nothing has failed after that.
    #[must_use]
    pub fn served_since(&self, since: Instant) -> bool {
        self.served.is_some_and(|asked| since < asked)
    }
}

/// A session that was lost, or a WebSocket that ended.
#[derive(Clone, Debug)]
pub struct Loss {
    /// Whose.
    pub client: usize,
    /// When.
    pub at: Instant,
    /// The node that had it.
    pub node: Option<String>,
    /// How it showed.
    pub why: String,
}

/// All of it.
#[derive(Debug)]
pub struct Journal {
    places: Mutex<Vec<Place>>,
    records: Mutex<Vec<Record>>,
    losses: Mutex<Vec<Loss>>,
}

impl Journal {
    pub(super) fn new(kinds: impl Iterator<Item = Kind>) -> Self {
        let place = |(client, kind)| Place {
            client,
            kind,
            bound: None,
            node: None,
            served: None,
        };
        Self {
            places: Mutex::new(kinds.enumerate().map(place).collect()),
            records: Mutex::default(),
            losses: Mutex::default(),
        }
    }

    pub(super) fn add(&self, mut record: Record) {
        let place = &mut lock(&self.places)[record.client];
        // By the order of responses: two requests of one client, sent together, may be bound anew together.
        record.moved = place.bound.is_some() && place.bound != record.bound_after;
        place.bound.clone_from(&record.bound_after);
        place.served = record.good.then_some(record.begun);
        if record.good {
            place.node.clone_from(&record.node);
        }
        lock(&self.records).push(record);
    }

    pub(super) fn echoed(&self, client: usize, asked: Instant) {
        lock(&self.places)[client].served = Some(asked);
    }

    pub(super) fn lost(&self, client: usize, why: String) {
        let place = &mut lock(&self.places)[client];
        place.served = None;
        let node = place.node.clone();
        lock(&self.losses).push(Loss {
            client,
            at: Instant::now(),
            node,
            why,
        });
    }

    /// Where each client is.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        lock(&self.places).clone()
    }

    /// Every request, in the order of the responses.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        lock(&self.records).clone()
    }

    /// Every session and every WebSocket that was lost.
    #[must_use]
    pub fn losses(&self) -> Vec<Loss> {
        lock(&self.losses).clone()
    }

    /// The node of each client with a session, where it was all along.
    ///
    /// # Errors
    ///
    /// A session was lost, or went elsewhere, or one of its requests was not answered well.
    pub fn homes_of_sessions(&self) -> Result<BTreeMap<usize, String>> {
        let losses = self.losses();
        ensure!(
            losses.is_empty(),
            "{} lost: {:?}",
            losses.len(),
            losses.first()
        );
        let places = self.places();
        let mut homes = BTreeMap::new();
        for record in self.records() {
            if places[record.client].kind != Kind::Session {
                continue;
            }
            ensure!(record.good, "{record:?}");
            let node = record.node.clone().context("no node")?;
            let home = homes.entry(record.client).or_insert_with(|| node.clone());
            ensure!(*home == node, "away from {home}: {record:?}");
        }
        Ok(homes)
    }

    /// The last few requests of a client.
    #[must_use]
    pub fn last_of(&self, client: usize) -> Vec<Record> {
        let records = lock(&self.records);
        let of_client = records
            .iter()
            .rev()
            .filter(|record| record.client == client);
        of_client.take(3).cloned().collect()
    }

    /// How often each client's cookie came to name another backend by what was asked after `since`; those whose never did
    /// are left out.
    #[must_use]
    pub fn moves(&self, since: Instant) -> BTreeMap<usize, usize> {
        let mut moves = BTreeMap::new();
        for record in lock(&self.records).iter() {
            if since < record.begun && record.moved {
                *moves.entry(record.client).or_default() += 1;
            }
        }
        moves
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
