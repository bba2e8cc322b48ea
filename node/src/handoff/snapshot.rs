//! What the other node needs of a client, encoded: Protobuf with a version.
//!
//! A rollout mixes versions of the node. A version that a node does not know is refused, and the client stays where it is.

use std::net::IpAddr;

use bytes::Bytes;
use prost::Message as _;

use crate::client::channels::ClientState;
use crate::metrics::Transport;

/// The version of a snapshot of a relay or echo client.
const VERSION: u32 = 1;

/// The version of a snapshot of a channel client, which earlier versions of the node refuse.
const CHANNELS_VERSION: u32 = 2;

/// The version of a snapshot of a session over HTTP, which earlier versions of the node refuse.
const SESSION_VERSION: u32 = 3;

/// The largest snapshot, in bytes.
const BYTES_MAX: usize = 64 << 10;

/// A client over WebSocket, or a SockJS session over HTTP.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Snapshot {
    /// The path of its endpoint.
    pub(crate) endpoint: String,
    /// How its messages are framed.
    pub(crate) transport: Transport,
    /// What it is a client of.
    pub(crate) kind: Kind,
}

/// What a client is a client of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// A relay or echo endpoint.
    Plain {
        /// How long its rate limit needs to be full again, in nanoseconds.
        rate_ahead: u64,
    },
    /// An endpoint with `mode: channels`.
    Channels(Box<ClientState>),
    /// A relay endpoint, over HTTP.
    Session(SessionState),
}

/// A session over HTTP.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SessionState {
    /// As its client has named it.
    pub(crate) id: String,
    /// Where its client is.
    pub(crate) address: IpAddr,
    /// As in [`Kind::Plain`].
    pub(crate) rate_ahead: u64,
}

/// Why a snapshot cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSnapshot {
    #[error("the snapshot has {0} bytes, expected at most {BYTES_MAX}")]
    TooLarge(usize),
    #[error("the snapshot is damaged: {0}")]
    Undecodable(#[from] prost::DecodeError),
    #[error(
        "the snapshot has version {0}, expected {VERSION}, {CHANNELS_VERSION} or {SESSION_VERSION}"
    )]
    Version(u32),
    #[error("the snapshot has the transport `{0}`, expected one of its kind of client")]
    Transport(String),
    #[error("the snapshot has the client address `{0}`, expected an IP address")]
    Address(String),
    #[error("the snapshot has no client")]
    NoClient,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(string, tag = "2")]
    endpoint: String,
    #[prost(string, tag = "3")]
    transport: String,
    #[prost(uint64, tag = "4")]
    rate_ahead: u64,
    /// Of version 2.
    #[prost(message, optional, boxed, tag = "5")]
    channels: Option<Box<ClientState>>,
    /// Of version 3.
    #[prost(message, optional, tag = "6")]
    session: Option<WireSession>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireSession {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    address: String,
}

impl Snapshot {
    /// # Errors
    ///
    /// [`BadSnapshot::TooLarge`]; the client stays.
    pub(crate) fn encode(self) -> Result<Bytes, BadSnapshot> {
        let mut wire = Wire {
            version: VERSION,
            endpoint: self.endpoint,
            transport: self.transport.as_str().to_owned(),
            ..Wire::default()
        };
        match self.kind {
            Kind::Plain { rate_ahead } => wire.rate_ahead = rate_ahead,
            Kind::Channels(state) => {
                wire.version = CHANNELS_VERSION;
                wire.channels = Some(state);
            }
            Kind::Session(state) => {
                wire.version = SESSION_VERSION;
                wire.rate_ahead = state.rate_ahead;
                wire.session = Some(WireSession {
                    id: state.id,
                    address: state.address.to_string(),
                });
            }
        }
        match wire.encoded_len() {
            bytes if BYTES_MAX < bytes => Err(BadSnapshot::TooLarge(bytes)),
            _ => Ok(wire.encode_to_vec().into()),
        }
    }

