//! Reads the registry from the primary of a Redis Cluster that has it: all of its keys are in one slot.
//!
//! The server of the last poll is asked first, then the configured ones, and whatever they name instead (`MOVED`). One that does not
//! have the slot says so, and one that is cut off from the cluster does not serve it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{ConnectionInfo, RedisConnectionInfo, RedisError, RedisResult};
use tokio::time;
use tokio::time::Instant;

use super::{LIVE_LEASES, connect, connection_info, living};
use crate::config::ClusterConfig;

/// For one server: to connect, and for each reply.
const TIMEOUT: Duration = Duration::from_secs(1);

/// For all servers in one poll.
const POLL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a poll follows from one server to the next.
const REDIRECTS_MAX: usize = 5;

/// A host and a port.
type Server = (String, u16);

/// The registry in a Redis Cluster.
pub(super) struct ClusterSource {
    config: Arc<ClusterConfig>,
    ca: Option<Arc<[u8]>>,
    /// The server that had the registry in the last poll, and a connection to it.
    in_use: Option<(Server, MultiplexedConnection)>,
    last: Option<Server>,
    /// The configured server that the next poll begins with: the others may be away.
    first: usize,
}

impl ClusterSource {
    pub(super) fn new(config: Arc<ClusterConfig>, ca: Option<Arc<[u8]>>) -> Self {
        Self {
            config,
            ca,
            in_use: None,
            last: None,
            first: 0,
        }
    }

    /// The entry of each live node.
    pub(super) async fn query(&mut self, pool: &str, prefix: &str) -> RedisResult<Vec<String>> {
        let config = Arc::clone(&self.config);
        let (head, tail) = config.servers.split_at(self.first);
        let mut servers: VecDeque<Server> = self.last.clone().into_iter().collect();
        servers.extend(tail.iter().chain(head).cloned());
        let deadline = Instant::now() + POLL_TIMEOUT;
        let mut redirects = 0;
        let mut last: RedisError = io::Error::other("no server of the cluster responds").into();
        while let Some(server) = servers.pop_front() {
            let Ok(read) = time::timeout_at(deadline, self.read(&server, prefix)).await else {
                break;
            };
            match read {
                Ok(nodes) => {
                    if self.last.as_ref() != Some(&server) {
                        let (host, port) = &server;
                        tracing::info!(pool, redis = %format_args!("{host}:{port}"), "primary of the node registry");
                        self.last = Some(server);
                    }
                    return Ok(nodes);
                }
                Err(error) => {
                    if let Some(to) = moved(&error, &server)
                        && redirects < REDIRECTS_MAX
                    {
                        redirects += 1;
                        servers.push_front(reached(&config, to));
                    }
                    last = error;
                }
            }
        }
        self.in_use = None;
        self.first = (self.first + 1) % config.servers.len().max(1);
        Err(last)
    }

    async fn read(&mut self, server: &Server, prefix: &str) -> RedisResult<Vec<String>> {
        let in_use = self.in_use.take().filter(|(in_use, _)| in_use == server);
        let mut connection = match in_use {
            Some((_, connection)) => connection,
            None => {
                let info = self.config.info(server)?;
                connect(info, self.ca.as_deref(), TIMEOUT).await?
            }
        };
        // Alone, since among others the redirect would be one error of several.
        let mut check = redis::cmd("ZRANGE");
        check.arg(format!("{prefix}{LIVE_LEASES}")).arg(0).arg(0);
        let _: Vec<String> = check.query_async(&mut connection).await?;
        let nodes = living(&mut connection, prefix).await?;
        self.in_use = Some((server.clone(), connection));
        Ok(nodes)
    }
}

/// The server that a redirect names; one without a host is on the host of the server that was `asked`.
fn moved(error: &RedisError, asked: &Server) -> Option<Server> {
    let (address, _) = error.redirect_node()?;
    let (host, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    let host = match host.trim_matches(['[', ']']) {
        "" => &asked.0,
        "?" => return None,
        host => host,
    };
    Some((host.to_ascii_lowercase(), port))
}

/// Where the server is reached that the cluster names so.
fn reached(config: &ClusterConfig, named: Server) -> Server {
    let mut announced = config.announce.iter();
    let found = announced.find(|(announced, _)| *announced == named);
    found.map_or(named, |(_, reached)| reached.clone())
}

impl ClusterConfig {
    fn info(&self, server: &Server) -> RedisResult<ConnectionInfo> {
        let login = RedisConnectionInfo::default();
        let user = (&self.user, &self.password);
        connection_info(server, self.is_tls, login, user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> RedisError {
        let reply = format!("-{text}\r\n");
        let value = redis::parse_redis_value(reply.as_bytes()).unwrap();
        value.extract_error().unwrap_err()
    }

    fn server(host: &str, port: u16) -> Server {
        (host.to_owned(), port)
    }

    #[test]
    fn a_redirect_names_the_next_server() {
        let asked = server("asked", 1);
        for (text, expected) in [
            ("MOVED 7 10.0.0.1:7001", Some(server("10.0.0.1", 7001))),
            ("MOVED 7 ::1:7001", Some(server("::1", 7001))),
            ("MOVED 7 :7001", Some(server("asked", 7001))),
            ("MOVED 7 ?:7001", None),
            ("MOVED 7 a:0", None),
            ("CLUSTERDOWN Hash slot not served", None),
        ] {
            assert_eq!(moved(&error(text), &asked), expected, "{text}");
        }
    }

    #[test]
    fn an_announced_address_is_replaced() {
        let config = ClusterConfig {
            servers: vec![server("a", 1)],
            announce: vec![(server("inside", 7), server("outside", 8))],
            user: None,
            password: None,
            is_tls: false,
        };
        let reached = |host, port| reached(&config, server(host, port));
        assert_eq!(reached("inside", 7), server("outside", 8));
        assert_eq!(reached("inside", 8), server("inside", 8));
    }
}
