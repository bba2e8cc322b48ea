//! Which nodes are alive, which users have clients on each of them, and which clients are members of which channel.
//!
//! ```text
//! clients connect and leave ─▶ desired state ─▶ writer ─▶ Redis ◀─ readers: only entries under a live lease
//!                                        lease task ─▶ lease        sweeper: removes entries of dead leases
//! ```
//! A node renews one lease, however many entries it has: that alone keeps all of them valid. When the lease ends,
//! readers ignore the entries at once, and one of the other nodes removes them and reports the members as left.
//! [`desired`] is what this node wants to be registered; Redis is made to match it, with retries, and is
//! written again whenever it may have lost something.
//!
//! Without Redis there is only this node, and reads are served from the desired state.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::directory::UserWatch;
use crate::config;
use crate::metrics::Metrics;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::ClientId;
use crate::protocol::instance::Instance;
use crate::redis;
use crate::redis::CommandError;
use crate::redis::Server;

mod clock;
mod condition;
mod desired;
mod duplicate_ids;
mod inspection;
mod lease;
mod lease_task;
mod memory;
mod node;
mod permissions;
mod shard;
mod store;

pub(crate) use desired::Announce;
pub(crate) use desired::Slot;
pub(crate) use desired::Value;
pub(crate) use lease::Lease;
pub(crate) use node::Node;

use condition::Conditions;
use condition::Problem;
use desired::DesiredState;
use lease_task::Components;
use lease_task::LeaseTask;
use shard::Backend;
use shard::Shard;
use store::Store;

/// How long a cached list of live nodes is used to decide whether a node can be sent to.
const NODES_GOOD_FOR: Duration = Duration::from_secs(1);

/// Receives join and leave events of channel members.
pub(crate) trait MemberListener: Send + Sync + 'static {
    /// A member was added to `channel`. Must not block.
    fn joined(&self, channel: &ChannelName, info: Bytes);
    /// A member was removed from `channel`. Must not block.
    fn left(&self, channel: &ChannelName, info: Bytes);
}

/// What a node uses Redis for besides Pub/Sub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    /// The registry: the node is not ready without it.
    pub(crate) registry: bool,
    /// Streams of channels.
    pub(crate) streams: bool,
    /// Session values.
    pub(crate) values: bool,
    /// Lifecycle events.
    pub(crate) lifecycle: bool,
}

/// Why a registry that is needed is not reliable now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotReady {
    /// Redis is full, which affects all nodes that share it.
    Full(String),
    /// Anything else.
    Other(String),
}

/// What [`start`] needs from the rest of the node.
pub(crate) struct Dependencies {
    /// This node, as it is described to others.
    pub(crate) about: Node,
    pub(crate) needs: Needs,
    /// Receives join and leave events.
    pub(crate) listener: Arc<dyn MemberListener>,
    pub(crate) metrics: Arc<Metrics>,
    /// Cancelled when the node begins to stop.
    pub(crate) draining: CancellationToken,
    /// Cancelled when its clients have left.
    pub(crate) shutdown: CancellationToken,
}

/// A running registry. Its tasks end after `shutdown`, once this node's entries are removed.
pub(crate) struct Started {
    /// The shared handle.
    pub(crate) registry: Arc<Registry>,
    /// Its background tasks.
    pub(crate) tasks: JoinSet<()>,
}

/// The handle through which the rest of the node uses the registry.
pub(crate) struct Registry {
    about: Node,
    needs: Needs,
    /// How long a lease lasts.
    lease: Duration,
    conditions: Arc<Conditions>,
    /// One for each server, in the order of the configuration; never empty.
    shards: Vec<Share>,
    /// The live nodes, and when they were read.
    nodes: Mutex<Option<(Instant, Arc<[Node]>)>>,
}

struct Share {
    shard: Arc<Shard>,
    /// `None` without Redis.
    lease_task: Option<Arc<LeaseTask>>,
}

/// The registry cannot be read reliably now; entries of this node stay desired.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Unavailable {
    /// It cannot be read.
    #[error("cannot read the registry: {0}")]
    Unreadable(#[from] CommandError),
    /// It can be read, but entries of live nodes may be missing.
    #[error("the registry is not reliable: {0}")]
    Unreliable(String),
}

/// An entry that this node wants in the registry, until this is dropped.
pub(crate) struct Registration {
    shard: Arc<Shard>,
    slot: Slot,
    seq: u64,
    /// Whether another node has taken it over.
    is_taken_over: bool,
}

