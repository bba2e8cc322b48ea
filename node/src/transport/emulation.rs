//! Messages of channel clients over HTTP: separate requests, which any node may receive and forward ("emulation" in the
//! protocol).
//!
//! A session's id contains the node that holds the session. It is a secret known to the client only; the public client id
//! is not accepted here.

use std::fmt;

use ::http::StatusCode;
use bytes::Bytes;
use prost::Message as _;
use serde::Deserialize;

use crate::cluster::control::Control;
use crate::cluster::directory::ControlCommand;
use crate::cluster::directory::Target;
use crate::protocol::Codec;
use crate::protocol::instance::ClientId;

/// A request in JSON. The session's id contains the node, so `node` is ignored.
#[derive(Deserialize)]
struct Json {
    session: String,
    data: String,
}

/// A request in Protobuf: `EmulationRequest` of the protocol, without its field 1, `node`.
#[derive(prost::Message)]
struct Protobuf {
    #[prost(string, tag = "2")]
    session: String,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

/// Commands of a client, and its session.
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

/// Why a request is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadEmulation {
    /// The body is not the expected JSON.
    #[error("expected {{\"session\": \"...\", \"node\": \"...\", \"data\": \"...\"}}")]
    NotJson,
    /// The body is not the expected Protobuf message.
    #[error("expected an EmulationRequest in Protobuf")]
    NotProtobuf,
    /// More than a client of the endpoint may send at once.
    #[error("expected at most {max} bytes in `data` (setting commands_size), found {found}")]
    TooLarge {
        /// The limit.
        max: usize,
        /// The size of the request's.
        found: usize,
    },
    /// The session's id is invalid.
    #[error("no node issues such a `session`")]
    NoSession,
}

impl BadEmulation {
    /// The HTTP status: none of those at which a client closes its stream.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::NotJson | Self::NotProtobuf | Self::NoSession => StatusCode::BAD_REQUEST,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        }
    }
}

impl Emulated {
    /// Decodes a request in `codec` with at most `commands_bytes_max` of commands.
    ///
    /// # Errors
    ///
    /// [`BadEmulation`]; its text says what is expected.
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

    /// Forwards the commands to the session, on whatever node it is. Returns the HTTP status for the client.
    ///
    /// # Cancel safety
    ///
    /// After dropping this future, the commands may or may not be forwarded.
    pub(crate) async fn say(self, control: &Control) -> StatusCode {
        let target = Target::Session {
            user: String::new(),
            session: self.session,
        };
        match control
            .command(target, ControlCommand::Input(self.commands))
            .await
        {
            Ok(given) if 0 < given.accepted => StatusCode::NO_CONTENT,
            // The session is gone, perhaps with its node: the client closes its stream, if that has not ended yet.
            Ok(given) if given.busy == 0 => StatusCode::NOT_FOUND,
            // Commands are lost: the client has to reconnect.
            Ok(_) => StatusCode::SERVICE_UNAVAILABLE,
            Err(error) => {
                tracing::debug!(%error, "commands of a client not forwarded to its node");
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
    fn a_request_has_a_session_and_commands() {
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
