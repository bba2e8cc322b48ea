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
    let value = serde_path_to_error::deserialize(serde_yaml::Deserializer::from_str(text))
        .map_err(|error| describe(name, &positions, &error))?;
    Ok(Document { value, positions })
}

/// serde_yaml's message without the path and place that it may carry, which [`ConfError`] has anyway.
fn describe(
    name: &str,
    positions: &Positions,
    error: &serde_path_to_error::Error<serde_yaml::Error>,
) -> ConfError {
    let key = match error.path().to_string() {
        root if root == "." => String::new(),
        key => key,
    };
    let location = error.inner().location();
    let mut message = error.inner().to_string();
    if let Some(location) = &location {
        let suffix = format!(" at line {} column {}", location.line(), location.column());
        message = message.replace(&suffix, "");
    }
    if let Some((path, rest)) = message.split_once(": ")
        && key.starts_with(path)
    {
        message = rest.to_owned();
    }
    let place = location.map(|location| (location.line(), location.column()));
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

#[cfg(test)]
mod tests;
