//! Where each key of a YAML document stands.
//!
//! Positions are gone once a text has been deserialized, but checks across keys (duplicate ids, a route to
//! an unknown pool) come after that. So the text is walked once more, as events of the same parser, and the
//! place of every key and list item is written down under its path.

use std::collections::HashMap;

use granit_parser::{Event, Parser};

use crate::error::ConfError;

/// The place of every key of one document, by path (`pools[0].backends[1].id`).
#[derive(Debug, Clone, Default)]
pub struct Positions {
    file: String,
    places: HashMap<String, (usize, usize)>,
    repeated: Vec<ConfError>,
    whole: bool,
}

/// A mapping or sequence that the walk is inside of.
enum Level {
    /// `key` is the path of the entry whose value comes next, or `None` when a key comes next.
    Map {
        path: String,
        key: Option<String>,
    },
    Seq {
        path: String,
        index: usize,
    },
}

impl Positions {
    /// Walks `text`. A text that is not YAML yields what was found before the mistake: serde_yaml reports it.
    pub(crate) fn scan(file: &str, text: &str) -> Self {
        let mut positions = Self {
            file: file.to_owned(),
            ..Self::default()
        };
        let mut levels: Vec<Level> = Vec::new();
        for event in Parser::new_from_str(text) {
            let Ok((event, span)) = event else {
                return positions;
            };
            let place = (span.start.line(), span.start.col() + 1);
            match event {
                Event::MappingStart(..) => {
                    let path = positions.enter(&mut levels, place, None);
                    levels.push(Level::Map { path, key: None });
                }
                Event::SequenceStart(..) => {
                    let path = positions.enter(&mut levels, place, None);
                    levels.push(Level::Seq { path, index: 0 });
                }
                Event::Scalar(value, ..) => {
                    positions.enter(&mut levels, place, Some(&value));
                }
                Event::Alias(..) => {
                    positions.enter(&mut levels, place, None);
                }
                Event::MappingEnd | Event::SequenceEnd => {
                    levels.pop();
                }
                _ => {}
            }
        }
        positions.whole = true;
        positions
    }

    /// Whether the walk came to the end: if not, the text is not YAML.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// One error for each key that a mapping holds a second time, where it does so.
    pub(crate) fn repeated(&self) -> &[ConfError] {
        &self.repeated
    }

    /// Takes note of a node and returns its path; `scalar` is its text if it may be a key.
    fn enter(
        &mut self,
        levels: &mut [Level],
        place: (usize, usize),
        scalar: Option<&str>,
    ) -> String {
        let path = match levels.last_mut() {
            None => return String::new(),
            Some(Level::Seq { path, index }) => {
                let item = format!("{path}[{index}]");
                *index += 1;
                item
            }
            Some(Level::Map { path, key }) => match key.take() {
                Some(value_path) => return value_path,
                None => {
                    let name = scalar.unwrap_or("?");
                    let entry = if path.is_empty() {
                        name.to_owned()
                    } else {
                        format!("{path}.{name}")
                    };
                    *key = Some(entry.clone());
                    entry
                }
            },
        };
        let first = *self.places.entry(path.clone()).or_insert(place);
        if first != place {
            self.repeated.push(ConfError {
                file: self.file.clone(),
                position: Some(place),
                key: path.clone(),
                message: format!("the key stands on line {} already", first.0),
            });
        }
        path
    }

    /// Line and column of `key`, or of the nearest key above it that the file has.
    pub(crate) fn find(&self, key: &str) -> Option<(usize, usize)> {
        let mut key = key;
        loop {
            if let Some(&place) = self.places.get(key) {
                return Some(place);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    /// An error about `key`, such as `pools[0].backends[1].id`.
    ///
    /// A key that the file leaves out is reported where the nearest key above it stands.
    #[must_use]
    pub fn error(&self, key: &str, message: impl Into<String>) -> ConfError {
        ConfError {
            file: self.file.clone(),
            position: self.find(key),
            key: key.to_owned(),
            message: message.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_and_item_has_its_line_and_column() {
        let text =
            "a: 1\nlist:\n  - id: x\n    n: 2\n  - { id: y, n: 3 }\nmap:\n  k:\n    - 1\n    - 2\n";
        let positions = Positions::scan("f", text);
        assert_eq!(positions.find("a"), Some((1, 1)));
        assert_eq!(positions.find("list"), Some((2, 1)));
        assert_eq!(positions.find("list[0]"), Some((3, 5)));
        assert_eq!(positions.find("list[0].n"), Some((4, 5)));
        assert_eq!(positions.find("list[1].id"), Some((5, 7)));
        assert_eq!(positions.find("list[1].n"), Some((5, 14)));
        assert_eq!(positions.find("map.k[1]"), Some((9, 7)));
    }

    #[test]
    fn a_key_that_is_left_out_is_reported_at_the_key_above_it() {
        let positions = Positions::scan("f", "a:\n  b: 1\n");
        assert_eq!(positions.find("a.missing.deeper"), Some((1, 1)));
        assert_eq!(positions.find("missing"), None);
    }

    #[test]
    fn a_value_that_is_an_alias_does_not_shift_what_follows() {
        let positions = Positions::scan("f", "a: &x {b: 1}\nc: *x\nd: 2\n");
        assert_eq!(positions.find("d"), Some((3, 1)));
    }
}
