//! Which clients have to go so that memory is given back: those for whom most waits that nobody else holds.
//!
//! A batch that waits for a thousand clients is in memory once. What one of them costs is its part of it, so
//! nobody is sent away for memory that would stay.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

/// The least that one client has to cost to be sent away.
const CLIENT_BYTES_MIN: u64 = 1 << 10;

/// A client for which something may wait.
pub(crate) trait Queued: Send + Sync {
    /// Looks at all that waits. Must not take long.
    fn each_queued(&self, look: &mut dyn FnMut(&Bytes));

    /// Sends the client away as slow. What waits for it is dropped.
    fn shed(&self);
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Shed {
    /// Clients that were sent away.
    pub(crate) clients: usize,
    /// What waited for them alone, in bytes.
    pub(crate) bytes: u64,
}

/// Sends the slowest of `clients` away, until what only they held comes to `bytes`.
pub(crate) fn shed(clients: &[Arc<dyn Queued>], bytes: u64) -> Shed {
    let mut holders: HashMap<usize, u64> = HashMap::new();
    for client in clients {
        client.each_queued(&mut |queued| {
            // Most are held by one client alone, and need no entry.
            if !queued.is_unique() {
                *holders.entry(queued.as_ptr() as usize).or_default() += 1;
            }
        });
    }
    let cost = |client: &Arc<dyn Queued>| {
        let mut cost = 0;
        client.each_queued(&mut |queued| {
            let holders = holders.get(&(queued.as_ptr() as usize));
            cost += queued.len() as u64 / holders.copied().unwrap_or(1).max(1);
        });
        cost
    };
    let costs = clients.iter().map(|client| (cost(client), client));
    let mut costs: Vec<_> = costs
        .filter(|(cost, _)| CLIENT_BYTES_MIN <= *cost)
        .collect();
    costs.sort_by_key(|(cost, _)| Reverse(*cost));
    let mut shed = Shed::default();
    for (cost, client) in costs {
        if bytes <= shed.bytes {
            break;
        }
        client.shed();
        shed.bytes += cost;
        shed.clients += 1;
    }
    shed
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering;

    use super::*;

    const KIB: usize = 1 << 10;

    struct Client {
        queued: Vec<Bytes>,
        is_away: AtomicBool,
    }

    impl Queued for Client {
        fn each_queued(&self, look: &mut dyn FnMut(&Bytes)) {
            self.queued.iter().for_each(look);
        }

        fn shed(&self) {
            assert!(!self.is_away.swap(true, Ordering::Relaxed), "once");
        }
    }

    fn bytes(size: usize) -> Bytes {
        Bytes::from(vec![b'x'; size])
    }

    /// What came of it, and who had to go.
    fn shed_of(queued: Vec<Vec<Bytes>>, bytes: usize) -> (Shed, Vec<bool>) {
        let client = |queued| {
            Arc::new(Client {
                queued,
                is_away: AtomicBool::new(false),
            })
        };
        let clients: Vec<Arc<Client>> = queued.into_iter().map(client).collect();
        let candidates: Vec<_> = clients
            .iter()
            .map(|client| Arc::clone(client) as Arc<dyn Queued>)
            .collect();
        let shed = shed(&candidates, bytes as u64);
        let away = clients
            .iter()
            .map(|client| client.is_away.load(Ordering::Relaxed));
        (shed, away.collect())
    }

    #[test]
    fn the_slowest_go_until_it_is_enough() {
        let queued = || {
            vec![
                vec![bytes(5 * KIB)],
                vec![bytes(9 * KIB)],
                vec![bytes(7 * KIB)],
            ]
        };
        for (needed, away) in [
            (1, [false, true, false]),
            (9 * KIB, [false, true, false]),
            (9 * KIB + 1, [false, true, true]),
            (100 * KIB, [true, true, true]),
        ] {
            let (shed, gone) = shed_of(queued(), needed);
            assert_eq!(gone, away, "{needed}");
            assert_eq!(shed.clients, gone.iter().filter(|gone| **gone).count());
        }
    }

    #[test]
    fn what_many_share_counts_once() {
        let shared = bytes(500 * KIB);
        let mut queued: Vec<Vec<Bytes>> = vec![vec![shared.clone()]; 1000];
        queued.push(vec![shared, bytes(4 * KIB)]);
        let (shed, gone) = shed_of(queued, 100 * KIB);
        assert_eq!(shed.clients, 1, "those that hold what would stay may stay");
        assert!(gone[1000]);
        let shared = bytes(500 * KIB);
        let queued = vec![vec![shared.clone()], vec![shared]];
        let (shed, _) = shed_of(queued, 300 * KIB);
        let bytes = 500 * KIB as u64;
        assert_eq!(shed, Shed { clients: 2, bytes });
    }
}
