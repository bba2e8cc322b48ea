//! The record protocol after the handshake, without I/O: what arrives, what is sent, and what is answered.

use rustls::{AlertDescription, ExtractedSecrets};

use crate::tls::record::cipher::Cipher;
use crate::tls::record::cipher::ExpandedKey;
use crate::tls::record::cipher::Keys;
use crate::tls::record::cipher::Version;
use crate::tls::record::cipher::overflow;
use crate::tls::record::handshake::KEY_UPDATE;
use crate::tls::record::handshake::Message;
use crate::tls::record::handshake::MessageReader;
use crate::tls::record::handshake::Role;
use crate::tls::record::secrets::KeySchedule;
use crate::tls::record::secrets::TrafficSecret;
use crate::tls::record::secrets::TrafficSecrets;
use crate::tls::record::{ALERT, APPLICATION_DATA, HANDSHAKE};
use crate::tls::record::{HEADER, PLAIN_MAX, RecordError, Violation, payload_length};

/// A record: its header, and its payload in place.
type Record<'input> = ([u8; HEADER], &'input mut [u8]);

/// As many as rustls accepts: key updates and tickets without data between them, warnings, empty records in a row, and requests to
/// negotiate anew.
const CONTROL_MAX: u8 = 32;
const WARNINGS_MAX: u8 = 4;
const EMPTY_MAX: u8 = 32;
const RENEGOTIATIONS_MAX: u8 = 1;

/// Levels of alerts (RFC 8446, B.2).
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// Whether a key update asks the peer to update its keys too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UpdateRequest {
    NotRequested = 0,
    Requested = 1,
}

/// Where the keys after a key update come from.
pub(super) enum KeySource {
    /// TLS 1.2 has no key updates.
    None,
    Secrets {
        tx: TrafficSecret,
        rx: TrafficSecret,
    },
    Schedule(Box<dyn KeySchedule>),
}

/// The two directions of a connection after its handshake.
///
/// Invariant: `tx.sequence` is at most `records_max`. The last number before it is used only for what ends the use of the key: a key
/// update or an alert. Nothing is sealed once `tx_open` is false, and nothing opened once `rx_open` is.
pub(crate) struct Records {
    pub(super) role: Role,
    pub(super) tx: Keys,
    pub(super) rx: Keys,
    pub(super) source: KeySource,
    /// How many records one key may seal.
    pub(super) records_max: u64,
    pub(super) messages: MessageReader,
    /// Neither a close_notify nor a fatal alert was sealed, and no fatal alert received.
    pub(super) tx_open: bool,
    /// The same for what the peer sends.
    pub(super) rx_open: bool,
    /// The peer has asked for a key update, which goes out before the next data. However often it asks, it is one.
    pub(super) update_due: bool,
    pub(super) counters: Counters,
}

/// How often the peer has sent what it may send only so often.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) control: u8,
    pub(super) warnings: u8,
    pub(super) empty: u8,
    pub(super) renegotiations: u8,
}

impl Records {
    /// The records of a connection with these secrets of rustls; `None` if they are not for `cipher`.
    ///
    /// Later keys come from `secrets` if these lead to the current keys, and otherwise from `schedule`: the keys of a connection that
    /// has updated them already are not those of its first secrets any more.
    pub(in crate::tls) fn new(
        role: Role,
        cipher: &'static Cipher,
        extracted: &ExtractedSecrets,
        secrets: Option<Box<TrafficSecrets>>,
        schedule: impl KeySchedule + 'static,
    ) -> Option<Self> {
        let ((tx_sequence, tx), (rx_sequence, rx)) = (&extracted.tx, &extracted.rx);
        let tx = Keys::extracted(cipher, tx, *tx_sequence)?;
        let rx = Keys::extracted(cipher, rx, *rx_sequence)?;
        let current = secrets.and_then(|secrets| {
            let TrafficSecrets { client, server } = *secrets;
            let (ours, theirs) = match role {
                Role::Client => (client, server),
                Role::Server => (server, client),
            };
            let are_current =
                ours.keys(cipher).is_same_key(&tx) && theirs.keys(cipher).is_same_key(&rx);
            are_current.then_some((ours, theirs))
        });
        let source = match (cipher.version, current) {
            (Version::Tls12, _) => KeySource::None,
            (Version::Tls13, Some((tx, rx))) => KeySource::Secrets { tx, rx },
            (Version::Tls13, None) => KeySource::Schedule(Box::new(schedule)),
        };
        Some(Self::with_keys(role, tx, rx, source))
    }

    pub(super) fn with_keys(role: Role, tx: Keys, rx: Keys, source: KeySource) -> Self {
        Self {
            role,
            records_max: tx.cipher.records_max,
            tx,
            rx,
            source,
            messages: MessageReader::default(),
            tx_open: true,
            rx_open: true,
            update_due: false,
            counters: Counters::default(),
        }
    }

    /// Whether later keys come from the secrets, without rustls.
    #[cfg(test)]
    pub(super) fn has_secrets(&self) -> bool {
        matches!(self.source, KeySource::Secrets { .. })
    }

