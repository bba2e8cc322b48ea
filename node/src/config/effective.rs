//! The effective configuration, for `--print-config`.
//!
//! Each struct is taken apart field by field, so that a new setting does not compile until it is shown.

use causeway_conf::Effective;
use causeway_conf::Positions;
use causeway_conf::Secret;
use http::HeaderName;

use crate::config::AllowedOrigins;
use crate::config::Api;
use crate::config::Auth;
use crate::config::Broker;
use crate::config::ChannelOptions;
use crate::config::Channels;
use crate::config::ClientLimits;
use crate::config::ClusterServers;
use crate::config::Config;
use crate::config::Drain;
use crate::config::Endpoint;
use crate::config::Fanout;
use crate::config::Hook;
use crate::config::Hooks;
use crate::config::Lead;
use crate::config::Lifecycle;
use crate::config::Limits;
use crate::config::Log;
use crate::config::Mode;
use crate::config::Ping;
use crate::config::Protocol;
use crate::config::PublishRate;
use crate::config::Redis;
use crate::config::RedisLocation;
use crate::config::RedisServer;
use crate::config::Registry;
use crate::config::RelayPubSub;
use crate::config::Sentinels;
use crate::config::Tcp;
use crate::config::Values;

impl Config {
    /// What applies, in the form of the file that it was read from, whose keys are at `positions`.
    pub(super) fn effective(&self, positions: &Positions) -> Effective {
        let Self {
            file: _,
            id,
            listen,
            admin,
            threads,
            advertise,
            zone,
            generation,
            broker,
            auth,
            hooks,
            registry,
            lifecycle,
            api,
            values,
            endpoints,
            channels,
            page,
            trusted_proxies,
            limits,
            tcp,
            fanout,
            drain,
            log,
            warnings: _,
        } = self;
        let admin = match admin {
            None => Effective::text("none"),
            Some(address) => Effective::map([("address", Effective::shown(address))]),
        };
        let endpoints = endpoints.iter();
        Effective::map([
            (
                "node",
                Effective::map([
                    ("id", Effective::option(id.as_ref(), Effective::text)),
                    (
                        "advertise",
                        Effective::option(advertise.as_ref(), Effective::text),
                    ),
                    ("zone", Effective::option(zone.as_ref(), Effective::text)),
                    (
                        "generation",
                        Effective::option(*generation, Effective::plain),
                    ),
                ]),
            ),
            ("listen", Effective::shown(listen)),
            ("admin", admin),
            ("threads", Effective::plain(threads.unwrap_or(0))),
            ("broker", broker_of(broker, positions)),
            ("auth", auth_of(auth)),
            ("hooks", hooks_of(hooks)),
            ("registry", registry_of(registry)),
            ("lifecycle", lifecycle_of(lifecycle)),
            ("api", api_of(api.as_ref())),
            ("values", values_of(values)),
            (
                "endpoints",
                Effective::list(endpoints, |it| endpoint(it, channels)),
            ),
            ("channels", channels_of(channels, positions)),
            ("page", Effective::plain(page)),
            (
                "trusted_proxies",
                Effective::list(trusted_proxies, Effective::shown),
            ),
            ("limits", limits_of(limits)),
            ("tcp", tcp_of(tcp)),
            ("fanout", fanout_of(fanout)),
            ("drain", drain_of(drain)),
            ("log", log_of(log)),
        ])
    }
}

fn size(bytes: usize) -> Effective {
    Effective::size(bytes as u64)
}

