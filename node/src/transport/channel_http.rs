//! Channel clients over HTTP: one streaming response with all replies and pushes (`http_stream`, `sse`, `uni_sse`).
//!
//! Further messages of the client come in separate requests ([`emulation`](super::emulation)); clients of `uni_sse` only
//! receive.
//!
//! Invariant: dropping the response ends the client, and disconnecting the client ends the response, after the push with
//! the reason.

use std::pin::Pin;
use std::sync::Arc;

use ::http::HeaderMap;
use ::http::HeaderName;
use ::http::HeaderValue;
use ::http::Response;
use ::http::StatusCode;
use ::http::header;
use bytes::Bytes;
use bytes::BytesMut;
use futures_util::Stream;
use futures_util::stream;

use crate::client::channels::Admitted;
use crate::client::channels::ChannelClients;
use crate::client::channels::Direction;
use crate::client::channels::Origin;
use crate::config::Endpoint;
use crate::hub::Member;
use crate::hub::outbox::QueueFormat;
use crate::hub::outbox::QueueOutbox;
use crate::metrics::Transport;
use crate::protocol::Codec;
use crate::protocol::ConnectRequest;
use crate::protocol::disconnect::Disconnect;
use crate::transport::Body;

mod lines;
mod positions;

pub(crate) use lines::Lines;

use positions::Positions;

/// The header in which an EventSource repeats the id of the last event that it has received.
const LAST_EVENT_ID: &str = "last-event-id";

/// The code and reason of a disconnect, in a response without a body.
const DISCONNECT: HeaderName = HeaderName::from_static("causeway-disconnect");

/// Keeps an EventSource from reconnecting: the longest delay that it supports, about 24 days.
const NEVER_RETRY: &str = "2147483647";

/// A client's request for its streaming response.
pub(crate) struct Opening {
    /// The endpoint that it uses.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The headers of its request.
    pub(crate) headers: HeaderMap,
    /// The format of the response.
    pub(crate) lines: Lines,
    /// The client's first message.
    pub(crate) first: First,
}

/// A client's first message.
pub(crate) enum First {
    /// Commands, the first of which connects it.
    Commands(Bytes),
    /// The `connect` of a client that only receives.
    Connect(Box<ConnectRequest>),
}

/// Responds with a stream of all replies and pushes.
///
/// A client that only receives and must not reconnect gets a 204 instead, which keeps an EventSource from reconnecting.
///
/// # Cancel safety
///
/// Dropping this future ends the client.
pub(crate) async fn open(clients: &Arc<ChannelClients>, mut opening: Opening) -> Response<Body> {
    let lines = opening.lines;
    let is_one_way = lines == Lines::EventsOneWay;
    if let First::Connect(request) = &mut opening.first {
        recover(request, &opening.headers);
    }
    let bytes_max = opening.endpoint.outbox_bytes_max;
    let format = match lines {
        Lines::Delimited => QueueFormat::Delimited,
        Lines::Bare | Lines::Events | Lines::EventsOneWay => QueueFormat::JsonLine,
    };
    let outbox = Arc::new(QueueOutbox::with_format(format, bytes_max));
    let (transport, direction) = match lines {
        Lines::Bare | Lines::Delimited => (Transport::ChannelsHttpStream, Direction::TwoWay),
        Lines::Events => (Transport::ChannelsSse, Direction::TwoWay),
        Lines::EventsOneWay => (Transport::ChannelsUniSse, Direction::OneWay),
    };
    let admitted = clients.admit(Origin {
        endpoint: opening.endpoint,
        transport,
        direction,
        member: Member::Queue(Arc::clone(&outbox)),
        headers: opening.headers,
    });
    let client = Arc::clone(admitted.client());
    let connecting: Option<Connecting> = match opening.first {
        First::Commands(commands) => {
            let taken = client.take_input(commands);
            debug_assert!(taken.is_ok(), "the queue is empty");
            None
        }
        First::Connect(request) => Some(Box::pin(client.connect_one_way(*request))),
    };
    let mut streaming = Streaming {
        outbox,
        lines,
        connecting,
        positions: is_one_way.then(Box::default),
        admitted,
    };
    if is_one_way {
        streaming.wait().await;
        if let Some(disconnect) = streaming.outbox.disconnect()
            && !disconnect.may_reconnect()
        {
            return rejected(disconnect);
        }
    }
    let mut response = Response::new(Body::Stream(Box::pin(streaming.pieces())));
    let headers = response.headers_mut();
    let content_type = HeaderValue::from_static(lines.content_type());
    headers.insert(header::CONTENT_TYPE, content_type);
    // For proxies that buffer responses.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Adds the positions of the last event that the client has received, so that it recovers from there.
fn recover(request: &mut ConnectRequest, headers: &HeaderMap) {
    let seen = headers.get(LAST_EVENT_ID);
    let seen = seen.and_then(|id| Positions::parse(id.to_str().ok()?));
    if let Some(seen) = seen {
        request.subs.extend(seen.requests());
    }
}

fn rejected(disconnect: Disconnect) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::NO_CONTENT;
    let told = format!("{} {}", disconnect.code, disconnect.name);
    if let Ok(told) = HeaderValue::try_from(told) {
        response.headers_mut().insert(DISCONNECT, told);
    }
    response
}

