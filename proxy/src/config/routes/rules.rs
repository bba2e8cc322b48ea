//! The changes of a route to its requests, and to the responses to them.

use std::collections::HashSet;
use std::sync::LazyLock;

use http::HeaderValue;
use parking_lot::Mutex;

use crate::http::fields::{Fields, Request};
use crate::http::target::Target;

const X_FORWARDED_PREFIX: &str = "x-forwarded-prefix";

/// The changes of one route.
///
/// Invariant: the changes are idempotent, since they are applied again to a request that is sent again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RouteRules {
    /// The prefix that is stripped from the path, by whole segments; it does not end with a slash.
    pub(in crate::config) strip_prefix: Option<String>,
    pub(in crate::config) request: HeaderRules,
    pub(in crate::config) response: HeaderRules,
}

/// Headers that are removed, then set, then added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HeaderRules {
    pub(in crate::config) remove: Vec<HeaderNameText>,
    pub(in crate::config) set: Vec<(HeaderNameText, HeaderValue)>,
    pub(in crate::config) add: Vec<(HeaderNameText, HeaderValue)>,
}

/// The name of a header as in the file, and in lower case. Interned: see [`HeaderNameText::new`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeaderNameText {
    spelled: &'static str,
    lower: &'static str,
}

/// The target of a request after its prefix was stripped.
#[derive(Debug)]
pub(crate) struct Stripped {
    target: String,
    /// The value of `X-Forwarded-Prefix`: the prefix that trusted proxies have stripped, followed by that of the route.
    prefix: HeaderValue,
}

impl RouteRules {
    /// `path` without the prefix.
    pub(super) fn path<'a>(&self, path: &'a str) -> &'a str {
        let Some(prefix) = &self.strip_prefix else {
            return path;
        };
        match path.strip_prefix(prefix.as_str()) {
            Some("") => "/",
            Some(rest) => rest,
            None => path,
        }
    }

    /// Strips the prefix from the target of `request`, which this route matches; `None` if it is not changed. `is_trusted` is whether
    /// the request is from a trusted proxy.
    pub(crate) fn strip(&self, request: &impl Request, is_trusted: bool) -> Option<Stripped> {
        let prefix = self.strip_prefix.as_deref()?;
        let target = std::str::from_utf8(request.target()).ok()?;
        let method = request.method().as_str();
        let whole = Target::of(method, target)?.to_origin_form(method);
        let whole = whole.as_deref().unwrap_or(target);
        let rest = whole.strip_prefix(prefix)?;
        let target = if rest.starts_with('/') {
            rest.to_owned()
        } else {
            format!("/{rest}")
        };
        let before = request.text(X_FORWARDED_PREFIX).filter(|_| is_trusted);
        let before = before.map_or("", |before| before.trim().trim_end_matches('/'));
        let prefix = HeaderValue::try_from(format!("{before}{prefix}")).ok()?;
        Some(Stripped { target, prefix })
    }

    /// Changes a request for a backend; `stripped` is the result of [`RouteRules::strip`].
    pub(crate) fn apply_request(&self, stripped: Option<&Stripped>, request: &mut impl Request) {
        if let Some(Stripped { target, prefix }) = stripped {
            request.set_target(target.clone());
            request.set("X-Forwarded-Prefix", prefix.clone());
        }
        self.request.apply(request);
    }

    /// Changes the response of a backend.
    pub(crate) fn apply_response(&self, response: &mut impl Fields) {
        self.response.apply(response);
    }
}

impl HeaderRules {
    fn apply(&self, fields: &mut impl Fields) {
        for name in &self.remove {
            fields.remove(name.lower);
        }
        for (name, value) in &self.set {
            fields.set(name.spelled, value.clone());
        }
        for (name, value) in &self.add {
            let is_present = fields
                .values(name.lower)
                .any(|present| present == value.as_bytes());
            if !is_present {
                fields.append(name.spelled, value.clone());
            }
        }
    }
}

