//! `node.yaml` as it is written: one struct for each mapping, every key optional, unknown keys refused.
//!
//! Nothing is decided here; `None` means the key is missing or `null`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use causeway_conf::AddressRange;
use causeway_conf::ByteSize;
use causeway_conf::Secret;
use causeway_conf::Span;
use serde::Deserialize;
use serde::Deserializer;
use serde::de;
use serde::de::MapAccess;
use serde::de::SeqAccess;
use serde::de::Unexpected;
use serde::de::Visitor;
use serde::de::value::MapAccessDeserializer;
use serde::de::value::SeqAccessDeserializer;

use crate::config::Ack;
use crate::config::LogFormat;
use crate::config::RelayPubSub;
use crate::config::UserLimitPolicy;
use crate::config::namespace::RawNamespace;
use crate::jwt::Algorithm;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Config {
    pub(super) node: Option<Node>,
    pub(super) listen: Option<String>,
    pub(super) admin: Option<Admin>,
    pub(super) threads: Option<u64>,
    pub(super) broker: Option<Broker>,
    pub(super) auth: Option<Auth>,
    pub(super) hooks: Option<Hooks>,
    pub(super) registry: Option<Registry>,
    pub(super) lifecycle: Option<Lifecycle>,
    pub(super) api: Option<Api>,
    pub(super) values: Option<Values>,
    pub(super) endpoints: Option<Vec<Endpoint>>,
    pub(super) channels: Option<Channels>,
    pub(super) page: Option<bool>,
    pub(super) trusted_proxies: Option<Vec<AddressRange>>,
    pub(super) limits: Option<Limits>,
    pub(super) tcp: Option<Tcp>,
    pub(super) fanout: Option<Fanout>,
    pub(super) drain: Option<Drain>,
    pub(super) log: Option<Log>,
}

