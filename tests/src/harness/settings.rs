//! A configuration file in the making.
//!
//! YAML contains JSON, so a tree of JSON values written as JSON is a valid configuration file.

use serde_json::{Map, Value};

/// The settings of one program, to be changed key by key.
#[derive(Clone, Debug)]
pub struct Settings {
    root: Value,
}

impl Settings {
    /// Starts from `root`, an object.
    #[must_use]
    pub fn new(root: Value) -> Self {
        debug_assert!(root.is_object(), "a configuration file is a mapping");
        Self { root }
    }

    /// Sets the value at a path of keys with dots between them, such as `timeouts.head`.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        let mut place = &mut self.root;
        for part in key.split('.') {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            place = &mut place[part];
        }
        *place = value;
        self
    }

    /// The value at a key, or null.
    #[must_use]
    pub fn get(&self, key: &str) -> &Value {
        &self.root[key]
    }

    /// The text of the file.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{:#}\n", self.root)
    }
}
