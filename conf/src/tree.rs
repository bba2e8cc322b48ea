//! A YAML document as a tree of values, each with its place in the file or in an environment variable.
//!
//! The parser reports events; this module builds the tree from them, with aliases and merge keys (`<<`) resolved. What a scalar
//! means is decided later, by the type that reads it.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;

use granit_parser::Event;
use granit_parser::Parser;
use granit_parser::ScalarStyle;
use granit_parser::Tag;

/// Deeper nesting is no configuration. What walks a tree may recurse to this depth.
const DEPTH_MAX: usize = 64;

/// How many values all aliases together may stand for.
const ALIASED_MAX: usize = 100_000;

/// The key whose value is merged into its mapping.
const MERGE_KEY: &str = "<<";

/// Where a value or a key is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The environment variable; `None`: the file.
    pub(crate) variable: Option<Arc<str>>,
    /// Counted from 1.
    pub(crate) line: u32,
    /// Counted from 1.
    pub(crate) column: u32,
    /// The old name under which a setting is given there.
    pub(crate) old_name: Option<&'static str>,
}

impl Place {
    /// `FILE:LINE`, or the variable.
    pub(crate) fn shown(&self, file: &str) -> String {
        match &self.variable {
            Some(variable) => variable.to_string(),
            None => format!("{file}:{}", self.line),
        }
    }
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) content: Content,
}

#[derive(Debug, Clone)]
pub(crate) enum Content {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A text, number, boolean or null as it is written.
#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    pub(crate) text: String,
    /// Without quotes: it may be a number, a boolean or null.
    pub(crate) is_plain: bool,
    /// `!!str` and others, in their long form.
    pub(crate) tag: Option<String>,
}

/// A key of a mapping, with its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) place: Place,
    pub(crate) value: Node,
}

/// What is wrong with a document, and where.
#[derive(Debug)]
pub(crate) struct BadDocument {
    pub(crate) place: Place,
    /// The path of the key; empty where it is not known.
    pub(crate) key: String,
    pub(crate) message: String,
}

impl Scalar {
    /// Whether it is null: nothing, `~` or `null`.
    pub(crate) fn is_null(&self) -> bool {
        let is_written_so = matches!(&*self.text, "" | "~" | "null" | "Null" | "NULL");
        match self.tag.as_deref() {
            None => self.is_plain && is_written_so,
            Some(tag) => tag == "tag:yaml.org,2002:null",
        }
    }
}

impl Node {
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.content, Content::Scalar(scalar) if scalar.is_null())
    }

    /// The value at `key`, such as `pools[0].backends[1].id`.
    pub(crate) fn find(&self, key: &str) -> Option<&Self> {
        match self.descend(key) {
            (found, "") => found.map(|(_, node)| node),
            _ => None,
        }
    }

    /// Where `key` is, or the nearest key above it that is there; `None` if none of them is.
    pub(crate) fn place_of(&self, key: &str) -> Option<&Place> {
        self.descend(key).0.map(|(place, _)| place)
    }

    /// Follows `key` as far as it leads. Returns the last place and value on the way, and the rest of the key.
    fn descend<'k>(&self, key: &'k str) -> (Option<(&Place, &Self)>, &'k str) {
        let (mut node, mut rest, mut last) = (self, key, None);
        while let Some((place, child, below)) = node.child(rest) {
            last = Some((place, child));
            (node, rest) = (child, below);
        }
        (last, rest)
    }

    /// The first value on the way of `key`, with its place and the rest of the key.
    fn child<'k>(&self, key: &'k str) -> Option<(&Place, &Self, &'k str)> {
        match &self.content {
            Content::Scalar(_) => None,
            Content::List(items) => {
                let (index, rest) = key.strip_prefix('[')?.split_once(']')?;
                let item = items.get(index.parse::<usize>().ok()?)?;
                Some((&item.place, item, rest))
            }
            Content::Map(entries) => {
                let key = key.strip_prefix('.').unwrap_or(key);
                let matches = entries.iter().filter_map(|entry| {
                    let rest = key.strip_prefix(&*entry.key)?;
                    let is_whole = rest.is_empty() || rest.starts_with(['.', '[']);
                    is_whole.then_some((&entry.place, &entry.value, rest))
                });
                // A name may have dots itself, such as that of a header.
                matches.min_by_key(|(_, _, rest)| rest.len())
            }
        }
    }
}

