//! Signing and verifying the payload of a cookie with HMAC-SHA256 (RFC 2104), truncated to 128 bits.
//!
//! The first key signs and all verify, so that keys can be rotated without rebinding clients: add a new key as the last one
//! on all edges, then make it the first, and remove the old one when its cookies have expired. The MAC covers the name of the
//! cookie too: a cookie of one pool is not valid for another.

use std::fmt;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use causeway_conf::Secret;
use ring::hmac;
use subtle::ConstantTimeEq as _;

/// Bytes of the MAC in the cookie.
const MAC_BYTES: usize = 16;

/// Bytes of the id of a key. It only avoids trying every key: two keys with the same id are both tried.
const KEY_ID_BYTES: usize = 3;

/// The keys. Without any, cookies are not signed.
pub(super) struct Keys(Vec<Key>);

struct Key {
    id: String,
    /// Keyed, with the name of the cookie as the first input.
    mac: hmac::Context,
}

/// A payload that verified, or was not signed.
pub(super) enum Verified<'a> {
    /// Signed with the first key; or there are no keys.
    ByFirst(&'a str),
    /// Signed with another key.
    ByOther(&'a str),
    /// Not signed, although there are keys: it may be forged.
    Unsigned(&'a str),
}

impl Keys {
    pub(super) fn new(secrets: &[Secret], cookie: &str) -> Self {
        let key = |secret: &Secret| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
            let id = hmac::sign(&key, b"causeway key id");
            let id = URL_SAFE_NO_PAD.encode(&id.as_ref()[..KEY_ID_BYTES]);
            let mut mac = hmac::Context::with_key(&key);
            mac.update(b"causeway affinity\0");
            mac.update(cookie.as_bytes());
            mac.update(b"\0");
            Key { id, mac }
        };
        Self(secrets.iter().map(key).collect())
    }

    /// Appends the signed payload, an id and a number, as the value of a cookie. It is readable: nothing is encrypted.
    pub(super) fn sign(&self, to: &mut String, id: &str, number: u64) {
        let start = to.len();
        // Writing to a string does not fail.
        let Some(key) = self.0.first() else {
            let _ = write!(to, "u1.{id}.{number}");
            return;
        };
        let _ = write!(to, "s1.{id}.{number}.{}", key.id);
        let signed = &to.as_bytes()[start..];
        let mac = key.mac_of(signed);
        to.push('.');
        URL_SAFE_NO_PAD.encode_string(mac, to);
    }

    /// The payload in `value`, if it verifies with one of the keys, or is not signed. MACs are compared in constant time.
    pub(super) fn verify<'a>(&self, value: &'a str) -> Option<Verified<'a>> {
        if let Some(payload) = value.strip_prefix("u1.") {
            return Some(if self.0.is_empty() {
                Verified::ByFirst(payload)
            } else {
                Verified::Unsigned(payload)
            });
        }
        let (signed, mac) = split_at_last_dot(value)?;
        let (payload, key_id) = split_at_last_dot(signed.strip_prefix("s1.")?)?;
        if self.0.is_empty() {
            return Some(Verified::ByFirst(payload));
        }
        // With room for what the decoder may write beyond the end.
        let mut decoded = [0; MAC_BYTES + 2];
        let length = URL_SAFE_NO_PAD.decode_slice(mac, &mut decoded).ok()?;
        let mac = &decoded[..length];
        if mac.len() != MAC_BYTES {
            return None;
        }
        let verifies =
            |key: &Key| key.id == key_id && key.mac_of(signed.as_bytes()).ct_eq(mac).into();
        match self.0.iter().position(verifies)? {
            0 => Some(Verified::ByFirst(payload)),
            _ => Some(Verified::ByOther(payload)),
        }
    }
}

impl Key {
    fn mac_of(&self, signed: &[u8]) -> [u8; MAC_BYTES] {
        let mut mac = self.mac.clone();
        mac.update(signed);
        let mut truncated = [0; MAC_BYTES];
        truncated.copy_from_slice(&mac.sign().as_ref()[..MAC_BYTES]);
        truncated
    }
}

/// The text before and after the last dot.
pub(super) fn split_at_last_dot(text: &str) -> Option<(&str, &str)> {
    let dot = text.bytes().rposition(|byte| byte == b'.')?;
    Some((&text[..dot], &text[dot + 1..]))
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.0.len())
    }
}
