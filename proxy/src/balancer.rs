//! Backends: their state, which of them serves a request, and where a client belongs.
//!
//! [`pool`] holds the backends of one route target with their states and picks one; [`affinity`] reads and signs the cookie that
//! keeps a client on its backend; [`health`] probes backends; [`idle`] keeps connections to a backend for the next request.
//!
//! Picking looks at a snapshot and at atomics: it takes no lock and does no I/O. Nothing here opens a connection for a request
//! (that is [`upstream`](crate::upstream)); health checks open their own.

pub(crate) mod affinity;
pub(crate) mod health;
pub(crate) mod idle;
pub(crate) mod pool;
