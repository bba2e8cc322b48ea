//! The client's address: that of the peer, or the one that a trusted proxy forwards.

use std::net::IpAddr;
use std::net::SocketAddr;

use causeway_conf::AddressRange;
use http::HeaderMap;
use http::HeaderName;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How many hops are examined, from this side.
const HOPS_MAX: usize = 32;

/// Whether `address` is one of the trusted proxies.
pub(super) fn is_trusted(trusted: &[AddressRange], address: IpAddr) -> bool {
    trusted.iter().any(|proxy| proxy.contains(address))
}

/// The client behind `peer`.
///
/// Each proxy appends its peer to `X-Forwarded-For`, so the client is the last address there that is not a
/// trusted proxy's; addresses before it are chosen by the client. If the chain is malformed, it is the
/// farthest known proxy.
pub(super) fn client_address(
    headers: &HeaderMap,
    peer: IpAddr,
    trusted: &[AddressRange],
) -> IpAddr {
    let mut client = peer.to_canonical();
    let chains = headers.get_all(X_FORWARDED_FOR).iter().rev();
    let hops = chains.flat_map(|chain| chain.to_str().unwrap_or("?").rsplit(','));
    for hop in hops.take(HOPS_MAX) {
        if !is_trusted(trusted, client) {
            break;
        }
        match address(hop.trim()) {
            Some(hop) => client = hop,
            None => break,
        }
    }
    client
}

/// An address with or without a port: `1.2.3.4`, `1.2.3.4:80`, `::1`, `[::1]`, `[::1]:80`.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse::<IpAddr>().ok();
    let address = address.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(peer: &str, chains: &[&'static str]) -> String {
        let trusted = ["10.0.0.0/8", "fd00::/8"].map(|range| range.parse().unwrap());
        let mut headers = HeaderMap::new();
        for chain in chains {
            headers.append(X_FORWARDED_FOR, chain.parse().unwrap());
        }
        client_address(&headers, peer.parse().unwrap(), &trusted).to_string()
    }

    #[test]
    fn only_trusted_proxies_are_used() {
        assert_eq!(client("192.0.2.9", &["203.0.113.1"]), "192.0.2.9");
        assert_eq!(client("10.0.0.1", &["203.0.113.1"]), "203.0.113.1");
        assert_eq!(client("::ffff:10.0.0.1", &["203.0.113.1"]), "203.0.113.1");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn the_client_is_the_last_one_who_is_no_proxy() {
        for (chains, expected) in [
            (&["198.51.100.7, 203.0.113.1"][..], "203.0.113.1"),
            (&["198.51.100.7", "203.0.113.1, fd00::1"], "203.0.113.1"),
            (&["203.0.113.1, 10.1.1.1 ,10.2.2.2"], "203.0.113.1"),
            (&["10.1.1.1"], "10.1.1.1"),
        ] {
            assert_eq!(client("10.0.0.1", chains), expected, "{chains:?}");
        }
    }

    #[test]
    fn ports_and_brackets_are_taken_off_and_nonsense_ends_the_chain() {
        for (chain, expected) in [
            ("203.0.113.1:4711", "203.0.113.1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("203.0.113.1, unknown", "10.0.0.1"),
            ("203.0.113.1, unknown, 10.9.9.9", "10.9.9.9"),
            ("", "10.0.0.1"),
        ] {
            assert_eq!(client("10.0.0.1", &[chain]), expected, "{chain:?}");
        }
    }
}
