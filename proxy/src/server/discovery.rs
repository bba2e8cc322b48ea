//! Backends that say themselves that they are there: nodes, in the registry that they keep in Redis.
//!
//! One task for each pool looks again and again. [`Roster`] decides what that means for the pool: a node that
//! is new is added at once, one that is missing is dropped when it has been missing for a while. Until then
//! its health checks say what it is good for. What nodes say is believed within bounds: ids and zones that are names, addresses
//! that `discover.allow` has, and no unix sockets. Where nodes share several servers, each has the whole registry, and
//! a node is there if one of them says so. While all are away nothing changes.

use std::collections::{BTreeSet, HashMap};
use std::panic;
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_conf::Secret;
use futures_util::future;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, TlsCertificates};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::config::backend::BackendId;
use crate::config::{BACKENDS_MAX, BackendConfig};
use crate::limits::Seldom;
use crate::server::reload::{Discovery, Reloader};

mod node;
mod roster;

use node::{Node, PassedOver, read};
use roster::Roster;

/// For a connection, and for each answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The leases of living nodes, by when they end; and what their holders say of themselves. The nodes write them.
const LIVE_LEASES: &str = "causeway:{no}:live";
const LEASE_INFO: &str = "causeway:{no}:info";

/// How many of the nodes that are passed over are named in the log at a time.
const NAMED_MAX: usize = 5;

/// Looks for backends wherever the configuration says, until `shutdown`.
pub(crate) async fn run(reloader: Arc<Reloader>, shutdown: CancellationToken) {
    let mut discoveries = reloader.discoveries();
    let mut tasks = JoinSet::new();
    let mut running: Vec<(Discovery, AbortHandle)> = Vec::new();
    loop {
        let wanted = discoveries.borrow_and_update().clone();
        // A pool that is looked for as before goes on as it is.
        running.retain(|(discovery, task)| {
            let goes_on = wanted.contains(discovery);
            if !goes_on {
                task.abort();
            }
            goes_on
        });
        for discovery in wanted {
            if !running.iter().any(|(running, _)| *running == discovery) {
                let task = tasks.spawn(look_out(discovery.clone(), Arc::clone(&reloader)));
                running.push((discovery, task));
            }
        }
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Ok(()) = discoveries.changed() => break,
                Some(ended) = tasks.join_next() => match ended {
                    // The owner of this task says what becomes of it all.
                    Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
                    Ok(()) | Err(_) => {}
                },
            }
        }
    }
}

/// Looks for the backends of one pool, for ever.
async fn look_out(discovery: Discovery, reloader: Arc<Reloader>) {
    let Discovery { pool, config, .. } = &discovery;
    let mut roster = Roster::new(config.every, reloader.known(pool), Instant::now());
    let mut complaints = Complaints::new(Instant::now());
    let servers = config.servers.iter().enumerate();
    let mut servers: Vec<Server> = servers
        .map(|(number, url)| Server {
            number,
            url: url.clone(),
            ca: config.ca.clone(),
            connection: None,
            is_away: false,
        })
        .collect();
    loop {
        let looks = servers.iter_mut().map(|server| server.look(pool));
        let answers = future::join_all(looks).await;
        if answers.iter().any(Option::is_some) {
            // The first one has the last word about a node.
            let nodes = answers.into_iter().rev().flatten().flatten();
            let (mut known, mut passed_over) = (Vec::new(), BTreeSet::new());
            for node in nodes {
                match read(&node, &config.allow) {
                    Ok(node) => known.extend(node),
                    Err(why) => _ = passed_over.insert(why),
                }
            }
            let leaving = leaving(&known);
            let found: Found = known.into_iter().map(|node| node.backend).collect();
            let now = Instant::now();
            reloader.passed_over(pool, passed_over.len());
            complaints.say(pool, passed_over, now);
            if let Some(backends) = roster.seen(found, now) {
                tracing::info!(pool, backends = backends.len(), "the nodes have changed");
                reloader.found(&discovery, backends, now);
            }
            for id in leaving {
                reloader.announced_stop(pool, &id, now);
            }
        }
        time::sleep(config.every).await;
    }
}