impl HeaderNameText {
    /// Interns the name; it is never freed. The number of names is bounded by the configurations.
    pub(in crate::config) fn new(name: &str) -> Self {
        static NAMES: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
        let mut names = NAMES.lock();
        let mut intern = |name: &str| -> &'static str {
            if let Some(name) = names.get(name) {
                return name;
            }
            let name: &'static str = Box::leak(name.into());
            names.insert(name);
            name
        };
        Self {
            spelled: intern(name),
            lower: intern(&name.to_ascii_lowercase()),
        }
    }

    pub(crate) fn spelled(self) -> &'static str {
        self.spelled
    }

    pub(crate) fn lower(self) -> &'static str {
        self.lower
    }
}

#[cfg(test)]
mod tests {
    use pingora::http::{RequestHeader, ResponseHeader};

    use super::*;

    fn rules() -> RouteRules {
        let name = HeaderNameText::new;
        let value = HeaderValue::from_static;
        let headers = HeaderRules {
            remove: vec![name("X-Gone")],
            set: vec![(name("X-Set"), value("s")), (name("Host"), value("app"))],
            add: vec![(name("X-Tag"), value("t"))],
        };
        RouteRules {
            strip_prefix: Some("/app".to_owned()),
            request: headers.clone(),
            response: headers,
        }
    }

    fn request(target: &str, headers: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    fn values<'a>(fields: &'a impl Fields, name: &'static str) -> Vec<&'a str> {
        let values = fields.values(name);
        values
            .map(|value| std::str::from_utf8(value).unwrap())
            .collect()
    }

    #[test]
    fn a_request_that_is_sent_again_is_changed_once() {
        let rules = rules();
        let mut request = request(
            "/app/app/x?y=/app",
            &[
                ("x-gone", "1"),
                ("X-Set", "1"),
                ("x-set", "2"),
                ("X-Tag", "o"),
                ("Host", "a"),
            ],
        );
        let stripped = rules.strip(&request, false);
        for _ in 0..2 {
            rules.apply_request(stripped.as_ref(), &mut request);
            assert_eq!(request.raw_path(), b"/app/x?y=/app");
            assert_eq!(values(&request, "x-forwarded-prefix"), ["/app"]);
            assert_eq!(values(&request, "x-gone"), [""; 0]);
            assert_eq!(values(&request, "x-set"), ["s"]);
            assert_eq!(values(&request, "host"), ["app"]);
            assert_eq!(values(&request, "x-tag"), ["o", "t"]);
        }
        let mut response = ResponseHeader::build(200, None).unwrap();
        response.append_header("X-Gone", "1").unwrap();
        rules.apply_response(&mut response);
        assert_eq!(values(&response, "x-gone"), [""; 0]);
        assert_eq!(values(&response, "x-tag"), ["t"]);
    }

    #[test]
    fn a_prefix_is_stripped_by_whole_segments() {
        let rules = rules();
        for (target, expected, path) in [
            ("/app", "/", "/"),
            ("/app?x", "/?x", "/"),
            ("/app/", "/", "/"),
            ("/app//x", "//x", "//x"),
            ("http://h/app/x?y", "/x?y", "/x"),
        ] {
            let request = request(target, &[]);
            let stripped = rules.strip(&request, false).unwrap();
            assert_eq!(stripped.target, expected, "{target}");
            assert_eq!(rules.path(request.path()), path, "{target}");
        }
    }

    #[test]
    fn the_prefix_that_a_trusted_proxy_stripped_comes_first() {
        let before = request("/app/x", &[("X-Forwarded-Prefix", "/outer/")]);
        for (is_trusted, expected) in [(true, "/outer/app"), (false, "/app")] {
            let stripped = rules().strip(&before, is_trusted).unwrap();
            assert_eq!(stripped.prefix, expected);
        }
    }
}
