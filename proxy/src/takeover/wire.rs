//! The messages between both processes, as bytes: a kind, the length of what follows, and that.
//!
//! Does no I/O. What is read is checked; the other process may be of another version, or damaged.

mod idle;
mod tunnel;

use std::net::SocketAddr;

use zeroize::Zeroizing;

use crate::balancer::pool::{Override, SessionsPart};
pub(super) use crate::takeover::wire::idle::{WireIdle, idle_size, write_idle};
pub(super) use crate::takeover::wire::tunnel::{TUNNEL_MAX, WireTunnel, tunnel_size, write_tunnel};

/// Kind and length.
pub(super) const HEADER: usize = 5;

/// The longest message: a batch of tunnels.
pub(super) const MESSAGE_MAX: usize = 8 << 20;

/// The most listeners.
const LISTENERS_MAX: usize = 250;

/// The versions of the state that this program writes and reads, the preferred one first.
pub(super) const VERSIONS: [u16; 2] = [IDLE_SINCE, 1];

/// The first version in which idle connections are sent.
pub(super) const IDLE_SINCE: u16 = 2;

/// What the first message begins with, in all versions.
const MAGIC: &[u8; 8] = b"causeway";

/// A message; keys may be in it, so it is wiped when it is dropped.
pub(super) type Bytes = Zeroizing<Vec<u8>>;

/// What a message is. The first three, and how they are written, are the same in all versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// From the successor: the versions that it knows.
    Hello = 1,
    /// From the predecessor: the version that both use.
    Version,
    /// From the predecessor: why it does not take part.
    Refused,
    /// From the predecessor: its listeners, with their descriptors.
    Listeners,
    /// From the successor: it has everything that it needs, and could accept.
    Ready,
    /// From the predecessor: it may begin to accept.
    Go,
    /// From the successor: it accepts.
    Accepting,
    /// From the predecessor: it does not accept any more.
    Yours,
    /// From the predecessor: some tunnels, with two descriptors each.
    Tunnels,
    /// From the successor: which of them it can take.
    Took,
    /// From the predecessor: it has given these up for good.
    Commit,
    /// From the predecessor: nothing follows.
    End,
    /// From the predecessor, behind `Ready`: a part of the sessions that a pool remembers.
    Sessions,
    /// From the predecessor, as `Tunnels`: some idle connections, with one descriptor each.
    Idle,
}

impl Kind {
    const ALL: [Self; 14] = [
        Self::Hello,
        Self::Version,
        Self::Refused,
        Self::Listeners,
        Self::Ready,
        Self::Go,
        Self::Accepting,
        Self::Yours,
        Self::Tunnels,
        Self::Took,
        Self::Commit,
        Self::End,
        Self::Sessions,
        Self::Idle,
    ];

    pub(super) fn of(number: u8) -> Option<Self> {
        let index = usize::from(number).checked_sub(1)?;
        Self::ALL.get(index).copied()
    }
}

/// A listener of the predecessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListenerName {
    /// As in its configuration.
    pub(crate) requested: SocketAddr,
    /// The real address.
    pub(crate) address: SocketAddr,
}

/// What the predecessor says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Legacy {
    pub(super) listeners: Vec<ListenerName>,
    /// The pools that have backends.
    pub(super) pools: Vec<String>,
    /// What operators have set for backends.
    pub(super) overrides: Vec<BackendOverride>,
}

/// A drain or a maintenance by an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackendOverride {
    pub(super) pool: String,
    pub(super) backend: String,
    pub(super) to: Override,
}

/// Which tunnels or idle connections of a batch the successor can take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) each: Vec<bool>,
    /// It may not open more descriptors, or connections.
    pub(super) is_full: bool,
}

/// Begins a message of this kind with room for `size` bytes. A buffer that grows would leave copies behind.
pub(super) fn message(kind: Kind, size: usize) -> Writer {
    let mut bytes = Zeroizing::new(Vec::with_capacity(HEADER + size));
    bytes.extend_from_slice(&[kind as u8, 0, 0, 0, 0]);
    Writer(bytes)
}

