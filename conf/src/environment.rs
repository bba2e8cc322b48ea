//! Settings from environment variables, as containers have them: `CAUSEWAY_NODE__BROKER__URL` is `broker.url`.
//!
//! The prefix names the program. Behind it are the names of settings in upper or lower case, with two underscores between
//! them; in a list, an index. What a variable sets takes the place of what the file says, before anything is checked.

use std::cmp::Ordering;
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::sync::Arc;

use crate::error::ConfError;
use crate::renamed::OLD_NAME_ENDS;
use crate::renamed::RenamedSetting;
use crate::renamed::RenamedSettings;
use crate::tree;
use crate::tree::Content;
use crate::tree::Entry;
use crate::tree::Node;
use crate::tree::Place;
use crate::tree::Scalar;
use crate::words;

/// What stands between the names in a variable.
const SEPARATOR: &str = "__";

/// The variables of one program. `Debug` shows no values: they may be secrets.
#[derive(Clone, Default)]
pub struct Environment {
    prefix: &'static str,
    variables: Vec<Variable>,
    errors: Vec<ConfError>,
}

#[derive(Clone)]
struct Variable {
    name: Arc<str>,
    path: Vec<Segment>,
    value: String,
}

/// One step to a setting. Items are in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    Item(usize),
    Name(String),
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.variables.iter().map(|variable| &variable.name);
        f.debug_list().entries(names).finish()
    }
}

impl Environment {
    /// Those of this process whose names begin with `prefix`, such as `CAUSEWAY_NODE`, and two underscores.
    #[must_use]
    pub fn of_process(prefix: &'static str) -> Self {
        Self::new(prefix, env::vars_os())
    }

    /// The same, of these variables. One with an empty value counts as not set.
    pub fn new(
        prefix: &'static str,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let mut environment = Self {
            prefix,
            ..Self::default()
        };
        for (name, value) in variables {
            let name = name.to_string_lossy();
            let rest = name.strip_prefix(prefix);
            let Some(rest) = rest.and_then(|rest| rest.strip_prefix(SEPARATOR)) else {
                continue;
            };
            match variable(&name, rest, value) {
                Ok(Some(variable)) => environment.variables.push(variable),
                Ok(None) => {}
                Err(message) => {
                    let error = environment.error(&name, "", message);
                    environment.errors.push(error);
                }
            }
        }
        environment
    }

    /// The same with the new names of `settings`, and in the order in which it is applied. `warn` gets one warning for each
    /// variable with an old name.
    pub(crate) fn renamed(&self, settings: RenamedSettings, warn: &mut Vec<ConfError>) -> Self {
        let mut environment = self.clone();
        for variable in &mut environment.variables {
            for setting in settings {
                let Some(depth) = variable.depth_of(setting) else {
                    continue;
                };
                let old = key(&variable.path[..=depth]);
                variable.path[depth] = Segment::Name(setting.new.to_owned());
                let new = self.variable_of(&variable.path);
                let message = format!("the variable is called {new} now; {OLD_NAME_ENDS}");
                warn.push(self.error(&variable.name, &old, message));
            }
        }
        environment.put_in_order();
        environment
    }

    /// A setting comes before what is inside of it, and items come in their order. Two variables for one setting are an error.
    fn put_in_order(&mut self) {
        let order = |a: &Variable, b: &Variable| match a.path.cmp(&b.path) {
            Ordering::Equal => a.name.cmp(&b.name),
            order => order,
        };
        self.variables.sort_by(order);
        for index in 1..self.variables.len() {
            let [one, other] = [index - 1, index].map(|at| &self.variables[at]);
            if one.path == other.path {
                let message = format!("the variable {} sets the same", one.name);
                let error = self.error(&other.name, &key(&other.path), message);
                self.errors.push(error);
            }
        }
    }

    /// Whether no setting comes from it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.variables.is_empty() && self.errors.is_empty()
    }

    /// Sets in `root` what the variables set, which [`Environment::renamed`] has put in order. `file` is how the file is named in errors.
    pub(crate) fn apply(&self, root: &mut Node, file: &str) -> Vec<ConfError> {
        let mut errors = self.errors.clone();
        for variable in &self.variables {
            match variable.value() {
                Err(message) => {
                    errors.push(self.error(&variable.name, &key(&variable.path), message));
                }
                Ok(value) => {
                    let set = self.set(root, variable, value, file);
                    errors.extend(set.err());
                }
            }
        }
        errors
    }

    fn set(
        &self,
        root: &mut Node,
        variable: &Variable,
        value: Node,
        file: &str,
    ) -> Result<(), ConfError> {
        let mut node = root;
        let place = variable.place();
        for (depth, segment) in variable.path.iter().enumerate() {
            let path = &variable.path[..depth];
            let fail = |message: String| self.error(&variable.name, &key(path), message);
            if node.is_null() {
                // Nothing so far: the segment says whether it is a list.
                node.place = place.clone();
                node.content = match segment {
                    Segment::Item(_) => Content::List(Vec::new()),
                    Segment::Name(_) => Content::Map(Vec::new()),
                };
            }
            let parent = self.variable_of(path);
            node = match (&mut node.content, segment) {
                (Content::Scalar(_), _) => {
                    let at = node.place.shown(file);
                    return Err(fail(format!(
                        "{at} gives it a single value, which has no settings inside: set {parent} instead"
                    )));
                }
                (Content::List(items), Segment::Item(index)) => {
                    let (index, len) = (*index, items.len());
                    if len < index {
                        let others = match len {
                            0 => "the list has no items: expected the index 0".to_owned(),
                            1 => "the list has one item: expected the index 0, or 1".to_owned(),
                            len => format!(
                                "the list has {len} items: expected an index from 0 to {}, or {len}",
                                len - 1
                            ),
                        };
                        return Err(fail(format!("{others} for a new one, found {index}")));
                    }
                    if index == len {
                        items.push(null(&place));
                    }
                    &mut items[index]
                }
                (Content::List(_), Segment::Name(_)) => {
                    return Err(fail(format!(
                        "it is a list: expected the index of an item, such as {parent}{SEPARATOR}0"
                    )));
                }
                (Content::Map(entries), segment) => {
                    let name = match segment {
                        Segment::Name(name) => name.clone(),
                        Segment::Item(index) => index.to_string(),
                    };
                    let at = entries.iter().position(|entry| entry.key == name);
                    let at = at.unwrap_or_else(|| {
                        entries.push(Entry {
                            key: name,
                            place: place.clone(),
                            value: null(&place),
                        });
                        entries.len() - 1
                    });
                    let entry = &mut entries[at];
                    if depth + 1 == variable.path.len() {
                        entry.place = place.clone();
                    }
                    &mut entry.value
                }
            };
        }
        *node = value;
        Ok(())
    }

    fn error(&self, name: &str, key: &str, message: String) -> ConfError {
        ConfError {
            file: format!("environment variable {name}"),
            position: None,
            key: key.to_owned(),
            message,
        }
    }

    /// The variable that sets what is at `path`.
    fn variable_of(&self, path: &[Segment]) -> String {
        let segments = path.iter().map(|segment| match segment {
            Segment::Item(index) => index.to_string(),
            Segment::Name(name) => name.to_ascii_uppercase(),
        });
        let all: Vec<String> = [self.prefix.to_owned()]
            .into_iter()
            .chain(segments)
            .collect();
        all.join(SEPARATOR)
    }

    /// The variable that was probably meant by `name`, whose path leads to the unknown setting `key`; `known` are those
    /// that there are.
    pub(crate) fn nearest(&self, name: &str, setting: &str, known: &[&str]) -> Option<String> {
        let variable = self.variables.iter().find(|other| *other.name == *name)?;
        let is_here = |depth: &usize| key(&variable.path[..=*depth]) == setting;
        let depth = (0..variable.path.len()).find(is_here)?;
        let Segment::Name(unknown) = &variable.path[depth] else {
            return None;
        };
        let mut path = variable.path.clone();
        path[depth] = Segment::Name(words::nearest(unknown, known)?.to_owned());
        Some(self.variable_of(&path))
    }
}

