//! Discovers backends: relay nodes that register themselves in Redis.
//!
//! One task for each pool polls the registry. [`KnownNodes`] applies the result: a new node is added at once, a missing one is
//! removed after it has been missing for a while; until then its health checks decide whether it gets requests. Entries are
//! untrusted input: ids and zones have to be plain names, addresses have to be in `discover.allow`, unix sockets are rejected.
//! Where the nodes use several Redis servers, each holds the whole registry, and a node is registered if any of them lists it. With
//! Sentinels or a Redis Cluster it is read from the primary that has it.
//! While no server can be reached, the backends stay as they are.

use std::collections::{BTreeSet, HashMap};
use std::panic;
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_conf::Secret;
use futures_util::future;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo,
    RedisConnectionInfo, RedisError, RedisResult, TlsCertificates,
};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::config::backend::BackendId;
use crate::config::{BACKENDS_MAX, BackendConfig};
use crate::limits::ThrottledLog;
use crate::server::reload::{Discovery, Reloader};

mod known_nodes;
mod node;
mod redis_cluster;
mod sentinel;

use known_nodes::KnownNodes;
use node::{Node, SkippedNode, read};
use redis_cluster::ClusterSource;
use sentinel::SentinelSource;

/// For connecting, and for each reply.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A sorted set of the leases of live nodes, scored by their expiry; and a hash of what each node says about itself. Written by the
/// nodes, under names that begin with their `broker.prefix`.
const LIVE_LEASES: &str = ":{no}:live";
const LEASE_INFO: &str = ":{no}:info";

/// How many skipped nodes one log line names.
const NAMED_MAX: usize = 5;

/// Runs the discovery of all pools that have one, until `shutdown`.
pub(crate) async fn run(reloader: Arc<Reloader>, shutdown: CancellationToken) {
    let mut discoveries = reloader.discoveries();
    let mut tasks = JoinSet::new();
    let mut running: Vec<(Discovery, AbortHandle)> = Vec::new();
    loop {
        let wanted = discoveries.borrow_and_update().clone();
        // The discovery of a pool with unchanged settings keeps running.
        running.retain(|(discovery, task)| {
            let is_unchanged = wanted.contains(discovery);
            if !is_unchanged {
                task.abort();
            }
            is_unchanged
        });
        for discovery in wanted {
            if !running.iter().any(|(running, _)| *running == discovery) {
                let task = tasks.spawn(discover(discovery.clone(), Arc::clone(&reloader)));
                running.push((discovery, task));
            }
        }
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Ok(()) = discoveries.changed() => break,
                Some(ended) = tasks.join_next() => match ended {
                    // The supervisor of this task restarts it.
                    Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
                    Ok(()) | Err(_) => {}
                },
            }
        }
    }
}

/// Polls the registry of one pool, forever.
async fn discover(discovery: Discovery, reloader: Arc<Reloader>) {
    let Discovery { pool, config, .. } = &discovery;
    let mut known_nodes = KnownNodes::new(config.every, reloader.known(pool), Instant::now());
    let mut skipped_log = SkippedNodesLog::new(Instant::now());
    let urls = config.servers.iter().map(|url| Source::Url {
        url: url.clone(),
        ca: config.ca.clone(),
        connection: None,
    });
    let sentinel = config.sentinel.iter().map(|sentinel| {
        Source::Sentinel(SentinelSource::new(Arc::clone(sentinel), config.ca.clone()))
    });
    let cluster = config
        .cluster
        .iter()
        .map(|cluster| Source::Cluster(ClusterSource::new(Arc::clone(cluster), config.ca.clone())));
    let mut servers: Vec<Server> = { urls.chain(sentinel).chain(cluster).enumerate() }
        .map(|(number, source)| Server {
            number,
            source,
            prefix: config.prefix.clone(),
            is_unreachable: false,
        })
        .collect();
    loop {
        let polls = servers.iter_mut().map(|server| server.poll(pool));
        let replies = future::join_all(polls).await;
        if replies.iter().any(Option::is_some) {
            // Of two entries with one id the last one wins: that of the first server.
            let nodes = replies.into_iter().rev().flatten().flatten();
            let (mut known, mut skipped) = (Vec::new(), BTreeSet::new());
            for node in nodes {
                match read(&node, &config.allow) {
                    Ok(node) => known.extend(node),
                    Err(why) => _ = skipped.insert(why),
                }
            }
            let leaving = leaving(&known);
            let found: Found = known.into_iter().map(|node| node.backend).collect();
            let now = Instant::now();
            reloader.skipped(pool, skipped.len());
            skipped_log.warn(pool, skipped, now);
            if let Some(backends) = known_nodes.seen(found, now) {
                tracing::info!(
                    pool,
                    backends = backends.len(),
                    "discovered backends have changed"
                );
                reloader.found(&discovery, backends, now);
            }
            for id in leaving {
                reloader.announced_stop(pool, &id, now);
            }
        }
        time::sleep(config.every).await;
    }
}

/// Warns about skipped nodes, without filling the log.
struct SkippedNodesLog {
    last: BTreeSet<SkippedNode>,
    log: ThrottledLog,
}

impl SkippedNodesLog {
    fn new(now: Instant) -> Self {
        Self {
            last: BTreeSet::new(),
            log: ThrottledLog::new(now),
        }
    }

