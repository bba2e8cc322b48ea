//! Parses a node's registry entry into a backend.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;

use crate::config::backend::{Address, BackendId, is_plain_name};
use crate::config::{AllowedAddresses, BackendConfig};

/// What a node writes into the registry, as JSON.
#[derive(Deserialize)]
struct NodeInfo {
    id: String,
    /// Missing if the node accepts no connections from an edge.
    address: Option<String>,
    zone: Option<String>,
    generation: Option<u64>,
    /// It is stopping.
    #[serde(default)]
    leaving: bool,
}

/// The longest entry that is parsed; those of nodes are far shorter.
const INFO_BYTES_MAX: usize = 4096;

/// Why a node of the registry is skipped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub(super) enum SkippedNode {
    #[error(
        "an entry is not JSON of the expected form and at most {} bytes",
        INFO_BYTES_MAX
    )]
    Text,
    #[error("an id is not a valid backend id")]
    Id,
    #[error("{0}: its zone is not a valid name")]
    Zone(BackendId),
    #[error("{0}: its generation is not a number from 1 to {max}", max = BackendConfig::GENERATION_MAX)]
    Generation(BackendId),
    #[error("{0}: its address is not valid")]
    Address(BackendId),
    #[error("{0}: a unix socket is not allowed in a registry")]
    Unix(BackendId),
    #[error("{0}: its address {1} is not in \"discover.allow\"")]
    NotAllowed(BackendId, IpAddr),
}

/// A registered node.
#[derive(Debug, PartialEq)]
pub(super) struct Node {
    pub(super) backend: BackendConfig,
    /// It is stopping.
    pub(super) is_removed: bool,
}

/// Parses an entry; `None` if it has no address.
///
/// An address has to be in `allowed`. A host name is resolved later, so the backend keeps `allowed`.
///
/// # Errors
///
/// [`SkippedNode`] if the entry is malformed, or has a value that is not allowed.
pub(super) fn read(
    node: &str,
    allowed: &Arc<AllowedAddresses>,
) -> Result<Option<Node>, SkippedNode> {
    let info = match node.len() {
        0..=INFO_BYTES_MAX => serde_json::from_str::<NodeInfo>(node).ok(),
        _ => None,
    };
    let info = info.ok_or(SkippedNode::Text)?;
    let id: BackendId = info.id.parse().map_err(|_| SkippedNode::Id)?;
    let Some(address) = info.address else {
        return Ok(None);
    };
    let Ok(address) = address.parse::<Address>() else {
        return Err(SkippedNode::Address(id));
    };
    match &address {
        Address::Unix(_) => return Err(SkippedNode::Unix(id)),
        Address::Ip(address) if !allowed.contains(address.ip()) => {
            return Err(SkippedNode::NotAllowed(id, address.ip()));
        }
        Address::Ip(_) | Address::Name { .. } => {}
    }
    if info
        .zone
        .as_deref()
        .is_some_and(|zone| !is_plain_name(zone))
    {
        return Err(SkippedNode::Zone(id));
    }
    let generations = 1..=BackendConfig::GENERATION_MAX;
    if info
        .generation
        .is_some_and(|generation| !generations.contains(&generation))
    {
        return Err(SkippedNode::Generation(id));
    }
    let backend = BackendConfig {
        id,
        address,
        weight: 1,
        zone: info.zone.map(Into::into),
        generation: info.generation,
        allowed: Some(Arc::clone(allowed)),
        backup: false,
        maintenance: false,
    };
    Ok(Some(Node {
        backend,
        is_removed: info.leaving,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usual(loopback: bool) -> Arc<AllowedAddresses> {
        Arc::new(AllowedAddresses::Routable { loopback })
    }

    #[test]
    fn a_node_with_an_address_is_a_backend() {
        let text =
            r#"{"id":"n1","address":"10.0.0.1:9000","zone":"east","generation":7,"later":1}"#;
        let Node {
            backend,
            is_removed,
        } = read(text, &usual(false)).unwrap().unwrap();
        assert!(!is_removed);
        assert_eq!(backend.id.as_str(), "n1");
        assert_eq!(backend.address.to_string(), "10.0.0.1:9000");
        assert_eq!(backend.zone.as_deref(), Some("east"));
        assert_eq!(backend.generation, Some(7));
    }

    #[test]
    fn a_node_that_is_stopping_is_leaving() {
        let text = r#"{"id":"n1","address":"10.0.0.1:9000","leaving":true}"#;
        assert!(read(text, &usual(false)).unwrap().unwrap().is_removed);
    }

    #[test]
    fn an_entry_without_an_address_or_a_malformed_one_is_no_backend() {
        assert_eq!(read(r#"{"id":"n1"}"#, &usual(true)), Ok(None));
        let long = format!(
            r#"{{"id":"n1","address":"10.0.0.1:9000","more":"{}"}}"#,
            "x".repeat(INFO_BYTES_MAX)
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
    fn a_node_whose_address_is_not_allowed_is_skipped() {
        let is_accepted = |address: &str, allowed: &Arc<AllowedAddresses>| {
            let text = format!(r#"{{"id":"n1","address":"{address}"}}"#);
            read(&text, allowed).is_ok()
        };
        for (address, without_loopback, with_loopback) in [
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
            assert_eq!(
                is_accepted(address, &usual(false)),
                without_loopback,
                "{address}"
            );
            assert_eq!(
                is_accepted(address, &usual(true)),
                with_loopback,
                "{address}"
            );
        }
        let ranges = ["10.1.0.0/16", "127.0.0.1", "169.254.0.0/16"];
        let ranges = ranges.map(|range| range.parse().unwrap()).to_vec();
        let ranges = Arc::new(AllowedAddresses::Ranges(ranges));
        for (address, accepted) in [
            ("10.1.2.3:9000", true),
            ("10.2.2.3:9000", false),
            ("127.0.0.1:9000", true),
            ("127.0.0.2:9000", false),
            ("169.254.1.1:80", true),
            ("[::1]:9000", false),
            ("unix:/run/docker.sock", false),
        ] {
            assert_eq!(is_accepted(address, &ranges), accepted, "{address}");
        }
    }
}
