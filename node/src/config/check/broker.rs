//! The broker's settings, and what a Redis URL says.

use std::path::PathBuf;

use causeway_conf::Secret;
use deadpool_redis::redis::ConnectionAddr;
use deadpool_redis::redis::IntoConnectionInfo;

use super::Checker;
use crate::config::Broker;
use crate::config::Redis;
use crate::config::RedisAddress;
use crate::config::RedisServer;
use crate::config::raw;
use crate::config::settings;

const EXPECTED: &str = "expected redis://[[user]:password@]host[:port][/database] or \
    unix:///path/to/socket[?db=0&user=...&pass=...]";

impl Checker<'_> {
    pub(super) fn broker(&mut self, raw: raw::Broker) -> Broker {
        let kind = raw.kind.unwrap_or(raw::BrokerKind::Memory);
        let server = match (kind, &raw.url) {
            (raw::BrokerKind::Memory, None) => None,
            (raw::BrokerKind::Memory, Some(_)) => {
                self.error("broker.url", "a URL is only for `kind: redis`");
                None
            }
            (raw::BrokerKind::Redis, None) => {
                self.error(
                    "broker.url",
                    format!("`kind: redis` needs a url: {EXPECTED}"),
                );
                None
            }
            (raw::BrokerKind::Redis, Some(url)) => server(url)
                .map_err(|message| self.error("broker.url", message))
                .ok(),
        };
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
        let Some(server) = server else {
            return Broker::Memory;
        };
        Broker::Redis(Box::new(Redis {
            server,
            lanes,
            lane_bytes_max,
            lane_wait,
            connect_timeout,
            response_timeout,
            backoff_max,
            probe_interval,
            probe_timeout,
            message_bytes_max,
        }))
    }
}

/// Reads a Redis URL; the error says what would be right and never repeats the URL.
fn server(url: &Secret) -> Result<RedisServer, String> {
    let url = url.expose();
    if url.starts_with("rediss:") {
        return Err(
            "TLS to Redis (rediss://) is not supported yet: expected redis:// or unix://"
                .to_owned(),
        );
    }
    let info = url
        .into_connection_info()
        .map_err(|_| EXPECTED.to_owned())?;
    let address = match info.addr() {
        ConnectionAddr::Tcp(host, port) => RedisAddress::Tcp {
            host: host.clone(),
            port: *port,
        },
        ConnectionAddr::Unix(path) if path != &PathBuf::new() => RedisAddress::Unix(path.clone()),
        _ => return Err(EXPECTED.to_owned()),
    };
    let login = info.redis_settings();
    Ok(RedisServer {
        address,
        database: login.db(),
        username: login.username().map(str::to_owned),
        password: login
            .password()
            .map(|password| Secret::new(password.to_owned())),
    })
}