fn sentinel_of(server: &RedisServer) -> Effective {
    let RedisServer {
        location,
        tls,
        database,
        username,
        password,
    } = server;
    let RedisLocation::Sentinel(sentinels) = location else {
        return Effective::null();
    };
    let Sentinels {
        master,
        servers,
        tls: _, // The same as for the servers.
        username: sentinel_user,
        password: sentinel_password,
    } = &**sentinels;
    let secret =
        |secret: &Option<Secret>| Effective::option(secret.as_ref(), |_| Effective::Secret);
    let tls = match tls {
        Some(_) => Effective::Written,
        None => Effective::null(),
    };
    Effective::map([
        ("master", Effective::text(master)),
        ("servers", Effective::list(servers, Effective::shown)),
        (
            "user",
            Effective::option(username.as_ref(), Effective::text),
        ),
        ("password", secret(password)),
        ("database", Effective::plain(database)),
        (
            "sentinel_user",
            Effective::option(sentinel_user.as_ref(), Effective::text),
        ),
        ("sentinel_password", secret(sentinel_password)),
        ("tls", tls),
    ])
}

fn cluster_of(server: &RedisServer) -> Effective {
    let RedisServer {
        location,
        tls,
        database: _, // A cluster has one.
        username,
        password,
    } = server;
    let RedisLocation::Cluster(cluster) = location else {
        return Effective::null();
    };
    let ClusterServers {
        servers,
        announce,
        relay_pubsub,
        is_unready_when_partial,
    } = &**cluster;
    let tls = match tls {
        Some(_) => Effective::Written,
        None => Effective::null(),
    };
    let announce = match announce.is_empty() {
        true => Effective::null(),
        false => Effective::Written,
    };
    Effective::map([
        ("servers", Effective::list(servers, Effective::shown)),
        (
            "user",
            Effective::option(username.as_ref(), Effective::text),
        ),
        (
            "password",
            Effective::option(password.as_ref(), |_| Effective::Secret),
        ),
        ("announce", announce),
        (
            "relay_pubsub",
            Effective::text(match relay_pubsub {
                RelayPubSub::Sharded => "sharded",
                RelayPubSub::Classic => "classic",
            }),
        ),
        (
            "unready_when_partial",
            Effective::plain(is_unready_when_partial),
        ),
        ("tls", tls),
    ])
}

fn broker_of(broker: &Broker, positions: &Positions) -> Effective {
    let Broker::Redis(redis) = broker else {
        return Effective::map([("kind", Effective::text("memory"))]);
    };
    let Redis {
        prefix,
        server,
        other_servers,
        publish_queues,
        publish_queue_bytes_max,
        publish_queue_wait,
        connect_timeout,
        response_timeout,
        backoff_max,
        probe_interval,
        probe_timeout,
        message_bytes_max,
        is_unready_when_full,
    } = &**redis;
    let servers = [server].into_iter().chain(other_servers);
    let has_ca = servers
        .clone()
        .any(|server| server.tls.as_ref().is_some_and(|tls| tls.ca.is_some()));
    let tls = if has_ca {
        Effective::map([("ca", Effective::Written)])
    } else {
        Effective::null()
    };
    Effective::map([
        ("kind", Effective::text("redis")),
        // One of them is written.
        ("url", Effective::Secret),
        (
            "urls",
            if positions.is_given("broker.urls") {
                Effective::list(servers, |_| Effective::Secret)
            } else {
                Effective::null()
            },
        ),
        ("sentinel", sentinel_of(server)),
        ("cluster", cluster_of(server)),
        ("tls", tls),
        ("prefix", Effective::text(prefix)),
        ("publish_queues", Effective::plain(publish_queues)),
        ("publish_queue_size", size(*publish_queue_bytes_max)),
        ("publish_queue_wait", Effective::span(*publish_queue_wait)),
        ("connect_timeout", Effective::span(*connect_timeout)),
        ("response_timeout", Effective::span(*response_timeout)),
        ("backoff_max", Effective::span(*backoff_max)),
        ("probe_interval", Effective::span(*probe_interval)),
        ("probe_timeout", Effective::span(*probe_timeout)),
        ("message_size", size(*message_bytes_max)),
        ("unready_when_full", Effective::plain(is_unready_when_full)),
    ])
}

