//! Messages between single nodes: control commands for clients, and requests.
//!
//! Every node subscribes to a channel of its own, through the broker. A command is sent to the nodes that
//! have its target, and to no others; each responds with the result, so the sender knows that it has
//! arrived. A command for clients of this node is executed directly.
//!
//! The broker puts received messages into the [`Inbox`], without waiting; [`Control::run`] handles them.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use wildmatch::WildMatch;

use crate::broker::Broker;
use crate::broker::Deliver;
use crate::broker::PublishError;
use crate::broker::Shard;
use crate::cluster::directory::CommandResult;
use crate::cluster::directory::ControlCommand;
use crate::cluster::directory::Directory;
use crate::cluster::directory::Target;
use crate::cluster::registry::Node;
use crate::cluster::registry::Registry;
use crate::cluster::registry::Unavailable;
use crate::metrics::DropReason;
use crate::metrics::Metrics;
use crate::protocol::Position;
use crate::protocol::channel::ChannelName;
use crate::protocol::handoff::Token;
use crate::protocol::instance::ClientId;
use crate::protocol::instance::Instance;
use crate::protocol::publication::Publication;
use crate::redis::keys;

mod message;

pub(crate) use message::Channels;
pub(crate) use message::Counts;

use message::Body;
use message::Message;
use message::Request;
use message::Response;

/// The most queued messages of other nodes. More are dropped, and counted.
const INBOX_MESSAGES_MAX: usize = 4096;

/// The most clients of other nodes that are accepted at a time.
const ACCEPTING_MAX: usize = 1024;

/// How long other nodes may take to respond.
const RESPONSE_WAIT_MAX: Duration = Duration::from_secs(2);

/// The most channels in one response, in number and in bytes of names, so that its size is that of other messages.
const CHANNELS_MAX: usize = 5000;
const CHANNEL_BYTES_MAX: usize = 256 << 10;

/// The channels that have subscribers on this node.
pub(crate) trait ChannelCounts: Send + Sync + 'static {
    /// Calls `visit` with each channel and its number of subscribers here, in no order.
    fn each(&self, visit: &mut dyn FnMut(&str, u64));
}

/// Accepts clients that other nodes hand off to this one.
#[async_trait]
pub(crate) trait AcceptsClients: Send + Sync + 'static {
    /// Prepares the client of `snapshot` for the edge's connection that waits with `token`.
    ///
    /// # Errors
    ///
    /// Why the client has to stay where it is, as text.
    async fn accept(&self, token: Token, snapshot: Bytes) -> Result<(), String>;

    /// Continues the client that was prepared for `token`: the other node has delivered what is before `cut`, and delivers
    /// nothing more.
    ///
    /// # Errors
    ///
    /// Why the client has to connect again, as text.
    async fn resume(&self, token: Token, cut: Vec<CutAt>) -> Result<(), String>;

    /// The same for a session over HTTP: `queued` are messages that wait for it, before those that come from now on.
    ///
    /// # Errors
    ///
    /// Why the client has to connect again, as text.
    async fn resume_session(&self, token: Token, queued: Vec<Bytes>) -> Result<(), String>;
}

/// How far a node has delivered a channel to a client that it hands off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CutAt {
    pub(crate) channel: ChannelName,
    /// Its position; `None` if the channel has no history: what is before the mark is delivered.
    pub(crate) position: Option<Position>,
}

/// Receives messages of other nodes.
pub(crate) struct Inbox {
    /// The channel of this node.
    channel: ChannelName,
    queue: mpsc::Sender<Bytes>,
    metrics: Arc<Metrics>,
}

/// Passes publications on the control channel to the inbox, and all others on.
pub(crate) struct Demux {
    pub(crate) inbox: Inbox,
    pub(crate) rest: Arc<dyn Deliver>,
}

/// The messages that an [`Inbox`] has accepted, for [`Control::run`].
pub(crate) struct InboxReceiver(mpsc::Receiver<Bytes>);

/// What a [`Control`] is built from.
pub(crate) struct Components {
    pub(crate) registry: Arc<Registry>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) channel_counts: Arc<dyn ChannelCounts>,
    /// Missing in a node without a broker for several.
    pub(crate) arrivals: Option<Arc<dyn AcceptsClients>>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Sends commands and requests to other nodes, and handles theirs.
pub(crate) struct Control {
    components: Components,
    started: Instant,
    /// Requests that await responses.
    pending: Mutex<HashMap<u64, PendingRequest>>,
    next_number: AtomicU64,
}

struct PendingRequest {
    /// The nodes that have not responded yet.
    missing: HashSet<Instance>,
    responses: mpsc::Sender<(Instance, Response)>,
}

