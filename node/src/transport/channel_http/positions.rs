//! The positions of a client of `uni_sse` in its channels: a plain type.
//!
//! When an EventSource reconnects, it repeats the `id` of the last event that it has received, and nothing else. So each
//! event that advances a position has an id with the positions in all recoverable channels.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;

use crate::protocol::SubscribeRequest;

/// The longest id. It is sent back in a header, whose size is limited too.
const ID_BYTES_MAX: usize = 4 << 10;

/// Positions by channel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Positions(BTreeMap<String, Position>);

#[derive(Debug, PartialEq, Eq)]
struct Position {
    epoch: String,
    offset: u64,
}

/// The parts of a message that concern positions.
#[derive(Deserialize)]
struct Told {
    push: Option<Push>,
}

#[derive(Deserialize)]
struct Push {
    #[serde(default)]
    channel: String,
    connect: Option<Connect>,
    subscribe: Option<Subscribed>,
    unsubscribe: Option<serde::de::IgnoredAny>,
    #[serde(rename = "pub")]
    publication: Option<Publication>,
}

#[derive(Deserialize)]
struct Connect {
    #[serde(default)]
    subs: BTreeMap<String, Subscribed>,
}

#[derive(Deserialize)]
struct Subscribed {
    #[serde(default)]
    recoverable: bool,
    #[serde(default)]
    epoch: String,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    publications: Vec<Publication>,
}

#[derive(Deserialize)]
struct Publication {
    #[serde(default)]
    offset: u64,
}

impl Positions {
    /// Updates the positions after a message to the client. Returns whether one has changed.
    pub(super) fn take(&mut self, message: &[u8]) -> bool {
        let told = serde_json::from_slice::<Told>(message);
        let Some(push) = told.ok().and_then(|told| told.push) else {
            return false; // A ping.
        };
        if let Some(connect) = push.connect {
            for (channel, subscribed) in connect.subs {
                self.subscribe(channel, subscribed);
            }
            return true;
        }
        if let Some(subscribed) = push.subscribe {
            self.subscribe(push.channel, subscribed);
            return true;
        }
        if push.unsubscribe.is_some() {
            return self.0.remove(&push.channel).is_some();
        }
        match (push.publication, self.0.get_mut(&push.channel)) {
            (Some(publication), Some(position)) if 0 < publication.offset => {
                position.offset = publication.offset;
                true
            }
            _ => false,
        }
    }

    /// The id that encodes all positions; `None` if it would be too long.
    pub(super) fn id(&self) -> Option<String> {
        let mut id = String::new();
        for (channel, Position { epoch, offset }) in &self.0 {
            if !id.is_empty() {
                id.push(',');
            }
            escape(&mut id, channel);
            id.push('=');
            escape(&mut id, epoch);
            // Writing to a string does not fail.
            let _ = write!(id, ":{offset}");
            if ID_BYTES_MAX < id.len() {
                return None;
            }
        }
        Some(id)
    }

    /// Parses an id that [`id`](Self::id) has created; `None` for any other.
    pub(super) fn parse(id: &str) -> Option<Self> {
        let mut positions = BTreeMap::new();
        for part in id.split(',').filter(|part| !part.is_empty()) {
            let (channel, position) = part.split_once('=')?;
            let (epoch, offset) = position.rsplit_once(':')?;
            let position = Position {
                epoch: unescape(epoch)?,
                offset: offset.parse().ok()?,
            };
            positions.insert(unescape(channel)?, position);
        }
        Some(Self(positions))
    }

    /// The subscribe requests that recover from these positions.
    pub(super) fn requests(self) -> impl Iterator<Item = (String, SubscribeRequest)> {
        let positions = self.0.into_iter();
        positions.map(|(channel, Position { epoch, offset })| {
            let request = SubscribeRequest {
                recover: true,
                epoch,
                offset,
                ..SubscribeRequest::default()
            };
            (channel, request)
        })
    }

    fn subscribe(&mut self, channel: String, subscribed: Subscribed) {
        if !subscribed.recoverable {
            self.0.remove(&channel);
            return;
        }
        // The event itself contains the recovered publications.
        let last = subscribed.publications.last();
        let position = Position {
            epoch: subscribed.epoch,
            offset: last.map_or(subscribed.offset, |last| last.offset),
        };
        self.0.insert(channel, position);
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'%' | b',' | b'=')
}

