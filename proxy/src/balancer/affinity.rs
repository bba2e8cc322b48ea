//! Affinity: which backend a request is bound to, and the cookie that binds it.
//!
//! Reads three things: the affinity cookie of the pool, the session id in a SockJS path, and the one in a query parameter (for clients
//! whose cookies are blocked). Chooses no backend: that is the pool, which knows their states. A cookie that does not verify is
//! ignored.
//!
//! A pool may have no cookie; then only sessions bind its clients.
//!
//! A cookie names a backend by its stable id, never by address or index, and the second in which it was bound:
//! `u1.<id>.<bound at>` without keys, `s1.<id>.<bound at>.<key id>.<mac>` with keys. Without keys nothing is verified, so that the
//! cookies of an edge with keys are accepted too; with keys, unsigned ones are accepted until `accept_unsigned_until`.

mod cookies;
mod query;
mod signature;

use std::hash::Hasher as _;
use std::time::SystemTime;

use http::header::HeaderValue;
use siphasher::sip::SipHasher13;

use crate::config::backend::BackendId;
use crate::config::{AffinityConfig, PoolCookie, SameSite, Secure, without_query};
use crate::http::fields::{Fields, Request};
use crate::http::scheme::Scheme;

pub(crate) use crate::balancer::affinity::query::SessionSearch;
use crate::balancer::affinity::signature::{Keys, Verified, split_at_last_dot};

const COOKIE: &str = "cookie";

/// The longest cookie value that is verified: id, time, key id and MAC, with a margin.
const VALUE_BYTES_MAX: usize = 160;

/// How many cookies with the name of ours are verified in one request, and so how many bindings it has at most.
const COOKIES_MAX: usize = 8;

/// The longest session id that is accepted.
const SESSION_BYTES_MAX: usize = 128;

/// Reads, removes and writes the affinity cookie of one pool.
#[derive(Debug)]
pub(crate) struct Affinity {
    config: AffinityConfig,
    /// This pool's cookie, if it has one.
    cookie: Option<PoolCookie>,
    /// The names of the cookies of all pools: none of them is forwarded to a backend.
    cookie_names: Vec<String>,
    keys: Keys,
    /// For cookies without and with `Secure`.
    attributes: String,
    secure_attributes: String,
}

/// The bindings that a request presents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The bindings of all its cookies that verify, in order. At most [`COOKIES_MAX`].
    pub(crate) bindings: Vec<Binding>,
    /// The session of a SockJS path, or of the query.
    pub(crate) session: Option<SessionKey>,
    /// Whether a cookie with the name of ours did not verify.
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

/// Whether a cookie is still written in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    Current,
    /// Signed with a key that is no longer the first, or not signed: it is to be set again.
    OldKey,
}

/// The id of a session, as sent by its client.
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

    /// A hash that clients cannot predict without the keys.
    pub(crate) fn hash(&self, [first, second]: [u64; 2]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(first, second);
        hasher.write(self.0.as_bytes());
        hasher.finish()
    }
}

impl Affinity {
    /// The affinity of a pool whose cookie is `cookie`; `cookie_names` are the names of the cookies of all pools.
    pub(crate) fn new(
        config: &AffinityConfig,
        cookie: Option<PoolCookie>,
        cookie_names: Vec<String>,
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
            cookie_names,
        }
    }

    /// Reads the bindings of `request`. `path` is its path (a query is ignored).
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

    /// The search for a new session in a response; `None` without `affinity.query_parameter`.
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

    /// Removes the affinity cookies from all Cookie headers, and joins the others, unchanged, in one header.
    ///
    /// HTTP/2 clients send a header for each cookie, while backends, which use HTTP/1.1, expect one (RFC 9113, 8.2.3).
    pub(crate) fn strip(&self, headers: &mut impl Fields) {
        let is_ours = |name: &[u8]| self.cookie_names.iter().any(|ours| ours.as_bytes() == name);
        let room = headers.values(COOKIE).map(|value| value.len() + 2).sum();
        let mut left = Vec::with_capacity(room);
        let (mut count, mut changes) = (0, false);
        for value in headers.values(COOKIE) {
            count += 1;
            changes |= cookies::append_without(&mut left, value, is_ours);
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
        Some(value.expect("settings and ids are validated to be visible ASCII"))
    }
}

/// The attributes of a cookie, appended to its value.
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
    // Browsers reject a cookie that is partitioned and not secure.
    if config.partitioned && is_secure {
        text.push_str("; Partitioned");
    }
    text
}

/// The session in `{prefix}/{server}/{session}/{transport}`, if `path` is one of SockJS.
///
/// Not of a WebSocket: that is a single connection, which needs no affinity.
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
    // Nearly all paths return here.
    if !TRANSPORTS.contains(&transport) {
        return None;
    }
    let session = segments.next()?;
    let server = segments.next()?;
    let prefix = segments.next()?; // The empty one before the first slash, when SockJS is at the root.
    let name = |segment: &str| !segment.is_empty() && !segment.contains('.');
    let rooted = !prefix.is_empty() || segments.next().is_none();
    let is_valid = name(session) && name(server) && rooted;
    (is_valid && session.len() <= SESSION_BYTES_MAX).then_some(session)
}

#[cfg(test)]
mod tests;
