//! Reads a tree into the program's serde structs.
//!
//! Structure is read here, single values by `serde_yaml`. serde ends at the first mistake; the reading is then repeated without
//! the setting that had it, so that one run reports all of them.

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Display;
use std::iter::Enumerate;
use std::slice;

use serde::de::Deserialize;
use serde::de::DeserializeOwned;
use serde::de::DeserializeSeed;
use serde::de::Deserializer;
use serde::de::Error as _;
use serde::de::Expected;
use serde::de::IntoDeserializer as _;
use serde::de::MapAccess;
use serde::de::SeqAccess;
use serde::de::Unexpected;
use serde::de::Visitor;
use serde::forward_to_deserialize_any;

use crate::tree::Content;
use crate::tree::Entry;
use crate::tree::Node;
use crate::tree::Place;
use crate::tree::Scalar;
use crate::tree::join;
use crate::words;
use crate::yaml;

/// The name by which a type asks for a secret: a single value as it is written, or a mapping.
pub(crate) const SECRET: &str = "$causeway::Secret";

/// How many mistakes are reported at once.
const MISTAKES_MAX: usize = 20;

/// One mistake.
#[derive(Debug)]
pub(crate) struct Mistake {
    pub(crate) message: String,
    /// The path of the setting, and where it is.
    pub(crate) at: Option<(String, Place)>,
    /// The setting that is not there, if that is the mistake.
    missing: Option<&'static str>,
    /// The settings that there are, if the name of this one is the mistake.
    pub(crate) known: &'static [&'static str],
}

/// Reads `root`.
///
/// # Errors
///
/// The mistakes, never none.
pub(crate) fn read<T: DeserializeOwned>(root: &Node) -> Result<T, Vec<Mistake>> {
    let mut left_out = BTreeSet::new();
    let mut mistakes = Vec::new();
    loop {
        let reader = Reader {
            node: root,
            place: &root.place,
            path: String::new(),
            left_out: &left_out,
        };
        let mistake = match T::deserialize(reader) {
            Ok(value) if mistakes.is_empty() => return Ok(value),
            Ok(_) => return Err(mistakes),
            Err(mistake) => mistake,
        };
        let path = mistake.at.as_ref().map(|(path, _)| path.clone());
        let path = path.unwrap_or_default();
        let missing = mistake.missing.map(|name| join(&path, name));
        // What misses a setting that was left out has no further mistake.
        if !missing.is_some_and(|missing| left_out.contains(&missing)) {
            mistakes.push(mistake);
        }
        if path.is_empty() || MISTAKES_MAX <= mistakes.len() || !left_out.insert(path) {
            return Err(mistakes);
        }
    }
}

impl Mistake {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            at: None,
            missing: None,
            known: &[],
        }
    }

    /// The same, at `path` unless it is known better.
    fn at(self, path: &str, place: &Place) -> Self {
        let at = self.at.unwrap_or_else(|| (path.to_owned(), place.clone()));
        Self {
            at: Some(at),
            ..self
        }
    }
}

impl Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Mistake {}

impl serde::de::Error for Mistake {
    fn custom<T: Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = words::found(&unexpected);
        Self::new(format!("expected {expected}, found {found}"))
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn unknown_variant(name: &str, known: &'static [&'static str]) -> Self {
        Self::new(words::unknown("value", name, known))
    }

    fn unknown_field(name: &str, known: &'static [&'static str]) -> Self {
        Self {
            known,
            ..Self::new(words::unknown("setting", name, known))
        }
    }

    fn missing_field(name: &'static str) -> Self {
        Self {
            missing: Some(name),
            ..Self::new(format!("\"{name}\" is missing"))
        }
    }
}

/// One value of the tree.
struct Reader<'a> {
    node: &'a Node,
    /// Of its key, or of itself in a list.
    place: &'a Place,
    path: String,
    /// The paths of settings that are read as if they were not there.
    left_out: &'a BTreeSet<String>,
}

