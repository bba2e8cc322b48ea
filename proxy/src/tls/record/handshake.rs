//! Handshake messages after the handshake, as far as their types and lengths: no body is kept.

use rustls::AlertDescription;

use crate::tls::record::Violation;
use crate::tls::record::cipher::Version;

/// Which side of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Client,
    Server,
}

const HEADER: usize = 4;

/// The longest message that is skipped, as in rustls.
const LENGTH_MAX: u16 = u16::MAX;

/// Message types (RFC 8446, B.3).
const HELLO_REQUEST: u8 = 0;
const CLIENT_HELLO: u8 = 1;
const NEW_SESSION_TICKET: u8 = 4;
pub(super) const KEY_UPDATE: u8 = 24;

/// The length of a KeyUpdate.
const KEY_UPDATE_LENGTH: u16 = 1;

/// A complete message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// A KeyUpdate with this `request_update`.
    KeyUpdate(u8),
    Ticket,
    /// The peer wants to negotiate anew.
    Renegotiation,
}

/// Reads messages that may be split over several records.
///
/// Invariant: `header[..have]` is what was read of a message's header; once it is complete, `left` bytes of the body are not read.
#[derive(Default)]
pub(super) struct MessageReader {
    header: [u8; HEADER],
    have: u8,
    left: u16,
}

impl MessageReader {
    /// Its fields, for another process.
    pub(super) fn state(&self) -> ([u8; HEADER], u8, u16) {
        (self.header, self.have, self.left)
    }

    /// A reader in the middle of a message; `None` if that is no state of one.
    pub(super) fn from_state((header, have, left): ([u8; HEADER], u8, u16)) -> Option<Self> {
        let is_complete = usize::from(have) == HEADER;
        let is_possible = usize::from(have) <= HEADER && (is_complete || left == 0);
        is_possible.then_some(Self { header, have, left })
    }

    /// Whether the next byte begins a message.
    pub(super) fn is_between_messages(&self) -> bool {
        self.have == 0
    }

    /// Reads from `bytes` up to the end of a message; `None` if it is not complete.
    ///
    /// # Errors
    ///
    /// [`Violation`] for a message that the peer may not send now, as soon as its header is complete.
    pub(super) fn read(
        &mut self,
        bytes: &mut &[u8],
        version: Version,
        role: Role,
    ) -> Result<Option<Message>, Violation> {
        while usize::from(self.have) < HEADER {
            let Some((byte, rest)) = bytes.split_first() else {
                return Ok(None);
            };
            *bytes = rest;
            self.header[usize::from(self.have)] = *byte;
            self.have += 1;
            if usize::from(self.have) == HEADER {
                self.left = self.checked_length(version, role)?;
            }
        }
        let taken = bytes.len().min(self.left.into());
        let (body, rest) = bytes.split_at(taken);
        *bytes = rest;
        self.left -= taken as u16;
        if self.left != 0 {
            return Ok(None);
        }
        self.have = 0;
        Ok(Some(match self.header[0] {
            // Its only byte ends it, so that it is always in the last piece.
            KEY_UPDATE => Message::KeyUpdate(body.last().copied().unwrap_or_default()),
            NEW_SESSION_TICKET => Message::Ticket,
            _ => Message::Renegotiation,
        }))
    }

    /// The length of the message that has begun, if the peer may send it.
    fn checked_length(&self, version: Version, role: Role) -> Result<u16, Violation> {
        let [kind, high, middle, low] = self.header;
        let length = u32::from_be_bytes([0, high, middle, low]);
        let lengths = match (version, role, kind) {
            (Version::Tls13, _, KEY_UPDATE) => KEY_UPDATE_LENGTH..=KEY_UPDATE_LENGTH,
            (Version::Tls13, Role::Client, NEW_SESSION_TICKET) => 1..=LENGTH_MAX,
            (Version::Tls12, Role::Server, CLIENT_HELLO) => 1..=LENGTH_MAX,
            (Version::Tls12, Role::Client, HELLO_REQUEST) => 0..=0,
            _ => {
                return Err(Violation::unexpected(
                    "a handshake message after the handshake",
                ));
            }
        };
        let checked = u16::try_from(length).ok();
        let checked = checked.filter(|length| lengths.contains(length));
        checked.ok_or_else(|| {
            let why = "a handshake message with a wrong length";
            Violation::new(AlertDescription::DecodeError, why)
        })
    }
}
