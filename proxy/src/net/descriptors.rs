//! Divides the file descriptors of the process by purpose.

/// Listeners, logs, and the descriptors of each runtime.
const FIXED: usize = 64;

/// The descriptors that every edge needs, including a few for clients.
const ALWAYS_OPEN: usize = 64;

/// The descriptors of one thread's runtime.
const EACH_THREAD: usize = 4;

/// The most probes at a time.
pub(crate) const PROBES_MAX: usize = 64;

/// The most connections to the admin listener.
pub(crate) const ADMIN_MAX: usize = 32;

/// The most connections to the admin socket.
pub(crate) const ADMIN_SOCKET_MAX: usize = 8;

/// For lookups of host names.
const LOOKUPS: usize = 16;

/// What is not divided.
const RESERVED: usize = FIXED + PROBES_MAX + ADMIN_MAX + ADMIN_SOCKET_MAX + LOOKUPS;

/// The most connections over the limit that get a response at a time, if there are enough descriptors; the others are closed
/// at once.
const OVER_LIMIT_MAX: usize = 256;

/// The most idle backend connections, if there are enough descriptors: enough for a busy edge, and few compared to its clients.
const IDLE_UPSTREAM_MAX: usize = 1024;

/// The most handoffs at a time, if there are enough descriptors: each has a second connection to a backend. More at a time would
/// not be done sooner, but each would take longer, and its client waits for the last part of it.
const HANDOFFS_MAX: usize = 128;

/// The number of descriptors for each purpose.
///
/// Invariant: they add up to at most `files`, unless `files` is too small to be divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileBudget {
    pub(crate) files: usize,
    /// Connections over the limit that get a response.
    pub(crate) over_limit: usize,
    /// Idle connections to backends, over all threads.
    pub(crate) idle_upstream: usize,
    /// Connections to other backends over which tunnels continue.
    pub(crate) handoffs: usize,
    /// Client connections, each counted with one backend connection, as tunnels have.
    pub(crate) connections: usize,
}

impl FileBudget {
    /// Divides `files` descriptors.
    pub(crate) fn new(files: u64) -> Self {
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let over_limit = (files / 64).min(OVER_LIMIT_MAX);
        let handoffs = (files / 64).min(HANDOFFS_MAX);
        let rest = files.saturating_sub(RESERVED + over_limit + handoffs);
        let idle_upstream = (rest / 8).min(IDLE_UPSTREAM_MAX);
        Self {
            files,
            over_limit,
            idle_upstream,
            handoffs: handoffs.max(1),
            connections: ((rest - idle_upstream) / 2).max(1),
        }
    }

    /// The fewest descriptors with which the edge works.
    pub(crate) fn needed(threads: usize, listeners: usize) -> usize {
        ALWAYS_OPEN + listeners + threads.saturating_mul(EACH_THREAD)
    }

    /// Idle backend connections for each of `threads` of a Pingora server, which do not share them.
    pub(crate) fn idle_upstream_each(&self, threads: usize) -> usize {
        (self.idle_upstream / threads.max(1)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_adds_up_to_the_descriptors_there_are() {
        for files in [256, 512, 1000, 1024, 4096, 65_536, 1_000_000, 1 << 40] {
            let budget = FileBudget::new(files);
            let shared = budget.over_limit + budget.idle_upstream + budget.handoffs;
            let all = RESERVED + shared + 2 * budget.connections;
            assert!(all <= budget.files, "{budget:?}");
            assert!(budget.files - all < 2, "nothing is left over: {budget:?}");
            assert!(budget.idle_upstream <= budget.connections, "{budget:?}");
        }
    }

    #[test]
    fn with_very_few_descriptors_there_still_is_a_connection() {
        for files in [0, 1, 144, 150] {
            let budget = FileBudget::new(files);
            assert!(0 < budget.connections && 0 < budget.handoffs, "{budget:?}");
            assert_eq!(budget.idle_upstream_each(64), 1);
        }
        assert!(1_000_000 < FileBudget::new(u64::MAX).connections);
    }

    #[test]
    fn idle_connections_are_divided_among_the_threads() {
        let budget = FileBudget::new(1_000_000);
        assert_eq!(budget.idle_upstream_each(4) * 4, budget.idle_upstream);
    }
}
