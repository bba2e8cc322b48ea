//! The broker's settings, and what a Redis URL says.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use causeway_conf::PEM_BYTES_MAX;
use causeway_conf::Secret;
use causeway_conf::read_file;
use deadpool_redis::redis::ConnectionAddr;
use deadpool_redis::redis::IntoConnectionInfo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::Checker;
use super::fits_node_id;
use crate::config::Broker;
use crate::config::ClusterServers;
use crate::config::Redis;
use crate::config::RedisAddress;
use crate::config::RedisLocation;
use crate::config::RedisServer;
use crate::config::RedisTls;
use crate::config::Sentinels;
use crate::config::raw;
use crate::config::settings;

/// The longest name of a primary, and of a host.
const MASTER_BYTES_MAX: usize = 255;
const HOST_BYTES_MAX: usize = 255;

const EXPECTED: &str = "expected redis[s]://[[user]:password@]host[:port][/database] or \
    unix:///path/to/socket[?db=0&user=...&pass=...]";

impl Checker<'_> {
    pub(super) fn broker(&mut self, raw: raw::Broker) -> Broker {
        let servers = self.servers(&raw);
        let prefix = self.prefix(raw.prefix.as_deref());
        // All are checked even if no Redis is in use: the mistake would show only later.
        let publish_queues = self.count(
            "broker.publish_queues",
            raw.publish_queues,
            &settings::PUBLISH_QUEUES,
        );
        let publish_queue_bytes_max = self.size(
            "broker.publish_queue_size",
            raw.publish_queue_size,
            &settings::PUBLISH_QUEUE_SIZE,
        );
        let publish_queue_wait = self.span(
            "broker.publish_queue_wait",
            raw.publish_queue_wait,
            &settings::PUBLISH_QUEUE_WAIT,
        );
        let connect_timeout = self.span(
            "broker.connect_timeout",
            raw.connect_timeout,
            &settings::CONNECT_TIMEOUT,
        );
        let response_timeout = self.span(
            "broker.response_timeout",
            raw.response_timeout,
            &settings::RESPONSE_TIMEOUT,
        );
        let backoff_max = self.span(
            "broker.backoff_max",
            raw.backoff_max,
            &settings::BACKOFF_MAX,
        );
        let probe_interval = self.span(
            "broker.probe_interval",
            raw.probe_interval,
            &settings::PROBE_INTERVAL,
        );
        let probe_timeout = self.span(
            "broker.probe_timeout",
            raw.probe_timeout,
            &settings::PROBE_TIMEOUT,
        );
        let message_bytes_max = self.size(
            "broker.message_size",
            raw.message_size,
            &settings::REDIS_MESSAGE_SIZE,
        );
        let mut servers = servers.into_iter();
        let Some(server) = servers.next() else {
            return Broker::Memory;
        };
        Broker::Redis(Box::new(Redis {
            prefix,
            server,
            other_servers: servers.collect(),
            publish_queues,
            publish_queue_bytes_max,
            publish_queue_wait,
            connect_timeout,
            response_timeout,
            backoff_max,
            probe_interval,
            probe_timeout,
            message_bytes_max,
            is_unready_when_full: raw.unready_when_full.unwrap_or(settings::UNREADY_WHEN_FULL),
        }))
    }

    /// What the names in Redis begin with. No `:`, so that no name of one deployment can be one of another; no braces, which
    /// would decide about the slots of a cluster; and nothing that stands for other text in a pattern.
    fn prefix(&mut self, prefix: Option<&str>) -> Arc<str> {
        let prefix = prefix.unwrap_or(settings::PREFIX);
        let max = settings::PREFIX_BYTES_MAX;
        if prefix.is_empty() || max < prefix.len() || !prefix.chars().all(fits_node_id) {
            let expected = format!("expected 1 to {max} of letters, digits, `-`, `_` and `.`");
            let found = match prefix.len() {
                length if max < length => format!("{length} bytes"),
                _ => format!("{prefix:?}"),
            };
            self.error("broker.prefix", format!("{expected}, found {found}"));
        }
        prefix.into()
    }

    /// The servers that are named, without those that are wrong; none for the memory broker.
    fn servers(&mut self, raw: &raw::Broker) -> Vec<RedisServer> {
        let kind = raw.kind.unwrap_or(raw::BrokerKind::Memory);
        if let Some(cluster) = &raw.cluster {
            return self.cluster_servers(kind, raw, cluster);
        }
        if let Some(sentinel) = &raw.sentinel {
            return self.sentinel_servers(kind, raw, sentinel);
        }
        let urls: Vec<(String, &Secret)> = match (kind, &raw.url, &raw.urls) {
            (raw::BrokerKind::Memory, url, urls) => {
                for (key, is_set) in [
                    ("broker.url", url.is_some()),
                    ("broker.urls", urls.is_some()),
                ] {
                    if is_set {
                        self.error(key, "expected none: a URL is only for `kind: redis`");
                    }
                }
                Vec::new()
            }
            (raw::BrokerKind::Redis, Some(_), Some(_)) => {
                self.error(
                    "broker.urls",
                    "expected either broker.url or broker.urls, found both",
                );
                Vec::new()
            }
            (raw::BrokerKind::Redis, Some(url), None) => vec![("broker.url".to_owned(), url)],
            (raw::BrokerKind::Redis, None, Some(urls)) => {
                if urls.is_empty() || settings::SERVERS_MAX < urls.len() {
                    let max = settings::SERVERS_MAX;
                    self.error(
                        "broker.urls",
                        format!("expected 1 to {max} URLs, found {}", urls.len()),
                    );
                }
                let key = |index| format!("broker.urls[{index}]");
                urls.iter()
                    .enumerate()
                    .map(|(index, url)| (key(index), url))
                    .collect()
            }
            (raw::BrokerKind::Redis, None, None) => {
                self.error(
                    "broker.url",
                    format!("`kind: redis` needs a url: {EXPECTED}"),
                );
                Vec::new()
            }
        };
        let ca = self.broker_ca("broker.tls.ca", raw.tls.as_ref());
        let mut servers: Vec<RedisServer> = Vec::new();
        for (key, url) in urls {
            match server(url, ca.as_ref()) {
                Err(message) => self.error(&key, message),
                Ok(server) if servers.iter().any(|other| other.is_same_data(&server)) => {
                    let address = &server.location;
                    self.error(
                        &key,
                        format!("duplicate server {address}, expected another one"),
                    );
                }
                Ok(server) => servers.push(server),
            }
        }
        if raw.tls.is_some() && servers.iter().all(|server| server.tls.is_none()) {
            self.error(
                "broker.tls",
                "expected none: it is only for URLs that begin with rediss://",
            );
        }
        servers
    }

    /// The primary that Sentinels name, unless something is wrong.
    fn sentinel_servers(
        &mut self,
        kind: raw::BrokerKind,
        broker: &raw::Broker,
        raw: &raw::BrokerSentinel,
    ) -> Vec<RedisServer> {
        const AT: &str = "broker.sentinel";
        if kind == raw::BrokerKind::Memory {
            self.error(AT, "it is only for `kind: redis`");
        } else if broker.url.is_some() || broker.urls.is_some() {
            self.error(AT, "expected one of url, urls and sentinel");
        }
        if broker.tls.is_some() {
            self.error(
                "broker.tls",
                "it is only for URLs that begin with rediss://; for Sentinel it is broker.sentinel.tls",
            );
        }
        let master = raw.master.as_deref().unwrap_or_default();
        if !(1..=MASTER_BYTES_MAX).contains(&master.len()) || !master.chars().all(fits_node_id) {
            self.error(
                &format!("{AT}.master"),
                format!("expected the name of the primary in the configuration of the Sentinels, 1 to {MASTER_BYTES_MAX} of letters, digits, `-`, `_` and `.`, found {master:?}"),
            );
        }
        for (key, user, password) in [
            ("user", &raw.user, &raw.password),
            ("sentinel_user", &raw.sentinel_user, &raw.sentinel_password),
        ] {
            if user.is_some() && password.is_none() {
                self.error(&format!("{AT}.{key}"), "a user needs a password");
            }
        }
        let servers = self.addresses(
            AT,
            "Sentinel",
            raw.servers.as_deref(),
            settings::SENTINELS_MAX,
        );
        let database = self.count(&format!("{AT}.database"), raw.database, &settings::DATABASE);
        let ca = self.broker_ca(&format!("{AT}.tls.ca"), raw.tls.as_ref());
        let tls = raw.tls.as_ref().map(|_| RedisTls { ca });
        if kind == raw::BrokerKind::Memory {
            return Vec::new();
        }
        vec![RedisServer {
            location: RedisLocation::Sentinel(Arc::new(Sentinels {
                master: master.to_owned(),
                servers,
                tls: tls.clone(),
                username: raw.sentinel_user.clone(),
                password: raw.sentinel_password.clone(),
            })),
            tls,
            database: i64::try_from(database).unwrap_or_default(),
            username: raw.user.clone(),
            password: raw.password.clone(),
        }]
    }

    /// The servers of a Redis Cluster, unless something is wrong.
    fn cluster_servers(
        &mut self,
        kind: raw::BrokerKind,
        broker: &raw::Broker,
        raw: &raw::BrokerCluster,
    ) -> Vec<RedisServer> {
        const AT: &str = "broker.cluster";
        if kind == raw::BrokerKind::Memory {
            self.error(AT, "it is only for `kind: redis`");
        } else if broker.url.is_some() || broker.urls.is_some() || broker.sentinel.is_some() {
            self.error(AT, "expected one of url, urls, sentinel and cluster");
        }
        if broker.tls.is_some() {
            self.error(
                "broker.tls",
                "it is only for URLs that begin with rediss://; for a cluster it is broker.cluster.tls",
            );
        }
        if raw.user.is_some() && raw.password.is_none() {
            self.error(&format!("{AT}.user"), "a user needs a password");
        }
        let max = settings::CLUSTER_SERVERS_MAX;
        let servers = self.addresses(AT, "server", raw.servers.as_deref(), max);
        let announce = self.announced(&format!("{AT}.announce"), raw.announce.as_ref());
        let ca = self.broker_ca(&format!("{AT}.tls.ca"), raw.tls.as_ref());
        if kind == raw::BrokerKind::Memory || servers.is_empty() {
            return Vec::new();
        }
        vec![RedisServer {
            location: RedisLocation::Cluster(Arc::new(ClusterServers {
                servers,
                announce,
                relay_pubsub: raw.relay_pubsub.unwrap_or(settings::RELAY_PUBSUB),
                is_unready_when_partial: raw
                    .unready_when_partial
                    .unwrap_or(settings::UNREADY_WHEN_PARTIAL),
            })),
            tls: raw.tls.as_ref().map(|_| RedisTls { ca }),
            database: 0,
            username: raw.user.clone(),
            password: raw.password.clone(),
        }]
    }

    /// Reads which addresses are reached at which other ones.
    fn announced(
        &mut self,
        at: &str,
        raw: Option<&BTreeMap<String, String>>,
    ) -> Vec<(RedisAddress, RedisAddress)> {
        let max = settings::CLUSTER_ANNOUNCE_MAX;
        let mut announced: Vec<(RedisAddress, RedisAddress)> = Vec::new();
        if let Some(found) = raw.map(BTreeMap::len).filter(|found| max < *found) {
            self.error(
                at,
                format!("expected at most {max} addresses, found {found}"),
            );
        }
        for (from, to) in raw.into_iter().flatten().take(max) {
            match (host_and_port(from), host_and_port(to)) {
                (Some(from), Some(to)) => announced.push((from, to)),
                (is_read, _) => {
                    let found = if is_read.is_none() { from } else { to };
                    self.error(
                        at,
                        format!("expected host:port for each host:port that the cluster names, such as \"10.0.0.1:6379\": \"127.0.0.1:7001\", found {found:?}"),
                    );
                }
            }
        }
        announced
    }

    /// Reads `servers` of the mapping `at`, each a `kind` of server.
    fn addresses(
        &mut self,
        at: &str,
        kind: &str,
        servers: Option<&[String]>,
        max: usize,
    ) -> Vec<RedisAddress> {
        let servers = servers.unwrap_or_default();
        if !(1..=max).contains(&servers.len()) {
            let found = servers.len();
            let message = format!("expected 1 to {max} {kind}s, each as host:port, found {found}");
            self.error(&format!("{at}.servers"), message);
        }
        let mut addresses = Vec::new();
        for (index, server) in servers.iter().enumerate() {
            let key = format!("{at}.servers[{index}]");
            match host_and_port(server) {
                None => self.error(
                    &key,
                    format!("expected host:port, such as \"10.0.0.1:26379\", found {server:?}"),
                ),
                Some(address) if addresses.contains(&address) => {
                    self.error(&key, format!("this {kind} is there already"));
                }
                Some(address) => addresses.push(address),
            }
        }
        addresses
    }

    /// The certificates in the file that the setting `key` names.
    fn broker_ca(&mut self, key: &str, tls: Option<&raw::BrokerTls>) -> Option<Arc<[u8]>> {
        let path = tls?.ca.as_ref()?;
        let read = read_file(path, PEM_BYTES_MAX).map_err(|error| error.to_string());
        let checked = read.and_then(|pem| {
            let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
            match certificates {
                Ok(certificates) if !certificates.is_empty() => Ok(pem.into()),
                Ok(_) => Err("the file has none".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        });
        checked
            .map_err(|message| {
                let path = path.display();
                self.error(
                    key,
                    format!("expected certificates in PEM in {path}: {message}"),
                );
            })
            .ok()
    }
}

impl RedisServer {
    /// Whether what is written to one is seen in the other.
    fn is_same_data(&self, other: &Self) -> bool {
        self.location == other.location
    }
}

/// Reads `host:port`, with an IPv6 address in brackets.
fn host_and_port(text: &str) -> Option<RedisAddress> {
    let (host, port) = text.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']').filter(|host| host.contains(':'))?,
        None => Some(host).filter(|host| !host.contains(':'))?,
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.:%".contains(c);
    let is_host = (1..=HOST_BYTES_MAX).contains(&host.len()) && host.chars().all(fits);
    let host = host.to_owned();
    is_host.then_some(RedisAddress::Tcp { host, port })
}

