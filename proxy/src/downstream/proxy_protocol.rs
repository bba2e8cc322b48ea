//! The PROXY protocol, versions 1 and 2: a header in which a load balancer in front sends the client's address.
//!
//! A plain parser of the bytes that have been read so far. The rules are those of HAProxy's `proxy-protocol.txt`: version 1 is one
//! line of at most 107 bytes, version 2 begins with twelve fixed bytes and contains its own length.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest line of version 1, its CR LF included.
const LINE_MAX: usize = 107;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The fixed part of version 2.
const FIXED: usize = 16;

/// The longest header of version 2 that is accepted. Addresses need 36 bytes, the TLVs of balancers some hundred.
const LENGTH_MAX: usize = 4096;

/// Families of addresses in version 2.
const UNSPECIFIED: u8 = 0;
const INET: u8 = 1;
const INET6: u8 = 2;
const UNIX: u8 = 3;

/// Transports in version 2; 0 is unspecified.
const STREAM: u8 = 1;
const DATAGRAM: u8 = 2;

/// With so many bytes a header is always complete or invalid.
pub(crate) const BYTES_MAX: usize = LENGTH_MAX;

/// A valid header, or the beginning of one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// More bytes are needed.
    Partial,
    /// The header is `length` bytes long; the client's own bytes follow.
    Complete {
        length: usize,
        /// `None` for a connection of the balancer itself (LOCAL, a health check), or one that is not TCP.
        client: Option<SocketAddr>,
    },
}

/// The bytes are not a valid PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("no PROXY header: the listener expects one from this peer")]
    Missing,
    #[error(
        "a PROXY line of version 1 that is not \"PROXY TCP4|TCP6|UNKNOWN ...\" with two addresses and two ports"
    )]
    Line,
    #[error("a PROXY header whose version or command is unknown")]
    Version,
    #[error(
        "a PROXY header that is longer than {LENGTH_MAX} bytes, or too short for its addresses"
    )]
    Length,
    #[error("a PROXY header whose family or transport is unknown")]
    Family,
    #[error("a PROXY header with a TLV that does not end within it")]
    Tlv,
}

/// Reads the header at the start of `bytes`.
///
/// # Errors
///
/// [`HeaderError`] as soon as no further bytes can make it valid.
pub(crate) fn parse(bytes: &[u8]) -> Result<Header, HeaderError> {
    let begins = |start: &[u8]| {
        let shared = start.len().min(bytes.len());
        start[..shared] == bytes[..shared]
    };
    if begins(SIGNATURE) {
        version_2(bytes)
    } else if begins(b"PROXY ") {
        version_1(bytes)
    } else {
        Err(HeaderError::Missing)
    }
}

fn version_1(bytes: &[u8]) -> Result<Header, HeaderError> {
    let searched = &bytes[..bytes.len().min(LINE_MAX)];
    let Some(end) = searched.windows(2).position(|pair| pair == b"\r\n") else {
        return match bytes.len() < LINE_MAX {
            true => Ok(Header::Partial),
            false => Err(HeaderError::Line),
        };
    };
    let line = std::str::from_utf8(&bytes[..end]).map_err(|_| HeaderError::Line)?;
    let fields: Vec<&str> = line.split(' ').collect();
    let client = match fields[..] {
        ["PROXY", "UNKNOWN", ..] => None,
        [
            "PROXY",
            family @ ("TCP4" | "TCP6"),
            source,
            destination,
            port,
            destination_port,
        ] => {
            let source = address(family, source)?;
            address(family, destination)?;
            number(destination_port)?;
            Some(SocketAddr::new(source, number(port)?))
        }
        _ => return Err(HeaderError::Line),
    };
    Ok(Header::Complete {
        length: end + 2,
        client,
    })
}

fn address(family: &str, text: &str) -> Result<IpAddr, HeaderError> {
    let address: IpAddr = text.parse().map_err(|_| HeaderError::Line)?;
    match address.is_ipv4() == (family == "TCP4") {
        true => Ok(address),
        false => Err(HeaderError::Line),
    }
}

