//! HTTP without I/O: heads, fields, targets, framing.
//!
//! [`http1`] parses and writes heads and chunked bodies of HTTP/1, keeping the bytes of what does not change; [`fields`] is one
//! view of headers whatever holds them; [`hop_by_hop`] removes what belongs to one connection; [`forwarded`] sets the forwarding
//! headers; [`target`] and [`scheme`] read what a request asks for.
//!
//! Everything here is a plain type over bytes. Bytes from the network never panic.

pub(crate) mod fields;
pub(crate) mod forwarded;
pub(crate) mod hop_by_hop;
pub(crate) mod http1;
pub(crate) mod scheme;
pub(crate) mod target;
