//! HTTP without I/O: message heads, header fields, request targets, framing.
//!
//! [`http1`] parses and writes heads and chunked bodies of HTTP/1, and keeps the original bytes of unchanged headers; [`fields`]
//! is one interface to headers in any representation; [`hop_by_hop`] removes connection headers; [`forwarded`] sets the
//! forwarding headers; [`target`] parses request targets and hosts, [`scheme`] is `http` or `https`.
//!
//! Everything here is a plain type over bytes. Invariant: no bytes from the network cause a panic.

pub(crate) mod fields;
pub(crate) mod forwarded;
pub(crate) mod hop_by_hop;
pub(crate) mod http1;
pub(crate) mod scheme;
pub(crate) mod target;
