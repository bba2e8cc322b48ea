//! Where the clients of a scenario go, and what they say in the protocol that they speak.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;

use crate::bench::wire;

/// What the clients speak.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// An upgrade, then WebSocket messages.
    WebSocket,
    /// The same with SockJS frames inside.
    Sockjs,
    /// Requests on a connection that is kept.
    Http,
}

/// Where the clients go, and how.
pub(crate) struct Plan {
    pub(super) address: SocketAddr,
    pub(super) protocol: Protocol,
    /// How they speak TLS, if they do.
    pub(super) tls: Option<Arc<ClientConfig>>,
    path: String,
    cookie: Option<String>,
}

impl Plan {
    /// Clients that upgrade to WebSocket on `path`.
    pub(crate) fn websocket(address: SocketAddr, path: &str) -> Self {
        let path = path.to_owned();
        Self {
            address,
            protocol: Protocol::WebSocket,
            tls: None,
            path,
            cookie: None,
        }
    }

    /// The same clients, over TLS.
    pub(crate) fn over_tls(self, config: &Arc<ClientConfig>) -> Self {
        Self {
            tls: Some(Arc::clone(config)),
            ..self
        }
    }

    /// Clients of the SockJS endpoint at `path`, each with a session of its own over WebSocket.
    pub(crate) fn sockjs(address: SocketAddr, path: &str) -> Self {
        let path = path.to_owned();
        Self {
            address,
            protocol: Protocol::Sockjs,
            tls: None,
            path,
            cookie: None,
        }
    }

    /// Clients that ask for `path`, with a cookie if they were given one before.
    pub(crate) fn http(address: SocketAddr, path: &str, cookie: Option<&str>) -> Self {
        let path = path.to_owned();
        Self {
            address,
            protocol: Protocol::Http,
            tls: None,
            path,
            cookie: cookie.map(str::to_owned),
        }
    }

    /// The upgrade request of the client of this number.
    pub(super) fn upgrade(&self, client: usize) -> Vec<u8> {
        let session = match self.protocol {
            Protocol::Sockjs => format!("/000/bench{client}/websocket"),
            Protocol::WebSocket | Protocol::Http => String::new(),
        };
        format!(
            "GET {}{session} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.path, self.address
        )
        .into_bytes()
    }

    /// The bytes that carry `payload`, which is ASCII without quotes; a request carries none.
    pub(super) fn message(&self, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(payload.len() + 32);
        match self.protocol {
            Protocol::WebSocket => wire::append_masked(&mut out, wire::TEXT, payload),
            Protocol::Sockjs => {
                let quoted = [b"[\"", payload, b"\"]"].concat();
                wire::append_masked(&mut out, wire::TEXT, &quoted);
            }
            Protocol::Http => {
                let cookie = self
                    .cookie
                    .as_ref()
                    .map(|cookie| format!("Cookie: {cookie}\r\n"));
                let request = format!(
                    "GET {} HTTP/1.1\r\nHost: {}\r\n{}\r\n",
                    self.path,
                    self.address,
                    cookie.unwrap_or_default()
                );
                out.extend_from_slice(request.as_bytes());
            }
        }
        out
    }
}

/// The messages in a SockJS frame: those of an array, none in all others.
pub(super) fn sockjs_messages(frame: &[u8]) -> impl Iterator<Item = &[u8]> {
    // The bench's own payloads hold neither quotes nor commas.
    frame
        .strip_prefix(b"a[")
        .and_then(|array| array.strip_suffix(b"]"))
        .into_iter()
        .flat_map(|array| array.split(|byte| *byte == b','))
        .map(|quoted| {
            quoted
                .strip_prefix(b"\"")
                .and_then(|rest| rest.strip_suffix(b"\""))
                .unwrap_or(quoted)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_array_frame_of_sockjs_holds_messages() {
        let messages = |frame: &'static [u8]| sockjs_messages(frame).collect::<Vec<_>>();
        assert_eq!(messages(b"a[\"one\",\"two\"]"), [b"one", b"two"]);
        assert!(messages(b"o").is_empty());
        assert!(messages(b"h").is_empty());
        assert!(messages(b"c[3000,\"Go away!\"]").is_empty());
    }
}
