//! Affinity: which backend a request says it belongs to, and the cookie that makes it say so.
//!
//! Reads three things: the affinity cookie of the pool, the session id in a SockJS path and the one in a parameter of the query (for
//! clients whose cookies are blocked). Decides nothing: the pool knows which backends live. A cookie that does
//! not verify counts as none.
//!
//! A pool may do without a cookie; then its clients are kept by their sessions alone.
//!
//! A cookie names a backend by its stable id, never by address or index, and the second it was bound:
//! `u1.<id>.<bound at>` without keys, `s1.<id>.<bound at>.<key id>.<mac>` with keys. Without keys nothing is verified, so that the
//! cookies of an edge with keys are read too; with keys, unsigned ones are for as long as `accept_unsigned_until` says.

mod cookies;
mod query;
mod signature;

use std::hash::{BuildHasher, RandomState};
use std::time::SystemTime;

use http::header::HeaderValue;

use crate::config::backend::BackendId;
use crate::config::{AffinityConfig, PoolCookie, SameSite, Secure, without_query};
use crate::http::fields::{Fields, Request};
use crate::http::scheme::Scheme;

pub(crate) use crate::balancer::affinity::query::SessionSearch;
use crate::balancer::affinity::signature::{Keys, Verified, split_at_last_dot};

const COOKIE: &str = "cookie";

/// The longest cookie value that is looked at: id, time, key id and MAC, with room to spare.
const VALUE_BYTES_MAX: usize = 160;

/// How many cookies of our name are looked at in one request, and how many bindings of them are kept.
const COOKIES_MAX: usize = 8;

/// The longest session id in a SockJS path that is taken for one.
const SESSION_BYTES_MAX: usize = 128;

/// Reads, strips and writes the affinity cookie of one pool.
#[derive(Debug)]
pub(crate) struct Affinity {
    config: AffinityConfig,
    /// This pool's cookie, if it has one.
    cookie: Option<PoolCookie>,
    /// The names of all pools' cookies: no backend gets to see any of them.
    ours: Vec<String>,
    keys: Keys,
    /// Of cookies that may come over plain HTTP, and of others.
    attributes: String,
    secure_attributes: String,
}

/// What a request says about where it belongs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The bindings of all its cookies that verify, in their order. At most [`COOKIES_MAX`].
    pub(crate) bindings: Vec<Binding>,
    /// The session of a SockJS path, or of the query.
    pub(crate) session: Option<SessionKey>,
    /// Whether a cookie of our name did not verify.
    pub(crate) forged: bool,
}

/// One affinity cookie that verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) id: BackendId,
    /// UNIX time in seconds.
    pub(crate) bound_at: u64,
    pub(crate) freshness: Freshness,
}

/// Whether a cookie would be written the same way today.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    Current,
    /// Signed with a key that is not the first any more, or not at all: it is to be set again.
    OldKey,
}

/// The id of a session, as its client says it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SessionKey(Box<str>);

impl SessionKey {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    #[cfg(test)]
    pub(crate) fn new(session: &str) -> Self {
        Self(session.into())
    }

    /// A hash that nobody outside can aim.
    pub(crate) fn hash(&self, state: &RandomState) -> u64 {
        state.hash_one(&*self.0)
    }
}

impl Affinity {
    /// The affinity of a pool whose cookie is `cookie`; `ours` are the names of the cookies of all pools.
    pub(crate) fn new(
        config: &AffinityConfig,
        cookie: Option<PoolCookie>,
        ours: Vec<String>,
    ) -> Self {
        let (name, path) = cookie
            .as_ref()
            .map_or(("", ""), |cookie| (&cookie.name, &cookie.path));
        Self {
            keys: Keys::new(&config.keys, name),
            attributes: attributes(config, path, false),
            secure_attributes: attributes(config, path, true),
            config: config.clone(),
            cookie,
            ours,
        }
    }

    /// What this request says about where it belongs. `path` is its own (a query is ignored).
    pub(crate) fn read(&self, request: &impl Request, path: &str) -> Claim {
        let by_query = || {
            let name = self.config.query_parameter.as_deref()?;
            query::session(request.target(), name)
        };
        let mut claim = Claim {
            session: self.session(path).or_else(by_query),
            ..Claim::default()
        };
        let Some(cookie) = &self.cookie else {
            return claim;
        };
        let values = request
            .values(COOKIE)
            .flat_map(|header| cookies::values(header, cookie.name.as_bytes()));
        for value in values.take(COOKIES_MAX) {
            match self.verify(value) {
                Some(binding) => claim.bindings.push(binding),
                None => claim.forged = true,
            }
        }
        claim
    }

    /// What finds a new session in a response; `None` if sessions are not named by a parameter here.
    pub(crate) fn search(&self) -> Option<SessionSearch> {
        let name = self.config.query_parameter.as_deref()?;
        Some(SessionSearch::new(name))
    }

    fn session(&self, path: &str) -> Option<SessionKey> {
        if !self.config.sockjs_path {
            return None;
        }
        sockjs_session(path).map(|session| SessionKey(session.into()))
    }