/// Why a command may not have reached all of its targets.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// The registry cannot tell now on which nodes they are.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// It could not be sent.
    #[error("the broker accepts no messages")]
    Broker(#[from] PublishError),
    /// It was sent. Sending the same command again does no harm.
    #[error("{0} nodes did not respond in time")]
    NoResponse(usize),
}

/// An inbox for messages to `instance`, and the receiver of its messages.
pub(crate) fn inbox(instance: Instance, metrics: Arc<Metrics>) -> (Inbox, InboxReceiver) {
    let (queue, receiver) = mpsc::channel(INBOX_MESSAGES_MAX);
    let channel = keys::control_channel(instance);
    let inbox = Inbox {
        channel,
        queue,
        metrics,
    };
    (inbox, InboxReceiver(receiver))
}

impl Deliver for Demux {
    fn deliver(&self, mut publications: Vec<Publication>) {
        let own = |publication: &mut Publication| publication.channel == self.inbox.channel;
        for publication in publications.extract_if(.., own) {
            self.inbox.put(publication.data);
        }
        if !publications.is_empty() {
            self.rest.deliver(publications);
        }
    }

    fn interrupted(&self, shard: Shard) {
        self.rest.interrupted(shard);
    }

    fn resumed(&self, shard: Shard) {
        self.rest.resumed(shard);
    }

    fn interrupted_all(&self, shards: &HashSet<Shard>) {
        self.rest.interrupted_all(shards);
    }

    fn resumed_all(&self, shards: &HashSet<Shard>) {
        self.rest.resumed_all(shards);
    }
}

impl Inbox {
    /// Queues a message, or drops it if the queue is full.
    fn put(&self, data: Bytes) {
        if self.queue.try_send(data).is_err() {
            self.metrics.dropped(DropReason::ControlFull, 1);
        }
    }
}

impl Control {
    pub(crate) fn new(components: Components) -> Arc<Self> {
        Arc::new(Self {
            components,
            started: Instant::now(),
            pending: Mutex::default(),
            next_number: AtomicU64::new(0),
        })
    }

