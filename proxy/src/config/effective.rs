//! The effective configuration, for `--print-config`.
//!
//! Each struct is destructured field by field, so that a new setting does not compile until it is shown.

use std::borrow::Cow;
use std::path::PathBuf;

use causeway_conf::{Effective, Positions, Secret, Timestamp};

use super::routes::HeaderRules;
use super::{
    AccessLog, AdminConfig, AffinityConfig, AllowedAddresses, BackendConfig, BackendTls, BodyRate,
    CertificateFiles, CertificateSource, ClusterConfig, Config, DiscoverConfig, DrainConfig,
    ListenerConfig, Log, NoRoute, PoolConfig, RebalanceConfig, Route, SameSite, SentinelConfig,
    TakeoverConfig, Timeouts, TlsConfig, TlsVersion,
};

impl Config {
    /// What applies, in the form of the file that it was read from, whose keys are at `positions`.
    pub(super) fn effective(&self, positions: &Positions) -> Effective {
        let Self {
            listeners,
            admin,
            takeover,
            websockets_over_http2,
            abort_on_client_close,
            zone,
            pools,
            routes: _, // In the order of the file.
            no_route,
            affinity,
            timeouts,
            limits,
            drain,
            rebalance,
            trusted_proxies,
            log,
            threads,
            renamed: _,
        } = self;
        let pools = pools.iter().enumerate();
        Effective::map([
            ("listeners", Effective::list(listeners, listener)),
            ("admin", admin_of(admin)),
            ("takeover", takeover_of(takeover)),
            (
                "websockets_over_http2",
                Effective::plain(websockets_over_http2),
            ),
            (
                "abort_on_client_close",
                Effective::plain(abort_on_client_close),
            ),
            ("zone", Effective::option(zone.as_ref(), Effective::text)),
            (
                "pools",
                Effective::list(pools, |(index, it)| pool(index, it, positions)),
            ),
            ("routes", self.effective_routes(positions)),
            ("no_route", no_route_of(no_route)),
            ("affinity", affinity_of(affinity)),
            ("timeouts", timeouts_of(timeouts)),
            ("limits", limits.effective()),
            ("drain", drain_of(drain)),
            ("rebalance", rebalance_of(*rebalance)),
            (
                "trusted_proxies",
                Effective::list(trusted_proxies, Effective::shown),
            ),
            ("log", log_of(log)),
            ("threads", Effective::plain(threads.unwrap_or(0))),
        ])
    }

    /// The routes in the order of the file; they are matched in another one.
    fn effective_routes(&self, positions: &Positions) -> Effective {
        let index_of = |route: &Route| {
            let is_it = |index: &usize| {
                let setting = |name: &str| positions.text(&format!("routes[{index}].{name}"));
                let host = setting("host").unwrap_or_default();
                let path = setting("path").unwrap_or("/");
                route.name() == format!("{}{path}", host.to_ascii_lowercase())
            };
            let mut given =
                (0..).take_while(|index| positions.is_given(&format!("routes[{index}]")));
            given.find(is_it).unwrap_or(usize::MAX)
        };
        let mut routes: Vec<&Route> = self.routes.iter().collect();
        routes.sort_by_cached_key(|route| index_of(route));
        Effective::list(routes, |route| {
            let [request, response] =
                [&route.rules.request, &route.rules.response].map(header_rules);
            let strip_prefix = route.rules.strip_prefix.as_ref();
            Effective::map([
                ("host", Effective::option(route.host(), Effective::text)),
                ("path", Effective::text(route.path())),
                ("pool", Effective::text(&self.pools[route.pool.0].name)),
                (
                    "upgrades",
                    Effective::list(&route.upgrades, Effective::text),
                ),
                (
                    "strip_prefix",
                    Effective::option(strip_prefix, Effective::text),
                ),
                ("request_headers", request),
                ("response_headers", response),
            ])
        })
    }
}

fn header_rules(rules: &HeaderRules) -> Effective {
    let HeaderRules { remove, set, add } = rules;
    let values = |is_empty: bool| {
        if is_empty {
            Effective::Map(Vec::new())
        } else {
            Effective::Secrets
        }
    };
    Effective::map([
        (
            "remove",
            Effective::list(remove, |name| Effective::text(name.spelled())),
        ),
        ("set", values(set.is_empty())),
        ("add", values(add.is_empty())),
    ])
}

