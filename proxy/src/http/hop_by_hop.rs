//! Connection headers, which are not forwarded (RFC 9110, 7.6.1).

use http::HeaderValue;

use crate::http::fields::Fields;

/// The connection headers that are always removed, besides those that `Connection` names.
const ALWAYS: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

/// The most headers that one message's `Connection` may name, besides `keep-alive`, `close`, `upgrade` and protected ones. Each
/// is compared with all headers.
const NOMINATIONS_MAX: usize = 16;

/// `Connection` names more headers than [`NOMINATIONS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Connection header names too many headers")]
pub(crate) struct TooManyNominations;

/// Handling of connection headers, for requests and responses.
pub(crate) trait HopByHop: Fields {
    /// Removes the connection headers and those that `Connection` names, except protected ones: host, framing, cookies, and
    /// headers that identify the client.
    ///
    /// # Errors
    ///
    /// [`TooManyNominations`]; nothing is removed then.
    fn remove_hop_by_hop(&mut self) -> Result<(), TooManyNominations> {
        let mut nominated: Vec<String> = Vec::new();
        for token in self.elements("connection") {
            if token.is_empty() || is_common(token) || !may_be_nominated(token.as_bytes()) {
                continue;
            }
            if nominated.len() == NOMINATIONS_MAX {
                return Err(TooManyNominations);
            }
            nominated.push(token.to_ascii_lowercase());
        }
        self.remove_if(|name| {
            let is = |other: &str| other.as_bytes().eq_ignore_ascii_case(name);
            ALWAYS.into_iter().any(is) || nominated.iter().any(|nominated| is(nominated))
        });
        Ok(())
    }

    /// Makes it an upgrade to `protocol`, in canonical spelling.
    fn set_upgrade(&mut self, protocol: HeaderValue) {
        self.set("Connection", HeaderValue::from_static("Upgrade"));
        self.set("Upgrade", protocol);
    }
}

impl<F: Fields> HopByHop for F {}

/// Whether `token` is a connection option that names no other header to remove.
fn is_common(token: &str) -> bool {
    ["keep-alive", "close", "upgrade"]
        .into_iter()
        .any(|common| common.eq_ignore_ascii_case(token))
}

/// Whether the header `name` may be removed because `Connection` names it. Protected ones may not.
fn may_be_nominated(name: &[u8]) -> bool {
    const PROTECTED: [&[u8]; 8] = [
        b"content-length",
        b"cookie",
        b"forwarded",
        b"host",
        b"set-cookie",
        b"transfer-encoding",
        b"x-real-ip",
        b"x-request-id",
    ];
    const PROTECTED_PREFIXES: [&[u8]; 2] = [b"sec-websocket-", b"x-forwarded-"];
    let starts_with = |prefix: &[u8]| {
        let start = name.get(..prefix.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    !PROTECTED
        .into_iter()
        .any(|other| other.eq_ignore_ascii_case(name))
        && !PROTECTED_PREFIXES.into_iter().any(starts_with)
}

#[cfg(test)]
mod tests {
    use http::header::{CONNECTION, UPGRADE};
    use pingora::http::RequestHeader;

    use super::*;

    fn request(headers: &[(&'static str, &'static str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/ws", None).unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn connection_headers_and_those_it_names_are_removed() {
        let mut request = request(&[
            ("Host", "a"),
            ("Connection", "keep-alive, X-Private"),
            ("Connection", "Upgrade"),
            ("Upgrade", "WebSocket"),
            ("X-Private", "1"),
            ("X-Public", "2"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "trailers"),
        ]);
        request.remove_hop_by_hop().unwrap();
        request.set_upgrade(HeaderValue::from_static("websocket"));
        let mut names: Vec<&str> = request
            .headers
            .keys()
            .map(http::HeaderName::as_str)
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["connection", "host", "upgrade", "x-public"]);
        assert_eq!(request.headers[CONNECTION], "Upgrade");
        assert_eq!(request.headers[UPGRADE], "websocket");
    }

    #[test]
    fn protected_headers_are_not_removed_when_connection_names_them() {
        let protected = [
            ("Host", "a"),
            ("Sec-WebSocket-Key", "k"),
            ("Cookie", "a=b"),
            ("X-Forwarded-For", "10.0.0.1"),
            ("Forwarded", "for=10.0.0.1"),
            ("Content-Length", "0"),
        ];
        let mut request = request(&protected);
        for (name, _) in protected {
            request.append_header("Connection", name).unwrap();
        }
        request.remove_hop_by_hop().unwrap();
        for (name, _) in protected {
            assert!(request.headers.contains_key(name), "{name}");
        }
    }

    #[test]
    fn the_number_of_headers_that_connection_may_name_is_bounded() {
        let nominating = |count: usize| {
            let names: Vec<String> = (0..count).map(|at| format!("x-{at}")).collect();
            let mut request = request(&[("x-0", "1")]);
            request
                .append_header("Connection", names.join(","))
                .unwrap();
            (
                request.remove_hop_by_hop(),
                request.headers.contains_key("x-0"),
            )
        };
        assert_eq!(nominating(NOMINATIONS_MAX), (Ok(()), false));
        assert_eq!(
            nominating(NOMINATIONS_MAX + 1),
            (Err(TooManyNominations), true)
        );
        let mut common = request(&[]);
        common
            .append_header("Connection", "close,".repeat(9000))
            .unwrap();
        assert_eq!(common.remove_hop_by_hop(), Ok(()));
    }
}
