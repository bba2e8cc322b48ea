//! The structure of the configuration file for serde: names and types, no defaults and no validation.
//!
//! Every setting is optional here; [`config`](crate::config) has the defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use causeway_conf::{AddressRange, ByteSize, Secret, Span, Timestamp};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) listeners: Option<Vec<Listener>>,
    #[serde(default)]
    pub(super) admin: Admin,
    pub(super) websockets_over_http2: Option<bool>,
    pub(super) abort_on_client_close: Option<bool>,
    pub(super) zone: Option<String>,
    #[serde(default)]
    pub(super) pools: Vec<Pool>,
    pub(super) routes: Option<Vec<Route>>,
    #[serde(default)]
    pub(super) no_route: NoRoute,
    #[serde(default)]
    pub(super) affinity: Affinity,
    #[serde(default)]
    pub(super) health: super::health::RawHealth,
    #[serde(default)]
    pub(super) timeouts: Timeouts,
    #[serde(default)]
    pub(super) limits: super::limits::RawLimits,
    #[serde(default)]
    pub(super) drain: Drain,
    #[serde(default)]
    pub(super) rebalance: Rebalance,
    #[serde(default)]
    pub(super) takeover: Takeover,
    #[serde(default)]
    pub(super) trusted_proxies: Vec<AddressRange>,
    #[serde(default)]
    pub(super) log: Log,
    pub(super) threads: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listener {
    pub(super) address: String,
    #[serde(default)]
    pub(super) proxy_protocol: Vec<AddressRange>,
    pub(super) tls: Option<Tls>,
    pub(super) redirect_to_https: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) certificates: Option<Vec<Certificate>>,
    pub(super) folder: Option<PathBuf>,
    pub(super) min_version: Option<super::TlsVersion>,
    pub(super) http2: Option<bool>,
    pub(super) handshake: Option<Span>,
    pub(super) ticket_keys: Option<PathBuf>,
    pub(super) client_ca: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Certificate {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Takeover {
    pub(super) socket: Option<PathBuf>,
}

/// Settings, or `none`.
#[derive(Debug)]
pub(super) enum Admin {
    None,
    At(AdminSettings),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AdminSettings {
    pub(super) address: Option<String>,
    pub(super) token: Option<Secret>,
    pub(super) socket: Option<PathBuf>,
}

impl Default for Admin {
    fn default() -> Self {
        Self::At(AdminSettings::default())
    }
}

impl<'de> Deserialize<'de> for Admin {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct NoneOrMapping;
        impl<'de> Visitor<'de> for NoneOrMapping {
            type Value = Admin;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("settings such as {address: \"127.0.0.1:8081\"}, or \"none\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Admin, E> {
                match text {
                    "none" => Ok(Admin::None),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }

            fn visit_unit<E>(self) -> Result<Admin, E> {
                Ok(Admin::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Admin, A::Error> {
                AdminSettings::deserialize(MapAccessDeserializer::new(map)).map(Admin::At)
            }
        }
        from.deserialize_any(NoneOrMapping)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pool {
    pub(super) name: String,
    pub(super) pick: Option<super::Pick>,
    pub(super) cookie: Option<String>,
    pub(super) cookie_path: Option<String>,
    #[serde(default)]
    pub(super) backends: Vec<Backend>,
    pub(super) discover: Option<Discover>,
    pub(super) closed_paths: Option<Vec<String>>,
    #[serde(default)]
    pub(super) health: super::health::RawHealth,
    pub(super) tls: Option<BackendTls>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackendTls {
    pub(super) verify: Option<bool>,
    pub(super) ca: Option<PathBuf>,
    pub(super) server_name: Option<String>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Discover {
    pub(super) redis: Option<Secret>,
    pub(super) redis_urls: Option<Vec<Secret>>,
    pub(super) sentinel: Option<DiscoverSentinel>,
    pub(super) cluster: Option<DiscoverCluster>,
    pub(super) tls: Option<DiscoverTls>,
    pub(super) prefix: Option<String>,
    pub(super) every: Option<Span>,
    pub(super) allow: Option<Vec<AddressRange>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiscoverSentinel {
    pub(super) master: String,
    pub(super) servers: Vec<String>,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) database: Option<u64>,
    pub(super) sentinel_user: Option<String>,
    pub(super) sentinel_password: Option<Secret>,
    pub(super) tls: Option<DiscoverTls>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiscoverCluster {
    pub(super) servers: Vec<String>,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) announce: Option<BTreeMap<String, String>>,
    pub(super) tls: Option<DiscoverTls>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiscoverTls {
    pub(super) ca: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Backend {
    pub(super) id: String,
    pub(super) address: String,
    pub(super) weight: Option<u64>,
    pub(super) zone: Option<String>,
    pub(super) generation: Option<u64>,
    pub(super) backup: Option<bool>,
    pub(super) maintenance: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    pub(super) host: Option<String>,
    pub(super) path: Option<String>,
    pub(super) pool: String,
    pub(super) upgrades: Option<Vec<String>>,
    pub(super) strip_prefix: Option<String>,
    #[serde(default)]
    pub(super) request_headers: HeaderRules,
    #[serde(default)]
    pub(super) response_headers: HeaderRules,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeaderRules {
    #[serde(default)]
    pub(super) remove: Vec<String>,
    #[serde(default)]
    pub(super) set: BTreeMap<String, Secret>,
    #[serde(default)]
    pub(super) add: BTreeMap<String, Secret>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NoRoute {
    pub(super) status: Option<u64>,
    pub(super) body: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Affinity {
    pub(super) cookie: Option<String>,
    pub(super) path: Option<String>,
    pub(super) domain: Option<String>,
    pub(super) same_site: Option<super::SameSite>,
    pub(super) partitioned: Option<bool>,
    pub(super) secure: Option<super::Secure>,
    pub(super) http_only: Option<bool>,
    pub(super) max_age: Option<Span>,
    #[serde(default)]
    pub(super) keys: Vec<Secret>,
    pub(super) accept_unsigned_until: Option<Timestamp>,
    pub(super) sockjs_path: Option<bool>,
    pub(super) query_parameter: Option<String>,
    pub(super) sockjs_sessions: Option<u64>,
    pub(super) hold: Option<Span>,
    pub(super) hold_timeout: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    pub(super) head: Option<Span>,
    pub(super) http2_preface: Option<Span>,
    pub(super) keepalive: Option<Span>,
    pub(super) downstream_read: Option<Span>,
    pub(super) request_body_rate: Option<BodyRate>,
    pub(super) downstream_write: Option<Span>,
    pub(super) connect: Option<Span>,
    pub(super) upstream_read: Option<Span>,
    pub(super) upstream_write: Option<Span>,
    pub(super) upstream_keepalive: Option<Span>,
    pub(super) upgrade: Option<Span>,
    pub(super) tunnel_idle: Option<Span>,
    pub(super) tunnel_lifetime: Option<Span>,
    pub(super) tcp_keepalive: Option<Span>,
    pub(super) tcp_user_timeout: Option<Span>,
}

/// The lowest rate of a request body, or `off`.
#[derive(Debug, Clone, Copy)]
pub(super) enum BodyRate {
    Off,
    Min(MinRate),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MinRate {
    pub(super) per_second: Option<ByteSize>,
    pub(super) window: Option<Span>,
}

impl<'de> Deserialize<'de> for BodyRate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OffOrMapping;
        impl<'de> Visitor<'de> for OffOrMapping {
            type Value = BodyRate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rate such as {per_second: 500B, window: 30s}, or \"off\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<BodyRate, E> {
                match text {
                    "off" => Ok(BodyRate::Off),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<BodyRate, A::Error> {
                MinRate::deserialize(MapAccessDeserializer::new(map)).map(BodyRate::Min)
            }
        }
        from.deserialize_any(OffOrMapping)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Drain {
    pub(super) late: Option<Span>,
    pub(super) spread: Option<Span>,
    pub(super) timeout: Option<Span>,
    pub(super) backend_spread: Option<Span>,
    pub(super) close_tunnels: Option<Vec<super::DrainCause>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rebalance {
    pub(super) spread: Option<Span>,
    pub(super) quiet: Option<Span>,
    pub(super) threshold: Option<u64>,
    pub(super) after: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Log {
    pub(super) level: Option<super::LogLevel>,
    pub(super) format: Option<super::LogFormat>,
    pub(super) access: Option<String>,
}
