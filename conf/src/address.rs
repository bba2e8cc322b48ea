//! Ranges of IP addresses, for trusted proxies.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;
use serde::de::{self, Deserializer, Unexpected, Visitor};

/// One address or one range in CIDR notation (RFC 4632).
///
/// An IPv4 address that arrives in its IPv6 form (`::ffff:10.0.0.1`, RFC 4291 section 2.5.5.2) is the
/// same address here: a dual-stack listener reports it so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressRange(IpNet);

impl AddressRange {
    /// Whether `address` lies in the range.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

/// The text is neither an address nor a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an address or a range, such as \"10.0.0.0/8\", \"192.168.1.7\" or \"fd00::/8\"")]
pub struct BadRange;

impl FromStr for AddressRange {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let range = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address.to_canonical()),
            Err(_) => text.parse::<IpNet>().map_err(|_| BadRange)?,
        };
        Ok(Self(canonical(range)))
    }
}

/// Turns a range of IPv4-mapped IPv6 addresses into the IPv4 range that it means.
fn canonical(range: IpNet) -> IpNet {
    let IpNet::V6(v6) = range else { return range };
    let mapped = Ipv6Addr::to_ipv4_mapped(&v6.addr());
    let v4 = mapped.zip(v6.prefix_len().checked_sub(96));
    match v4.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok()) {
        Some(v4) => IpNet::V4(v4),
        None => range,
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RangeVisitor;
        impl Visitor<'_> for RangeVisitor {
            type Value = AddressRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "an address or a range, such as \"10.0.0.0/8\", \"192.168.1.7\" or \"fd00::/8\"",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<AddressRange, E> {
                text.parse()
                    .map_err(|BadRange| E::invalid_value(Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_str(RangeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(range: &str, address: &str) -> bool {
        let range: AddressRange = range.parse().unwrap();
        range.contains(address.parse().unwrap())
    }

    #[test]
    fn a_range_ends_where_its_prefix_says() {
        assert!(contains("10.0.0.0/8", "10.255.255.255"));
        assert!(!contains("10.0.0.0/8", "11.0.0.0"));
        assert!(contains("192.168.1.7", "192.168.1.7"));
        assert!(!contains("192.168.1.7", "192.168.1.8"));
        assert!(contains("fd00::/8", "fdff::1"));
        assert!(contains("0.0.0.0/0", "8.8.8.8"));
        assert!(!contains("0.0.0.0/0", "::1"));
    }

    #[test]
    fn an_ipv4_address_in_its_ipv6_form_is_the_same_address() {
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(contains("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert!(!contains("::/0", "10.1.2.3"));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for wrong in [
            "",
            "10.0.0.0/33",
            "10.0.0",
            "host",
            "10.0.0.0/8/8",
            " 10.0.0.1",
        ] {
            assert_eq!(wrong.parse::<AddressRange>(), Err(BadRange), "{wrong}");
        }
    }
}
