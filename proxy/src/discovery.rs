//! Backends that say themselves that they are there: nodes, in the registry that they keep in Redis.
//!
//! One task for each pool looks again and again. [`Roster`] decides what that means for the pool: a node that
//! is new is added at once, one that is missing is dropped when it has been missing for a while. Until then
//! its health checks say what it is good for. While Redis is away nothing changes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult};
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::config::BackendConfig;
use crate::reload::{Discovery, Reloader};

mod node;
mod roster;

use node::backend;
use roster::Roster;

/// For a connection, and for each answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The leases of living nodes, by when they end; and what their holders say of themselves. The nodes write them.
const LIVE_LEASES: &str = "causeway:{no}:live";
const LEASE_INFO: &str = "causeway:{no}:info";

/// Looks for backends wherever the configuration says, until `shutdown`.
pub(crate) async fn run(reloader: Arc<Reloader>, shutdown: CancellationToken) {
    let mut discoveries = reloader.discoveries();
    loop {
        let wanted = discoveries.borrow_and_update().clone();
        let mut tasks = JoinSet::new();
        for discovery in wanted {
            tasks.spawn(look_out(discovery, Arc::clone(&reloader)));
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Ok(()) = discoveries.changed() => {}
        }
    }
}

/// Looks for the backends of one pool, for ever.
async fn look_out(discovery: Discovery, reloader: Arc<Reloader>) {
    let Discovery { pool, config } = discovery;
    let mut roster = Roster::new(config.every);
    let mut connection = None;
    let mut is_away = false;
    loop {
        match look(config.redis.expose(), &mut connection).await {
            Ok(nodes) => {
                if std::mem::take(&mut is_away) {
                    tracing::info!(pool, "the registry of nodes is back");
                }
                let found = nodes.iter().filter_map(|node| backend(&pool, node));
                let now = Instant::now();
                if let Some(backends) = roster.seen(found.collect(), now) {
                    tracing::info!(pool, backends = backends.len(), "the nodes have changed");
                    reloader.found(&pool, backends, now);
                }
            }
            Err(error) => {
                connection = None;
                if !std::mem::replace(&mut is_away, true) {
                    tracing::warn!(pool, %error, "the registry of nodes is away, the backends stay as they are");
                }
            }
        }
        time::sleep(config.every).await;
    }
}

/// What each living node says of itself; of two with one id, the one that was heard of last stands last.
async fn look(
    url: &str,
    connection: &mut Option<MultiplexedConnection>,
) -> RedisResult<Vec<String>> {
    if connection.is_none() {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT));
        let client = Client::open(url)?;
        let opening = client.get_multiplexed_async_connection_with_config(&config);
        *connection = Some(opening.await?);
    }
    let Some(connection) = connection else {
        return Ok(Vec::new());
    };
    let (seconds, microseconds): (u64, u64) = redis::cmd("TIME").query_async(connection).await?;
    let now = seconds * 1000 + microseconds / 1000;
    let mut pipeline = redis::pipe();
    let command = pipeline.cmd("ZRANGE").arg(LIVE_LEASES);
    command.arg(format!("({now}")).arg("+inf").arg("BYSCORE");
    pipeline.cmd("HGETALL").arg(LEASE_INFO);
    let answers: Result<(Vec<String>, std::collections::HashMap<String, String>), RedisError> =
        pipeline.query_async(connection).await;
    let (live, mut about) = answers?;
    Ok(live
        .iter()
        .filter_map(|lease| about.remove(lease))
        .collect())
}

/// What a look found.
type Found = Vec<BackendConfig>;
