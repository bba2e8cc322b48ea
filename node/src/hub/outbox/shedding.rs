//! Load shedding: disconnects the clients whose queues hold the most memory that is not shared.
//!
//! A batch that is queued for a thousand clients is in memory once. The cost of one client is its share of it, so no
//! client is disconnected for memory that would not be freed.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

/// Clients that cost less are not disconnected.
const CLIENT_BYTES_MIN: u64 = 1 << 10;

/// A client with a queue.
pub(crate) trait Queued: Send + Sync {
    /// Calls `visit` with everything that is queued. Must not take long.
    fn each_queued(&self, visit: &mut dyn FnMut(&Bytes));

    /// Disconnects the client as slow, and drops what is queued for it.
    fn shed(&self);
}

/// The result of shedding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Shed {
    /// Clients that were disconnected.
    pub(crate) clients: usize,
    /// Their cost, in bytes.
    pub(crate) bytes: u64,
}

/// Disconnects the slowest of `clients`, until their summed cost reaches `bytes`.
pub(crate) fn shed(clients: &[Arc<dyn Queued>], bytes: u64) -> Shed {
    let mut holders: HashMap<usize, u64> = HashMap::new();
    for client in clients {
        client.each_queued(&mut |queued| {
            // Most are queued for one client only and need no entry.
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
        fn each_queued(&self, visit: &mut dyn FnMut(&Bytes)) {
            self.queued.iter().for_each(visit);
        }

        fn shed(&self) {
            assert!(!self.is_away.swap(true, Ordering::Relaxed), "once");
        }
    }

    fn bytes(size: usize) -> Bytes {
        Bytes::from(vec![b'x'; size])
    }

    /// Returns the result, and for each client whether it was disconnected.
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
    fn the_slowest_are_disconnected_until_enough_is_freed() {
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
    fn shared_messages_count_once() {
        let shared = bytes(500 * KIB);
        let mut queued: Vec<Vec<Bytes>> = vec![vec![shared.clone()]; 1000];
        queued.push(vec![shared, bytes(4 * KIB)]);
        let (shed, gone) = shed_of(queued, 100 * KIB);
        assert_eq!(shed.clients, 1, "those that hold what would kind may kind");
        assert!(gone[1000]);
        let shared = bytes(500 * KIB);
        let queued = vec![vec![shared.clone()], vec![shared]];
        let (shed, _) = shed_of(queued, 300 * KIB);
        let bytes = 500 * KIB as u64;
        assert_eq!(shed, Shed { clients: 2, bytes });
    }
}
