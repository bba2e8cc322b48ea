//! Routes, against the pools that there are and against each other.

use std::net::IpAddr;

use super::is_token;
use crate::backend::is_host_name;
use crate::config::check::Check;
use crate::config::raw;
use crate::config::{PoolConfig, PoolId, Route, Routes};

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
            "expected routes: with several pools, each request needs one that says which pool it goes to",
        );
        return Routes::new(vec![Route::new(None, "/", PoolId(0), websocket())]);
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
        let path = route.path.as_deref().unwrap_or("/");
        check.path(&format!("{key}.path"), path);
        let upgrades = route.upgrades.unwrap_or_else(websocket);
        for (at, upgrade) in upgrades.iter().enumerate() {
            let right = is_token(upgrade.strip_suffix("/1.0").unwrap_or(upgrade));
            check.require(
                right,
                &format!("{key}.upgrades[{at}]"),
                "expected the name of a protocol, such as \"websocket\"",
            );
        }
        let route = Route::new(
            route.host.as_deref(),
            path,
            PoolId(pool.unwrap_or(0)),
            upgrades,
        );
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

fn route_host(check: &mut Check, key: &str, host: &str) {
    let bare = host.strip_prefix("*.").unwrap_or(host);
    let literal = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    check.require(
        is_host_name(bare) || literal,
        key,
        "expected a host name without a port, such as \"example.com\" or \"*.example.com\"",
    );
}
