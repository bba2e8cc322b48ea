//! The default and the range of every setting, and nothing else. Why they are so stands in `conf/node.yaml`.

use std::time::Duration;

use crate::config::Ack;
use crate::config::ChannelTransport;
use crate::config::LogFormat;
use crate::config::RelayPubSub;
use crate::config::SockjsTransport;
use crate::config::UserLimitPolicy;

/// A default and what is allowed, ends included.
pub(super) struct Setting<T> {
    pub(super) default: T,
    pub(super) min: T,
    pub(super) max: T,
}

const fn setting<T>(default: T, min: T, max: T) -> Setting<T> {
    Setting { default, min, max }
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn days(days: u64) -> Duration {
    secs(days * 24 * 60 * 60)
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const DAY: Duration = days(1);
const HOUR: Duration = secs(60 * 60);
const YEAR: Duration = days(365);

/// Numbers up to it are exact in JSON (RFC 8259, section 6), in which edges read it.
pub(super) const GENERATION_MAX: u64 = (1 << 53) - 1;
pub(super) const LISTEN: &str = "127.0.0.1:9000";
pub(super) const ADMIN_PORT_OFFSET: u16 = 1000;
pub(super) const THREADS_MAX: u64 = 1024;
pub(super) const PAGE: bool = true;

/// What the names in Redis begin with.
pub(super) const PREFIX: &str = "causeway";
pub(super) const PREFIX_BYTES_MAX: usize = 64;
/// Servers that share the channels.
pub(super) const SERVERS_MAX: usize = 64;
/// Sentinels that are asked for the primary.
pub(super) const SENTINELS_MAX: usize = 16;
/// Servers of a Redis Cluster that are named, and addresses that are replaced.
pub(super) const CLUSTER_SERVERS_MAX: usize = 64;
pub(super) const CLUSTER_ANNOUNCE_MAX: usize = 1024;
pub(super) const RELAY_PUBSUB: RelayPubSub = RelayPubSub::Sharded;
pub(super) const UNREADY_WHEN_PARTIAL: bool = true;
pub(super) const DATABASE: Setting<u64> = setting(0, 0, 1_000_000);
pub(super) const PUBLISH_QUEUES: Setting<u64> = setting(2, 1, 64);
pub(super) const PUBLISH_QUEUE_SIZE: Setting<u64> = setting(MIB, 4 * KIB, 1024 * MIB);
pub(super) const PUBLISH_QUEUE_WAIT: Setting<Duration> = setting(secs(5), ms(10), HOUR);
pub(super) const CONNECT_TIMEOUT: Setting<Duration> = setting(secs(1), ms(10), secs(60));
pub(super) const RESPONSE_TIMEOUT: Setting<Duration> = setting(secs(2), ms(10), secs(60));
pub(super) const BACKOFF_MAX: Setting<Duration> = setting(secs(1), ms(10), secs(60));
pub(super) const PROBE_INTERVAL: Setting<Duration> = setting(secs(2), ms(50), secs(60));
pub(super) const PROBE_TIMEOUT: Setting<Duration> = setting(secs(1), ms(50), secs(60));
pub(super) const UNREADY_WHEN_FULL: bool = false;
pub(super) const REDIS_MESSAGE_SIZE: Setting<u64> = setting(MIB, KIB, 64 * MIB);

pub(super) const LEEWAY: Setting<Duration> = setting(secs(5), Duration::ZERO, secs(600));
pub(super) const ANONYMOUS: bool = false;

pub(super) const HOOK_TIMEOUT: Setting<Duration> = setting(secs(1), ms(10), secs(60));
pub(super) const HOOKS_OPEN: Setting<u64> = setting(64, 1, 10_000);
pub(super) const HOOK_RESPONSE_SIZE: Setting<u64> = setting(64 * KIB, KIB, 16 * MIB);

pub(super) const HOOK_VALUES_MAX: usize = 8;

pub(super) const LEASE_RENEW: Setting<Duration> = setting(secs(2), ms(50), secs(60));
pub(super) const LEASE: Setting<Duration> = setting(secs(8), ms(200), HOUR);
pub(super) const VERIFY: Setting<Duration> = setting(secs(300), ms(100), DAY);

pub(super) const LIFECYCLE_CONNECTIONS: bool = false;
pub(super) const LIFECYCLE_COALESCE: Setting<Duration> = setting(secs(5), Duration::ZERO, HOUR);
pub(super) const LIFECYCLE_KEEP: Setting<u64> = setting(100_000, 100, 10_000_000);

pub(super) const API_PATH: &str = "/api";
/// A key that can be guessed is none.
pub(super) const API_KEY_BYTES_MIN: usize = 16;
pub(super) const API_ACK: Ack = Ack::Stored;
pub(super) const VALUE_SIZE: Setting<u64> = setting(16 * KIB, 1, MIB);
pub(super) const VALUES_MEMORY: Setting<u64> = setting(64 * MIB, MIB, 1024 * MIB);

pub(super) const CHANNEL: &str = "global";
pub(super) const READ_ONLY: bool = false;
pub(super) const MESSAGE_SIZE: Setting<u64> = setting(64 * KIB, 1, 16 * MIB);
/// The default is what [`COMMAND_SIZE`] says, and at most this.
pub(super) const COMMANDS_SIZE: Setting<u64> = setting(16 * MIB, 1, 64 * MIB);
/// What a client that comes back says of each of its channels: a token, and a name and a position.
pub(super) const COMMAND_SIZE: u64 = 4 * KIB;
/// What goes around commands on their way to another node.
pub(super) const COMMANDS_ENVELOPE: u64 = KIB;
pub(super) const OUTBOX: Setting<u64> = setting(256 * KIB, KIB, 256 * MIB);
pub(super) const RATE_MAX: u64 = 1_000_000;
pub(super) const COMMANDS_PER_SECOND: u32 = 100;
/// The least that a client may send at once, and how many for each channel that it may have.
pub(super) const COMMANDS_AT_ONCE: u32 = 1000;
pub(super) const COMMANDS_PER_CHANNEL: u32 = 8;
pub(super) const PING_INTERVAL: Setting<Duration> = setting(secs(25), ms(100), HOUR);
pub(super) const PING_TIMEOUT: Setting<Duration> = setting(secs(10), ms(100), HOUR);
pub(super) const HEARTBEAT: Setting<Duration> = setting(secs(25), ms(100), HOUR);
pub(super) const DISCONNECT_DELAY: Setting<Duration> = setting(secs(5), ms(100), HOUR);
pub(super) const RESPONSE_LIMIT: Setting<u64> = setting(128 * KIB, 1, 64 * MIB);
pub(super) const COOKIE_NEEDED: bool = false;
pub(super) const TRANSPORTS: [SockjsTransport; 6] = [
    SockjsTransport::Websocket,
    SockjsTransport::XhrStreaming,
    SockjsTransport::Eventsource,
    SockjsTransport::Htmlfile,
    SockjsTransport::Xhr,
    SockjsTransport::Jsonp,
];
/// `response_limit` of the `/echo` that is there without a file: what the SockJS protocol suite expects.
pub(super) const ECHO_RESPONSE_LIMIT: u64 = 4 * KIB;

pub(super) const CHANNEL_TRANSPORTS: [ChannelTransport; 4] = [
    ChannelTransport::Websocket,
    ChannelTransport::HttpStream,
    ChannelTransport::Sse,
    ChannelTransport::UniSse,
];

pub(super) const LINGER: Setting<Duration> = setting(secs(10), Duration::ZERO, HOUR);
pub(super) const STREAM_JOIN_TIMEOUT: Duration = secs(5);
pub(super) const STREAM_GAP_TIMEOUT: Duration = secs(4);
pub(super) const STREAM_RING_BYTES_MAX: usize = 1 << 20;
pub(super) const CHANNELS_CONNECT_TIMEOUT: Setting<Duration> = setting(secs(10), ms(100), HOUR);
pub(super) const CHANNELS_PER_CLIENT: Setting<u64> = setting(128, 1, 1_000_000);
pub(super) const CONNECTIONS_PER_USER_POLICY: UserLimitPolicy = UserLimitPolicy::RefuseNewest;
pub(super) const RECOVERY_PUBLICATIONS: Setting<u64> = setting(10_000, 1, 1_000_000);
pub(super) const HISTORY_BYTES: Setting<u64> = setting(4 * MIB, 64 * KIB, 256 * MIB);
pub(super) const COMMANDS_PER_CLIENT: Setting<u64> = setting(16, 1, 1024);
pub(super) const HISTORY_PAGE: Setting<u64> = setting(1000, 1, 1_000_000);
pub(super) const HISTORY_SIZE: Setting<u64> = setting(100, 1, 1_000_000);
pub(super) const HISTORY_LIFETIME: Setting<Duration> = setting(HOUR, ms(100), YEAR);
pub(super) const HISTORY_META_LIFETIME: Setting<Duration> = setting(days(30), ms(100), YEAR);

/// A node without clients takes that much.
pub(super) const MEMORY: Setting<u64> = setting(MIB << 20, 32 * MIB, MIB << 20);
pub(super) const CONNECTIONS_MAX: u64 = 100_000_000;
pub(super) const SESSIONS: Setting<u64> = setting(50_000, 1, 100_000_000);
pub(super) const SESSIONS_PER_ADDRESS: Setting<u64> = setting(1000, 1, 100_000_000);
/// Not below 8 KiB: hyper refuses a smaller buffer.
pub(super) const HEAD_SIZE: Setting<u64> = setting(16 * KIB, 8 * KIB, MIB);
pub(super) const HEAD_TIMEOUT: Setting<Duration> = setting(secs(10), ms(100), HOUR);
pub(super) const KEEPALIVE: Setting<Duration> = setting(secs(75), ms(100), HOUR);
pub(super) const BODY_SIZE: Setting<u64> = setting(512 * KIB, 1, 256 * MIB);
pub(super) const BODY_TIMEOUT: Setting<Duration> = setting(secs(30), ms(100), HOUR);
pub(super) const SEND_TIMEOUT: Setting<Duration> = setting(secs(30), ms(100), HOUR);

pub(super) const TCP_KEEPALIVE: Setting<Duration> = setting(secs(60), secs(1), HOUR);
pub(super) const TCP_USER_TIMEOUT: Setting<Duration> = setting(secs(30), secs(1), HOUR);
pub(super) const SEND_BUFFER: Setting<u64> = setting(128 * KIB, 4 * KIB, 64 * MIB);

pub(super) const WINDOW: Setting<Duration> = setting(ms(20), Duration::ZERO, secs(1));
pub(super) const FACTOR: Setting<f64> = setting(2.7, 1.0, 100.0);
pub(super) const BATCH: Setting<u64> = setting(256 * KIB, 4 * KIB, 64 * MIB);

pub(super) const DRAIN_LEAD: Setting<Duration> = setting(Duration::ZERO, Duration::ZERO, HOUR);
pub(super) const DRAIN_LEAD_MAX: Setting<Duration> = setting(secs(5), Duration::ZERO, HOUR);
pub(super) const DRAIN_SPREAD: Setting<Duration> = setting(secs(1), Duration::ZERO, HOUR);
pub(super) const DRAIN_TIMEOUT: Setting<Duration> = setting(secs(10), ms(100), DAY);

pub(super) const LOG_LEVEL: &str = "info";
pub(super) const LOG_FORMAT: LogFormat = LogFormat::Json;
