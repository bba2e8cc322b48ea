//! What a reload changes: the settings, the backends, and the tunnels that it closes.

use std::collections::HashMap;

use serde::Serialize;

use crate::balancer::pool::Pools;
use crate::config::backend::BackendId;
use crate::config::{BackendConfig, Config, PoolConfig};

/// The changes from the configuration in use to another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Plan {
    /// The sections of the file that change.
    pub(crate) sections: Vec<&'static str>,
    /// Changed settings that a running process cannot change.
    pub(crate) needs_restart: Vec<&'static str>,
    /// Whether another process takes over for them, with the whole configuration. Otherwise they take effect at the next start.
    pub(crate) hands_over: bool,
    /// The backends that are added, removed or changed.
    pub(crate) backends: Vec<BackendPlan>,
    /// How many open tunnels are closed.
    pub(crate) tunnels_closed: usize,
    /// Settings that are valid, but probably mistakes.
    pub(crate) warnings: Vec<String>,
}

/// What becomes of one backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct BackendPlan {
    pub(crate) pool: String,
    pub(crate) backend: String,
    pub(crate) change: BackendChange,
    /// The settings that change.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) settings: Vec<&'static str>,
    /// Its open tunnels.
    pub(crate) tunnels: usize,
    /// Whether they are closed; otherwise they stay until either side closes them.
    pub(crate) closes_tunnels: bool,
}

/// How a backend changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BackendChange {
    Added,
    Removed,
    /// The same server, with other settings.
    Changed,
    /// Another server under the same id.
    Moved,
}

/// The backends of a configuration by pool and id.
type Backends<'a> = HashMap<(&'a str, &'a BackendId), &'a BackendConfig>;

fn backends(config: &Config) -> Backends<'_> {
    let all = config.pools.iter().flat_map(|pool| {
        let backends = pool.backends.iter();
        backends.map(|backend| ((pool.name.as_str(), &backend.id), backend))
    });
    all.collect()
}

/// The changes of backends from `before` to `after`, both with the discovered ones, in the order of the files. `pools` are in use;
/// `closes` is whether the tunnels of backends that are not in service any more are closed.
pub(super) fn backend_plans(
    before: &Config,
    after: &Config,
    pools: &Pools,
    closes: bool,
) -> Vec<BackendPlan> {
    let (old, new) = (backends(before), backends(after));
    let plan = |pool: &PoolConfig, id: &BackendId, change, settings| {
        let ends = matches!(change, BackendChange::Removed | BackendChange::Moved);
        let in_use = pools.named(&pool.name).and_then(|pool| pool.backend(id));
        let tunnels = in_use.map_or(0, |backend| backend.tunnels_open());
        BackendPlan {
            pool: pool.name.clone(),
            backend: id.to_string(),
            change,
            settings,
            tunnels,
            closes_tunnels: ends && closes && 0 < tunnels,
        }
    };
    let mut plans = Vec::new();
    for pool in &after.pools {
        for backend in &pool.backends {
            let Some(known) = old.get(&(pool.name.as_str(), &backend.id)) else {
                plans.push(plan(pool, &backend.id, BackendChange::Added, Vec::new()));
                continue;
            };
            let settings = changed_settings(known, backend);
            let change = if settings.contains(&"address") {
                BackendChange::Moved
            } else {
                BackendChange::Changed
            };
            if !settings.is_empty() {
                plans.push(plan(pool, &backend.id, change, settings));
            }
        }
    }
    for pool in &before.pools {
        for backend in &pool.backends {
            if !new.contains_key(&(pool.name.as_str(), &backend.id)) {
                plans.push(plan(pool, &backend.id, BackendChange::Removed, Vec::new()));
            }
        }
    }
    plans
}

/// The settings in which two backends differ.
fn changed_settings(before: &BackendConfig, after: &BackendConfig) -> Vec<&'static str> {
    // Each field is named, so that a new one does not compile until it is handled here.
    let BackendConfig {
        id: _,
        address,
        weight,
        zone,
        generation,
        allowed: _,
        backup,
        maintenance,
    } = after;
    let differ = [
        (*address != before.address, "address"),
        (*weight != before.weight, "weight"),
        (*zone != before.zone, "zone"),
        (*generation != before.generation, "generation"),
        (*backup != before.backup, "backup"),
        (*maintenance != before.maintenance, "maintenance"),
    ];
    named(differ)
}

/// The sections of the file in which two configurations differ.
pub(super) fn changed_sections(before: &Config, after: &Config) -> Vec<&'static str> {
    let Config {
        listeners,
        admin,
        takeover,
        websockets_over_http2,
        abort_on_client_close,
        zone,
        pools,
        routes,
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
    } = after;
    let differ = [
        (*listeners != before.listeners, "listeners"),
        (*admin != before.admin, "admin"),
        (*takeover != before.takeover, "takeover"),
        (
            *websockets_over_http2 != before.websockets_over_http2,
            "websockets_over_http2",
        ),
        (
            *abort_on_client_close != before.abort_on_client_close,
            "abort_on_client_close",
        ),
        (*zone != before.zone, "zone"),
        (*pools != before.pools, "pools"),
        (*routes != before.routes, "routes"),
        (*no_route != before.no_route, "no_route"),
        (*affinity != before.affinity, "affinity"),
        (*timeouts != before.timeouts, "timeouts"),
        (*limits != before.limits, "limits"),
        (*drain != before.drain, "drain"),
        (*rebalance != before.rebalance, "rebalance"),
        (
            *trusted_proxies != before.trusted_proxies,
            "trusted_proxies",
        ),
        (*log != before.log, "log"),
        (*threads != before.threads, "threads"),
    ];
    named(differ)
}

/// The names of those that differ.
pub(super) fn named(differ: impl IntoIterator<Item = (bool, &'static str)>) -> Vec<&'static str> {
    let changed = differ.into_iter().filter(|(differs, _)| *differs);
    changed.map(|(_, name)| name).collect()
}
