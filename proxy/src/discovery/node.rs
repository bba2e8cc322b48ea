//! A node as it describes itself, as a backend.

use serde::Deserialize;

use crate::config::BackendConfig;

/// What a node writes into the registry, as JSON.
#[derive(Deserialize)]
struct About {
    id: String,
    /// Missing: it is for nobody to reach.
    address: Option<String>,
    zone: Option<String>,
}

/// The backend that a node is; `None` if it does not say where, or says nonsense, which the log tells.
pub(super) fn backend(pool: &str, node: &str) -> Option<BackendConfig> {
    let refused = |what: &str| {
        tracing::warn!(pool, what, "a node in the registry is passed over");
        None
    };
    let Ok(about) = serde_json::from_str::<About>(node) else {
        return refused("it does not describe itself in JSON");
    };
    let address = about.address?;
    let Ok(address) = address.parse() else {
        return refused("its address is none");
    };
    let Ok(id) = about.id.parse() else {
        return refused("its id cannot be one of a backend");
    };
    Some(BackendConfig {
        id,
        address,
        weight: 1,
        zone: about.zone.map(Into::into),
        backup: false,
        maintenance: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_says_where_it_is_is_a_backend() {
        let text = r#"{"id":"n1","address":"10.0.0.1:9000","zone":"east","later":1}"#;
        let backend = backend("p", text).unwrap();
        assert_eq!(backend.id.as_str(), "n1");
        assert_eq!(backend.address.to_string(), "10.0.0.1:9000");
        assert_eq!(backend.zone.as_deref(), Some("east"));
    }

    #[test]
    fn one_that_says_nothing_or_nonsense_is_none() {
        for text in [
            "",
            "{",
            "[]",
            r#"{"id":"n1"}"#,
            r#"{"id":"n1","address":"10.0.0.1"}"#,
            r#"{"id":"n 1","address":"10.0.0.1:9000"}"#,
            r#"{"id":1,"address":"10.0.0.1:9000"}"#,
        ] {
            assert_eq!(backend("p", text), None, "{text}");
        }
    }
}