/// What `name` sets, whose `rest` are the names of settings; `None` if it is empty.
fn variable(name: &str, rest: &str, value: OsString) -> Result<Option<Variable>, String> {
    let segments = rest.split(SEPARATOR).map(|segment| {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if segment.is_empty() || !segment.chars().all(fits) {
            return None;
        }
        Some(match segment.parse() {
            Ok(index) => Segment::Item(index),
            Err(_) => Segment::Name(segment.to_ascii_lowercase()),
        })
    });
    let Some(path) = segments.collect::<Option<Vec<_>>>() else {
        return Err(
            "expected names of settings with two underscores between them, such as BROKER__URL behind the prefix"
                .to_owned(),
        );
    };
    let Ok(value) = value.into_string() else {
        return Err("the value is not UTF-8".to_owned());
    };
    let value = value.trim();
    Ok((!value.is_empty()).then(|| Variable {
        name: name.into(),
        path,
        value: value.to_owned(),
    }))
}

impl Variable {
    /// The index of the segment of its path that is the last one of `setting`.
    fn depth_of(&self, setting: &RenamedSetting) -> Option<usize> {
        let mut path = String::new();
        self.path.iter().position(|segment| {
            path = match segment {
                Segment::Item(_) => format!("{path}[]"),
                Segment::Name(name) => tree::join(&path, name),
            };
            path == setting.old
        })
    }

    fn place(&self) -> Place {
        Place {
            variable: Some(Arc::clone(&self.name)),
            line: 1,
            column: 1,
            old_name: None,
        }
    }

    /// A list, a mapping or a text in quotes is YAML; anything else is a single value as it stands, so that no password needs
    /// quotes. No error repeats a part of it.
    fn value(&self) -> Result<Node, String> {
        if self.value.starts_with(['[', '{', '"', '\'']) {
            return tree::parse(&self.value, Some(&self.name)).map_err(|errors| {
                let message = errors.into_iter().next().map(|error| error.message);
                let message = message.unwrap_or_default();
                format!(
                    "expected a list, a mapping or a text in quotes, as the value begins like one: {message}"
                )
            });
        }
        let scalar = Scalar {
            text: self.value.clone(),
            is_plain: is_plain(&self.value),
            tag: None,
        };
        Ok(Node {
            place: self.place(),
            content: Content::Scalar(scalar),
        })
    }
}

/// Whether `text` is what YAML would read without quotes.
fn is_plain(text: &str) -> bool {
    let read = tree::parse(&format!("- {text}"), None);
    let Ok(Node {
        content: Content::List(items),
        ..
    }) = read
    else {
        return false;
    };
    matches!(&items[..], [Node { content: Content::Scalar(scalar), .. }] if scalar.is_plain && scalar.text == text)
}

fn null(place: &Place) -> Node {
    Node {
        place: place.clone(),
        content: Content::Scalar(Scalar {
            text: String::new(),
            is_plain: true,
            tag: None,
        }),
    }
}

/// The path as errors have it.
fn key(path: &[Segment]) -> String {
    path.iter()
        .fold(String::new(), |key, segment| match segment {
            Segment::Item(index) => format!("{key}[{index}]"),
            Segment::Name(name) => tree::join(&key, name),
        })
}

#[cfg(test)]
mod tests;
