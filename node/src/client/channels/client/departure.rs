//! This node hands a channel client off to another one.
//!
//! From the moment that its edge asks for it until it has left or stays, nothing changes the client: it sends nothing (the
//! edge does not read from it), it is not pinged, nothing of it expires, and control commands wait. They are executed here
//! if it stays, and passed on to the other node if it has left.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future;
use tokio::sync::oneshot;
use tokio::time;
use tokio::time::Instant;

use crate::broker::Shard;
use crate::client::channels::client::Admitted;
use crate::client::channels::client::ChannelClient;
use crate::client::channels::client::roster::Entry;
use crate::client::channels::snapshot;
use crate::client::channels::snapshot::ClientState;
use crate::client::channels::snapshot::HeaderState;
use crate::client::channels::snapshot::SubscriptionState;
use crate::client::channels::state::AuthSource;
use crate::client::relay::HandoffError;
use crate::cluster::directory::ClientControl;
use crate::cluster::registry::Announce;
use crate::hub::Member;
use crate::metrics::Metrics;
use crate::metrics::Transport;
use crate::protocol::channel::ChannelName;
use crate::protocol::handoff::Target;
use crate::protocol::instance::ClientId;
use crate::stream::Cut;

/// How long a handoff waits for a control command that is being executed, and for the client's presence.
const SETTLE_MAX_WAIT: Duration = Duration::from_millis(500);

/// A client that is being handed off. Dropping it before it has [left](Self::leave) ends that: it stays.
pub(crate) struct Departing {
    client: Arc<ChannelClient>,
    ping: Ping,
    /// Completes when the control command that runs is done.
    running: Option<oneshot::Receiver<()>>,
    /// The servers that carry its channels, each with one of these.
    marks: Vec<(Shard, ChannelName)>,
    has_left: bool,
}

/// When a client was pinged last.
#[derive(Debug, Clone, Copy)]
struct Ping {
    age: Duration,
    is_unanswered: bool,
}

/// What ends the deliveries of the channels of one server; `None` if one of them has ended meanwhile.
pub(crate) type AtMark = Box<dyn FnOnce() -> Option<Vec<(ChannelName, Cut)>> + Send>;

impl Admitted {
    /// Hands the client off to another node.
    ///
    /// # Errors
    ///
    /// [`HandoffError`]: whether it stays or has to connect again.
    ///
    /// # Cancel safety
    ///
    /// After dropping this future the client must be disconnected.
    pub(crate) fn hand_off(
        &self,
        target: Target,
    ) -> impl Future<Output = Result<(), HandoffError>> + Send + use<> {
        let hand_off = self.client.clients.hand_off.get().cloned();
        let departing = self.depart();
        async move {
            let departing = departing.map_err(|reason| HandoffError::Kept(reason.to_owned()))?;
            match hand_off {
                Some(hand_off) => hand_off.hand_off(departing, target).await,
                None => Err(HandoffError::Kept("this node is alone".to_owned())),
            }
        }
    }

    fn depart(&self) -> Result<Departing, &'static str> {
        if let Some(reason) = self.client.stays() {
            return Err(reason);
        }
        let ping = self.in_roster.read(Entry::freeze).flatten();
        let ping = ping.ok_or("something of the client expires now")?;
        Ok(Departing {
            client: Arc::clone(&self.client),
            ping,
            running: self.client.hold_commands(),
            marks: Vec::new(),
            has_left: false,
        })
    }
}

impl Entry {
    /// Stops pings and expiry of the client, unless expiry is handled now. Called under the lock of the roster, as the
    /// decisions about them are.
    fn freeze(&self) -> Option<Ping> {
        let client = self.client();
        if client.expiring.load(Ordering::Relaxed) {
            return None;
        }
        client.is_departing.store(true, Ordering::Relaxed);
        let keepalive = self.keepalive();
        Some(Ping {
            age: keepalive.age(Instant::now()),
            is_unanswered: keepalive.is_unanswered() && !client.received.load(Ordering::Relaxed),
        })
    }
}

