//! Reading a file and turning it into the program's serde structs.

use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::blocking::read_file;
use crate::environment::Environment;
use crate::error::{ConfError, ConfErrors};
use crate::positions::Positions;
use crate::reader::{self, Mistake};
use crate::renamed::{Renamed, RenamedSettings};
use crate::tree;

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

/// Reads and parses the YAML file at `path`, with the settings that `environment` adds or replaces; without a file, with these
/// alone. Settings may have the old names of `renamed`: [`Positions::renamed`] has a warning for each.
///
/// # Errors
///
/// The file cannot be read, is larger than [`FILE_BYTES_MAX`], is not UTF-8, is not YAML, or does not fit `T`: with line, column
/// and key as far as they are known. A setting is given under both of its names. For each variable that is no setting or has a
/// wrong value, with its name.
pub fn load_with<T: DeserializeOwned>(
    path: Option<&Path>,
    environment: &Environment,
    renamed: RenamedSettings,
) -> Result<Document<T>, ConfErrors> {
    let Some(path) = path else {
        return parse_with("configuration without a file", "", environment, renamed);
    };
    let name = path.display().to_string();
    let text = read(path).map_err(|message| ConfError {
        file: name.clone(),
        position: None,
        key: String::new(),
        message,
    })?;
    parse_with(&name, &text, environment, renamed)
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
    parse_with(name, text, &Environment::default(), &[])
}

/// The same, with the settings that `environment` adds or replaces, and with the old names of `renamed`, as in [`load_with`].
///
/// # Errors
///
/// As [`parse`], for each setting with both of its names, and for each variable that is no setting or has a wrong value.
pub fn parse_with<T: DeserializeOwned>(
    name: &str,
    text: &str,
    environment: &Environment,
    renamed: RenamedSettings,
) -> Result<Document<T>, ConfErrors> {
    let mut root = tree::parse(text, None).map_err(|mistakes| {
        let errors = mistakes.into_iter().map(|mistake| {
            let error = ConfError {
                file: name.to_owned(),
                position: None,
                key: mistake.key,
                message: mistake.message,
            };
            error.at(&mistake.place)
        });
        ConfErrors(errors.collect())
    })?;
    let mut old_names = Renamed::default();
    old_names.replace(&mut root, renamed, name);
    let environment = &environment.renamed(renamed, &mut old_names.warnings);
    let mut errors = environment.apply(&mut root, name);
    if !errors.is_empty() {
        errors.extend(old_names.errors);
        return Err(ConfErrors(errors));
    }
    // The values of variables may be mappings.
    old_names.replace(&mut root, renamed, name);
    let mut errors = old_names.errors;
    match reader::read(&root) {
        Ok(value) if errors.is_empty() => {
            return Ok(Document {
                value,
                positions: Positions::new(name, root, old_names.warnings),
            });
        }
        Ok(_) => {}
        Err(mistakes) => {
            let mistakes = mistakes.into_iter();
            errors.extend(mistakes.map(|mistake| described(name, mistake, environment)));
        }
    }
    // In reading order; those of variables are first, by their names.
    errors.sort_by(|a, b| (a.position, &a.file).cmp(&(b.position, &b.file)));
    Err(ConfErrors(errors))
}

fn described(name: &str, mistake: Mistake, environment: &Environment) -> ConfError {
    let error = ConfError {
        file: name.to_owned(),
        position: None,
        key: String::new(),
        message: mistake.message,
    };
    let Some((key, place)) = mistake.at else {
        return error;
    };
    let nearest = place.variable.as_deref().and_then(|variable| {
        let nearest = environment.nearest(variable, &key, mistake.known)?;
        let setting = key.rsplit(['.']).next().unwrap_or(&key);
        Some(format!(
            "unknown setting \"{setting}\", did you mean {nearest}?"
        ))
    });
    let message = nearest.unwrap_or(error.message);
    ConfError {
        key,
        message,
        ..error
    }
    .at(&place)
}

#[cfg(test)]
mod tests;
