//! The running edge: its threads, listeners and background tasks, from start to shutdown.
//!
//! Owns the process: [`components`] builds everything once from the configuration, [`listeners`] accept connections and dispatch them
//! to the threads in [`workers`], [`app`] serves each connection until it ends. [`reload`] swaps the configuration, or asks
//! for a process that takes over ([`successors`]), [`discovery`] adds and removes backends, [`drains`] closes the tunnels of single
//! backends, [`rebalance`] those that are over a share, [`admin`] shows the state to operators and lets them do what is in [`actions`],
//! [`shutdown`] drains and ends the process, [`supervisor`] restarts a background task that failed,
//! [`watchdog`] reports that the process works. [`logging`] writes the program log.
//!
//! Decides nothing about a request: [`request`](crate::request) does.
//!
//! Invariant: every task has an owner that waits for it, and a background task that ends or panics is logged and restarted.

pub(crate) mod actions;
pub(crate) mod admin;
pub(crate) mod app;
pub(crate) mod components;
pub(crate) mod discovery;
pub(crate) mod drains;
pub(crate) mod listeners;
pub(crate) mod logging;
pub(crate) mod rebalance;
pub(crate) mod reload;
#[cfg(test)]
mod scene;
pub(crate) mod shutdown;
pub(crate) mod successors;
pub(crate) mod supervisor;
pub(crate) mod watchdog;
pub(crate) mod workers;