type Connecting = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Streaming {
    outbox: Arc<QueueOutbox>,
    lines: Lines,
    /// The positions of a client of `uni_sse`, which are sent as event ids.
    positions: Option<Box<Positions>>,
    /// The `connect` of a client that only receives, while it is pending.
    connecting: Option<Connecting>,
    admitted: Admitted,
}

impl Drop for Streaming {
    fn drop(&mut self) {
        let client = self.admitted.client();
        if let Some(bytes_queued) = self.outbox.slow_bytes() {
            client.log_slow(bytes_queued);
        }
        if let Some(disconnect) = self.outbox.disconnect() {
            client.record_disconnect(disconnect);
        }
    }
}

impl Streaming {
    fn pieces(self) -> impl Stream<Item = Bytes> + Send {
        stream::unfold(Some(self), async |streaming| {
            let mut streaming = streaming?;
            streaming.wait().await;
            let messages = streaming.outbox.take(usize::MAX);
            if !messages.is_empty() {
                let piece = streaming.piece(&messages);
                return Some((piece, Some(streaming)));
            }
            // The outbox is closed. If the client was slow, its queue was dropped, and the push with the reason is sent
            // here.
            let disconnect_message = streaming.outbox.is_slow().then(|| {
                let disconnect_message =
                    Member::disconnect_push(streaming.lines.codec(), Disconnect::SLOW);
                streaming.piece(&[disconnect_message])
            });
            disconnect_message.map(|piece| (piece, None))
        })
    }

    /// Whether the client may reconnect after the response has ended.
    fn may_reconnect(&self) -> bool {
        let disconnect = self.outbox.disconnect();
        disconnect.is_none_or(Disconnect::may_reconnect)
    }

    /// Encodes messages for the response.
    fn piece(&mut self, messages: &[Bytes]) -> Bytes {
        let bytes: usize = messages.iter().map(|message| message.len() + 16).sum();
        let mut piece = BytesMut::with_capacity(bytes);
        for message in messages {
            let id = self.positions.as_mut().and_then(|positions| {
                let moves = positions.take(message);
                moves.then(|| positions.id()).flatten()
            });
            self.lines.append(&mut piece, message, id.as_deref());
        }
        if self.positions.is_some() && !self.may_reconnect() {
            lines::append_field(&mut piece, "retry", NEVER_RETRY);
            piece.extend_from_slice(b"\n");
        }
        piece.freeze()
    }

    /// Waits for messages or for the end, and runs the pending `connect` meanwhile.
    async fn wait(&mut self) {
        while let Some(connecting) = &mut self.connecting {
            tokio::select! {
                biased;
                () = connecting => self.connecting = None,
                () = self.outbox.wait() => return,
            }
        }
        self.outbox.wait().await;
    }
}

impl Lines {
    fn codec(self) -> Codec {
        match self {
            Self::Delimited => Codec::Protobuf,
            Self::Bare | Self::Events | Self::EventsOneWay => Codec::Json,
        }
    }
}
