//! Backends: their states, the choice of a backend for a request, and affinity.
//!
//! [`pool`] has the backends of one route target with their states, and picks one; [`affinity`] reads and signs the cookie that
//! keeps a client on its backend; [`health`] probes backends; [`idle`] keeps idle connections to a backend for reuse.
//!
//! A pick reads a snapshot and atomics: it takes no lock and does no I/O. Nothing here opens a connection for a request (that is
//! [`upstream`](crate::upstream)); health checks open their own.

pub(crate) mod affinity;
pub(crate) mod health;
pub(crate) mod idle;
pub(crate) mod pool;
