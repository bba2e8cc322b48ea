//! The errors by which a server of a cluster says that a command belongs elsewhere, or cannot be executed now. No I/O.

use crate::config::RedisAddress;
use crate::redis::slot::Slot;

/// What to do with a command that was rejected, and certainly not executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Redirect {
    /// The slot belongs to another server: send it there, and everything else of the slot too.
    Moved {
        slot: Slot,
        to: Option<RedisAddress>,
    },
    /// The slot is on its way to another server, and the keys are there: send this command there, after `ASKING`.
    Ask {
        slot: Slot,
        to: Option<RedisAddress>,
    },
    /// Retry: some of the keys are on their way, or the slot is not served now.
    Later,
}

impl Redirect {
    /// Reads the error `code` with its `detail`; `None`: it is another error.
    pub(crate) fn parse(code: &str, detail: &str) -> Option<Self> {
        match code {
            "MOVED" => {
                let (slot, to) = target(detail)?;
                Some(Self::Moved { slot, to })
            }
            "ASK" => {
                let (slot, to) = target(detail)?;
                Some(Self::Ask { slot, to })
            }
            "TRYAGAIN" | "CLUSTERDOWN" => Some(Self::Later),
            _ => None,
        }
    }

    /// Reads an error as it is on the wire.
    pub(crate) fn of_text(text: &str) -> Option<Self> {
        let (code, detail) = text.split_once(' ').unwrap_or((text, ""));
        Self::parse(code, detail)
    }
}

/// Reads `SLOT HOST:PORT`. An empty host, or `?`, is one that the server does not know.
fn target(detail: &str) -> Option<(Slot, Option<RedisAddress>)> {
    let (slot, address) = detail.trim().split_once(' ')?;
    let slot = Slot::new(slot.parse().ok()?)?;
    let address = address.trim().rsplit_once(':').and_then(|(host, port)| {
        let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_known = !host.is_empty() && host != "?";
        let host = host.to_owned();
        is_known.then_some(RedisAddress::Tcp { host, port })
    });
    Some((slot, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, port: u16) -> Option<RedisAddress> {
        let host = host.to_owned();
        Some(RedisAddress::Tcp { host, port })
    }

    #[test]
    fn redirects_name_slot_and_server() {
        let slot = Slot::new(3999).unwrap();
        let moved = |to| Some(Redirect::Moved { slot, to });
        for (text, expected) in [
            (
                "MOVED 3999 127.0.0.1:6381",
                moved(address("127.0.0.1", 6381)),
            ),
            ("MOVED 3999 ::1:6381", moved(address("::1", 6381))),
            (
                "MOVED 3999 redis.example:6381",
                moved(address("redis.example", 6381)),
            ),
            ("MOVED 3999 :6381", moved(None)),
            ("MOVED 3999 ?:6381", moved(None)),
            ("MOVED 3999 127.0.0.1:0", moved(None)),
            (
                "ASK 3999 127.0.0.1:6381",
                Some(Redirect::Ask {
                    slot,
                    to: address("127.0.0.1", 6381),
                }),
            ),
            ("TRYAGAIN Multiple keys request", Some(Redirect::Later)),
            ("CLUSTERDOWN Hash slot not served", Some(Redirect::Later)),
        ] {
            assert_eq!(Redirect::of_text(text), expected, "{text}");
        }
    }

    #[test]
    fn other_errors_are_none() {
        for text in [
            "",
            "MOVED",
            "MOVED x y:1",
            "MOVED 16384 a:1",
            "ERR MOVED 1 a:1",
            "NOPERM",
        ] {
            assert_eq!(Redirect::of_text(text), None, "{text}");
        }
    }
}