/// Parses `text`, which is in the environment variable `variable`, or else in the file.
///
/// # Errors
///
/// The first mistake of YAML, or all keys that are given twice.
pub(crate) fn parse(text: &str, variable: Option<&Arc<str>>) -> Result<Node, Vec<BadDocument>> {
    let mut builder = Builder {
        variable: variable.cloned(),
        open: Vec::new(),
        root: None,
        documents: 0,
        anchors: HashMap::new(),
        aliased: 0,
        repeated: Vec::new(),
    };
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let place = builder.place(error.marker().line(), error.marker().col());
                return Err(vec![bad(place, error.info())]);
            }
        };
        let place = builder.place(span.start.line(), span.start.col());
        builder.event(event, place).map_err(|error| vec![error])?;
    }
    if !builder.repeated.is_empty() {
        return Err(builder.repeated);
    }
    let empty = || empty_map(builder.place(1, 0));
    Ok(match builder.root {
        Some(root) if !root.is_null() => root,
        _ => empty(),
    })
}

/// A mapping without entries.
pub(crate) fn empty_map(place: Place) -> Node {
    Node {
        place,
        content: Content::Map(Vec::new()),
    }
}

fn bad(place: Place, message: impl Into<String>) -> BadDocument {
    BadDocument {
        place,
        key: String::new(),
        message: message.into(),
    }
}

/// `path` with the key `name` behind it.
pub(crate) fn join(path: &str, name: &str) -> String {
    match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    }
}

struct Builder {
    variable: Option<Arc<str>>,
    /// The lists and mappings that the next event is inside of.
    open: Vec<Open>,
    root: Option<Node>,
    documents: usize,
    /// Each with the number of values in it.
    anchors: HashMap<usize, (Node, usize)>,
    aliased: usize,
    repeated: Vec<BadDocument>,
}

/// A list or mapping that has not ended yet.
struct Open {
    place: Place,
    anchor: usize,
    /// The values in it so far, with itself.
    size: usize,
    path: String,
    content: OpenContent,
}

enum OpenContent {
    List(Vec<Node>),
    Map(OpenMap),
}

#[derive(Default)]
struct OpenMap {
    entries: Vec<Entry>,
    /// The line of each key.
    lines: HashMap<String, u32>,
    /// The key whose value comes next.
    next: Option<(String, Place)>,
}

