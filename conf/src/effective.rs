//! The effective configuration as YAML: each setting with the value that applies, and where that comes from.
//!
//! The program says what applies, from its checked configuration; where it comes from is looked up by the path of the setting.
//! Secrets given as text are shown as `***`, and `{env: NAME}` and `{file: PATH}` as they are written.

use std::fmt::Debug;
use std::fmt::Display;
use std::fmt::Write as _;
use std::time::Duration;

use crate::ByteSize;
use crate::Positions;
use crate::Span;
use crate::tree::Content;
use crate::tree::Scalar;
use crate::yaml;

/// What is shown of a secret.
const MASK: &str = "\"***\"";

/// A value that applies.
#[derive(Debug, Clone, PartialEq)]
pub enum Effective {
    /// A single value, as YAML.
    Value(String),
    /// A secret: masked, or as it is written if that only says where it is.
    Secret,
    /// Whatever is written, masked where it is a text in a mapping; for names with secrets.
    Secrets,
    /// As it is written, or null.
    Written,
    /// Items in their order.
    List(Vec<Effective>),
    /// Settings in their order.
    Map(Vec<(String, Effective)>),
    /// A value that comes from another setting where the one at its path is not given.
    From(String, Box<Effective>),
}

impl Effective {
    /// Nothing.
    #[must_use]
    pub fn null() -> Self {
        Self::Value("null".to_owned())
    }

    /// A text.
    #[must_use]
    pub fn text(text: impl AsRef<str>) -> Self {
        Self::Value(yaml::text(text.as_ref()))
    }

    /// What is shown as a text, such as an address.
    #[must_use]
    pub fn shown(value: impl Display) -> Self {
        Self::text(value.to_string())
    }

    /// A number or a boolean.
    #[must_use]
    pub fn plain(value: impl Display) -> Self {
        Self::Value(value.to_string())
    }

    /// A duration with its unit.
    #[must_use]
    pub fn span(duration: Duration) -> Self {
        Self::Value(Span(duration).to_string())
    }

    /// A size with its unit.
    #[must_use]
    pub fn size(bytes: u64) -> Self {
        Self::Value(ByteSize(bytes).to_string())
    }

    /// `value` as `show` says, or null.
    #[must_use]
    pub fn option<T>(value: Option<T>, show: impl FnOnce(T) -> Self) -> Self {
        value.map_or_else(Self::null, show)
    }

    /// The items as `show` says.
    #[must_use]
    pub fn list<T>(items: impl IntoIterator<Item = T>, show: impl FnMut(T) -> Self) -> Self {
        Self::List(items.into_iter().map(show).collect())
    }

    /// Settings by their names.
    #[must_use]
    pub fn map<const N: usize>(settings: [(&str, Self); N]) -> Self {
        let settings = settings.into_iter();
        Self::Map(
            settings
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        )
    }

    /// One of the values of an enum that the file has in snake case.
    #[must_use]
    pub fn variant(value: impl Debug) -> Self {
        let mut name = String::new();
        for c in format!("{value:?}").chars() {
            if c.is_ascii_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(c.to_ascii_lowercase());
        }
        Self::text(name)
    }

    /// The same; where its own setting is not given, it comes from the setting `key`.
    #[must_use]
    pub fn or_from(self, key: &str) -> Self {
        Self::From(key.to_owned(), Box::new(self))
    }

    /// The configuration as YAML below the comment `header`.
    #[must_use]
    pub fn to_yaml(&self, header: &str, positions: &Positions) -> String {
        let mut writer = Writer {
            positions,
            text: String::new(),
        };
        for line in header.lines() {
            writer.line(format_args!("# {line}"));
        }
        writer.entries(0, "", self);
        writer.text
    }
}

struct Writer<'a> {
    positions: &'a Positions,
    text: String,
}

