//! From what the file says to what applies: defaults filled in, ranges and relations checked.
//!
//! Every check that fails adds an error and goes on with the default, so that one run reports all
//! mistakes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use causeway_conf::ByteSize;
use causeway_conf::ConfError;
use causeway_conf::ConfErrors;
use causeway_conf::Positions;
use causeway_conf::Span;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::Broker;
use crate::config::Channels;
use crate::config::Config;
use crate::config::Drain;
use crate::config::Endpoint;
use crate::config::Fanout;
use crate::config::Lead;
use crate::config::Limits;
use crate::config::Log;
use crate::config::Mode;
use crate::config::Protocol;
use crate::config::Tcp;
use crate::config::raw;
use crate::config::settings;
use crate::config::settings::Setting;

mod api;
mod auth;
mod broker;
mod channels;
mod endpoint;
mod hooks;
mod lifecycle;
mod registry;
mod warnings;

use warnings::NeededHook;
use warnings::has_what_the_page_needs;

/// The longest node id, in bytes.
pub(super) const NODE_ID_BYTES_MAX: usize = 64;

/// Whether a node id may hold `c`: what is safe in a header, a metric label and a channel name.
pub(super) fn fits_node_id(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// Checks `raw`, whose keys stand at `positions`.
pub(super) fn check(raw: raw::Config, positions: &Positions) -> Result<Config, ConfErrors> {
    let mut checker = Checker {
        positions,
        errors: Vec::new(),
        warnings: positions.renamed().to_vec(),
        hooks_needed: Vec::new(),
    };
    let mut config = checker.config(raw);
    if checker.errors.is_empty() {
        checker.warnings.sort_by_key(|warning| warning.position);
        config.warnings = checker.warnings;
        Ok(config)
    } else {
        // In reading order; what stands at one place keeps the order of the checks.
        checker.errors.sort_by_key(|error| error.position);
        Err(ConfErrors(checker.errors))
    }
}

/// Whether `text` is a level or a list of `TARGET=LEVEL` and levels.
///
/// `tracing` would take a misspelled level for the name of a target and log nothing else.
fn is_filter(text: &str) -> bool {
    let is_level = |text: &str| text.trim().parse::<LevelFilter>().is_ok();
    let mut directives = text.split(',');
    directives.all(|directive| match directive.split_once('=') {
        Some((_, level)) => is_level(level),
        None => is_level(directive),
    }) && EnvFilter::try_new(text).is_ok()
}

/// The default of `admin.address`: loopback, on a port by which several nodes of one machine do not collide. Port 0, any free
/// one, if `listen` has it or one so high that there is none.
fn admin_of(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        ip if ip.is_loopback() => ip,
        _ => IpAddr::from([127, 0, 0, 1]),
    };
    let port = match listen.port() {
        0 => 0,
        port => port.checked_add(settings::ADMIN_PORT_OFFSET).unwrap_or(0),
    };
    SocketAddr::new(ip, port)
}

struct Checker<'a> {
    positions: &'a Positions,
    errors: Vec<ConfError>,
    warnings: Vec<ConfError>,
    /// The settings that need a hook.
    hooks_needed: Vec<(String, NeededHook)>,
}

