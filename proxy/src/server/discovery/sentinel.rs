//! Reads the registry from the primary that Sentinels name.
//!
//! Sentinels are asked before each poll. Of what they name, the newest epoch comes first; one that is older than that of the
//! primary in use counts only if most Sentinels name it. A server is read only if it says that it is a primary. While no Sentinel
//! responds, the primary in use is read for as long as it is one.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future;
use redis::aio::MultiplexedConnection;
use redis::{ConnectionInfo, FromRedisValue, RedisConnectionInfo, RedisResult, Value};

use super::{connect, connection_info, living};
use crate::config::SentinelConfig;

/// For a Sentinel: to connect, and to reply. The polls wait for it.
const SENTINEL_TIMEOUT: Duration = Duration::from_secs(1);

/// For a primary: to connect, and for each reply.
const TIMEOUT: Duration = super::TIMEOUT;

/// A primary that Sentinels name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    host: String,
    port: u16,
    /// The epoch of the failover that made it the primary; 0 if it is not known.
    epoch: u64,
}

/// The registry on the primary that Sentinels name.
pub(super) struct SentinelSource {
    config: Arc<SentinelConfig>,
    ca: Option<Arc<[u8]>>,
    /// A connection to each Sentinel.
    sentinels: Vec<Option<MultiplexedConnection>>,
    in_use: Option<Named>,
    /// To the primary in use.
    connection: Option<MultiplexedConnection>,
}

impl SentinelSource {
    pub(super) fn new(config: Arc<SentinelConfig>, ca: Option<Arc<[u8]>>) -> Self {
        Self {
            sentinels: config.servers.iter().map(|_| None).collect(),
            config,
            ca,
            in_use: None,
            connection: None,
        }
    }

    /// The entry of each live node.
    pub(super) async fn query(&mut self, pool: &str, prefix: &str) -> RedisResult<Vec<String>> {
        let (candidates, why) = self.candidates().await;
        let mut last = io::Error::other(why).into();
        for candidate in candidates {
            match self.read(&candidate, prefix).await {
                Ok(nodes) => {
                    if self.in_use.as_ref() != Some(&candidate) {
                        let (host, port) = (&candidate.host, candidate.port);
                        tracing::info!(pool, redis = %format_args!("{host}:{port}"), "primary of the node registry");
                    }
                    self.in_use = Some(candidate);
                    return Ok(nodes);
                }
                Err(error) => {
                    self.connection = None;
                    last = error;
                }
            }
        }
        Err(last)
    }

    /// The servers to try, in this order; and why there are none.
    async fn candidates(&mut self) -> (Vec<Named>, String) {
        let asks = self.sentinels.iter_mut().enumerate();
        let asks = asks.map(|(index, connection)| {
            let config = Arc::clone(&self.config);
            let ca = self.ca.clone();
            async move {
                let asked = ask(&config, index, ca.as_deref(), connection).await;
                if asked.is_err() {
                    *connection = None;
                }
                asked
            }
        });
        let mut named = Vec::new();
        let mut why = format!("no sentinel knows `{}`", self.config.master);
        for said in future::join_all(asks).await {
            match said {
                Ok(found) => named.extend(found),
                Err(error) => why = format!("no sentinel responds: {error}"),
            }
        }
        let mut candidates = ranked(named, self.sentinels.len(), self.in_use.as_ref());
        if candidates.is_empty() {
            candidates.extend(self.in_use.clone());
        }
        (candidates, why)
    }

    async fn read(&mut self, named: &Named, prefix: &str) -> RedisResult<Vec<String>> {
        if self.in_use.as_ref() != Some(named) {
            self.connection = None;
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let info = self.config.primary(&named.host, named.port)?;
                none.insert(connect(info, self.ca.as_deref(), TIMEOUT).await?)
            }
        };
        let role: Vec<Value> = redis::cmd("ROLE").query_async(connection).await?;
        let role = role.into_iter().next().unwrap_or(Value::Nil);
        let role = String::from_redis_value(role)?;
        if role != "master" {
            let (host, port) = (&named.host, named.port);
            let role: String = role.chars().take(32).collect();
            let text = format!("redis at {host}:{port} is not a primary: its role is {role}");
            return Err(io::Error::other(text).into());
        }
        living(connection, prefix).await
    }
}

