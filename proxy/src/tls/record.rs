//! TLS records of a tunnel, without the connection object of rustls.
//!
//! Owns the traffic keys of a connection whose handshake rustls has completed, and what follows from them: sealing and opening
//! records, key updates, alerts, the end of either direction, and the state with which another process continues ([`StreamState`]). [`RecordStream`] is such a connection over its transport,
//! [`Records`] the protocol without I/O. The cryptography is ring's, which is also what rustls uses here. An idle connection keeps
//! its keys as bytes; they are expanded for each burst of records and dropped after it.
//!
//! Never does a handshake, resumes a session or chooses a cipher suite. Never logs or shows a key: no type here that holds one
//! implements `Debug` with its fields, and all keys are wiped when they are dropped. (What ring expands from them on the stack is
//! not: ring has no means for it.)
//!
//! Invariant: no sequence number is used twice with the same key, and none from the confidentiality limit of the cipher on. After a
//! fatal alert, in either direction, nothing more is sent or read. An idle connection owns no buffer.

mod cipher;
mod handshake;
mod layer;
mod secrets;
mod state;
mod stream;
#[cfg(any(fuzzing, test))]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use rustls::AlertDescription;

pub(super) use crate::tls::record::cipher::Cipher;
pub(crate) use crate::tls::record::handshake::Role;
pub(crate) use crate::tls::record::layer::Records;
pub(super) use crate::tls::record::secrets::{Captured, SecretLog, TrafficSecrets};
pub(crate) use crate::tls::record::state::{DirectionState, RecordsState, StreamState};
pub(super) use crate::tls::record::stream::Carried;
pub(crate) use crate::tls::record::stream::RecordStream;

/// The most plaintext in one record (RFC 8446, 5.1).
pub(super) const PLAIN_MAX: usize = 16 * 1024;

/// Type, version and length.
pub(super) const HEADER: usize = 5;

/// The largest record, with the most that a cipher may add (RFC 5246, 6.2.3).
pub(super) const RECORD_MAX: usize = HEADER + PLAIN_MAX + 2048;

/// Content types (RFC 8446, B.1).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Why a connection cannot be read or written any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    /// The peer violates the protocol; it is sent the alert.
    #[error("TLS: {0}")]
    Violation(#[from] Violation),
    /// The peer sent a fatal alert.
    #[error("TLS: the peer sent the alert {0:?}")]
    Alert(AlertDescription),
    /// The keys have sealed as many records as they may, and TLS 1.2 cannot replace them.
    #[error("TLS: the keys of this connection are used up")]
    Exhausted,
    /// This side has ended its direction, or an alert has ended the connection.
    #[error("TLS: this direction has ended")]
    Closed,
}

/// A violation of the protocol, and the alert for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why} ({alert:?})")]
pub(crate) struct Violation {
    pub(super) alert: AlertDescription,
    why: &'static str,
}

impl Violation {
    fn new(alert: AlertDescription, why: &'static str) -> Self {
        Self { alert, why }
    }

    fn unexpected(why: &'static str) -> Self {
        Self::new(AlertDescription::UnexpectedMessage, why)
    }
}

/// The length of the complete records at the start of `bytes`, and their number. Nothing in them is checked.
pub(super) fn complete_records(bytes: &[u8]) -> (usize, usize) {
    let (mut length, mut count) = (0, 0);
    while let Some(header) = bytes[length..].first_chunk::<HEADER>() {
        let next = length + HEADER + payload_length(header);
        if bytes.len() < next {
            break;
        }
        (length, count) = (next, count + 1);
    }
    (length, count)
}

fn payload_length(header: &[u8; HEADER]) -> usize {
    usize::from(u16::from_be_bytes([header[3], header[4]]))
}
