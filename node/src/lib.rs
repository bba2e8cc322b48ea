//! A relay node: SockJS, WebSocket and channel clients, fanned out through Redis Pub/Sub.
//!
//! The way of a message:
//!
//! ```text
//! socket ─▶ server ─▶ server::routing ─▶ transport ─▶ client::session ─▶ client::relay ────▶ hub ─▶ broker ─▶ memory | redis
//!           (accept)   (path, origin)        │                                                 ▲
//!                                            └──────▶ client::channels ─▶ stream (position, recovery)
//!                                                          └─▶ hooks, auth, cluster, lifecycle
//! socket ◀─ transport ◀─ hub::outbox ◀─ hub ◀─ stream ◀─ broker events
//! ```
//!
//! The commands `gentoken` and `checktoken` are in `tokens`, above `auth`.
//!
//! Imports point down: `node` · `server` · `transport` · `handoff` · `client` · `stream` · `lifecycle` · `cluster`, `hub` · `broker`, `hooks` ·
//! `auth`, `logging`, `redis` · `config`, `metrics` · `jwt`, `protocol`. `make structure` prints them as they are.
//!
//! [`run`] puts them together.

// The future of a connection nests deeper than the default allows the compiler to look into.
#![recursion_limit = "256"]

mod auth;
mod broker;
mod client;
mod cluster;
mod config;
mod handoff;
mod hooks;
mod hub;
mod jwt;
mod lifecycle;
mod logging;
mod metrics;
mod node;
mod protocol;
mod redis;
mod server;
mod stream;
mod tokens;
mod transport;

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
pub use crate::tokens::TokenCheck;
pub use crate::tokens::TokenError;
pub use crate::tokens::TokenRequest;
pub use crate::tokens::Verdict;
pub use crate::tokens::check_token;
pub use crate::tokens::generate_token;
