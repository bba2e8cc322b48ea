//! A client's outbox with the encoding of its transport.

use std::sync::Arc;

use bytes::Bytes;
use bytes::BytesMut;

use crate::hub::format::Format;
use crate::hub::outbox::Hold;
use crate::hub::outbox::QueueFormat;
use crate::hub::outbox::QueueOutbox;
use crate::hub::outbox::SocketOutbox;
use crate::protocol;
use crate::protocol::Codec;
use crate::protocol::Event;
use crate::protocol::NotJson;
use crate::protocol::Push;
use crate::protocol::Reply;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::disconnect::DisconnectMessage;
use crate::protocol::frame::websocket;
use crate::protocol::frame::websocket::MessageKind;
use crate::protocol::frame::websocket::SocketFormat;

/// The outbox of one client, for either kind of transport.
#[derive(Clone)]
pub(crate) enum Member {
    /// A WebSocket.
    Socket(Arc<SocketOutbox>),
    /// A client over HTTP, whose transport takes messages from the queue.
    Queue(Arc<QueueOutbox>),
}

impl Member {
    pub(super) fn format(&self) -> Format {
        match self {
            Self::Queue(outbox) => match outbox.format() {
                QueueFormat::Quoted => Format::Quoted,
                QueueFormat::JsonLine => Format::JsonLine,
                QueueFormat::Delimited => Format::Delimited,
            },
            Self::Socket(outbox) => match outbox.format() {
                SocketFormat::Raw => Format::Raw,
                SocketFormat::Sockjs => Format::Sockjs,
                SocketFormat::Json => Format::Json,
                SocketFormat::Protobuf => Format::Protobuf,
            },
        }
    }

    /// The codec of a channel client's commands and replies.
    pub(crate) fn codec(&self) -> Codec {
        match self.format() {
            Format::Protobuf | Format::Delimited => Codec::Protobuf,
            _ => Codec::Json,
        }
    }

    /// Encodes `replies` as one message of this client's transport.
    ///
    /// # Errors
    ///
    /// [`NotJson`] if some data cannot be encoded in the client's codec.
    pub(crate) fn encode(&self, replies: &[Reply]) -> Result<Bytes, NotJson> {
        let mut body = BytesMut::new();
        for reply in replies {
            self.codec().append_reply(&mut body, reply)?;
        }
        Ok(self.framed(body))
    }

    /// The ping of the channel protocol.
    pub(crate) fn ping(&self) -> Bytes {
        let ping = match self.codec() {
            Codec::Json => protocol::json::PING,
            Codec::Protobuf => protocol::protobuf::PING,
        };
        self.framed(BytesMut::from(ping))
    }

    /// Sends a message that [`encode`](Self::encode) or [`ping`](Self::ping) has returned.
    pub(crate) fn send(&self, message: &Bytes) {
        match self {
            _ if message.is_empty() => {}
            Self::Socket(outbox) => outbox.send(message),
            Self::Queue(outbox) => outbox.push(message.clone()),
        }
    }

    /// Disconnects the client. Where there is no close frame, a push carries the reason.
    pub(crate) fn close(&self, disconnect_message: impl Into<DisconnectMessage>) {
        let DisconnectMessage { disconnect, reason } = disconnect_message.into();
        match self {
            Self::Socket(outbox) => outbox.close_with_reason(disconnect, &reason),
            Self::Queue(outbox) => {
                let push =
                    Self::disconnect_push(self.codec(), DisconnectMessage { disconnect, reason });
                outbox.close_with(disconnect, push);
            }
        }
    }

    /// The push that tells a client over HTTP why it is disconnected.
    pub(crate) fn disconnect_push(
        codec: Codec,
        disconnect_message: impl Into<DisconnectMessage>,
    ) -> Bytes {
        let DisconnectMessage { disconnect, reason } = disconnect_message.into();
        let push = protocol::Disconnect {
            code: disconnect.code.into(),
            reason: reason.into_owned(),
            reconnect: disconnect.may_reconnect(),
        };
        let push = Reply::push(Push::new("", Event::Disconnect(push)));
        let mut message = BytesMut::new();
        let written = codec.append_reply(&mut message, &push);
        debug_assert!(written.is_ok(), "it contains no client data");
        message.freeze()
    }

    /// Keeps what is queued of `channel`: newer publications do not replace it.
    pub(super) fn keep_latest(&self, channel: u64) {
        match self {
            Self::Socket(outbox) => outbox.keep_latest(channel),
            Self::Queue(outbox) => outbox.keep_latest(channel),
        }
    }

    /// Reserves the place of a reply and holds back what is sent after it, until it is [released](Self::release).
    pub(crate) fn hold(&self) -> Hold {
        match self {
            Self::Socket(outbox) => outbox.hold(),
            Self::Queue(outbox) => outbox.hold(),
        }
    }

    /// Sends `reply` in its place, nothing if it is empty, and what was held back after it.
    pub(crate) fn release(&self, hold: Hold, reply: &Bytes) {
        match self {
            Self::Socket(outbox) => outbox.release(hold, reply),
            Self::Queue(outbox) => outbox.release(hold, reply),
        }
    }

    /// Whether reading from the client is paused.
    pub(crate) fn is_reading_paused(&self) -> bool {
        match self {
            Self::Socket(outbox) => outbox.is_reading_paused(),
            Self::Queue(_) => false,
        }
    }

    /// Calls `visit` with everything that is queued for the client.
    pub(crate) fn each_queued(&self, visit: &mut dyn FnMut(&Bytes)) {
        match self {
            Self::Socket(outbox) => outbox.each_queued(visit),
            Self::Queue(outbox) => outbox.each_queued(visit),
        }
    }

    /// Disconnects the client as slow, and drops what is queued for it.
    pub(crate) fn shed(&self) {
        match self {
            Self::Socket(outbox) => outbox.close(Disconnect::SLOW),
            Self::Queue(outbox) => outbox.drop_as_slow(),
        }
    }

    /// What is queued for the client, in bytes.
    pub(crate) fn bytes_queued(&self) -> usize {
        match self {
            Self::Socket(outbox) => outbox.bytes_queued(),
            Self::Queue(outbox) => outbox.bytes_queued(),
        }
    }

    fn framed(&self, body: BytesMut) -> Bytes {
        let kind = match self.format() {
            Format::JsonLine | Format::Quoted | Format::Delimited => return body.freeze(),
            Format::Protobuf => MessageKind::Binary,
            Format::Raw | Format::Sockjs | Format::Json => MessageKind::Text,
        };
        let mut message = BytesMut::new();
        websocket::append_message(&mut message, kind, &body);
        message.freeze()
    }
}
