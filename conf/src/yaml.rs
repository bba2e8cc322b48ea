//! Writing YAML.

use std::fmt::Write as _;

/// `text` as a double-quoted YAML text of one line.
pub(crate) fn in_quotes(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            // Some are line breaks for YAML, and a BOM may not stand anywhere.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                // Writing to a string does not fail.
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// `text` as YAML that is read as this text, without quotes where they are not needed.
pub(crate) fn text(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let starts_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let lower = text.to_ascii_lowercase();
    // Other parsers than ours know more booleans.
    let is_reserved = matches!(
        &*lower,
        "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    if starts_plain && !is_reserved && text.chars().all(is_word) {
        text.to_owned()
    } else {
        in_quotes(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_text_is_read_back_as_it_was() {
        let control: String = (0..0x20)
            .chain([0x7f, 0x85, 0xa0])
            .filter_map(char::from_u32)
            .collect();
        for written in [
            "",
            "a",
            "/a/b.c",
            "null",
            "Yes",
            "1.2",
            "0x1f",
            "a: b",
            "#",
            "- a",
            "\"\\'",
            "ä 😀 \u{2028}\u{feff}",
            &control,
        ] {
            let read: String = serde_yaml::from_str(&text(written)).unwrap();
            assert_eq!(read, written, "{}", text(written));
        }
    }
}
