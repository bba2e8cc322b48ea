//! A node as it describes itself, as a backend.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use crate::config::backend::{Address, BackendId, is_plain_name};
use crate::config::{AllowedAddresses, BackendConfig};

/// What a node writes into the registry, as JSON.
#[derive(Deserialize)]
struct About {
    id: String,
    /// Missing: it is for nobody to reach.
    address: Option<String>,
    zone: Option<String>,
    /// It is stopping.
    #[serde(default)]
    leaving: bool,
}

/// What a node says of itself is longer than that only if it is not a node that says it.
const ABOUT_BYTES_MAX: usize = 4096;

/// Why a node of the registry is passed over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(super) enum PassedOver {
    #[error(
        "it does not describe itself in JSON of at most {} bytes",
        ABOUT_BYTES_MAX
    )]
    Text,
    #[error("its id cannot be one of a backend")]
    Id,
    #[error("{0}: its zone is none")]
    Zone(BackendId),
    #[error("{0}: its address is none")]
    Address(BackendId),
    #[error("{0}: unix sockets are not for a registry to name")]
    Unix(BackendId),
    #[error("{0}: its address {1} is not one that \"discover.allow\" has")]
    NotAllowed(BackendId, IpAddr),
}

/// A node, as far as an edge cares.
#[derive(Debug, PartialEq)]
pub(super) struct Node {
    pub(super) backend: BackendConfig,
    /// It is stopping.
    pub(super) is_removed: bool,
}

/// The node that `node` describes; `None` if it does not say where it is.
///
/// An address has to be one of `allowed`. A host name is looked up later: the backend carries `allowed` along.
///
/// # Errors
///
/// [`PassedOver`] if it says nonsense, or what is not believed.
pub(super) fn read(
    node: &str,
    allowed: &Arc<AllowedAddresses>,
) -> Result<Option<Node>, PassedOver> {
    let about = match node.len() {
        0..=ABOUT_BYTES_MAX => serde_json::from_str::<About>(node).ok(),
        _ => None,
    };
    let about = about.ok_or(PassedOver::Text)?;
    let id: BackendId = about.id.parse().map_err(|_| PassedOver::Id)?;
    let Some(address) = about.address else {
        return Ok(None);
    };
    let Ok(address) = address.parse::<Address>() else {
        return Err(PassedOver::Address(id));
    };
    match &address {
        Address::Unix(_) => return Err(PassedOver::Unix(id)),
        Address::Ip(address) if !allowed.contains(address.ip()) => {
            return Err(PassedOver::NotAllowed(id, address.ip()));
        }
        Address::Ip(_) | Address::Name { .. } => {}
    }
    if about
        .zone
        .as_deref()
        .is_some_and(|zone| !is_plain_name(zone))
    {
        return Err(PassedOver::Zone(id));
    }
    let backend = BackendConfig {
        id,
        address,
        weight: 1,
        zone: about.zone.map(Into::into),
        allowed: Some(Arc::clone(allowed)),
        backup: false,
        maintenance: false,
    };
    Ok(Some(Node {
        backend,
        is_removed: about.leaving,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usual(loopback: bool) -> Arc<AllowedAddresses> {
        Arc::new(AllowedAddresses::Routable { loopback })
    }

    #[test]
    fn a_node_that_says_where_it_is_is_a_backend() {
        let text = r#"{"id":"n1","address":"10.0.0.1:9000","zone":"east","later":1}"#;
        let Node {
            backend,
            is_removed,
        } = read(text, &usual(false)).unwrap().unwrap();
        assert!(!is_removed);
        assert_eq!(backend.id.as_str(), "n1");
        assert_eq!(backend.address.to_string(), "10.0.0.1:9000");
        assert_eq!(backend.zone.as_deref(), Some("east"));
    }

    #[test]
    fn one_that_is_stopping_says_so() {
        let text = r#"{"id":"n1","address":"10.0.0.1:9000","leaving":true}"#;
        assert!(read(text, &usual(false)).unwrap().unwrap().is_removed);
    }

    #[test]
    fn one_that_says_nothing_or_nonsense_is_none() {
        assert_eq!(read(r#"{"id":"n1"}"#, &usual(true)), Ok(None));
        let long = format!(
            r#"{{"id":"n1","address":"10.0.0.1:9000","more":"{}"}}"#,
            "x".repeat(ABOUT_BYTES_MAX)
        );
        for text in [
            "",
            "{",
            "[]",
            r#"{"id":"n1","address":"10.0.0.1"}"#,
            r#"{"id":"n 1","address":"10.0.0.1:9000"}"#,
            r#"{"id":1,"address":"10.0.0.1:9000"}"#,
            r#"{"id":"n1","address":"10.0.0.1:9000","zone":"a\nb"}"#,
            &long,
        ] {
            assert!(read(text, &usual(true)).is_err(), "{text}");
        }
    }

    #[test]
    fn an_address_that_is_not_allowed_is_passed_over() {
        let is_taken = |address: &str, allowed: &Arc<AllowedAddresses>| {
            let text = format!(r#"{{"id":"n1","address":"{address}"}}"#);
            read(&text, allowed).is_ok()
        };
        for (address, far, here) in [
            ("10.0.0.1:9000", true, true),
            ("203.0.113.7:9000", true, true),
            ("[fd00::1]:9000", true, true),
            ("node.example:9000", true, true),
            ("127.0.0.1:9000", false, true),
            ("127.255.0.1:9000", false, true),
            ("[::1]:9000", false, true),
            ("[::ffff:127.0.0.1]:9000", false, true),
            ("0.0.0.0:9000", false, false),
            ("0.1.2.3:9000", false, false),
            ("[::]:9000", false, false),
            ("[::ffff:0.0.0.0]:9000", false, false),
            ("169.254.169.254:80", false, false),
            ("[fe80::1]:9000", false, false),
            ("255.255.255.255:9000", false, false),
            ("224.0.0.1:9000", false, false),
            ("[ff02::1]:9000", false, false),
            ("unix:/run/docker.sock", false, false),
        ] {
            assert_eq!(is_taken(address, &usual(false)), far, "{address}");
            assert_eq!(is_taken(address, &usual(true)), here, "{address}");
        }
        let ranges = ["10.1.0.0/16", "127.0.0.1", "169.254.0.0/16"];
        let ranges = ranges.map(|range| range.parse().unwrap()).to_vec();
        let ranges = Arc::new(AllowedAddresses::Ranges(ranges));
        for (address, taken) in [
            ("10.1.2.3:9000", true),
            ("10.2.2.3:9000", false),
            ("127.0.0.1:9000", true),
            ("127.0.0.2:9000", false),
            ("169.254.1.1:80", true),
            ("[::1]:9000", false),
            ("unix:/run/docker.sock", false),
        ] {
            assert_eq!(is_taken(address, &ranges), taken, "{address}");
        }
    }
}
