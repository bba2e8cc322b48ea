//! What channel clients and this node say to each other: one set of types, two codecs.
//!
//! The messages are those of Centrifugo's client protocol, names and field numbers included, so that its
//! SDKs work unchanged. A client sends [`Command`]s, several in one WebSocket message or request body if
//! it likes, and gets a [`Reply`] to each that has an id, and [`Push`]es in between.
//!
//! Application data (`data`, `info`) is [`Bytes`] in both codecs: any bytes in
//! [`protobuf`], the text of one JSON value in [`json`]. It is never parsed into a tree, and what a
//! message of a read holds is not copied where the codec allows it.
//!
//! Invariant: what [`json`] writes is one line of valid JSON, whatever the data. Data that is no JSON
//! makes it fail, so that no client is ever sent broken JSON.

#[macro_use]
mod message;

mod codes;
mod command;
mod data;
mod info;
mod position;
mod push;
mod raw;
mod reply;
mod server_subs;
mod subscribe_result;

pub(crate) mod channel;
pub(crate) mod disconnect;
pub(crate) mod envelope;
pub(crate) mod frame;
pub(crate) mod handoff;
pub(crate) mod instance;
pub(crate) mod json;
pub(crate) mod protobuf;
pub(crate) mod publication;

use bytes::Bytes;

pub(crate) use codes::ErrorCode;
pub(crate) use codes::UnsubscribeCode;
pub(crate) use command::Command;
pub(crate) use command::ConnectRequest;
#[cfg(test)]
pub(crate) use command::FilterNode;
pub(crate) use command::HistoryRequest;
#[cfg(test)]
pub(crate) use command::PingRequest;
pub(crate) use command::PresenceRequest;
pub(crate) use command::PresenceStatsRequest;
pub(crate) use command::PublishRequest;
pub(crate) use command::RefreshRequest;
pub(crate) use command::Request;
pub(crate) use command::RpcRequest;
#[cfg(test)]
pub(crate) use command::SendRequest;
#[cfg(test)]
pub(crate) use command::StreamPosition;
pub(crate) use command::SubRefreshRequest;
pub(crate) use command::SubscribeRequest;
pub(crate) use command::UnsubscribeRequest;
pub(crate) use data::BadData;
pub(crate) use data::JSON_DEPTH_MAX;
pub(crate) use data::check_json;
pub(crate) use data::depth;
pub(crate) use info::ClientInfo;
pub(crate) use info::Publication;
pub(crate) use position::Epoch;
pub(crate) use position::Position;
pub(crate) use push::Connect;
pub(crate) use push::Disconnect;
pub(crate) use push::Event;
pub(crate) use push::Join;
pub(crate) use push::Leave;
pub(crate) use push::Push;
pub(crate) use push::Refresh;
pub(crate) use push::Subscribe;
pub(crate) use push::Unsubscribe;
pub(crate) use raw::present;
pub(crate) use reply::ConnectResult;
pub(crate) use reply::HistoryResult;
pub(crate) use reply::Outcome;
pub(crate) use reply::PingResult;
pub(crate) use reply::PresenceResult;
pub(crate) use reply::PresenceStatsResult;
pub(crate) use reply::ProtocolError;
pub(crate) use reply::PublishResult;
pub(crate) use reply::RefreshResult;
pub(crate) use reply::Reply;
pub(crate) use reply::RpcResult;
pub(crate) use reply::SubRefreshResult;
pub(crate) use reply::UnsubscribeResult;
pub(crate) use server_subs::ServerSub;
pub(crate) use subscribe_result::SubscribeResult;

/// How a client writes messages down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Codec {
    /// JSON, one message a line.
    Json,
    /// Protobuf, each message after its length.
    Protobuf,
}

/// Why bytes of a client are no commands.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MalformedCommand {
    /// The client is to be disconnected.
    #[error("expected commands in JSON, one after the other")]
    Json(#[source] serde_json::Error),
    /// The client is to be disconnected.
    #[error("expected commands in Protobuf, each after its length")]
    Protobuf(#[source] prost::DecodeError),
}

/// Some data of a message is no JSON, so that it cannot be written down as JSON.
#[derive(Debug, thiserror::Error)]
#[error("the data is not valid JSON")]
pub(crate) struct NotJson(#[source] pub(crate) serde_json::Error);

impl Codec {
    /// Takes the next command off `data`, what is left of one message of a client; nothing if none is left.
    ///
    /// One by one, so that a message of many small commands is never held in their decoded form, which is a hundred times
    /// as large.
    ///
    /// # Errors
    ///
    /// [`MalformedCommand`] if what stands there is not a command: nothing behind it can be read.
    pub(crate) fn take_command(
        self,
        data: &mut Bytes,
    ) -> Result<Option<Command>, MalformedCommand> {
        match self {
            Self::Json => json::take_command(data).map_err(MalformedCommand::Json),
            Self::Protobuf => protobuf::take_command(data).map_err(MalformedCommand::Protobuf),
        }
    }

    /// All commands of one message.
    #[cfg(any(fuzzing, test))]
    pub(crate) fn decode_commands(self, data: &[u8]) -> Result<Vec<Command>, MalformedCommand> {
        let mut data = Bytes::copy_from_slice(data);
        let mut commands = Vec::new();
        while let Some(command) = self.take_command(&mut data)? {
            commands.push(command);
        }
        Ok(commands)
    }

    /// Appends `reply`, so that several may stand one after the other.
    ///
    /// # Errors
    ///
    /// [`NotJson`] if data in it cannot be written in this codec; `out` is as it was.
    pub(crate) fn append_reply(
        self,
        out: &mut bytes::BytesMut,
        reply: &Reply,
    ) -> Result<(), NotJson> {
        match self {
            Self::Json => json::append_reply(out, reply),
            Self::Protobuf => {
                protobuf::append_reply(out, reply);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