impl Reader<'_> {
    /// Another kind of value than the `expected` one. No text is repeated: it may be a secret at the wrong place.
    fn other_kind(&self, expected: &str) -> Mistake {
        let found = match &self.node.content {
            Content::Scalar(scalar) if scalar.is_null() => "nothing",
            Content::Scalar(_) => "a single value",
            Content::List(_) => "a list",
            Content::Map(_) => "a mapping",
        };
        let message = format!("expected {expected}, found {found}");
        Mistake::new(message).at(&self.path, self.place)
    }

    fn placed<T>(&self, read: Result<T, Mistake>) -> Result<T, Mistake> {
        read.map_err(|mistake| mistake.at(&self.path, self.place))
    }

    /// The single value, as `serde_yaml` reads it.
    fn scalar<T: DeserializeOwned>(&self, expected: &str) -> Result<T, Mistake> {
        let Content::Scalar(scalar) = &self.node.content else {
            return Err(self.other_kind(expected));
        };
        let read = serde_yaml::from_str_with_options(&as_document(scalar), options());
        let found = || match &*scalar.text {
            "" => "nothing".to_owned(),
            text if scalar.is_plain && text.parse::<f64>().is_ok() => text.to_owned(),
            text => words::quoted(text),
        };
        let message = |_: serde_yaml::Error| format!("expected {expected}, found {}", found());
        self.placed(read.map_err(|error| Mistake::new(message(error))))
    }

    /// The single value as it is written.
    fn text(&self) -> Result<&str, Mistake> {
        match &self.node.content {
            Content::Scalar(scalar) if !scalar.is_null() => Ok(&scalar.text),
            _ => Err(self.other_kind("a text")),
        }
    }

    fn items<'de, V: Visitor<'de>>(&self, items: &[Node], visitor: V) -> Result<V::Value, Mistake> {
        let items = items.iter().enumerate();
        self.placed(visitor.visit_seq(Items { items, list: self }))
    }

    fn entries<'de, V: Visitor<'de>>(
        &self,
        entries: &[Entry],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        let entries = entries.iter();
        let map = self;
        self.placed(visitor.visit_map(Entries {
            entries,
            value: None,
            map,
        }))
    }
}

/// Only `true` and `false` are booleans, as in YAML 1.2.
fn options() -> serde_yaml::Options {
    serde_yaml::options! {
        strict_booleans: true,
        with_snippet: false,
    }
}

/// The single value as a YAML document of its own.
fn as_document(scalar: &Scalar) -> String {
    let text = &scalar.text;
    let is_mark = text.starts_with("---") || text.starts_with("...");
    let value = if scalar.is_plain && !is_mark && !text.contains('\n') {
        text.clone()
    } else {
        yaml::in_quotes(text)
    };
    match &scalar.tag {
        Some(tag) => format!("!<{tag}> {value}"),
        None => value,
    }
}

/// A single value of no particular type, as YAML resolves it.
enum Resolved {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
}