fn saturate(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl Builder {
    fn place(&self, line: usize, column_from_zero: usize) -> Place {
        Place {
            variable: self.variable.clone(),
            line: saturate(line),
            column: saturate(column_from_zero).saturating_add(1),
            old_name: None,
        }
    }

    fn event(&mut self, event: Event<'_>, place: Place) -> Result<(), BadDocument> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if 1 < self.documents {
                    return Err(bad(place, "expected one YAML document, found another one"));
                }
            }
            Event::MappingStart(_, anchor, _) => {
                self.enter(anchor, place, OpenContent::Map(OpenMap::default()))?;
            }
            Event::SequenceStart(_, anchor, _) => {
                self.enter(anchor, place, OpenContent::List(Vec::new()))?;
            }
            Event::Scalar(text, style, anchor, tag) => {
                let scalar = Scalar {
                    text: text.into_owned(),
                    is_plain: style == ScalarStyle::Plain,
                    tag: tag.as_deref().map(long_form),
                };
                let node = Node {
                    place,
                    content: Content::Scalar(scalar),
                };
                self.remember(anchor, &node, 1);
                self.add(node, 1)?;
            }
            Event::Alias(anchor) => {
                let Some((target, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(bad(place, "an alias stands for a value that contains it"));
                };
                self.aliased += size;
                if ALIASED_MAX < self.aliased {
                    let message =
                        format!("the aliases stand for more than {ALIASED_MAX} values in all");
                    return Err(bad(place, message));
                }
                self.add(target, size)?;
            }
            Event::MappingEnd | Event::SequenceEnd => self.leave()?,
            _ => {}
        }
        Ok(())
    }

    fn enter(
        &mut self,
        anchor: usize,
        place: Place,
        content: OpenContent,
    ) -> Result<(), BadDocument> {
        if self.open.len() == DEPTH_MAX {
            let message = format!("expected at most {DEPTH_MAX} levels of lists and mappings");
            return Err(bad(place, message));
        }
        let path = match self.open.last() {
            None => String::new(),
            Some(Open { path, content, .. }) => match content {
                OpenContent::List(items) => format!("{path}[{}]", items.len()),
                OpenContent::Map(map) => match &map.next {
                    Some((key, _)) => join(path, key),
                    None => return Err(bad(place, KEY_IS_NO_TEXT)),
                },
            },
        };
        self.open.push(Open {
            place,
            anchor,
            size: 1,
            path,
            content,
        });
        Ok(())
    }

    fn leave(&mut self) -> Result<(), BadDocument> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let content = match open.content {
            OpenContent::List(items) => Content::List(items),
            OpenContent::Map(map) => Content::Map(merged(map.entries)?),
        };
        let node = Node {
            place: open.place,
            content,
        };
        self.remember(open.anchor, &node, open.size);
        self.add(node, open.size)
    }

    fn remember(&mut self, anchor: usize, node: &Node, size: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), size));
        }
    }

    /// Adds a value, which has `size` values in it, or a key.
    fn add(&mut self, node: Node, size: usize) -> Result<(), BadDocument> {
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        open.size += size;
        match &mut open.content {
            OpenContent::List(items) => items.push(node),
            OpenContent::Map(map) => match map.next.take() {
                Some((key, place)) => map.entries.push(Entry {
                    key,
                    place,
                    value: node,
                }),
                None => {
                    let Content::Scalar(Scalar { text, .. }) = node.content else {
                        return Err(bad(node.place, KEY_IS_NO_TEXT));
                    };
                    if let Some(first) = map.lines.get(&text) {
                        self.repeated.push(BadDocument {
                            key: join(&open.path, &text),
                            place: node.place.clone(),
                            message: format!("the key stands on line {first} already"),
                        });
                    }
                    map.lines.entry(text.clone()).or_insert(node.place.line);
                    map.next = Some((text, node.place));
                }
            },
        }
        Ok(())
    }
}

const KEY_IS_NO_TEXT: &str = "expected a text as key, found a list or a mapping";

/// The entries, with those of `<<` that are not among them.
fn merged(entries: Vec<Entry>) -> Result<Vec<Entry>, BadDocument> {
    let (merges, mut entries): (Vec<Entry>, Vec<Entry>) = entries
        .into_iter()
        .partition(|entry| entry.key == MERGE_KEY);
    let mut keys: HashSet<String> = entries.iter().map(|entry| entry.key.clone()).collect();
    for merge in merges {
        let sources = match merge.value.content {
            Content::List(items) => items,
            content => vec![Node {
                place: merge.value.place,
                content,
            }],
        };
        for source in sources {
            let Content::Map(others) = source.content else {
                let message = "expected a mapping, or a list of mappings, to merge";
                return Err(bad(merge.place, message));
            };
            for other in others {
                if keys.insert(other.key.clone()) {
                    entries.push(other);
                }
            }
        }
    }
    Ok(entries)
}

fn long_form(tag: &Tag) -> String {
    format!("{}{}", tag.handle(), tag.suffix())
}