/// Starts the registry on `servers`, or for this node alone if there are none. Returns at once: connections to Redis are made
/// in the background.
pub(crate) fn start(
    servers: &[Server],
    config: &config::Registry,
    dependencies: Dependencies,
) -> Started {
    let Dependencies {
        about,
        needs,
        listener,
        metrics,
        draining,
        shutdown,
    } = dependencies;
    let mut tasks = JoinSet::new();
    let address = |server: &Server| server.config.server.location.to_string();
    let conditions = Conditions::new(servers.iter().map(address).collect(), Arc::clone(&metrics));
    let share = |(index, server): (usize, &Server)| {
        let shard = Arc::new(Shard::new(Backend::Redis, Arc::clone(&listener)));
        let lease_task = Arc::new(LeaseTask::new(Components {
            shard: Arc::clone(&shard),
            store: Store::new(server),
            config: config.clone(),
            backoff_max: server.config.backoff_max,
            about: about.clone(),
            needs,
            draining: draining.clone(),
            conditions: Arc::clone(&conditions),
            server: index,
            address: address(server),
            metrics: Arc::clone(&metrics),
        }));
        tasks.spawn(Arc::clone(&lease_task).run(shutdown.clone()));
        let lease_task = Some(lease_task);
        Share { shard, lease_task }
    };
    let mut shards: Vec<Share> = servers.iter().enumerate().map(share).collect();
    if shards.is_empty() {
        shards.push(Share {
            shard: Arc::new(Shard::new(Backend::Memory, listener)),
            lease_task: None,
        });
    }
    let registry = Arc::new(Registry {
        about,
        needs,
        lease: config.lease,
        conditions,
        shards,
        nodes: Mutex::default(),
    });
    Started { registry, tasks }
}

impl Registry {
    /// This process.
    pub(crate) fn instance(&self) -> Instance {
        self.about.instance
    }

    /// This node's lease with each server, in the order of the configuration.
    pub(crate) fn leases(&self) -> Vec<watch::Receiver<Option<Lease>>> {
        let lease_tasks = self
            .shards
            .iter()
            .filter_map(|share| share.lease_task.as_ref());
        lease_tasks.map(|lease_task| lease_task.lease()).collect()
    }

    /// Registers `value` in `slot` until the returned value is dropped.
    pub(crate) fn enter(&self, slot: Slot, value: Value) -> Registration {
        let shard = Arc::clone(&self.share(&slot).shard);
        let seq = shard.enter(slot.clone(), value);
        Registration::new(shard, slot, seq)
    }

    /// The same for an entry that another node has registered, and [gives up](Registration::give_up) afterwards.
    pub(crate) fn take_over(&self, slot: Slot, value: Value) -> Registration {
        let shard = Arc::clone(&self.share(&slot).shard);
        let seq = shard.take_over(slot.clone(), value);
        Registration::new(shard, slot, seq)
    }

    /// Waits up to `wait_max` until other nodes can see which users have clients here, as far as it concerns `user`; whether
    /// they can.
    pub(crate) fn user_seen(
        &self,
        user: &str,
        wait_max: Duration,
    ) -> impl Future<Output = bool> + Send + use<> {
        let shard = Arc::clone(&self.shard_of_name(user).shard);
        async move {
            let seq = shard.with(DesiredState::end);
            shard.settled(seq, wait_max).await
        }
    }

    /// The live nodes that have taken `client` over from the one to which it has connected.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: the registry cannot be read reliably.
    pub(crate) async fn nodes_of_moved(
        &self,
        client: ClientId,
    ) -> Result<Vec<Instance>, Unavailable> {
        self.nodes_of(&desired::moved_name(client)).await
    }

    /// Whether the registry works, if this node needs it.
    ///
    /// # Errors
    ///
    /// The reason, as text.
    pub(crate) fn readiness(&self) -> Result<(), NotReady> {
        let problem = self.conditions.problem(self.lease);
        match problem.filter(|_| self.needs.registry) {
            None => Ok(()),
            Some(problem @ Problem::Full(_)) => Err(NotReady::Full(problem.to_string())),
            Some(problem) => Err(NotReady::Other(problem.to_string())),
        }
    }

    /// All live nodes, this one included, read from the first server that responds: each has all leases.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: no server could be read.
    pub(crate) async fn nodes(&self) -> Result<Arc<[Node]>, Unavailable> {
        let mut nodes = Ok(None);
        for share in &*self.shards {
            let Some(lease_task) = &share.lease_task else {
                continue;
            };
            nodes = match lease_task.reliable() {
                Ok(()) => lease_task
                    .store
                    .live(lease_task.now())
                    .await
                    .map(Some)
                    .map_err(Unavailable::from),
                Err(unreliable) => Err(unreliable),
            };
            if nodes.is_ok() {
                break;
            }
        }
        let nodes: Arc<[Node]> = match nodes? {
            None => [self.about.clone()].into(),
            Some(live) => {
                // A node briefly has two leases when it replaces one with the next.
                let mut nodes: Vec<Node> = Vec::with_capacity(live.len());
                for (lease, about) in live {
                    if nodes.iter().all(|node| node.instance != lease.instance) {
                        nodes.push(Node::parse(lease, &about));
                    }
                }
                nodes.into()
            }
        };
        *self.nodes.lock() = Some((Instant::now(), Arc::clone(&nodes)));
        Ok(nodes)
    }

