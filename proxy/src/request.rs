//! One request, from its head to the last byte of its response.
//!
//! [`exchange`] decides and does no I/O: route, client address, affinity, backend, consequences of a failure, header changes.
//! [`forward`] is the engine that forwards requests and upgrades over connections of the edge's own; [`proxy_http`] implements the
//! phases of Pingora's proxy for the plugin with the same decisions. [`parked`] bounds the requests that wait until their backend
//! is reachable again. [`error`] has the edge's own error responses, [`access_log`] the line for each request and tunnel.
//!
//! Invariant: each rule about requests is implemented once, in [`exchange`], for all protocols and for the plugin.

pub(crate) mod access_log;
pub(crate) mod error;
pub(crate) mod exchange;
pub(crate) mod forward;
pub(crate) mod parked;
pub(crate) mod proxy_http;
