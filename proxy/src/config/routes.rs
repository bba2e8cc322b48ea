//! Which pool serves a request: by host, then by the longest path.
//!
//! A path is matched as it was sent, by whole segments: `/app` matches `/app` and `/app/x`, not `/apple`. What backends keep for
//! their operators (`closed_paths` of their pool) has a route only if one names it, however it is spelled.

mod closed;
mod rules;

use std::sync::Arc;

use crate::config::PoolId;
use crate::config::routes::closed::{ClosedPath, ClosedPaths};

pub(super) use crate::config::routes::closed::SEGMENTS_MAX;
pub(super) use crate::config::routes::rules::{HeaderNameText, HeaderRules};
pub(crate) use crate::config::routes::rules::{RouteRules, Stripped};

/// One entry of `routes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    host: Host,
    path: String,
    pub(crate) pool: PoolId,
    /// What `Upgrade` may ask for, in lower case.
    pub(crate) upgrades: Vec<String>,
    /// What it changes.
    pub(crate) rules: Arc<RouteRules>,
    /// What of its pool is closed to it.
    closed: ClosedPaths,
    /// What would be closed to it if it were not named by it.
    named: ClosedPaths,
}

impl Route {
    pub(super) fn new(host: Option<&str>, path: &str, pool: PoolId, upgrades: Vec<String>) -> Self {
        let host = match host.map(str::to_ascii_lowercase) {
            None => Host::Any,
            Some(host) => match host.strip_prefix('*') {
                Some(suffix) => Host::Subdomains(suffix.to_owned()),
                None => Host::Exact(host),
            },
        };
        Self {
            host,
            path: path.to_owned(),
            pool,
            upgrades,
            rules: Arc::default(),
            closed: ClosedPaths::default(),
            named: ClosedPaths::default(),
        }
    }

    /// The same, with what it changes.
    pub(super) fn with_rules(self, rules: RouteRules) -> Self {
        let rules = Arc::new(rules);
        Self { rules, ..self }
    }

    /// The same, where these paths of its pool are closed: but for those that it leads to by its own path.
    pub(super) fn with_closed_paths(self, paths: &[String]) -> Self {
        let all = paths.iter().map(|path| ClosedPath::new(path)).collect();
        let own = self.rules.path(&self.path).to_owned();
        let (closed, named) = ClosedPaths::new(all).split(|path| covers(path, &own));
        Self {
            closed,
            named,
            ..self
        }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// What it is called in the metrics: its host, if it has one, and its path.
    pub(crate) fn name(&self) -> String {
        match &self.host {
            Host::Exact(host) => format!("{host}{}", self.path),
            Host::Subdomains(suffix) => format!("*{suffix}{}", self.path),
            Host::Any => self.path.clone(),
        }
    }

    /// Whether a request may ask for `protocol` in its `Upgrade` header.
    pub(crate) fn allows_upgrade(&self, protocol: &str) -> bool {
        self.upgrades
            .iter()
            .any(|allowed| allowed.eq_ignore_ascii_case(protocol))
    }

    /// Whether both routes match the same requests.
    pub(super) fn equals(&self, other: &Self) -> bool {
        self.host == other.host && self.path == other.path
    }

    /// Whether a server behind it might take `path` for one that is closed.
    ///
    /// What this route names is open as it is named, and not by way of `..`, which may lead from there to all that lies beside it.
    fn is_closed(&self, path: &str) -> bool {
        let path = self.rules.path(path);
        self.closed.contains(path)
            || (!self.named.is_empty()
                && closed::has_parent_segments(path)
                && self.named.contains(path))
    }
}

/// Declared in the order in which they are tried.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Exact(String),
    /// Any host that ends with this, which starts with a dot.
    Subdomains(String),
    Any,
}

/// All routes, the most particular first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routes(Vec<Route>);

impl Routes {
    pub(super) fn new(mut routes: Vec<Route>) -> Self {
        routes.sort_by(|a, b| {
            let rank = |host: &Host| match host {
                Host::Exact(_) => (0, 0),
                Host::Subdomains(suffix) => (1, usize::MAX - suffix.len()),
                Host::Any => (2, 0),
            };
            rank(&a.host)
                .cmp(&rank(&b.host))
                .then(b.path.len().cmp(&a.path.len()))
        });
        Self(routes)
    }

    /// The one at `position`.
    pub(crate) fn get(&self, position: usize) -> &Route {
        &self.0[position]
    }

    /// All of them, in the order that [`Routes::position`] counts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Route> {
        self.0.iter()
    }

    /// The route of a request for `path` (a query is ignored) with this `Host`.
    pub(crate) fn find(&self, host: Option<&str>, path: &str) -> Option<&Route> {
        self.position(host, path).map(|at| &self.0[at])
    }

    /// Which of the routes that is.
    pub(crate) fn position(&self, host: Option<&str>, path: &str) -> Option<usize> {
        let path = without_query(path);
        let host = host.map(bare).unwrap_or_default();
        self.0.iter().position(|route| {
            let host_matches = match &route.host {
                Host::Any => true,
                Host::Exact(name) => name.eq_ignore_ascii_case(host),
                Host::Subdomains(suffix) => ends_with(host, suffix),
            };
            host_matches && covers(&route.path, path) && !route.is_closed(path)
        })
    }
}

/// The path in front of a query or a fragment.
pub(crate) fn without_query(path: &str) -> &str {
    let end = path.bytes().position(|byte| matches!(byte, b'?' | b'#'));
    end.map_or(path, |end| &path[..end])
}

/// Whether `path` lies at or below `prefix`.
pub(super) fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
}

/// A `Host` header without its port and without the dot of a rooted name.
fn bare(host: &str) -> &str {
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    host.strip_suffix('.').unwrap_or(host)
}

fn ends_with(host: &str, suffix: &str) -> bool {
    let (host, suffix) = (host.as_bytes(), suffix.as_bytes());
    suffix.len() < host.len() && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
}

#[cfg(test)]
mod tests;