/// What was said of nodes that are passed over.
struct Complaints {
    last: BTreeSet<PassedOver>,
    seldom: Seldom,
}

impl Complaints {
    fn new(now: Instant) -> Self {
        Self {
            last: BTreeSet::new(),
            seldom: Seldom::new(now),
        }
    }

    /// Says which nodes are passed over, and why, when there are others than before. A registry must not fill the log.
    fn say(&mut self, pool: &str, passed_over: BTreeSet<PassedOver>, now: Instant) {
        if passed_over == self.last {
            return;
        }
        let new: Vec<_> = passed_over.difference(&self.last).collect();
        if !new.is_empty() && self.seldom.note(now).is_some() {
            let named = new.iter().take(NAMED_MAX).map(ToString::to_string);
            let why = named.collect::<Vec<_>>().join("; ");
            tracing::warn!(
                pool,
                why,
                nodes = passed_over.len(),
                "nodes in the registry are passed over"
            );
        }
        self.last = passed_over;
    }
}

/// The nodes that are stopping: of two with one id, the last one counts.
fn leaving(nodes: &[Node]) -> Vec<BackendId> {
    let latest: HashMap<&BackendId, bool> = nodes
        .iter()
        .map(|node| (&node.backend.id, node.is_removed))
        .collect();
    let leaving = latest.into_iter().filter(|(_, is_removed)| *is_removed);
    leaving.map(|(id, _)| id.clone()).collect()
}

/// One that has the registry.
struct Server {
    number: usize,
    url: Secret,
    ca: Option<Arc<[u8]>>,
    connection: Option<MultiplexedConnection>,
    is_away: bool,
}

impl Server {
    /// What each living node says of itself here; `None` if the server is away.
    async fn look(&mut self, pool: &str) -> Option<Vec<String>> {
        let server = self.number;
        match self.ask().await {
            Ok(nodes) => {
                if std::mem::take(&mut self.is_away) {
                    tracing::info!(pool, server, "the registry of nodes is back");
                }
                Some(nodes)
            }
            Err(error) => {
                self.connection = None;
                if !std::mem::replace(&mut self.is_away, true) {
                    tracing::warn!(pool, server, %error, "the registry of nodes is away, without any the backends stay as they are");
                }
                None
            }
        }
    }

    async fn ask(&mut self) -> RedisResult<Vec<String>> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(connect(self.url.expose(), self.ca.as_deref()).await?),
        };
        living(connection).await
    }
}

/// Connects and logs in. The server has to prove that it is the one in `url`, if that says TLS.
async fn connect(url: &str, ca: Option<&[u8]>) -> RedisResult<MultiplexedConnection> {
    let client = match ca {
        Some(ca) if url.starts_with("rediss://") => {
            let trusted = TlsCertificates {
                client_tls: None,
                root_cert: Some(ca.to_vec()),
            };
            Client::build_with_tls(url, trusted)?
        }
        _ => Client::open(url)?,
    };
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(TIMEOUT))
        .set_response_timeout(Some(TIMEOUT));
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

/// What each living node says of itself; of two with one id, the one that was heard of last stands last.
async fn living(connection: &mut MultiplexedConnection) -> RedisResult<Vec<String>> {
    let (seconds, microseconds): (u64, u64) = redis::cmd("TIME").query_async(connection).await?;
    let now = seconds * 1000 + microseconds / 1000;
    let mut pipeline = redis::pipe();
    let command = pipeline.cmd("ZRANGE").arg(LIVE_LEASES);
    command.arg(format!("({now}")).arg("+inf").arg("BYSCORE");
    pipeline.cmd("HGETALL").arg(LEASE_INFO);
    let answers: Result<(Vec<String>, HashMap<String, String>), RedisError> =
        pipeline.query_async(connection).await;
    let (live, mut about) = answers?;
    // Of more than a pool can have, those whose leases end last.
    Ok(live[live.len().saturating_sub(BACKENDS_MAX)..]
        .iter()
        .filter_map(|lease| about.remove(lease))
        .collect())
}

/// What a look found.
type Found = Vec<BackendConfig>;
