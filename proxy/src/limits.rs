//! Limits on connections, handshakes, requests and tunnels, in total and per client address; on retries; on log lines.
//!
//! Plain types: nothing here waits, and time is passed in. The caller rejects what a limit does not allow.

mod address;
mod gate;
mod limit;
mod rate;
mod retries;
mod throttled_log;
mod total;

pub(crate) use crate::limits::address::AddressPermit;
pub(crate) use crate::limits::gate::BackendLimit;
pub(crate) use crate::limits::gate::Gate;
pub(crate) use crate::limits::gate::Permits;
pub(crate) use crate::limits::limit::Limit;
pub(crate) use crate::limits::retries::RetryBudget;
pub(crate) use crate::limits::throttled_log::ThrottledLog;
pub(crate) use crate::limits::total::Permit;
