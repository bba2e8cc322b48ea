//! Channel endpoints over plain HTTP: streams, and the requests in which their clients send commands.

use std::error::Error;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::HeaderMap;
use http::Method;
use http::Response;
use http::StatusCode;
use http::header;
use http::request::Parts;

use crate::client::channels::ChannelClients;
use crate::cluster::control::Control;
use crate::config::ChannelTransport;
use crate::config::Endpoint;
use crate::logging;
use crate::protocol::Codec;
use crate::protocol::ConnectRequest;
use crate::server::routing::body;
use crate::server::routing::body::BodyLimits;
use crate::server::routing::cors;
use crate::server::routing::mount::Mount;
use crate::server::routing::text;
use crate::transport::Body;
use crate::transport::channel_http;
use crate::transport::channel_http::First;
use crate::transport::channel_http::Lines;
use crate::transport::channel_http::Opening;
use crate::transport::emulation::Emulated;
use crate::transport::form;

/// The query parameter that holds the first commands of a client.
const FIRST: &str = "cf_connect";

/// What a path below an endpoint for channels names, but for the WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelsPlace {
    /// A stream of replies and pushes, one after the other.
    HttpStream,
    /// Server-sent events, with commands in separate requests.
    Sse,
    /// Server-sent events in one direction: the client sends only the connect request.
    UniSse,
    /// Requests in which clients of the first two send commands.
    Emulation,
}

impl ChannelsPlace {
    /// The place that a segment names.
    pub(super) fn find(segment: &str) -> Option<Self> {
        match segment {
            "http_stream" => Some(Self::HttpStream),
            "sse" => Some(Self::Sse),
            "uni_sse" => Some(Self::UniSse),
            "emulation" => Some(Self::Emulation),
            _ => None,
        }
    }

    /// Whether one of these transports needs it.
    pub(super) fn is_served(self, allows: impl Fn(ChannelTransport) -> bool) -> bool {
        match self {
            Self::HttpStream => allows(ChannelTransport::HttpStream),
            Self::Sse => allows(ChannelTransport::Sse),
            Self::UniSse => allows(ChannelTransport::UniSse),
            Self::Emulation => {
                allows(ChannelTransport::HttpStream) || allows(ChannelTransport::Sse)
            }
        }
    }

    /// The largest request body, in bytes. Emulation carries the commands in a JSON string, where escaping doubles
    /// some characters.
    fn body_bytes_max(self, endpoint: &Endpoint) -> usize {
        const ENVELOPE: usize = 1 << 10;
        let bytes_max = endpoint.received_bytes_max();
        match self {
            Self::HttpStream | Self::Sse | Self::UniSse => bytes_max,
            Self::Emulation => 2 * bytes_max + ENVELOPE,
        }
    }

    pub(super) fn allow(self) -> &'static str {
        match self {
            Self::HttpStream | Self::Emulation => "OPTIONS, POST",
            Self::Sse | Self::UniSse => "OPTIONS, GET, POST",
        }
    }
}

/// What channel clients over HTTP need.
pub(crate) struct ChannelsHttp {
    /// Creates them.
    pub(crate) clients: Arc<ChannelClients>,
    /// Forwards commands to clients of other nodes.
    pub(crate) control: Arc<Control>,
}

/// Why a request opens no stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum BadRequest {
    #[error("expected JSON: server-sent events have no Protobuf")]
    Protobuf,
    #[error(
        "expected the commands of the client, connect first, in the body or in the parameter cf_connect"
    )]
    NoCommands,
    #[error("expected the connect request in JSON, such as {{\"token\": \"...\"}}")]
    NoConnect,
    #[error("the commands are larger than the setting commands_size of the endpoint")]
    TooLarge,
    #[error("the connect request is larger than the setting message_size of the endpoint")]
    ConnectTooLarge,
}