impl Writer<'_> {
    fn line(&mut self, line: impl Display) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{}", line.to_string().trim_end());
    }

    /// Writes the settings of `map`, which is at `path`.
    fn entries(&mut self, depth: usize, path: &str, map: &Effective) {
        let Effective::Map(settings) = map else {
            return;
        };
        let indent = "  ".repeat(depth);
        for (name, value) in settings {
            let key = crate::tree::join(path, name);
            self.value(
                depth,
                &format!("{indent}{}:", yaml::text(name)),
                &key,
                value,
            );
        }
    }

    /// Writes `value`, which is at `key`, behind `start`: the indentation with the name of the setting or the dash of an item.
    fn value(&mut self, depth: usize, start: &str, key: &str, value: &Effective) {
        match value {
            Effective::From(other, value) => {
                let source = match self.positions.written(key) {
                    Some(_) => key,
                    None => other,
                };
                self.value(depth, start, source, value);
            }
            Effective::Map(settings) if settings.is_empty() => self.single(start, key, "{}"),
            Effective::List(items) if items.is_empty() => self.single(start, key, "[]"),
            Effective::Map(_) => {
                self.line(start);
                self.entries(depth + 1, key, value);
            }
            Effective::List(items) => match self.in_one_line(key, items) {
                Some(list) => self.single(start, key, &list),
                None => {
                    self.line(start);
                    for (index, item) in items.iter().enumerate() {
                        self.item(depth + 1, &format!("{key}[{index}]"), item);
                    }
                }
            },
            value => self.single(start, key, &self.written(key, value)),
        }
    }

    fn item(&mut self, depth: usize, key: &str, item: &Effective) {
        let indent = "  ".repeat(depth);
        if !matches!(item, Effective::Map(settings) if !settings.is_empty()) {
            self.value(depth, &format!("{indent}-"), key, item);
            return;
        }
        // The first setting is behind the dash.
        let start = self.text.len();
        self.entries(depth + 1, key, item);
        let dash = start + indent.len();
        self.text.replace_range(dash..=dash, "-");
    }

    fn single(&mut self, start: &str, key: &str, value: &str) {
        let source = self.positions.source(key);
        let source = source.as_deref().unwrap_or("default");
        self.line(format_args!("{start} {value}  # {source}"));
    }

    /// A list of single values that all come from where the list does.
    fn in_one_line(&self, key: &str, items: &[Effective]) -> Option<String> {
        let source = self.positions.source(key);
        let mut values = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let key = format!("{key}[{index}]");
            let is_single = matches!(item, Effective::Value(_) | Effective::Secret);
            let own_source = self.positions.source(&key);
            let is_variable = |source: &Option<String>| {
                source
                    .as_ref()
                    .filter(|source| !source.contains(':'))
                    .cloned()
            };
            let is_same = own_source.is_none() || is_variable(&own_source) == is_variable(&source);
            if !is_single || !is_same {
                return None;
            }
            values.push(self.written(&key, item));
        }
        Some(format!("[{}]", values.join(", ")))
    }

    fn written(&self, key: &str, value: &Effective) -> String {
        let written = self.positions.written(key);
        match value {
            Effective::Value(value) => value.clone(),
            Effective::Secret => secret(written),
            Effective::Secrets => match written {
                Some(Content::Map(entries)) => {
                    let entries = entries.iter().map(|entry| {
                        let value = secret(Some(&entry.value.content));
                        format!("{}: {value}", yaml::text(&entry.key))
                    });
                    let entries: Vec<String> = entries.collect();
                    format!("{{ {} }}", entries.join(", "))
                }
                _ => "{}".to_owned(),
            },
            Effective::Written => match written {
                Some(Content::Scalar(scalar)) if !scalar.is_null() => yaml::text(&scalar.text),
                _ => "null".to_owned(),
            },
            // They have no line of their own.
            Effective::List(_) | Effective::Map(_) | Effective::From(..) => "null".to_owned(),
        }
    }
}

/// A secret as it may be shown.
fn secret(written: Option<&Content>) -> String {
    match written {
        None => "null".to_owned(),
        Some(Content::Scalar(scalar)) if scalar.is_null() => "null".to_owned(),
        Some(Content::Map(entries)) => match &entries[..] {
            [entry] => match &entry.value.content {
                Content::Scalar(Scalar { text, .. }) => {
                    format!("{{ {}: {} }}", yaml::text(&entry.key), yaml::text(text))
                }
                _ => MASK.to_owned(),
            },
            _ => MASK.to_owned(),
        },
        Some(_) => MASK.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde::de::IgnoredAny;

    use super::*;
    use crate::Environment;
    use crate::document;

    #[test]
    fn each_value_has_its_source_and_no_secret_is_shown() {
        let text = "listen: a\nkeys: [hunter2, { env: PATH }]\nurl: hunter2\nlist:\n  - a\n  - b\nheaders: { X-A: hunter2, b: { file: /x } }\nitems:\n  - id: x\n";
        let variables = [
            ("APP__LIST__1", "c"),
            ("APP__URL", "hunter2"),
            ("APP__DEEP__SIZE", "1"),
        ];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let environment = Environment::new("APP", variables);
        let document =
            document::parse_with::<IgnoredAny>("f.yaml", text, &environment, &[]).unwrap();
        let effective = Effective::map([
            ("listen", Effective::text("a")),
            ("keys", Effective::list([0, 1], |_| Effective::Secret)),
            ("url", Effective::Secret),
            ("other_url", Effective::Secret),
            ("list", Effective::list(["a", "c"], Effective::text)),
            ("headers", Effective::Secrets),
            (
                "items",
                Effective::list(["x"], |id| {
                    Effective::map([
                        ("id", Effective::text(id)),
                        ("time", Effective::span(Duration::from_millis(1500))),
                        ("copy", Effective::text("a").or_from("listen")),
                    ])
                }),
            ),
            (
                "deep",
                Effective::map([
                    ("size", Effective::size(1 << 20)),
                    ("flag", Effective::plain(true)),
                    ("none", Effective::option(None::<u8>, Effective::plain)),
                    ("ca", Effective::Written),
                ]),
            ),
            ("nothing", Effective::List(Vec::new())),
        ]);
        let yaml = effective.to_yaml("two\nlines", &document.positions);
        expect![[r##"
            # two
            # lines
            listen: a  # f.yaml:1
            keys: ["***", { env: PATH }]  # f.yaml:2
            url: "***"  # APP__URL
            other_url: null  # default
            list:
              - a  # f.yaml:5
              - c  # APP__LIST__1
            headers: { X-A: "***", b: { file: /x } }  # f.yaml:7
            items:
              - id: x  # f.yaml:9
                time: 1s 500ms  # default
                copy: a  # f.yaml:1
            deep:
              size: 1MiB  # APP__DEEP__SIZE
              flag: true  # default
              none: null  # default
              ca: null  # default
            nothing: []  # default
        "##]]
        .assert_eq(&yaml);
        assert!(!yaml.contains("hunter2"));
        document::parse::<IgnoredAny>("shown", &yaml).unwrap();
    }
}
