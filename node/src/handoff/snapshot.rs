//! What the other node needs of a client, encoded: Protobuf with a version.
//!
//! A rollout mixes versions of the node. A version that a node does not know is refused, and the client stays where it is.

use bytes::Bytes;
use prost::Message as _;

use crate::metrics::Transport;

/// The version that this node writes, and the only one that it reads.
const VERSION: u32 = 1;

/// The largest snapshot, in bytes.
const BYTES_MAX: usize = 64 << 10;

/// A client of a relay or echo endpoint over WebSocket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The path of its endpoint.
    pub(crate) endpoint: String,
    /// How its messages are framed.
    pub(crate) transport: Transport,
    /// How long its rate limit needs to be full again, in nanoseconds.
    pub(crate) rate_ahead: u64,
}

/// Why a snapshot cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSnapshot {
    #[error("the snapshot has {0} bytes, expected at most {BYTES_MAX}")]
    TooLarge(usize),
    #[error("the snapshot is damaged: {0}")]
    Undecodable(#[from] prost::DecodeError),
    #[error("the snapshot has version {0}, expected {VERSION}")]
    Version(u32),
    #[error(
        "the snapshot has the transport `{0}`, expected `websocket`, `sockjs_raw` or `sockjs_websocket`"
    )]
    Transport(String),
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
}

impl Snapshot {
    pub(crate) fn encode(&self) -> Bytes {
        let wire = Wire {
            version: VERSION,
            endpoint: self.endpoint.clone(),
            transport: self.transport.as_str().to_owned(),
            rate_ahead: self.rate_ahead,
        };
        wire.encode_to_vec().into()
    }

    /// # Errors
    ///
    /// [`BadSnapshot`]; the client stays at the node that has sent it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, BadSnapshot> {
        if BYTES_MAX < bytes.len() {
            return Err(BadSnapshot::TooLarge(bytes.len()));
        }
        let wire = Wire::decode(bytes)?;
        if wire.version != VERSION {
            return Err(BadSnapshot::Version(wire.version));
        }
        let transports = [
            Transport::Websocket,
            Transport::SockjsRaw,
            Transport::SockjsWebsocket,
        ];
        let transport = transports
            .into_iter()
            .find(|transport| transport.as_str() == wire.transport)
            .ok_or(BadSnapshot::Transport(wire.transport))?;
        Ok(Self {
            endpoint: wire.endpoint,
            transport,
            rate_ahead: wire.rate_ahead,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn snapshot() -> Snapshot {
        Snapshot {
            endpoint: "/ws".to_owned(),
            transport: Transport::SockjsWebsocket,
            rate_ahead: 7,
        }
    }

    #[test]
    fn it_reads_back() {
        assert_eq!(Snapshot::decode(&snapshot().encode()), Ok(snapshot()));
    }

    #[test]
    fn another_version_a_large_one_and_another_transport_are_refused() {
        let wire = |version, transport: &str, endpoint: String| {
            let transport = transport.to_owned();
            let wire = Wire {
                version,
                endpoint,
                transport,
                rate_ahead: 0,
            };
            Snapshot::decode(&wire.encode_to_vec())
        };
        let endpoint = || "/ws".to_owned();
        assert!(wire(VERSION, "websocket", endpoint()).is_ok());
        assert_eq!(
            wire(2, "websocket", endpoint()),
            Err(BadSnapshot::Version(2))
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

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Snapshot::decode(&bytes);
        }
    }
}
