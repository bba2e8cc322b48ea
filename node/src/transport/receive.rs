//! Receivers over HTTP: the response to a poll has one frame, a streaming response has frames up to a limit.
//!
//! Invariant: a receiver whose response did not end in order is dropped unfinished, which interrupts its session.

use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use futures_util::Stream;
use futures_util::StreamExt;
use futures_util::stream;
use http::HeaderValue;
use http::Response;
use http::StatusCode;
use http::header;

use crate::client::session::Frame;
use crate::client::session::ReceiveError;
use crate::client::session::Receiver;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::frame::sockjs;
use crate::transport::Body;

/// When a client that was rejected by a full node may retry.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// How one transport encodes the frames of a session.
pub(crate) trait Framing: Send + 'static {
    /// The media type of the response.
    fn content_type(&self) -> &'static str;

    /// Sent before the first frame; may be empty.
    fn prelude(&self) -> Bytes;

    /// Appends `frame` in this encoding.
    fn append(&self, out: &mut BytesMut, frame: &[u8]);
}

/// Responds to a poll: waits for one frame.
///
/// # Cancel safety
///
/// Dropping this future means that the client has disconnected, and interrupts the session.
pub(crate) async fn poll(
    receiver: Result<Receiver, ReceiveError>,
    framing: impl Framing,
) -> Response<Bytes> {
    let frame = match receiver {
        Ok(mut receiver) => {
            let frame = receiver.next().await;
            receiver.finish();
            frame
        }
        Err(ReceiveError::Busy) => Frame::Close(Disconnect::BUSY),
        Err(error @ (ReceiveError::NodeFull | ReceiveError::AddressFull)) => return full(error),
    };
    response(framing.content_type(), encode(&framing, &frame))
}

/// Responds with a stream of frames, until their sum reaches `bytes_max`, or the session closes or is to be handed off.
///
/// The frame that reaches the limit is sent whole.
pub(crate) fn stream(
    receiver: Result<Receiver, ReceiveError>,
    framing: impl Framing + Sync,
    bytes_max: usize,
) -> Response<Body> {
    let state = match receiver {
        Ok(receiver) => Streaming::Live {
            receiver,
            bytes_left: bytes_max,
        },
        Err(ReceiveError::Busy) => Streaming::Rejected,
        Err(error @ (ReceiveError::NodeFull | ReceiveError::AddressFull)) => {
            return full(error).map(Body::Whole);
        }
    };
    let content_type = framing.content_type();
    let prelude = Some(framing.prelude()).filter(|prelude| !prelude.is_empty());
    let pieces = stream::iter(prelude).chain(frames(state, framing));
    response(content_type, Body::Stream(Box::pin(pieces)))
}

/// The state of a streaming response between two frames.
enum Streaming {
    Live {
        receiver: Receiver,
        bytes_left: usize,
    },
    /// Another receiver is attached: sends one close frame, then ends.
    Rejected,
    Ended,
}

fn frames(state: Streaming, framing: impl Framing + Sync) -> impl Stream<Item = Bytes> + Send {
    stream::unfold((state, framing), async |(state, framing)| {
        let (mut receiver, bytes_left) = match state {
            Streaming::Live {
                receiver,
                bytes_left,
            } => (receiver, bytes_left),
            Streaming::Rejected => {
                let piece = encode(&framing, &Frame::Close(Disconnect::BUSY));
                return Some((piece, (Streaming::Ended, framing)));
            }
            Streaming::Ended => return None,
        };
        let frame = receiver.next().await;
        let piece = encode(&framing, &frame);
        let bytes_left = bytes_left.saturating_sub(piece.len());
        let state = if bytes_left == 0 || matches!(frame, Frame::Close(_) | Frame::Leave) {
            receiver.finish();
            Streaming::Ended
        } else {
            Streaming::Live {
                receiver,
                bytes_left,
            }
        };
        Some((piece, (state, framing)))
    })
}

fn encode(framing: &impl Framing, frame: &Frame) -> Bytes {
    let mut bare = BytesMut::new();
    match frame {
        Frame::Open => bare.extend_from_slice(sockjs::OPEN.as_bytes()),
        Frame::Messages(quoted) => {
            sockjs::append_array(&mut bare, quoted.iter().map(|message| &message[..]));
        }
        Frame::Heartbeat | Frame::Leave => bare.extend_from_slice(sockjs::HEARTBEAT.as_bytes()),
        Frame::Close(disconnect) => {
            sockjs::append_close(&mut bare, disconnect.code, disconnect.reason);
        }
    }
    let mut piece = BytesMut::with_capacity(bare.len() + 16);
    framing.append(&mut piece, &bare);
    piece.freeze()
}

fn response<B>(content_type: &'static str, body: B) -> Response<B> {
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

fn full(error: ReceiveError) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(format!("{error}\n")));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
        .headers_mut()
        .insert(header::RETRY_AFTER, RETRY_AFTER.as_secs().into());
    response
}
