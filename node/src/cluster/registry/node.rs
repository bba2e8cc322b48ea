//! How nodes describe themselves in the registry.

use serde::Deserialize;
use serde::Serialize;

use super::Lease;
use crate::protocol::instance::Instance;

/// A live node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    /// The process.
    pub(crate) instance: Instance,
    /// Its configured name (`node.id`), for logs and operators.
    pub(crate) id: String,
    /// The address at which edges reach it, if configured.
    pub(crate) address: Option<String>,
    /// The zone in which it runs, if configured.
    pub(crate) zone: Option<String>,
    /// The deploy that it belongs to, if configured.
    pub(crate) generation: Option<u64>,
    /// It is stopping: edges send it no new clients.
    pub(crate) leaving: bool,
}

/// The form in Redis. Edges read it too.
#[derive(Serialize, Deserialize)]
struct About<'a> {
    id: std::borrow::Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<std::borrow::Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<std::borrow::Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    leaving: bool,
}

impl Node {
    /// As JSON.
    pub(super) fn print(&self) -> String {
        let about = About {
            id: self.id.as_str().into(),
            address: self.address.as_deref().map(Into::into),
            zone: self.zone.as_deref().map(Into::into),
            generation: self.generation,
            leaving: self.leaving,
        };
        serde_json::to_string(&about).expect("strings are JSON")
    }

    /// The holder of `lease` by its description; with an empty id if that is undecodable.
    pub(super) fn parse(lease: Lease, about: &str) -> Self {
        let about = serde_json::from_str::<About<'_>>(about).ok();
        let instance = lease.instance;
        match about {
            Some(about) => Self {
                instance,
                id: about.id.into_owned(),
                address: about.address.map(Into::into),
                zone: about.zone.map(Into::into),
                generation: about.generation,
                leaving: about.leaving,
            },
            None => Self {
                instance,
                id: String::new(),
                address: None,
                zone: None,
                generation: None,
                leaving: false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_round_trips() {
        let mut node = Node {
            instance: Instance::random(),
            id: "n\"1".to_owned(),
            address: Some("10.0.0.1:9000".to_owned()),
            zone: None,
            generation: None,
            leaving: false,
        };
        let lease = Lease::first(node.instance);
        assert_eq!(node.print(), r#"{"id":"n\"1","address":"10.0.0.1:9000"}"#);
        assert_eq!(Node::parse(lease, &node.print()), node);
        node.leaving = true;
        node.generation = Some(7);
        let printed = r#"{"id":"n\"1","address":"10.0.0.1:9000","generation":7,"leaving":true}"#;
        assert_eq!(node.print(), printed);
        assert_eq!(Node::parse(lease, printed), node);
    }

    #[test]
    fn a_node_with_an_undecodable_description_is_alive() {
        let lease = Lease::first(Instance::random());
        for nonsense in ["", "{", "[]", r#"{"id":1}"#] {
            let node = Node::parse(lease, nonsense);
            assert_eq!((node.instance, node.id.as_str()), (lease.instance, ""));
        }
    }
}