impl BadRequest {
    fn status(self) -> StatusCode {
        match self {
            Self::Protobuf => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::NoCommands | Self::NoConnect => StatusCode::BAD_REQUEST,
            Self::TooLarge | Self::ConnectTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

impl ChannelsHttp {
    /// Responds to a request at `place`.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future means that the client went away: its commands are dropped unless they have been queued already.
    pub(super) async fn respond<B>(
        &self,
        mount: &Mount,
        place: ChannelsPlace,
        parts: &Parts,
        body: B,
        limits: BodyLimits,
    ) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut response = if parts.method == Method::OPTIONS {
            preflight(place.allow())
        } else {
            let limits = BodyLimits {
                bytes_max: place.body_bytes_max(&mount.endpoint),
                ..limits
            };
            let mut response = match body::read(body, limits).await {
                Ok(body) => self.respond_whole(mount, place, parts, body).await,
                Err(error) => {
                    log_if_too_large(error.status(), place, &mount.endpoint);
                    text(error.status(), format!("{error}\n"))
                }
            };
            cors::no_cache(response.headers_mut());
            response
        };
        cors::share(&parts.headers, response.headers_mut());
        response
    }

    async fn respond_whole(
        &self,
        mount: &Mount,
        place: ChannelsPlace,
        parts: &Parts,
        body: Bytes,
    ) -> Response<Body> {
        let codec = codec(&parts.headers);
        let lines = match (place, codec) {
            (ChannelsPlace::HttpStream, Codec::Json) => Lines::Bare,
            (ChannelsPlace::HttpStream, Codec::Protobuf) => Lines::Delimited,
            (ChannelsPlace::Sse, Codec::Json) => Lines::Events,
            (ChannelsPlace::UniSse, Codec::Json) => Lines::EventsOneWay,
            (ChannelsPlace::Sse | ChannelsPlace::UniSse, Codec::Protobuf) => {
                return refused(BadRequest::Protobuf);
            }
            (ChannelsPlace::Emulation, codec) => {
                let read = Emulated::read(&body, codec, mount.endpoint.received_bytes_max());
                return match read {
                    Ok(said) => empty(said.say(&self.control).await),
                    Err(error) => {
                        log_if_too_large(error.status(), place, &mount.endpoint);
                        text(error.status(), format!("{error}\n"))
                    }
                };
            }
        };
        let said = if parts.method == Method::GET {
            let query = parts.uri.query().unwrap_or_default();
            form::field(query.as_bytes(), FIRST).map_or_else(Bytes::new, Bytes::from)
        } else {
            body
        };
        match first(lines, said, &mount.endpoint) {
            Ok(first) => {
                let opening = Opening {
                    endpoint: Arc::clone(&mount.endpoint),
                    headers: parts.headers.clone(),
                    lines,
                    first,
                };
                channel_http::open(&self.clients, opening).await
            }
            Err(error) => {
                log_if_too_large(error.status(), place, &mount.endpoint);
                refused(error)
            }
        }
    }
}

fn log_if_too_large(status: StatusCode, place: ChannelsPlace, endpoint: &Endpoint) {
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        let (setting, bytes_max) = match place {
            ChannelsPlace::UniSse => ("message_size", endpoint.message_bytes_max),
            ChannelsPlace::HttpStream | ChannelsPlace::Sse | ChannelsPlace::Emulation => {
                (endpoint.received_setting(), endpoint.received_bytes_max())
            }
        };
        logging::too_large(&endpoint.path, setting, bytes_max);
    }
}

/// The first commands of a client. A one-way client may send none.
fn first(lines: Lines, said: Bytes, endpoint: &Endpoint) -> Result<First, BadRequest> {
    match lines {
        Lines::EventsOneWay if endpoint.message_bytes_max < said.len() => {
            Err(BadRequest::ConnectTooLarge)
        }
        _ if endpoint.received_bytes_max() < said.len() => Err(BadRequest::TooLarge),
        Lines::Bare | Lines::Delimited | Lines::Events if said.is_empty() => {
            Err(BadRequest::NoCommands)
        }
        Lines::Bare | Lines::Delimited | Lines::Events => Ok(First::Commands(said)),
        Lines::EventsOneWay if said.is_empty() => Ok(First::Connect(Box::default())),
        Lines::EventsOneWay => serde_json::from_slice::<ConnectRequest>(&said)
            .map(|request| First::Connect(Box::new(request)))
            .map_err(|_| BadRequest::NoConnect),
    }
}

/// The codec of the request and of its response.
fn codec(headers: &HeaderMap) -> Codec {
    match headers.get(header::CONTENT_TYPE) {
        Some(media) if media == "application/octet-stream" => Codec::Protobuf,
        _ => Codec::Json,
    }
}

fn refused(error: BadRequest) -> Response<Body> {
    text(error.status(), format!("{error}\n"))
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    response
}

fn preflight(methods: &'static str) -> Response<Body> {
    let mut response = empty(StatusCode::NO_CONTENT);
    cors::preflight(methods, SystemTime::now(), response.headers_mut());
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_stream_begins_with_what_its_client_says() {
        let text = "endpoints: [{path: /a, mode: channels, message_size: 40B, commands_size: 60B}]\n\
                    channels: {namespaces: [{name: a}]}";
        let config = Config::parse("node.yaml", text).unwrap();
        let endpoint = &config.endpoints[0];
        let first =
            |lines, said: &'static str| first(lines, Bytes::from_static(said.as_bytes()), endpoint);
        for lines in [Lines::Bare, Lines::Delimited, Lines::Events] {
            assert!(matches!(first(lines, "{\"id\":1}"), Ok(First::Commands(_))));
            assert!(matches!(first(lines, ""), Err(BadRequest::NoCommands)));
            let several = "{\"id\":1}{\"id\":2}{\"id\":3}{\"id\":4}{\"id\":5}{\"id\":6}";
            assert!(matches!(first(lines, several), Ok(First::Commands(_))));
            let too_many =
                "{\"id\":1}{\"id\":2}{\"id\":3}{\"id\":4}{\"id\":5}{\"id\":6}{\"id\":7}{}{}{}";
            assert!(matches!(first(lines, too_many), Err(BadRequest::TooLarge)));
        }
        let one_way = |said| match first(Lines::EventsOneWay, said) {
            Ok(First::Connect(request)) => Ok(request.token),
            Ok(First::Commands(_)) => panic!("it only listens"),
            Err(error) => Err(error),
        };
        assert_eq!(one_way(""), Ok(String::new()));
        assert_eq!(one_way("{}"), Ok(String::new()));
        assert_eq!(one_way("{\"token\":\"t\"}"), Ok("t".to_owned()));
        assert_eq!(one_way("{\"token\":"), Err(BadRequest::NoConnect));
        assert_eq!(one_way("token"), Err(BadRequest::NoConnect));
        let long = "{\"token\":\"0123456789012345678901234567890\"}";
        assert_eq!(one_way(long), Err(BadRequest::ConnectTooLarge));
    }

    #[test]
    fn a_place_is_served_with_the_transports_that_need_it() {
        use ChannelTransport::{HttpStream, Sse, UniSse, Websocket};
        for (allowed, served) in [
            (&[Websocket][..], &[][..]),
            (&[HttpStream], &["http_stream", "emulation"]),
            (&[Sse], &["sse", "emulation"]),
            (&[UniSse], &["uni_sse"]),
        ] {
            for segment in ["http_stream", "sse", "uni_sse", "emulation"] {
                let place = ChannelsPlace::find(segment).unwrap();
                let is_served = place.is_served(|transport| allowed.contains(&transport));
                assert_eq!(
                    is_served,
                    served.contains(&segment),
                    "{segment} {allowed:?}"
                );
            }
        }
        assert_eq!(ChannelsPlace::find("websocket"), None);
    }
}
