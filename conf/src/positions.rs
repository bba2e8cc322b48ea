//! Where each key of a configuration is.
//!
//! Positions are gone once a text has been deserialized, but checks across keys (duplicate ids, a route to
//! an unknown pool) come after that.

use crate::error::ConfError;
use crate::tree::Content;
use crate::tree::Node;
use crate::tree::Place;
use crate::tree::empty_map;

/// The place of every key of one configuration, by path (`pools[0].backends[1].id`).
#[derive(Debug, Clone)]
pub struct Positions {
    file: String,
    root: Node,
    renamed: Vec<ConfError>,
}

/// The same as for an empty file without a name.
impl Default for Positions {
    fn default() -> Self {
        let start = Place {
            variable: None,
            line: 1,
            column: 1,
            old_name: None,
        };
        Self::new("", empty_map(start), Vec::new())
    }
}

impl Positions {
    pub(crate) fn new(file: &str, root: Node, renamed: Vec<ConfError>) -> Self {
        Self {
            file: file.to_owned(),
            root,
            renamed,
        }
    }

    /// A warning for each setting that is given under an old name.
    #[must_use]
    pub fn renamed(&self) -> &[ConfError] {
        &self.renamed
    }

    /// An error about `key`, such as `pools[0].backends[1].id`.
    ///
    /// A key that is left out is reported where the nearest key above it stands.
    #[must_use]
    pub fn error(&self, key: &str, message: impl Into<String>) -> ConfError {
        let error = ConfError {
            file: self.file.clone(),
            position: None,
            key: key.to_owned(),
            message: message.into(),
        };
        match self.root.place_of(key) {
            Some(place) => error.at(place),
            None => error,
        }
    }

    /// The single value of `key` as it is written; `None` if it is not given, or null.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.written(key)? {
            Content::Scalar(scalar) if !scalar.is_null() => Some(&scalar.text),
            _ => None,
        }
    }

    /// Whether `key` is given, and not null.
    #[must_use]
    pub fn is_given(&self, key: &str) -> bool {
        self.root.find(key).is_some_and(|node| !node.is_null())
    }

    /// The names in the mapping of `key`.
    #[must_use]
    pub fn names(&self, key: &str) -> Vec<&str> {
        match self.written(key) {
            Some(Content::Map(entries)) => entries.iter().map(|entry| &*entry.key).collect(),
            _ => Vec::new(),
        }
    }

    /// Where the value of `key` itself is given; `None`: nowhere.
    pub(crate) fn source(&self, key: &str) -> Option<String> {
        self.root.find(key)?;
        let place = self.root.place_of(key)?;
        let source = place.shown(&self.file);
        Some(match (place.old_name, &place.variable) {
            (Some(old), None) => format!("{source}, as {old}"),
            _ => source,
        })
    }

    /// The value of `key` as it is written.
    pub(crate) fn written(&self, key: &str) -> Option<&Content> {
        self.root.find(key).map(|node| &node.content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree;

    fn find(positions: &Positions, key: &str) -> Option<(usize, usize)> {
        positions.error(key, "").position
    }

    fn scan(text: &str) -> Positions {
        Positions::new("f", tree::parse(text, None).unwrap(), Vec::new())
    }

    #[test]
    fn every_key_and_item_has_its_line_and_column() {
        let text =
            "a: 1\nlist:\n  - id: x\n    n: 2\n  - { id: y, n: 3 }\nmap:\n  k:\n    - 1\n    - 2\n";
        let positions = scan(text);
        assert_eq!(find(&positions, "a"), Some((1, 1)));
        assert_eq!(find(&positions, "list"), Some((2, 1)));
        assert_eq!(find(&positions, "list[0]"), Some((3, 5)));
        assert_eq!(find(&positions, "list[0].n"), Some((4, 5)));
        assert_eq!(find(&positions, "list[1].id"), Some((5, 7)));
        assert_eq!(find(&positions, "list[1].n"), Some((5, 14)));
        assert_eq!(find(&positions, "map.k[1]"), Some((9, 7)));
    }

    #[test]
    fn a_key_that_is_left_out_is_reported_at_the_key_above_it() {
        let positions = scan("a:\n  b: 1\n");
        assert_eq!(find(&positions, "a.missing.deeper"), Some((1, 1)));
        assert_eq!(find(&positions, "missing"), None);
        assert_eq!(positions.source("a.b").as_deref(), Some("f:2"));
        assert_eq!(positions.source("a.missing"), None);
    }

    #[test]
    fn a_name_with_dots_is_one_key() {
        let positions = scan("h:\n  a: 1\n  a.b: 2\n");
        assert_eq!(find(&positions, "h.a.b"), Some((3, 3)));
    }

    #[test]
    fn what_an_alias_stands_for_is_where_it_is_written() {
        let positions = scan("a: &x {b: 1}\nc: *x\nd: 2\n");
        assert_eq!(find(&positions, "c"), Some((2, 1)));
        assert_eq!(find(&positions, "c.b"), Some((1, 8)));
        assert_eq!(find(&positions, "d"), Some((3, 1)));
    }
}
