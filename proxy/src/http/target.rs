//! Request targets (RFC 9112, 3.2) and hosts.
//!
//! A host has to be valid by RFC 3986, 3.2.2, without the characters that no name in use has: it selects the route, and is sent
//! to backends.

/// A host name has at most 253 characters (RFC 1035, 2.3.4).
const HOST_MAX: usize = 253;

/// A valid request target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// A path, with or without a query.
    Origin(&'a str),
    /// An http or https URL: its authority, and its path and query, which may be empty.
    Absolute { authority: &'a str, rest: &'a str },
    /// The server as a whole, for OPTIONS only.
    Asterisk,
}

impl<'a> Target<'a> {
    /// Parses `target`; `None` if it is not valid, or not valid for `method`.
    pub(crate) fn of(method: &str, target: &'a str) -> Option<Self> {
        if !target
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#')
        {
            return None;
        }
        if target.starts_with('/') {
            return Some(Self::Origin(target));
        }
        if target == "*" {
            return (method == "OPTIONS").then_some(Self::Asterisk);
        }
        let (scheme, rest) = target.split_once("://")?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return None;
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        host_alone(authority)?;
        Some(Self::Absolute { authority, rest })
    }

    /// The target in origin or asterisk form, for a server that is not a proxy (RFC 9112, 3.2.1 and 3.2.4); `None` if it has that form already.
    pub(crate) fn to_origin_form(self, method: &str) -> Option<String> {
        match self {
            Self::Absolute { rest: "", .. } if method == "OPTIONS" => Some("*".to_owned()),
            Self::Absolute { rest, .. } if rest.starts_with('/') => Some(rest.to_owned()),
            Self::Absolute { rest, .. } => Some(format!("/{rest}")),
            Self::Origin(_) | Self::Asterisk => None,
        }
    }
}

/// The host without its port, if it is valid.
pub(crate) fn host_alone(host: &str) -> Option<&str> {
    let (alone, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']')?;
            rest[..end].parse::<std::net::Ipv6Addr>().ok()?;
            host.split_at(end + 2)
        }
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(is_port) {
        return None;
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_valid = alone.starts_with('[') || alone.bytes().all(is_name);
    (is_valid && !alone.is_empty() && alone.len() <= HOST_MAX).then_some(alone)
}

/// Whether `text` may follow the colon: nothing (RFC 3986, 3.2.3), or a port.
fn is_port(text: &str) -> bool {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.is_empty() || (digits && text.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_of_a_target_is_parsed_for_its_methods() {
        let absolute = |authority, rest| Some(Target::Absolute { authority, rest });
        let cases = [
            (
                "GET",
                "/a?b=http://c/",
                Some(Target::Origin("/a?b=http://c/")),
            ),
            ("GET", "//a/b", Some(Target::Origin("//a/b"))),
            (
                "GET",
                "/{a|b}^`\"<>\\",
                Some(Target::Origin("/{a|b}^`\"<>\\")),
            ),
            ("GET", "http://a:80/b?c", absolute("a:80", "/b?c")),
            ("GET", "HTTPS://[::1]?c", absolute("[::1]", "?c")),
            ("OPTIONS", "http://a", absolute("a", "")),
            ("OPTIONS", "*", Some(Target::Asterisk)),
            ("GET", "*", None),
            ("OPTIONS", "**", None),
            ("GET", "a:80", None),
            ("GET", "a/b", None),
            ("GET", "", None),
            ("GET", "?a", None),
            ("GET", "ftp://a/", None),
            ("GET", "http:/a", None),
            ("GET", "http:///a", None),
            ("GET", "http://u@a/", None),
            ("GET", "http://a:b/", None),
            ("GET", "http://a\\b/", None),
            ("GET", "/a#b", None),
            ("GET", "/a b", None),
            ("GET", "/a\tb", None),
            ("GET", "/ä", None),
        ];
        for (method, target, expected) in cases {
            assert_eq!(Target::of(method, target), expected, "{method} {target}");
        }
    }

    #[test]
    fn an_absolute_target_is_converted_to_origin_form() {
        let cases = [
            ("GET", "/a?b", None),
            ("GET", "http://a/b?c", Some("/b?c")),
            ("GET", "http://a", Some("/")),
            ("GET", "http://a?b", Some("/?b")),
            ("OPTIONS", "http://a", Some("*")),
            ("OPTIONS", "http://a/", Some("/")),
            ("OPTIONS", "*", None),
        ];
        for (method, target, expected) in cases {
            let form = Target::of(method, target).unwrap();
            assert_eq!(form.to_origin_form(method).as_deref(), expected, "{target}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_an_optional_port() {
        let cases = [
            ("a", Some("a")),
            ("a.b-c_d.example:8080", Some("a.b-c_d.example")),
            ("127.0.0.1:0", Some("127.0.0.1")),
            ("a:", Some("a")),
            ("[::1]:443", Some("[::1]")),
            ("", None),
            (":80", None),
            ("a:65536", None),
            ("a:8x", None),
            ("a:80:80", None),
            ("a b", None),
            ("a,b", None),
            ("a/b", None),
            ("u@a", None),
            ("[::1", None),
            ("[::1]x", None),
            ("[zz]", None),
            ("::1", None),
            ("a\0", None),
            ("%61", None),
            ("é", None),
        ];
        for (host, expected) in cases {
            assert_eq!(host_alone(host), expected, "{host:?}");
        }
        assert_eq!(host_alone(&"a".repeat(HOST_MAX + 1)), None);
    }
}
