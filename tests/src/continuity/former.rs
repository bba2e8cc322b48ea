//! What is left of the former processes some time after others took their place.

use std::{net::SocketAddr, time::Duration};

use crate::harness::{connections, memory, process_group};

/// So long after the upgrade or reload.
pub const LOOK_AFTER: Duration = Duration::from_secs(5);

/// Former processes that have not ended, and what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Former {
    /// How many there are.
    pub processes: usize,
    /// Their connections of clients.
    pub connections: usize,
    /// Their memory in bytes (Pss).
    pub bytes: u64,
}

impl Former {
    /// Those of `pids` that run now; clients are connected to one of `listeners`.
    #[must_use]
    pub fn of(pids: &[i32], listeners: &[SocketAddr]) -> Self {
        let pids = pids.iter().copied();
        let running: Vec<i32> = pids.filter(|pid| process_group::is_running(*pid)).collect();
        // One may end while it is looked at, and then holds nothing.
        let memory = running.iter().map(|pid| memory::pss(*pid).unwrap_or(0));
        Self {
            processes: running.len(),
            connections: connections::held_by(&running, listeners),
            bytes: memory.sum(),
        }
    }
}
