//! Validates a parsed file and converts it to a [`Config`]: ranges, names, and rules about several keys.

mod affinity;
mod backend_tls;
mod listeners;
mod pools;
mod routes;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use causeway_conf::{ByteSize, ConfErrors, Document, Positions, Span};

use super::check::Check;
use super::raw;
use super::{
    ABORT_ON_CLIENT_CLOSE, AccessLog, AdminConfig, BodyRate, Config, DrainConfig, Log, NoRoute,
    RebalanceConfig, TakeoverConfig, Timeouts, WEBSOCKETS_OVER_HTTP2,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A unix socket's path has at most 107 bytes; a name beside it is used while it is created.
const SOCKET_PATH_BYTES_MAX: usize = 90;

/// The configuration, and where each of its keys is.
pub(super) fn config(document: Document<raw::File>) -> Result<(Config, Positions), ConfErrors> {
    let file = document.value;
    let renamed = document.positions.renamed().to_vec();
    let mut check = Check::new(document.positions);
    let pools = pools::pools(&mut check, file.pools, &file.affinity, &file.health);
    let admin = admin(&mut check, file.admin);
    let takeover = takeover(&mut check, file.takeover, admin.socket.as_deref());
    let config = Config {
        listeners: listeners::listeners(&mut check, file.listeners),
        admin,
        takeover,
        websockets_over_http2: file.websockets_over_http2.unwrap_or(WEBSOCKETS_OVER_HTTP2),
        abort_on_client_close: file.abort_on_client_close.unwrap_or(ABORT_ON_CLIENT_CLOSE),
        zone: pools::zone(&mut check, "zone", file.zone),
        routes: routes::routes(&mut check, file.routes, &pools),
        pools,
        no_route: no_route(&mut check, file.no_route),
        affinity: affinity::affinity(&mut check, file.affinity),
        timeouts: timeouts(&mut check, &file.timeouts),
        limits: super::limits::read(&mut check, &file.limits),
        drain: drain(&mut check, file.drain),
        rebalance: rebalance(&mut check, &file.rebalance),
        trusted_proxies: file.trusted_proxies,
        log: log(file.log),
        threads: Some(check.number("threads", file.threads, 0, 0..=1024)).filter(|n| 0 < *n),
        renamed,
    };
    check.finish(config)
}

fn admin(check: &mut Check, admin: raw::Admin) -> AdminConfig {
    let raw::Admin::At(admin) = admin else {
        return AdminConfig {
            address: None,
            token: None,
            socket: None,
        };
    };
    let address = admin.address.as_deref().unwrap_or(AdminConfig::ADDRESS);
    let address = match address {
        "none" => None,
        address => check.listener("admin.address", address),
    };
    if let Some(token) = &admin.token {
        let token = token.expose();
        let is_long = AdminConfig::TOKEN_BYTES_MIN <= token.len();
        let is_plain = token.bytes().all(|byte| byte.is_ascii_graphic());
        check.require(
            is_long && is_plain,
            "admin.token",
            "expected at least 16 visible ASCII characters, such as the output of \"openssl rand -hex 32\"",
        );
    }
    if let Some(socket) = &admin.socket {
        check.require(
            is_socket_path(socket),
            "admin.socket",
            "expected an absolute path of at most 90 bytes, such as /run/causeway/proxy.sock",
        );
    }
    AdminConfig {
        address,
        token: admin.token,
        socket: admin.socket,
    }
}

fn takeover(
    check: &mut Check,
    takeover: raw::Takeover,
    admin_socket: Option<&Path>,
) -> TakeoverConfig {
    if let Some(socket) = &takeover.socket {
        check.require(
            is_socket_path(socket),
            "takeover.socket",
            "expected an absolute path of at most 90 bytes, such as /run/causeway/edge.sock",
        );
        check.require(
            admin_socket != Some(socket),
            "takeover.socket",
            "expected another path than that of admin.socket",
        );
    }
    TakeoverConfig {
        socket: takeover.socket,
    }
}

fn is_socket_path(path: &Path) -> bool {
    path.is_absolute() && path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX
}

fn no_route(check: &mut Check, raw: raw::NoRoute) -> NoRoute {
    let default = NoRoute::DEFAULT;
    let status = raw
        .status
        .and_then(|status| check.status("no_route.status", status, 400..=599));
    if let Some(body) = &raw.body {
        check.require(
            body.len() <= 64 << 10,
            "no_route.body",
            "expected at most 64KiB",
        );
    }
    NoRoute {
        status: status.unwrap_or(default.status),
        body: raw.body.map_or(default.body, Cow::Owned),
    }
}

fn timeouts(check: &mut Check, raw: &raw::Timeouts) -> Timeouts {
    let default = Timeouts::DEFAULT;
    macro_rules! within {
        ($name:ident, $min:expr, $max:expr) => {{
            let key = concat!("timeouts.", stringify!($name));
            check.span(key, raw.$name, default.$name, Span($min)..=Span($max))
        }};
    }
    let head = within!(head, 100 * MS, HOUR);
    Timeouts {
        head,
        http2_preface: check.span(
            "timeouts.http2_preface",
            raw.http2_preface,
            head,
            Span(100 * MS)..=Span(HOUR),
        ),
        keepalive: within!(keepalive, SECOND, DAY),
        downstream_read: within!(downstream_read, SECOND, DAY),
        request_body_rate: match raw.request_body_rate {
            None => default.request_body_rate,
            Some(raw::BodyRate::Off) => None,
            Some(raw::BodyRate::Min(rate)) => Some(body_rate(check, rate)),
        },
        downstream_write: within!(downstream_write, SECOND, DAY),
        connect: within!(connect, 10 * MS, 60 * SECOND),
        upstream_read: within!(upstream_read, SECOND, DAY),
        upstream_write: within!(upstream_write, SECOND, DAY),
        upstream_keepalive: within!(upstream_keepalive, SECOND, HOUR),
        upgrade: within!(upgrade, 100 * MS, HOUR),
        tunnel_idle: within!(tunnel_idle, SECOND, 30 * DAY),
        tunnel_lifetime: raw.tunnel_lifetime.map(|lifetime| {
            let range = Span(SECOND)..=Span(30 * DAY);
            let key = "timeouts.tunnel_lifetime";
            check.span(key, Some(lifetime), DAY, range)
        }),
        tcp_keepalive: within!(tcp_keepalive, SECOND, DAY),
        tcp_user_timeout: within!(tcp_user_timeout, SECOND, HOUR),
    }
}

fn body_rate(check: &mut Check, raw: raw::MinRate) -> BodyRate {
    let default = BodyRate::DEFAULT;
    let per_second = check.within(
        "timeouts.request_body_rate.per_second",
        raw.per_second,
        ByteSize(default.per_second),
        ByteSize(1)..=ByteSize(BodyRate::MAX),
    );
    BodyRate {
        per_second: per_second.0,
        window: check.span(
            "timeouts.request_body_rate.window",
            raw.window,
            default.window,
            Span(SECOND)..=Span(HOUR),
        ),
    }
}

fn drain(check: &mut Check, raw: raw::Drain) -> DrainConfig {
    let default = DrainConfig::DEFAULT;
    let any = Span(Duration::ZERO)..=Span(HOUR);
    let drain = DrainConfig {
        late: check.span(
            "drain.late",
            raw.late,
            default.late,
            Span(Duration::ZERO)..=Span(60 * SECOND),
        ),
        spread: check.span("drain.spread", raw.spread, default.spread, any.clone()),
        timeout: check.span(
            "drain.timeout",
            raw.timeout,
            default.timeout,
            Span(SECOND)..=Span(DAY),
        ),
        backend_spread: check.span(
            "drain.backend_spread",
            raw.backend_spread,
            default.backend_spread,
            any,
        ),
        close_tunnels: raw.close_tunnels.unwrap_or(default.close_tunnels),
    };
    check.require(
        drain.spread < drain.timeout,
        "drain.timeout",
        "expected more than drain.spread, or tunnels end before all close frames are sent",
    );
    drain
}

fn rebalance(check: &mut Check, raw: &raw::Rebalance) -> RebalanceConfig {
    let default = RebalanceConfig::DEFAULT;
    RebalanceConfig {
        spread: check.span(
            "rebalance.spread",
            raw.spread,
            default.spread,
            Span(Duration::ZERO)..=Span(HOUR),
        ),
        quiet: check.span(
            "rebalance.quiet",
            raw.quiet,
            default.quiet,
            Span(Duration::ZERO)..=Span(DAY),
        ),
        threshold: raw
            .threshold
            .map(|percent| check.number("rebalance.threshold", Some(percent), 5, 5..=1000)),
        after: check.span(
            "rebalance.after",
            raw.after,
            default.after,
            Span(Duration::ZERO)..=Span(HOUR),
        ),
    }
}

fn log(raw: raw::Log) -> Log {
    let default = Log::DEFAULT;
    let access = match raw.access.as_deref() {
        None => default.access,
        Some("stdout") => AccessLog::Stdout,
        Some("stderr") => AccessLog::Stderr,
        Some("off") => AccessLog::Off,
        Some(path) => AccessLog::File(PathBuf::from(path)),
    };
    Log {
        level: raw.level.unwrap_or(default.level),
        format: raw.format.unwrap_or(default.format),
        access,
    }
}
