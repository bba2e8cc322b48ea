//! From a path to what is there: parsed once, and nowhere else.
//!
//! The query never takes part. Percent-encoding is not decoded: a session id is the bytes that the
//! client chose.

use http::Method;

use crate::config::ChannelTransport;
use crate::config::ChannelsEndpoint;
use crate::config::Endpoint;
use crate::config::Protocol;
use crate::config::Sockjs;
use crate::config::SockjsTransport;
use crate::server::routing::channels::ChannelsPlace;
use crate::server::routing::page::Asset;
use crate::server::routing::wire::Wire;

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
    /// The SockJS greeting.
    Greeting,
    /// `/info` of SockJS.
    Info,
    /// The page that old browsers load to reach another site.
    Iframe,
    /// All of a WebSocket endpoint.
    Websocket,
    /// A WebSocket of a SockJS endpoint without SockJS frames.
    RawWebsocket,
    /// The WebSocket of an endpoint for channels.
    ChannelsWebsocket,
    /// What an endpoint for channels has besides.
    Channels(ChannelsPlace),
    /// A SockJS session over a WebSocket; its id means nothing.
    SessionWebsocket,
    /// A request of a SockJS session over HTTP.
    Session {
        /// The session, as the client named it.
        id: &'a str,
        /// What the request does with it.
        wire: Wire,
    },
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

/// The rest of `path` after `prefix`: nothing, or something that begins with a slash.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix)
        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn place<'a>(rest: &'a str, protocol: &Protocol) -> Option<Place<'a>> {
    let sockjs = match protocol {
        Protocol::Sockjs(sockjs) => sockjs,
        Protocol::Websocket => return matches!(rest, "" | "/").then_some(Place::Websocket),
        Protocol::Channels(channels) => return channels_place(rest, channels),
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
    let place = match (first, second, third) {
        ("info", None, None) => Place::Info,
        ("websocket", None, None) => Place::RawWebsocket,
        (page, None, None) if is_iframe(page) => Place::Iframe,
        (server, Some(id), Some("websocket")) if is_id(server) && is_id(id) => {
            Place::SessionWebsocket
        }
        (server, Some(id), Some(wire)) if is_id(server) && is_id(id) => Place::Session {
            id,
            wire: Wire::find(wire)?,
        },
        _ => return None,
    };
    is_served(place, sockjs).then_some(place)
}

fn channels_place<'a>(rest: &'a str, channels: &ChannelsEndpoint) -> Option<Place<'a>> {
    let rest = rest.strip_prefix('/')?;
    match rest.strip_suffix('/').unwrap_or(rest) {
        "websocket" if channels.allows(ChannelTransport::Websocket) => {
            Some(Place::ChannelsWebsocket)
        }
        rest => ChannelsPlace::find(rest)
            .filter(|place| place.is_served(|transport| channels.allows(transport)))
            .map(Place::Channels),
    }
}

/// Whether the endpoint's settings leave anything there.
fn is_served(place: Place<'_>, sockjs: &Sockjs) -> bool {
    match place {
        Place::Greeting
        | Place::Info
        | Place::Websocket
        | Place::ChannelsWebsocket
        | Place::Channels(_) => true,
        Place::Iframe => sockjs.client_script.is_some(),
        Place::RawWebsocket | Place::SessionWebsocket => sockjs.allows(SockjsTransport::Websocket),
        Place::Session { wire, .. } => wire.is_served(sockjs),
    }
}

/// Whether `segment` is `iframe.html`, with a version or without.
fn is_iframe(segment: &str) -> bool {
    let version = segment
        .strip_prefix("iframe")
        .and_then(|rest| rest.strip_suffix(".html"));
    version.is_some_and(|version| {
        let fits = |byte: u8| {
            byte.is_ascii_digit() || byte.is_ascii_lowercase() || matches!(byte, b'-' | b'.' | b'_')
        };
        version.bytes().all(fits)
    })
}

fn is_id(segment: &str) -> bool {
    (1..=SESSION_ID_BYTES_MAX).contains(&segment.len()) && !segment.contains('.')
}

impl Route<'_> {
    /// The methods that are allowed, as in an `Allow` header.
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
            Self::Greeting
            | Self::Iframe
            | Self::Websocket
            | Self::RawWebsocket
            | Self::ChannelsWebsocket
            | Self::SessionWebsocket => "GET",
            Self::Channels(place) => place.allow(),
            Self::Info => "OPTIONS, GET",
            Self::Session { wire, .. } => wire.allow(),
        }
    }
}

#[cfg(test)]
mod tests;