/// A port in version 1: decimal, without sign or leading zeros.
fn number(text: &str) -> Result<u16, HeaderError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let short = text.len() == 1 || !text.starts_with('0');
    text.parse()
        .ok()
        .filter(|_| plain && short)
        .ok_or(HeaderError::Line)
}

fn version_2(bytes: &[u8]) -> Result<Header, HeaderError> {
    let Some(fixed) = bytes.first_chunk::<FIXED>() else {
        return Ok(Header::Partial);
    };
    let [.., version_and_command, family, high, low] = *fixed;
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    if LENGTH_MAX < length {
        return Err(HeaderError::Length);
    }
    let is_proxied = match version_and_command {
        0x20 => false,
        0x21 => true,
        _ => return Err(HeaderError::Version),
    };
    let Some(addresses) = bytes.get(FIXED..length) else {
        return Ok(Header::Partial);
    };
    if !is_proxied {
        // LOCAL: addresses in it are ignored.
        return Ok(Header::Complete {
            length,
            client: None,
        });
    }
    let (family, transport) = (family >> 4, family & 0xf);
    let known = transport <= DATAGRAM;
    let length_of_ends = match family {
        UNSPECIFIED if known => None,
        INET if known => Some(12),
        INET6 if known => Some(36),
        UNIX if known => Some(216),
        _ => return Err(HeaderError::Family),
    };
    if let Some(length_of_ends) = length_of_ends {
        let more = addresses.get(length_of_ends..).ok_or(HeaderError::Length)?;
        check_tlvs(more)?;
    }
    let client = match (family, transport) {
        (INET, STREAM) => ends_v4(addresses),
        (INET6, STREAM) => ends_v6(addresses),
        _ => None,
    };
    Ok(Header::Complete { length, client })
}

/// Checks the TLVs after the addresses: each has a type, a length of two bytes, and that many bytes.
fn check_tlvs(mut more: &[u8]) -> Result<(), HeaderError> {
    while let [_, high, low, rest @ ..] = more {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        more = rest.get(length..).ok_or(HeaderError::Tlv)?;
    }
    match more {
        [] => Ok(()),
        _ => Err(HeaderError::Tlv),
    }
}

/// Source address, destination address, source port, destination port.
fn ends_v4(bytes: &[u8]) -> Option<SocketAddr> {
    let [a, b, c, d, _, _, _, _, high, low, _, _] = *bytes.first_chunk::<12>()?;
    let port = u16::from_be_bytes([high, low]);
    Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), port))
}

