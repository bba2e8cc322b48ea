//! How much is let in: connections, handshakes, requests and tunnels, in all and for each client address; retries; log lines.
//!
//! Plain types: nothing here waits, and time is passed in. Whoever is refused answers at once.

mod address;
mod gate;
mod limit;
mod rate;
mod retries;
mod seldom;
mod total;

pub(crate) use crate::limits::address::Place;
pub(crate) use crate::limits::gate::BackendLimit;
pub(crate) use crate::limits::gate::Gate;
pub(crate) use crate::limits::gate::Pass;
pub(crate) use crate::limits::limit::Limit;
pub(crate) use crate::limits::retries::RetryBudget;
pub(crate) use crate::limits::seldom::Seldom;
pub(crate) use crate::limits::total::Permit;
