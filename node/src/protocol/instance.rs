//! Which process this is, and the ids of its clients, which say so.
//!
//! A client's id contains the instance of its node, so that no lookup is needed.

use std::fmt;

/// One process of a node, from its start to its end: random, so that a node that is started again is
/// another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Instance([u8; 8]);

/// The name of one client of one instance. Who knows it may speak for the client (over transports that
/// send by another request than they receive), so its second half cannot be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ClientId {
    instance: Instance,
    secret: [u8; 16],
}

/// The text names no instance, or no client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 16 hexadecimal digits, and for a client `-` and 32 more")]
pub(crate) struct Unnamed;

impl Instance {
    /// A new one.
    pub(crate) fn random() -> Self {
        Self(random())
    }

    /// Reads what [`Display`](fmt::Display) writes.
    ///
    /// # Errors
    ///
    /// [`Unnamed`] for anything else, upper case included: one name has one text.
    pub(crate) fn parse(text: &str) -> Result<Self, Unnamed> {
        from_hex(text).map(Self)
    }
}

impl ClientId {
    /// The first of all in their order; no client has it.
    pub(crate) const FIRST: Self = Self {
        instance: Instance([0; 8]),
        secret: [0; 16],
    };

    /// The id of a new client of `instance`.
    pub(crate) fn random(instance: Instance) -> Self {
        let secret = random();
        Self { instance, secret }
    }

    /// Whose client it is.
    pub(crate) fn instance(self) -> Instance {
        self.instance
    }

    /// Reads what [`Display`](fmt::Display) writes.
    ///
    /// # Errors
    ///
    /// [`Unnamed`] for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self, Unnamed> {
        let (instance, secret) = text.split_once('-').ok_or(Unnamed)?;
        Ok(Self {
            instance: Instance::parse(instance)?,
            secret: from_hex(secret)?,
        })
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-", self.instance)?;
        write_hex(f, &self.secret)
    }
}

pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the kernel provides random bytes");
    bytes
}

pub(super) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

pub(super) fn from_hex<const N: usize>(text: &str) -> Result<[u8; N], Unnamed> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(Unnamed),
    };
    if text.len() != 2 * N {
        return Err(Unnamed);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_and_leads_to_its_instance() {
        let instance = Instance::random();
        assert_eq!(Instance::parse(&instance.to_string()), Ok(instance));
        let client = ClientId::random(instance);
        let text = client.to_string();
        assert_eq!(text.len(), 16 + 1 + 32);
        assert_eq!(ClientId::parse(&text), Ok(client));
        assert_eq!(client.instance(), instance);
    }

    #[test]
    fn no_two_are_alike() {
        let instance = Instance::random();
        assert_ne!(instance, Instance::random());
        assert_ne!(ClientId::random(instance), ClientId::random(instance));
    }

    #[test]
    fn one_name_has_one_text() {
        let id = "0123456789abcdef-0123456789abcdef0123456789abcdef";
        assert_eq!(ClientId::parse(id).unwrap().to_string(), id);
        for wrong in [
            "",
            "-",
            "0123456789abcdef",
            "0123456789abcde-0123456789abcdef0123456789abcdef",
            "0123456789abcdef-0123456789abcdef0123456789abcde",
            "0123456789abcdef-0123456789abcdef0123456789abcdef0",
            "0123456789ABCDEF-0123456789abcdef0123456789abcdef",
            "0123456789abcdef-0123456789abcdef0123456789abcdeg",
            "0123456789abcdef-0123456789abcdef0123456789abcd\u{e9}",
            "+123456789abcdef-0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(ClientId::parse(wrong), Err(Unnamed), "{wrong}");
        }
    }
}
