//! Marks: messages that name a place in the stream of publications of one Redis server.
//!
//! A mark travels as a publication on a channel to which every node is subscribed, over the connection that carries the
//! publications of that server. Redis applies commands one at a time, so all subscribers receive marks and publications
//! in one order.
//!
//! A client with channels on several servers has a mark on each of them, which are numbered.
//!
//! Invariant: what is registered for a mark runs at most once, between the publications before and after the mark.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::broker::Deliver;
use crate::broker::Shard;
use crate::protocol::handoff::Token;
use crate::protocol::publication::Publication;
use crate::redis::keys;

/// Runs at a mark; must not block.
type AtMark = Box<dyn FnOnce() + Send>;

/// Passes publications on, and runs what is registered for a mark where that is.
pub(crate) struct Marks {
    rest: Arc<dyn Deliver>,
    registered: Mutex<HashMap<Mark, AtMark>>,
}

/// One of the marks of a handoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Mark {
    pub(super) token: Token,
    /// Counts the servers with channels of the client, from 0 on.
    pub(super) number: u16,
}

impl Mark {
    /// The only mark of a client with one channel.
    pub(super) fn first(token: Token) -> Self {
        Self { token, number: 0 }
    }

    /// What is published.
    pub(super) fn bytes(self) -> Bytes {
        match self.number {
            0 => self.token.bytes(),
            number => [&self.token.bytes()[..], &number.to_be_bytes()]
                .concat()
                .into(),
        }
    }

    fn from_bytes(data: &[u8]) -> Option<Self> {
        if let Some(token) = Token::from_bytes(data) {
            return Some(Self::first(token));
        }
        let (token, number) = data.split_last_chunk()?;
        Some(Self {
            token: Token::from_bytes(token)?,
            number: u16::from_be_bytes(*number),
        })
    }
}

impl Marks {
    pub(crate) fn new(rest: Arc<dyn Deliver>) -> Arc<Self> {
        Arc::new(Self {
            rest,
            registered: Mutex::default(),
        })
    }

    /// Runs `act` when `mark` is received. It is dropped instead if publications are missed before that.
    pub(super) fn at(&self, mark: Mark, act: impl FnOnce() + Send + 'static) {
        self.registered.lock().insert(mark, Box::new(act));
    }

    /// Forgets what is registered for the first `count` marks of `token`.
    pub(super) fn forget(&self, token: Token, count: u16) {
        for number in 0..count {
            let registered = self.registered.lock().remove(&Mark { token, number });
            drop(registered); // Outside the lock: it may own a client.
        }
    }

    /// Runs what is registered for `mark`, wherever that is.
    #[cfg(debug_assertions)]
    pub(super) fn run(&self, mark: Mark) {
        self.received(&mark.bytes());
    }

    /// Drops all that is registered, since publications are missed. Of whichever server: handoffs are rare, and so are
    /// interruptions.
    fn forget_all(&self) {
        let missed = std::mem::take(&mut *self.registered.lock());
        drop(missed); // Outside the lock: it may own clients.
    }

    fn received(&self, data: &[u8]) {
        let registered =
            Mark::from_bytes(data).and_then(|mark| self.registered.lock().remove(&mark));
        if let Some(act) = registered {
            act();
        }
    }
}

impl Deliver for Marks {
    fn deliver(&self, publications: Vec<Publication>) {
        let marks = keys::handoff_marks();
        if publications.iter().all(|one| one.channel != marks) {
            self.rest.deliver(publications);
            return;
        }
        let mut before = Vec::new();
        for publication in publications {
            if publication.channel != marks {
                before.push(publication);
                continue;
            }
            if !before.is_empty() {
                self.rest.deliver(std::mem::take(&mut before));
            }
            self.received(&publication.data);
        }
        if !before.is_empty() {
            self.rest.deliver(before);
        }
    }

    fn interrupted(&self, shard: Shard) {
        self.forget_all();
        self.rest.interrupted(shard);
    }

    fn resumed(&self, shard: Shard) {
        self.rest.resumed(shard);
    }

    fn interrupted_all(&self, shards: &HashSet<Shard>) {
        self.forget_all();
        self.rest.interrupted_all(shards);
    }

    fn resumed_all(&self, shards: &HashSet<Shard>) {
        self.rest.resumed_all(shards);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::channel::ChannelName;

    /// What was delivered, with the marks among it.
    #[derive(Default)]
    struct Log(Mutex<Vec<String>>);

    impl Deliver for Log {
        fn deliver(&self, publications: Vec<Publication>) {
            let mut log = self.0.lock();
            log.extend(
                publications
                    .iter()
                    .map(|one| String::from_utf8_lossy(&one.data).into_owned()),
            );
        }
    }

    fn publication(channel: &ChannelName, data: impl Into<Bytes>) -> Publication {
        Publication {
            channel: channel.clone(),
            data: data.into(),
        }
    }

    #[test]
    fn what_is_registered_runs_once_between_what_is_before_the_mark_and_behind_it() {
        let log = Arc::new(Log::default());
        let marks = Marks::new(Arc::clone(&log) as Arc<dyn Deliver>);
        let (global, mark) = (ChannelName::new("global").unwrap(), keys::handoff_marks());
        let (token, other) = (Token::random(), Token::random());
        for number in [0, 300] {
            let log = Arc::clone(&log);
            let act = move || log.0.lock().push(format!("mark {number}"));
            marks.at(Mark { token, number }, act);
        }
        marks.deliver(vec![
            publication(&global, "1"),
            publication(&mark, other.bytes()),
            publication(&global, "2"),
            publication(&mark, token.bytes()),
            publication(&mark, token.bytes()),
            publication(&mark, "no token"),
            publication(&global, "3"),
            publication(&mark, Mark { token, number: 1 }.bytes()),
            publication(&mark, Mark { token, number: 300 }.bytes()),
            publication(&global, "4"),
        ]);
        assert_eq!(*log.0.lock(), ["1", "2", "mark 0", "3", "mark 300", "4"]);
        assert!(marks.registered.lock().is_empty());
    }

    #[test]
    fn what_is_forgotten_does_not_run() {
        let log = Arc::new(Log::default());
        let marks = Marks::new(Arc::clone(&log) as Arc<dyn Deliver>);
        let token = Token::random();
        for number in 0..3 {
            let log = Arc::clone(&log);
            let act = move || log.0.lock().push(number.to_string());
            marks.at(Mark { token, number }, act);
        }
        marks.forget(token, 2);
        let mark = keys::handoff_marks();
        for number in 0..3 {
            marks.deliver(vec![publication(&mark, Mark { token, number }.bytes())]);
        }
        assert_eq!(*log.0.lock(), ["2"]);
    }

    #[test]
    fn an_interruption_drops_what_is_registered() {
        let log = Arc::new(Log::default());
        let marks = Marks::new(Arc::clone(&log) as Arc<dyn Deliver>);
        let token = Token::random();
        let owned = Arc::new(());
        marks.at(Mark::first(token), {
            let owned = Arc::clone(&owned);
            move || drop(owned)
        });
        marks.interrupted(Shard(0));
        assert_eq!(Arc::strong_count(&owned), 1);
    }
}
