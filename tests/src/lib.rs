//! The harness, the runner behind `make run-proxy`, the end-to-end tests and the bench.
//!
//! - [`harness`] starts the real programs as processes of their own and talks to them over real sockets.
//! - [`runner`] is `make run-proxy`: the same processes, for a person.
//! - [`mod@bench`] is `make bench`: what the programs cost beside their rivals.

pub mod bench;
pub mod harness;
pub mod runner;
