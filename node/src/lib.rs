//! A relay node: SockJS and WebSocket clients, fanned out through Redis Pub/Sub.
//!
//! ```text
//! server ─▶ http (path parsed once) ─▶ transport ─▶ session ─▶ client ─▶ hub ─▶ broker ─▶ memory | redis
//! socket ◀─ transport ◀─ outbox ◀────────────────────────────── hub ◀─ broker events
//! ```
//!
//! Modules stand here in layers: each imports only what stands above it. [`run`] puts
//! them together.

// Layer 0.
mod channel;
#[allow(dead_code, reason = "channel clients are on their way")]
mod disconnect;
#[allow(dead_code, reason = "channel clients are on their way")]
mod frame;
#[allow(dead_code, reason = "channel clients are on their way")]
mod grant;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod instance;
mod jwt;
#[allow(dead_code, reason = "channel clients are on their way")]
mod metrics;
mod open_files;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod protocol;
mod publication;
// Layer 1.
#[allow(dead_code, reason = "channel clients are on their way")]
mod config;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod directory;
// Layer 2.
#[allow(dead_code, reason = "channel clients are on their way")]
mod history;
mod logging;
#[allow(dead_code, reason = "channel clients are on their way")]
mod outbox;
mod redis;
mod tcp;
// Layer 3.
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod auth;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod hooks;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod presence;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod registry;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod values;
// Layer 4.
#[allow(dead_code, reason = "channel clients are on their way")]
mod broker;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod control;
// Layer 5.
#[allow(dead_code, reason = "channel clients are on their way")]
mod hub;
// Between them.
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod feed;
// Layer 6.
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod api;
mod client;
// Layer 7.
mod session;
// Layer 8.
mod transport;
// Layer 9.
mod admin;
mod http;
// Layer 10.
mod server;
// Layer 11.
mod node;
// Above all that it calls.
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzz;

pub use crate::config::Config;
pub use crate::node::RunError;
pub use crate::node::run;