    /// # Errors
    ///
    /// [`BadSnapshot`]; the client stays at the node that has sent it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadSnapshot> {
        if BYTES_MAX < bytes.len() {
            return Err(BadSnapshot::TooLarge(bytes.len()));
        }
        let wire = Wire::decode(bytes)?;
        let (transports, kind): (&[Transport], _) = match wire.version {
            VERSION => (
                &[
                    Transport::Websocket,
                    Transport::SockjsRaw,
                    Transport::SockjsWebsocket,
                ],
                Kind::Plain {
                    rate_ahead: wire.rate_ahead,
                },
            ),
            CHANNELS_VERSION => (
                &[Transport::ChannelsJson, Transport::ChannelsProtobuf],
                Kind::Channels(wire.channels.ok_or(BadSnapshot::NoClient)?),
            ),
            SESSION_VERSION => {
                let WireSession { id, address } = wire.session.ok_or(BadSnapshot::NoClient)?;
                let state = SessionState {
                    id,
                    address: address.parse().map_err(|_| BadSnapshot::Address(address))?,
                    rate_ahead: wire.rate_ahead,
                };
                (&[Transport::SockjsHttp], Kind::Session(state))
            }
            version => return Err(BadSnapshot::Version(version)),
        };
        let transport = { transports.iter().copied() }
            .find(|transport| transport.as_str() == wire.transport)
            .ok_or(BadSnapshot::Transport(wire.transport))?;
        Ok(Self {
            endpoint: wire.endpoint,
            transport,
            kind,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshots() -> [Snapshot; 3] {
        let plain = Snapshot {
            endpoint: "/ws".to_owned(),
            transport: Transport::SockjsWebsocket,
            kind: Kind::Plain { rate_ahead: 7 },
        };
        let channels = Snapshot {
            transport: Transport::ChannelsProtobuf,
            kind: Kind::Channels(Box::default()),
            ..plain.clone()
        };
        let session = Snapshot {
            transport: Transport::SockjsHttp,
            kind: Kind::Session(SessionState {
                id: "abc".to_owned(),
                address: "2001:db8::1".parse().unwrap(),
                rate_ahead: 8,
            }),
            ..plain.clone()
        };
        [plain, channels, session]
    }

    #[test]
    fn it_reads_back() {
        for snapshot in snapshots() {
            let encoded = snapshot.clone().encode().unwrap();
            assert_eq!(Snapshot::decode(&encoded), Ok(snapshot));
        }
    }

    #[test]
    fn a_large_one_is_not_encoded() {
        let [_, mut channels, _] = snapshots();
        channels.endpoint = "x".repeat(BYTES_MAX);
        assert!(matches!(channels.encode(), Err(BadSnapshot::TooLarge(_))));
    }

    #[test]
    fn another_version_a_large_one_and_another_transport_are_refused() {
        let wire = |version, transport: &str, endpoint: String| {
            let transport = transport.to_owned();
            let wire = Wire {
                version,
                endpoint,
                transport,
                ..Wire::default()
            };
            Snapshot::decode(&wire.encode_to_vec())
        };
        let endpoint = || "/ws".to_owned();
        assert!(wire(VERSION, "websocket", endpoint()).is_ok());
        assert_eq!(
            wire(4, "websocket", endpoint()),
            Err(BadSnapshot::Version(4))
        );
        assert_eq!(
            wire(SESSION_VERSION, "sockjs_http", endpoint()),
            Err(BadSnapshot::NoClient)
        );
        assert_eq!(
            wire(CHANNELS_VERSION, "channels_json", endpoint()),
            Err(BadSnapshot::NoClient)
        );
        assert_eq!(wire(0, "", endpoint()), Err(BadSnapshot::Version(0)));
        for transport in ["", "channels_json", "sockjs_http"] {
            let refused = BadSnapshot::Transport(transport.to_owned());
            assert_eq!(wire(VERSION, transport, endpoint()), Err(refused));
        }
        let long = "x".repeat(BYTES_MAX);
        assert!(matches!(
            wire(VERSION, "websocket", long),
            Err(BadSnapshot::TooLarge(_))
        ));
    }

    #[test]
    fn a_session_needs_the_address_of_its_client_and_its_transport() {
        let wire = |address: &str, transport: Transport| {
            let session = WireSession {
                id: "abc".to_owned(),
                address: address.to_owned(),
            };
            let wire = Wire {
                version: SESSION_VERSION,
                transport: transport.as_str().to_owned(),
                session: Some(session),
                ..Wire::default()
            };
            Snapshot::decode(&wire.encode_to_vec()).err()
        };
        let (http, socket) = (Transport::SockjsHttp, Transport::SockjsWebsocket);
        assert_eq!(wire("127.0.0.1", http), None);
        assert_eq!(
            wire("::1%eth0", http),
            Some(BadSnapshot::Address("::1%eth0".to_owned()))
        );
        let refused = BadSnapshot::Transport(socket.as_str().to_owned());
        assert_eq!(wire("127.0.0.1", socket), Some(refused));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Snapshot::decode(&bytes);
        }
    }
}
