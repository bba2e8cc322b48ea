//! Headers that belong to one connection and are not passed on (RFC 9110, 7.6.1).

use http::HeaderValue;

use crate::fields::Fields;

/// Connection headers besides those that `Connection` names.
const ALWAYS: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

/// What headers of either direction can do here.
pub(crate) trait HopByHop: Fields {
    /// Removes what belongs to the connection it came over, and what `Connection` names, but never what the request stands on.
    fn remove_hop_by_hop(&mut self) {
        let nominated: Vec<String> = self
            .elements("connection")
            .filter(|token| !is_common(token))
            .map(str::to_ascii_lowercase)
            .collect();
        self.remove_if(|name| {
            let is = |other: &str| other.as_bytes().eq_ignore_ascii_case(name);
            ALWAYS.into_iter().any(is)
                || (nominated.iter().any(|nominated| is(nominated)) && may_be_nominated(name))
        });
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

/// Whether `Connection` may take `name` away. What the handshake and the framing stand on stays.
fn may_be_nominated(name: &[u8]) -> bool {
    const FIRM: [&[u8]; 3] = [b"host", b"transfer-encoding", b"content-length"];
    const HANDSHAKE: &[u8] = b"sec-websocket-";
    let start = name.get(..HANDSHAKE.len());
    !FIRM.into_iter().any(|firm| firm.eq_ignore_ascii_case(name))
        && !start.is_some_and(|start| start.eq_ignore_ascii_case(HANDSHAKE))
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
        request.remove_hop_by_hop();
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
    fn what_the_handshake_stands_on_cannot_be_nominated_away() {
        let mut request = request(&[
            ("Host", "a"),
            ("Sec-WebSocket-Key", "k"),
            ("Connection", "Upgrade, Host, Sec-WebSocket-Key"),
        ]);
        request.remove_hop_by_hop();
        assert!(
            request.headers.contains_key("host")
                && request.headers.contains_key("sec-websocket-key")
        );
    }
}
