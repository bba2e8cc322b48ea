//! Session tickets with keys that several edges share, so that a client can resume its session on any of them.
//!
//! The file has one key per line, 96 hexadecimal digits: a name of 16 bytes, and an AES-256-GCM key of 32 bytes. The first key
//! encrypts, all keys decrypt. To rotate, add the new key as second line on all edges, then make it the first, and remove the
//! oldest after [`LIFETIME`]. A ticket is name, nonce and ciphertext; the nonce is random, since counters of several edges would
//! collide (RFC 5116, 3.2 limits one key to 2^32 tickets).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use causeway_conf::{PEM_BYTES_MAX, read_file};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;

/// How long a ticket may be used. RFC 8446, 4.6.1 allows a week; a stolen key decrypts the tickets of this time.
pub(crate) const LIFETIME: Duration = Duration::from_secs(12 * 3600);

const NAME: usize = 16;
const KEY: usize = 32;

/// The longest ticket that is decrypted. The edge's own have some hundred bytes.
const TICKET_MAX: usize = 4096;

/// Why a file of ticket keys cannot be used. Never contains key material.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {why}")]
pub struct TicketKeyError {
    path: PathBuf,
    why: String,
}

/// The keys in use.
pub(crate) struct Tickets {
    path: PathBuf,
    keys: ArcSwap<Vec<TicketKey>>,
}

struct TicketKey {
    name: [u8; NAME],
    key: LessSafeKey,
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tickets")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Tickets {
    /// # Errors
    ///
    /// [`TicketKeyError`] if the file cannot be read, or a line is not a key.
    pub(crate) fn load(path: PathBuf) -> Result<Self, TicketKeyError> {
        let keys = ArcSwap::from_pointee(read(&path)?);
        Ok(Self { path, keys })
    }

    /// Reloads the file.
    ///
    /// # Errors
    ///
    /// As [`Tickets::load`]; then the keys stay as they are.
    pub(crate) fn reload(&self) -> Result<(), TicketKeyError> {
        self.keys.store(Arc::new(read(&self.path)?));
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn read(path: &Path) -> Result<Vec<TicketKey>, TicketKeyError> {
    let unusable = |why: String| TicketKeyError {
        path: path.to_owned(),
        why,
    };
    let bytes = read_file(path, PEM_BYTES_MAX).map_err(|error| unusable(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| unusable("it is not UTF-8".to_owned()))?;
    let mut keys: Vec<TicketKey> = Vec::new();
    let lines = text
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.trim()));
    for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let key = parse(line).ok_or_else(|| {
            unusable(format!(
                "line {number}: expected 96 hexadecimal digits, as from \"openssl rand -hex 48\""
            ))
        })?;
        if keys.iter().any(|other| other.name == key.name) {
            return Err(unusable(format!(
                "line {number}: another key has the same name"
            )));
        }
        keys.push(key);
    }
    match keys.is_empty() {
        true => Err(unusable(
            "no key; expected one per line, as from \"openssl rand -hex 48\"".to_owned(),
        )),
        false => Ok(keys),
    }
}

fn parse(line: &str) -> Option<TicketKey> {
    let digits = line.as_bytes();
    if digits.len() != 2 * (NAME + KEY) {
        return None;
    }
    let mut bytes = [0; NAME + KEY];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    let name = *bytes.first_chunk()?;
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes[NAME..]).ok()?);
    Some(TicketKey { name, key })
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(LIFETIME.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.load();
        let TicketKey { name, key } = keys.first()?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        let nonce_bytes = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(nonce_bytes, Aad::from(name), &mut sealed)
            .ok()?;
        Some([&name[..], &nonce, &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        if TICKET_MAX < ticket.len() {
            return None;
        }
        let (name, rest) = ticket.split_first_chunk::<NAME>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let keys = self.keys.load();
        let TicketKey { key, .. } = keys.iter().find(|key| key.name == *name)?;
        let mut opened = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = key
            .open_in_place(nonce, Aad::from(name), &mut opened)
            .ok()?
            .len();
        opened.truncate(length);
        Some(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::folder;

    fn line(seed: u8) -> String {
        (0..48)
            .map(|byte| format!("{:02x}", seed.wrapping_add(byte)))
            .collect()
    }

    #[test]
    fn another_edge_decrypts_a_ticket_also_if_the_key_is_its_second() {
        let folder = folder("tickets");
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        std::fs::write(&one, line(1)).unwrap();
        std::fs::write(&two, format!("# comment\n{}\n{}\n", line(7), line(1))).unwrap();
        let (one, two) = (Tickets::load(one).unwrap(), Tickets::load(two).unwrap());
        let ticket = one.encrypt(b"session").unwrap();
        assert_eq!(two.decrypt(&ticket).unwrap(), b"session");
        assert_eq!(
            one.decrypt(&two.encrypt(b"session").unwrap()),
            None,
            "it lacks that key"
        );
        std::fs::write(&two.path, line(7)).unwrap();
        two.reload().unwrap();
        assert_eq!(two.decrypt(&ticket), None, "the key is gone");
    }

    #[test]
    fn a_modified_ticket_is_not_decrypted() {
        let folder = folder("modified");
        let path = folder.path().join("keys");
        std::fs::write(&path, line(1)).unwrap();
        let tickets = Tickets::load(path).unwrap();
        let ticket = tickets.encrypt(b"session").unwrap();
        for index in 0..ticket.len() {
            let mut modified = ticket.clone();
            modified[index] ^= 1;
            assert_eq!(tickets.decrypt(&modified), None, "byte {index}");
            assert_eq!(tickets.decrypt(&ticket[..index]), None, "length {index}");
        }
        assert_eq!(tickets.decrypt(&vec![0; TICKET_MAX + 1]), None);
    }

    #[test]
    fn an_error_names_the_line_and_contains_no_key() {
        let folder = folder("bad-keys");
        let path = folder.path().join("keys");
        let twice = format!("{}\n{}\n", line(1), line(1));
        for (content, expected) in [
            (format!("{}\nc0ffee\n", line(1)), "line 2: expected 96"),
            (line(1).replace('0', "x"), "line 1: expected 96"),
            (twice, "line 2: another key has the same name"),
            ("# nothing\n\n".to_owned(), "no key"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = Tickets::load(path.clone()).unwrap_err().to_string();
            assert!(
                error.contains(expected) && !error.contains("c0ffee"),
                "{error}"
            );
        }
    }
}