    /// The number of the next record that is sealed.
    #[cfg(test)]
    pub(super) fn sequence(&self) -> u64 {
        self.tx.sequence
    }

    #[cfg(test)]
    pub(super) fn set_sequence(&mut self, sequence: u64) {
        self.tx.sequence = sequence;
    }

    fn version(&self) -> Version {
        self.tx.cipher.version
    }

    /// Whether the peer may still send.
    pub(super) fn is_rx_open(&self) -> bool {
        self.rx_open
    }

    /// Notes that the peer has ended its direction, by whatever means.
    pub(super) fn end_rx(&mut self) {
        self.rx_open = false;
    }

    /// Appends `data` to `out` as records, after the key update that the peer has asked for.
    ///
    /// # Errors
    ///
    /// [`RecordError::Exhausted`] if the keys are used up, `out` then ends with a close_notify; [`RecordError::Closed`] if this
    /// direction has ended.
    pub(super) fn write(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), RecordError> {
        if !self.tx_open {
            return Err(RecordError::Closed);
        }
        if self.update_due {
            self.update_tx(UpdateRequest::NotRequested, out)?;
        }
        let mut key = self.tx.expand();
        for piece in data.chunks(PLAIN_MAX) {
            if self.records_max <= self.tx.sequence + 1 {
                self.update_tx(UpdateRequest::Requested, out)?;
                key = self.tx.expand();
            }
            self.tx.seal(&key, APPLICATION_DATA, piece, out);
        }
        Ok(())
    }

    /// Appends a close_notify to `out`, unless this direction has ended. Nothing is written after it.
    pub(super) fn close_notify(&mut self, out: &mut Vec<u8>) {
        self.alert(WARNING, AlertDescription::CloseNotify, out);
        self.tx_open = false;
    }

    fn alert(&mut self, level: u8, alert: AlertDescription, out: &mut Vec<u8>) {
        self.seal_if_possible(ALERT, &[level, alert.into()], out);
    }

    /// Appends a record, unless this direction has ended or the key is used up.
    fn seal_if_possible(&mut self, kind: u8, content: &[u8], out: &mut Vec<u8>) {
        if self.tx_open && self.tx.sequence < self.records_max {
            let key = self.tx.expand();
            self.tx.seal(&key, kind, content, out);
        }
    }

