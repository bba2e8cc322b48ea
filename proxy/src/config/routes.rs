//! Which pool serves a request: by host, then by the longest path.
//!
//! A path is matched as it was sent, by whole segments: `/app` matches `/app` and `/app/x`, not `/apple`.
//! What backends keep for their operators (`/live`, `/ready`, `/metrics`, `/slowest`) has a route only if one names it.

use crate::config::PoolId;

/// Paths that are not for clients.
const PRIVATE: [&str; 4] = ["/live", "/ready", "/metrics", "/slowest"];

/// One entry of `routes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    host: Host,
    path: String,
    pub(crate) pool: PoolId,
    /// What `Upgrade` may ask for, in lower case.
    pub(crate) upgrades: Vec<String>,
}

impl Route {
    pub(super) fn new(host: Option<&str>, path: &str, pool: PoolId, upgrades: Vec<String>) -> Self {
        let host = match host.map(str::to_ascii_lowercase) {
            None => Host::Any,
            Some(host) => match host.strip_prefix('*') {
                Some(suffix) => Host::Below(suffix.to_owned()),
                None => Host::Is(host),
            },
        };
        Self {
            host,
            path: path.to_owned(),
            pool,
            upgrades,
        }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// What it is called in the metrics: its host, if it has one, and its path.
    pub(crate) fn name(&self) -> String {
        match &self.host {
            Host::Is(host) => format!("{host}{}", self.path),
            Host::Below(suffix) => format!("*{suffix}{}", self.path),
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

    fn names_private(&self) -> bool {
        PRIVATE.iter().any(|path| covers(path, &self.path))
    }
}

/// Declared in the order in which they are tried.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Is(String),
    /// Any host that ends with this, which starts with a dot.
    Below(String),
    Any,
}

/// All routes, the most particular first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routes(Vec<Route>);

impl Routes {
    pub(super) fn new(mut routes: Vec<Route>) -> Self {
        routes.sort_by(|a, b| {
            let rank = |host: &Host| match host {
                Host::Is(_) => (0, 0),
                Host::Below(suffix) => (1, usize::MAX - suffix.len()),
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
        let private = is_private(path);
        self.0.iter().position(|route| {
            let host_matches = match &route.host {
                Host::Any => true,
                Host::Is(name) => name.eq_ignore_ascii_case(host),
                Host::Below(suffix) => ends_with(host, suffix),
            };
            host_matches && covers(&route.path, path) && (!private || route.names_private())
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

/// Whether a backend may take `path` for one of [`PRIVATE`], also by decoding or tidying it first.
fn is_private(path: &str) -> bool {
    // Byte by byte: this is done for each request, and searching for strings has much to prepare.
    let odd = |byte| matches!(byte, b'%' | b'.' | b';' | b'\\');
    let bytes = path.as_bytes();
    if !bytes.iter().copied().any(odd) && !bytes.windows(2).any(|pair| pair == b"//") {
        let path = path.strip_suffix('/').unwrap_or(path);
        return PRIVATE.contains(&path);
    }
    let decoded = percent_decode(path).replace('\\', "/");
    let decoded = decoded.split(['?', '#', ';']).next().unwrap_or_default();
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    matches!(segments[..], [only] if PRIVATE.iter().any(|path| path[1..] == *only))
}

fn percent_decode(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        let hex = |byte: u8| char::from(byte).to_digit(16);
        let escape = match (first, tail) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escape {
            Some((high, low)) => {
                decoded.push((high * 16 + low) as u8);
                rest = &tail[2..];
            }
            None => {
                decoded.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests;