fn listener(listener: &ListenerConfig) -> Effective {
    let ListenerConfig {
        address,
        proxy_protocol,
        tls,
        redirect_to_https,
    } = listener;
    Effective::map([
        ("address", Effective::shown(address)),
        (
            "proxy_protocol",
            Effective::list(proxy_protocol, Effective::shown),
        ),
        ("tls", Effective::option(tls.as_ref(), listener_tls)),
        (
            "redirect_to_https",
            Effective::option(*redirect_to_https, Effective::plain),
        ),
    ])
}

fn listener_tls(tls: &TlsConfig) -> Effective {
    let TlsConfig {
        certificates,
        min_version,
        http2,
        handshake,
        ticket_keys,
        client_ca,
    } = tls;
    let certificates = match certificates {
        CertificateSource::Files(files) => (
            "certificates",
            Effective::list(files, |files| {
                let CertificateFiles { certificate, key } = files;
                Effective::map([
                    ("certificate", Effective::shown(certificate.display())),
                    ("key", Effective::shown(key.display())),
                ])
            }),
        ),
        CertificateSource::Folder(folder) => ("folder", Effective::shown(folder.display())),
    };
    let min_version = match min_version {
        TlsVersion::V1_2 => "1.2",
        TlsVersion::V1_3 => "1.3",
    };
    Effective::map([
        certificates,
        ("min_version", Effective::text(min_version)),
        ("http2", Effective::plain(http2)),
        ("handshake", Effective::span(*handshake)),
        (
            "ticket_keys",
            Effective::option(ticket_keys.as_ref(), |path| {
                Effective::shown(path.display())
            }),
        ),
        (
            "client_ca",
            Effective::option(client_ca.as_ref(), |path| Effective::shown(path.display())),
        ),
    ])
}

fn pool(index: usize, pool: &PoolConfig, positions: &Positions) -> Effective {
    let PoolConfig {
        name,
        pick,
        cookie,
        backends,
        discover,
        health,
        tls,
        closed_paths,
    } = pool;
    let mut settings = vec![
        ("name", Effective::text(name)),
        ("pick", Effective::variant(pick)),
    ];
    match cookie {
        None => settings.push(("cookie", Effective::text("none").or_from("affinity.cookie"))),
        Some(cookie) => settings.extend([
            (
                "cookie",
                Effective::text(&cookie.name).or_from("affinity.cookie"),
            ),
            (
                "cookie_path",
                Effective::text(&cookie.path).or_from("affinity.path"),
            ),
        ]),
    }
    settings.extend([
        (
            "closed_paths",
            Effective::list(closed_paths, Effective::text),
        ),
        ("tls", Effective::option(tls.as_ref(), backend_tls)),
        ("health", health.effective(index, positions)),
        (
            "discover",
            Effective::option(discover.as_ref(), |it| discover_of(index, it, positions)),
        ),
        ("backends", Effective::list(backends, backend)),
    ]);
    named(settings)
}

