//! A peer that seals whatever it is told to, for tests and fuzzing.

use rustls::{CipherSuite, ExtractedSecrets};

use crate::tls::record::HANDSHAKE;
use crate::tls::record::cipher::{Cipher, Keys, Version};
use crate::tls::record::handshake::Role;
use crate::tls::record::layer::{KeySource, Records};
use crate::tls::record::secrets::TrafficSecret;
use crate::tls::record::{HEADER, RecordError, payload_length};

/// One suite for each cipher.
pub(crate) const SUITES: [CipherSuite; 6] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// The keys of the peer, without any rule about their use.
pub(crate) struct Peer {
    tx: Keys,
    rx: Keys,
    tx_secret: Option<TrafficSecret>,
}

/// A connection with fixed keys, and its peer.
pub(crate) fn ends(suite: CipherSuite, role: Role) -> (Records, Peer) {
    let cipher = Cipher::of(suite).expect("it is one of ours");
    let secret = |byte| TrafficSecret::new(&[byte; 48]).expect("it is not too long");
    let keys = |byte| secret(byte).keys(cipher);
    let source = match cipher.version {
        Version::Tls12 => KeySource::None,
        Version::Tls13 => KeySource::Secrets {
            tx: secret(1),
            rx: secret(2),
        },
    };
    let peer = Peer {
        tx: keys(2),
        rx: keys(1),
        tx_secret: Some(secret(2)),
    };
    (Records::with_keys(role, keys(1), keys(2), source), peer)
}

impl Peer {
    /// The keys that rustls had.
    pub(crate) fn extracted(suite: CipherSuite, secrets: &ExtractedSecrets) -> Self {
        let cipher = Cipher::of(suite).expect("it is one of ours");
        let ((tx_sequence, tx), (rx_sequence, rx)) = (&secrets.tx, &secrets.rx);
        let keys = |secrets, sequence| {
            let keys = Keys::extracted(cipher, secrets, sequence);
            keys.expect("they are of this suite")
        };
        Self {
            tx: keys(tx, *tx_sequence),
            rx: keys(rx, *rx_sequence),
            tx_secret: None,
        }
    }

    /// A record with any content. The keys change after a key update.
    pub(crate) fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        let key = self.tx.expand();
        self.tx.seal(&key, kind, content, &mut record);
        if kind == HANDSHAKE
            && matches!(content, [24, 0, 0, 1, 0 | 1])
            && self.tx.cipher.version == Version::Tls13
            && let Some(secret) = &mut self.tx_secret
        {
            self.tx = secret.advance(self.tx.cipher);
        }
        record
    }

    /// Changes to the keys of the other end after its key update, whose first secret has these bytes.
    pub(crate) fn follow_update(&mut self, secret: u8) {
        let mut secret = TrafficSecret::new(&[secret; 48]).expect("it is not too long");
        self.rx = secret.advance(self.rx.cipher);
    }

    /// The types and contents of `records`, which are complete.
    pub(crate) fn open(&mut self, mut records: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut opened = Vec::new();
        while let Some((header, rest)) = records.split_first_chunk::<HEADER>() {
            let (payload, behind) = rest.split_at(payload_length(header));
            let key = self.rx.expand();
            let mut payload = payload.to_vec();
            let record = self.rx.open(&key, *header, &mut payload);
            let (kind, content) = record.expect("it is sealed with these keys");
            opened.push((kind, content.to_vec()));
            records = behind;
        }
        opened
    }
}

/// What came of reading some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) data: Vec<u8>,
    /// Whether the peer has closed its direction.
    pub(crate) result: Result<bool, RecordError>,
    pub(crate) sent: Vec<u8>,
}

/// Reads `wire` in pieces of `piece` bytes.
pub(crate) fn read_in_pieces(records: &mut Records, wire: &[u8], piece: usize) -> Outcome {
    let (mut data, mut sent, mut held) = (Vec::new(), Vec::new(), Vec::new());
    let mut result = Ok(false);
    for piece in wire.chunks(piece) {
        held.extend_from_slice(piece);
        let keep = |content: &[u8]| data.extend_from_slice(content);
        match records.read(&mut held, keep, &mut sent) {
            Ok(used) => {
                held.drain(..used);
                result = Ok(!records.is_rx_open());
            }
            Err(error) => result = Err(error),
        }
        if result != Ok(false) {
            break;
        }
    }
    Outcome { data, result, sent }
}