/// A message without content.
pub(super) fn empty(kind: Kind) -> Bytes {
    message(kind, 0).finish()
}

pub(super) fn hello(versions: &[u16]) -> Bytes {
    let mut writer = message(Kind::Hello, 64);
    writer.0.extend_from_slice(MAGIC);
    writer.length(versions.len());
    versions.iter().for_each(|version| writer.u16(*version));
    writer.finish()
}

/// The best version that both know.
///
/// # Errors
///
/// Why there is none, for the other process.
pub(super) fn read_hello(payload: &[u8]) -> Result<u16, String> {
    let mut reader = Reader(payload);
    let theirs = reader.array().filter(|magic| magic == MAGIC).and_then(|_| {
        let count = reader.length()?;
        (0..count.min(64)).map(|_| reader.u16()).collect()
    });
    let theirs: Vec<u16> = theirs.ok_or("this is no causeway-proxy that takes over")?;
    let common = VERSIONS.into_iter().find(|each| theirs.contains(each));
    common.ok_or_else(|| {
        format!(
            "it knows the versions {theirs:?} of the state, and the running process {VERSIONS:?}"
        )
    })
}

pub(super) fn version(version: u16) -> Bytes {
    let mut writer = message(Kind::Version, 2);
    writer.u16(version);
    writer.finish()
}

/// The version that the predecessor has chosen, if it is one of ours.
pub(super) fn read_version(payload: &[u8]) -> Option<u16> {
    let version = Reader(payload).u16()?;
    VERSIONS.contains(&version).then_some(version)
}

pub(super) fn refused(why: &str) -> Bytes {
    let mut writer = message(Kind::Refused, 4 + why.len());
    writer.text(why);
    writer.finish()
}

pub(super) fn read_refused(payload: &[u8]) -> String {
    let why = Reader(payload).text(1024);
    why.unwrap_or_else(|| "no reason is given".to_owned())
}

pub(super) fn legacy(legacy: &Legacy) -> Bytes {
    let mut writer = message(Kind::Listeners, 1024);
    writer.length(legacy.listeners.len());
    for listener in &legacy.listeners {
        writer.text(&listener.requested.to_string());
        writer.text(&listener.address.to_string());
    }
    writer.length(legacy.pools.len());
    legacy.pools.iter().for_each(|pool| writer.text(pool));
    writer.length(legacy.overrides.len());
    for BackendOverride { pool, backend, to } in &legacy.overrides {
        writer.text(pool);
        writer.text(backend);
        writer.text(to.name());
    }
    writer.finish()
}

pub(super) fn read_legacy(payload: &[u8]) -> Option<Legacy> {
    let mut reader = Reader(payload);
    let count = reader.length().filter(|count| *count <= LISTENERS_MAX)?;
    let listeners = (0..count).map(|_| {
        Some(ListenerName {
            requested: reader.text(100)?.parse().ok()?,
            address: reader.text(100)?.parse().ok()?,
        })
    });
    let listeners = listeners.collect::<Option<_>>()?;
    let count = reader.length()?;
    let pools = (0..count).map(|_| reader.text(1024));
    let pools = pools.collect::<Option<_>>()?;
    let count = reader.length()?;
    let overrides = (0..count).map(|_| {
        Some(BackendOverride {
            pool: reader.text(1024)?,
            backend: reader.text(1024)?,
            to: {
                let name = reader.text(100)?;
                Override::ALL.into_iter().find(|each| each.name() == name)?
            },
        })
    });
    let overrides = overrides.collect::<Option<_>>()?;
    reader.end(Legacy {
        listeners,
        pools,
        overrides,
    })
}