/// Asks one Sentinel; `None` if it does not know the primary.
async fn ask(
    config: &SentinelConfig,
    index: usize,
    ca: Option<&[u8]>,
    connection: &mut Option<MultiplexedConnection>,
) -> RedisResult<Option<Named>> {
    let connection = match connection {
        Some(connection) => connection,
        none => {
            let (host, port) = &config.servers[index];
            let info = config.sentinel(host, *port)?;
            none.insert(connect(info, ca, SENTINEL_TIMEOUT).await?)
        }
    };
    let mut batch = redis::pipe();
    let command = batch.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME");
    command.arg(&config.master);
    // For the epoch; a user who may not ask for it has none.
    batch.cmd("SENTINEL").arg("MASTER").arg(&config.master);
    let replies = connection.send_packed_commands(&batch, 0, 2).await?;
    let mut replies = replies.into_iter();
    let (address, about) = (replies.next(), replies.next());
    let address = address.unwrap_or(Value::Nil).extract_error()?;
    let Some((host, port)) = Option::<(String, u16)>::from_redis_value(address)? else {
        return Ok(None);
    };
    let fields = about.and_then(|about| HashMap::<String, String>::from_redis_value(about).ok());
    let epoch = fields.and_then(|fields| fields.get("config-epoch")?.parse().ok());
    Ok(Some(Named {
        host,
        port,
        epoch: epoch.unwrap_or_default(),
    }))
}

/// What Sentinels name, the newest epoch first, then what more of them name.
fn ranked(named: Vec<Named>, sentinels: usize, in_use: Option<&Named>) -> Vec<Named> {
    let mut candidates: Vec<(Named, usize)> = Vec::new();
    for named in named {
        let mut known = candidates.iter_mut();
        match known.find(|(it, _)| (&it.host, it.port) == (&named.host, named.port)) {
            Some((known, votes)) => {
                *votes += 1;
                known.epoch = known.epoch.max(named.epoch);
            }
            None => candidates.push((named, 1)),
        }
    }
    candidates.retain(|(named, votes)| {
        let is_old = in_use.is_some_and(|in_use| named.epoch < in_use.epoch);
        !is_old || sentinels < 2 * votes
    });
    candidates.sort_by_key(|(named, votes)| Reverse((named.epoch, *votes)));
    candidates.into_iter().map(|(named, _)| named).collect()
}

impl SentinelConfig {
    /// How to connect to a primary.
    fn primary(&self, host: &str, port: u16) -> RedisResult<ConnectionInfo> {
        let login = RedisConnectionInfo::default().set_db(self.database);
        self.info(host, port, login, (&self.user, &self.password))
    }

    /// How to connect to a Sentinel.
    fn sentinel(&self, host: &str, port: u16) -> RedisResult<ConnectionInfo> {
        let login = RedisConnectionInfo::default();
        let user = (&self.sentinel_user, &self.sentinel_password);
        self.info(host, port, login, user)
    }

    fn info(
        &self,
        host: &str,
        port: u16,
        login: RedisConnectionInfo,
        user: (&Option<String>, &Option<causeway_conf::Secret>),
    ) -> RedisResult<ConnectionInfo> {
        connection_info(&(host.to_owned(), port), self.is_tls, login, user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(host: &str, epoch: u64) -> Named {
        let (host, port) = (host.to_owned(), 6379);
        Named { host, port, epoch }
    }

    #[test]
    fn the_newest_epoch_comes_first_and_an_older_one_counts_only_if_most_name_it() {
        let all = vec![named("a", 3), named("b", 4), named("a", 3), named("c", 3)];
        let found = ranked(all, 4, None);
        assert_eq!(found, [named("b", 4), named("a", 3), named("c", 3)]);
        let in_use = named("new", 7);
        let of = |all: &[Named], sentinels| ranked(all.to_vec(), sentinels, Some(&in_use));
        let old = named("old", 6);
        assert_eq!(of(std::slice::from_ref(&old), 3), []);
        assert_eq!(
            of(&[old.clone(), old.clone()], 3),
            std::slice::from_ref(&old)
        );
        let both = of(&[old.clone(), named("new", 7)], 2);
        assert_eq!(both, [named("new", 7)]);
    }
}
