//! One request, from its head to the last byte of its response.
//!
//! [`exchange`] decides and does no I/O: route, client, affinity, backend, what a failure means, which headers go either way.
//! [`forward`] is the engine that carries requests and upgrades over our own connections; [`proxy_http`] answers the phases of
//! Pingora's proxy for the plugin with the same decisions. [`parked`] bounds the requests that wait for their backend to come
//! back. [`error`] holds the edge's own responses, [`access_log`] the line that is written for each request and tunnel.
//!
//! Invariant: a rule about requests is in [`exchange`] once, whatever way a request comes.

pub(crate) mod access_log;
pub(crate) mod error;
pub(crate) mod exchange;
pub(crate) mod forward;
pub(crate) mod parked;
pub(crate) mod proxy_http;
