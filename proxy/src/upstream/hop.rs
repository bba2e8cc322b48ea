//! Headers that belong to one connection and are not passed on (RFC 9110, 7.6.1).

use http::header::{CONNECTION, HOST, TRANSFER_ENCODING, UPGRADE};
use pingora::http::{RequestHeader, ResponseHeader};

/// Connection headers besides those that `Connection` names.
const ALWAYS: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

/// What a header map of either direction can do here.
pub(crate) trait HopByHop {
    /// Removes what belongs to the connection it came over, and what `Connection` names, but never what the request stands on.
    fn remove_hop_by_hop(&mut self);

    /// Makes it an upgrade to `protocol`, spelled one way only.
    fn set_upgrade(&mut self, protocol: &str) -> pingora::Result<()>;
}

/// Whether `Connection` may take `name` away. What the handshake and the framing stand on stays.
fn may_be_nominated(name: &str) -> bool {
    name != HOST.as_str()
        && name != TRANSFER_ENCODING.as_str()
        && name != "content-length"
        && !name.starts_with("sec-websocket-")
}

fn nominated(headers: &http::HeaderMap) -> Vec<String> {
    let values = headers
        .get_all(CONNECTION)
        .into_iter()
        .filter_map(|value| value.to_str().ok());
    let tokens = values
        .flat_map(|value| value.split(','))
        .map(|token| token.trim().to_ascii_lowercase());
    tokens.filter(|token| may_be_nominated(token)).collect()
}

macro_rules! hop_by_hop {
    ($header:ty) => {
        impl HopByHop for $header {
            fn remove_hop_by_hop(&mut self) {
                for name in nominated(&self.headers) {
                    self.remove_header(name.as_str());
                }
                for name in ALWAYS {
                    self.remove_header(name);
                }
            }

            fn set_upgrade(&mut self, protocol: &str) -> pingora::Result<()> {
                self.insert_header(CONNECTION, "Upgrade")?;
                self.insert_header(UPGRADE, protocol)
            }
        }
    };
}

hop_by_hop!(RequestHeader);
hop_by_hop!(ResponseHeader);

#[cfg(test)]
mod tests {
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
        request.set_upgrade("websocket").unwrap();
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
