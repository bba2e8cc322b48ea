//! How clients speak to a server: what they send to upgrade, to join a channel and to publish, and how what
//! comes back is taken apart.
//!
//! Each protocol has a file of its own below. Payloads are ASCII without quotes, so that none of them has to
//! escape anything, and a delivery is found without a JSON parser.

mod centrifugo;
mod socketio;
mod sockjs;

use std::net::SocketAddr;

use crate::bench::wire;

/// What a relay is spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// An upgrade, then WebSocket messages.
    WebSocket,
    /// The same with SockJS frames inside.
    Sockjs,
    /// The same with Centrifugo's client protocol inside, in JSON.
    Centrifugo,
    /// The same with Engine.IO and Socket.IO packets inside.
    SocketIo,
    /// Requests on a connection that is kept.
    Http,
}

/// How one server is spoken to.
#[derive(Clone, Debug)]
pub(crate) struct Dialect {
    pub(crate) protocol: Protocol,
    /// Where clients connect; `{}` stands for the channel.
    path: String,
    /// What goes with a request, if anything.
    cookie: Option<String>,
    /// Whether a request is a POST with the payload as its body.
    posts: bool,
    /// How the backend of an application publishes; without it clients do.
    api: Option<Api>,
}

/// Publishing by HTTP requests.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    /// Where messages are posted; `{}` stands for the channel.
    path: String,
    /// Whole header lines.
    headers: String,
    wraps: Body,
}

/// What a request to publish carries.
#[derive(Clone, Copy, Debug)]
enum Body {
    /// The message.
    Bare,
    /// The message and its channel, as Centrifugo has it.
    Centrifugo,
}

/// What a client that has upgraded does about a message, before it is ready.
pub(crate) enum Joining {
    /// Waits for another.
    Waits,
    /// Sends this WebSocket message, then waits.
    Sends(String),
    /// Is ready for the scenario.
    Joined,
}

impl Dialect {
    /// Clients that upgrade to WebSocket on `path`, and publish by sending.
    pub(crate) fn websocket(path: &str) -> Self {
        Self::new(Protocol::WebSocket, path)
    }

    /// Clients of a SockJS endpoint, each with a session of its own over WebSocket.
    pub(crate) fn sockjs(path: &str) -> Self {
        Self::new(Protocol::Sockjs, path)
    }

    /// Clients of Socket.IO over WebSocket, whose events are all called `m`.
    pub(crate) fn socket_io(path: &str) -> Self {
        Self::new(Protocol::SocketIo, path)
    }

    /// Clients of Centrifugo's protocol that subscribe to one channel each, published to by its server API.
    pub(crate) fn centrifugo(path: &str, api_path: &str, key: &str) -> Self {
        let api = Api {
            path: api_path.to_owned(),
            headers: format!("Content-Type: application/json\r\nX-API-Key: {key}\r\n"),
            wraps: Body::Centrifugo,
        };
        Self {
            api: Some(api),
            ..Self::new(Protocol::Centrifugo, path)
        }
    }

    /// Clients that only listen on plain WebSockets, and are published to by posting the bare message.
    pub(crate) fn posted(path: &str, api_path: &str) -> Self {
        let api = Api {
            path: api_path.to_owned(),
            headers: "Content-Type: text/plain\r\n".to_owned(),
            wraps: Body::Bare,
        };
        Self {
            api: Some(api),
            ..Self::new(Protocol::WebSocket, path)
        }
    }

    /// Clients that ask for `path`, with a cookie if they were given one before.
    pub(crate) fn http(path: &str, cookie: Option<&str>) -> Self {
        Self {
            cookie: cookie.map(str::to_owned),
            ..Self::new(Protocol::Http, path)
        }
    }

    /// The same clients, which POST their payload.
    pub(crate) fn http_post(path: &str, cookie: Option<&str>) -> Self {
        Self {
            posts: true,
            ..Self::http(path, cookie)
        }
    }

    fn new(protocol: Protocol, path: &str) -> Self {
        Self {
            protocol,
            path: path.to_owned(),
            cookie: None,
            posts: false,
            api: None,
        }
    }

    /// Whether a backend publishes, and not the clients.
    pub(crate) fn has_api(&self) -> bool {
        self.api.is_some()
    }

    /// The upgrade request of the client of this number.
    pub(crate) fn upgrade(&self, host: SocketAddr, client: usize, channel: usize) -> Vec<u8> {
        let path = at(&self.path, channel);
        let session = match self.protocol {
            Protocol::Sockjs => format!("/000/bench{client}/websocket"),
            _ => String::new(),
        };
        format!(
            "GET {path}{session} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .into_bytes()
    }

    /// What a client sends first after its upgrade, and whether it is ready by the upgrade alone.
    pub(crate) fn upgraded(&self, channel: usize) -> Joining {
        match self.protocol {
            Protocol::WebSocket | Protocol::Http => Joining::Joined,
            Protocol::Sockjs | Protocol::SocketIo => Joining::Waits,
            Protocol::Centrifugo => Joining::Sends(centrifugo::subscribe(&name(channel))),
        }
    }

    /// What a client does about a WebSocket message before it is ready.
    ///
    /// # Errors
    ///
    /// The server refused; the error has its words.
    pub(crate) fn joining(&self, message: &[u8]) -> Result<Joining, String> {
        match self.protocol {
            Protocol::WebSocket | Protocol::Http => Ok(Joining::Joined),
            Protocol::Sockjs => sockjs::joining(message),
            Protocol::SocketIo => socketio::joining(message),
            Protocol::Centrifugo => centrifugo::joining(message),
        }
    }

    /// What has to be answered to a message that only asks whether the client is there.
    pub(crate) fn heartbeat(&self, message: &[u8]) -> Option<&'static [u8]> {
        match self.protocol {
            Protocol::SocketIo => socketio::heartbeat(message),
            Protocol::Centrifugo => centrifugo::heartbeat(message),
            _ => None,
        }
    }