    /// Announces new keys and changes to them; TLS 1.2, which cannot, ends the connection.
    fn update_tx(&mut self, request: UpdateRequest, out: &mut Vec<u8>) -> Result<(), RecordError> {
        let cipher = self.tx.cipher;
        if matches!(self.source, KeySource::None) {
            self.close_notify(out);
            return Err(RecordError::Exhausted);
        }
        self.seal_if_possible(HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, request as u8], out);
        let next = match &mut self.source {
            KeySource::None => None,
            KeySource::Secrets { tx, .. } => Some(tx.advance(cipher)),
            KeySource::Schedule(schedule) => {
                let secrets = schedule.next_tx().ok();
                secrets.and_then(|secrets| Keys::extracted(cipher, &secrets, 0))
            }
        };
        self.tx = next.ok_or(RecordError::Exhausted)?;
        self.update_due = false;
        Ok(())
    }

    fn update_rx(&mut self) -> Result<(), RecordError> {
        let cipher = self.rx.cipher;
        let next = match &mut self.source {
            KeySource::None => None,
            KeySource::Secrets { rx, .. } => Some(rx.advance(cipher)),
            KeySource::Schedule(schedule) => {
                let secrets = schedule.next_rx().ok();
                secrets.and_then(|secrets| Keys::extracted(cipher, &secrets, 0))
            }
        };
        self.rx = next.ok_or(RecordError::Exhausted)?;
        Ok(())
    }

    /// Opens the complete records at the start of `input`, in place: `data` gets their content, and `out` what is to be sent. Returns
    /// the length of these records.
    ///
    /// # Errors
    ///
    /// [`RecordError`]; both directions have then ended, and `out` ends with the alert for the peer, if there is one. `data` may have
    /// got the content of records before.
    pub(super) fn read(
        &mut self,
        input: &mut [u8],
        data: impl FnMut(&[u8]),
        out: &mut Vec<u8>,
    ) -> Result<usize, RecordError> {
        self.read_all(input, data, out).inspect_err(|error| {
            if let RecordError::Violation(violation) = error {
                self.alert(FATAL, violation.alert, out);
            }
            (self.tx_open, self.rx_open) = (false, false);
        })
    }

    fn read_all(
        &mut self,
        input: &mut [u8],
        mut data: impl FnMut(&[u8]),
        out: &mut Vec<u8>,
    ) -> Result<usize, RecordError> {
        let mut used = 0;
        let mut key: Option<ExpandedKey> = None;
        while self.rx_open
            && let Some((header, payload)) = self.next_record(&mut input[used..])?
        {
            used += HEADER + payload.len();
            let key_now = key.get_or_insert_with(|| self.rx.expand());
            let (kind, content) = self.rx.open(key_now, header, payload)?;
            if !self.messages.is_between_messages() && kind != HANDSHAKE {
                return Err(Violation::unexpected("a record within a handshake message").into());
            }
            match kind {
                APPLICATION_DATA if content.is_empty() => self.note_empty()?,
                APPLICATION_DATA => {
                    (self.counters.empty, self.counters.control) = (0, 0);
                    data(content);
                }
                ALERT => self.read_alert(content)?,
                HANDSHAKE => {
                    self.read_handshake(content, out)?;
                    // It may have changed.
                    key = None;
                }
                _ => return Err(Violation::unexpected("a record of an unknown type").into()),
            }
        }
        Ok(used)
    }

    /// The record at the start of `input`, if it is complete.
    fn next_record<'input>(
        &self,
        input: &'input mut [u8],
    ) -> Result<Option<Record<'input>>, Violation> {
        let Some((header, rest)) = input.split_first_chunk_mut::<HEADER>() else {
            return Ok(None);
        };
        let header = *header;
        let is_sealed = match self.version() {
            Version::Tls12 => matches!(header[0], ALERT | HANDSHAKE | APPLICATION_DATA),
            Version::Tls13 => header[0] == APPLICATION_DATA,
        };
        if !is_sealed {
            return Err(Violation::unexpected("a record that is not encrypted"));
        }
        if header[1] != 3 {
            let why = "a record of an unknown version";
            return Err(Violation::new(AlertDescription::DecodeError, why));
        }
        let length = payload_length(&header);
        if self.rx.cipher.payload_max() < length {
            return Err(overflow());
        }
        Ok(rest.get_mut(..length).map(|payload| (header, payload)))
    }

    fn note_empty(&mut self) -> Result<(), Violation> {
        count(
            &mut self.counters.empty,
            EMPTY_MAX,
            "too many empty records",
        )
    }

    fn read_alert(&mut self, content: &[u8]) -> Result<(), RecordError> {
        let &[level, alert] = content else {
            let why = "an alert with a wrong length";
            return Err(Violation::new(AlertDescription::DecodeError, why).into());
        };
        let alert = AlertDescription::from(alert);
        if !matches!(level, WARNING | FATAL) {
            let why = "an alert with an unknown level";
            return Err(Violation::new(AlertDescription::IllegalParameter, why).into());
        }
        // RFC 8446, 6: in TLS 1.3 the level does not matter, but only these two do not end the connection by an error.
        let is_harmless = match self.version() {
            Version::Tls12 => level == WARNING,
            Version::Tls13 => alert == AlertDescription::UserCanceled,
        };
        match alert {
            AlertDescription::CloseNotify => self.rx_open = false,
            _ if is_harmless => count(
                &mut self.counters.warnings,
                WARNINGS_MAX,
                "too many warnings",
            )?,
            _ => return Err(RecordError::Alert(alert)),
        }
        Ok(())
    }

    fn read_handshake(&mut self, content: &[u8], out: &mut Vec<u8>) -> Result<(), RecordError> {
        if content.is_empty() {
            return Err(Violation::unexpected("a handshake record without content").into());
        }
        let (version, mut rest) = (self.version(), content);
        while !rest.is_empty() {
            let message = self.messages.read(&mut rest, version, self.role)?;
            match message {
                None => {}
                Some(Message::KeyUpdate(request)) => {
                    if !rest.is_empty() {
                        // Its record would be sealed with two keys (RFC 8446, 5.1).
                        let why = "a message after a key update in the same record";
                        return Err(Violation::unexpected(why).into());
                    }
                    self.key_update(request)?;
                }
                Some(Message::Ticket) => self.note_control()?,
                Some(Message::Renegotiation) => {
                    let (number, max) = (&mut self.counters.renegotiations, RENEGOTIATIONS_MAX);
                    count(number, max, "more than one request to negotiate anew")?;
                    // RFC 5746, 4.5: the connection goes on as it is.
                    self.alert(WARNING, AlertDescription::NoRenegotiation, out);
                }
            }
        }
        Ok(())
    }

    fn key_update(&mut self, request: u8) -> Result<(), RecordError> {
        self.note_control()?;
        if request > UpdateRequest::Requested as u8 {
            let why = "a key update with an unknown request";
            return Err(Violation::new(AlertDescription::IllegalParameter, why).into());
        }
        self.update_rx()?;
        self.update_due |= request == UpdateRequest::Requested as u8;
        Ok(())
    }

    fn note_control(&mut self) -> Result<(), Violation> {
        let why = "too many handshake messages without data";
        count(&mut self.counters.control, CONTROL_MAX, why)
    }
}

/// Counts one more of what may occur `max` times.
fn count(number: &mut u8, max: u8, why: &'static str) -> Result<(), Violation> {
    if *number == max {
        return Err(Violation::unexpected(why));
    }
    *number += 1;
    Ok(())
}
