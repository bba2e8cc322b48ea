//! Real processes for tests, the runner and the bench: Redis, nodes, the edge, and clients to talk to them.
//!
//! Everything listens on a port that the kernel chose and that the program's own `listening` line tells. Every wait is on
//! a condition and has a deadline. Dropping a [`Process`](process::Process) ends it, so no test leaves one behind, and a
//! test that fails prints the end of the log of each.

pub mod application;
pub mod backend;
pub mod channels;
pub mod clients;
pub mod cluster;
pub mod conformance;
pub mod connections;
pub mod delayed;
pub mod descriptors;
pub mod edge;
pub mod environment;
pub mod faulty;
pub mod herd;
pub mod http;
pub mod limits;
pub mod listening;
pub mod load;
pub mod log_pipe;
pub mod loopback;
pub mod memory;
pub mod namespace;
pub mod node;
pub mod output;
pub mod process;
pub mod process_group;
pub mod programs;
pub mod redis;
pub mod redis_cluster;
pub mod scratch;
pub mod segments;
pub mod sentinel;
pub mod server_api;
pub mod settings;
pub mod site;
pub mod subscriber;
pub mod tls;
pub mod wait;
pub mod websocket;