impl<'de> Deserialize<'de> for Resolved {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl Visitor<'_> for Any {
            type Value = Resolved;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a single value")
            }

            fn visit_unit<E>(self) -> Result<Resolved, E> {
                Ok(Resolved::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<Resolved, E> {
                Ok(Resolved::Bool(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<Resolved, E> {
                Ok(Resolved::Unsigned(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Resolved, E> {
                Ok(Resolved::Signed(value))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Resolved, E> {
                Ok(Resolved::Float(value))
            }

            fn visit_str<E>(self, text: &str) -> Result<Resolved, E> {
                Ok(Resolved::Text(text.to_owned()))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty: $expected:expr;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
            let number: $type = self.scalar(&$expected)?;
            self.placed(visitor.$visit(number))
        })*
    };
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.node.content {
            Content::List(items) => self.items(items, visitor),
            Content::Map(entries) => self.entries(entries, visitor),
            Content::Scalar(_) => {
                let value = self.scalar("a single value")?;
                self.placed(match value {
                    Resolved::Null => visitor.visit_unit(),
                    Resolved::Bool(value) => visitor.visit_bool(value),
                    Resolved::Unsigned(value) => visitor.visit_u64(value),
                    Resolved::Signed(value) => visitor.visit_i64(value),
                    Resolved::Float(value) => visitor.visit_f64(value),
                    Resolved::Text(text) => visitor.visit_string(text),
                })
            }
        }
    }

    numbers! {
        deserialize_bool visit_bool bool: "true or false";
        deserialize_u8 visit_u8 u8: words::whole_number("u8");
        deserialize_u16 visit_u16 u16: words::whole_number("u16");
        deserialize_u32 visit_u32 u32: words::whole_number("u32");
        deserialize_u64 visit_u64 u64: words::whole_number("u64");
        deserialize_i8 visit_i8 i8: words::whole_number("i8");
        deserialize_i16 visit_i16 i16: words::whole_number("i16");
        deserialize_i32 visit_i32 i32: words::whole_number("i32");
        deserialize_i64 visit_i64 i64: words::whole_number("i64");
        deserialize_f32 visit_f32 f32: "a number";
        deserialize_f64 visit_f64 f64: "a number";
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        let text = self.text()?;
        self.placed(visitor.visit_str(text))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        if self.node.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.node.content {
            Content::List(items) => self.items(items, visitor),
            _ if self.node.is_null() => self.items(&[], visitor),
            _ => Err(self.other_kind("a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.node.content {
            Content::Map(entries) => self.entries(entries, visitor),
            _ if self.node.is_null() => self.entries(&[], visitor),
            _ => Err(self.other_kind("a mapping of names to values")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        settings: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        if let Content::Map(entries) = &self.node.content {
            return self.entries(entries, visitor);
        }
        // Reading nothing shows what has to be there.
        let empty = self.entries(&[], visitor);
        match empty {
            Ok(value) if self.node.is_null() => Ok(value),
            Ok(_) => Err(self.other_kind(&words::mapping(settings, None))),
            Err(mistake) => Err(self.other_kind(&words::mapping(settings, mistake.missing))),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        if name != SECRET {
            return visitor.visit_newtype_struct(self);
        }
        match &self.node.content {
            Content::Map(entries) => self.entries(entries, visitor),
            // A secret of digits is no number, and is in no error.
            Content::Scalar(scalar) if !scalar.is_null() => {
                self.placed(visitor.visit_str(&scalar.text))
            }
            _ => Err(self.other_kind("a secret: {env: NAME}, {file: PATH} or a text")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        values: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        match &self.node.content {
            Content::Scalar(scalar) if !scalar.is_null() => {
                self.placed(visitor.visit_enum((&*scalar.text).into_deserializer()))
            }
            _ => Err(self.other_kind(&words::one_of(values))),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit unit_struct tuple tuple_struct
    }
}

/// The items of a list.
struct Items<'a> {
    items: Enumerate<slice::Iter<'a, Node>>,
    list: &'a Reader<'a>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Mistake> {
        for (index, node) in self.items.by_ref() {
            let path = format!("{}[{index}]", self.list.path);
            if self.list.left_out.contains(&path) {
                continue;
            }
            let item = Reader {
                node,
                place: &node.place,
                path,
                left_out: self.list.left_out,
            };
            let (path, place) = (item.path.clone(), item.place);
            let read = seed.deserialize(item);
            return read.map(Some).map_err(|mistake| mistake.at(&path, place));
        }
        Ok(None)
    }
}

/// The entries of a mapping.
struct Entries<'a> {
    entries: slice::Iter<'a, Entry>,
    /// The entry whose value comes next, with its path.
    value: Option<(&'a Entry, String)>,
    map: &'a Reader<'a>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Mistake> {
        for entry in self.entries.by_ref() {
            let path = join(&self.map.path, &entry.key);
            if self.map.left_out.contains(&path) {
                continue;
            }
            let key = seed.deserialize((&*entry.key).into_deserializer());
            let key = key.map_err(|mistake: Mistake| mistake.at(&path, &entry.place));
            self.value = Some((entry, path));
            return key.map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mistake> {
        let Some((entry, path)) = self.value.take() else {
            return Err(Mistake::custom("a value comes behind its key"));
        };
        let value = Reader {
            node: &entry.value,
            place: &entry.place,
            path: path.clone(),
            left_out: self.map.left_out,
        };
        let read = seed.deserialize(value);
        read.map_err(|mistake| mistake.at(&path, &entry.place))
    }
}
