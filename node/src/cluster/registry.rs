//! Which nodes are alive, which users each of them holds, and who is in which channel.
//!
//! ```text
//! clients come and go ─▶ ledger (what is wanted) ─▶ writer ─▶ Redis ◀─ readers: only what a living lease covers
//!                                                  keeper ──▶ lease     sweeper: what a dead one left
//! ```
//! A node renews one lease, whatever it holds: that alone keeps all of its entries alive. When it ends,
//! readers pass over the entries at once, and one of the other nodes takes them out and tells who left.
//! [`ledger`] is this node's own truth; Redis is brought to agree with it, however long that takes, and is
//! written anew whenever it may have forgotten something.
//!
//! Without Redis this node is alone, and the ledger is all there is. Whatever else is read here is the same.

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
use crate::redis::Commands;

mod clock;
mod condition;
mod inspection;
mod keeper;
mod lease;
mod ledger;
mod memory;
mod namesakes;
mod node;
mod shard;
mod store;
mod trial;

pub(crate) use lease::Lease;
pub(crate) use ledger::Announce;
pub(crate) use ledger::Slot;
pub(crate) use ledger::Value;
pub(crate) use node::Node;

use condition::Conditions;
use condition::Trouble;
use keeper::Keeper;
use keeper::Parts;
use shard::Backing;
use shard::Shard;
use store::Store;

/// How long what is known of living nodes is good enough to send to one of them.
const NODES_GOOD_FOR: Duration = Duration::from_secs(1);

/// Who is told when members come and go.
pub(crate) trait News: Send + Sync + 'static {
    /// Somebody is on the list of `channel` who was not. Must not block.
    fn came(&self, channel: &ChannelName, info: Bytes);
    /// Somebody is off the list of `channel`. Must not block.
    fn left(&self, channel: &ChannelName, info: Bytes);
}

/// What a node needs of Redis besides Pub/Sub.
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

/// Why a registry that is needed cannot be relied on now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotReady {
    /// Redis is full: all nodes that share it fare alike.
    Full(String),
    /// Anything else.
    Other(String),
}

/// What a registry is started into.
pub(crate) struct Surroundings {
    /// This node, as others are to see it.
    pub(crate) about: Node,
    pub(crate) needs: Needs,
    /// Who hears of members.
    pub(crate) news: Arc<dyn News>,
    pub(crate) metrics: Arc<Metrics>,
    /// Cancelled when the node begins to stop.
    pub(crate) draining: CancellationToken,
    /// Cancelled when its clients have left.
    pub(crate) shutdown: CancellationToken,
}

/// A registry at work. Its tasks end after `shutdown`, once the others have been told.
pub(crate) struct Started {
    /// The handle for everyone.
    pub(crate) registry: Arc<Registry>,
    /// Everything that runs for it.
    pub(crate) tasks: JoinSet<()>,
}

/// The handle for everyone.
pub(crate) struct Registry {
    about: Node,
    needs: Needs,
    /// How long a lease lasts.
    lease: Duration,
    conditions: Arc<Conditions>,
    /// One for each server, in the order of the configuration; never empty.
    shards: Vec<Share>,
    /// Living nodes, and when that was known.
    nodes: Mutex<Option<(Instant, Arc<[Node]>)>>,
}

struct Share {
    shard: Arc<Shard>,
    /// Without it this node is alone.
    keeper: Option<Arc<Keeper>>,
}

/// Nobody knows now what stands in the registry; what is written stays wanted.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Away {
    /// It cannot be read.
    #[error("the registry is away: {0}")]
    Unreadable(#[from] CommandError),
    /// It can, but who is missing there may be there all the same.
    #[error("the registry cannot be relied on: {0}")]
    Unreliable(String),
}

/// Something that this node has entered, until it is dropped.
pub(crate) struct Entered {
    shard: Arc<Shard>,
    slot: Slot,
    place: u64,
}

