//! The requests, and what the edge has to make of them.

use crate::edge::smuggling::{framing, heads, hops, targets, upgrades};

/// One connection's bytes, and what may come of them.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    /// How many requests it is in front: at most as many may come out behind.
    pub(crate) front: usize,
    /// What the first response may be; 0 stands for an end without one.
    pub(crate) statuses: &'static [u16],
    /// What becomes of the connection.
    pub(crate) fate: Fate,
    /// Headers that the backend must not see, besides those that it never sees.
    pub(crate) absent: &'static [&'static str],
    /// Headers that the backend must see, once and with this value.
    pub(crate) present: &'static [(&'static str, &'static str)],
    /// The one request line that the backend must see.
    pub(crate) line: Option<&'static str>,
}

/// What becomes of a connection behind a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing more is read from it: where this request ends is in doubt.
    Closed,
    /// The next request is served.
    GoesOn,
    /// Either is right.
    Either,
}

pub(crate) fn all() -> Vec<Case> {
    let mut all = framing::cases();
    all.extend(heads::cases());
    all.extend(targets::cases());
    all.extend(hops::cases());
    all.extend(upgrades::cases());
    all
}

/// Refused by its head: nothing gets behind, and nothing more is read.
pub(crate) fn refused(
    name: &'static str,
    statuses: &'static [u16],
    bytes: impl AsRef<[u8]>,
) -> Case {
    Case {
        front: 0,
        fate: Fate::Closed,
        statuses,
        ..served(name, bytes)
    }
}

/// Wrong in its body, of which the head may be behind already: no more than that gets there, and nothing more is read.
pub(crate) fn broken(name: &'static str, bytes: impl AsRef<[u8]>) -> Case {
    Case {
        fate: Fate::Closed,
        statuses: &[400],
        ..served(name, bytes)
    }
}

/// Served as one request, and the connection goes on.
pub(crate) fn served(name: &'static str, bytes: impl AsRef<[u8]>) -> Case {
    Case {
        name,
        bytes: bytes.as_ref().to_vec(),
        front: 1,
        statuses: &[200],
        fate: Fate::GoesOn,
        absent: &[],
        present: &[],
        line: None,
    }
}

/// A request with these headers (with their line ends) and this body.
pub(crate) fn post(headers: &str, body: &str) -> Vec<u8> {
    format!("POST /case HTTP/1.1\r\nHost: a\r\n{headers}\r\n{body}").into_bytes()
}

pub(crate) fn get(headers: &str) -> Vec<u8> {
    format!("GET /case HTTP/1.1\r\nHost: a\r\n{headers}\r\n").into_bytes()
}

/// What an attacker hides where it is to become a request of its own.
pub(crate) const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
