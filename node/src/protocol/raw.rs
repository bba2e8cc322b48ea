//! Application data in JSON messages: the text of one JSON value, kept as it is.

use std::borrow::Cow;
use std::str;

use bytes::Bytes;
use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;
use serde::ser::Error;
use serde_json::value::RawValue;

/// Reads a JSON value that may be missing: then `null` is a value like any other.
pub(crate) fn present<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// Writes `data` in place, on one line.
///
/// Messages are told apart by line ends, which valid JSON has only between its tokens: a space does the
/// same there.
pub(super) fn serialize<S: Serializer>(data: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    let text = str::from_utf8(data).map_err(S::Error::custom)?;
    let line = if text.contains(['\n', '\r']) {
        Cow::Owned(text.replace(['\n', '\r'], " "))
    } else {
        Cow::Borrowed(text)
    };
    let value: &RawValue = serde_json::from_str(&line).map_err(S::Error::custom)?;
    value.serialize(serializer)
}

/// Takes the text of whatever value stands there.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text: Box<str> = Box::<RawValue>::deserialize(deserializer)?.into();
    Ok(Bytes::from(text.into_boxed_bytes()))
}