/// Reads a Redis URL; the error says what would be right and never repeats the URL.
fn server(url: &Secret, ca: Option<&Arc<[u8]>>) -> Result<RedisServer, String> {
    let info = url
        .expose()
        .into_connection_info()
        .map_err(|_| EXPECTED.to_owned())?;
    let (address, tls) = match info.addr() {
        ConnectionAddr::Tcp(host, port) => {
            let address = RedisAddress::Tcp {
                host: host.clone(),
                port: *port,
            };
            (address, None)
        }
        ConnectionAddr::TcpTls { insecure: true, .. } => {
            return Err("expected no `#insecure`: the certificate of the server has to be verified; its CA goes into broker.tls.ca".to_owned());
        }
        ConnectionAddr::TcpTls { host, port, .. } => {
            let address = RedisAddress::Tcp {
                host: host.clone(),
                port: *port,
            };
            (address, Some(RedisTls { ca: ca.cloned() }))
        }
        ConnectionAddr::Unix(path) if path != &PathBuf::new() => {
            (RedisAddress::Unix(path.clone()), None)
        }
        _ => return Err(EXPECTED.to_owned()),
    };
    let login = info.redis_settings();
    Ok(RedisServer {
        location: RedisLocation::At(address),
        tls,
        database: login.db(),
        username: login.username().map(str::to_owned),
        password: login
            .password()
            .map(|password| Secret::new(password.to_owned())),
    })
}
