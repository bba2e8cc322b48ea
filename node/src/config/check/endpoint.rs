//! One endpoint's settings.

use super::Checker;
use crate::config::AllowedOrigins;
use crate::config::Broker;
use crate::config::ChannelTransport;
use crate::config::ChannelsEndpoint;
use crate::config::ClientLimits;
use crate::config::Endpoint;
use crate::config::Mode;
use crate::config::Ping;
use crate::config::Protocol;
use crate::config::PublishRate;
use crate::config::Sockjs;
use crate::config::SockjsTransport;
use crate::config::raw;
use crate::config::settings;
use crate::config::settings::Setting;
use crate::protocol::channel::ChannelName;
use crate::protocol::channel::RESERVED_PREFIX;
use causeway_conf::ByteSize;

/// Paths that the node itself serves.
const OWN_PATHS: [&str; 5] = ["/live", "/ready", "/metrics", "/slowest", "/move"];

impl Checker<'_> {
    pub(super) fn endpoints(
        &mut self,
        raw: Option<Vec<raw::Endpoint>>,
        limits: &ClientLimits,
        broker: &Broker,
    ) -> Vec<Endpoint> {
        let raw = raw.unwrap_or_else(endpoints_without_file);
        if raw.is_empty() {
            self.error(
                "endpoints",
                "expected at least one endpoint; leave the key out for the three defaults",
            );
        }
        let indexed = raw.into_iter().enumerate();
        indexed
            .map(|(index, raw)| self.endpoint(&format!("endpoints[{index}]"), raw, limits, broker))
            .collect()
    }

    fn endpoint(
        &mut self,
        at: &str,
        raw: raw::Endpoint,
        limits: &ClientLimits,
        broker: &Broker,
    ) -> Endpoint {
        let mode = raw.mode.unwrap_or(raw::Mode::Relay);
        let message_bytes_max = self.size(
            &format!("{at}.message_size"),
            raw.message_size,
            &settings::MESSAGE_SIZE,
        );
        Endpoint {
            path: self.path(&format!("{at}.path"), raw.path.as_deref()),
            mode: self.relay_or_other(at, mode, raw.channel.as_deref(), broker),
            read_only: raw.read_only.unwrap_or(settings::READ_ONLY),
            message_bytes_max,
            publish_rate: self
                .publish_rate(&format!("{at}.publish_rate"), raw.publish_rate.as_ref()),
            outbox_bytes_max: self.size(&format!("{at}.outbox"), raw.outbox, &settings::OUTBOX),
            allowed_origins: self.allowed_origins(
                &format!("{at}.allowed_origins"),
                raw.allowed_origins.as_ref(),
            ),
            ping: self.ping(&format!("{at}.ping"), raw.ping.as_ref()),
            protocol: match mode {
                raw::Mode::Channels => {
                    let mut endpoint = self.channels_endpoint(at, &raw);
                    endpoint.commands_bytes_max =
                        self.commands_size(at, &raw, message_bytes_max, &endpoint, limits, broker);
                    Protocol::Channels(endpoint)
                }
                _ => self.protocol(at, raw),
            },
        }
    }

    fn channels_endpoint(&mut self, at: &str, raw: &raw::Endpoint) -> ChannelsEndpoint {
        if raw.protocol.is_some() {
            self.error(
                &format!("{at}.protocol"),
                "expected none: `mode: channels` has a protocol of its own",
            );
        }
        if raw.read_only.is_some() {
            self.error(
                &format!("{at}.read_only"),
                "expected none: with `mode: channels`, `publish` of each namespace says who may publish",
            );
        }
        self.refuse(at, &sockjs_settings(raw), "`protocol: sockjs`");
        let transports = match &raw.transports {
            None => settings::CHANNEL_TRANSPORTS.to_vec(),
            Some(transports) => self.transports(
                &format!("{at}.transports"),
                transports,
                "websocket, http_stream, sse, uni_sse",
                channel_transport,
            ),
        };
        ChannelsEndpoint {
            transports,
            commands_bytes_max: 0,
            command_rate: self
                .publish_rate(&format!("{at}.command_rate"), raw.command_rate.as_ref()),
        }
    }

    /// What a client may send at once. The default has room for what one with all of its channels says when it comes back,
    /// which SDKs send in one piece.
    fn commands_size(
        &mut self,
        at: &str,
        raw: &raw::Endpoint,
        message_bytes_max: usize,
        endpoint: &ChannelsEndpoint,
        limits: &ClientLimits,
        broker: &Broker,
    ) -> usize {
        let message_bytes_max = message_bytes_max as u64;
        let is_emulated = [ChannelTransport::HttpStream, ChannelTransport::Sse]
            .into_iter()
            .any(|transport| endpoint.allows(transport));
        // What comes by a request of its own may come to another node, and goes on as one message of the broker.
        let broker_max = match broker {
            Broker::Redis(redis) if is_emulated => {
                let bytes_max = redis.message_bytes_max.min(redis.publish_queue_bytes_max) as u64;
                bytes_max.saturating_sub(settings::COMMANDS_ENVELOPE)
            }
            Broker::Redis(_) | Broker::Memory => u64::MAX,
        };
        let Some(size) = raw.commands_size else {
            let channels = settings::COMMAND_SIZE * limits.channels_per_client as u64;
            let default = channels.saturating_add(message_bytes_max);
            let default = default.min(settings::COMMANDS_SIZE.default).min(broker_max);
            return default.max(message_bytes_max) as usize;
        };
        let key = format!("{at}.commands_size");
        let bytes = self.size(&key, Some(size), &settings::COMMANDS_SIZE) as u64;
        let (found, expected) = (ByteSize(bytes), ByteSize(message_bytes_max));
        if bytes < message_bytes_max {
            self.error(
                &key,
                format!("expected at least message_size ({expected}), found {found}"),
            );
        }
        if broker_max < bytes {
            let expected = ByteSize(broker_max);
            self.error(
                &key,
                format!("expected at most {expected}, so that it fits broker.message_size and broker.publish_queue_size on its way between nodes (or no transports http_stream and sse), found {found}"),
            );
        }
        bytes as usize
    }

    /// Refuses settings that are given where only `of` has them.
    fn refuse(&mut self, at: &str, given: &[(&str, bool)], of: &str) {
        for (key, _) in given.iter().filter(|(_, is_given)| *is_given) {
            self.error(
                &format!("{at}.{key}"),
                format!("expected none: this setting is only for {of}"),
            );
        }
    }

    /// The transports that `known` knows, each once.
    fn transports<T: PartialEq>(
        &mut self,
        key: &str,
        raw: &[raw::Transport],
        names: &str,
        known: fn(raw::Transport) -> Option<T>,
    ) -> Vec<T> {
        if raw.is_empty() {
            self.error(key, format!("expected at least one of {names}"));
        }
        let mut transports = Vec::new();
        for (index, transport) in raw.iter().enumerate() {
            match known(*transport) {
                Some(transport) if transports.contains(&transport) => {}
                Some(transport) => transports.push(transport),
                None => self.error(
                    &format!("{key}[{index}]"),
                    format!("expected one of {names}"),
                ),
            }
        }
        transports
    }

    pub(super) fn path(&mut self, key: &str, path: Option<&str>) -> String {
        let Some(path) = path else {
            self.error(key, "expected a path, such as \"/chat\"");
            return String::new();
        };
        let segments = path.strip_prefix('/').map(|rest| rest.split('/'));
        let is_plain = |segment: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~');
            !segment.is_empty() && segment != "." && segment != ".." && segment.chars().all(fits)
        };
        if !segments.is_some_and(|mut segments| segments.all(is_plain)) {
            self.error(key, format!("expected a path, such as \"/chat\": `/` and then letters, digits, `-`, `_`, `.`, `~`, no `/` at the end, found {path:?}"));
        } else if OWN_PATHS.contains(&path) {
            self.error(
                key,
                format!("expected another path: the node serves {path} itself"),
            );
        }
        path.to_owned()
    }

    /// The mode. A relay channel must not be one of the node's own, whose names in Redis begin with the prefix.
    fn relay_or_other(
        &mut self,
        at: &str,
        mode: raw::Mode,
        channel: Option<&str>,
        broker: &Broker,
    ) -> Mode {
        let mode = self.mode(at, mode, channel);
        if let (Mode::Relay { channel }, Broker::Redis(redis)) = (&mode, broker)
            && let Some(rest) = channel.as_str().strip_prefix(&*redis.prefix)
            && rest.starts_with(':')
            && !channel.is_reserved()
        {
            let prefix = &redis.prefix;
            self.error(&format!("{at}.channel"), format!("names that begin with \"{prefix}:\" (broker.prefix) are the node's own, expected another one"));
        }
        mode
    }

    fn mode(&mut self, at: &str, mode: raw::Mode, channel: Option<&str>) -> Mode {
        let key = format!("{at}.channel");
        if mode != raw::Mode::Relay && channel.is_some() {
            self.error(&key, "expected none: a channel is only for `mode: relay`");
        }
        match mode {
            raw::Mode::Echo => Mode::Echo,
            raw::Mode::Close => Mode::Close,
            raw::Mode::Amplify => Mode::Amplify,
            raw::Mode::Ticker => Mode::Ticker,
            raw::Mode::Channels => Mode::Channels,
            raw::Mode::Relay => {
                let name = channel.unwrap_or(settings::CHANNEL);
                let channel = ChannelName::new(name).unwrap_or_else(|error| {
                    self.error(&key, format!("{error}, found {} bytes", name.len()));
                    ChannelName::new(settings::CHANNEL).expect("a test loads the defaults")
                });
                if channel.is_reserved() {
                    self.error(&key, format!("expected another name: those that begin with \"{RESERVED_PREFIX}\" are reserved for the node"));
                }
                Mode::Relay { channel }
            }
        }
    }

    fn publish_rate(&mut self, key: &str, raw: Option<&raw::PublishRate>) -> Option<PublishRate> {
        let raw = raw?;
        let setting = Setting {
            default: 1,
            min: 1,
            max: settings::RATE_MAX,
        };
        let per_second = self.count(&format!("{key}.per_second"), Some(raw.per_second), &setting);
        let burst = raw.burst.unwrap_or(per_second as u64);
        let burst = self.count(&format!("{key}.burst"), Some(burst), &setting);
        let narrow = |count: usize| u32::try_from(count).expect("the range ends below");
        Some(PublishRate {
            per_second: narrow(per_second),
            burst: narrow(burst),
        })
    }

    fn ping(&mut self, key: &str, raw: Option<&raw::Ping>) -> Ping {
        let interval = raw.and_then(|ping| ping.interval);
        let timeout = raw.and_then(|ping| ping.timeout);
        Ping {
            interval: self.span(
                &format!("{key}.interval"),
                interval,
                &settings::PING_INTERVAL,
            ),
            timeout: self.span(&format!("{key}.timeout"), timeout, &settings::PING_TIMEOUT),
        }
    }

    fn protocol(&mut self, at: &str, raw: raw::Endpoint) -> Protocol {
        let protocol = raw.protocol.unwrap_or_else(|| {
            self.error(
                &format!("{at}.protocol"),
                "expected `sockjs` or `websocket`, or `mode: channels`, which needs none",
            );
            raw::Protocol::Websocket
        });
        let commands = [
            ("commands_size", raw.commands_size.is_some()),
            ("command_rate", raw.command_rate.is_some()),
        ];
        self.refuse(at, &commands, "`mode: channels`");
        if protocol == raw::Protocol::Websocket {
            let transports = ("transports", raw.transports.is_some());
            self.refuse(at, &[transports], "`protocol: sockjs` and `mode: channels`");
            self.refuse(at, &sockjs_settings(&raw), "`protocol: sockjs`");
            return Protocol::Websocket;
        }
        let transports = match &raw.transports {
            None => settings::TRANSPORTS.to_vec(),
            Some(transports) => self.transports(
                &format!("{at}.transports"),
                transports,
                "websocket, xhr_streaming, eventsource, htmlfile, xhr, jsonp",
                sockjs_transport,
            ),
        };
        Protocol::Sockjs(Sockjs {
            transports,
            heartbeat: self.span(
                &format!("{at}.heartbeat"),
                raw.heartbeat,
                &settings::HEARTBEAT,
            ),
            disconnect_delay: self.span(
                &format!("{at}.disconnect_delay"),
                raw.disconnect_delay,
                &settings::DISCONNECT_DELAY,
            ),
            response_bytes_max: self.size(
                &format!("{at}.response_limit"),
                raw.response_limit,
                &settings::RESPONSE_LIMIT,
            ),
            cookie_needed: raw.cookie_needed.unwrap_or(settings::COOKIE_NEEDED),
            client_script: raw
                .client_script
                .filter(|script| self.is_script(&format!("{at}.client_script"), script)),
        })
    }

    /// What a browser can load, and what stands in an attribute of a page without ending it.
    fn is_script(&mut self, key: &str, script: &str) -> bool {
        let is_address = ["/", "http://", "https://"]
            .iter()
            .any(|start| script.len() > start.len() && script.starts_with(start));
        let fits = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>');
        let is_script = is_address && script.bytes().all(fits);
        if !is_script {
            self.error(
                key,
                format!("expected the address of sockjs-client, such as \"https://cdn.example/sockjs.min.js\" or \"/sockjs.min.js\", found {script:?}"),
            );
        }
        is_script
    }

    fn allowed_origins(&mut self, key: &str, raw: Option<&raw::AllowedOrigins>) -> AllowedOrigins {
        let list = match raw {
            None => return AllowedOrigins::Same,
            Some(raw::AllowedOrigins::Word(word)) if word == "same" => return AllowedOrigins::Same,
            Some(raw::AllowedOrigins::Word(word)) => {
                self.error(
                    key,
                    format!("expected `same`, [\"*\"] or a list of origins, found {word:?}"),
                );
                return AllowedOrigins::Same;
            }
            Some(raw::AllowedOrigins::List(list)) => list,
        };
        if list.is_empty() {
            self.error(key, "expected `same`, [\"*\"] or at least one origin: an empty list would refuse every browser");
        }
        if list.iter().any(|origin| origin == "*") {
            if 1 < list.len() {
                self.error(key, "\"*\" allows every origin, expected it alone");
            }
            return AllowedOrigins::Any;
        }
        let mut origins = Vec::new();
        for (index, text) in list.iter().enumerate() {
            match origin(text) {
                Some(origin) => origins.push(origin),
                None => self.error(
                    &format!("{key}[{index}]"),
                    format!("expected an origin, such as \"https://chat.example\" or \"http://localhost:3000\", without a path, found {text:?}"),
                ),
            }
        }
        AllowedOrigins::Listed(origins)
    }
}