fn named(settings: Vec<(&str, Effective)>) -> Effective {
    let settings = settings.into_iter();
    Effective::Map(
        settings
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

fn backend_tls(tls: &BackendTls) -> Effective {
    let BackendTls {
        verify,
        ca,
        server_name,
        certificate,
    } = tls;
    let [certificate, key] = match certificate {
        None => [Effective::null(), Effective::null()],
        Some(CertificateFiles { certificate, key }) => {
            [certificate, key].map(|path| Effective::shown(path.display()))
        }
    };
    Effective::map([
        ("verify", Effective::plain(verify)),
        (
            "ca",
            Effective::option(ca.as_ref(), |path| Effective::shown(path.display())),
        ),
        (
            "server_name",
            Effective::option(server_name.as_ref(), |name| Effective::text(name.to_str())),
        ),
        ("certificate", certificate),
        ("key", key),
    ])
}

fn sentinel_of(sentinel: &SentinelConfig) -> Effective {
    let SentinelConfig {
        master,
        servers,
        user,
        password,
        database,
        sentinel_user,
        sentinel_password,
        is_tls,
    } = sentinel;
    let secret =
        |secret: &Option<Secret>| Effective::option(secret.as_ref(), |_| Effective::Secret);
    let tls = match is_tls {
        true => Effective::Written,
        false => Effective::null(),
    };
    Effective::map([
        ("master", Effective::text(master)),
        (
            "servers",
            Effective::list(servers, |(host, port)| {
                Effective::text(format!("{host}:{port}"))
            }),
        ),
        ("user", Effective::option(user.as_ref(), Effective::text)),
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

fn cluster_of(cluster: &ClusterConfig) -> Effective {
    let ClusterConfig {
        servers,
        announce,
        user,
        password,
        is_tls,
    } = cluster;
    let address = |(host, port): &(String, u16)| format!("{host}:{port}");
    let announce = match announce.is_empty() {
        true => Effective::null(),
        false => Effective::Written,
    };
    Effective::map([
        (
            "servers",
            Effective::list(servers, |server| Effective::text(address(server))),
        ),
        ("user", Effective::option(user.as_ref(), Effective::text)),
        (
            "password",
            Effective::option(password.as_ref(), |_| Effective::Secret),
        ),
        ("announce", announce),
        (
            "tls",
            match is_tls {
                true => Effective::Written,
                false => Effective::null(),
            },
        ),
    ])
}

fn discover_of(index: usize, discover: &DiscoverConfig, positions: &Positions) -> Effective {
    let DiscoverConfig {
        servers,
        sentinel,
        cluster,
        ca,
        prefix,
        every,
        allow,
    } = discover;
    let servers = if let Some(sentinel) = sentinel {
        ("sentinel", sentinel_of(sentinel))
    } else if let Some(cluster) = cluster {
        ("cluster", cluster_of(cluster))
    } else if positions.is_given(&format!("pools[{index}].discover.redis")) {
        ("redis", Effective::Secret)
    } else {
        (
            "redis_urls",
            Effective::list(servers, |_| Effective::Secret),
        )
    };
    let tls = Effective::option(ca.as_ref(), |_| {
        Effective::map([("ca", Effective::Written)])
    });
    let allow = match &**allow {
        AllowedAddresses::Ranges(ranges) => Effective::list(ranges, Effective::shown),
        AllowedAddresses::Routable { loopback: _ } => Effective::null(),
    };
    Effective::map([
        servers,
        ("tls", tls),
        ("prefix", Effective::text(prefix)),
        ("every", Effective::span(*every)),
        ("allow", allow),
    ])
}

fn backend(backend: &BackendConfig) -> Effective {
    let BackendConfig {
        id,
        address,
        weight,
        zone,
        generation,
        allowed: _, // Of discovered backends.
        backup,
        maintenance,
    } = backend;
    Effective::map([
        ("id", Effective::shown(id)),
        ("address", Effective::shown(address)),
        ("weight", Effective::plain(weight)),
        ("zone", Effective::option(zone.as_ref(), Effective::text)),
        (
            "generation",
            Effective::option(*generation, Effective::plain),
        ),
        ("backup", Effective::plain(backup)),
        ("maintenance", Effective::plain(maintenance)),
    ])
}

fn no_route_of(no_route: &NoRoute) -> Effective {
    let NoRoute { status, body } = no_route;
    Effective::map([
        ("status", Effective::plain(status.as_u16())),
        ("body", Effective::text(body)),
    ])
}

fn affinity_of(affinity: &AffinityConfig) -> Effective {
    let AffinityConfig {
        domain,
        same_site,
        partitioned,
        secure,
        http_only,
        max_age,
        keys,
        accept_unsigned_until,
        sockjs_path,
        query_parameter,
        sockjs_sessions,
        hold,
        hold_timeout,
    } = affinity;
    let same_site = match same_site {
        SameSite::Lax => "lax",
        SameSite::Strict => "strict",
        SameSite::None => "none",
    };
    Effective::map([
        (
            "domain",
            Effective::option(domain.as_ref(), Effective::text),
        ),
        ("same_site", Effective::text(same_site)),
        ("partitioned", Effective::plain(partitioned)),
        ("secure", Effective::variant(secure)),
        ("http_only", Effective::plain(http_only)),
        ("max_age", Effective::option(*max_age, Effective::span)),
        ("keys", Effective::list(keys, |_| Effective::Secret)),
        (
            "accept_unsigned_until",
            Effective::option(*accept_unsigned_until, |until| {
                Effective::shown(Timestamp(until))
            }),
        ),
        ("sockjs_path", Effective::plain(sockjs_path)),
        (
            "query_parameter",
            Effective::option(query_parameter.as_ref(), Effective::text),
        ),
        ("sockjs_sessions", Effective::plain(sockjs_sessions)),
        ("hold", Effective::span(*hold)),
        ("hold_timeout", Effective::span(*hold_timeout)),
    ])
}

fn timeouts_of(timeouts: &Timeouts) -> Effective {
    let Timeouts {
        head,
        http2_preface,
        keepalive,
        downstream_read,
        request_body_rate,
        downstream_write,
        connect,
        upstream_read,
        upstream_write,
        upstream_keepalive,
        upgrade,
        tunnel_idle,
        tunnel_lifetime,
        tcp_keepalive,
        tcp_user_timeout,
    } = timeouts;
    let request_body_rate = match request_body_rate {
        None => Effective::text("off"),
        Some(BodyRate { per_second, window }) => Effective::map([
            ("per_second", Effective::size(*per_second)),
            ("window", Effective::span(*window)),
        ]),
    };
    Effective::map([
        ("head", Effective::span(*head)),
        (
            "http2_preface",
            Effective::span(*http2_preface).or_from("timeouts.head"),
        ),
        ("keepalive", Effective::span(*keepalive)),
        ("downstream_read", Effective::span(*downstream_read)),
        ("request_body_rate", request_body_rate),
        ("downstream_write", Effective::span(*downstream_write)),
        ("connect", Effective::span(*connect)),
        ("upstream_read", Effective::span(*upstream_read)),
        ("upstream_write", Effective::span(*upstream_write)),
        ("upstream_keepalive", Effective::span(*upstream_keepalive)),
        ("upgrade", Effective::span(*upgrade)),
        ("tunnel_idle", Effective::span(*tunnel_idle)),
        (
            "tunnel_lifetime",
            Effective::option(*tunnel_lifetime, Effective::span),
        ),
        ("tcp_keepalive", Effective::span(*tcp_keepalive)),
        ("tcp_user_timeout", Effective::span(*tcp_user_timeout)),
    ])
}

fn admin_of(admin: &AdminConfig) -> Effective {
    let AdminConfig {
        address,
        token,
        socket,
    } = admin;
    let none = || Effective::text("none");
    if address.is_none() && socket.is_none() {
        return none();
    }
    Effective::map([
        ("address", address.map_or_else(none, Effective::shown)),
        (
            "token",
            Effective::option(token.as_ref(), |_| Effective::Secret),
        ),
        (
            "socket",
            Effective::option(socket.as_ref(), |path| {
                Effective::text(path.to_string_lossy())
            }),
        ),
    ])
}

fn takeover_of(takeover: &TakeoverConfig) -> Effective {
    let TakeoverConfig { socket } = takeover;
    let path = |path: &PathBuf| Effective::text(path.to_string_lossy());
    Effective::map([("socket", Effective::option(socket.as_ref(), path))])
}

fn rebalance_of(rebalance: RebalanceConfig) -> Effective {
    let RebalanceConfig {
        spread,
        quiet,
        threshold,
        after,
    } = rebalance;
    Effective::map([
        ("spread", Effective::span(spread)),
        ("quiet", Effective::span(quiet)),
        ("threshold", Effective::option(threshold, Effective::plain)),
        ("after", Effective::span(after)),
    ])
}

fn drain_of(drain: &DrainConfig) -> Effective {
    let DrainConfig {
        late,
        spread,
        timeout,
        backend_spread,
        close_tunnels,
    } = drain;
    Effective::map([
        ("late", Effective::span(*late)),
        ("spread", Effective::span(*spread)),
        ("timeout", Effective::span(*timeout)),
        ("backend_spread", Effective::span(*backend_spread)),
        (
            "close_tunnels",
            Effective::list(close_tunnels, Effective::variant),
        ),
    ])
}

fn log_of(log: &Log) -> Effective {
    let Log {
        level,
        format,
        access,
    } = log;
    let access = match access {
        AccessLog::Stdout => Cow::Borrowed("stdout"),
        AccessLog::Stderr => Cow::Borrowed("stderr"),
        AccessLog::Off => Cow::Borrowed("off"),
        AccessLog::File(path) => path.to_string_lossy(),
    };
    Effective::map([
        ("level", Effective::text(level.as_str())),
        ("format", Effective::variant(format)),
        ("access", Effective::text(access)),
    ])
}