/// Starts the registry of `broker`. Returns at once: a Redis that is away is waited for in the background.
pub(crate) fn start(
    broker: &config::Broker,
    config: &config::Registry,
    surroundings: Surroundings,
) -> Started {
    let Surroundings {
        about,
        needs,
        news,
        metrics,
        draining,
        shutdown,
    } = surroundings;
    let mut tasks = JoinSet::new();
    let servers = match broker {
        config::Broker::Memory => Vec::new(),
        config::Broker::Redis(broker) => broker.shards(),
    };
    let address = |server: &config::Redis| server.server.address.to_string();
    let conditions = Conditions::new(servers.iter().map(address).collect(), Arc::clone(&metrics));
    let shards = match broker {
        config::Broker::Memory => vec![Share {
            shard: Arc::new(Shard::new(Backing::Memory, news)),
            keeper: None,
        }],
        config::Broker::Redis(_) => {
            let share = |(server, broker): (usize, config::Redis)| {
                let name = redis::connection_name(&about.id, "registry", fastrand::u64(..));
                let shard = Arc::new(Shard::new(Backing::Redis, Arc::clone(&news)));
                let keeper = Arc::new(Keeper::new(Parts {
                    shard: Arc::clone(&shard),
                    store: Store::new(Commands::new(&broker, name)),
                    config: config.clone(),
                    backoff_max: broker.backoff_max,
                    about: about.clone(),
                    needs,
                    draining: draining.clone(),
                    conditions: Arc::clone(&conditions),
                    server,
                    address: address(&broker),
                    metrics: Arc::clone(&metrics),
                }));
                tasks.spawn(Arc::clone(&keeper).run(shutdown.clone()));
                let keeper = Some(keeper);
                Share { shard, keeper }
            };
            servers.into_iter().enumerate().map(share).collect()
        }
    };
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
        let keepers = self.shards.iter().filter_map(|share| share.keeper.as_ref());
        keepers.map(|keeper| keeper.lease()).collect()
    }

    /// Lets `value` stand in `slot` for as long as the returned value lives.
    pub(crate) fn enter(&self, slot: Slot, value: Value) -> Entered {
        let shard = Arc::clone(&self.share(&slot).shard);
        let place = shard.enter(slot.clone(), value);
        Entered { shard, slot, place }
    }

    /// Whether what this node needs of the registry can be had.
    ///
    /// # Errors
    ///
    /// Why not, for people.
    pub(crate) fn readiness(&self) -> Result<(), NotReady> {
        let trouble = self.conditions.trouble(self.lease);
        match trouble.filter(|_| self.needs.registry) {
            None => Ok(()),
            Some(trouble @ Trouble::Full(_)) => Err(NotReady::Full(trouble.to_string())),
            Some(trouble) => Err(NotReady::Other(trouble.to_string())),
        }
    }

    /// All living nodes, this one included: as the first server knows them that answers, since each has all leases.
    ///
    /// # Errors
    ///
    /// [`Away`]: nobody knows now.
    pub(crate) async fn nodes(&self) -> Result<Arc<[Node]>, Away> {
        let mut answer = Ok(None);
        for share in &*self.shards {
            let Some(keeper) = &share.keeper else {
                continue;
            };
            answer = match keeper.reliable() {
                Ok(()) => keeper
                    .store
                    .live(keeper.now())
                    .await
                    .map(Some)
                    .map_err(Away::from),
                Err(unreliable) => Err(unreliable),
            };
            if answer.is_ok() {
                break;
            }
        }
        let nodes: Arc<[Node]> = match answer? {
            None => [self.about.clone()].into(),
            Some(live) => {
                // Under two leases for a moment, when one takes over from the other.
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

    /// Whether `instance` is alive, as of a moment ago.
    ///
    /// # Errors
    ///
    /// [`Away`]: nobody knows now.
    pub(crate) async fn is_alive(&self, instance: Instance) -> Result<bool, Away> {
        if instance == self.about.instance {
            return Ok(true);
        }
        let keepers = || self.shards.iter().filter_map(|share| share.keeper.as_ref());
        if keepers().any(|keeper| keeper.may_miss_some()) {
            return Ok(true); // Its lease may be evicted: whether it answers shows whether it is there.
        }
        let lives = |nodes: &[Node]| nodes.iter().any(|node| node.instance == instance);
        let recent = self.nodes.lock().clone();
        match recent {
            Some((at, nodes)) if at.elapsed() < NODES_GOOD_FOR && lives(&nodes) => Ok(true),
            _ => Ok(lives(&self.nodes().await?)),
        }
    }

    /// The living nodes that hold clients of `user`, or may hold some where Redis evicts what it likes.
    ///
    /// # Errors
    ///
    /// [`Away`]: nobody knows now.
    pub(crate) async fn nodes_of(&self, user: &str) -> Result<Vec<Instance>, Away> {
        let share = self.share_of(user);
        let Some(keeper) = &share.keeper else {
            let is_here = share.shard.look(|ledger| ledger.holds(user));
            return Ok(is_here.then_some(self.about.instance).into_iter().collect());
        };
        keeper.reliable()?;
        if keeper.may_miss_some() {
            let nodes = self.nodes().await?;
            return Ok(nodes.iter().map(|node| node.instance).collect());
        }
        let leases = keeper.store.leases_of(user, keeper.now()).await?;
        let mut instances: Vec<Instance> = leases.iter().map(|lease| lease.instance).collect();
        // What Redis has not heard yet, this node knows.
        if share.shard.look(|ledger| ledger.holds(user)) {
            instances.push(self.about.instance);
        }
        instances.sort_unstable();
        instances.dedup();
        Ok(instances)
    }

    /// Who is in `channel`, on all living nodes, in no order.
    ///
    /// # Errors
    ///
    /// [`Away`]: nobody knows now.
    pub(crate) async fn members(
        &self,
        channel: &ChannelName,
    ) -> Result<Vec<(ClientId, Bytes)>, Away> {
        let share = self.share_of(channel.as_str());
        match &share.keeper {
            None => Ok(share.shard.look(|ledger| ledger.members(channel))),
            Some(keeper) => {
                keeper.reliable()?;
                Ok(keeper.store.members(channel, keeper.now()).await?)
            }
        }
    }

    fn share(&self, slot: &Slot) -> &Share {
        match slot {
            Slot::User(user) => self.share_of(user),
            Slot::Member(channel, _) => self.share_of(channel.as_str()),
        }
    }

    /// The one for what is kept under `name`.
    fn share_of(&self, name: &str) -> &Share {
        &self.shards[redis::shard_of(name, self.shards.len())]
    }
}

impl Keeper {
    /// Whether what stands in the registry is what there is.
    fn reliable(&self) -> Result<(), Away> {
        match self.conditions.distrust(self.server) {
            None => Ok(()),
            Some(why) => Err(Away::Unreliable(why)),
        }
    }

    /// Whether entries may be missing that their nodes want there.
    fn may_miss_some(&self) -> bool {
        self.evicts_any.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl UserWatch for Registry {
    fn came(&self, user: &Arc<str>) {
        let slot = Slot::User(Arc::clone(user));
        self.share_of(user).shard.enter(slot, Value::default());
    }

    fn left(&self, user: &Arc<str>) {
        let slot = Slot::User(Arc::clone(user));
        self.share_of(user).shard.leave(&slot);
    }
}

impl Entered {
    /// Waits until others can see it, or for as long as `patience`; whether they can.
    pub(crate) fn seen(&self, patience: Duration) -> impl Future<Output = bool> + Send + use<> {
        let (shard, place) = (Arc::clone(&self.shard), self.place);
        async move { shard.settled(place, patience).await }
    }

    /// Changes what stands there.
    pub(crate) fn change(&mut self, value: Value) {
        self.place = self.shard.change(&self.slot, value);
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.shard.leave(&self.slot);
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
