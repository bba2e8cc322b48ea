//! Files that are accepted, and the errors of those that are not.

use expect_test::{Expect, expect};
use http::Method;

use super::*;

mod effective;
mod errors;

const MINIMAL: &str =
    "pools: [{ name: nodes, backends: [{ id: n1, address: '127.0.0.1:9001' }] }]\n";

fn parse(text: &str) -> Config {
    Config::parse("proxy.yaml", text).unwrap_or_else(|errors| panic!("{errors}"))
}

#[track_caller]
fn errors(text: &str, expected: Expect) {
    let errors = Config::parse("proxy.yaml", text).unwrap_err();
    expected.assert_eq(&errors.to_string());
}

/// The errors of a file that is valid except for `section`.
#[track_caller]
fn section(section: &str, expected: Expect) {
    errors(&format!("{MINIMAL}{section}"), expected);
}

const COMMENTED: &str = include_str!("../../../conf/proxy.yaml");

#[test]
fn the_commented_file_holds_the_defaults() {
    let pools = "pools: [{ name: nodes, backends: [
        { id: n1, address: '127.0.0.1:9001' },
        { id: n2, address: '127.0.0.1:9002' },
        { id: n3, address: '127.0.0.1:9003' } ] }]";
    let (commented, minimal) = (parse(COMMENTED), parse(pools));
    assert_eq!(format!("{commented:#?}"), format!("{minimal:#?}"));
}

#[test]
fn the_commented_file_names_every_setting() {
    // For an unknown key in a section, the error of serde has all known keys.
    let sections = [
        "zz: 1",
        "listeners: [{zz: 1}]",
        "listeners: [{address: a, tls: {zz: 1}}]",
        "listeners: [{address: a, tls: {certificates: [{zz: 1}]}}]",
        "admin: {zz: 1}",
        "pools: [{zz: 1}]",
        "pools: [{name: a, backends: [{zz: 1}]}]",
        "pools: [{name: a, discover: {redis: a, zz: 1}}]",
        "routes: [{zz: 1}]",
        "routes: [{pool: a, request_headers: {zz: 1}}]",
        "no_route: {zz: 1}",
        "affinity: {zz: 1}",
        "health: {zz: 1}",
        "timeouts: {zz: 1}",
        "timeouts: {request_body_rate: {zz: 1}}",
        "limits: {zz: 1}",
        "drain: {zz: 1}",
        "rebalance: {zz: 1}",
        "takeover: {zz: 1}",
        "log: {zz: 1}",
    ];
    for section in sections {
        let error = Config::parse("f", section).unwrap_err().to_string();
        let unknown = error.lines().find(|line| line.contains("unknown setting"));
        let (_, known) = unknown
            .and_then(|line| line.split_once("expected"))
            .expect(&error);
        let names: Vec<&str> = known.split('"').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{error}");
        for name in names {
            let key = format!("{name}:");
            let mut lines = COMMENTED.lines();
            let is_key = |line: &str| line.trim_start_matches([' ', '-', '#']).starts_with(&key);
            assert!(lines.any(is_key), "{name} of {section}");
        }
    }
}

#[test]
fn everything_can_be_set() {
    let config = parse(
        "listeners: [{address: '0.0.0.0:80'}, {address: '[::1]:0'}, {address: '127.0.0.1:0'}]
admin: {address: none}
zone: west
pools:
  - {name: a, pick: round_robin, cookie: stick, backends: [{id: a1, address: '127.0.0.1:1', weight: 3}]}
  - name: b
    health: {kind: tcp, rise: 1}
    backends: [{id: b1, address: 'APP.example:80', maintenance: true, zone: east}, {id: b2, address: 'b:2', backup: true}]
  - {name: c, backends: [{id: c1, address: '[::1]:9000'}]}
routes: [{host: Example.com, path: /app, pool: b, upgrades: []}, {pool: a}]
no_route: {status: 410, body: gone}
affinity: {cookie: node, path: /p, domain: example.com, same_site: none, secure: always, http_only: false,
  max_age: 1h, keys: [0123456789abcdef], sockjs_path: false, sockjs_sessions: 2048, hold: 0s, hold_timeout: 1m}
health: {method: HEAD, path: /up, host: app.example, expect: [200, 204, '300-399'], port: 9000, interval: 5s, fast_interval: 1s, down_interval: 3s,
  timeout: 2s, rise: 4, fall: 5, ignore_below: 50, slow_start: 1m}
abort_on_client_close: true
timeouts: {head: 3s, request_body_rate: {window: 5s}}
limits: {connections: 10, head_size: 8KiB, response_head_size: 32KiB, headers: 100, http2_streams: 5, http2_send_buffer: 8KiB, retries: 0, retry_budget: 100, waiting: 0,
  connections_per_address: 5, connection_rate_per_address: {per_second: 2, burst: 9}, body_size: 1MiB, tunnels_per_backend: 7}
trusted_proxies: [10.0.0.0/8]
log: {level: debug, format: text, access: /var/log/access}
threads: 2
",
    );
    assert_eq!(config.listeners.len(), 3);
    assert_eq!(config.admin.address, None);
    let cookies: Vec<&str> = config
        .pools
        .iter()
        .flat_map(|pool| Some(pool.cookie.as_ref()?.name.as_str()))
        .collect();
    assert_eq!(cookies, ["stick", "node-b", "node-c"]);
    let (a, b) = (&config.pools[0], &config.pools[1]);
    assert_eq!((a.pick, a.backends[0].weight), (Pick::RoundRobin, 3));
    assert_eq!(b.backends[0].address.to_string(), "app.example:80");
    assert!(b.backends[0].maintenance && !b.backends[0].backup);
    assert_eq!(
        (config.zone.as_deref(), b.backends[0].zone.as_deref()),
        (Some("west"), Some("east"))
    );
    assert!(b.backends[1].backup);
    // Settings that a pool omits are those for all pools.
    assert_eq!((a.health.kind, a.health.rise), (ProbeKind::Node, 4));
    assert_eq!((b.health.kind, b.health.rise), (ProbeKind::Tcp, 1));
    assert_eq!((b.health.fall, b.health.interval.as_secs()), (5, 5));
    let takes = |status| {
        a.health
            .expect
            .contains(StatusCode::from_u16(status).unwrap())
    };
    assert!([200, 204, 300, 399].into_iter().all(takes));
    assert!(![201, 299, 400].into_iter().any(takes));
    assert_eq!((&a.health.method, &*a.health.path), (&Method::HEAD, "/up"));
    assert_eq!(a.health.slow_start.as_secs(), 60);
    assert_eq!((a.health.port, b.health.port), (Some(9000), Some(9000)));
    assert_eq!(config.affinity.max_age, Some(Duration::from_secs(3600)));
    let held = (config.affinity.hold, config.affinity.hold_timeout);
    assert_eq!(held, (Duration::ZERO, Duration::from_secs(60)));
    assert_eq!(config.limits.connections, Some(10));
    assert_eq!(config.limits.head_size, 8192);
    assert_eq!(config.limits.response_head_size, 32768);
    assert_eq!(config.limits.headers, 100);
    let http2 = (
        config.limits.http2_streams,
        config.limits.http2_send_buffer,
        config.timeouts.http2_preface,
    );
    assert_eq!(http2, (5, 8192, Duration::from_secs(3)));
    assert!(config.abort_on_client_close);
    let rate = config.timeouts.request_body_rate.unwrap();
    assert_eq!((rate.per_second, rate.window.as_secs()), (500, 5));
    assert_eq!(config.limits.waiting, 0);
    assert_eq!(config.limits.connections_per_address, Some(5));
    let rate = Rate {
        per_second: 2,
        burst: 9,
    };
    assert_eq!(config.limits.connection_rate_per_address, Some(rate));
    assert_eq!(config.limits.handshake_rate_per_address, None);
    assert_eq!(config.limits.body_size, Some(1 << 20));
    assert_eq!(config.limits.tunnels_per_backend, Some(7));
    assert_eq!(config.limits.requests, None);
    assert_eq!(config.threads, Some(2));
    assert_eq!(config.log.access, AccessLog::File("/var/log/access".into()));
    assert!(!format!("{config:?}").contains("0123456789abcdef"));
}

