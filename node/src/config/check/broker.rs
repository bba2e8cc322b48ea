//! The broker's settings, and what a Redis URL says.

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
use crate::config::Broker;
use crate::config::Redis;
use crate::config::RedisAddress;
use crate::config::RedisServer;
use crate::config::RedisTls;
use crate::config::raw;
use crate::config::settings;

const EXPECTED: &str = "expected redis[s]://[[user]:password@]host[:port][/database] or \
    unix:///path/to/socket[?db=0&user=...&pass=...]";

impl Checker<'_> {
    pub(super) fn broker(&mut self, raw: raw::Broker) -> Broker {
        let servers = self.servers(&raw);
        // All are checked even if no Redis is in use: the mistake would show only later.
        let lanes = self.count("broker.lanes", raw.lanes, &settings::LANES);
        let lane_bytes_max = self.size("broker.lane_bytes", raw.lane_bytes, &settings::LANE_BYTES);
        let lane_wait = self.span("broker.lane_wait", raw.lane_wait, &settings::LANE_WAIT);
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
            server,
            other_servers: servers.collect(),
            lanes,
            lane_bytes_max,
            lane_wait,
            connect_timeout,
            response_timeout,
            backoff_max,
            probe_interval,
            probe_timeout,
            message_bytes_max,
            is_unready_when_full: raw.unready_when_full.unwrap_or(settings::UNREADY_WHEN_FULL),
        }))
    }

    /// The servers that are named, without those that are wrong; none for the memory broker.
    fn servers(&mut self, raw: &raw::Broker) -> Vec<RedisServer> {
        let kind = raw.kind.unwrap_or(raw::BrokerKind::Memory);
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
        let ca = self.broker_ca(raw.tls.as_ref());
        let mut servers: Vec<RedisServer> = Vec::new();
        for (key, url) in urls {
            match server(url, ca.as_ref()) {
                Err(message) => self.error(&key, message),
                Ok(server) if servers.iter().any(|other| other.is_same_data(&server)) => {
                    let address = &server.address;
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

    /// The certificates in the file that `broker.tls.ca` names.
    fn broker_ca(&mut self, tls: Option<&raw::BrokerTls>) -> Option<Arc<[u8]>> {
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
                    "broker.tls.ca",
                    format!("expected certificates in PEM in {path}: {message}"),
                );
            })
            .ok()
    }
}

impl RedisServer {
    /// Whether what is written to one is seen in the other.
    fn is_same_data(&self, other: &Self) -> bool {
        self.address == other.address
    }
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
        address,
        tls,
        database: login.db(),
        username: login.username().map(str::to_owned),
        password: login
            .password()
            .map(|password| Secret::new(password.to_owned())),
    })
}
