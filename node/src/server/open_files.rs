//! The limits of connections that the process's descriptors allow.

/// Descriptors for other purposes than clients: the listener, the runtime, connections to Redis.
const RESERVED: u64 = 128;

/// What a full node has besides its clients' connections, where there are descriptors in plenty: requests of operators, of the
/// server API, and connections whose purpose is not known yet.
const OPERATORS: usize = 16;
const API: usize = 64;
const UNDECIDED: usize = 256;

/// One in so many of the descriptors goes to these three at most.
const RESERVE_PART: u64 = 8;

/// For so many clients there is one connection more for requests of known sessions, within these bounds.
const CLIENTS_PER_SESSION: usize = 16;
const SESSIONS: (usize, usize) = (16, 1024);

/// How many connections there may be of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConnectionLimits {
    /// Any requests, WebSockets among them. When these are taken, the node is full.
    pub(crate) clients: usize,
    /// Requests of existing sessions, when the node is full.
    pub(crate) sessions: usize,
    /// Requests of the server API, when the node is full.
    pub(crate) api: usize,
    /// Requests of operators, when the node is full.
    pub(crate) operators: usize,
    /// Those whose first request is not known yet, when the node is full.
    pub(crate) undecided: usize,
}

impl ConnectionLimits {
    /// The least number of open files with which a node works.
    pub(crate) const FILES_NEEDED: u64 = 64;

    /// What there is room for in `files` descriptors: each connection takes one.
    pub(crate) fn fitting(files: u64) -> Self {
        let all = OPERATORS + API + UNDECIDED;
        let reserve = usize::try_from(files / RESERVE_PART).map_or(all, |part| part.min(all));
        let share = |most: usize| (reserve * most / all).max(1);
        let (operators, api, undecided) = (share(OPERATORS), share(API), share(UNDECIDED));
        let rest = usize::try_from(files.saturating_sub(RESERVED)).unwrap_or(usize::MAX);
        let rest = rest.saturating_sub(operators + api + undecided);
        let (least, most) = SESSIONS;
        let sessions = (rest / (CLIENTS_PER_SESSION + 1)).clamp(least, most);
        Self {
            clients: rest.saturating_sub(sessions).max(1),
            sessions,
            api,
            operators,
            undecided,
        }
    }

    /// The same with at most `clients`.
    pub(crate) fn with_clients(self, clients: usize) -> Self {
        Self {
            clients: self.clients.min(clients),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_of_connections_fit_together() {
        for files in [256, 512, 1000, 1024, 4096, 65_536, 1_000_000] {
            let limits = ConnectionLimits::fitting(files);
            let ConnectionLimits {
                clients,
                sessions,
                api,
                operators,
                undecided,
            } = limits;
            let all = clients + sessions + api + operators + undecided;
            assert_eq!(all as u64, files - RESERVED, "{limits:?}");
            assert!(all * 3 / 5 < clients, "{limits:?}");
        }
    }

    #[test]
    fn few_descriptors_are_better_than_no_node() {
        for files in [0, 10, 130] {
            let limits = ConnectionLimits::fitting(files);
            assert_eq!(limits.clients, 1);
            assert!(0 < limits.operators && 0 < limits.undecided);
        }
        assert!(1 << 30 < ConnectionLimits::fitting(u64::MAX).clients);
    }

    #[test]
    fn the_settings_may_allow_fewer_clients_and_no_more() {
        let fitting = ConnectionLimits::fitting(4096);
        assert_eq!(fitting.with_clients(10).clients, 10);
        assert_eq!(fitting.with_clients(10).sessions, fitting.sessions);
        assert_eq!(fitting.with_clients(100_000), fitting);
    }
}