fn auth_of(auth: &Auth) -> Effective {
    let Auth {
        keys,
        key_files: _, // Where some of the keys are, which is written.
        key_set,
        audience,
        issuer,
        leeway,
        anonymous,
    } = auth;
    let keys = Effective::list(keys, |key| {
        Effective::map([
            ("id", Effective::option(key.id(), Effective::text)),
            ("algorithm", Effective::shown(key.algorithm())),
            ("key", Effective::Secret),
        ])
    });
    let key_set = key_set.as_ref();
    Effective::map([
        ("keys", keys),
        (
            "key_set",
            Effective::option(key_set, |set| Effective::shown(set.path.display())),
        ),
        ("audience", Effective::list(audience, Effective::text)),
        (
            "issuer",
            Effective::option(issuer.as_ref(), Effective::text),
        ),
        ("leeway", Effective::span(*leeway)),
        ("anonymous", Effective::plain(anonymous)),
    ])
}

fn hooks_of(hooks: &Hooks) -> Effective {
    let Hooks {
        connect,
        refresh,
        subscribe,
        sub_refresh,
        publish,
        rpc,
        lifecycle,
        response_bytes_max,
        forward_headers,
        emulated_headers,
        values,
        headers,
        ca,
    } = hooks;
    let names =
        |names: &[HeaderName]| Effective::list(names, |name| Effective::text(name.as_str()));
    Effective::map([
        ("connect", hook("connect", connect.as_ref())),
        ("refresh", hook("refresh", refresh.as_ref())),
        ("subscribe", hook("subscribe", subscribe.as_ref())),
        ("sub_refresh", hook("sub_refresh", sub_refresh.as_ref())),
        ("publish", hook("publish", publish.as_ref())),
        ("rpc", hook("rpc", rpc.as_ref())),
        ("lifecycle", hook("lifecycle", lifecycle.as_ref())),
        ("response_size", size(*response_bytes_max)),
        ("forward_headers", names(forward_headers)),
        ("emulated_headers", names(emulated_headers)),
        ("values", Effective::list(values, Effective::text)),
        (
            "headers",
            if headers.is_empty() {
                Effective::Map(Vec::new())
            } else {
                Effective::Secrets
            },
        ),
        (
            "ca",
            if ca.is_empty() {
                Effective::null()
            } else {
                Effective::Written
            },
        ),
    ])
}

/// With the limits that it has, of its own or of all hooks.
fn hook(name: &str, hook: Option<&Hook>) -> Effective {
    Effective::option(hook, |hook| {
        let Hook {
            address,
            timeout,
            open_max,
        } = hook;
        let address = Effective::shown(address).or_from(&format!("hooks.{name}"));
        Effective::map([
            ("address", address),
            (
                "timeout",
                Effective::span(*timeout).or_from("hooks.timeout"),
            ),
            ("open", Effective::plain(open_max).or_from("hooks.open")),
        ])
    })
}

fn registry_of(registry: &Registry) -> Effective {
    let Registry {
        renew,
        lease,
        verify,
    } = registry;
    Effective::map([
        ("renew", Effective::span(*renew)),
        ("lease", Effective::span(*lease)),
        ("verify", Effective::span(*verify)),
    ])
}

fn lifecycle_of(lifecycle: &Lifecycle) -> Effective {
    let Lifecycle {
        connections,
        channels: _, // What the namespaces say.
        coalesce,
        keep,
    } = lifecycle;
    Effective::map([
        ("connections", Effective::plain(connections)),
        ("coalesce", Effective::span(*coalesce)),
        ("keep", Effective::plain(keep)),
    ])
}

fn api_of(api: Option<&Api>) -> Effective {
    let Some(api) = api else {
        return Effective::map([("keys", Effective::List(Vec::new()))]);
    };
    let Api {
        path,
        keys,
        ack,
        history_page,
    } = api;
    Effective::map([
        ("path", Effective::text(path)),
        ("keys", Effective::list(keys, |_| Effective::Secret)),
        ("ack", Effective::variant(ack)),
        ("history_page", Effective::plain(history_page)),
    ])
}