    /// Logs which nodes are skipped, and why, if there are new ones; at most once a second.
    fn warn(&mut self, pool: &str, skipped: BTreeSet<SkippedNode>, now: Instant) {
        if skipped == self.last {
            return;
        }
        let new: Vec<_> = skipped.difference(&self.last).collect();
        if !new.is_empty() && self.log.note(now).is_some() {
            let named = new.iter().take(NAMED_MAX).map(ToString::to_string);
            let why = named.collect::<Vec<_>>().join("; ");
            tracing::warn!(
                pool,
                why,
                nodes = skipped.len(),
                "nodes in the registry are skipped"
            );
        }
        self.last = skipped;
    }
}

/// The nodes that are stopping; of two with one id, the last one counts.
fn leaving(nodes: &[Node]) -> Vec<BackendId> {
    let latest: HashMap<&BackendId, bool> = nodes
        .iter()
        .map(|node| (&node.backend.id, node.is_removed))
        .collect();
    let leaving = latest.into_iter().filter(|(_, is_removed)| *is_removed);
    leaving.map(|(id, _)| id.clone()).collect()
}

/// A Redis server that holds the registry.
struct Server {
    number: usize,
    source: Source,
    prefix: String,
    is_unreachable: bool,
}

/// How the server is found.
enum Source {
    Url {
        url: Secret,
        ca: Option<Arc<[u8]>>,
        connection: Option<MultiplexedConnection>,
    },
    Sentinel(SentinelSource),
    Cluster(ClusterSource),
}

impl Server {
    /// The entry of each live node; `None` if the server cannot be reached.
    async fn poll(&mut self, pool: &str) -> Option<Vec<String>> {
        let server = self.number;
        match self.query(pool).await {
            Ok(nodes) => {
                if std::mem::take(&mut self.is_unreachable) {
                    tracing::info!(pool, server, "node registry is reachable again");
                }
                Some(nodes)
            }
            Err(error) => {
                if let Source::Url { connection, .. } = &mut self.source {
                    *connection = None;
                }
                if !std::mem::replace(&mut self.is_unreachable, true) {
                    tracing::warn!(pool, server, %error, "cannot reach the node registry; without any server the backends stay as they are");
                }
                None
            }
        }
    }

    async fn query(&mut self, pool: &str) -> RedisResult<Vec<String>> {
        let (url, ca, connection) = match &mut self.source {
            Source::Url {
                url,
                ca,
                connection,
            } => (url, ca, connection),
            Source::Sentinel(sentinel) => return sentinel.query(pool, &self.prefix).await,
            Source::Cluster(cluster) => return cluster.query(pool, &self.prefix).await,
        };
        let connection = match connection {
            Some(connection) => connection,
            none => {
                let info = url.expose().into_connection_info()?;
                none.insert(connect(info, ca.as_deref(), TIMEOUT).await?)
            }
        };
        living(connection, &self.prefix).await
    }
}

/// How to connect to the server at a host and a port.
fn connection_info(
    (host, port): &(String, u16),
    is_tls: bool,
    mut login: RedisConnectionInfo,
    (user, password): (&Option<String>, &Option<Secret>),
) -> RedisResult<ConnectionInfo> {
    let (host, port) = (host.clone(), *port);
    let address = if is_tls {
        ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            tls_params: None,
        }
    } else {
        ConnectionAddr::Tcp(host, port)
    };
    if let Some(user) = user {
        login = login.set_username(user);
    }
    if let Some(password) = password {
        login = login.set_password(password.expose());
    }
    Ok(address.into_connection_info()?.set_redis_settings(login))
}

/// Connects to a Redis server or a Sentinel and authenticates: the only place that does. With TLS, the server's certificate has to
/// match the host.
async fn connect(
    info: ConnectionInfo,
    ca: Option<&[u8]>,
    timeout: Duration,
) -> RedisResult<MultiplexedConnection> {
    let client = match ca {
        Some(ca) if matches!(info.addr(), ConnectionAddr::TcpTls { .. }) => {
            let trusted = TlsCertificates {
                client_tls: None,
                root_cert: Some(ca.to_vec()),
            };
            Client::build_with_tls(info, trusted)?
        }
        _ => Client::open(info)?,
    };
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(timeout));
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

/// The entry of each live node; of two with one id, the one whose lease ends last comes last.
async fn living(connection: &mut MultiplexedConnection, prefix: &str) -> RedisResult<Vec<String>> {
    let (seconds, microseconds): (u64, u64) = redis::cmd("TIME").query_async(connection).await?;
    let now = seconds * 1000 + microseconds / 1000;
    let mut pipeline = redis::pipe();
    let command = pipeline.cmd("ZRANGE").arg(format!("{prefix}{LIVE_LEASES}"));
    command.arg(format!("({now}")).arg("+inf").arg("BYSCORE");
    pipeline.cmd("HGETALL").arg(format!("{prefix}{LEASE_INFO}"));
    let replies: Result<(Vec<String>, HashMap<String, String>), RedisError> =
        pipeline.query_async(connection).await;
    let (live, mut entries) = replies?;
    // If there are more than a pool can have, the ones whose leases end last.
    Ok(live[live.len().saturating_sub(BACKENDS_MAX)..]
        .iter()
        .filter_map(|lease| entries.remove(lease))
        .collect())
}

/// The backends found by one poll.
type Found = Vec<BackendConfig>;
