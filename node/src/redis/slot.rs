//! Hash slots: which part of a Redis Cluster a key or a sharded channel belongs to. No I/O.

use std::fmt;

/// How many slots a cluster has.
pub(crate) const SLOTS: usize = 16_384;

/// A slot.
///
/// Invariant: less than [`SLOTS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Slot(u16);

impl Slot {
    /// The slot of `key`: of what stands in its first braces, or of all of it if nothing does.
    pub(crate) fn of(key: &[u8]) -> Self {
        Self(crc16(hashed(key)) % SLOTS as u16)
    }

    /// `None` if there is no such slot.
    pub(crate) fn new(number: usize) -> Option<Self> {
        let number = u16::try_from(number).ok()?;
        (usize::from(number) < SLOTS).then_some(Self(number))
    }

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The part of a key that is hashed.
fn hashed(key: &[u8]) -> &[u8] {
    let position = |bytes: &[u8], wanted| bytes.iter().position(|byte| *byte == wanted);
    let Some(open) = position(key, b'{') else {
        return key;
    };
    let rest = &key[open + 1..];
    match position(rest, b'}') {
        None | Some(0) => key,
        Some(length) => &rest[..length],
    }
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        let index = (crc >> 8) ^ u16::from(*byte);
        (crc << 8) ^ TABLE[usize::from(index)]
    })
}

const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = (index as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_that_redis_computes() {
        // `CLUSTER KEYSLOT`.
        for (key, slot) in [
            ("123456789", 12_739),
            ("", 0),
            ("global", 10_408),
            ("foo", 12_182),
            ("{user1000}.following", 3443),
            ("{user1000}.followers", 3443),
            ("foo{}{bar}", 8363),
            ("foo{{bar}}zap", 4015),
            ("foo{bar}{zap}", 5061),
            ("foo{bar", 15_278),
        ] {
            assert_eq!(Slot::of(key.as_bytes()).index(), slot, "{key}");
        }
    }

    #[test]
    fn a_slot_is_below_the_number_of_slots() {
        assert_eq!(Slot::new(SLOTS), None);
        assert_eq!(Slot::new(SLOTS - 1).map(Slot::index), Some(SLOTS - 1));
        assert_eq!(Slot::new(usize::MAX), None);
    }
}
