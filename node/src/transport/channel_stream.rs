//! Channel clients without a WebSocket: one answer that does not end, in which they are told everything.
//!
//! What they say after their first message comes in requests of their own ([`emulation`](super::emulation)), or not at
//! all, if they only listen.
//!
//! Invariant: the client is gone when its answer is dropped, and its answer ends when the client is sent away, after
//! the push that says why.

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

/// What an EventSource sends of the last event that it has seen.
const LAST_EVENT_ID: &str = "last-event-id";

/// Says to a client that is told nothing more why that is, where no body can: code and reason.
const DISCONNECT: HeaderName = HeaderName::from_static("causeway-disconnect");

/// Keeps an EventSource from coming back: the longest that it can wait, some 24 days.
const NEVER_RETRY: &str = "2147483647";

/// A client that has asked for its stream.
pub(crate) struct Opening {
    /// By which rules it lives.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The headers of its request.
    pub(crate) headers: HeaderMap,
    /// How what it is told stands in the answer.
    pub(crate) lines: Lines,
    /// What it says first.
    pub(crate) first: First,
}

/// What a client says with the request for its stream.
pub(crate) enum First {
    /// Commands, the first of which connects it.
    Commands(Bytes),
    /// How it wants to be connected; it will not say anything else.
    Connect(Box<ConnectRequest>),
}

/// Answers with all that the client is told.
///
/// A client that only listens and is refused for good is answered without a stream: by 204, which keeps an
/// EventSource from coming back.
///
/// # Cancel safety
///
/// Dropping this future means that the client went away.
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
            debug_assert!(taken.is_ok(), "the first one finds room");
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
            return refused(disconnect);
        }
    }
    let mut response = Response::new(Body::Stream(Box::pin(streaming.pieces())));
    let headers = response.headers_mut();
    let content_type = HeaderValue::from_static(lines.content_type());
    headers.insert(header::CONTENT_TYPE, content_type);
    // For proxies that gather an answer before they pass it on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Lets a client that has seen events before go on behind the last one.
fn recover(request: &mut ConnectRequest, headers: &HeaderMap) {
    let seen = headers.get(LAST_EVENT_ID);
    let seen = seen.and_then(|id| Positions::parse(id.to_str().ok()?));
    if let Some(seen) = seen {
        request.subs.extend(seen.requests());
    }
}

fn refused(disconnect: Disconnect) -> Response<Body> {
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
    /// Where a client has got to that can only say so with its next request.
    positions: Option<Box<Positions>>,
    /// A client that only listens, until it is connected.
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
            client.was_sent_away(disconnect);
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
            // It is told no more. What waited for a slow one is lost, and so is the push that would have said why.
            let farewell = streaming.outbox.is_slow().then(|| {
                let farewell = Member::farewell(streaming.lines.codec(), Disconnect::SLOW);
                streaming.piece(&[farewell])
            });
            farewell.map(|piece| (piece, None))
        })
    }

    /// Whether the client is to come back by itself once it is told no more.
    fn may_reconnect(&self) -> bool {
        let disconnect = self.outbox.disconnect();
        disconnect.is_none_or(Disconnect::may_reconnect)
    }

    /// Several messages as they go on the wire.
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

    /// Waits for something to tell, or for the end, and connects the client meanwhile.
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
