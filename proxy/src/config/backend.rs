//! The id and the address of a backend.
//!
//! Both are validated when the configuration is read: an id fits in a cookie, a metric label and a log line, and an address has a
//! port. Names are not resolved here.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// The stable id of a backend, unique in the whole file. Cheap to clone.
///
/// Invariant: 1 to [`BackendId::BYTES_MAX`] of ASCII letters, digits, `.`, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BackendId(Arc<str>);

impl BackendId {
    /// The longest id: it is part of every cookie.
    pub(crate) const BYTES_MAX: usize = 64;

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text cannot be a backend id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to 64 ASCII letters, digits, \".\", \"_\" or \"-\"")]
pub(crate) struct BadBackendId;

impl FromStr for BackendId {
    type Err = BadBackendId;

    fn from_str(text: &str) -> Result<Self, BadBackendId> {
        if is_plain_name(text) {
            Ok(Self(Arc::from(text)))
        } else {
            Err(BadBackendId)
        }
    }
}

/// Whether `name` is valid as an id or a zone: 1 to 64 ASCII letters, digits, `.`, `_` and `-`.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=BackendId::BYTES_MAX).contains(&name.len()) && name.bytes().all(plain)
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a backend listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A host name, resolved at each dial, since its addresses may change.
    Name {
        /// The name, lower case.
        host: String,
        port: u16,
    },
    /// The absolute path of a unix socket.
    Unix(PathBuf),
}

/// The text is not an address of a backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected \"10.0.0.7:9000\", \"[::1]:9000\", \"host.example:9000\" or \"unix:/run/app.sock\"{0}"
)]
pub(crate) struct BadAddress(&'static str);

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path);
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return match address.port() {
                0 => Err(BadAddress(", with a port that is not 0")),
                _ => Ok(Self::Ip(address)),
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or(BadAddress(", with its port"))?;
        let port: u16 = match port.parse() {
            Ok(0) | Err(_) => return Err(BadAddress(", with a port from 1 to 65535")),
            Ok(port) => port,
        };
        if !is_host_name(host) {
            return Err(BadAddress(""));
        }
        Ok(Self::Name {
            host: host.to_ascii_lowercase(),
            port,
        })
    }
}

fn unix(path: &str) -> Result<Address, BadAddress> {
    // `sun_path` has 108 bytes, the last of which is zero.
    if !path.starts_with('/') || 107 < path.len() || path.contains('\0') {
        return Err(BadAddress(
            ", the path of a unix socket being absolute and at most 107 bytes long",
        ));
    }
    Ok(Address::Unix(PathBuf::from(path)))
}

/// Whether `host` is a host name by RFC 1123, section 2.1. Underscores occur in container networks.
pub(crate) fn is_host_name(host: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    // A name whose last label is a number would be a mistyped IPv4 address.
    host.len() <= 253
        && host.split('.').all(label)
        && !host.rsplit('.').next().is_some_and(is_number)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_short_and_plain() {
        for good in ["a", "node-1.example.com", "n_1", &"x".repeat(64)] {
            assert!(good.parse::<BackendId>().is_ok(), "{good}");
        }
        for bad in ["", "a b", "a;b", "a=b", "ü", "a~b", &"x".repeat(65)] {
            assert!(bad.parse::<BackendId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_reads_back_as_it_was_written() {
        for text in [
            "127.0.0.1:9001",
            "[::1]:9001",
            "localhost:80",
            "app_1:65535",
            "a.b-c.example:8080",
            "unix:/run/app.sock",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn invalid_addresses_are_errors() {
        for text in [
            "",
            "127.0.0.1",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "::1:80x",
            "300.1.1.1:80",
            "[::1]",
            "host",
            "-host:80",
            "ho st:80",
            ":80",
            "unix:run/app.sock",
            "unix:",
            "http://host:80",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