#[test]
fn the_tls_of_backends_is_checked_without_reading_its_files() {
    let pool = |backend: &str, tls: &str| {
        let text = format!(
            "pools: [{{name: p, tls: {{{tls}}}, backends: [{{id: a, address: '{backend}'}}]}}]\nroutes: [{{pool: p}}]\n"
        );
        Config::parse("f", &text)
    };
    let tls = |backend, tls| pool(backend, tls).unwrap().pools[0].tls.clone().unwrap();
    assert!(tls("app.example:1", "").verify);
    assert!(!tls("unix:/a", "verify: false").verify);
    let named = tls("unix:/a", "server_name: app.example");
    assert_eq!(named.server_name, ServerName::try_from("app.example").ok());
    for (backend, settings, expected) in [
        (
            "unix:/a",
            "",
            "backends[0].address: expected \"tls.server_name\"",
        ),
        (
            "a:1",
            "server_name: 'a b'",
            "tls.server_name: \"a b\": expected a host name",
        ),
        (
            "a:1",
            "certificate: /c",
            "tls: expected \"certificate\" and \"key\" together",
        ),
        ("a:1", "verify: false, ca: /c", "tls.ca: expected none"),
        ("a:1", "verified: false", "unknown setting"),
    ] {
        let error = pool(backend, settings).unwrap_err().to_string();
        assert!(error.contains(expected), "{settings}: {error}");
    }
}

#[test]
fn a_file_without_pools_is_an_error() {
    errors(
        "threads: 1",
        expect!["proxy.yaml: pools: expected at least one pool"],
    );
    errors(
        "pools: [{name: a}]",
        expect![
            "proxy.yaml:1:9: pools[0].backends: expected at least one backend, or \"discover\""
        ],
    );
}

