//! How the descriptors that the process may have are shared out.

/// Listeners, logs, and what each runtime opens for itself.
const FIXED: usize = 64;

/// What is open in any edge, and a few for clients; and what each thread opens for itself.
const ALWAYS_OPEN: usize = 64;
const EACH_THREAD: usize = 4;

/// How many probes are under way at a time.
pub(crate) const PROBES_MAX: usize = 64;

/// Connections to the admin listener.
pub(crate) const ADMIN_MAX: usize = 32;

/// Lookups of host names.
const LOOKUPS: usize = 16;

/// How many connections over the limit may be answered at a time where there are descriptors in plenty; the others are
/// closed at once.
const OVER_LIMIT_MAX: usize = 256;

/// Idle connections to backends where there are descriptors in plenty: enough for a busy edge, and few beside its clients'.
const IDLE_UPSTREAM_MAX: usize = 1024;

/// What there is for each purpose.
///
/// Invariant: it adds up to at most `files`, unless `files` is so few that there is nothing to share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileBudget {
    pub(crate) files: usize,
    /// Connections over the limit that are told so.
    pub(crate) over_limit: usize,
    /// Idle connections to backends, over all threads.
    pub(crate) idle_upstream: usize,
    /// Client connections that each may have one to a backend, as tunnels do.
    pub(crate) connections: usize,
}

impl FileBudget {
    /// Shares out `files` descriptors.
    pub(crate) fn new(files: u64) -> Self {
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let over_limit = (files / 64).min(OVER_LIMIT_MAX);
        let rest = files.saturating_sub(FIXED + PROBES_MAX + ADMIN_MAX + LOOKUPS + over_limit);
        let idle_upstream = (rest / 8).min(IDLE_UPSTREAM_MAX);
        Self {
            files,
            over_limit,
            idle_upstream,
            connections: ((rest - idle_upstream) / 2).max(1),
        }
    }

    /// Without so many the edge does not work: runtimes open some of their own, and there have to be a few for clients.
    pub(crate) fn needed(threads: usize, listeners: usize) -> usize {
        ALWAYS_OPEN + listeners + threads.saturating_mul(EACH_THREAD)
    }

    /// Idle connections to backends for each of `threads` of a Pingora server, which do not share them.
    pub(crate) fn idle_upstream_each(&self, threads: usize) -> usize {
        (self.idle_upstream / threads.max(1)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_out_is_no_more_than_there_is() {
        for files in [256, 512, 1000, 1024, 4096, 65_536, 1_000_000, 1 << 40] {
            let budget = FileBudget::new(files);
            let fixed = FIXED + PROBES_MAX + ADMIN_MAX + LOOKUPS;
            let all = fixed + budget.over_limit + budget.idle_upstream + 2 * budget.connections;
            assert!(all <= budget.files, "{budget:?}");
            assert!(budget.files - all < 2, "nothing is left over: {budget:?}");
            assert!(budget.idle_upstream <= budget.connections, "{budget:?}");
        }
    }

    #[test]
    fn few_descriptors_are_better_than_no_edge() {
        for files in [0, 1, 144, 150] {
            let budget = FileBudget::new(files);
            assert!(0 < budget.connections, "{budget:?}");
            assert_eq!(budget.idle_upstream_each(64), 1);
        }
        assert!(1_000_000 < FileBudget::new(u64::MAX).connections);
    }

    #[test]
    fn threads_share_the_idle_connections() {
        let budget = FileBudget::new(1_000_000);
        assert_eq!(budget.idle_upstream_each(4) * 4, budget.idle_upstream);
    }
}
