//! A channel client of another node continues on this one.
//!
//! It is prepared while the other node still serves it: its channels are subscribed, and what is published on them behind
//! the marks is held. Once the other node has told how far it has delivered each channel, the client joins them from there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use futures_util::FutureExt;
use futures_util::future;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time;
use tokio::time::Instant;

use crate::broker::history::Retention;
use crate::client::channels::ChannelClients;
use crate::client::channels::access;
use crate::client::channels::client::Admitted;
use crate::client::channels::client::Attachment;
use crate::client::channels::client::ChannelClient;
use crate::client::channels::command_rate::CommandRate;
use crate::client::channels::for_hooks::ForHooks;
use crate::client::channels::keepalive::Direction;
use crate::client::channels::keepalive::Keepalive;
use crate::client::channels::snapshot;
use crate::client::channels::snapshot::ClientState;
use crate::client::channels::snapshot::HeaderState;
use crate::client::channels::snapshot::SubscriptionState;
use crate::client::channels::state::Identity;
use crate::client::channels::state::State;
use crate::client::channels::state::Subscription;
use crate::cluster::control::CutAt;
use crate::cluster::directory::ClientControl;
use crate::cluster::presence::Present;
use crate::cluster::registry::Announce;
use crate::config::ChannelOptions;
use crate::config::Endpoint;
use crate::hooks::ClientHeaders;
use crate::hub::Member;
use crate::metrics::DropReason;
use crate::metrics::Transport;
use crate::protocol::ClientInfo;
use crate::protocol::Event;
use crate::protocol::Position;
use crate::protocol::Push;
use crate::protocol::Reply;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::ClientId;
use crate::protocol::instance::Instance;
use crate::stream;
use crate::stream::Arriving;
use crate::stream::ChannelStreams;

/// How long the channels may take to be subscribed. The other node waits for this.
const PREPARE_MAX_WAIT: Duration = Duration::from_millis(1500);

/// How long the marks, then the joins, and then the entries in the registry, may take. The client waits for this.
const RESUME_MAX_WAIT: Duration = Duration::from_millis(600);

/// The most marks of one client: servers with channels of it.
const MARKS_MAX: u32 = 1024;

/// A channel client of another node that is going to continue here.
pub(crate) struct ArrivingClient {
    clients: Arc<ChannelClients>,
    endpoint: Arc<Endpoint>,
    transport: Transport,
    member: Member,
    id: ClientId,
    /// The node that hands it off, if there are lifecycle events.
    from: Option<Instance>,
    state: ClientState,
    headers: Option<Box<ClientHeaders>>,
    for_hooks: ForHooks,
    pinged_at: Instant,
    subscriptions: Vec<ArrivingSubscription>,
    /// How many marks were received.
    marked: watch::Sender<u32>,
}

struct ArrivingSubscription {
    state: SubscriptionState,
    options: Arc<ChannelOptions>,
    arriving: Arriving,
}

impl ChannelClients {
    /// Prepares a client that another node hands off to this one, with what is sent to it.
    ///
    /// # Errors
    ///
    /// Why it cannot continue here, as text.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future prepares nothing.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        endpoint: Arc<Endpoint>,
        transport: Transport,
        member: Member,
        state: ClientState,
    ) -> Result<ArrivingClient, String> {
        let id = ClientId::parse(&state.client).map_err(|error| error.to_string())?;
        let headers = HeaderState::parse(&state.headers);
        let emulated = HeaderState::parse(&state.emulated);
        let (headers, emulated) = headers.zip(emulated).ok_or("a header is malformed")?;
        let from = match self.lifecycle {
            None => None,
            Some(_) => Some(Instance::parse(&state.from).map_err(|error| error.to_string())?),
        };
        let is_marked = |one: &SubscriptionState| one.mark < state.marks;
        if MARKS_MAX < state.marks || !state.subscriptions.iter().all(is_marked) {
            return Err("the marks are malformed".to_owned());
        }
        let expected =
            { state.subscriptions.iter() }.map(|one| self.expect(&endpoint, &member, one));
        let expected = time::timeout(PREPARE_MAX_WAIT, future::try_join_all(expected)).await;
        let subscriptions =
            expected.map_err(|_| "the channels were not subscribed in time".to_owned())??;
        let pinged = Duration::from_millis(state.pinged_ms);
        let now = Instant::now();
        Ok(ArrivingClient {
            clients: Arc::clone(self),
            endpoint,
            transport,
            member,
            id,
            from,
            headers: (!headers.is_empty()).then(|| Box::new(headers)),
            for_hooks: ForHooks::new(own(&state.meta), emulated),
            pinged_at: now.checked_sub(pinged).unwrap_or(now),
            state,
            subscriptions,
            marked: watch::Sender::new(0),
        })
    }

    async fn expect(
        &self,
        endpoint: &Endpoint,
        member: &Member,
        state: &SubscriptionState,
    ) -> Result<ArrivingSubscription, String> {
        let name = &state.channel;
        let channel = ChannelName::new(name).map_err(|error| error.to_string())?;
        let config = self.config.get();
        let options = config.namespaces.options(name);
        let options = Arc::clone(options.ok_or("the other node does not know a channel")?);
        if options.history.is_some() != state.has_history {
            return Err("a channel has another history at the other node".to_owned());
        }
        access::codec(&options, member.codec())
            .map_err(|_| "a channel has another codec at the other node".to_owned())?;
        state.source().ok_or("a subscription is malformed")?;
        let request = join_request(&channel, &options, member, state, None);
        let arriving = self
            .streams
            .expect(request, endpoint.outbox_bytes_max)
            .await;
        Ok(ArrivingSubscription {
            state: state.clone(),
            options,
            arriving: arriving.map_err(|error| error.to_string())?,
        })
    }
}

