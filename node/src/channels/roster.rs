//! Every channel client of the node in one list: for pings, for what expires, and for sending everyone
//! away.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::channels;
use crate::channels::ChannelClients;
use crate::channels::Slowness;
use crate::channels::beat::Beat;
use crate::channels::beat::Verdict;
use crate::channels::client::ChannelClient;
use crate::config::Ping;
use crate::disconnect::Disconnect;

/// Clients looked at under one lock, and written to between two yields.
const STRIDE: usize = 256;

/// The pause between two groups of clients that are sent away.
const DRAIN_STEP: Duration = Duration::from_millis(20);

/// All channel clients.
#[derive(Default)]
pub(super) struct Roster {
    list: Mutex<List>,
}

/// Invariant: `free` names the empty places of `entries`, each once.
#[derive(Default)]
struct List {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    draining: bool,
}

struct Entry {
    client: Arc<ChannelClient>,
    beat: Beat,
}

/// A place in the roster, until it is dropped.
pub(super) struct Place {
    roster: Arc<Roster>,
    index: usize,
}

/// What is to be done about one client.
enum Due {
    Beat(Verdict),
    Stale,
    Expired,
}

impl Roster {
    /// Adds a client. Who comes while the node drains is sent away at once.
    pub(super) fn enter(self: &Arc<Self>, client: Arc<ChannelClient>) -> Place {
        let mut list = self.list.lock();
        if list.draining {
            client.member.close(Disconnect::SHUTDOWN);
        }
        let entry = Some(Entry {
            beat: Beat::new(client.came_at),
            client,
        });
        let index = match list.free.pop() {
            Some(index) => {
                list.entries[index] = entry;
                index
            }
            None => {
                list.entries.push(entry);
                list.entries.len() - 1
            }
        };
        Place {
            roster: Arc::clone(self),
            index,
        }
    }

    /// Sends everyone away, evenly over `spread`, so that they do not all come back at once.
    pub(super) async fn drain(&self, spread: Duration) {
        let clients: Vec<_> = {
            let mut list = self.list.lock();
            list.draining = true;
            let entries = list.entries.iter().flatten();
            entries.map(|entry| Arc::clone(&entry.client)).collect()
        };
        let steps = spread.div_duration_f64(DRAIN_STEP).max(1.0);
        let group = (clients.len() as f64 / steps).ceil().max(1.0) as usize;
        for group in clients.chunks(group) {
            for part in group.chunks(STRIDE) {
                part.iter()
                    .for_each(|client| client.member.close(Disconnect::SHUTDOWN));
                task::yield_now().await;
            }
            if !spread.is_zero() {
                time::sleep(DRAIN_STEP).await;
            }
        }
    }

    /// The clients for which most waits, the slowest first.
    pub(super) fn slowest(&self, count: usize) -> Vec<Slowness> {
        let waiting = self.waiting();
        let named = waiting
            .into_iter()
            .take(count)
            .map(|(bytes_queued, client)| Slowness {
                client: client.id.to_string(),
                user: client.user(),
                transport: client.transport.as_str(),
                bytes_queued,
            });
        named.collect()
    }

    /// Sends away those for whom most waits, until what waited for them comes to `bytes`. How many that
    /// were.
    pub(super) fn relieve(&self, bytes: u64) -> usize {
        let mut freed = 0;
        let mut sent_away = 0;
        for (bytes_queued, client) in self.waiting() {
            if bytes <= freed {
                break;
            }
            client.member.close(Disconnect::SLOW);
            freed += bytes_queued as u64;
            sent_away += 1;
        }
        sent_away
    }

    /// Clients for which something waits, the slowest first.
    fn waiting(&self) -> Vec<(usize, Arc<ChannelClient>)> {
        let mut waiting: Vec<_> = {
            let list = self.list.lock();
            let entries = list.entries.iter().flatten();
            let behind = entries.map(|entry| (entry.client.member.bytes_queued(), &entry.client));
            let behind = behind.filter(|(bytes_queued, _)| 0 < *bytes_queued);
            behind
                .map(|(bytes, client)| (bytes, Arc::clone(client)))
                .collect()
        };
        waiting.sort_by_key(|(bytes_queued, _)| std::cmp::Reverse(*bytes_queued));
        waiting
    }

    /// What waits for all clients together.
    pub(super) fn bytes_queued(&self) -> usize {
        let list = self.list.lock();
        let entries = list.entries.iter().flatten();
        entries
            .map(|entry| entry.client.member.bytes_queued())
            .sum()
    }