/// Appends `text` with percent-encoding, so that it is valid in a header and contains no separator of an id.
fn escape(id: &mut String, text: &str) {
    for byte in text.bytes() {
        if is_plain(byte) {
            id.push(byte.into());
        } else {
            let _ = write!(id, "%{byte:02X}");
        }
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                let digits = std::str::from_utf8(&digits).ok()?;
                u8::from_str_radix(digits, 16).ok()?
            }
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn positions(of: &[(&str, &str, u64)]) -> Positions {
        let position = |&(channel, epoch, offset): &(&str, &str, u64)| {
            let epoch = epoch.to_owned();
            (channel.to_owned(), Position { epoch, offset })
        };
        Positions(of.iter().map(position).collect())
    }

    #[test]
    fn positions_advance_with_the_messages_to_a_client() {
        let mut told = Positions::default();
        let connect = r#"{"push":{"connect":{"client":"x","subs":{
            "a":{"recoverable":true,"epoch":"e","offset":3,"positioned":true},
            "b":{"recoverable":true,"epoch":"f","offset":1,"recovered":true,
                 "publications":[{"data":1,"offset":2},{"data":2,"offset":3}]},
            "c":{}}}}}"#;
        for (message, moves, expected) in [
            ("{}", false, &[][..]),
            (connect, true, &[("a", "e", 3), ("b", "f", 3)]),
            (
                r#"{"push":{"channel":"a","pub":{"data":{"push":1},"offset":4}}}"#,
                true,
                &[("a", "e", 4), ("b", "f", 3)],
            ),
            (
                r#"{"push":{"channel":"a","pub":{"data":"not kept"}}}"#,
                false,
                &[("a", "e", 4), ("b", "f", 3)],
            ),
            (
                r#"{"push":{"channel":"c","pub":{"data":1,"offset":4}}}"#,
                false,
                &[("a", "e", 4), ("b", "f", 3)],
            ),
            (
                r#"{"push":{"channel":"b","unsubscribe":{"code":2500,"reason":""}}}"#,
                true,
                &[("a", "e", 4)],
            ),
            (
                r#"{"push":{"channel":"d","subscribe":{"recoverable":true,"epoch":"g","positioned":true}}}"#,
                true,
                &[("a", "e", 4), ("d", "g", 0)],
            ),
            (
                r#"{"push":{"channel":"a","join":{"info":{"client":"y"}}}}"#,
                false,
                &[("a", "e", 4), ("d", "g", 0)],
            ),
        ] {
            assert_eq!(told.take(message.as_bytes()), moves, "{message}");
            assert_eq!(told, positions(expected), "{message}");
        }
        assert_eq!(told.id().unwrap(), "a=e:4,d=g:0");
    }

    #[test]
    fn a_foreign_id_is_none() {
        for id in [
            "1", "a=", "a=e", "a=e:", "a=e:x", "a=e:-1", "=%:1", "a=%f:1", "%ff=e:1", "a=e:1,b",
        ] {
            assert_eq!(Positions::parse(id), None, "{id}");
        }
        assert_eq!(Positions::parse(""), Some(Positions::default()));
    }

    #[test]
    fn an_id_that_would_be_too_long_is_none() {
        let channels: Vec<String> = (0..100)
            .map(|number| format!("{number}{}", "x".repeat(100)))
            .collect();
        let of: Vec<_> = channels
            .iter()
            .map(|channel| (channel.as_str(), "e", 1))
            .collect();
        assert_eq!(positions(&of).id(), None);
        assert!(positions(&of[..30]).id().unwrap().len() <= ID_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn an_id_fits_a_line_and_a_header_and_reads_back(
            of in proptest::collection::btree_map(".{0,30}", (".{0,10}", any::<u64>()), 0..5)
        ) {
            let position = |(channel, (epoch, offset))| (channel, Position { epoch, offset });
            let positions = Positions(of.into_iter().map(position).collect());
            let id = positions.id().unwrap();
            prop_assert!(id.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(Positions::parse(&id), Some(positions));
        }
    }
}