    fn verify(&self, value: &[u8]) -> Option<Binding> {
        if VALUE_BYTES_MAX < value.len() {
            return None;
        }
        let value = std::str::from_utf8(value).ok()?;
        let (payload, freshness) = match self.keys.verify(value)? {
            Verified::ByFirst(payload) => (payload, Freshness::Current),
            Verified::ByOther(payload) => (payload, Freshness::OldKey),
            Verified::Unsigned(payload) => {
                let until = self.config.accept_unsigned_until?;
                (SystemTime::now() < until).then_some((payload, Freshness::OldKey))?
            }
        };
        let (id, bound_at) = split_at_last_dot(payload)?;
        let plain =
            (1..=12).contains(&bound_at.len()) && bound_at.bytes().all(|b| b.is_ascii_digit());
        if !plain {
            return None;
        }
        Some(Binding {
            id: id.parse().ok()?,
            bound_at: bound_at.parse().ok()?,
            freshness,
        })
    }

    /// Takes our cookies out of all Cookie headers and leaves the others as they were, in one header.
    ///
    /// HTTP/2 clients send a header for each cookie, and backends speak HTTP/1.1 and look for one (RFC 9113, 8.2.3).
    pub(crate) fn strip(&self, headers: &mut impl Fields) {
        let ours = |name: &[u8]| self.ours.iter().any(|our| our.as_bytes() == name);
        let room = headers.values(COOKIE).map(|value| value.len() + 2).sum();
        let mut left = Vec::with_capacity(room);
        let (mut count, mut changes) = (0, false);
        for value in headers.values(COOKIE) {
            count += 1;
            changes |= cookies::append_without(&mut left, value, ours);
        }
        if count <= 1 && !changes {
            return;
        }
        if left.is_empty() {
            headers.remove(COOKIE);
            return;
        }
        // Parts of valid values are a valid value.
        if let Ok(value) = HeaderValue::try_from(left) {
            headers.set("Cookie", value);
        }
    }

    /// The `Set-Cookie` value that binds a client to `id`; `None` if this pool has no cookie.
    pub(crate) fn set_cookie(
        &self,
        id: &BackendId,
        now_unix: u64,
        scheme: Scheme,
    ) -> Option<HeaderValue> {
        let cookie = self.cookie.as_ref()?;
        let secure = match self.config.secure {
            Secure::Always => true,
            Secure::Never => false,
            Secure::Auto => scheme == Scheme::Https,
        };
        let attributes = if secure {
            &self.secure_attributes
        } else {
            &self.attributes
        };
        let room = cookie.name.len() + VALUE_BYTES_MAX + attributes.len();
        let mut value = String::with_capacity(room);
        value.extend([&cookie.name, "="]);
        self.keys.sign(&mut value, id.as_str(), now_unix);
        value.push_str(attributes);
        let value = HeaderValue::try_from(value);
        Some(value.expect("settings and ids are checked to be visible ASCII"))
    }
}

/// What stands behind the value of every cookie.
fn attributes(config: &AffinityConfig, path: &str, is_secure: bool) -> String {
    let mut text = format!("; Path={path}");
    if let Some(domain) = &config.domain {
        text.push_str("; Domain=");
        text.push_str(domain);
    }
    if let Some(max_age) = config.max_age {
        text.push_str(&format!("; Max-Age={}", max_age.as_secs()));
    }
    if is_secure {
        text.push_str("; Secure");
    }
    if config.http_only {
        text.push_str("; HttpOnly");
    }
    text.push_str(match config.same_site {
        SameSite::Lax => "; SameSite=Lax",
        SameSite::Strict => "; SameSite=Strict",
        SameSite::None => "; SameSite=None",
    });
    // Browsers drop a cookie that is partitioned and not secure.
    if config.partitioned && is_secure {
        text.push_str("; Partitioned");
    }
    text
}

/// The session in `{prefix}/{server}/{session}/{transport}`, if `path` is one of SockJS.
///
/// Not the one of a WebSocket: that is a single connection, which may go anywhere.
fn sockjs_session(path: &str) -> Option<&str> {
    const TRANSPORTS: [&str; 7] = [
        "xhr",
        "xhr_send",
        "xhr_streaming",
        "eventsource",
        "htmlfile",
        "jsonp",
        "jsonp_send",
    ];
    let path = without_query(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut segments = path.rsplit('/');
    let transport = segments.next()?;
    // So end nearly all paths.
    if !TRANSPORTS.contains(&transport) {
        return None;
    }
    let session = segments.next()?;
    let server = segments.next()?;
    let prefix = segments.next()?; // The empty one before the first slash, when SockJS is at the root.
    let name = |segment: &str| !segment.is_empty() && !segment.contains('.');
    let rooted = !prefix.is_empty() || segments.next().is_none();
    let right = name(session) && name(server) && rooted;
    (right && session.len() <= SESSION_BYTES_MAX).then_some(session)
}

#[cfg(test)]
mod tests;