impl Checker<'_> {
    fn config(&mut self, raw: raw::Config) -> Config {
        let is_page_given = raw.page.is_some();
        let broker = self.broker(raw.broker.unwrap_or_default());
        let channels = self.channels(raw.channels.unwrap_or_default());
        let endpoints = self.endpoints(raw.endpoints, &channels.limits, &broker);
        let limits = self.limits(raw.limits.unwrap_or_default());
        self.relations(&endpoints, &broker, &limits);
        self.namespaces_are_there(&endpoints, &channels);
        let node = raw.node.unwrap_or_default();
        let listen = self.listen(raw.listen.as_deref().unwrap_or(settings::LISTEN));
        let config = Config {
            file: None,
            id: self.node_id(node.id),
            advertise: self.advertise(node.advertise),
            zone: self.zone(node.zone),
            generation: self.generation(node.generation),
            registry: self.registry(raw.registry.unwrap_or_default()),
            lifecycle: self.lifecycle(raw.lifecycle.unwrap_or_default(), &channels),
            api: self.api(raw.api.unwrap_or_default(), &endpoints),
            values: self.values(raw.values.unwrap_or_default()),
            listen,
            admin: self.admin(raw.admin, listen),
            threads: self.count_or_auto(
                "threads",
                raw.threads.filter(|&n| n != 0),
                settings::THREADS_MAX,
            ),
            broker,
            auth: self.auth(raw.auth.unwrap_or_default()),
            hooks: self.hooks(raw.hooks.unwrap_or_default()),
            endpoints: endpoints.into_iter().map(Arc::new).collect(),
            channels,
            page: raw.page.unwrap_or(settings::PAGE),
            warnings: Vec::new(),
            trusted_proxies: raw.trusted_proxies.unwrap_or_default(),
            limits,
            tcp: self.tcp(raw.tcp.unwrap_or_default()),
            fanout: self.fanout(raw.fanout.unwrap_or_default()),
            drain: self.drain(raw.drain.unwrap_or_default()),
            log: self.log(raw.log.unwrap_or_default()),
        };
        self.can_work(&config, is_page_given);
        Config {
            page: config.page && has_what_the_page_needs(&config),
            ..config
        }
    }

    fn node_id(&mut self, id: Option<String>) -> Option<String> {
        let id = id?;
        if id.is_empty() || NODE_ID_BYTES_MAX < id.len() || !id.chars().all(fits_node_id) {
            self.error(
                "node.id",
                format!("expected 1 to {NODE_ID_BYTES_MAX} of letters, digits, `-`, `_` and `.`, found {id:?}"),
            );
        }
        Some(id)
    }

    fn listen(&mut self, text: &str) -> SocketAddr {
        self.socket_address("listen", text)
            .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9000)))
    }

    fn socket_address(&mut self, key: &str, text: &str) -> Option<SocketAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            self.error(
                key,
                format!("expected an address and a port, such as \"127.0.0.1:9000\" or \"[::]:9000\", found {text:?}"),
            );
        }
        address
    }

    fn admin(&mut self, raw: Option<raw::Admin>, listen: SocketAddr) -> Option<SocketAddr> {
        let settings = match raw {
            Some(raw::Admin::None) => return None,
            Some(raw::Admin::At(settings)) => settings,
            None => raw::AdminSettings::default(),
        };
        let address = match settings.address.as_deref() {
            Some("none") => return None,
            Some(text) => self.socket_address("admin.address", text)?,
            None => return Some(admin_of(listen)),
        };
        let is_any = |address: SocketAddr| address.ip().is_unspecified();
        let is_same_ip = address.ip() == listen.ip() || is_any(address) || is_any(listen);
        if address.port() != 0 && address.port() == listen.port() && is_same_ip {
            self.error(
                "admin.address",
                format!(
                    "expected another port than that of listen ({listen}), found \"{address}\""
                ),
            );
        }
        Some(address)
    }

    fn limits(&mut self, raw: raw::Limits) -> Limits {
        Limits {
            connections: self.count_or_auto(
                "limits.connections",
                raw.connections,
                settings::CONNECTIONS_MAX,
            ),
            memory: raw
                .memory
                .map(|memory| self.size("limits.memory", Some(memory), &settings::MEMORY)),
            sessions: self.count("limits.sessions", raw.sessions, &settings::SESSIONS),
            sessions_per_address: self.count(
                "limits.sessions_per_address",
                raw.sessions_per_address,
                &settings::SESSIONS_PER_ADDRESS,
            ),
            head_bytes_max: self.size("limits.head_size", raw.head_size, &settings::HEAD_SIZE),
            head_timeout: self.span(
                "limits.head_timeout",
                raw.head_timeout,
                &settings::HEAD_TIMEOUT,
            ),
            keepalive: self.span("limits.keepalive", raw.keepalive, &settings::KEEPALIVE),
            body_bytes_max: self.size("limits.body_size", raw.body_size, &settings::BODY_SIZE),
            body_timeout: self.span(
                "limits.body_timeout",
                raw.body_timeout,
                &settings::BODY_TIMEOUT,
            ),
            send_timeout: self.span(
                "limits.send_timeout",
                raw.send_timeout,
                &settings::SEND_TIMEOUT,
            ),
        }
    }

    fn tcp(&mut self, raw: raw::Tcp) -> Tcp {
        Tcp {
            keepalive: self.span("tcp.keepalive", raw.keepalive, &settings::TCP_KEEPALIVE),
            user_timeout: self.span(
                "tcp.user_timeout",
                raw.user_timeout,
                &settings::TCP_USER_TIMEOUT,
            ),
            send_buffer_bytes: self.size(
                "tcp.send_buffer",
                raw.send_buffer,
                &settings::SEND_BUFFER,
            ),
        }
    }

    fn fanout(&mut self, raw: raw::Fanout) -> Fanout {
        Fanout {
            window: self.span("fanout.window", raw.window, &settings::WINDOW),
            factor: self.in_range(
                "fanout.factor",
                raw.factor,
                &settings::FACTOR,
                f64::to_string,
            ),
            batch_bytes_max: self.size("fanout.batch", raw.batch, &settings::BATCH),
        }
    }

    fn drain(&mut self, raw: raw::Drain) -> Drain {
        let max = self.span("drain.lead_max", raw.lead_max, &settings::DRAIN_LEAD_MAX);
        let lead = match raw.lead {
            None => Lead::UntilProbersKnow { max },
            Some(lead) => {
                if raw.lead_max.is_some() {
                    self.error(
                        "drain.lead_max",
                        "expected no drain.lead_max with drain.lead: that one is the lead for all probers of /ready",
                    );
                }
                Lead::Fixed(self.span("drain.lead", Some(lead), &settings::DRAIN_LEAD))
            }
        };
        let drain = Drain {
            lead,
            spread: self.span("drain.spread", raw.spread, &settings::DRAIN_SPREAD),
            timeout: self.span("drain.timeout", raw.timeout, &settings::DRAIN_TIMEOUT),
        };
        if drain.timeout < drain.spread {
            let timeout = Span(drain.timeout);
            self.error(
                "drain.spread",
                format!(
                    "expected at most drain.timeout ({timeout}), found {}",
                    Span(drain.spread)
                ),
            );
        }
        drain
    }

    fn log(&mut self, raw: raw::Log) -> Log {
        let level = raw.level.unwrap_or_else(|| settings::LOG_LEVEL.to_owned());
        if !is_filter(&level) {
            self.error(
                "log.level",
                format!(
                    "expected error, warn, info, debug, trace or off, or directives such as \
                     \"info,causeway_node::broker=debug\", found {level:?}"
                ),
            );
        }
        Log {
            level,
            format: raw.format.unwrap_or(settings::LOG_FORMAT),
        }
    }

    /// What must hold between settings of different parts.
    fn relations(&mut self, endpoints: &[Endpoint], broker: &Broker, limits: &Limits) {
        let mut paths = HashMap::new();
        for (index, endpoint) in endpoints.iter().enumerate() {
            if let Some(first) = paths.insert(endpoint.path.as_str(), index) {
                let path = &endpoint.path;
                self.error(
                    &format!("endpoints[{index}].path"),
                    format!("duplicate path \"{path}\", endpoints[{first}] has it already"),
                );
            }
            // Where messages come in the bodies of requests. Those of channel clients have a limit of their own.
            let has_bodies = matches!(endpoint.protocol, Protocol::Sockjs(_));
            let publishes = matches!(endpoint.mode, Mode::Relay { .. } | Mode::Channels);
            let mut bounds = Vec::new();
            if has_bodies {
                bounds.push(("limits.body_size", limits.body_bytes_max));
            }
            if let Broker::Redis(redis) = broker
                && publishes
            {
                bounds.push(("broker.publish_queue_size", redis.publish_queue_bytes_max));
                bounds.push(("broker.message_size", redis.message_bytes_max));
            }
            for (bound, bytes) in bounds {
                if bytes < endpoint.message_bytes_max {
                    let bytes = ByteSize(bytes as u64);
                    let found = ByteSize(endpoint.message_bytes_max as u64);
                    self.error(
                        &format!("endpoints[{index}].message_size"),
                        format!("expected at most {bound} ({bytes}), found {found}"),
                    );
                }
            }
        }
    }

    /// Without a namespace, an endpoint for channels would refuse every channel.
    fn namespaces_are_there(&mut self, endpoints: &[Endpoint], channels: &Channels) {
        let is_channels = |endpoint: &Endpoint| endpoint.mode == Mode::Channels;
        if let Some(index) = endpoints.iter().position(is_channels)
            && channels.namespaces.is_empty()
        {
            self.error(
                &format!("endpoints[{index}].mode"),
                "`mode: channels` needs at least one of `channels.namespaces`, such as {name: chat, subscribe: authenticated}",
            );
        }
    }

    fn span(&mut self, key: &str, value: Option<Span>, setting: &Setting<Duration>) -> Duration {
        let show = |duration: &Duration| Span(*duration).to_string();
        self.in_range(key, value.map(|span| span.0), setting, show)
    }

    fn size(&mut self, key: &str, value: Option<ByteSize>, setting: &Setting<u64>) -> usize {
        let show = |bytes: &u64| ByteSize(*bytes).to_string();
        let bytes = self.in_range(key, value.map(|size| size.0), setting, show);
        usize::try_from(bytes).expect("no size may be set past what can be addressed")
    }

    fn count(&mut self, key: &str, value: Option<u64>, setting: &Setting<u64>) -> usize {
        let count = self.in_range(key, value, setting, u64::to_string);
        usize::try_from(count).expect("no count may be set past 100 million")
    }

    fn count_or_auto(&mut self, key: &str, value: Option<u64>, max: u64) -> Option<usize> {
        let setting = Setting {
            default: 1,
            min: 1,
            max,
        };
        value.map(|count| self.count(key, Some(count), &setting))
    }

    /// `value` if it is in range, else the default and, if there was a value, an error.
    fn in_range<T: PartialOrd + Copy>(
        &mut self,
        key: &str,
        value: Option<T>,
        setting: &Setting<T>,
        show: impl Fn(&T) -> String,
    ) -> T {
        let Some(value) = value else {
            return setting.default;
        };
        if setting.min <= value && value <= setting.max {
            return value;
        }
        let (min, max) = (show(&setting.min), show(&setting.max));
        self.error(
            key,
            format!("expected {min} to {max}, found {}", show(&value)),
        );
        setting.default
    }

    fn error(&mut self, key: &str, message: impl Into<String>) {
        self.errors.push(self.positions.error(key, message));
    }

    fn warn(&mut self, key: &str, message: impl Into<String>) {
        self.warnings.push(self.positions.error(key, message));
    }
}
