//! Load balancing: the states of backends, the choice of one for a request, and affinity.
//!
//! A *backend* is one server process, and a *pool* the backends of a route. HAProxy calls a backend `server`, and a pool `backend`.
//!
//! [`pool`] holds the backends of one route and chooses one ([`Pool::choose`](pool::Pool::choose)); [`affinity`] verifies and
//! signs the cookie that keeps a client on its backend; [`health`] probes backends, in tasks of its own; [`idle`] keeps idle
//! connections to a backend for reuse. [`request`](crate::request) asks for a choice and reports how it went;
//! [`reload`](crate::server::reload) and discovery replace the backends of a pool.
//!
//! A backend is *unknown* (not probed yet), *up*, *suspect* (a probe or request failed, not often enough for down), *down*,
//! *draining* or in *maintenance*.
//!
//! Invariant: a choice takes no lock and does no I/O. It reads atomic counters, and a snapshot of the pool's backends that reloads,
//! discovery and health checks replace. It prefers the backend that the request's cookie or SockJS session names. It never returns
//! a backend that was tried for this request. New clients get none that drains or is in maintenance, and one that is down only if
//! fewer than `health.ignore_below` percent are healthy, or none is.
//! Nothing here opens a connection for a request (that is [`upstream`](crate::upstream)) or sends a request again; health checks
//! open their own connections.

pub(crate) mod affinity;
pub(crate) mod health;
pub(crate) mod idle;
pub(crate) mod pool;
