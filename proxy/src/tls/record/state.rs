//! A connection as plain data, to continue it in another process.
//!
//! Invariant: there is either a connection or its state, never both: the connection is dropped, and its keys wiped, when its state is
//! made. Two that seal records with the same numbers would give away the key of AES-GCM.

use zeroize::{Zeroize as _, Zeroizing};

use crate::tls::record::RECORD_MAX;
use crate::tls::record::cipher::Cipher;
use crate::tls::record::cipher::Keys;
use crate::tls::record::cipher::Version;
use crate::tls::record::handshake::MessageReader;
use crate::tls::record::handshake::Role;
use crate::tls::record::layer::Counters;
use crate::tls::record::layer::KeySource;
use crate::tls::record::layer::Records;
use crate::tls::record::secrets::TrafficSecret;
use crate::tls::record::stream::Carried;
use crate::tls::record::stream::RecordStream;

/// A connection without its transport. It implements no `Debug`: it has keys.
pub(crate) struct StreamState {
    pub(crate) records: RecordsState,
    /// An incomplete record.
    pub(crate) partial: Vec<u8>,
    /// Decrypted, but not read yet.
    pub(crate) plain: Vec<u8>,
    /// Encrypted, but not sent yet.
    pub(crate) unsent: Vec<u8>,
}

/// Both directions of a connection.
pub(crate) struct RecordsState {
    pub(crate) role: Role,
    /// The number of the cipher, see [`Cipher::number`].
    pub(crate) cipher: u8,
    pub(crate) tx: DirectionState,
    pub(crate) rx: DirectionState,
    pub(crate) tx_open: bool,
    pub(crate) rx_open: bool,
    pub(crate) update_due: bool,
    pub(crate) counters: [u8; 4],
    /// The handshake message that is being read: the four bytes of its header, how many of them are read, and what is left of its body.
    pub(crate) message: ([u8; 4], u8, u16),
}

/// The keys of one direction. The arrays are padded with zeros, and wiped when they are dropped.
pub(crate) struct DirectionState {
    pub(crate) key: Zeroizing<[u8; 32]>,
    pub(crate) iv: Zeroizing<[u8; 12]>,
    pub(crate) sequence: u64,
    /// Of TLS 1.3, to derive later keys.
    pub(crate) secret: Option<Zeroizing<[u8; 48]>>,
}

impl<T> RecordStream<T> {
    /// Whether [`RecordStream::into_state`] is possible: not if later keys come from rustls, or the next read is an error.
    pub(crate) fn has_state(&self) -> bool {
        self.failure.is_none() && !matches!(self.records.source, KeySource::Schedule(_))
    }

    /// The transport and the state. The keys here are wiped.
    ///
    /// # Errors
    ///
    /// The connection as it is, without [`RecordStream::has_state`].
    #[allow(
        clippy::boxed_local,
        reason = "keys are wiped where they are; what is moved leaves a copy"
    )]
    pub(crate) fn into_state(mut self: Box<Self>) -> Result<(T, Box<StreamState>), Box<Self>> {
        if !self.has_state() {
            return Err(self);
        }
        let records = self.records.state();
        // In place: what is moved leaves a copy behind.
        self.records.wipe();
        let Self {
            transport,
            records: _,
            partial,
            plain,
            unsent,
            failure: _,
        } = *self;
        let state = StreamState {
            records,
            partial,
            plain,
            unsent,
        };
        Ok((transport, Box::new(state)))
    }

    /// The connection with `state` over `transport`; `None` if the state cannot be that of a connection.
    #[allow(
        clippy::boxed_local,
        reason = "keys are wiped where they are; what is moved leaves a copy"
    )]
    pub(crate) fn from_state(transport: T, mut state: Box<StreamState>) -> Option<Self> {
        let carried = Carried {
            ended: false,
            partial: std::mem::take(&mut state.partial),
            plain: std::mem::take(&mut state.plain),
            unsent: std::mem::take(&mut state.unsent),
        };
        let is_possible = carried.partial.len() < RECORD_MAX;
        let records = Records::from_state(&state.records)?;
        is_possible.then(|| Self::new(transport, records, carried))
    }
}

impl Records {
    /// Overwrites all keys: nothing can be sealed or opened any more.
    fn wipe(&mut self) {
        for keys in [&mut self.tx, &mut self.rx] {
            keys.key.zeroize();
            keys.iv.zeroize();
        }
        self.source = KeySource::None;
        (self.tx_open, self.rx_open) = (false, false);
    }

    fn state(&self) -> RecordsState {
        let secrets = match &self.source {
            KeySource::Secrets { tx, rx } => Some((tx, rx)),
            KeySource::None | KeySource::Schedule(_) => None,
        };
        let counters = &self.counters;
        RecordsState {
            role: self.role,
            cipher: self.tx.cipher.number(),
            tx: direction(&self.tx, secrets.map(|(tx, _)| tx)),
            rx: direction(&self.rx, secrets.map(|(_, rx)| rx)),
            tx_open: self.tx_open,
            rx_open: self.rx_open,
            update_due: self.update_due,
            counters: [
                counters.control,
                counters.warnings,
                counters.empty,
                counters.renegotiations,
            ],
            message: self.messages.state(),
        }
    }

    fn from_state(state: &RecordsState) -> Option<Self> {
        let cipher = Cipher::numbered(state.cipher)?;
        let source = match cipher.version {
            Version::Tls12 => KeySource::None,
            Version::Tls13 => KeySource::Secrets {
                tx: TrafficSecret::new(&state.tx.secret.as_ref()?[..])?,
                rx: TrafficSecret::new(&state.rx.secret.as_ref()?[..])?,
            },
        };
        let keys = |direction: &DirectionState| {
            let key = &direction.key[..cipher.key_length()];
            Keys::new(cipher, key, &direction.iv[..], direction.sequence)
        };
        let mut records = Self::with_keys(state.role, keys(&state.tx), keys(&state.rx), source);
        if records.records_max < state.tx.sequence {
            return None;
        }
        records.messages = MessageReader::from_state(state.message)?;
        (records.tx_open, records.rx_open) = (state.tx_open, state.rx_open);
        records.update_due = state.update_due;
        let [control, warnings, empty, renegotiations] = state.counters;
        records.counters = Counters {
            control,
            warnings,
            empty,
            renegotiations,
        };
        Some(records)
    }
}

fn direction(keys: &Keys, secret: Option<&TrafficSecret>) -> DirectionState {
    DirectionState {
        key: keys.key.clone(),
        iv: keys.iv.clone(),
        sequence: keys.sequence,
        secret: secret.map(TrafficSecret::bytes),
    }
}
