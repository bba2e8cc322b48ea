//! Headers that belong to one connection and are not passed on (RFC 9110, 7.6.1).

use http::HeaderValue;

use crate::http::fields::Fields;

/// Connection headers besides those that `Connection` names.
const ALWAYS: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

/// The most headers that one message's `Connection` may name, besides those that are connection headers anyway. Each is looked
/// for among all headers.
const NOMINATIONS_MAX: usize = 16;

/// `Connection` names more headers than [`NOMINATIONS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Connection header names too many headers")]
pub(crate) struct TooManyNominations;

/// What headers of either direction can do here.
pub(crate) trait HopByHop: Fields {
    /// Removes what belongs to the connection it came over, and what `Connection` names, but never what a message stands on:
    /// its host, its framing, its cookies, who the client is.
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

    /// Makes it an upgrade to `protocol`, spelled one way only.
    fn set_upgrade(&mut self, protocol: HeaderValue) {
        self.set("Connection", HeaderValue::from_static("Upgrade"));
        self.set("Upgrade", protocol);
    }
}

impl<F: Fields> HopByHop for F {}

/// What nearly every `Connection` names, for the connection and not for a header that is not removed anyway.
fn is_common(token: &str) -> bool {
    ["keep-alive", "close", "upgrade"]
        .into_iter()
        .any(|common| common.eq_ignore_ascii_case(token))
}

/// Whether `Connection` may take `name` away. What a message stands on stays.
fn may_be_nominated(name: &[u8]) -> bool {
    const KEPT: [&[u8]; 8] = [
        b"content-length",
        b"cookie",
        b"forwarded",
        b"host",
        b"set-cookie",
        b"transfer-encoding",
        b"x-real-ip",
        b"x-request-id",
    ];
    const KEPT_FAMILIES: [&[u8]; 2] = [b"sec-websocket-", b"x-forwarded-"];
    let starts_with = |family: &[u8]| {
        let start = name.get(..family.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(family))
    };
    !KEPT.into_iter().any(|kept| kept.eq_ignore_ascii_case(name))
        && !KEPT_FAMILIES.into_iter().any(starts_with)
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
    fn what_a_request_stands_on_cannot_be_nominated_away() {
        let firm = [
            ("Host", "a"),
            ("Sec-WebSocket-Key", "k"),
            ("Cookie", "a=b"),
            ("X-Forwarded-For", "10.0.0.1"),
            ("Forwarded", "for=10.0.0.1"),
            ("Content-Length", "0"),
        ];
        let mut request = request(&firm);
        for (name, _) in firm {
            request.append_header("Connection", name).unwrap();
        }
        request.remove_hop_by_hop().unwrap();
        for (name, _) in firm {
            assert!(request.headers.contains_key(name), "{name}");
        }
    }

    #[test]
    fn the_number_of_nominations_is_bounded() {
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
