//! Sealing and opening single records: the keys of one direction, and what the cipher suite says about their use.

use ring::aead;
use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hkdf;
use rustls::{AlertDescription, CipherSuite, ConnectionTrafficSecrets};
use zeroize::Zeroizing;

use crate::tls::record::APPLICATION_DATA;
use crate::tls::record::HEADER;
use crate::tls::record::PLAIN_MAX;
use crate::tls::record::Violation;
use crate::tls::record::payload_length;

/// The longest key: AES-256 and ChaCha20.
const KEY_MAX: usize = 32;

/// The version in the header of every record (RFC 8446, 5.1).
const RECORD_VERSION: [u8; 2] = [3, 3];

/// The part of the nonce that TLS 1.2 with AES-GCM sends with each record (RFC 5288, 3), and where it is in the nonce.
const EXPLICIT_NONCE: usize = 8;
const EXPLICIT_NONCE_AT: usize = aead::NONCE_LEN - EXPLICIT_NONCE;

/// The records that AES-GCM may seal with one key (RFC 8446, 5.5, as rustls counts it).
const AES_GCM_RECORDS_MAX: u64 = 1 << 24;

/// For ChaCha20, whose limit is beyond all sequence numbers: enough before they would start again.
const CHACHA20_RECORDS_MAX: u64 = u64::MAX - 0xffff;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tls) enum Version {
    Tls12,
    Tls13,
}

/// The part of a cipher suite that determines how records are sealed.
#[derive(Debug)]
pub(in crate::tls) struct Cipher {
    pub(super) version: Version,
    aead: &'static aead::Algorithm,
    /// The hash of the key schedule of TLS 1.3.
    pub(super) hash: &'static hkdf::Algorithm,
    /// 0 or [`EXPLICIT_NONCE`].
    explicit_nonce: usize,
    /// How many records one key may seal.
    pub(super) records_max: u64,
}

static TLS13_AES_128: Cipher = Cipher {
    version: Version::Tls13,
    aead: &aead::AES_128_GCM,
    hash: &hkdf::HKDF_SHA256,
    explicit_nonce: 0,
    records_max: AES_GCM_RECORDS_MAX,
};

static TLS13_AES_256: Cipher = Cipher {
    version: Version::Tls13,
    aead: &aead::AES_256_GCM,
    hash: &hkdf::HKDF_SHA384,
    explicit_nonce: 0,
    records_max: AES_GCM_RECORDS_MAX,
};

static TLS13_CHACHA20: Cipher = Cipher {
    version: Version::Tls13,
    aead: &aead::CHACHA20_POLY1305,
    hash: &hkdf::HKDF_SHA256,
    explicit_nonce: 0,
    records_max: CHACHA20_RECORDS_MAX,
};

static TLS12_AES_128: Cipher = Cipher {
    version: Version::Tls12,
    aead: &aead::AES_128_GCM,
    hash: &hkdf::HKDF_SHA256,
    explicit_nonce: EXPLICIT_NONCE,
    records_max: AES_GCM_RECORDS_MAX,
};

static TLS12_AES_256: Cipher = Cipher {
    version: Version::Tls12,
    aead: &aead::AES_256_GCM,
    hash: &hkdf::HKDF_SHA384,
    explicit_nonce: EXPLICIT_NONCE,
    records_max: AES_GCM_RECORDS_MAX,
};

static TLS12_CHACHA20: Cipher = Cipher {
    version: Version::Tls12,
    aead: &aead::CHACHA20_POLY1305,
    hash: &hkdf::HKDF_SHA256,
    explicit_nonce: 0,
    records_max: CHACHA20_RECORDS_MAX,
};