    /// The clients of one stride; `None` behind the last.
    fn stride(&self, begin: usize) -> Option<Vec<Arc<ChannelClient>>> {
        let list = self.list.lock();
        let end = list.entries.len().min(begin + STRIDE);
        let stride = list.entries.get(begin..end);
        let stride = stride.filter(|stride| !stride.is_empty())?.iter().flatten();
        Some(stride.map(|entry| Arc::clone(&entry.client)).collect())
    }

    /// What is to be done about the clients of one stride; `None` behind the last.
    fn look(&self, begin: usize, look: &Look) -> Option<Vec<(Arc<ChannelClient>, Due)>> {
        let mut list = self.list.lock();
        let end = list.entries.len().min(begin + STRIDE);
        let stride = list
            .entries
            .get_mut(begin..end)
            .filter(|stride| !stride.is_empty())?;
        let mut due = Vec::new();
        for entry in stride.iter_mut().flatten() {
            if let Some(what) = entry.look(look) {
                due.push((Arc::clone(&entry.client), what));
            }
        }
        Some(due)
    }
}

/// The moment of a look, by both clocks.
struct Look {
    now: Instant,
    unix_seconds: u64,
    connect_timeout: Duration,
}

impl Entry {
    fn look(&mut self, look: &Look) -> Option<Due> {
        let client = &self.client;
        let age = look.now.saturating_duration_since(client.came_at);
        if client.is_outside() {
            return (look.connect_timeout <= age).then_some(Due::Stale);
        }
        if client.take_expiry(look.unix_seconds) {
            return Some(Due::Expired);
        }
        let ping = &client.endpoint.ping;
        let heard = client.take_heard();
        match self.beat.check(ping, client.direction, heard, look.now) {
            Verdict::Fine => None,
            verdict => Some(Due::Beat(verdict)),
        }
    }
}

/// Looks at all clients again and again until `shutdown`.
pub(super) async fn sweep(
    clients: &Arc<ChannelClients>,
    pings: &[Ping],
    shutdown: CancellationToken,
) {
    let mut looks = time::interval(interval(pings));
    looks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let mut announced = 0;
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            now = looks.tick() => sweep_once(clients, now).await,
        }
        let announced_now = clients.feeds.announced();
        if announced != announced_now {
            announced = announced_now;
            leave_ended(clients).await;
        }
    }
}

/// Gives up the seats of feeds that have ended. That is rare, so all clients are asked and no seat is listed
/// anywhere.
async fn leave_ended(clients: &ChannelClients) {
    let mut begin = 0;
    while let Some(stride) = clients.roster.stride(begin) {
        stride.iter().for_each(|client| client.leave_ended());
        begin += STRIDE;
        task::yield_now().await;
    }
}

async fn sweep_once(clients: &Arc<ChannelClients>, now: Instant) {
    let look = Look {
        now,
        unix_seconds: channels::unix_seconds(),
        connect_timeout: clients.config.limits.connect_timeout,
    };
    let mut begin = 0;
    while let Some(due) = clients.roster.look(begin, &look) {
        for (client, what) in due {
            match what {
                Due::Stale => client.member.close(Disconnect::STALE),
                Due::Beat(Verdict::Ping) => client.member.send(&client.member.ping()),
                Due::Beat(Verdict::GiveUp) => client.member.close(Disconnect::NO_ANSWER),
                Due::Beat(Verdict::Fine) => {}
                Due::Expired => {
                    clients.errands.spawn(async move {
                        Arc::clone(&client).expire().await;
                        client.end_expiry();
                    });
                }
            }
        }
        begin += STRIDE;
        task::yield_now().await;
    }
    clients
        .metrics
        .outbox_bytes
        .set(clients.roster.bytes_queued() as i64);
}

/// How often to look, so that the shortest of all intervals is kept to about an eighth.
fn interval(pings: &[Ping]) -> Duration {
    let shortest = pings
        .iter()
        .map(|ping| ping.interval.min(ping.timeout))
        .min();
    let eighth = shortest.unwrap_or(Duration::MAX) / 8;
    eighth.clamp(Duration::from_millis(10), Duration::from_secs(1))
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut list = self.roster.list.lock();
        let entry = list.entries[self.index].take();
        list.free.push(self.index);
        drop(list);
        drop(entry); // Perhaps the last handle of the client: dropped outside the lock.
    }
}