impl ArrivingClient {
    /// How many marks it has.
    pub(crate) fn marks(&self) -> u16 {
        u16::try_from(self.state.marks).unwrap_or(u16::MAX)
    }

    /// The mark with this number is received. Must be called between the publications before and behind it.
    pub(crate) fn mark(&self, number: u16) {
        for one in &self.subscriptions {
            if one.state.mark == u32::from(number) {
                one.arriving.mark();
            }
        }
        self.marked.send_modify(|marked| *marked += 1);
    }

    /// Continues the client: the other node has delivered what is before `cut`.
    ///
    /// # Errors
    ///
    /// Why it has to connect again, as text.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future disconnects the client.
    pub(crate) async fn resume(&self, cut: Vec<CutAt>) -> Result<Admitted, String> {
        let mut cut: HashMap<ChannelName, Option<Position>> = { cut.into_iter() }
            .map(|one| (one.channel, one.position))
            .collect();
        let joined = self.subscriptions.iter().map(|one| {
            let position = cut.remove(one.arriving.channel());
            self.join(one, position)
        });
        // Another server's mark may be on its way here still.
        let mut marked = self.marked.subscribe();
        let all_are_marked = marked.wait_for(|marked| self.state.marks <= *marked);
        let are_marked = time::timeout(RESUME_MAX_WAIT, all_are_marked).await.is_ok();
        if !are_marked {
            return Err("a mark was not received in time".to_owned());
        }
        let joined = time::timeout(RESUME_MAX_WAIT, future::try_join_all(joined)).await;
        let subscriptions = joined.map_err(|_| "the channels were not joined in time")??;

        let admitted = self.admit(subscriptions);
        let client = admitted.client();
        client.note_expiry();
        let mut seen = Vec::new();
        {
            let presence = &self.clients.presence;
            let moved = presence.moved(self.id);
            let user: Arc<str> = client.user().into();
            let Ok(place) = self.clients.directory.reserve(&user, None) else {
                return Err("the user has too many clients".to_owned()); // It has no limit here.
            };
            // Commands are executed from now on: the state is complete.
            let (listed, _) = place.enter(self.id, Arc::clone(client) as Arc<dyn ClientControl>);
            seen.push(moved.seen(RESUME_MAX_WAIT).boxed());
            let mut begun = None;
            if let Some((lifecycle, from)) = self.clients.lifecycle.as_ref().zip(self.from) {
                begun = lifecycle.arrived(self.id, &user, self.transport.wire(), from);
                // Its channels, too: the other node, which has fewer subscribers then, must not be the last one with any.
                seen.push(lifecycle.entered(RESUME_MAX_WAIT).boxed());
            }
            listed.keep((moved, begun));
            let mut state = client.state.lock();
            let identity = state.identity();
            let identity = identity.map_err(|_| "the client has gone".to_owned())?;
            identity.listed = Some(listed);
            for subscription in state.subscriptions() {
                let present = subscription.attachment.present.as_ref();
                let waiting = present.map(|present| present.seen(RESUME_MAX_WAIT));
                seen.extend(waiting.map(FutureExt::boxed));
            }
            seen.push(presence.user_seen(&user, RESUME_MAX_WAIT).boxed());
        }
        // Before the other node removes its entries: at every moment one of the two is found.
        if future::join_all(seen).await.contains(&false) {
            return Err("the registry of the other node is behind".to_owned());
        }
        Ok(admitted)
    }

