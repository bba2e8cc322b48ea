//! Every channel client of the node in one list: for pings, for what expires or has ended, and for sending
//! everyone away.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::channels;
use crate::client::channels::ChannelClients;
use crate::client::channels::Slowness;
use crate::client::channels::beat::Beat;
use crate::client::channels::beat::Verdict;
use crate::client::channels::client::ChannelClient;
use crate::config::Ping;
use crate::hub::outbox::Queued;
use crate::hub::roster::Place;
use crate::hub::roster::Roster;
use crate::protocol::disconnect::Disconnect;

/// A client on the list.
pub(in crate::client::channels) struct Entry {
    client: Arc<ChannelClient>,
    beat: Beat,
}

/// What is to be done about one client.
enum Due {
    Beat(Verdict),
    Stale,
    Expired,
}

impl Roster<Entry> {
    /// Adds a client. Who comes while the node drains is sent away at once.
    pub(super) fn add(self: &Arc<Self>, client: Arc<ChannelClient>) -> Place<Entry> {
        let entry = Entry {
            beat: Beat::new(Instant::now()),
            client,
        };
        self.enter(entry, |entry| {
            entry.client.member.close(Disconnect::SHUTDOWN);
        })
    }

    /// Sends everyone away, evenly over `spread`.
    pub(in crate::client::channels) async fn send_all_away(&self, spread: Duration) {
        let client = |entry: &Entry| Arc::clone(&entry.client);
        self.drain(spread, client, |client| {
            client.member.close(Disconnect::SHUTDOWN);
        })
        .await;
    }

    /// The clients for which most waits, the slowest first.
    pub(in crate::client::channels) fn slowest(&self, count: usize) -> Vec<Slowness> {
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

    /// Clients for which something waits.
    pub(in crate::client::channels) fn queued(&self) -> Vec<Arc<dyn Queued>> {
        let queued = self.waiting().into_iter();
        queued
            .map(|(_, client)| client as Arc<dyn Queued>)
            .collect()
    }

    /// Clients for which something waits, the slowest first.
    fn waiting(&self) -> Vec<(usize, Arc<ChannelClient>)> {
        let mut waiting = self.collect(|entry| {
            let bytes_queued = entry.client.member.bytes_queued();
            (0 < bytes_queued).then(|| (bytes_queued, Arc::clone(&entry.client)))
        });
        waiting.sort_by_key(|(bytes_queued, _)| std::cmp::Reverse(*bytes_queued));
        waiting
    }
}

impl Queued for ChannelClient {
    fn each_queued(&self, look: &mut dyn FnMut(&Bytes)) {
        self.member.each_queued(look);
    }

    fn shed(&self) {
        self.member.shed();
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
        if client.is_outside() {
            let age = self.beat.age(look.now);
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
pub(in crate::client::channels) async fn sweep(
    clients: &Arc<ChannelClients>,
    pings: &[Ping],
    shutdown: CancellationToken,
) {
    let mut looks = time::interval(interval(pings));
    looks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let mut feeds_over = 0;
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            now = looks.tick() => sweep_once(clients, now).await,
        }
        let feeds_over_now = clients.feeds.feeds_over();
        if feeds_over != feeds_over_now {
            feeds_over = feeds_over_now;
            leave_ended(clients).await;
        }
    }
}

/// Gives up the seats of feeds that have ended. That is rare, so all clients are asked and no seat is listed
/// anywhere.
async fn leave_ended(clients: &ChannelClients) {
    let client = |entry: &mut Entry| Some(Arc::clone(&entry.client));
    let leave_ended = |client: Arc<ChannelClient>| client.leave_ended();
    clients.roster.visit(client, leave_ended).await;
}

async fn sweep_once(clients: &Arc<ChannelClients>, now: Instant) {
    let look = Look {
        now,
        unix_seconds: channels::unix_seconds(),
        connect_timeout: clients.config.get().limits.connect_timeout,
    };
    let mut bytes_queued = 0;
    let look = |entry: &mut Entry| {
        bytes_queued += entry.client.member.bytes_queued();
        let due = entry.look(&look)?;
        Some((Arc::clone(&entry.client), due))
    };
    let act = |(client, due): (Arc<ChannelClient>, Due)| match due {
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
    };
    clients.roster.visit(look, act).await;
    clients.metrics.outbox_bytes.set(bytes_queued as i64);
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