/// Settings, or `none`.
#[derive(Debug)]
pub(super) enum Admin {
    None,
    At(AdminSettings),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AdminSettings {
    pub(super) address: Option<String>,
}

impl<'de> Deserialize<'de> for Admin {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct NoneOrMapping;
        impl<'de> Visitor<'de> for NoneOrMapping {
            type Value = Admin;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("settings such as {address: \"127.0.0.1:10000\"}, or \"none\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Admin, E> {
                match text {
                    "none" => Ok(Admin::None),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Admin, A::Error> {
                AdminSettings::deserialize(MapAccessDeserializer::new(map)).map(Admin::At)
            }
        }
        from.deserialize_any(NoneOrMapping)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Node {
    pub(super) id: Option<String>,
    pub(super) advertise: Option<String>,
    pub(super) zone: Option<String>,
    pub(super) generation: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Registry {
    pub(super) renew: Option<Span>,
    pub(super) lease: Option<Span>,
    pub(super) verify: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Lifecycle {
    pub(super) connections: Option<bool>,
    pub(super) coalesce: Option<Span>,
    pub(super) keep: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Api {
    pub(super) path: Option<String>,
    pub(super) keys: Option<Vec<Secret>>,
    pub(super) ack: Option<Ack>,
    pub(super) history_page: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Values {
    pub(super) size: Option<ByteSize>,
    pub(super) memory: Option<ByteSize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Broker {
    pub(super) kind: Option<BrokerKind>,
    pub(super) url: Option<Secret>,
    pub(super) urls: Option<Vec<Secret>>,
    pub(super) sentinel: Option<BrokerSentinel>,
    pub(super) cluster: Option<BrokerCluster>,
    pub(super) tls: Option<BrokerTls>,
    pub(super) prefix: Option<String>,
    pub(super) publish_queues: Option<u64>,
    pub(super) publish_queue_size: Option<ByteSize>,
    pub(super) publish_queue_wait: Option<Span>,
    pub(super) connect_timeout: Option<Span>,
    pub(super) response_timeout: Option<Span>,
    pub(super) backoff_max: Option<Span>,
    pub(super) probe_interval: Option<Span>,
    pub(super) probe_timeout: Option<Span>,
    pub(super) message_size: Option<ByteSize>,
    pub(super) unready_when_full: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct BrokerSentinel {
    pub(super) master: Option<String>,
    pub(super) servers: Option<Vec<String>>,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) database: Option<u64>,
    pub(super) sentinel_user: Option<String>,
    pub(super) sentinel_password: Option<Secret>,
    pub(super) tls: Option<BrokerTls>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct BrokerCluster {
    pub(super) servers: Option<Vec<String>>,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) announce: Option<BTreeMap<String, String>>,
    pub(super) relay_pubsub: Option<RelayPubSub>,
    pub(super) unready_when_partial: Option<bool>,
    pub(super) tls: Option<BrokerTls>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct BrokerTls {
    pub(super) ca: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BrokerKind {
    Memory,
    Redis,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Auth {
    pub(super) keys: Option<Vec<AuthKey>>,
    pub(super) key_set: Option<String>,
    pub(super) audience: Option<Vec<String>>,
    pub(super) issuer: Option<String>,
    pub(super) leeway: Option<Span>,
    pub(super) anonymous: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuthKey {
    pub(super) id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: Secret,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Hooks {
    pub(super) connect: Option<Hook>,
    pub(super) refresh: Option<Hook>,
    pub(super) subscribe: Option<Hook>,
    pub(super) sub_refresh: Option<Hook>,
    pub(super) publish: Option<Hook>,
    pub(super) rpc: Option<Hook>,
    pub(super) lifecycle: Option<Hook>,
    pub(super) timeout: Option<Span>,
    pub(super) open: Option<u64>,
    pub(super) response_size: Option<ByteSize>,
    pub(super) forward_headers: Option<Vec<String>>,
    pub(super) emulated_headers: Option<Vec<String>>,
    pub(super) values: Option<Vec<String>>,
    pub(super) headers: Option<BTreeMap<String, Secret>>,
    pub(super) ca: Option<String>,
}

/// An address, or an address with limits of its own.
#[derive(Debug)]
pub(super) enum Hook {
    Address(String),
    Limited(LimitedHook),
}

impl<'de> Deserialize<'de> for Hook {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TextOrMapping;
        impl<'de> Visitor<'de> for TextOrMapping {
            type Value = Hook;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address, or {address: ..., timeout: ..., open: ...}")
            }

            fn visit_str<E>(self, text: &str) -> Result<Hook, E> {
                Ok(Hook::Address(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Hook, A::Error> {
                LimitedHook::deserialize(MapAccessDeserializer::new(map)).map(Hook::Limited)
            }
        }
        from.deserialize_any(TextOrMapping)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitedHook {
    pub(super) address: String,
    pub(super) timeout: Option<Span>,
    pub(super) open: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Endpoint {
    pub(super) path: Option<String>,
    pub(super) protocol: Option<Protocol>,
    pub(super) mode: Option<Mode>,
    pub(super) channel: Option<String>,
    pub(super) read_only: Option<bool>,
    pub(super) message_size: Option<ByteSize>,
    pub(super) commands_size: Option<ByteSize>,
    pub(super) publish_rate: Option<PublishRate>,
    pub(super) command_rate: Option<PublishRate>,
    pub(super) outbox: Option<ByteSize>,
    pub(super) allowed_origins: Option<AllowedOrigins>,
    pub(super) ping: Option<Ping>,
    pub(super) transports: Option<Vec<Transport>>,
    pub(super) heartbeat: Option<Span>,
    pub(super) disconnect_delay: Option<Span>,
    pub(super) response_limit: Option<ByteSize>,
    pub(super) cookie_needed: Option<bool>,
    pub(super) client_script: Option<String>,
}

/// The transports of both protocols that have several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Transport {
    Websocket,
    XhrStreaming,
    Eventsource,
    Htmlfile,
    Xhr,
    Jsonp,
    HttpStream,
    Sse,
    UniSse,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Channels {
    pub(super) namespaces: Option<Vec<RawNamespace>>,
    pub(super) linger: Option<Span>,
    pub(super) limits: Option<ChannelLimits>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ChannelLimits {
    pub(super) connect_timeout: Option<Span>,
    pub(super) channels_per_client: Option<u64>,
    pub(super) commands_per_client: Option<u64>,
    pub(super) connections_per_user: Option<u64>,
    pub(super) connections_per_user_policy: Option<UserLimitPolicy>,
    pub(super) history_page: Option<u64>,
    pub(super) history_bytes: Option<ByteSize>,
    pub(super) recovery: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Protocol {
    Sockjs,
    Websocket,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Mode {
    Relay,
    Echo,
    Close,
    Amplify,
    Ticker,
    Channels,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PublishRate {
    pub(super) per_second: u64,
    pub(super) burst: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Ping {
    pub(super) interval: Option<Span>,
    pub(super) timeout: Option<Span>,
}

/// `same`, or a list of origins that may hold `*`.
#[derive(Debug)]
pub(super) enum AllowedOrigins {
    Word(String),
    List(Vec<String>),
}

impl<'de> Deserialize<'de> for AllowedOrigins {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TextOrList;
        impl<'de> Visitor<'de> for TextOrList {
            type Value = AllowedOrigins;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`same`, [\"*\"] or a list of origins")
            }

            fn visit_str<E>(self, text: &str) -> Result<AllowedOrigins, E> {
                Ok(AllowedOrigins::Word(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<AllowedOrigins, A::Error> {
                let list = Vec::deserialize(SeqAccessDeserializer::new(list))?;
                Ok(AllowedOrigins::List(list))
            }
        }
        from.deserialize_any(TextOrList)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    pub(super) connections: Option<u64>,
    pub(super) memory: Option<ByteSize>,
    pub(super) sessions: Option<u64>,
    pub(super) sessions_per_address: Option<u64>,
    pub(super) head_size: Option<ByteSize>,
    pub(super) head_timeout: Option<Span>,
    pub(super) keepalive: Option<Span>,
    pub(super) body_size: Option<ByteSize>,
    pub(super) body_timeout: Option<Span>,
    pub(super) send_timeout: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tcp {
    pub(super) keepalive: Option<Span>,
    pub(super) user_timeout: Option<Span>,
    pub(super) send_buffer: Option<ByteSize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Fanout {
    pub(super) window: Option<Span>,
    pub(super) factor: Option<f64>,
    pub(super) batch: Option<ByteSize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Drain {
    pub(super) lead: Option<Span>,
    pub(super) lead_max: Option<Span>,
    pub(super) spread: Option<Span>,
    pub(super) timeout: Option<Span>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    pub(super) level: Option<String>,
    pub(super) format: Option<LogFormat>,
}