fn values_of(values: &Values) -> Effective {
    let Values {
        value_bytes_max,
        memory_bytes_max,
    } = values;
    Effective::map([
        ("size", size(*value_bytes_max)),
        ("memory", size(*memory_bytes_max)),
    ])
}

fn endpoint(endpoint: &Endpoint, channels: &Channels) -> Effective {
    let Endpoint {
        path,
        protocol,
        mode,
        read_only,
        message_bytes_max,
        publish_rate,
        outbox_bytes_max,
        allowed_origins,
        ping,
    } = endpoint;
    let allowed_origins = match allowed_origins {
        AllowedOrigins::Same => Effective::text("same"),
        AllowedOrigins::Any => Effective::list(["*"], Effective::text),
        AllowedOrigins::Listed(origins) => Effective::list(origins, Effective::text),
    };
    let Ping { interval, timeout } = ping;
    let mode_and_channel = match mode {
        Mode::Relay { channel } => vec![
            ("mode", Effective::text("relay")),
            ("channel", Effective::text(channel.as_str())),
        ],
        mode => vec![("mode", Effective::variant(mode))],
    };
    let mut settings = vec![("path", Effective::text(path))];
    settings.extend(mode_and_channel);
    match protocol {
        Protocol::Sockjs(_) => settings.push(("protocol", Effective::text("sockjs"))),
        Protocol::Websocket => settings.push(("protocol", Effective::text("websocket"))),
        Protocol::Channels(_) => {}
    }
    if !matches!(protocol, Protocol::Channels(_)) {
        settings.push(("read_only", Effective::plain(read_only)));
    }
    settings.extend([
        ("message_size", size(*message_bytes_max)),
        ("publish_rate", Effective::option(*publish_rate, rate)),
        ("outbox", size(*outbox_bytes_max)),
        ("allowed_origins", allowed_origins),
        (
            "ping",
            Effective::map([
                ("interval", Effective::span(*interval)),
                ("timeout", Effective::span(*timeout)),
            ]),
        ),
    ]);
    settings.extend(protocol_settings(protocol, channels));
    let settings = settings.into_iter();
    Effective::Map(
        settings
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

fn protocol_settings(protocol: &Protocol, channels: &Channels) -> Vec<(&'static str, Effective)> {
    match protocol {
        Protocol::Websocket => Vec::new(),
        Protocol::Sockjs(sockjs) => {
            let crate::config::Sockjs {
                transports,
                heartbeat,
                disconnect_delay,
                response_bytes_max,
                cookie_needed,
                client_script,
            } = sockjs;
            vec![
                (
                    "transports",
                    Effective::list(transports, Effective::variant),
                ),
                ("heartbeat", Effective::span(*heartbeat)),
                ("disconnect_delay", Effective::span(*disconnect_delay)),
                ("response_limit", size(*response_bytes_max)),
                ("cookie_needed", Effective::plain(cookie_needed)),
                (
                    "client_script",
                    Effective::option(client_script.as_ref(), Effective::text),
                ),
            ]
        }
        Protocol::Channels(endpoint) => {
            let crate::config::ChannelsEndpoint {
                transports,
                commands_bytes_max,
                command_rate: _, // Its default depends on the limits.
            } = endpoint;
            let command_rate = endpoint.command_rate(channels.limits.channels_per_client);
            vec![
                (
                    "transports",
                    Effective::list(transports, Effective::variant),
                ),
                ("commands_size", size(*commands_bytes_max)),
                ("command_rate", rate(command_rate)),
            ]
        }
    }
}

fn rate(rate: PublishRate) -> Effective {
    let PublishRate { per_second, burst } = rate;
    Effective::map([
        ("per_second", Effective::plain(per_second)),
        ("burst", Effective::plain(burst)),
    ])
}

fn channels_of(channels: &Channels, positions: &Positions) -> Effective {
    let Channels {
        namespaces,
        streams,
        limits,
    } = channels;
    // Of the settings of a stream, these two are limits for clients in the file; the others cannot be set.
    let (recovery, history_bytes) = (streams.recovery_max, streams.reply_bytes_max);
    let ClientLimits {
        connect_timeout,
        channels_per_client,
        commands_per_client,
        connections_per_user,
        connections_per_user_policy,
        history_page,
    } = limits;
    // In the order of the file.
    let names = (0..).map_while(|index| {
        let name = positions.text(&format!("channels.namespaces[{index}].name"))?;
        namespaces.named(name)
    });
    Effective::map([
        (
            "namespaces",
            Effective::list(names, ChannelOptions::effective),
        ),
        ("linger", Effective::span(streams.linger)),
        (
            "limits",
            Effective::map([
                ("connect_timeout", Effective::span(*connect_timeout)),
                ("channels_per_client", Effective::plain(channels_per_client)),
                ("commands_per_client", Effective::plain(commands_per_client)),
                (
                    "connections_per_user",
                    Effective::option(*connections_per_user, Effective::plain),
                ),
                (
                    "connections_per_user_policy",
                    Effective::variant(connections_per_user_policy),
                ),
                ("history_page", Effective::plain(history_page)),
                ("history_bytes", size(history_bytes)),
                ("recovery", Effective::plain(recovery)),
            ]),
        ),
    ])
}

fn limits_of(limits: &Limits) -> Effective {
    let Limits {
        connections,
        memory,
        sessions,
        sessions_per_address,
        head_bytes_max,
        head_timeout,
        keepalive,
        body_bytes_max,
        body_timeout,
        send_timeout,
    } = limits;
    Effective::map([
        (
            "connections",
            Effective::option(*connections, Effective::plain),
        ),
        ("memory", Effective::option(*memory, size)),
        ("sessions", Effective::plain(sessions)),
        (
            "sessions_per_address",
            Effective::plain(sessions_per_address),
        ),
        ("head_size", size(*head_bytes_max)),
        ("head_timeout", Effective::span(*head_timeout)),
        ("keepalive", Effective::span(*keepalive)),
        ("body_size", size(*body_bytes_max)),
        ("body_timeout", Effective::span(*body_timeout)),
        ("send_timeout", Effective::span(*send_timeout)),
    ])
}

fn tcp_of(tcp: &Tcp) -> Effective {
    let Tcp {
        keepalive,
        user_timeout,
        send_buffer_bytes,
    } = tcp;
    Effective::map([
        ("keepalive", Effective::span(*keepalive)),
        ("user_timeout", Effective::span(*user_timeout)),
        ("send_buffer", size(*send_buffer_bytes)),
    ])
}

fn fanout_of(fanout: &Fanout) -> Effective {
    let Fanout {
        window,
        factor,
        batch_bytes_max,
    } = fanout;
    Effective::map([
        ("window", Effective::span(*window)),
        ("factor", Effective::plain(factor)),
        ("batch", size(*batch_bytes_max)),
    ])
}

fn drain_of(drain: &Drain) -> Effective {
    let Drain {
        lead,
        spread,
        timeout,
    } = drain;
    let lead = match lead {
        Lead::UntilProbersKnow { max } => ("lead_max", Effective::span(*max)),
        Lead::Fixed(lead) => ("lead", Effective::span(*lead)),
    };
    Effective::map([
        lead,
        ("spread", Effective::span(*spread)),
        ("timeout", Effective::span(*timeout)),
    ])
}

fn log_of(log: &Log) -> Effective {
    let Log { level, format } = log;
    Effective::map([
        ("level", Effective::text(level)),
        ("format", Effective::variant(format)),
    ])
}
