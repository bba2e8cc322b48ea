//! Where one client gets what it is sent, whatever its wire.

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
use crate::protocol::disconnect::Farewell;
use crate::protocol::frame::websocket;
use crate::protocol::frame::websocket::MessageKind;
use crate::protocol::frame::websocket::SocketFormat;

/// Where a client of a channel gets its messages.
#[derive(Clone)]
pub(crate) enum Member {
    /// A WebSocket.
    Socket(Arc<SocketOutbox>),
    /// A client over HTTP, whose transport takes what waits there.
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

    /// How a channel client writes its commands and reads its replies.
    pub(crate) fn codec(&self) -> Codec {
        match self.format() {
            Format::Protobuf | Format::Delimited => Codec::Protobuf,
            _ => Codec::Json,
        }
    }

    /// Writes `replies` down as one message of this client's wire.
    ///
    /// # Errors
    ///
    /// [`NotJson`] if some data cannot be written in the client's codec.
    pub(crate) fn encode(&self, replies: &[Reply]) -> Result<Bytes, NotJson> {
        let mut body = BytesMut::new();
        for reply in replies {
            self.codec().append_reply(&mut body, reply)?;
        }
        Ok(self.framed(body))
    }

    /// The message that asks a channel client whether it is there.
    pub(crate) fn ping(&self) -> Bytes {
        let ping = match self.codec() {
            Codec::Json => protocol::json::PING,
            Codec::Protobuf => protocol::protobuf::PING,
        };
        self.framed(BytesMut::from(ping))
    }

    /// Sends what [`encode`](Self::encode) or [`ping`](Self::ping) has made.
    pub(crate) fn send(&self, message: &Bytes) {
        match self {
            _ if message.is_empty() => {}
            Self::Socket(outbox) => outbox.send(message),
            Self::Queue(outbox) => outbox.push(message.clone()),
        }
    }

    /// Sends the client away: where there is no close frame, a push says why.
    pub(crate) fn close(&self, farewell: impl Into<Farewell>) {
        let Farewell { disconnect, reason } = farewell.into();
        match self {
            Self::Socket(outbox) => outbox.close_saying(disconnect, &reason),
            Self::Queue(outbox) => {
                let told = Self::farewell(self.codec(), Farewell { disconnect, reason });
                outbox.close_with(disconnect, told);
            }
        }
    }

    /// What tells a client over HTTP why it is sent away.
    pub(crate) fn farewell(codec: Codec, farewell: impl Into<Farewell>) -> Bytes {
        let Farewell { disconnect, reason } = farewell.into();
        let told = protocol::Disconnect {
            code: disconnect.code.into(),
            reason: reason.into_owned(),
            reconnect: disconnect.may_reconnect(),
        };
        let push = Reply::push(Push::new("", Event::Disconnect(told)));
        let mut message = BytesMut::new();
        let written = codec.append_reply(&mut message, &push);
        debug_assert!(written.is_ok(), "it holds no data of others");
        message.freeze()
    }

    /// Keeps what waits of `channel` as it is: what is newer stands behind it.
    pub(super) fn keep_latest(&self, channel: u64) {
        match self {
            Self::Socket(outbox) => outbox.keep_latest(channel),
            Self::Queue(outbox) => outbox.keep_latest(channel),
        }
    }

    /// Keeps a place for a reply and holds back what is sent behind it, until it is [released](Self::release).
    pub(crate) fn hold(&self) -> Hold {
        match self {
            Self::Socket(outbox) => outbox.hold(),
            Self::Queue(outbox) => outbox.hold(),
        }
    }

    /// Sends `reply` in its place, nothing if it is empty, and what was held back behind it.
    pub(crate) fn release(&self, hold: Hold, reply: &Bytes) {
        match self {
            Self::Socket(outbox) => outbox.release(hold, reply),
            Self::Queue(outbox) => outbox.release(hold, reply),
        }
    }

    /// Whether what the client sends is not read for now.
    pub(crate) fn is_reading_paused(&self) -> bool {
        match self {
            Self::Socket(outbox) => outbox.is_reading_paused(),
            Self::Queue(_) => false,
        }
    }

    /// Looks at all that waits for the client.
    pub(crate) fn each_queued(&self, look: &mut dyn FnMut(&Bytes)) {
        match self {
            Self::Socket(outbox) => outbox.each_queued(look),
            Self::Queue(outbox) => outbox.each_queued(look),
        }
    }

    /// Sends the client away as slow, and drops what waits for it.
    pub(crate) fn shed(&self) {
        match self {
            Self::Socket(outbox) => outbox.close(Disconnect::SLOW),
            Self::Queue(outbox) => outbox.give_up(),
        }
    }

    /// What waits for the client, in bytes.
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
