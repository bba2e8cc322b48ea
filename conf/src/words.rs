//! The words of errors: what was found, what would be right, and which name was probably meant.

use std::fmt::Display;

use serde::de::Unexpected;

/// A longer text is not repeated in an error.
const SHOWN_CHARS_MAX: usize = 60;

/// How many settings of a mapping are named as examples.
const EXAMPLES: usize = 3;

/// `text` in quotes, or, if it is long, that it is a long text.
pub(crate) fn quoted(text: &str) -> String {
    if SHOWN_CHARS_MAX < text.chars().count() {
        "a long text".to_owned()
    } else {
        format!("\"{}\"", text.escape_debug())
    }
}

/// All names that would be right.
pub(crate) fn one_of(names: &[impl Display]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [one] => format!("\"{one}\""),
        [one, other] => format!("\"{one}\" or \"{other}\""),
        _ => {
            let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
            format!("one of {}", names.join(", "))
        }
    }
}

/// A mapping of settings, of which `required` has to be there.
pub(crate) fn mapping(settings: &[&str], required: Option<&str>) -> String {
    if let Some(required) = required {
        return format!("a mapping with \"{required}\"");
    }
    let examples = settings.iter().take(EXAMPLES);
    let examples: Vec<String> = examples.map(|name| format!("\"{name}\"")).collect();
    match &examples[..] {
        [] => "an empty mapping".to_owned(),
        [one] => format!("a mapping with {one}"),
        [others @ .., last] if settings.len() <= EXAMPLES => {
            format!("a mapping with {} or {last}", others.join(", "))
        }
        _ => format!("a mapping with settings such as {}", examples.join(", ")),
    }
}

/// What was found, in the words of YAML.
pub(crate) fn found(unexpected: &Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Unsigned(value) => value.to_string(),
        Unexpected::Signed(value) => value.to_string(),
        Unexpected::Float(value) => value.to_string(),
        Unexpected::Char(value) => quoted(&value.to_string()),
        Unexpected::Str(text) => quoted(text),
        Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map | Unexpected::StructVariant => "a mapping".to_owned(),
        other => other.to_string(),
    }
}

/// A whole number of type `name`, such as `u32`.
pub(crate) fn whole_number(name: &str) -> String {
    let bits = name.strip_prefix('u').and_then(|bits| bits.parse().ok());
    match bits {
        Some(bits @ ..=32) => format!("a whole number from 0 to {}", (1_u64 << bits) - 1),
        Some(_) => "a whole number, 0 or more".to_owned(),
        None => "a whole number".to_owned(),
    }
}

/// An unknown name, and what would be right.
pub(crate) fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let shown = quoted(name);
    match nearest(name, known) {
        Some(near) => format!("unknown {what} {shown}, did you mean \"{near}\"?"),
        None => format!("unknown {what} {shown}, expected {}", one_of(known)),
    }
}

/// The one of `known` that `name` is probably meant to be.
pub(crate) fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let name = name.to_ascii_lowercase().replace('-', "_");
    let lower = |other: &str| other.to_ascii_lowercase();
    let with_distance = { known.iter() }.map(|other| (distance(&name, &lower(other)), *other));
    let (distance, nearest) = with_distance.min_by_key(|(distance, _)| *distance)?;
    // A third of the letters, so that no short name is near to every other one.
    let is_near = distance * 3 <= nearest.chars().count().max(3);
    is_near.then_some(nearest)
}

/// How many letters have to be added, removed, replaced or exchanged with their neighbour.
fn distance(one: &str, other: &str) -> usize {
    const CHARS_MAX: usize = 64;
    let [one, other] = [one, other].map(|name| name.chars().take(CHARS_MAX).collect::<Vec<_>>());
    let mut rows: [Vec<usize>; 3] = [
        Vec::new(),
        (0..=other.len()).collect(),
        vec![0; other.len() + 1],
    ];
    for (i, a) in one.iter().enumerate() {
        rows[2][0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = rows[1][j] + usize::from(a != b);
            let mut least = replaced.min(rows[1][j + 1] + 1).min(rows[2][j] + 1);
            if 0 < i && 0 < j && *a == other[j - 1] && one[i - 1] == *b {
                least = least.min(rows[0][j - 1] + 1);
            }
            rows[2][j + 1] = least;
        }
        rows.rotate_left(1);
        rows[2] = vec![0; other.len() + 1];
    }
    rows[1][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_one_with_few_other_letters() {
        let known = ["broker", "listen", "limits", "tcp", "HS256"];
        for (name, expected) in [
            ("brokr", Some("broker")),
            ("lisetn", Some("listen")),
            ("Limits", Some("limits")),
            ("tpc", Some("tcp")),
            ("hs265", Some("HS256")),
            ("nonsense", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, &known), expected, "{name}");
        }
        assert_eq!(distance("", ""), 0);
        assert_eq!(distance("abc", ""), 3);
    }
}