pub(super) fn sessions(pool: &str, part: &SessionsPart) -> Bytes {
    let SessionsPart {
        keys: [first, second],
        sessions_max,
        uses,
        backends,
        words,
        next: _,
    } = part;
    let names: usize = backends.iter().map(|name| 4 + name.len()).sum();
    let mut writer = message(Kind::Sessions, 64 + pool.len() + names + 12 * words.len());
    writer.text(pool);
    for number in [first, second, sessions_max, uses] {
        writer.u64(*number);
    }
    writer.length(backends.len());
    backends.iter().for_each(|name| writer.text(name));
    writer.length(words.len());
    for (place, word) in words {
        writer.length(*place as usize);
        writer.u64(*word);
    }
    writer.finish()
}

/// A part of the sessions of a pool, with its name.
pub(super) fn read_sessions(payload: &[u8]) -> Option<(String, SessionsPart)> {
    let mut reader = Reader(payload);
    let pool = reader.text(1024)?;
    let keys = [reader.u64()?, reader.u64()?];
    let (sessions_max, uses) = (reader.u64()?, reader.u64()?);
    let count = reader.length()?;
    let backends = (0..count).map(|_| reader.text(1024));
    let backends = backends.collect::<Option<_>>()?;
    let count = reader.length()?;
    let words = (0..count).map(|_| Some((u32::try_from(reader.length()?).ok()?, reader.u64()?)));
    let words = words.collect::<Option<_>>()?;
    let part = SessionsPart {
        keys,
        sessions_max,
        uses,
        backends,
        words,
        next: None,
    };
    reader.end((pool, part))
}

pub(super) fn took(taken: &Taken) -> Bytes {
    let mut writer = message(Kind::Took, 5 + taken.each.len());
    writer.flag(taken.is_full);
    writer.length(taken.each.len());
    taken.each.iter().for_each(|it| writer.flag(*it));
    writer.finish()
}

/// Which of `count` are taken.
pub(super) fn read_took(payload: &[u8], count: usize) -> Option<Taken> {
    let mut reader = Reader(payload);
    let is_full = reader.flag()?;
    reader.length().filter(|length| *length == count)?;
    let each = (0..count).map(|_| reader.flag());
    let each = each.collect::<Option<_>>()?;
    reader.end(Taken { each, is_full })
}

/// Begins a batch of `count` tunnels or idle connections, which take `size` bytes.
pub(super) fn batch(kind: Kind, count: usize, size: usize) -> Writer {
    let mut writer = message(kind, 4 + size);
    writer.length(count);
    writer
}

/// The tunnels of a batch, of which there may be `count_max`.
pub(super) fn read_tunnels(payload: &[u8], count_max: usize) -> Option<Vec<WireTunnel>> {
    read_batch(payload, count_max, tunnel::read_tunnel)
}

/// The idle connections of a batch, of which there may be `count_max`.
pub(super) fn read_idle_connections(payload: &[u8], count_max: usize) -> Option<Vec<WireIdle>> {
    read_batch(payload, count_max, idle::read_idle)
}

