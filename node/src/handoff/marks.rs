//! Marks: messages that name a place in the stream of publications of one Redis server.
//!
//! A mark travels as a publication on a channel to which every node is subscribed, over the connection that carries the
//! publications of that server. Redis applies commands one at a time, so all subscribers receive marks and publications
//! in one order.
//!
//! Invariant: what is registered for a mark runs at most once, between the publications before and after the mark.

use std::collections::HashMap;
use std::sync::Arc;

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
    registered: Mutex<HashMap<Token, AtMark>>,
}

impl Marks {
    pub(crate) fn new(rest: Arc<dyn Deliver>) -> Arc<Self> {
        Arc::new(Self {
            rest,
            registered: Mutex::default(),
        })
    }

    /// Runs `act` when the mark `token` is received. It is dropped instead if publications are missed before that.
    pub(super) fn at(&self, token: Token, act: impl FnOnce() + Send + 'static) {
        self.registered.lock().insert(token, Box::new(act));
    }

    /// Forgets what is registered for `token`; returns whether it was there still.
    pub(super) fn forget(&self, token: Token) -> bool {
        let registered = self.registered.lock().remove(&token);
        registered.is_some()
    }

    fn received(&self, data: &[u8]) {
        let registered =
            Token::from_bytes(data).and_then(|token| self.registered.lock().remove(&token));
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
        // Of whichever server: handoffs are rare, and so are interruptions.
        let missed = std::mem::take(&mut *self.registered.lock());
        drop(missed); // Outside the lock: it may own clients.
        self.rest.interrupted(shard);
    }

    fn resumed(&self, shard: Shard) {
        self.rest.resumed(shard);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

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
        marks.at(token, {
            let log = Arc::clone(&log);
            move || log.0.lock().push("mark".to_owned())
        });
        marks.deliver(vec![
            publication(&global, "1"),
            publication(&mark, other.bytes()),
            publication(&global, "2"),
            publication(&mark, token.bytes()),
            publication(&mark, token.bytes()),
            publication(&mark, "no token"),
            publication(&global, "3"),
        ]);
        assert_eq!(*log.0.lock(), ["1", "2", "mark", "3"]);
        assert!(!marks.forget(token));
    }

    #[test]
    fn an_interruption_drops_what_is_registered() {
        let log = Arc::new(Log::default());
        let marks = Marks::new(Arc::clone(&log) as Arc<dyn Deliver>);
        let token = Token::random();
        let owned = Arc::new(());
        marks.at(token, {
            let owned = Arc::clone(&owned);
            move || drop(owned)
        });
        marks.interrupted(Shard(0));
        assert_eq!(Arc::strong_count(&owned), 1);
        assert!(!marks.forget(token));
    }
}