impl ChannelClient {
    /// Why it cannot be handed off; `None` if it can.
    pub(super) fn stays(&self) -> Option<&'static str> {
        if !matches!(&self.member, Member::Socket(outbox) if outbox.can_hand_off()) {
            Some("its edge does not hand clients off")
        } else if self.state.lock().identity().is_err() {
            Some("the client is not connected yet")
        } else {
            None
        }
    }

    /// Whether it is being handed off.
    pub(super) fn is_departing(&self) -> bool {
        self.is_departing.load(Ordering::Relaxed)
    }
}

impl Departing {
    pub(crate) fn id(&self) -> ClientId {
        self.client.id
    }

    /// The path of its endpoint.
    pub(crate) fn endpoint(&self) -> &str {
        &self.client.endpoint.path
    }

    pub(crate) fn transport(&self) -> Transport {
        self.client.transport
    }

    /// The metrics that count it.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.client.clients.metrics
    }

    /// Waits until nothing of the client changes any more.
    ///
    /// # Errors
    ///
    /// Why it has to stay, as text.
    pub(crate) async fn settle(&mut self) -> Result<(), String> {
        if let Some(running) = self.running.take() {
            let is_done = time::timeout(SETTLE_MAX_WAIT, running).await;
            if is_done.is_err() {
                return Err("a command of the server API is being executed".to_owned());
            }
        }
        self.client.remove_ended();
        let seen: Vec<_> = {
            let mut state = self.client.state.lock();
            let (identity, subscriptions) = state.settled().ok_or(CHANGING)?;
            let lifecycle = self.client.clients.lifecycle.as_ref();
            if lifecycle.is_some_and(|it| it.is_behind(self.client.id, &identity.user)) {
                return Err("the client's lifecycle event is not stored yet".to_owned());
            }
            let presents = subscriptions
                .iter()
                .filter_map(|(_, subscription)| subscription.attachment.present.as_ref());
            presents
                .map(|present| present.seen(SETTLE_MAX_WAIT))
                .collect()
        };
        let are_seen = future::join_all(seen).await;
        if are_seen.contains(&false) {
            return Err("the client's presence is not stored yet".to_owned());
        }
        Ok(())
    }

    /// What the other node needs to continue the client.
    ///
    /// # Errors
    ///
    /// Why it has to stay, as text.
    pub(crate) fn snapshot(&mut self) -> Result<ClientState, String> {
        let client = &self.client;
        let now = client.clients.started.elapsed();
        let [commands_ahead, rejected_ahead] = client.command_rate.ahead(now);
        let rate_ahead = crate::client::rate::ahead(&client.rate, now);
        let mut state = client.state.lock();
        let (identity, subscriptions) = state.settled().ok_or(CHANGING)?;
        let shards: BTreeSet<Shard> = { subscriptions.iter() }
            .map(|(_, subscription)| subscription.attachment.membership.shard())
            .collect();
        let number_of = |shard: Shard| shards.iter().take_while(|one| **one < shard).count();
        let (meta, emulated) = identity.for_hooks.parts();
        let headers = client.headers.as_deref();
        let snapshot = ClientState {
            client: client.id.to_string(),
            user: identity.user.to_string(),
            info: identity.info.bytes(),
            meta: meta.clone(),
            headers: headers.map(HeaderState::all).unwrap_or_default(),
            emulated: HeaderState::all(emulated),
            expire_at: identity.expire_at,
            is_by_hook: identity.auth_source == AuthSource::Hook,
            rates_ahead: vec![rate_ahead, commands_ahead, rejected_ahead],
            pinged_ms: u64::try_from(self.ping.age.as_millis()).unwrap_or(u64::MAX),
            is_ping_unanswered: self.ping.is_unanswered,
            subscriptions: { subscriptions.iter() }
                .map(|(channel, subscription)| {
                    let membership = &subscription.attachment.membership;
                    let present = subscription.attachment.present.as_ref();
                    SubscriptionState {
                        channel: channel.to_string(),
                        source: snapshot::source_number(subscription.source),
                        info: subscription.info.bytes(),
                        expire_at: subscription.expire_at,
                        is_by_hook: subscription.auth_source == AuthSource::Hook,
                        receives_joins: membership.receives_joins(),
                        is_present: present.is_some(),
                        is_announced: present
                            .is_some_and(|present| present.announce() == Announce::Yes),
                        has_history: membership.has_history(),
                        mark: u32::try_from(number_of(membership.shard())).unwrap_or(u32::MAX),
                        presence: subscription.overrides.presence,
                        join_leave: subscription.overrides.join_leave,
                        force_push_join_leave: subscription.overrides.force_push_join_leave,
                        force_positioning: subscription.overrides.force_positioning,
                        force_recovery: subscription.overrides.force_recovery,
                    }
                })
                .collect(),
            marks: u32::try_from(shards.len()).unwrap_or(u32::MAX),
            from: client.clients.instance.to_string(),
        };
        let of_shard = |shard: &Shard| {
            let mut subscriptions = subscriptions.iter();
            let found = subscriptions
                .find(|(_, subscription)| subscription.attachment.membership.shard() == *shard);
            found.map(|(channel, _)| (*shard, ChannelName::wire(channel)))
        };
        self.marks = shards.iter().filter_map(of_shard).collect();
        Ok(snapshot)
    }

    /// A channel on each server that carries some of its channels, as named there: in the order of the marks.
    pub(crate) fn marks(&self) -> impl Iterator<Item = &ChannelName> {
        self.marks.iter().map(|(_, channel)| channel)
    }

    /// What has to happen at each mark, in their order: it ends the deliveries.
    pub(crate) fn at_marks(&self) -> impl Iterator<Item = AtMark> {
        self.marks.iter().map(|&(shard, _)| {
            let client = Arc::clone(&self.client);
            Box::new(move || {
                let mut state = client.state.lock();
                let (_, subscriptions) = state.settled()?;
                let here = { subscriptions.into_iter() }
                    .map(|(channel, subscription)| (channel, &subscription.attachment.membership))
                    .filter(|(_, membership)| membership.shard() == shard);
                here.map(|(channel, membership)| Some((channel.clone(), membership.cut()?)))
                    .collect()
            }) as AtMark
        })
    }

    /// Whether nothing has ended meanwhile, so that a cut is possible.
    pub(crate) fn is_settled(&self) -> bool {
        self.client.state.lock().settled().is_some()
    }

    /// The other node may take the client's presence over from now on: this one does not write it again. Until this is dropped.
    pub(crate) fn offer_presence(&self) {
        self.set_presence_offered(true);
    }

    fn set_presence_offered(&self, is_offered: bool) {
        let mut state = self.client.state.lock();
        state.each_subscription(|subscription| {
            if let Some(present) = &subscription.attachment.present {
                present.set_offered(is_offered);
            }
        });
    }

    /// Gives the client up, which continues on the other node: `controls` gets the commands for it. No leave is told.
    pub(crate) fn leave(mut self, controls: &Arc<dyn ClientControl>) {
        self.has_left = true;
        self.client.pass_commands_on(controls);
        let mut presents = Vec::new();
        let listed = {
            let mut state = self.client.state.lock();
            state.each_subscription(|subscription| {
                presents.extend(subscription.attachment.present.take());
            });
            let identity = state.identity();
            identity.ok().and_then(|identity| identity.listed.take())
        };
        presents.into_iter().for_each(|present| present.give_up());
        if let Some(listed) = listed {
            listed.move_to(Arc::clone(controls));
        }
        let (directory, id) = (Arc::clone(&self.client.clients.directory), self.client.id);
        let controls = Arc::clone(controls);
        let draining = self.client.clients.draining.clone();
        self.client.clients.background_tasks.spawn(async move {
            tokio::select! {
                biased;
                () = draining.cancelled() => {} // Commands are passed on until the node ends.
                () = time::sleep(PASS_ON_FOR) => directory.forget_moved(id, &controls),
            }
        });
    }

    /// The handoff has failed half-way, and the client has to connect again, unless the application has disconnected it
    /// meanwhile.
    pub(crate) fn lose(&self) {
        self.client.disconnect_as_commanded();
    }
}

/// How long commands for a client that was handed off are passed on: longer than one may be on its way.
const PASS_ON_FOR: Duration = Duration::from_secs(10);

const CHANGING: &str = "a subscription of the client begins or ends now";

impl Drop for Departing {
    fn drop(&mut self) {
        if !self.has_left {
            self.set_presence_offered(false);
            self.client.is_departing.store(false, Ordering::Relaxed);
            self.client.continue_commands();
        }
    }
}