fn read_batch<T>(
    payload: &[u8],
    count_max: usize,
    read: fn(&mut Reader<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let mut reader = Reader(payload);
    let count = reader.length().filter(|count| *count <= count_max)?;
    let all = (0..count).map(|_| read(&mut reader));
    let all = all.collect::<Option<_>>()?;
    reader.end(all)
}

/// Writes a message.
pub(super) struct Writer(Bytes);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn length(&mut self, value: usize) {
        let value = u32::try_from(value).unwrap_or(u32::MAX);
        self.0.extend_from_slice(&value.to_be_bytes());
    }

    fn flag(&mut self, value: bool) {
        self.u8(value.into());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Writes whether there is a value, and then that.
    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    pub(super) fn finish(mut self) -> Bytes {
        let length = u32::try_from(self.0.len() - HEADER).unwrap_or(u32::MAX);
        self.0[1..HEADER].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

/// Reads what [`Writer`] has written; `None` is anything else.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn length(&mut self) -> Option<usize> {
        let length = self.array().map(u32::from_be_bytes)?;
        usize::try_from(length).ok()
    }

    fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn bytes(&mut self) -> Option<Vec<u8>> {
        let length = self.length()?;
        self.take(length).map(<[u8]>::to_vec)
    }

    fn text(&mut self, bytes_max: usize) -> Option<String> {
        let length = self.length().filter(|length| *length <= bytes_max)?;
        let text = str::from_utf8(self.take(length)?).ok()?;
        Some(text.to_owned())
    }

    /// Reads whether there is a value, and then that.
    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.flag()? {
            true => read(self).map(Some),
            false => Some(None),
        }
    }

    /// `value`, if everything has been read.
    fn end<T>(&self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..600), small in any::<bool>()) {
            if small {
                // Lengths and flags that are possible.
                bytes.iter_mut().for_each(|byte| *byte %= 3);
            }
            let _ = read_hello(&bytes);
            let _ = read_legacy(&bytes);
            let _ = read_took(&bytes, 2);
            let _ = read_tunnels(&bytes, 100);
            let _ = read_idle_connections(&bytes, 100);
        }
    }

    fn payload(bytes: &Bytes) -> &[u8] {
        let (header, payload) = bytes.split_at(HEADER);
        let length = u32::from_be_bytes(header[1..].try_into().unwrap());
        assert_eq!(length as usize, payload.len());
        payload
    }

    #[test]
    fn both_use_the_best_version_that_they_know_or_none() {
        assert_eq!(read_hello(payload(&hello(&VERSIONS))), Ok(VERSIONS[0]));
        assert_eq!(read_hello(payload(&hello(&[9, 1]))), Ok(1));
        let error = read_hello(payload(&hello(&[7, 9]))).unwrap_err();
        assert!(error.contains("[7, 9]"), "{error}");
        for wrong in [
            &b""[..],
            b"GET / HTTP/1.1\r\n\r\n",
            b"causeway\xff\xff\xff\xff",
        ] {
            assert!(read_hello(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(read_version(payload(&version(1))), Some(1));
        assert_eq!(read_version(payload(&version(3))), None);
    }

    #[test]
    fn messages_are_read_as_they_were_written_and_no_part_of_one_is() {
        let named = |requested: &str, address: &str| ListenerName {
            requested: requested.parse().unwrap(),
            address: address.parse().unwrap(),
        };
        let sent = Legacy {
            listeners: vec![
                named("127.0.0.1:0", "127.0.0.1:4711"),
                named("[::]:443", "[::]:443"),
            ],
            pools: vec!["app".to_owned()],
            overrides: vec![BackendOverride {
                pool: "app".to_owned(),
                backend: "n1".to_owned(),
                to: Override::Maintenance,
            }],
        };
        let bytes = legacy(&sent);
        assert_eq!(read_legacy(payload(&bytes)), Some(sent));
        for length in 0..payload(&bytes).len() {
            assert_eq!(read_legacy(&payload(&bytes)[..length]), None, "{length}");
        }
        let part = SessionsPart {
            keys: [1, u64::MAX],
            sessions_max: 65_536,
            uses: 7,
            backends: vec!["n1".to_owned(), String::new()],
            words: vec![(0, 1), (u32::MAX, u64::MAX)],
            next: None,
        };
        let bytes = sessions("app", &part);
        assert_eq!(
            read_sessions(payload(&bytes)),
            Some(("app".to_owned(), part))
        );
        for length in 0..payload(&bytes).len() {
            assert_eq!(read_sessions(&payload(&bytes)[..length]), None, "{length}");
        }
        let taken = Taken {
            each: vec![true, false],
            is_full: true,
        };
        let bytes = took(&taken);
        assert_eq!(read_took(payload(&bytes), 2), Some(taken));
        assert_eq!(read_took(payload(&bytes), 3), None);
        assert_eq!(read_refused(payload(&refused("busy"))), "busy");
        assert_eq!(read_refused(b"\xff"), "no reason is given");
        for kind in Kind::ALL {
            assert_eq!(Kind::of(kind as u8), Some(kind));
        }
        assert_eq!((Kind::of(0), Kind::of(15)), (None, None));
    }
}
