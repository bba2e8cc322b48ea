//! Reading a file and turning it into the program's serde structs.

use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::blocking::read_file;
use crate::error::{ConfError, ConfErrors};
use crate::positions::Positions;

/// The largest configuration file that is read, 4 MiB: some 40,000 backends.
pub const FILE_BYTES_MAX: u64 = 4 << 20;

/// A parsed file, with the place of each of its keys for the checks that come after parsing.
#[derive(Debug)]
pub struct Document<T> {
    /// What the file says.
    pub value: T,
    /// Where it says it.
    pub positions: Positions,
}

/// Reads and parses the YAML file at `path`.
///
/// # Errors
///
/// The file cannot be read, is larger than [`FILE_BYTES_MAX`], is not UTF-8, is not YAML, or does not
/// fit `T`: with line, column and key as far as they are known.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<Document<T>, ConfErrors> {
    let name = path.display().to_string();
    let text = read(path).map_err(|message| ConfError {
        file: name.clone(),
        position: None,
        key: String::new(),
        message,
    })?;
    parse(&name, &text)
}

fn read(path: &Path) -> Result<String, String> {
    let bytes = read_file(path, FILE_BYTES_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => {
            format!("the file has more than {FILE_BYTES_MAX} bytes, which is the most that is read")
        }
        _ => format!("cannot read the file: {error}"),
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        format!("byte {offset} is not UTF-8, and YAML has to be")
    })
}

/// Parses `text`; errors name it `name`. A text with nothing but comments counts as an empty mapping.
///
/// # Errors
///
/// `text` is not YAML or does not fit `T`.
pub fn parse<T: DeserializeOwned>(name: &str, text: &str) -> Result<Document<T>, ConfErrors> {
    let positions = Positions::scan(name, text);
    if !positions.repeated().is_empty() {
        return Err(ConfErrors(positions.repeated().to_vec()));
    }
    let blank = text
        .lines()
        .map(str::trim_start)
        .all(|line| line.is_empty() || line.starts_with('#') || line == "---");
    let text = if blank { "{}" } else { text };
    let mut path = String::new();
    let value =
        serde_yaml::with_deserializer_from_str_with_options(text, options(), |deserializer| {
            serde_path_to_error::deserialize(deserializer).map_err(|error| {
                path = error.path().to_string();
                error.into_inner()
            })
        })
        .map_err(|error| describe(name, &positions, path, &error))?;
    Ok(Document { value, positions })
}

/// Room for whatever fits in a file of [`FILE_BYTES_MAX`], and booleans as YAML 1.2 has them: `yes` is a string.
fn options() -> serde_yaml::Options {
    let nodes_max = FILE_BYTES_MAX as usize;
    serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_nodes: nodes_max,
            max_events: 2 * nodes_max,
        },
        strict_booleans: true,
        with_snippet: false,
    }
}

/// What was wrong at `key`, or, if the text is no YAML, at the place that the parser names.
fn describe(
    name: &str,
    positions: &Positions,
    key: String,
    error: &serde_yaml::Error,
) -> ConfError {
    let key = if key == "." { String::new() } else { key };
    let location = error.location();
    let place = location.map(|location| (location.line() as usize, location.column() as usize));
    let message = message(error);
    let (key, position) = if positions.is_whole() {
        let position = positions.find(&key).or(place);
        (key, position)
    } else {
        (String::new(), place) // Not YAML: the key is only the last one before the mistake.
    };
    ConfError {
        file: name.to_owned(),
        position,
        key,
        message,
    }
}

/// What is wrong and what would be right, without the place, which [`ConfError`] has anyway.
fn message(error: &serde_yaml::Error) -> String {
    use serde_yaml::Error;

    match error {
        Error::InvalidScalar { ty, .. } => format!("invalid value, expected {}", in_words(ty)),
        Error::Unexpected { expected, .. } => format!("expected {}", in_words(expected)),
        Error::SerdeUnknownField {
            field, expected, ..
        } => format!("unknown field `{field}`, expected {}", one_of(expected)),
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } => format!("unknown variant `{variant}`, expected {}", one_of(expected)),
        _ => {
            let message = error.to_string();
            let Some(place) = error.location() else {
                return message;
            };
            let suffix = format!(" at line {}, column {}", place.line(), place.column());
            message.replace(&suffix, "")
        }
    }
}

/// All names that would be right.
fn one_of(names: &[&str]) -> String {
    match names {
        [] => "nothing".to_owned(),
        [one] => format!("`{one}`"),
        [one, other] => format!("`{one}` or `{other}`"),
        _ => format!("one of `{}`", names.join("`, `")),
    }
}

/// What the parser calls `ty`, for people who do not know Rust.
fn in_words(ty: &str) -> String {
    match (
        ty.get(..1),
        ty.get(1..).and_then(|bits| bits.parse::<u32>().ok()),
    ) {
        (Some("u"), Some(bits)) if bits < 64 => {
            format!("a whole number from 0 to {}", (1_u64 << bits) - 1)
        }
        (Some("u"), _) => "a whole number, 0 or more".to_owned(),
        (Some("i"), _) => "a whole number".to_owned(),
        _ if ty == "boolean" => "true or false".to_owned(),
        _ if ty == "sequence start" => "a list".to_owned(),
        _ if ty == "mapping start" => "a mapping of keys to values".to_owned(),
        _ => ty.to_owned(),
    }
}

#[cfg(test)]
mod tests;