#[test]
fn errors_of_unknown_keys_and_wrong_types_have_a_position() {
    section(
        "timeouts:\n  haed: 10s\n",
        expect![[r#"proxy.yaml:3:3: timeouts.haed: unknown setting "haed", did you mean "head"?"#]],
    );
    section(
        "timeouts:\n  head: 10\n",
        expect![[
            r#"proxy.yaml:3:3: timeouts.head: expected a duration with its unit, such as "250ms", "10s", "5m" or "1h", found 10"#
        ]],
    );
    section(
        "health: {rise: many}",
        expect!["proxy.yaml:2:10: health.rise: expected a whole number, 0 or more, found \"many\""],
    );
    section(
        "log: {level: loud}",
        expect![
            "proxy.yaml:2:7: log.level: unknown value \"loud\", expected one of \"error\", \"warn\", \"info\", \"debug\", \"trace\""
        ],
    );
}

#[test]
fn errors_of_duplicate_names_and_ids_have_the_key_of_the_other() {
    errors(
        "pools:
  - name: a
    backends:
      - {id: n1, address: 127.0.0.1:1}
      - {id: n1, address: 127.0.0.1:2}
  - name: a
    cookie: causeway
    backends: [{id: n1, address: 127.0.0.1:3}]
routes: [{pool: a}]
",
        expect![[r#"
            proxy.yaml:5:10: pools[0].backends[1].id: duplicate id "n1", already used by pools[0].backends[0].id: ids must be unique across all pools
            proxy.yaml:6:5: pools[1].name: duplicate name "a", already used by pools[0].name
            proxy.yaml:7:5: pools[1].cookie: duplicate cookie "causeway", already used by pools[0].cookie: each pool needs its own cookie
            proxy.yaml:8:17: pools[1].backends[0].id: duplicate id "n1", already used by pools[0].backends[1].id: ids must be unique across all pools"#]],
    );
}

#[test]
fn errors_of_addresses_have_the_expected_form() {
    errors(
        "listeners:
  - address: localhost:80
  - address: 127.0.0.1:80
  - address: 127.0.0.1:80
admin: {address: ':8081'}
pools: [{name: a, backends: [{id: a b, address: 127.0.0.1, weight: 0}, {id: x, address: '127.0.0.1:99999', weight: 1001}]}]
",
        expect![[r#"
            proxy.yaml:2:5: listeners[0].address: "localhost:80": expected an IP address and a port, such as "127.0.0.1:8080", "0.0.0.0:80" or "[::]:80"
            proxy.yaml:4:5: listeners[2].address: duplicate address 127.0.0.1:80
            proxy.yaml:5:9: admin.address: ":8081": expected an IP address and a port, such as "127.0.0.1:8080", "0.0.0.0:80" or "[::]:80"
            proxy.yaml:6:31: pools[0].backends[0].id: "a b": expected 1 to 64 ASCII letters, digits, ".", "_" or "-"
            proxy.yaml:6:40: pools[0].backends[0].address: "127.0.0.1": expected "10.0.0.7:9000", "[::1]:9000", "host.example:9000" or "unix:/run/app.sock", with its port
            proxy.yaml:6:60: pools[0].backends[0].weight: 0 is out of range, expected 1 to 1000
            proxy.yaml:6:80: pools[0].backends[1].address: "127.0.0.1:99999": expected "10.0.0.7:9000", "[::1]:9000", "host.example:9000" or "unix:/run/app.sock", with a port from 1 to 65535
            proxy.yaml:6:108: pools[0].backends[1].weight: 1001 is out of range, expected 1 to 1000"#]],
    );
}

#[test]
fn zones_are_names_and_a_pool_is_not_all_backups() {
    errors(
        "zone: ''
pools: [{name: a, backends: [{id: a, address: 'a:1', zone: 'my zone', backup: true}]}]
",
        expect![[r#"
            proxy.yaml:1:1: zone: expected 1 to 64 ASCII letters, digits, ".", "_" or "-"
            proxy.yaml:2:19: pools[0].backends: expected at least one backend that is not a backup
            proxy.yaml:2:54: pools[0].backends[0].zone: expected 1 to 64 ASCII letters, digits, ".", "_" or "-""#]],
    );
}

#[test]
fn routes_are_checked_against_pools_and_each_other() {
    section(
        "routes:
  - {pool: node}
  - {host: 'example.com:80', path: app, pool: nodes}
  - {path: /a, pool: nodes, upgrades: ['web socket']}
  - {path: /a, pool: nodes}
  - {host: '*.Example.com', pool: nodes}
  - {host: '*.example.com', path: /, pool: nodes}
  - {path: /b, pool: nodes, upgrades: [websocket, Causeway-Handoff, causeway-handoff/1.0]}
",
        expect![[r#"
            proxy.yaml:3:6: routes[0].pool: unknown pool "node", expected one of: nodes
            proxy.yaml:4:6: routes[1].host: expected a host name without a port, such as "example.com" or "*.example.com"
            proxy.yaml:4:30: routes[1].path: expected a path that starts with "/", without spaces or any of ?#;
            proxy.yaml:5:40: routes[2].upgrades[0]: expected the name of a protocol, such as "websocket"
            proxy.yaml:6:5: routes[3]: the same host and path as routes[2], so it would never match
            proxy.yaml:8:5: routes[5]: the same host and path as routes[4], so it would never match
            proxy.yaml:9:51: routes[6].upgrades[1]: expected another protocol: this one is only for the edge itself
            proxy.yaml:9:69: routes[6].upgrades[2]: expected another protocol: this one is only for the edge itself"#]],
    );
    errors(
        "pools: [{name: a, backends: [{id: a, address: 'a:1'}]}, {name: b, backends: [{id: b, address: 'b:1'}]}]",
        expect![
            "proxy.yaml: routes: expected routes: with several pools, each request needs a route that names its pool"
        ],
    );
}

#[test]
fn the_changes_of_a_route_are_checked() {
    section(
        "routes:
  - {path: /app/x, pool: nodes, strip_prefix: /ap, request_headers: {remove: [Host, 'a b'], set: {Host: a, TE: x}}}
  - {path: /b, pool: nodes, strip_prefix: /, response_headers: {add: {A: ' b', B: \"c\\n\"}, set: {X-A: ok}}}
",
        expect![[r#"
            proxy.yaml:3:33: routes[0].strip_prefix: expected a prefix of the route's path, such as "/app" for "/app" or "/app/x"
            proxy.yaml:3:70: routes[0].request_headers.remove: "Host": expected it under "set": each request has one
            proxy.yaml:3:70: routes[0].request_headers.remove: "a b": expected the name of a header
            proxy.yaml:3:93: routes[0].request_headers.set: "TE": expected another header: this one is set by the edge
            proxy.yaml:4:29: routes[1].strip_prefix: expected a prefix of the route's path, such as "/app" for "/app" or "/app/x"
            proxy.yaml:4:65: routes[1].response_headers.add: "A": expected a value of visible ASCII and spaces within it
            proxy.yaml:4:65: routes[1].response_headers.add: "B": expected a value of visible ASCII and spaces within it"#]],
    );
    let config = parse(&format!(
        "{MINIMAL}routes: [{{path: /app/x, strip_prefix: /app/, pool: nodes, request_headers: {{set: {{X-Key: hunter2}}}}}}]"
    ));
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn paths_for_operators_are_closed_by_default() {
    let pool = |more: &str| {
        let text = format!("pools: [{{name: p, backends: [{{id: a, address: 'a:1'}}]{more}}}]");
        let config = parse(&text);
        move |path: &str| config.routes.find(None, path).is_none()
    };
    for operators in ["/live", "/metrics", "/ready", "/slowest"] {
        for more in ["", ", health: {kind: http}", ", health: {kind: tcp}"] {
            assert!(pool(more)(operators), "{operators} {more}");
        }
        assert!(!pool(", closed_paths: []")(operators), "{operators}");
    }
    // Clients of other apps use it.
    for api in ["/api", "/api/publish"] {
        assert!(pool("")(api), "{api}");
        assert!(!pool(", health: {kind: http}")(api), "{api}");
    }
    let nodes = ", health: {kind: tcp}, discover: {redis: 'redis://a'}";
    assert!(pool(nodes)("/api/publish"));
    let own = pool(", closed_paths: [/admin/stats, /server/*]");
    assert!(own("/admin/stats") && own("/server/x") && !own("/admin") && !own("/metrics"));
    errors(
        "pools: [{name: p, backends: [{id: a, address: 'a:1'}], closed_paths: [metrics, /a/../b, /, '/a*', /a%20b]}]",
        expect![[r#"
            proxy.yaml:1:71: pools[0].closed_paths[0]: expected a path such as "/metrics", or "/api/*" for all below it too, without escapes and empty or dotted segments
            proxy.yaml:1:80: pools[0].closed_paths[1]: expected a path such as "/metrics", or "/api/*" for all below it too, without escapes and empty or dotted segments
            proxy.yaml:1:89: pools[0].closed_paths[2]: expected a path such as "/metrics", or "/api/*" for all below it too, without escapes and empty or dotted segments
            proxy.yaml:1:92: pools[0].closed_paths[3]: expected a path such as "/metrics", or "/api/*" for all below it too, without escapes and empty or dotted segments
            proxy.yaml:1:99: pools[0].closed_paths[4]: expected a path such as "/metrics", or "/api/*" for all below it too, without escapes and empty or dotted segments"#]],
    );
}

#[test]
fn every_number_and_duration_has_a_range() {
    section(
        "timeouts: {head: 0s, connect: 2m, tunnel_idle: 0s, tunnel_lifetime: 2y}
health: {interval: 1ms, timeout: 0s, rise: 0, fall: 101, ignore_below: 101, expect: [99, 1000], path: ready, port: 0, slow_start: 2h}
limits: {head_size: 1MiB, connections: 0, retries: 11, retry_budget: 101, waiting: 1000001,
  body_size: 2048GiB, requests: 0, tunnels_per_address: 0, handshake_rate_per_address: {per_second: 0, burst: 1000001}}
drain: {spread: 2h, timeout: 0s}
no_route: {status: 200}
threads: 2000
affinity: {max_age: 0s, sockjs_sessions: 1, path: 'a b', query_parameter: 'a=b', hold: 2m, hold_timeout: 61s}
",
        expect![[r#"
            proxy.yaml:2:12: timeouts.head: 0s is out of range, expected 100ms to 1h
            proxy.yaml:2:22: timeouts.connect: 2m is out of range, expected 10ms to 1m
            proxy.yaml:2:35: timeouts.tunnel_idle: 0s is out of range, expected 1s to 30days
            proxy.yaml:2:52: timeouts.tunnel_lifetime: 2years is out of range, expected 1s to 30days
            proxy.yaml:3:10: health.interval: 1ms is out of range, expected 100ms to 1h
            proxy.yaml:3:25: health.timeout: 0s is out of range, expected 10ms to 1m
            proxy.yaml:3:38: health.rise: 0 is out of range, expected 1 to 100
            proxy.yaml:3:47: health.fall: 101 is out of range, expected 1 to 100
            proxy.yaml:3:58: health.ignore_below: 101 is out of range, expected 0 to 100
            proxy.yaml:3:86: health.expect[0]: "99": expected a status from 200 to 599, or a range of them such as "200-399"
            proxy.yaml:3:90: health.expect[1]: "1000": expected a status from 200 to 599, or a range of them such as "200-399"
            proxy.yaml:3:97: health.path: expected a path that starts with "/", without spaces or a fragment
            proxy.yaml:3:110: health.port: 0 is out of range, expected 1 to 65535
            proxy.yaml:3:119: health.slow_start: 2h is out of range, expected 0s to 1h
            proxy.yaml:4:10: limits.head_size: 1MiB is out of range, expected 1KiB to 256KiB
            proxy.yaml:4:27: limits.connections: 0 is out of range, expected 1 to 100000000
            proxy.yaml:4:43: limits.retries: 11 is out of range, expected 0 to 10
            proxy.yaml:4:56: limits.retry_budget: 101 is out of range, expected 0 to 100
            proxy.yaml:4:75: limits.waiting: 1000001 is out of range, expected 0 to 1000000
            proxy.yaml:5:3: limits.body_size: 2048GiB is out of range, expected 0B to 1024GiB
            proxy.yaml:5:23: limits.requests: 0 is out of range, expected 1 to 100000000
            proxy.yaml:5:36: limits.tunnels_per_address: 0 is out of range, expected 1 to 100000000
            proxy.yaml:5:89: limits.handshake_rate_per_address.per_second: 0 is out of range, expected 1 to 1000000
            proxy.yaml:5:104: limits.handshake_rate_per_address.burst: 1000001 is out of range, expected 1 to 1000000
            proxy.yaml:6:9: drain.spread: 2h is out of range, expected 0s to 1h
            proxy.yaml:6:21: drain.timeout: 0s is out of range, expected 1s to 1day
            proxy.yaml:7:12: no_route.status: 200 is out of range, expected 400 to 599
            proxy.yaml:8:1: threads: 2000 is out of range, expected 0 to 1024
            proxy.yaml:9:12: affinity.max_age: 0s is out of range, expected 1s to 1year
            proxy.yaml:9:25: affinity.sockjs_sessions: 1 is out of range, expected 1024 to 16777216
            proxy.yaml:9:45: affinity.path: expected a path that starts with "/", without spaces or any of ?#;
            proxy.yaml:9:58: affinity.query_parameter: expected 1 to 64 ASCII letters, digits, "-", ".", "_" or "~", such as "sid"
            proxy.yaml:9:82: affinity.hold: 2m is out of range, expected 0s to 1m
            proxy.yaml:9:92: affinity.hold_timeout: 1m 1s is out of range, expected 0s to 1m"#]],
    );
}

#[test]
fn the_minimum_rate_of_a_request_body_can_be_disabled() {
    let rate = |text: &str| {
        let text = format!("{MINIMAL}timeouts: {{{text}}}");
        parse(&text).timeouts.request_body_rate
    };
    let default = BodyRate {
        per_second: 500,
        window: Duration::from_secs(30),
    };
    assert_eq!(rate(""), Some(default));
    assert_eq!(rate("request_body_rate: null"), Some(default));
    assert_eq!(rate("request_body_rate: off"), None);
    let fast = BodyRate {
        per_second: 1 << 20,
        window: Duration::from_secs(3600),
    };
    assert_eq!(
        rate("request_body_rate: {per_second: 1MiB, window: 1h}"),
        Some(fast)
    );
    section(
        "timeouts: {request_body_rate: never}",
        expect![[
            r#"proxy.yaml:2:12: timeouts.request_body_rate: expected a rate such as {per_second: 500B, window: 30s}, or "off", found "never""#
        ]],
    );
    section(
        "timeouts: {request_body_rate: {per_second: 0B, window: 0s}, http2_preface: 0s}
limits: {response_head_size: 2MiB, headers: 1025, http2_streams: 0, http2_send_buffer: 1KiB}
",
        expect![[r#"
            proxy.yaml:2:32: timeouts.request_body_rate.per_second: 0B is out of range, expected 1B to 1MiB
            proxy.yaml:2:48: timeouts.request_body_rate.window: 0s is out of range, expected 1s to 1h
            proxy.yaml:2:61: timeouts.http2_preface: 0s is out of range, expected 100ms to 1h
            proxy.yaml:3:10: limits.response_head_size: 2MiB is out of range, expected 1KiB to 1MiB
            proxy.yaml:3:36: limits.headers: 1025 is out of range, expected 16 to 1024
            proxy.yaml:3:51: limits.http2_streams: 0 is out of range, expected 1 to 10000
            proxy.yaml:3:69: limits.http2_send_buffer: 1KiB is out of range, expected 4KiB to 16MiB"#]],
    );
}

#[test]
fn probes_are_checked_against_their_kind() {
    section(
        "health: {expect: ['300-200', '200-', many], method: POST}",
        expect![[
            r#"proxy.yaml:2:45: health.method: unknown value "POST", expected one of "GET", "HEAD", "OPTIONS""#
        ]],
    );
    section(
        "health: {expect: ['300-200', '200-', many, 200-299]}",
        expect![[r#"
            proxy.yaml:2:19: health.expect[0]: "300-200": expected a status from 200 to 599, or a range of them such as "200-399"
            proxy.yaml:2:30: health.expect[1]: "200-": expected a status from 200 to 599, or a range of them such as "200-399"
            proxy.yaml:2:38: health.expect[2]: "many": expected a status from 200 to 599, or a range of them such as "200-399""#]],
    );
    section(
        "health: {expect: [2.5]}",
        expect![[
            r#"proxy.yaml:2:19: health.expect[0]: expected a status such as 200, or a range such as "200-399", found 2.5"#
        ]],
    );
    errors(
        "pools:
  - {name: a, health: {kind: tcp, path: /x, port: 9}, backends: [{id: a, address: 'unix:/run/a.sock'}]}
  - {name: b, health: {kind: websocket, expect: [200]}, backends: [{id: b, address: 'b:1'}]}
routes: [{pool: a}]
health: {kind: tcp, method: GET}
",
        expect![[r#"
            proxy.yaml:2:35: pools[0].health.path: expected no path here: a probe of kind tcp sends no request
            proxy.yaml:2:74: pools[0].backends[0].address: expected no unix socket: its pool is probed on another port (health.port)
            proxy.yaml:3:41: pools[1].health.expect: expected no expect here: a probe of kind websocket is always a GET that expects status 101
            proxy.yaml:5:21: health.method: expected no method here: a probe of kind tcp sends no request"#]],
    );
}

#[test]
fn probes_may_have_headers_and_host_among_them() {
    let health = |text: &str| {
        parse(&format!("{MINIMAL}health: {{{text}}}"))
            .pools
            .remove(0)
            .health
    };
    let with = health("headers: {host: 'app.example:81', X-Probe: 1a, Authorization: hunter2}");
    assert_eq!(with.host, "app.example:81");
    let names: Vec<&str> = with
        .headers
        .iter()
        .map(|(name, _)| name.spelled())
        .collect();
    assert_eq!(names, ["Authorization", "X-Probe"]);
    assert!(!format!("{with:?}").contains("hunter2"));
    section(
        "health: {host: a, headers: {Host: b, Upgrade: x, 'a b': c, D: 'e '}}",
        expect![[r#"
            proxy.yaml:2:10: health.host: expected it here or in "headers", found both
            proxy.yaml:2:19: health.headers: "D": expected a value of visible ASCII and spaces within it
            proxy.yaml:2:19: health.headers: "Upgrade": expected the name of a header that the probe does not set itself
            proxy.yaml:2:19: health.headers: "a b": expected the name of a header that the probe does not set itself"#]],
    );
    section(
        "health: {kind: tcp, headers: {A: b}}",
        expect![
            "proxy.yaml:2:21: health.headers: expected no headers here: a probe of kind tcp sends no request"
        ],
    );
}

#[test]
fn the_admin_listener_can_be_disabled_in_either_way() {
    for none in ["admin: none", "admin: {address: none}"] {
        assert_eq!(
            parse(&format!("{MINIMAL}{none}")).admin.address,
            None,
            "{none}"
        );
    }
    let default = "127.0.0.1:8081".parse().ok();
    assert_eq!(parse(MINIMAL).admin.address, default);
    assert_eq!(
        parse(&format!("{MINIMAL}admin: {{}}")).admin.address,
        default
    );
    section(
        "admin: off",
        expect![[
            r#"proxy.yaml:2:1: admin: expected settings such as {address: "127.0.0.1:8081"}, or "none", found "off""#
        ]],
    );
}

#[test]
fn a_pool_with_another_kind_of_probe_has_the_defaults_of_that_kind() {
    let config = parse(
        "pools:
  - {name: a, backends: [{id: a, address: 'a:1'}]}
  - {name: b, health: {kind: node}, backends: [{id: b, address: 'b:1'}]}
  - {name: c, health: {kind: websocket, path: /ws}, backends: [{id: c, address: 'c:1'}]}
routes: [{pool: a}]
health: {kind: http, path: /health, expect: [204], interval: 7s}
",
    );
    let request = |index: usize| {
        let health = &config.pools[index].health;
        (health.method.as_str(), &*health.path)
    };
    assert_eq!(
        [request(0), request(1), request(2)],
        [("HEAD", "/health"), ("GET", "/ready"), ("GET", "/ws")]
    );
    let node = &config.pools[1].health;
    assert!(node.expect.contains(StatusCode::OK));
    assert_eq!(node.interval.as_secs(), 7);
}

#[test]
fn a_drain_must_outlast_the_closing_of_its_tunnels() {
    section(
        "drain: {spread: 60s}",
        expect![
            "proxy.yaml:2:1: drain.timeout: expected more than drain.spread, or tunnels end before all close frames are sent"
        ],
    );
}

#[test]
fn pools_can_have_no_cookie() {
    let pools = "pools:
  - {name: a, backends: [{id: a1, address: 'a:1'}]}
  - {name: b, backends: [{id: b1, address: 'b:1'}]}
routes: [{path: /a, pool: a}, {path: /b, pool: b}]
";
    let cookies = |settings: &str| -> Vec<Option<String>> {
        let config = parse(&format!("{pools}{settings}"));
        let pools = config.pools.into_iter();
        pools
            .map(|pool| pool.cookie.map(|cookie| cookie.name))
            .collect()
    };
    assert_eq!(cookies("affinity: {cookie: none}"), [None, None]);
    let one = pools.replace("name: a,", "name: a, cookie: none,");
    let config = parse(&one);
    assert_eq!(config.pools[0].cookie, None);
    let cookie = config.pools[1].cookie.clone().unwrap();
    assert_eq!((&*cookie.name, &*cookie.path), ("causeway-b", "/"));
    let own = pools.replace("name: b,", "name: b, cookie_path: /b,");
    let config = parse(&format!("{own}affinity: {{path: /a}}"));
    let paths = config
        .pools
        .iter()
        .map(|pool| &pool.cookie.as_ref().unwrap().path);
    assert!(paths.eq(["/a", "/b"]));
    let none = own.replace("name: b,", "name: b, cookie: none,");
    errors(
        &none,
        expect!["proxy.yaml:3:29: pools[1].cookie_path: expected none: this pool has no cookie"],
    );
}

#[test]
fn same_site_is_spelled_as_in_the_cookie_or_in_lower_case() {
    for (text, expected) in [
        ("None", SameSite::None),
        ("none", SameSite::None),
        ("NONE", SameSite::None),
        ("Strict", SameSite::Strict),
        ("Lax", SameSite::Lax),
    ] {
        let config = parse(&format!("{MINIMAL}affinity: {{same_site: {text}}}"));
        assert_eq!(config.affinity.same_site, expected, "{text}");
    }
    section(
        "affinity: {same_site: off}",
        expect![
            "proxy.yaml:2:12: affinity.same_site: unknown value \"off\", expected one of \"lax\", \"strict\", \"none\""
        ],
    );
}

#[test]
fn settings_that_are_probably_mistakes_are_warnings() {
    let warnings = |text: &str| parse(text).warnings(SystemTime::now()).join("\n");
    let none = format!("{MINIMAL}affinity: {{same_site: None}}\n");
    assert!(warnings(&none).contains("plain listener 127.0.0.1:8080"));
    for harmless in [
        MINIMAL,
        &format!("{none}trusted_proxies: [10.0.0.1]"),
        &format!("{none}listeners: [{{address: '127.0.0.1:1', redirect_to_https: 443}}]"),
        &none.replace("None", "None, secure: always"),
        &none.replace("None", "None, cookie: none"),
        &none.replace("None", "Lax"),
    ] {
        assert_eq!(warnings(harmless), "", "{harmless}");
    }
    let over = "affinity: {keys: [0123456789abcdef], accept_unsigned_until: 2026-01-02}";
    assert!(warnings(&format!("{MINIMAL}{over}")).starts_with("affinity.accept_unsigned_until: "));
    let pools = |path: &str| {
        format!(
            "pools: [{{name: a, cookie_path: {path}, backends: [{{id: a, address: 'a:1'}}]}}]
routes: [{{path: /app/x, pool: a}}]"
        )
    };
    for seen in ["/", "/app", "/app/", "/app/x", "/app/x/y"] {
        assert_eq!(warnings(&pools(seen)), "", "{seen}");
    }
    for unseen in ["/other", "/app/xy", "/ap"] {
        let warning = warnings(&pools(unseen));
        assert!(warning.starts_with("pools[0].cookie_path: "), "{unseen}");
    }
}

#[test]
fn cookies_that_browsers_would_reject_are_errors() {
    section(
        "affinity: {same_site: none, secure: never}",
        expect![[
            r#"proxy.yaml:2:29: affinity.secure: browsers reject a cookie with "same_site: none" that is not secure: expected auto or always"#
        ]],
    );
    section(
        "affinity: {partitioned: true, accept_unsigned_until: 2999-01-01}",
        expect![[r#"
            proxy.yaml:2:12: affinity.partitioned: expected "same_site: none" with it: other cookies are not sent to a page that another site embeds
            proxy.yaml:2:31: affinity.accept_unsigned_until: expected at most a year from now: it is for the time after keys are introduced
            proxy.yaml:2:31: affinity.accept_unsigned_until: expected "keys" with it: without keys, no cookie is signed"#]],
    );
    errors(
        "pools: [{name: a, cookie: __Host-n, cookie_path: /a, backends: [{id: a, address: 'a:1'}]}]",
        expect![[
            r#"proxy.yaml:1:19: pools[0].cookie: browsers reject a __Host- cookie with a domain, or with a path other than "/""#
        ]],
    );
    section(
        "affinity: {cookie: __Host-n, path: /a}",
        expect![[r#"
            proxy.yaml:2:1: affinity.secure: browsers reject a cookie with this name that is not secure: expected always
            proxy.yaml:2:12: affinity.cookie: browsers reject a __Host- cookie with a domain, or with a path other than "/""#]],
    );
    section(
        "affinity: {cookie: 'a b', domain: 'a_;b', keys: [short]}",
        expect![[r#"
            proxy.yaml:2:12: affinity.cookie: expected 1 to 64 characters of a cookie name: letters, digits, "_" and "-" among them
            proxy.yaml:2:27: affinity.domain: expected a domain, such as "example.com"
            proxy.yaml:2:50: affinity.keys[0]: expected a key of at least 16 bytes, such as one line from: openssl rand -base64 32"#]],
    );
}

#[test]
fn a_registry_may_be_found_through_sentinels() {
    let pool = |settings: &str| format!("pools: [{{ name: a, discover: {{ {settings} }} }}]");
    let settings = "sentinel: { master: main, servers: ['10.0.0.1:26379', 's.example:1'], user: me, \
        password: hunter2, database: 3, sentinel_password: hunter3, tls: {} }";
    let discover = parse(&pool(settings)).pools[0].discover.clone().unwrap();
    assert!(!format!("{discover:?}").contains("hunter"), "{discover:?}");
    let sentinel = discover.sentinel.unwrap();
    assert_eq!((sentinel.database, sentinel.is_tls), (3, true));
    assert_eq!(sentinel.servers[1], ("s.example".to_owned(), 1));
    for (settings, expected) in [
        (
            "redis: 'redis://a', sentinel: { master: m, servers: ['a:1'] }",
            r#"expected one of "redis", "redis_urls", "sentinel" and "cluster""#,
        ),
        (
            "sentinel: { master: m, servers: [] }",
            "expected 1 to 16 Sentinels, each as host:port, found 0",
        ),
        (
            "sentinel: { master: m, servers: ['a'] }",
            "expected host:port, such as \"10.0.0.1:26379\"",
        ),
        (
            "sentinel: { master: m, servers: ['a:1', 'A:1'] }",
            "this Sentinel is there already",
        ),
        (
            "sentinel: { master: m, servers: ['a:1'], user: me }",
            "a user needs a password",
        ),
    ] {
        let error = Config::parse("proxy.yaml", &pool(settings))
            .unwrap_err()
            .to_string();
        assert!(error.ends_with(expected), "{error}");
    }
}

#[test]
fn a_registry_may_be_in_a_cluster() {
    let pool = |settings: &str| format!("pools: [{{ name: a, discover: {{ {settings} }} }}]");
    let settings = "cluster: { servers: ['10.0.0.1:6379', 's.example:1'], user: me, password: hunter2, \
        announce: { '10.0.0.1:6379': '127.0.0.1:7001' }, tls: {} }";
    let discover = parse(&pool(settings)).pools[0].discover.clone().unwrap();
    assert!(!format!("{discover:?}").contains("hunter"), "{discover:?}");
    let cluster = discover.cluster.unwrap();
    assert_eq!(cluster.servers[1], ("s.example".to_owned(), 1));
    let announced = |host: &str, port| (host.to_owned(), port);
    let expected = (announced("10.0.0.1", 6379), announced("127.0.0.1", 7001));
    assert_eq!(cluster.announce, [expected]);
    assert!(cluster.is_tls);
    for (settings, expected) in [
        (
            "redis: 'redis://a', cluster: { servers: ['a:1'] }",
            r#"expected one of "redis", "redis_urls", "sentinel" and "cluster""#,
        ),
        (
            "cluster: { servers: [] }",
            "expected 1 to 64 servers, each as host:port, found 0",
        ),
        (
            "cluster: { servers: ['a:1', 'A:1'] }",
            "this server is there already",
        ),
        (
            "cluster: { servers: ['a:1'], user: me }",
            "a user needs a password",
        ),
        (
            "cluster: { servers: ['a:1'], announce: { 'a:1': b } }",
            "expected host:port for each host:port that the cluster names, such as \"10.0.0.1:6379\": \"127.0.0.1:7001\"",
        ),
    ] {
        let error = Config::parse("proxy.yaml", &pool(settings))
            .unwrap_err()
            .to_string();
        assert!(error.ends_with(expected), "{error}");
    }
}

#[test]
fn a_pool_may_discover_its_backends() {
    let config =
        parse("pools: [{ name: nodes, discover: { redis: 'redis://:secret@redis:6379/1' } }]");
    assert!(config.pools[0].backends.is_empty());
    let discover = config.pools[0].discover.clone().unwrap();
    assert_eq!(discover.every, Duration::from_secs(2));
    let no_loopback = AllowedAddresses::Routable { loopback: false };
    assert_eq!(*discover.allow, no_loopback);
    assert!(!format!("{discover:?}").contains("secret"));
    assert_eq!(discover.prefix, "causeway");
    let prefix = |prefix: &str| {
        format!("pools: [{{ name: a, discover: {{ redis: 'redis://a', prefix: '{prefix}' }} }}]")
    };
    let staging = parse(&prefix("staging")).pools[0].discover.clone().unwrap();
    assert_eq!(staging.prefix, "staging");
    for bad in ["", "a b", "a:", "{}"] {
        errors(
            &prefix(bad),
            expect![[
                r#"proxy.yaml:1:52: pools[0].discover.prefix: expected 1 to 64 ASCII letters, digits, ".", "_" or "-""#
            ]],
        );
    }
    errors(
        "pools: [{ name: nodes, discover: { redis: 'http://:secret@redis', every: 10ms } }]",
        expect![[r#"
            proxy.yaml:1:36: pools[0].discover.redis: expected redis://[[user]:password@]host[:port][/database], rediss:// for TLS, or unix:///path/to/socket
            proxy.yaml:1:67: pools[0].discover.every: 10ms is out of range, expected 100ms to 1m"#]],
    );
    for (redis, loopback) in [
        (
            "sentinel: { master: m, servers: ['127.0.0.1:1', 'localhost:2'] }",
            true,
        ),
        (
            "sentinel: { master: m, servers: ['127.0.0.1:1', '10.0.0.1:2'] }",
            false,
        ),
        ("cluster: { servers: ['127.0.0.1:1', 'localhost:2'] }", true),
        ("cluster: { servers: ['127.0.0.1:1', '10.0.0.1:2'] }", false),
        ("redis: 'redis://127.0.0.1:6379'", true),
        ("redis: 'rediss://localhost'", true),
        ("redis: 'redis://[::1]:6379'", true),
        ("redis: 'unix:///run/redis.sock'", true),
        ("redis: 'redis://10.0.0.1'", false),
        (
            "redis_urls: ['redis://127.0.0.1', 'redis://10.0.0.1']",
            false,
        ),
    ] {
        let config = parse(&format!("pools: [{{ name: a, discover: {{ {redis} }} }}]"));
        let discover = config.pools[0].discover.clone().unwrap();
        let routable = AllowedAddresses::Routable { loopback };
        assert_eq!(*discover.allow, routable, "{redis}");
    }
    let config =
        parse("pools: [{ name: a, discover: { redis_urls: ['redis://a', 'redis://b'] } }]");
    let discover = config.pools[0].discover.clone().unwrap();
    let servers = discover.servers.iter().map(|url| url.expose());
    assert!(servers.eq(["redis://a", "redis://b"]));
    let urls = "redis://a, ".repeat(65);
    for (settings, expected) in [
        (
            "redis: redis://a, redis_urls: [redis://b]",
            expect![
                r#"proxy.yaml:1:20: pools[0].discover: expected one of "redis", "redis_urls", "sentinel" and "cluster""#
            ],
        ),
        (
            "every: 1s",
            expect![
                r#"proxy.yaml:1:20: pools[0].discover: expected one of "redis", "redis_urls", "sentinel" and "cluster""#
            ],
        ),
        (
            "redis_urls: []",
            expect![
                "proxy.yaml:1:32: pools[0].discover.redis_urls: expected 1 to 64 URLs, found 0"
            ],
        ),
        (
            &format!("redis_urls: [{urls}]"),
            expect![
                "proxy.yaml:1:32: pools[0].discover.redis_urls: expected 1 to 64 URLs, found 65"
            ],
        ),
        (
            "redis_urls: [redis://a, 'https://b']",
            expect![
                "proxy.yaml:1:56: pools[0].discover.redis_urls[1]: expected redis://[[user]:password@]host[:port][/database], rediss:// for TLS, or unix:///path/to/socket"
            ],
        ),
        (
            "redis: 'rediss://a/#insecure'",
            expect![
                "proxy.yaml:1:32: pools[0].discover.redis: expected no `#insecure`: the certificate of the server has to be verified; its CA goes into `tls.ca`"
            ],
        ),
        (
            "redis: redis://a, tls: {}",
            expect![
                "proxy.yaml:1:50: pools[0].discover.tls: expected none: it is only for URLs that begin with rediss://"
            ],
        ),
        (
            "redis: rediss://a, tls: { ca: /nowhere.pem }",
            expect![
                "proxy.yaml:1:58: pools[0].discover.tls.ca: expected certificates in PEM in /nowhere.pem: No such file or directory (os error 2)"
            ],
        ),
        (
            "redis: redis://a, allow: []",
            expect![[
                r#"proxy.yaml:1:50: pools[0].discover.allow: expected at least one range, such as "10.0.0.0/8""#
            ]],
        ),
        (
            "redis: rediss://a, tls: { ca: Cargo.toml }",
            expect![
                "proxy.yaml:1:58: pools[0].discover.tls.ca: expected certificates in PEM in Cargo.toml: the file has none"
            ],
        ),
    ] {
        let text = format!("pools: [{{ name: a, discover: {{ {settings} }} }}]");
        errors(&text, expected);
    }
}

#[test]
fn who_may_act_is_a_token_that_cannot_be_guessed_or_a_socket_with_a_whole_path() {
    let admin = parse(&format!(
        "{MINIMAL}admin: {{token: 0123456789abcdef, socket: /run/edge.sock}}"
    ))
    .admin;
    assert!(admin.address.is_some() && admin.token.is_some() && admin.socket.is_some());
    assert!(!format!("{admin:?}").contains("0123456789abcdef"));
    section(
        "admin: {token: short, socket: run/edge.sock}",
        expect![[r#"
            proxy.yaml:2:9: admin.token: expected at least 16 visible ASCII characters, such as the output of "openssl rand -hex 32"
            proxy.yaml:2:23: admin.socket: expected an absolute path of at most 90 bytes, such as /run/causeway/proxy.sock"#]],
    );
    section(
        "admin: {socket: /run/edge.sock}\ntakeover: {socket: /run/edge.sock}",
        expect![
            "proxy.yaml:3:12: takeover.socket: expected another path than that of admin.socket"
        ],
    );
}

#[test]
fn no_pool_is_rebalanced_by_itself_unless_there_is_a_threshold() {
    let rebalance = |text: &str| parse(&format!("{MINIMAL}rebalance: {{{text}}}")).rebalance;
    let seconds = [5, 600, 30].map(Duration::from_secs);
    let all = |it: RebalanceConfig| [it.spread, it.quiet, it.after];
    assert_eq!(all(rebalance("")), seconds);
    assert_eq!(rebalance("").threshold, None);
    let seconds = [0, 3600, 60].map(Duration::from_secs);
    let set = rebalance("spread: 0s, quiet: 1h, after: 1m, threshold: 20");
    assert_eq!((all(set), set.threshold), (seconds, Some(20)));
    section(
        "rebalance: {spread: 2h, quiet: 2days, after: 2h, threshold: 4}",
        expect![[r#"
            proxy.yaml:2:13: rebalance.spread: 2h is out of range, expected 0s to 1h
            proxy.yaml:2:25: rebalance.quiet: 2days is out of range, expected 0s to 1day
            proxy.yaml:2:39: rebalance.after: 2h is out of range, expected 0s to 1h
            proxy.yaml:2:50: rebalance.threshold: 4 is out of range, expected 5 to 1000"#]],
    );
}

#[test]
fn which_drains_close_tunnels_can_be_set() {
    let drain = parse(&format!(
        "{MINIMAL}drain: {{backend_spread: 1m, close_tunnels: [announced, reload, discovery]}}"
    ))
    .drain;
    assert_eq!(drain.close_tunnels.len(), 3);
    assert_eq!(drain.backend_spread.as_secs(), 60);
    section(
        "drain: {close_tunnels: [probe], backend_spread: 2h}",
        expect![
            r#"proxy.yaml:2:25: drain.close_tunnels[0]: unknown value "probe", expected one of "announced", "reload", "discovery""#
        ],
    );
}
