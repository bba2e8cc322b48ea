//! The running edge: its threads, listeners and background tasks, from start to shutdown.
//!
//! Owns the process: [`components`] builds everything once from the configuration, [`listeners`] accept connections and hand them
//! to the threads in [`workers`], [`app`] serves each connection until it ends. [`reload`] swaps the configuration, [`discovery`]
//! adds and removes backends, [`admin`] shows the state to operators, [`shutdown`] drains and ends the process, [`supervisor`]
//! restarts a background task that failed. [`logging`] writes the program log.
//!
//! Never decides anything about a request: that is [`request`](crate::request).
//!
//! Invariant: every task has an owner that waits for it, and the end of a task that others rely on is never swallowed.

pub(crate) mod admin;
pub(crate) mod app;
pub(crate) mod components;
pub(crate) mod discovery;
pub(crate) mod listeners;
pub(crate) mod logging;
pub(crate) mod reload;
pub(crate) mod shutdown;
pub(crate) mod supervisor;
pub(crate) mod workers;
