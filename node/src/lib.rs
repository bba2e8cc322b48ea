//! A relay node: SockJS and WebSocket clients, fanned out through Redis Pub/Sub.
//!
//! ```text
//! server ─▶ http (path parsed once) ─▶ transport ─▶ session ─▶ client ─▶ hub ─▶ broker ─▶ memory | redis
//!                                               └─▶ channels ─▶ feed ─▶ hub
//!                                                          └──────┴─▶ lifecycle ─▶ stream of events, hook
//! socket ◀─ transport ◀─ outbox ◀────────────────────────────── hub ◀─ feed ◀─ broker events
//! ```
//!
//! Modules stand here in layers: each imports only what stands above it. [`run`] puts
//! them together.

// The future of a connection nests deeper than the default allows the compiler to look into.
#![recursion_limit = "256"]

// Layer 0.
mod budget;
mod channel;
mod frame;
mod grant;
mod instance;
mod jwt;
mod open_files;
mod protocol;
mod roster;
// Layer 1.
mod disconnect;
// Layer 2.
mod metrics;
mod publication;
// Layer 3.
mod config;
mod directory;
// Layer 4.
mod history;
mod logging;
mod outbox;
mod rate;
mod redis;
mod tcp;
// Layer 5.
mod auth;
mod hooks;
mod registry;
mod values;
// Layer 6.
mod lifecycle;
mod presence;
// Layer 7.
mod broker;
// Layer 8.
mod control;
// Layer 9.
mod hub;
// Layer 10.
mod feed;
// Layer 11.
mod api;
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
#[cfg(test)]
mod pieces;

pub use crate::config::Config;
pub use crate::node::RunError;
pub use crate::node::check;
pub use crate::node::run;
