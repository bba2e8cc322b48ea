//! The list of all channel clients of the node: for pings, expiry, ended streams, and the disconnects of a drain.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::channels;
use crate::client::channels::ChannelClients;
use crate::client::channels::Slowness;
use crate::client::channels::client::ChannelClient;
use crate::client::channels::keepalive::Keepalive;
use crate::client::channels::keepalive::Verdict;
use crate::config::Ping;
use crate::hub::outbox::Queued;
use crate::hub::roster::Roster;
use crate::hub::roster::RosterGuard;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::handoff::Notice;

/// A client on the list.
pub(in crate::client::channels) struct Entry {
    client: Arc<ChannelClient>,
    keepalive: Keepalive,
}

/// The action that is due for one client.
enum Due {
    Keepalive(Verdict),
    Stale,
    Expired,
}

impl Roster<Entry> {
    /// Adds a client. While the node drains, it is disconnected at once.
    pub(super) fn add(self: &Arc<Self>, client: Arc<ChannelClient>) -> RosterGuard<Entry> {
        self.add_continued(client, Keepalive::new(Instant::now()))
    }

    /// The same for a client that is known for longer.
    pub(super) fn add_continued(
        self: &Arc<Self>,
        client: Arc<ChannelClient>,
        keepalive: Keepalive,
    ) -> RosterGuard<Entry> {
        let entry = Entry { client, keepalive };
        self.enter(entry, |entry| {
            entry.client.member.close(Disconnect::SHUTDOWN);
        })
    }

    /// Tells the edges of all clients that can be handed off that the node leaves, and disconnects the others, evenly over
    /// `spread`.
    pub(in crate::client::channels) async fn drain_or_hand_off(&self, spread: Duration) {
        let client = |entry: &Entry| Arc::clone(&entry.client);
        let leaving = Notice::Leaving.frame();
        self.drain(spread, client, |client| match client.stays() {
            None => client.member.send(&leaving),
            Some(_) => client.member.close(Disconnect::SHUTDOWN),
        })
        .await;
    }

    /// Waits for clients to be handed off, as long as they are, and for `max` at most.
    pub(in crate::client::channels) async fn wait_for_handoffs(&self, max: Duration) {
        self.wait_while_clients_leave(|entry| entry.client.stays().is_none(), max)
            .await;
    }

    /// Disconnects all clients, evenly over `spread`.
    pub(in crate::client::channels) async fn disconnect_all(&self, spread: Duration) {
        let client = |entry: &Entry| Arc::clone(&entry.client);
        self.drain(spread, client, |client| {
            client.member.close(Disconnect::SHUTDOWN);
        })
        .await;
    }

    /// The clients with most queued output, the slowest first.
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

    /// Clients with queued output.
    pub(in crate::client::channels) fn queued(&self) -> Vec<Arc<dyn Queued>> {
        let queued = self.waiting().into_iter();
        queued
            .map(|(_, client)| client as Arc<dyn Queued>)
            .collect()
    }

    /// Clients with queued output, the slowest first.
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
    fn each_queued(&self, visit: &mut dyn FnMut(&Bytes)) {
        self.member.each_queued(visit);
    }

    fn shed(&self) {
        self.member.shed();
    }
}

/// The parameters of one sweep, with the time by both clocks.
struct Sweep {
    now: Instant,
    unix_seconds: u64,
    connect_timeout: Duration,
}

impl Entry {
    pub(super) fn client(&self) -> &ChannelClient {
        &self.client
    }

    pub(super) fn keepalive(&self) -> &Keepalive {
        &self.keepalive
    }

    fn due(&mut self, sweep: &Sweep) -> Option<Due> {
        let client = &self.client;
        if client.is_departing() {
            return None;
        }
        if client.is_connect_pending() {
            let age = self.keepalive.age(sweep.now);
            return (sweep.connect_timeout <= age).then_some(Due::Stale);
        }
        if client.take_expiry(sweep.unix_seconds) {
            return Some(Due::Expired);
        }
        let ping = &client.endpoint.ping;
        let received = client.take_received();
        match self
            .keepalive
            .check(ping, client.direction, received, sweep.now)
        {
            Verdict::Keep => None,
            verdict => Some(Due::Keepalive(verdict)),
        }
    }
}

/// Visits all clients periodically until `shutdown`.
pub(in crate::client::channels) async fn sweep(
    clients: &Arc<ChannelClients>,
    pings: &[Ping],
    shutdown: CancellationToken,
) {
    let mut ticks = time::interval(interval(pings));
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    let mut streams_ended = 0;
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            now = ticks.tick() => sweep_once(clients, now).await,
        }
        let streams_ended_now = clients.streams.streams_ended();
        if streams_ended != streams_ended_now {
            streams_ended = streams_ended_now;
            remove_ended(clients).await;
        }
    }
}

/// Removes the subscriptions of streams that have ended. That is rare, so all clients are visited and no index is kept.
async fn remove_ended(clients: &ChannelClients) {
    let client = |entry: &mut Entry| Some(Arc::clone(&entry.client));
    let remove_ended = |client: Arc<ChannelClient>| client.remove_ended();
    clients.roster.visit(client, remove_ended).await;
}

async fn sweep_once(clients: &Arc<ChannelClients>, now: Instant) {
    let sweep = Sweep {
        now,
        unix_seconds: channels::unix_seconds(),
        connect_timeout: clients.config.get().limits.connect_timeout,
    };
    let mut bytes_queued = 0;
    let inspect = |entry: &mut Entry| {
        bytes_queued += entry.client.member.bytes_queued();
        let due = entry.due(&sweep)?;
        Some((Arc::clone(&entry.client), due))
    };
    let act = |(client, due): (Arc<ChannelClient>, Due)| match due {
        Due::Stale => client.member.close(Disconnect::STALE),
        Due::Keepalive(Verdict::Ping) => client.member.send(&client.member.ping()),
        Due::Keepalive(Verdict::Disconnect) => client.member.close(Disconnect::NO_CHANNEL_PONG),
        Due::Keepalive(Verdict::Keep) => {}
        Due::Expired => {
            clients.background_tasks.spawn(async move {
                Arc::clone(&client).expire().await;
                client.end_expiry();
            });
        }
    };
    clients.roster.visit(inspect, act).await;
    clients.metrics.outbox_bytes.set(bytes_queued as i64);
}

/// The sweep interval: an eighth of the shortest ping interval or timeout, so that they are accurate to about that.
fn interval(pings: &[Ping]) -> Duration {
    let shortest = pings
        .iter()
        .map(|ping| ping.interval.min(ping.timeout))
        .min();
    let eighth = shortest.unwrap_or(Duration::MAX) / 8;
    eighth.clamp(Duration::from_millis(10), Duration::from_secs(1))
}
