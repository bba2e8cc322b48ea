//! What one server of a cluster says of all of them: its reply to `CLUSTER NODES`. No I/O.
//!
//! That reply has what `CLUSTER SLOTS` and `CLUSTER SHARDS` leave out: the epoch in which a server got its slots, which decides
//! between servers that say different things.

use crate::config::RedisAddress;
use crate::redis::slot::SLOTS;

/// The longest reply: a thousand servers with scattered slots.
const BYTES_MAX: usize = 4 << 20;

/// The longest id and host name.
const NAME_BYTES_MAX: usize = 255;

/// A server, as another one sees it, or it itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) id: String,
    /// `None`: the one that was asked, which does not know its own address, or one that has none.
    pub(super) address: Option<RedisAddress>,
    pub(super) is_asked: bool,
    pub(super) is_primary: bool,
    /// The id of the primary that it follows.
    pub(super) follows: Option<String>,
    /// When it got its slots; a later one counts.
    pub(super) epoch: u64,
    /// First and last slot of each range.
    pub(super) slots: Vec<(usize, usize)>,
}

/// The reply is none of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its reply to CLUSTER NODES cannot be read: {0}")]
pub(super) struct BadView(&'static str);

/// Which of several names of a server is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    Address,
    /// The host name, if it has one: certificates name it.
    HostName,
}

/// Reads the reply.
///
/// # Errors
///
/// [`BadView`].
pub(super) fn parse(text: &str, naming: Naming) -> Result<Vec<Seen>, BadView> {
    if BYTES_MAX < text.len() {
        return Err(BadView("it is too long"));
    }
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let servers: Vec<Seen> = lines
        .map(|line| server(line, naming))
        .collect::<Result<_, _>>()?;
    match servers.is_empty() {
        true => Err(BadView("it is empty")),
        false => Ok(servers),
    }
}

/// `ID IP:PORT@BUS[,HOST] FLAGS PRIMARY PING PONG EPOCH LINK SLOT...`
fn server(line: &str, naming: Naming) -> Result<Seen, BadView> {
    let mut fields = line.split_ascii_whitespace();
    let mut next = || fields.next().ok_or(BadView("a line is too short"));
    let (id, address, flags, primary) = (next()?, next()?, next()?, next()?);
    let (_ping, _pong, epoch, _link) = (next()?, next()?, next()?, next()?);
    if NAME_BYTES_MAX < id.len() {
        return Err(BadView("an id is too long"));
    }
    let mut ranges = Vec::new();
    for field in fields.filter(|field| !field.starts_with('[')) {
        let (first, last) = field.split_once('-').unwrap_or((field, field));
        let range = (first.parse().ok()).zip(last.parse().ok());
        let range = range.filter(|(first, last): &(usize, usize)| first <= last && *last < SLOTS);
        ranges.push(range.ok_or(BadView("a range of slots is wrong"))?);
    }
    let has = |flag: &str| flags.split(',').any(|found| found == flag);
    Ok(Seen {
        id: id.to_owned(),
        address: self::address(address, naming)?,
        is_asked: has("myself"),
        is_primary: has("master"),
        follows: (primary != "-").then(|| primary.to_owned()),
        epoch: epoch
            .parse()
            .map_err(|_| BadView("an epoch is no number"))?,
        slots: ranges,
    })
}

fn address(text: &str, naming: Naming) -> Result<Option<RedisAddress>, BadView> {
    let wrong = BadView("an address is wrong");
    let mut names = text.split(',');
    let address = names.next().unwrap_or_default();
    let host_name = names
        .next()
        .filter(|name| !name.is_empty() && !name.contains('='));
    let address = address
        .split_once('@')
        .map_or(address, |(address, _)| address);
    let (host, port) = address.rsplit_once(':').ok_or(wrong.clone())?;
    let port: u16 = port.parse().map_err(|_| wrong.clone())?;
    let host = match (naming, host_name) {
        (Naming::HostName, Some(name)) => name,
        _ => host,
    };
    if NAME_BYTES_MAX < host.len() {
        return Err(wrong);
    }
    let is_known = !host.is_empty() && port != 0;
    let host = host.to_owned();
    Ok(is_known.then_some(RedisAddress::Tcp { host, port }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(host: &str, port: u16) -> Option<RedisAddress> {
        let host = host.to_owned();
        Some(RedisAddress::Tcp { host, port })
    }

    #[test]
    fn every_part_of_a_reply_is_read() {
        let text = "a1 127.0.0.1:7001@17001,one.example,shard-id=x myself,master - 0 0 3 connected 0-5460 7 [93-<-b2]\n\
            b2 ::1:7002@17002 slave a1 0 1 3 connected\n\
            c3 :0@0,, master,noaddr - 0 0 0 disconnected\n\n";
        let seen = parse(text, Naming::Address).unwrap();
        assert_eq!(
            seen[0],
            Seen {
                id: "a1".to_owned(),
                address: tcp("127.0.0.1", 7001),
                is_asked: true,
                is_primary: true,
                follows: None,
                epoch: 3,
                slots: vec![(0, 5460), (7, 7)],
            }
        );
        assert_eq!(
            (&seen[1].address, seen[1].is_primary),
            (&tcp("::1", 7002), false)
        );
        assert_eq!(seen[1].follows.as_deref(), Some("a1"));
        assert_eq!(seen[2].address, None);
        let named = parse(text, Naming::HostName).unwrap();
        assert_eq!(named[0].address, tcp("one.example", 7001));
        assert_eq!(named[1].address, tcp("::1", 7002));
    }

    #[test]
    fn other_input_is_rejected() {
        for wrong in [
            "",
            "ERR no",
            "a1 127.0.0.1 master - 0 0 3 connected",
            "a1 127.0.0.1:x@1 master - 0 0 3 connected",
            "a1 127.0.0.1:1@1 master - 0 0 x connected",
            "a1 127.0.0.1:1@1 master - 0 0 1 connected 9-3",
            "a1 127.0.0.1:1@1 master - 0 0 1 connected 0-16384",
        ] {
            assert!(parse(wrong, Naming::Address).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_input_panics(input: String) {
            let _ = parse(&input, Naming::HostName);
        }
    }
}