    /// Calls `each` with every payload in a WebSocket message, as long as it succeeds.
    pub(crate) fn payloads<E>(
        &self,
        message: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.protocol {
            Protocol::WebSocket | Protocol::Http => each(message),
            Protocol::Sockjs => sockjs::payloads(message).try_for_each(each),
            Protocol::SocketIo => socketio::payload(message).map_or(Ok(()), each),
            Protocol::Centrifugo => centrifugo::payloads(message).try_for_each(each),
        }
    }

    /// The bytes by which a client sends `payload`: a POST ends with it, a GET has no body.
    pub(crate) fn message(&self, host: SocketAddr, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(payload.len() + 32);
        let mut frame = |parts: &[&[u8]]| {
            wire::append_masked(&mut out, wire::TEXT, &parts.concat());
        };
        match self.protocol {
            Protocol::WebSocket | Protocol::Centrifugo => frame(&[payload]),
            Protocol::Sockjs => frame(&[b"[\"", payload, b"\"]"]),
            Protocol::SocketIo => frame(&[b"42[\"m\",\"", payload, b"\"]"]),
            Protocol::Http => {
                let cookie = self.cookie.as_ref();
                let cookie = cookie.map(|cookie| format!("Cookie: {cookie}\r\n"));
                let cookie = cookie.unwrap_or_default();
                let (method, length, body) = if self.posts {
                    let length = format!("Content-Length: {}\r\n", payload.len());
                    ("POST", length, payload)
                } else {
                    ("GET", String::new(), &[][..])
                };
                let path = &self.path;
                let head =
                    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{cookie}{length}\r\n");
                out.extend_from_slice(head.as_bytes());
                out.extend_from_slice(body);
            }
        }
        out
    }

    /// The request by which a backend publishes `payload`, if one does.
    pub(crate) fn post(&self, host: SocketAddr, channel: usize, payload: &[u8]) -> Option<Vec<u8>> {
        let api = self.api.as_ref()?;
        let body = match api.wraps {
            Body::Bare => payload.to_vec(),
            Body::Centrifugo => centrifugo::publication(&name(channel), payload),
        };
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: {host}\r\n{}Content-Length: {}\r\n\r\n",
            at(&api.path, channel),
            api.headers,
            body.len()
        );
        Some([head.as_bytes(), &body].concat())
    }
}

/// The name of a channel, where it has one of its own.
fn name(channel: usize) -> String {
    format!("bench:c{channel}")
}

fn at(path: &str, channel: usize) -> String {
    path.replace("{}", &format!("c{channel}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payloads(dialect: &Dialect, message: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        let all = dialect.payloads(message, |payload| -> Result<(), ()> {
            found.push(String::from_utf8_lossy(payload).into_owned());
            Ok(())
        });
        assert!(all.is_ok());
        found
    }

    #[test]
    fn only_the_array_frame_of_sockjs_holds_messages() {
        let dialect = Dialect::sockjs("/sockjs");
        assert_eq!(payloads(&dialect, b"a[\"one\",\"two\"]"), ["one", "two"]);
        for other in [b"o".as_slice(), b"h", b"c[3000,\"Go away!\"]"] {
            assert!(payloads(&dialect, other).is_empty());
        }
    }

    #[test]
    fn only_an_event_of_socket_io_holds_a_message() {
        let dialect = Dialect::socket_io("/socket.io/");
        assert_eq!(payloads(&dialect, b"42[\"m\",\"one\"]"), ["one"]);
        assert!(payloads(&dialect, b"40{\"sid\":\"x\"}").is_empty());
        assert_eq!(dialect.heartbeat(b"2"), Some(b"3".as_slice()));
        assert_eq!(dialect.heartbeat(b"42[\"m\",\"one\"]"), None);
    }

    #[test]
    fn every_push_of_centrifugo_in_a_message_is_found_and_replies_are_none() {
        let dialect = Dialect::centrifugo("/connection/websocket", "/api/publish", "key");
        let push = |data: &str| {
            format!(
                "{{\"push\":{{\"channel\":\"bench:c1\",\"pub\":{{\"data\":\"{data}\",\"offset\":1}}}}}}"
            )
        };
        let message = format!("{}\n{}", push("one"), push("two"));
        assert_eq!(payloads(&dialect, message.as_bytes()), ["one", "two"]);
        assert!(payloads(&dialect, b"{\"id\":1,\"connect\":{}}").is_empty());
        assert_eq!(dialect.heartbeat(b"{}"), Some(b"{}".as_slice()));
    }

    #[test]
    fn a_refused_subscription_is_an_error_with_the_words_of_the_server() {
        let dialect = Dialect::centrifugo("/connection/websocket", "/api/publish", "key");
        let refused = b"{\"id\":2,\"error\":{\"code\":102,\"message\":\"unknown channel\"}}";
        let error = dialect.joining(refused).err().unwrap_or_default();
        assert!(error.contains("unknown channel"), "{error}");
    }
}
