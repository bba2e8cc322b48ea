//! Load balancing: the states of backends, the choice of one for a request, and affinity.
//!
//! A *backend* is one server process, and a *pool* the backends of one route (HAProxy's `server` and `backend`).
//!
//! [`pool`] holds the backends of one route with their states (up, unknown, suspect, down, draining, maintenance) and chooses one
//! ([`Pool::choose`](pool::Pool::choose)); [`affinity`] verifies and signs the cookie that keeps a client on its backend;
//! [`health`] probes backends; [`idle`] keeps idle connections to a backend for reuse.
//!
//! Invariant: a choice reads a snapshot of the pool's backends, which reloads, discovery and health checks replace, and atomic counters;
//! it takes no lock and does no I/O. It prefers the client's own backend. One that is tried already, drains or is in maintenance is
//! not chosen for a new client; one that is down only while health is ignored, since too few are up (`health.ignore_below`).
//! Nothing here opens a connection for a request (that is [`upstream`](crate::upstream)) or retries one; health checks open
//! their own connections.

pub(crate) mod affinity;
pub(crate) mod health;
pub(crate) mod idle;
pub(crate) mod pool;