impl Cipher {
    /// The cipher of a suite; `None` for a suite that is not implemented here.
    pub(in crate::tls) fn of(suite: CipherSuite) -> Option<&'static Self> {
        match suite {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => Some(&TLS13_AES_128),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => Some(&TLS13_AES_256),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => Some(&TLS13_CHACHA20),
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => Some(&TLS12_AES_128),
            CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Some(&TLS12_AES_256),
            CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Some(&TLS12_CHACHA20),
            _ => None,
        }
    }

    /// All of them; what other processes call them is their place here.
    const ALL: [&'static Self; 6] = [
        &TLS13_AES_128,
        &TLS13_AES_256,
        &TLS13_CHACHA20,
        &TLS12_AES_128,
        &TLS12_AES_256,
        &TLS12_CHACHA20,
    ];

    /// Its number for another process.
    pub(super) fn number(&'static self) -> u8 {
        let place = Self::ALL.iter().position(|each| std::ptr::eq(*each, self));
        place.map_or(u8::MAX, |place| place as u8)
    }

    /// The cipher with this number.
    pub(super) fn numbered(number: u8) -> Option<&'static Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    pub(super) fn key_length(&self) -> usize {
        self.aead.key_len()
    }

    /// The longest payload of a record (RFC 8446, 5.2; RFC 5246, 6.2.3).
    pub(super) fn payload_max(&self) -> usize {
        match self.version {
            Version::Tls12 => PLAIN_MAX + 2048,
            Version::Tls13 => PLAIN_MAX + 256,
        }
    }

    /// What sealing adds to the content, besides the header.
    fn overhead(&self) -> usize {
        let inner_type = match self.version {
            Version::Tls12 => 0,
            Version::Tls13 => 1,
        };
        self.explicit_nonce + inner_type + self.aead.tag_len()
    }

    /// What is authenticated besides the content: the header in TLS 1.3 (RFC 8446, 5.2), and in TLS 1.2 the sequence number and the
    /// header as it would be without encryption (RFC 5246, 6.2.3.3).
    fn additional_data(
        &self,
        sequence: u64,
        header: [u8; HEADER],
        content: usize,
    ) -> AdditionalData {
        let mut data = AdditionalData {
            bytes: [0; 13],
            length: HEADER,
        };
        match self.version {
            Version::Tls13 => data.bytes[..HEADER].copy_from_slice(&header),
            Version::Tls12 => {
                data.length = 13;
                data.bytes[..8].copy_from_slice(&sequence.to_be_bytes());
                data.bytes[8..11].copy_from_slice(&header[..3]);
                data.bytes[11..].copy_from_slice(&length_field(content));
            }
        }
        data
    }
}

struct AdditionalData {
    bytes: [u8; 13],
    length: usize,
}

impl AsRef<[u8]> for AdditionalData {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// A length that fits into a record.
fn length_field(length: usize) -> [u8; 2] {
    debug_assert!(length <= usize::from(u16::MAX));
    (length as u16).to_be_bytes()
}

/// Key, nonce and sequence number of one direction.
///
/// Invariant: `sequence` is the number of the next record, and no record with it or a later one has been sealed or opened.
pub(super) struct Keys {
    pub(super) cipher: &'static Cipher,
    /// Padded with zeros.
    pub(super) key: Zeroizing<[u8; KEY_MAX]>,
    pub(super) iv: Zeroizing<[u8; aead::NONCE_LEN]>,
    pub(super) sequence: u64,
}

/// A key that is ready for use: 0.5 KB, and therefore only on the stack.
pub(super) struct ExpandedKey(LessSafeKey);

impl Keys {
    /// `key` and `iv` have the lengths of `cipher`.
    pub(super) fn new(cipher: &'static Cipher, key: &[u8], iv: &[u8], sequence: u64) -> Self {
        let mut keys = Self {
            cipher,
            key: Zeroizing::default(),
            iv: Zeroizing::default(),
            sequence,
        };
        keys.key[..cipher.key_length()].copy_from_slice(key);
        keys.iv.copy_from_slice(iv);
        keys
    }

    /// The keys that rustls extracted; `None` if they are not for `cipher`.
    pub(super) fn extracted(
        cipher: &'static Cipher,
        secrets: &ConnectionTrafficSecrets,
        sequence: u64,
    ) -> Option<Self> {
        use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
        let (Aes128Gcm { key, iv } | Aes256Gcm { key, iv } | Chacha20Poly1305 { key, iv }) =
            secrets
        else {
            return None;
        };
        let (key, iv) = (key.as_ref(), iv.as_ref());
        let fits = key.len() == cipher.key_length() && iv.len() == aead::NONCE_LEN;
        fits.then(|| Self::new(cipher, key, iv, sequence))
    }

