//! Routes: checked against the pools and against each other.

use std::collections::BTreeMap;
use std::net::IpAddr;

use causeway_conf::Secret;

use crate::config::backend::is_host_name;
use crate::config::check::{Check, header_value, is_token};
use crate::config::raw;
use crate::config::routes::{HeaderNameText, HeaderRules, covers};
use crate::config::{PoolConfig, PoolId, Route, RouteRules, Routes};

/// The protocol by which the edge hands clients off from backend to backend.
const HANDOFF_PROTOCOL: &str = "causeway-handoff";

pub(super) fn routes(
    check: &mut Check,
    routes: Option<Vec<raw::Route>>,
    pools: &[PoolConfig],
) -> Routes {
    let websocket = || vec!["websocket".to_owned()];
    let Some(routes) = routes else {
        check.require(
            pools.len() <= 1,
            "routes",
            "expected routes: with several pools, each request needs a route that names its pool",
        );
        let route = Route::new(None, "/", PoolId(0), websocket());
        let closed = pools.first().map(|pool| &*pool.closed_paths);
        return Routes::new(vec![route.with_closed_paths(closed.unwrap_or_default())]);
    };
    let mut list: Vec<Route> = Vec::with_capacity(routes.len());
    for (index, route) in routes.into_iter().enumerate() {
        let key = format!("routes[{index}]");
        let pool = pools.iter().position(|pool| pool.name == route.pool);
        if pool.is_none() {
            let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
            check.error(
                &format!("{key}.pool"),
                format!(
                    "unknown pool \"{}\", expected one of: {}",
                    route.pool.escape_debug(),
                    names.join(", ")
                ),
            );
        }
        if let Some(host) = &route.host {
            route_host(check, &format!("{key}.host"), host);
        }
        let (raw_prefix, request_headers, response_headers) = (
            route.strip_prefix,
            route.request_headers,
            route.response_headers,
        );
        let path = route.path.as_deref().unwrap_or("/");
        check.path(&format!("{key}.path"), path);
        let upgrades = route.upgrades.unwrap_or_else(websocket);
        for (at, upgrade) in upgrades.iter().enumerate() {
            let key = format!("{key}.upgrades[{at}]");
            let protocol = upgrade.strip_suffix("/1.0").unwrap_or(upgrade);
            check.require(
                is_token(protocol),
                &key,
                "expected the name of a protocol, such as \"websocket\"",
            );
            check.require(
                !protocol.eq_ignore_ascii_case(HANDOFF_PROTOCOL),
                &key,
                "expected another protocol: this one is only for the edge itself",
            );
        }
        let route = Route::new(
            route.host.as_deref(),
            path,
            PoolId(pool.unwrap_or(0)),
            upgrades,
        );
        let rules = RouteRules {
            strip_prefix: route_prefix(check, &key, path, raw_prefix),
            request: header_rules(check, &key, Side::Request, request_headers),
            response: header_rules(check, &key, Side::Response, response_headers),
        };
        let closed = pool.and_then(|pool| pools.get(pool));
        let closed = closed.map(|pool| &*pool.closed_paths);
        let route = route
            .with_rules(rules)
            .with_closed_paths(closed.unwrap_or_default());
        if let Some(other) = list.iter().position(|other| other.equals(&route)) {
            check.error(
                &key,
                format!("the same host and path as routes[{other}], so it would never match"),
            );
        }
        list.push(route);
    }
    Routes::new(list)
}

/// The prefix that is stripped from the paths of a route for `path`.
fn route_prefix(
    check: &mut Check,
    route: &str,
    path: &str,
    prefix: Option<String>,
) -> Option<String> {
    let key = format!("{route}.strip_prefix");
    let prefix = prefix?;
    let bare = prefix.strip_suffix('/').unwrap_or(&prefix);
    check.path(&key, &prefix);
    check.require(
        !bare.is_empty() && covers(bare, path),
        &key,
        "expected a prefix of the route's path, such as \"/app\" for \"/app\" or \"/app/x\"",
    );
    Some(bare.to_owned())
}

/// Whose headers are changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Request,
    Response,
}

/// Headers about the connection, the body and upgrades, which only the edge sets.
const RESERVED: [&str; 16] = [
    "connection",
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "sec-websocket-key",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "causeway-drain",
];

fn header_rules(check: &mut Check, route: &str, side: Side, raw: raw::HeaderRules) -> HeaderRules {
    let key = match side {
        Side::Request => format!("{route}.request_headers"),
        Side::Response => format!("{route}.response_headers"),
    };
    let named = |check: &mut Check, action: &str, name: &str| {
        let key = format!("{key}.{action}");
        let shown = name.escape_debug();
        let lower = name.to_ascii_lowercase();
        if !is_token(name) || 128 < name.len() {
            check.error(&key, format!("\"{shown}\": expected the name of a header"));
        } else if RESERVED.contains(&&*lower) {
            check.error(
                &key,
                format!("\"{shown}\": expected another header: this one is set by the edge"),
            );
        } else if side == Side::Request && lower == "host" && action != "set" {
            check.error(
                &key,
                "\"Host\": expected it under \"set\": each request has one",
            );
        }
        HeaderNameText::new(name)
    };
    let remove = raw.remove.iter();
    let remove = remove.map(|name| named(check, "remove", name)).collect();
    let with_values = |check: &mut Check, action: &str, all: &BTreeMap<String, Secret>| {
        let mut headers = Vec::with_capacity(all.len());
        for (name, text) in all {
            let value = header_value(text);
            if value.is_none() {
                let (key, name) = (format!("{key}.{action}"), name.escape_debug());
                check.error(
                    &key,
                    format!("\"{name}\": expected a value of visible ASCII and spaces within it"),
                );
            }
            headers.extend(value.map(|value| (named(check, action, name), value)));
        }
        headers
    };
    HeaderRules {
        set: with_values(check, "set", &raw.set),
        add: with_values(check, "add", &raw.add),
        remove,
    }
}

fn route_host(check: &mut Check, key: &str, host: &str) {
    let bare = host.strip_prefix("*.").unwrap_or(host);
    let literal = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    check.require(
        is_host_name(bare) || literal,
        key,
        "expected a host name without a port, such as \"example.com\" or \"*.example.com\"",
    );
}