    /// Joins a channel from where the other node has stopped.
    async fn join(
        &self,
        one: &ArrivingSubscription,
        cut: Option<Option<Position>>,
    ) -> Result<(ChannelName, Subscription<Attachment>), String> {
        let position = cut.ok_or("the position of a channel is missing")?;
        if position.is_some() != one.state.has_history {
            return Err("the position of a channel is malformed".to_owned());
        }
        let channel = one.arriving.channel();
        let since = position.as_ref();
        let request = join_request(channel, &one.options, &self.member, &one.state, since);
        let mut is_complete = false;
        let joined = ChannelStreams::resume(&one.arriving, request, |joined| {
            is_complete = joined.held.is_some() && joined.is_recovered == position.is_some();
            self.missed(channel, &joined)
        });
        let membership = joined.await.map_err(|error| error.to_string())?;
        if !is_complete {
            return Err("the other node cannot continue a channel".to_owned());
        }
        let name = membership.channel().clone();
        let present = self.present(&name, &one.state).map(Box::new);
        let subscription = Subscription {
            attachment: Attachment {
                membership,
                present,
            },
            source: one.state.source().ok_or("a subscription is malformed")?,
            overrides: one.state.overrides(),
            info: own(&one.state.info).into(),
            expire_at: one.state.expire_at,
            auth_source: snapshot::auth_source(one.state.is_by_hook),
        };
        Ok((name, subscription))
    }

    /// What the client has missed of a channel, encoded.
    fn missed(&self, channel: &ChannelName, joined: &stream::Joined<'_>) -> Bytes {
        let stored = joined.publications.iter();
        let stored = stored.map(|one| Event::Publication((**one).clone()));
        let held = joined.held.into_iter().flatten().cloned();
        let mut missed = BytesMut::new();
        for event in stored.chain(held) {
            let push = Reply::push(Push::new(channel.as_str(), event));
            match self.member.encode(&[push]) {
                Ok(encoded) => missed.extend_from_slice(&encoded),
                Err(_) => self.clients.metrics.dropped(DropReason::NotJson, 1),
            }
        }
        missed.freeze()
    }

    fn present(&self, channel: &ChannelName, state: &SubscriptionState) -> Option<Present> {
        if !state.is_present {
            return None;
        }
        let info = ClientInfo {
            user: self.state.user.clone(),
            client: self.state.client.clone(),
            conn_info: self.state.info.clone(),
            chan_info: state.info.clone(),
        };
        let announce = if state.is_announced {
            Announce::Yes
        } else {
            Announce::No
        };
        let presence = &self.clients.presence;
        Some(presence.take_over(channel, self.id, &info, announce))
    }

    fn admit(&self, subscriptions: Vec<(ChannelName, Subscription<Attachment>)>) -> Admitted {
        let clients = &self.clients;
        let identity = Identity {
            user: match self.state.user.as_str() {
                "" => Arc::default(),
                user => user.into(),
            },
            info: own(&self.state.info).into(),
            for_hooks: self.for_hooks.clone(),
            expire_at: self.state.expire_at,
            auth_source: snapshot::auth_source(self.state.is_by_hook),
            listed: None,
        };
        let mut ahead = self.state.rates_ahead.iter().copied();
        let mut ahead = || ahead.next().unwrap_or(0);
        let since_start = clients.started.elapsed();
        clients.metrics.client_connected(self.transport);
        let client = Arc::new(ChannelClient {
            clients: Arc::clone(clients),
            endpoint: Arc::clone(&self.endpoint),
            transport: self.transport,
            direction: Direction::TwoWay,
            member: self.member.clone(),
            id: self.id,
            headers: self.headers.clone(),
            state: Mutex::new(State::continued(identity, subscriptions)),
            control: Mutex::default(),
            rate: crate::client::rate::continued(ahead(), since_start),
            command_rate: CommandRate::continued([ahead(), ahead()], since_start),
            received: AtomicBool::new(false),
            expires_next: AtomicU64::new(u64::MAX),
            expiring: AtomicBool::new(false),
            is_departing: AtomicBool::new(false),
        });
        let now = Instant::now();
        let pinged = now.saturating_duration_since(self.pinged_at);
        let keepalive = Keepalive::continued(pinged, self.state.is_ping_unanswered, now);
        Admitted {
            in_roster: clients.roster.add_continued(Arc::clone(&client), keepalive),
            client,
        }
    }
}

fn join_request<'a>(
    channel: &'a ChannelName,
    options: &ChannelOptions,
    member: &'a Member,
    state: &SubscriptionState,
    since: Option<&'a Position>,
) -> stream::JoinRequest<'a> {
    stream::JoinRequest {
        channel,
        retention: Retention::of(options),
        slow: options.slow,
        member,
        receives_joins: state.receives_joins,
        since,
        has_lifecycle: options.lifecycle,
        arriving: None,
    }
}

/// The same bytes without the snapshot that they are a part of.
fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