    /// Whether the key and the nonce are those of `other`.
    pub(super) fn is_same_key(&self, other: &Self) -> bool {
        self.key == other.key && self.iv == other.iv
    }

    pub(super) fn expand(&self) -> ExpandedKey {
        let key = &self.key[..self.cipher.key_length()];
        let key = UnboundKey::new(self.cipher.aead, key).expect("it has the length of the cipher");
        ExpandedKey(LessSafeKey::new(key))
    }

    fn nonce(&self) -> [u8; aead::NONCE_LEN] {
        let mut nonce = *self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        nonce
    }

    /// Appends a record of type `kind` to `out`. `key` is this key, expanded; `content` is at most [`PLAIN_MAX`] bytes.
    pub(super) fn seal(&mut self, key: &ExpandedKey, kind: u8, content: &[u8], out: &mut Vec<u8>) {
        let cipher = self.cipher;
        let nonce = self.nonce();
        let outer_kind = match cipher.version {
            Version::Tls12 => kind,
            Version::Tls13 => APPLICATION_DATA,
        };
        let [major, minor] = RECORD_VERSION;
        let [high, low] = length_field(content.len() + cipher.overhead());
        let header = [outer_kind, major, minor, high, low];
        let data = cipher.additional_data(self.sequence, header, content.len());
        out.reserve(HEADER + content.len() + cipher.overhead());
        out.extend_from_slice(&header);
        out.extend_from_slice(&nonce[EXPLICIT_NONCE_AT..][..cipher.explicit_nonce]);
        let sealed_at = out.len();
        out.extend_from_slice(content);
        if cipher.version == Version::Tls13 {
            out.push(kind);
        }
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = &mut out[sealed_at..];
        let tag = key
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(data), sealed);
        out.extend_from_slice(tag.expect("a record is not too long").as_ref());
        self.sequence += 1;
    }

    /// Opens a record in place; returns the type and the content. `key` is this key, expanded.
    ///
    /// # Errors
    ///
    /// [`Violation`] if it was not sealed by the peer as the next record, or is too long or not well-formed inside.
    pub(super) fn open<'payload>(
        &mut self,
        key: &ExpandedKey,
        header: [u8; HEADER],
        payload: &'payload mut [u8],
    ) -> Result<(u8, &'payload [u8]), Violation> {
        debug_assert_eq!(payload.len(), payload_length(&header));
        let cipher = self.cipher;
        let forged = || Violation::new(AlertDescription::BadRecordMac, "a record that was altered");
        let content = payload.len().checked_sub(cipher.overhead());
        let content = content.ok_or_else(forged)?;
        let mut nonce = self.nonce();
        let explicit = &payload[..cipher.explicit_nonce];
        nonce[EXPLICIT_NONCE_AT..][..explicit.len()].copy_from_slice(explicit);
        let data = cipher.additional_data(self.sequence, header, content);
        let opened = key.0.open_within(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(data),
            payload,
            cipher.explicit_nonce..,
        );
        let opened = opened.map_err(|_| forged())?;
        // The peer's keys would be used up long before.
        self.sequence = self.sequence.checked_add(1).ok_or_else(|| {
            Violation::unexpected("a record after the last possible sequence number")
        })?;
        let (kind, content) = match cipher.version {
            Version::Tls12 => (header[0], &*opened),
            Version::Tls13 => split_inner(opened)?,
        };
        if PLAIN_MAX < content.len() {
            return Err(overflow());
        }
        Ok((kind, content))
    }
}

/// The type and the content of a TLS 1.3 record, without padding (RFC 8446, 5.4).
fn split_inner(inner: &[u8]) -> Result<(u8, &[u8]), Violation> {
    if PLAIN_MAX + 1 < inner.len() {
        return Err(overflow());
    }
    let at = inner.iter().rposition(|byte| *byte != 0);
    let at = at.ok_or_else(|| Violation::unexpected("a record without a content type"))?;
    Ok((inner[at], &inner[..at]))
}

pub(super) fn overflow() -> Violation {
    Violation::new(
        AlertDescription::RecordOverflow,
        "a record that is too large",
    )
}