fn ends_v6(bytes: &[u8]) -> Option<SocketAddr> {
    let ends = bytes.first_chunk::<36>()?;
    let source = Ipv6Addr::from(*ends.first_chunk::<16>()?);
    let port = u16::from_be_bytes([ends[32], ends[33]]);
    Some(SocketAddr::new(source.into(), port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, addresses].concat()
    }

    fn complete(length: usize, client: Option<&str>) -> Result<Header, HeaderError> {
        let client = client.map(|text| text.parse().unwrap());
        Ok(Header::Complete { length, client })
    }

    #[test]
    fn headers_of_version_1_are_parsed() {
        let cases: [(&str, Result<Header, HeaderError>); 12] = [
            (
                "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\nGET",
                complete(45, Some("192.0.2.1:56324")),
            ),
            (
                "PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n",
                complete(40, Some("[2001:db8::1]:1")),
            ),
            ("PROXY UNKNOWN\r\n", complete(15, None)),
            (
                "PROXY UNKNOWN ffff:f...f:ffff 65535\r\n",
                complete(37, None),
            ),
            ("PROXY TCP4 192.0.2.1", Ok(Header::Partial)),
            (
                "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n",
                Ok(Header::Partial),
            ),
            (
                "PROXY TCP4 2001:db8::1 198.51.100.1 1 2\r\n",
                Err(HeaderError::Line),
            ),
            (
                "PROXY TCP4 192.0.2.1 198.51.100.1 65536 2\r\n",
                Err(HeaderError::Line),
            ),
            (
                "PROXY TCP4 192.0.2.1 198.51.100.1 +1 2\r\n",
                Err(HeaderError::Line),
            ),
            (
                "PROXY TCP4 192.0.2.1  198.51.100.1 1 2\r\n",
                Err(HeaderError::Line),
            ),
            (
                "PROXY UDP4 192.0.2.1 198.51.100.1 1 2\r\n",
                Err(HeaderError::Line),
            ),
            ("GET / HTTP/1.1\r\n", Err(HeaderError::Missing)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text.as_bytes()), expected, "{text:?}");
        }
        let endless = [b"PROXY TCP4 ".to_vec(), vec![b'1'; LINE_MAX]].concat();
        assert_eq!(parse(&endless), Err(HeaderError::Line));
    }

    #[test]
    fn headers_of_version_2_are_parsed() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 1, 187];
        let mut v6 = [0; 36];
        (v6[15], v6[33]) = (1, 9);
        let more = [&v4[..], &[0x04, 0, 1, 7]].concat();
        assert_eq!(
            parse(&v2(0x21, 0x11, &v4)),
            complete(28, Some("192.0.2.1:56324"))
        );
        assert_eq!(
            parse(&v2(0x21, 0x11, &more)),
            complete(32, Some("192.0.2.1:56324"))
        );
        assert_eq!(parse(&v2(0x21, 0x21, &v6)), complete(52, Some("[::1]:9")));
        assert_eq!(parse(&v2(0x20, 0x00, &[])), complete(16, None), "LOCAL");
        assert_eq!(
            parse(&v2(0x21, 0x31, &[0; 216])),
            complete(232, None),
            "unix"
        );
        assert_eq!(parse(&v2(0x21, 0x11, &v4[..11])), Err(HeaderError::Length));
        assert_eq!(parse(&v2(0x21, 0x21, &v6[..35])), Err(HeaderError::Length));
        assert_eq!(parse(&v2(0x21, 0x12, &v4)), complete(28, None), "UDP");
        assert_eq!(
            parse(&v2(0x21, 0x00, &v4)),
            complete(28, None),
            "unspecified"
        );
        for family in [0x13, 0x1f, 0x41, 0xf1] {
            assert_eq!(parse(&v2(0x21, family, &v4)), Err(HeaderError::Family));
        }
        for tlv in [
            &[4][..],
            &[4, 0],
            &[4, 0, 2, 7],
            &[4, 255, 255],
            &[4, 0, 0, 4],
        ] {
            let wrong = [&v4[..], tlv].concat();
            assert_eq!(parse(&v2(0x21, 0x11, &wrong)), Err(HeaderError::Tlv));
        }
        assert_eq!(parse(&v2(0x22, 0x11, &v4)), Err(HeaderError::Version));
        assert_eq!(parse(&v2(0x11, 0x11, &v4)), Err(HeaderError::Version));
        assert_eq!(
            parse(&v2(0x21, 0x11, &[0; LENGTH_MAX])),
            Err(HeaderError::Length)
        );
    }

    #[test]
    fn every_prefix_of_a_header_is_partial() {
        let headers = [
            v2(0x21, 0x11, &[0; 12]),
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n".to_vec(),
        ];
        for header in headers {
            for length in 1..header.len() {
                assert_eq!(parse(&header[..length]), Ok(Header::Partial), "{length}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_wait_forever(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for start in [&b""[..], b"PROXY ", b"PROXY TCP4 ", SIGNATURE] {
                let bytes = [start, &bytes].concat();
                match parse(&bytes) {
                    Ok(Header::Partial) => prop_assert!(bytes.len() < BYTES_MAX),
                    Ok(Header::Complete { length, .. }) => prop_assert!(length <= bytes.len()),
                    Err(_) => {}
                }
            }
        }
    }
}
