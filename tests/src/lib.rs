//! The harness, the runner behind `make run-proxy`, the end-to-end tests and the bench.
//!
//! - [`harness`] starts the real programs as processes of their own and talks to them over real sockets.
//! - [`runner`] is `make run-proxy`: the same processes, for a person.
//! - [`chaos`] is `make chaos`: faults under load, and a checker of what each client saw.
//! - [`surroundings`] is `make surroundings`: the same load through the edge, while what the programs stand on fails.
//! - [`handoff_faults`] is `make handoff-faults`: clients are handed off between nodes, and in each round something fails.
//! - [`continuity`] is `make continuity`: nodes restart, the edge is replaced and a node is added, and what clients notice of it.
//! - [`mod@bench`] is `make bench`: what the programs cost beside their rivals.

pub mod bench;
pub mod chaos;
pub mod continuity;
pub mod handoff_faults;
pub mod harness;
pub mod runner;
pub mod surroundings;
