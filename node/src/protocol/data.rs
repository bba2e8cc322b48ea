//! Application data that is to be JSON: whether it is, and whether every SDK can read it.

/// The deepest nesting of arrays and objects. With the protocol's own levels that makes 64, the limit of .NET's parser;
/// Python's fails at about 1000, and its SDK does not recover from that.
pub(crate) const JSON_DEPTH_MAX: usize = 60;

/// Why data is not what a JSON channel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadData {
    /// It may be missing, which is not the same as `null`.
    #[error("expected data, which may be null, found none")]
    Missing,
    /// No JSON client could be sent it.
    #[error("expected data in JSON")]
    NotJson,
    /// Some JSON clients could not read it.
    #[error("expected data of at most {JSON_DEPTH_MAX} levels of arrays and objects")]
    TooDeep,
}

/// Whether `data` is one JSON value that every SDK can read.
///
/// # Errors
///
/// What is wrong with it.
pub(crate) fn check_json(data: &[u8]) -> Result<(), BadData> {
    if data.is_empty() {
        return Err(BadData::Missing);
    }
    if JSON_DEPTH_MAX < depth(data) {
        return Err(BadData::TooDeep);
    }
    // serde_json does not check that ignored parts are UTF-8.
    let text = std::str::from_utf8(data).map_err(|_| BadData::NotJson)?;
    let read = serde_json::from_str::<serde::de::IgnoredAny>(text);
    read.map(|_| ()).map_err(|_| BadData::NotJson)
}

/// The nesting of arrays and objects in `json`. For invalid JSON, some number.
pub(crate) fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => pass_string(&mut bytes),
            _ => {}
        }
    }
    deepest
}

fn pass_string(bytes: &mut std::slice::Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn nested(levels: usize) -> String {
        format!("{}1{}", "[".repeat(levels), "]".repeat(levels))
    }

    #[test]
    fn data_is_json_that_every_sdk_can_read() {
        for (data, expected) in [
            ("null", Ok(())),
            ("\"[[[\"", Ok(())),
            (" {\"a\": [1, 2]} ", Ok(())),
            ("", Err(BadData::Missing)),
            (" ", Err(BadData::NotJson)),
            ("{", Err(BadData::NotJson)),
            ("1 2", Err(BadData::NotJson)),
            ("\"\u{0}\"", Err(BadData::NotJson)),
        ] {
            assert_eq!(check_json(data.as_bytes()), expected, "{data:?}");
        }
        assert_eq!(check_json(b"\"\xff\""), Err(BadData::NotJson));
        for (levels, expected) in [
            (JSON_DEPTH_MAX, Ok(())),
            (JSON_DEPTH_MAX + 1, Err(BadData::TooDeep)),
            (3_000, Err(BadData::TooDeep)),
        ] {
            assert_eq!(check_json(nested(levels).as_bytes()), expected, "{levels}");
        }
    }

    fn depth_of(value: &Value) -> usize {
        match value {
            Value::Array(values) => 1 + values.iter().map(depth_of).max().unwrap_or(0),
            Value::Object(fields) => 1 + fields.values().map(depth_of).max().unwrap_or(0),
            _ => 0,
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<String>().prop_map(Value::String),
            "[\\[\\]{}\"\\\\]{0,6}".prop_map(Value::String),
        ];
        leaf.prop_recursive(6, 64, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                proptest::collection::vec(("[\\[{\"\\\\a]{0,4}", inner), 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn brackets_in_strings_do_not_count(value in any_value()) {
            prop_assert_eq!(depth(value.to_string().as_bytes()), depth_of(&value));
        }

        #[test]
        fn no_bytes_make_it_panic(data in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = check_json(&data);
        }
    }
}
