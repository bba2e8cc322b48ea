//! From a path to what is there: parsed once, and nowhere else.
//!
//! The query never takes part. Percent-encoding is not decoded: a session id is the bytes that the
//! client chose.

use http::Method;

use crate::config::Endpoint;
use crate::config::Protocol;
use crate::config::SockjsTransport;
use crate::http::page::Asset;

/// The longest session id. Clients use 8 characters, test suites up to 36.
const SESSION_ID_BYTES_MAX: usize = 255;

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    /// A file of the chat page.
    Page(Asset),
    /// The way to another node.
    Move,
    /// Something of the endpoint with this index.
    Endpoint(usize, Place<'a>),
}

/// What a path names below an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    /// SockJS says hello.
    Greeting,
    /// SockJS says what it can.
    Info,
    /// All of a WebSocket endpoint.
    Websocket,
    /// A WebSocket of a SockJS endpoint without SockJS frames.
    RawWebsocket,
    /// A SockJS session over a WebSocket; its id means nothing.
    SessionWebsocket,
    /// A request of a SockJS session over HTTP.
    Session {
        /// The session, as the client named it.
        id: &'a str,
        /// What the client wants of it.
        wire: Wire,
    },
}

/// What a request wants of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// One frame.
    Xhr,
    /// Frames.
    XhrStreaming,
    /// To send messages.
    XhrSend,
}

/// Finds what `path` names; the deepest endpoint wins. `None`: nothing.
pub(crate) fn find<'a, 'e>(
    path: &'a str,
    endpoints: impl IntoIterator<Item = &'e Endpoint>,
    page: bool,
) -> Option<Route<'a>> {
    let endpoint = endpoints
        .into_iter()
        .enumerate()
        .filter_map(|(index, endpoint)| Some((index, endpoint, below(path, &endpoint.path)?)))
        .max_by_key(|(_, endpoint, _)| endpoint.path.len());
    if let Some((index, endpoint, rest)) = endpoint {
        return place(rest, &endpoint.protocol).map(|place| Route::Endpoint(index, place));
    }
    match path {
        _ if !page => None,
        "/move" => Some(Route::Move),
        _ => Asset::find(path).map(Route::Page),
    }
}

/// What comes after `prefix` in `path`: nothing, or something that begins with a slash.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix)
        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn place<'a>(rest: &'a str, protocol: &Protocol) -> Option<Place<'a>> {
    let Protocol::Sockjs(sockjs) = protocol else {
        return matches!(rest, "" | "/").then_some(Place::Websocket);
    };
    let Some(rest) = rest.strip_prefix('/').filter(|rest| !rest.is_empty()) else {
        return Some(Place::Greeting);
    };
    // One slash at the end is forgiven; more make an empty segment, which names nothing.
    let mut segments = rest.strip_suffix('/').unwrap_or(rest).split('/');
    let (first, second, third) = (segments.next()?, segments.next(), segments.next());
    if segments.next().is_some() {
        return None;
    }
    let (transport, place) = match (first, second, third) {
        ("info", None, None) => return Some(Place::Info),
        ("websocket", None, None) => (SockjsTransport::Websocket, Place::RawWebsocket),
        (server, Some(id), Some(wire)) if is_id(server) && is_id(id) => match wire {
            "websocket" => (SockjsTransport::Websocket, Place::SessionWebsocket),
            "xhr" => (
                SockjsTransport::Xhr,
                Place::Session {
                    id,
                    wire: Wire::Xhr,
                },
            ),
            "xhr_streaming" => (
                SockjsTransport::XhrStreaming,
                Place::Session {
                    id,
                    wire: Wire::XhrStreaming,
                },
            ),
            "xhr_send" => {
                let receives = sockjs.allows(SockjsTransport::Xhr)
                    || sockjs.allows(SockjsTransport::XhrStreaming);
                return receives.then_some(Place::Session {
                    id,
                    wire: Wire::XhrSend,
                });
            }
            _ => return None,
        },
        _ => return None,
    };
    sockjs.allows(transport).then_some(place)
}

fn is_id(segment: &str) -> bool {
    (1..=SESSION_ID_BYTES_MAX).contains(&segment.len()) && !segment.contains('.')
}

impl Route<'_> {
    /// The methods that are answered, as in an `Allow` header.
    pub(crate) fn allow(&self) -> &'static str {
        match self {
            Self::Page(_) | Self::Move => "GET, HEAD",
            Self::Endpoint(_, place) => place.allow(),
        }
    }

    /// Whether `method` is one of them.
    pub(crate) fn allows(&self, method: &Method) -> bool {
        self.allow()
            .split(", ")
            .any(|allowed| allowed == method.as_str())
    }
}

impl Place<'_> {
    fn allow(self) -> &'static str {
        match self {
            Self::Greeting | Self::Websocket | Self::RawWebsocket | Self::SessionWebsocket => "GET",
            Self::Info => "OPTIONS, GET",
            Self::Session { .. } => "OPTIONS, POST",
        }
    }
}

#[cfg(test)]
mod tests;
