//! Where the next keys of TLS 1.3 come from: the traffic secrets, or what rustls keeps of a connection to derive them.
//!
//! rustls gives secrets to a key log only. [`SecretLog`] is one that writes nothing: it leaves them in a variable of the thread, from
//! which the caller of rustls takes them right after the call.

use std::cell::RefCell;

use ring::hkdf;
use ring::hkdf::KeyType as _;
use rustls::kernel::KernelConnection;
use rustls::{ConnectionTrafficSecrets, KeyLog};
use zeroize::Zeroizing;

use crate::tls::record::cipher::Cipher;
use crate::tls::record::cipher::Keys;

/// The longest secret: that of SHA-384.
const SECRET_MAX: usize = 48;

const CLIENT_LABEL: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER_LABEL: &str = "SERVER_TRAFFIC_SECRET_0";

/// The traffic secret of one direction (RFC 8446, 7.1), padded with zeros.
pub(super) struct TrafficSecret(Zeroizing<[u8; SECRET_MAX]>);

/// The traffic secrets of both sides, as they are at the end of the handshake.
pub(in crate::tls) struct TrafficSecrets {
    pub(super) client: TrafficSecret,
    pub(super) server: TrafficSecret,
}

/// The secrets of a handshake, as far as it has got.
#[derive(Default)]
pub(in crate::tls) struct Captured {
    client: Option<TrafficSecret>,
    server: Option<TrafficSecret>,
}

impl TrafficSecret {
    pub(super) fn new(bytes: &[u8]) -> Option<Self> {
        let mut secret = Self(Zeroizing::new([0; SECRET_MAX]));
        secret.0.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(secret)
    }

    /// A copy for the state of a connection.
    pub(super) fn bytes(&self) -> Zeroizing<[u8; SECRET_MAX]> {
        self.0.clone()
    }

    /// The keys that belong to this secret.
    pub(super) fn keys(&self, cipher: &'static Cipher) -> Keys {
        let mut key = Zeroizing::new([0; 32]);
        let mut iv = Zeroizing::new([0; ring::aead::NONCE_LEN]);
        let key = &mut key[..cipher.key_length()];
        self.expand(cipher, b"key", key);
        self.expand(cipher, b"iv", &mut iv[..]);
        Keys::new(cipher, key, &iv[..], 0)
    }

    /// Advances to the secret after a key update (RFC 8446, 7.2), and returns its keys.
    pub(super) fn advance(&mut self, cipher: &'static Cipher) -> Keys {
        let mut next = Zeroizing::new([0; SECRET_MAX]);
        self.expand(cipher, b"traffic upd", &mut next[..cipher.hash.len()]);
        self.0 = next;
        self.keys(cipher)
    }

    /// HKDF-Expand-Label with an empty context (RFC 8446, 7.1).
    fn expand(&self, cipher: &Cipher, label: &[u8], output: &mut [u8]) {
        const PREFIX: &[u8] = b"tls13 ";
        let length = (output.len() as u16).to_be_bytes();
        let label_length = [(PREFIX.len() + label.len()) as u8];
        let info = [&length[..], &label_length, PREFIX, label, &[0]];
        let secret = hkdf::Prk::new_less_safe(*cipher.hash, &self.0[..cipher.hash.len()]);
        let expanded = secret
            .expand(&info, Length(output.len()))
            .and_then(|expanded| expanded.fill(output));
        expanded.expect("it is at most one block");
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

thread_local! {
    static CAPTURED: RefCell<Captured> = const { RefCell::new(Captured { client: None, server: None }) };
}

/// Captures the traffic secrets of TLS 1.3.
///
/// rustls calls it within `process_tls_records`, on the thread of the caller: what is captured after that call belongs to its
/// connection.
#[derive(Debug)]
pub(in crate::tls) struct SecretLog;

impl KeyLog for SecretLog {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        CAPTURED.with_borrow_mut(|captured| match label {
            CLIENT_LABEL => captured.client = TrafficSecret::new(secret),
            SERVER_LABEL => captured.server = TrafficSecret::new(secret),
            // Without asking, rustls also reports the master secret of TLS 1.2, which is not needed.
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT_LABEL | SERVER_LABEL)
    }
}

impl Captured {
    /// Takes what the last call of rustls has left behind.
    pub(in crate::tls) fn collect(&mut self) {
        CAPTURED.with_borrow_mut(|captured| {
            self.client = captured.client.take().or(self.client.take());
            self.server = captured.server.take().or(self.server.take());
        });
    }

    /// Both secrets, if they were captured. Boxed, because they are kept with connections that may never need them.
    pub(in crate::tls) fn complete(self) -> Option<Box<TrafficSecrets>> {
        let (client, server) = (self.client?, self.server?);
        Some(Box::new(TrafficSecrets { client, server }))
    }
}

/// Derives the next keys of a connection of TLS 1.3 whose secrets are not known here.
pub(in crate::tls) trait KeySchedule: Send + Sync {
    fn next_tx(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error>;
    fn next_rx(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error>;
}

impl<Data: Send + Sync> KeySchedule for KernelConnection<Data> {
    fn next_tx(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        self.update_tx_secret().map(|(_, secrets)| secrets)
    }

    fn next_rx(&mut self) -> Result<ConnectionTrafficSecrets, rustls::Error> {
        self.update_rx_secret().map(|(_, secrets)| secrets)
    }
}
