//! A relay node: SockJS and WebSocket clients, fanned out through Redis Pub/Sub.
//!
//! ```text
//! server ─▶ http (path parsed once) ─▶ transport ─▶ session ─▶ client ─▶ hub ─▶ broker ─▶ memory | redis
//!                                               └─▶ channels ─▶ feed ─▶ hub
//! socket ◀─ transport ◀─ outbox ◀────────────────────────────── hub ◀─ feed ◀─ broker events
//! ```
//!
//! Modules stand here in layers: each imports only what stands above it. [`run`] puts
//! them together.

// Layer 0.
mod budget;
mod channel;
mod frame;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod grant;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod instance;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod jwt;
mod open_files;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod protocol;
mod roster;
// Layer 1.
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod disconnect;
// Layer 2.
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod metrics;
mod publication;
// Layer 3.
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod config;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod directory;
// Layer 4.
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod history;
mod logging;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod outbox;
mod rate;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod redis;
mod tcp;
// Layer 5.
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod auth;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod hooks;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod registry;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod values;
// Layer 6.
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod presence;
// Layer 7.
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod broker;
// Layer 8.
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod control;
// Layer 9.
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod hub;
// Layer 10.
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod feed;
// Layer 11.
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod api;
#[allow(dead_code, unused_imports, reason = "channel clients are on their way")]
mod channels;
mod client;
// Layer 12.
mod session;
// Layer 13.
mod transport;
// Layer 14.
mod admin;
mod http;
// Layer 15.
mod server;
// Layer 16.
mod node;
// Above all that it calls.
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzz;

pub use crate::config::Config;
pub use crate::node::RunError;
pub use crate::node::run;