    /// Handles incoming messages until `shutdown`.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut receiver: InboxReceiver,
        shutdown: CancellationToken,
    ) {
        let channel = keys::control_channel(self.instance());
        self.components.broker.subscribe(&channel);
        let mut accepting = JoinSet::new();
        loop {
            let data = tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                data = receiver.0.recv() => data,
                Some(_) = accepting.join_next() => continue,
            };
            let Some(data) = data else { return };
            match Message::decode(data) {
                Ok(message) => match message.body {
                    // It waits for other messages, so it must not hold them up.
                    Body::Request(
                        request @ (Request::Handoff(..)
                        | Request::Resume(..)
                        | Request::ResumeSession(..)),
                    ) if accepting.len() < ACCEPTING_MAX => {
                        let this = Arc::clone(&self);
                        let (from, number) = (message.from, message.number);
                        accepting.spawn(async move { this.accept(from, number, request).await });
                    }
                    _ => self.handle(message).await,
                },
                Err(error) => {
                    debug!(%error, "undecodable message on the control channel dropped");
                    self.components
                        .metrics
                        .dropped(DropReason::ControlMalformed, 1);
                }
            }
        }
    }

    /// Sends `command` to all clients of `target`, on all nodes.
    ///
    /// # Errors
    ///
    /// [`ControlError`]: some clients may have received it.
    pub(crate) async fn command(
        &self,
        target: Target,
        command: ControlCommand,
    ) -> Result<CommandResult, ControlError> {
        let nodes = self.holders(&target).await?;
        let responses = self
            .request_from(&nodes, Request::Command(target, command))
            .await?;
        let mut result = CommandResult::default();
        for (_, response) in responses.all()? {
            if let Response::CommandResult(here) = response {
                result.accepted += here.accepted;
                result.busy += here.busy;
            }
        }
        Ok(result)
    }

    /// The counts of each node. Nodes that do not respond are left out.
    ///
    /// # Errors
    ///
    /// [`ControlError`]: the requests could not be sent.
    pub(crate) async fn counts(&self) -> Result<Vec<(Node, Counts)>, ControlError> {
        let nodes = self.components.registry.nodes().await?;
        let instances: Vec<Instance> = nodes.iter().map(|node| node.instance).collect();
        let responses = self.request_from(&instances, Request::Counts).await?;
        let counts = responses
            .result
            .into_iter()
            .filter_map(|(instance, response)| {
                let node = nodes.iter().find(|node| node.instance == instance)?;
                match response {
                    Response::Counts(counts) => Some((node.clone(), counts)),
                    _ => None,
                }
            });
        Ok(counts.collect())
    }

    /// The channels that have subscribers, and their number over all nodes.
    ///
    /// # Errors
    ///
    /// [`ControlError`]: a node did not respond.
    pub(crate) async fn channels(&self, pattern: &str) -> Result<Channels, ControlError> {
        let nodes = self.components.registry.nodes().await?;
        let instances: Vec<Instance> = nodes.iter().map(|node| node.instance).collect();
        let request = Request::Channels(pattern.to_owned());
        let mut all = Channels::default();
        for (_, response) in self.request_from(&instances, request).await?.all()? {
            if let Response::Channels(channels) = response {
                all.is_cut |= channels.is_cut;
                for (channel, subscribers) in channels.subscribers {
                    *all.subscribers.entry(channel).or_default() += subscribers;
                }
            }
        }
        Ok(all)
    }

    /// Has the node `instance` prepare the client of `snapshot` for the edge's connection that waits there with `token`.
    ///
    /// # Errors
    ///
    /// Why it does not, as text. It gives the client up by itself if it has prepared it nevertheless.
    pub(crate) async fn hand_off(
        &self,
        instance: Instance,
        token: Token,
        snapshot: Bytes,
    ) -> Result<(), String> {
        if instance == self.instance() {
            return Err("the client is at this node already".to_owned());
        }
        let request = Request::Handoff(token, snapshot);
        self.request_handoff(instance, request).await
    }

    /// Has the node `instance` continue the client that it has prepared for `token`.
    ///
    /// # Errors
    ///
    /// Why it may not, as text.
    pub(crate) async fn resume(
        &self,
        instance: Instance,
        token: Token,
        cut: Vec<CutAt>,
    ) -> Result<(), String> {
        let request = Request::Resume(token, cut);
        self.request_handoff(instance, request).await
    }

    /// Has the node `instance` continue the session over HTTP that it has prepared for `token`; `queued` waits for it.
    ///
    /// # Errors
    ///
    /// Why it may not, as text.
    pub(crate) async fn resume_session(
        &self,
        instance: Instance,
        token: Token,
        queued: Vec<Bytes>,
    ) -> Result<(), String> {
        let request = Request::ResumeSession(token, queued);
        self.request_handoff(instance, request).await
    }

    /// Sends a step of a handoff to the node `instance`, which accepts it or says why not.
    async fn request_handoff(&self, instance: Instance, request: Request) -> Result<(), String> {
        let responses = self.request_from(&[instance], request).await;
        let responses = responses.and_then(Responses::all);
        let responses = responses.map_err(|error| error.to_string())?;
        match responses.into_iter().next() {
            Some((_, Response::Handoff(accepted))) => accepted,
            _ => Err("the other node knows no handoff".to_owned()),
        }
    }

    /// Passes `command` on to `client`, which was handed off to the node `instance`.
    ///
    /// # Errors
    ///
    /// [`ControlError`]: it may have received it.
    pub(crate) async fn forward(
        &self,
        instance: Instance,
        client: ClientId,
        command: ControlCommand,
    ) -> Result<(), ControlError> {
        let request = Request::Command(Target::Client(client), command);
        let responses = self.request_from(&[instance], request).await?;
        responses.all().map(|_| ())
    }

    /// The live nodes that may have clients of `target`.
    async fn holders(&self, target: &Target) -> Result<Vec<Instance>, ControlError> {
        let registry = &self.components.registry;
        Ok(match target {
            Target::Client(client) => {
                // The node that it has connected to, unless that has handed it off.
                let mut nodes = registry.nodes_of_moved(*client).await?;
                let instance = client.instance();
                if !nodes.contains(&instance) && registry.is_alive(instance).await? {
                    nodes.push(instance);
                }
                nodes
            }
            Target::Session { session, .. } => {
                let instance = session.instance(); // Such a client is never handed off.
                let is_alive = registry.is_alive(instance).await?;
                is_alive.then_some(instance).into_iter().collect()
            }
            Target::ClientOf { user, .. } | Target::User { user, .. } => {
                registry.nodes_of(user).await?
            }
        })
    }

    async fn request_from(
        &self,
        nodes: &[Instance],
        request: Request,
    ) -> Result<Responses, ControlError> {
        let others: HashSet<Instance> = nodes
            .iter()
            .copied()
            .filter(|instance| *instance != self.instance())
            .collect();
        let mut result = Vec::with_capacity(nodes.len());
        if others.len() < nodes.len() {
            result.push((self.instance(), self.respond_to(&request)));
        }
        if others.is_empty() {
            return Ok(Responses { result, missing: 0 });
        }
        let (sender, mut responses) = mpsc::channel(others.len());
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let pending = PendingRequest {
            missing: others.clone(),
            responses: sender,
        };
        self.pending.lock().insert(number, pending);
        let guard = Pending {
            control: self,
            number,
        };
        let data = Message {
            from: self.instance(),
            number,
            body: Body::Request(request),
        }
        .encode();
        let sent = others.iter().map(|instance| async {
            let channel = keys::control_channel(*instance);
            self.components.broker.publish(&channel, data.clone()).await
        });
        for sent in join_all(sent).await {
            sent?;
        }
        // The queue ends when all have responded.
        let all = async {
            while let Some(response) = responses.recv().await {
                result.push(response);
            }
        };
        let _ = time::timeout(RESPONSE_WAIT_MAX, all).await; // Late nodes count as missing.
        drop(guard);
        let replied: HashSet<Instance> = result.iter().map(|(instance, _)| *instance).collect();
        let missing = others.difference(&replied).count();
        Ok(Responses { result, missing })
    }

    async fn handle(&self, message: Message) {
        match message.body {
            Body::Response(response) => self.received(message.from, message.number, response),
            Body::Request(request) => {
                let response = self.respond_to(&request);
                self.respond(message.from, message.number, response).await;
            }
        }
    }

    async fn respond(&self, to: Instance, number: u64, response: Response) {
        let response = Message {
            from: self.instance(),
            number,
            body: Body::Response(response),
        };
        let channel = keys::control_channel(to);
        let publish = self.components.broker.publish(&channel, response.encode());
        if let Err(error) = publish.await {
            debug!(%error, "response to another node dropped");
        }
    }

    /// Accepts a client of the node `from`, and responds.
    async fn accept(&self, from: Instance, number: u64, request: Request) {
        let accepted = match (&self.components.arrivals, request) {
            (None, _) => Err("the other node accepts no clients".to_owned()),
            (Some(arrivals), Request::Handoff(token, snapshot)) => {
                arrivals.accept(token, snapshot).await
            }
            (Some(arrivals), Request::Resume(token, cut)) => arrivals.resume(token, cut).await,
            (Some(arrivals), Request::ResumeSession(token, queued)) => {
                arrivals.resume_session(token, queued).await
            }
            (Some(_), _) => Err("no handoff is requested".to_owned()),
        };
        self.respond(from, number, Response::Handoff(accepted))
            .await;
    }

    fn received(&self, from: Instance, number: u64, response: Response) {
        let mut pending = self.pending.lock();
        let Some(request) = pending.get_mut(&number) else {
            return; // It is too late.
        };
        // Each node responds once, so there is room.
        if request.missing.remove(&from) {
            let _ = request.responses.try_send((from, response));
        }
        if request.missing.is_empty() {
            pending.remove(&number);
        }
    }

    fn respond_to(&self, request: &Request) -> Response {
        match request {
            Request::Command(target, command) => {
                Response::CommandResult(self.components.directory.execute(target, command))
            }
            Request::Counts => Response::Counts(self.own_counts()),
            Request::Channels(pattern) => Response::Channels(self.own_channels(pattern)),
            Request::Handoff(..) | Request::Resume(..) | Request::ResumeSession(..) => {
                Response::Handoff(Err("the other node accepts too many clients now".to_owned()))
            }
        }
    }

    fn own_counts(&self) -> Counts {
        let mut counts = Counts {
            clients: self.components.directory.clients() as u64,
            users: self.components.directory.users() as u64,
            uptime: self.started.elapsed().as_secs(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Counts::default()
        };
        self.components.channel_counts.each(&mut |_, subscribers| {
            counts.channels += 1;
            counts.subscriptions += subscribers;
        });
        counts
    }

    fn own_channels(&self, pattern: &str) -> Channels {
        let pattern = (!pattern.is_empty()).then(|| WildMatch::new(pattern));
        let mut subscribers = BTreeMap::new();
        let mut bytes = 0;
        let mut is_cut = false;
        self.components.channel_counts.each(&mut |channel, count| {
            if pattern
                .as_ref()
                .is_some_and(|pattern| !pattern.matches(channel))
            {
                return;
            }
            bytes += channel.len();
            if subscribers.len() < CHANNELS_MAX && bytes <= CHANNEL_BYTES_MAX {
                subscribers.insert(channel.to_owned(), count);
            } else {
                is_cut = true;
            }
        });
        Channels {
            subscribers,
            is_cut,
        }
    }

    fn instance(&self) -> Instance {
        self.components.registry.instance()
    }
}

/// The responses to a request.
struct Responses {
    result: Vec<(Instance, Response)>,
    /// Nodes that have not responded.
    missing: usize,
}

impl Responses {
    fn all(self) -> Result<Vec<(Instance, Response)>, ControlError> {
        match self.missing {
            0 => Ok(self.result),
            missing => Err(ControlError::NoResponse(missing)),
        }
    }
}

/// Removes a pending request when it is dropped.
struct Pending<'a> {
    control: &'a Control,
    number: u64,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.control.pending.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests;