    /// Whether `instance` is alive, at most [`NODES_GOOD_FOR`] ago.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: the registry cannot be read reliably.
    pub(crate) async fn is_alive(&self, instance: Instance) -> Result<bool, Unavailable> {
        if instance == self.about.instance {
            return Ok(true);
        }
        let lease_tasks = || {
            self.shards
                .iter()
                .filter_map(|share| share.lease_task.as_ref())
        };
        if lease_tasks().any(|lease_task| lease_task.may_miss_some()) {
            return Ok(true); // Its lease may be evicted: whether it responds shows whether it is alive.
        }
        let lives = |nodes: &[Node]| nodes.iter().any(|node| node.instance == instance);
        let recent = self.nodes.lock().clone();
        match recent {
            Some((at, nodes)) if at.elapsed() < NODES_GOOD_FOR && lives(&nodes) => Ok(true),
            _ => Ok(lives(&self.nodes().await?)),
        }
    }

    /// The live nodes that have clients of `user`; all nodes if Redis may evict any key.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: the registry cannot be read reliably.
    pub(crate) async fn nodes_of(&self, user: &str) -> Result<Vec<Instance>, Unavailable> {
        let share = self.shard_of_name(user);
        let Some(lease_task) = &share.lease_task else {
            let is_here = share.shard.with(|desired| desired.holds(user));
            return Ok(is_here.then_some(self.about.instance).into_iter().collect());
        };
        lease_task.reliable()?;
        if lease_task.may_miss_some() {
            let nodes = self.nodes().await?;
            return Ok(nodes.iter().map(|node| node.instance).collect());
        }
        let leases = lease_task.store.leases_of(user, lease_task.now()).await?;
        let mut instances: Vec<Instance> = leases.iter().map(|lease| lease.instance).collect();
        // This node's own write may not have reached Redis yet.
        if share.shard.with(|desired| desired.holds(user)) {
            instances.push(self.about.instance);
        }
        instances.sort_unstable();
        instances.dedup();
        Ok(instances)
    }

    /// Who is in `channel`, on all living nodes, in no command.
    ///
    /// # Errors
    ///
    /// [`Unavailable`]: nobody knows now.
    pub(crate) async fn members(
        &self,
        channel: &ChannelName,
    ) -> Result<Vec<(ClientId, Bytes)>, Unavailable> {
        let share = self.shard_of_name(channel.as_str());
        match &share.lease_task {
            None => Ok(share.shard.with(|desired| desired.members(channel))),
            Some(lease_task) => {
                lease_task.reliable()?;
                Ok(lease_task.store.members(channel, lease_task.now()).await?)
            }
        }
    }

    fn share(&self, slot: &Slot) -> &Share {
        match slot {
            Slot::User(user) => self.shard_of_name(user),
            Slot::Member(channel, _) => self.shard_of_name(channel.as_str()),
        }
    }

    /// The shard on which entries under `name` are kept.
    fn shard_of_name(&self, name: &str) -> &Share {
        &self.shards[redis::shard_of(name, self.shards.len())]
    }
}

impl LeaseTask {
    /// Checks that entries of live nodes are not missing because leases cannot be renewed.
    fn reliable(&self) -> Result<(), Unavailable> {
        match self.conditions.distrust(self.server, self.config.lease) {
            None => Ok(()),
            Some(why) => Err(Unavailable::Unreliable(why)),
        }
    }

    /// Whether entries may be missing because Redis may evict any key.
    fn may_miss_some(&self) -> bool {
        self.evicts_any.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl UserWatch for Registry {
    fn connected(&self, user: &Arc<str>) {
        let slot = Slot::User(Arc::clone(user));
        self.shard_of_name(user).shard.enter(slot, Value::default());
    }

    fn disconnected(&self, user: &Arc<str>) {
        let slot = Slot::User(Arc::clone(user));
        self.shard_of_name(user).shard.leave(&slot);
    }
}

impl Registration {
    fn new(shard: Arc<Shard>, slot: Slot, seq: u64) -> Self {
        Self {
            shard,
            slot,
            seq,
            is_taken_over: false,
        }
    }

    /// Another node may take the entry over from now on, or no longer: it is not written meanwhile.
    pub(crate) fn set_offered(&self, is_offered: bool) {
        self.shard.set_offered(&self.slot, is_offered);
    }

    /// Ends it after another node has taken the entry over: nothing is removed that names the other node, and no leave is
    /// reported.
    pub(crate) fn give_up(mut self) {
        self.is_taken_over = true;
    }

    /// Waits up to `wait_max` until other nodes can see it; whether they can.
    pub(crate) fn seen(&self, wait_max: Duration) -> impl Future<Output = bool> + Send + use<> {
        let (shard, seq) = (Arc::clone(&self.shard), self.seq);
        async move { shard.settled(seq, wait_max).await }
    }

    /// Replaces the value.
    pub(crate) fn change(&mut self, value: Value) {
        self.seq = self.shard.change(&self.slot, value);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.is_taken_over {
            self.shard.release(&self.slot);
        } else {
            self.shard.leave(&self.slot);
        }
    }
}

#[cfg(test)]
mod tests;
