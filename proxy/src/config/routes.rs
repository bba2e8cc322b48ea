//! Which pool serves a request: by host, then by the longest path.
//!
//! A path is matched as it was sent, by whole segments: `/app` matches `/app` and `/app/x`, not `/apple`. Paths for operators
//! (`closed_paths` of the pool) match, in any spelling, only a route whose own path is such a path.

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
    /// The allowed protocols of upgrades, in lower case.
    pub(crate) upgrades: Vec<String>,
    /// Changes to requests and responses.
    pub(crate) rules: Arc<RouteRules>,
    /// The closed paths of its pool, except those in `opened`.
    closed: ClosedPaths,
    /// The closed paths of its pool that it opens, because its own path leads to them.
    opened: ClosedPaths,
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
            opened: ClosedPaths::default(),
        }
    }

    /// The same, with `rules`.
    pub(super) fn with_rules(self, rules: RouteRules) -> Self {
        let rules = Arc::new(rules);
        Self { rules, ..self }
    }

    /// The same, with the closed paths of its pool.
    pub(super) fn with_closed_paths(self, paths: &[String]) -> Self {
        let all = paths.iter().map(|path| ClosedPath::new(path)).collect();
        let own = self.rules.path(&self.path).to_owned();
        let (closed, opened) = ClosedPaths::new(all).split(|path| covers(path, &own));
        Self {
            closed,
            opened,
            ..self
        }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Its host as the file has it; `None` is any.
    pub(super) fn host(&self) -> Option<String> {
        match &self.host {
            Host::Exact(host) => Some(host.clone()),
            Host::Subdomains(suffix) => Some(format!("*{suffix}")),
            Host::Any => None,
        }
    }

    /// Its label in the metrics: its host, if it has one, and its path.
    pub(crate) fn name(&self) -> String {
        match &self.host {
            Host::Exact(host) => format!("{host}{}", self.path),
            Host::Subdomains(suffix) => format!("*{suffix}{}", self.path),
            Host::Any => self.path.clone(),
        }
    }

    /// Whether an upgrade to `protocol` is allowed.
    pub(crate) fn allows_upgrade(&self, protocol: &str) -> bool {
        self.upgrades
            .iter()
            .any(|allowed| allowed.eq_ignore_ascii_case(protocol))
    }

    /// Whether both routes match the same requests.
    pub(super) fn equals(&self, other: &Self) -> bool {
        self.host == other.host && self.path == other.path
    }

    /// Whether a backend might resolve `path` to a closed path.
    ///
    /// A path with `..` is not opened by this route, since `..` may lead to other closed paths.
    fn is_closed(&self, path: &str) -> bool {
        let path = self.rules.path(path);
        self.closed.contains(path)
            || (!self.opened.is_empty()
                && closed::has_parent_segments(path)
                && self.opened.contains(path))
    }
}

/// The host of a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Exact(String),
    /// Any host with this suffix, which starts with a dot.
    Subdomains(String),
    Any,
}

/// All routes, the most specific first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

    /// All of them, in the order of [`Routes::position`].
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Route> {
        self.0.iter()
    }

    /// The route that matches `path` (a query is ignored) and `host`.
    pub(crate) fn find(&self, host: Option<&str>, path: &str) -> Option<&Route> {
        self.position(host, path).map(|at| &self.0[at])
    }

    /// The position of that route.
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

/// The path without a query or a fragment.
pub(crate) fn without_query(path: &str) -> &str {
    let end = path.bytes().position(|byte| matches!(byte, b'?' | b'#'));
    end.map_or(path, |end| &path[..end])
}

/// Whether `path` is `prefix` or below it.
pub(super) fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || prefix.ends_with('/') || rest.starts_with('/'))
}

/// A `Host` header without its port and without a trailing dot.
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