/// What only SockJS has, and whether it is given.
fn sockjs_settings(raw: &raw::Endpoint) -> [(&'static str, bool); 5] {
    [
        ("heartbeat", raw.heartbeat.is_some()),
        ("disconnect_delay", raw.disconnect_delay.is_some()),
        ("response_limit", raw.response_limit.is_some()),
        ("cookie_needed", raw.cookie_needed.is_some()),
        ("client_script", raw.client_script.is_some()),
    ]
}

fn sockjs_transport(raw: raw::Transport) -> Option<SockjsTransport> {
    Some(match raw {
        raw::Transport::Websocket => SockjsTransport::Websocket,
        raw::Transport::XhrStreaming => SockjsTransport::XhrStreaming,
        raw::Transport::Eventsource => SockjsTransport::Eventsource,
        raw::Transport::Htmlfile => SockjsTransport::Htmlfile,
        raw::Transport::Xhr => SockjsTransport::Xhr,
        raw::Transport::Jsonp => SockjsTransport::Jsonp,
        raw::Transport::HttpStream | raw::Transport::Sse | raw::Transport::UniSse => return None,
    })
}

fn channel_transport(raw: raw::Transport) -> Option<ChannelTransport> {
    Some(match raw {
        raw::Transport::Websocket => ChannelTransport::Websocket,
        raw::Transport::HttpStream => ChannelTransport::HttpStream,
        raw::Transport::Sse => ChannelTransport::Sse,
        raw::Transport::UniSse => ChannelTransport::UniSse,
        _ => return None,
    })
}

/// The origin as a browser sends it (RFC 6454 section 6.2): lower case, without the scheme's own port.
fn origin(text: &str) -> Option<String> {
    let uri: http::Uri = text.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let authority = uri.authority()?.as_str().to_ascii_lowercase();
    if authority.contains('@') || text.ends_with('/') || uri.path() != "/" || uri.query().is_some()
    {
        return None;
    }
    let own_port = match scheme.as_str() {
        "https" => ":443",
        "http" => ":80",
        _ => "",
    };
    let host = authority.strip_suffix(own_port).unwrap_or(&authority);
    Some(format!("{scheme}://{host}"))
}

/// The default endpoints: `/sockjs` and `/ws` relay, `/echo` echoes.
fn endpoints_without_file() -> Vec<raw::Endpoint> {
    let endpoint = |path: &str, protocol| raw::Endpoint {
        path: Some(path.to_owned()),
        protocol: Some(protocol),
        ..raw::Endpoint::default()
    };
    vec![
        endpoint("/sockjs", raw::Protocol::Sockjs),
        endpoint("/ws", raw::Protocol::Websocket),
        raw::Endpoint {
            mode: Some(raw::Mode::Echo),
            // Nothing is read from the node and nothing reaches another client: any page may try it.
            allowed_origins: Some(raw::AllowedOrigins::List(vec!["*".to_owned()])),
            response_limit: Some(ByteSize(settings::ECHO_RESPONSE_LIMIT)),
            ..endpoint("/echo", raw::Protocol::Sockjs)
        },
    ]
}
