//! What a channel client says that is told over a stream: in requests of their own, which may come to any node.
//!
//! A session's id names the node that holds it. It is a secret of its own, told to nobody but the client: the id by
//! which others know the client opens nothing here.

use std::fmt;

use ::http::StatusCode;
use bytes::Bytes;
use prost::Message as _;
use serde::Deserialize;

use crate::cluster::control::Control;
use crate::cluster::directory::Order;
use crate::cluster::directory::Target;
use crate::protocol::Codec;
use crate::protocol::instance::ClientId;

/// One request, as JSON has it. The node is in the session's id too, so what `node` says does not count.
#[derive(Deserialize)]
struct Json {
    session: String,
    data: String,
}

/// The same as Protobuf has it: `EmulationRequest` of the protocol, without its field 1, `node`.
#[derive(prost::Message)]
struct Protobuf {
    #[prost(string, tag = "2")]
    session: String,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

/// What a client says, and where it is heard.
pub(crate) struct Emulated {
    session: ClientId,
    commands: Bytes,
}

/// The session's id is a secret.
impl fmt::Debug for Emulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Emulated").finish_non_exhaustive()
    }
}

/// Why a request says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadEmulation {
    /// The client would not understand itself.
    #[error("expected {{\"session\": \"...\", \"node\": \"...\", \"data\": \"...\"}}")]
    NotJson,
    /// The same in Protobuf.
    #[error("expected an EmulationRequest in Protobuf")]
    NotProtobuf,
    /// More than a client of the endpoint may send at once.
    #[error("expected at most {max} bytes in `data` (setting commands_size), found {found}")]
    TooLarge {
        /// The limit.
        max: usize,
        /// What came.
        found: usize,
    },
    /// It was made up.
    #[error("no node gives out such a `session`")]
    NoSession,
}

impl BadEmulation {
    /// The status that says so: none of those at which a client gives its stream up.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::NotJson | Self::NotProtobuf | Self::NoSession => StatusCode::BAD_REQUEST,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

impl Emulated {
    /// Reads a request that is written as `codec` says, with at most `commands_bytes_max` of what the client says.
    ///
    /// # Errors
    ///
    /// [`BadEmulation`] says what would be right.
    pub(crate) fn read(
        body: &Bytes,
        codec: Codec,
        commands_bytes_max: usize,
    ) -> Result<Self, BadEmulation> {
        let (session, commands) = match codec {
            Codec::Json => {
                let read = serde_json::from_slice(body);
                let Json { session, data } = read.map_err(|_| BadEmulation::NotJson)?;
                (session, data.into())
            }
            Codec::Protobuf => {
                let read = Protobuf::decode(body.clone());
                let Protobuf { session, data } = read.map_err(|_| BadEmulation::NotProtobuf)?;
                (session, data)
            }
        };
        if commands_bytes_max < commands.len() {
            return Err(BadEmulation::TooLarge {
                max: commands_bytes_max,
                found: commands.len(),
            });
        }
        let session = ClientId::parse(&session).map_err(|_| BadEmulation::NoSession)?;
        Ok(Self { session, commands })
    }

    /// Hands it to the client, on whatever node it is; the status tells the client how that went.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future may leave the client's message said or not.
    pub(crate) async fn say(self, control: &Control) -> StatusCode {
        let target = Target::Session {
            user: String::new(),
            session: self.session,
        };
        match control.order(target, Order::Input(self.commands)).await {
            Ok(given) if 0 < given.taken => StatusCode::NO_CONTENT,
            // The session has gone, perhaps with its node: the client gives its stream up, if it has not yet ended.
            Ok(given) if given.busy == 0 => StatusCode::NOT_FOUND,
            // A command is lost, and only a new connection makes up for that.
            Ok(_) => StatusCode::SERVICE_UNAVAILABLE,
            Err(error) => {
                tracing::debug!(%error, "what a client said did not reach its node");
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &str = "0123456789abcdef-0123456789abcdef0123456789abcdef";

    #[test]
    fn a_request_names_its_session_and_says_something() {
        let body = format!("{{\"session\":\"{SESSION}\",\"node\":\"n\",\"data\":\"{{}}\\n{{}}\"}}");
        let protobuf = Protobuf {
            session: SESSION.to_owned(),
            data: Bytes::from_static(b"\x04\xff\x01\x00"),
        };
        let read = Emulated::read(&protobuf.encode_to_vec().into(), Codec::Protobuf, 4).unwrap();
        assert_eq!(read.session.to_string(), SESSION);
        assert_eq!(read.commands, &b"\x04\xff\x01\x00"[..]);
        let read = Emulated::read(&body.into(), Codec::Json, 5).unwrap();
        assert_eq!(read.session.to_string(), SESSION);
        assert_eq!(read.commands, "{}\n{}");
        assert!(!format!("{read:?}").contains("0123"));
        let long = Protobuf {
            session: SESSION.to_owned(),
            data: Bytes::from_static(b"123456"),
        };
        let long = long.encode_to_vec();
        let too_large = BadEmulation::TooLarge { max: 5, found: 6 };
        for (codec, body, expected) in [
            (Codec::Json, &b""[..], BadEmulation::NotJson),
            (Codec::Json, b"[]", BadEmulation::NotJson),
            (Codec::Json, b"{\"session\":\"a\"}", BadEmulation::NotJson),
            (
                Codec::Json,
                b"{\"session\":1,\"data\":\"\"}",
                BadEmulation::NotJson,
            ),
            (
                Codec::Json,
                b"{\"session\":\"\",\"data\":\"\"}",
                BadEmulation::NoSession,
            ),
            (
                Codec::Json,
                b"{\"session\":\"a-b\",\"data\":\"\"}",
                BadEmulation::NoSession,
            ),
            (
                Codec::Json,
                b"{\"session\":\"a-b\",\"data\":\"123456\"}",
                too_large,
            ),
            (Codec::Protobuf, b"{}", BadEmulation::NotProtobuf),
            (Codec::Protobuf, b"", BadEmulation::NoSession),
            (Codec::Protobuf, &long, too_large),
            (
                Codec::Protobuf,
                &long[..long.len() - 1],
                BadEmulation::NotProtobuf,
            ),
        ] {
            let error = Emulated::read(&Bytes::copy_from_slice(body), codec, 5).unwrap_err();
            assert_eq!(error, expected, "{codec:?} {body:?}");
            assert!(error.status().is_client_error());
            assert_ne!(
                error.status(),
                StatusCode::NOT_FOUND,
                "the client would give up"
            );
        }
    }
}
