//! What is wrong with a configuration, where, and what would be right.

use std::fmt;
use std::fmt::Write as _;

use crate::tree::Place;

/// One mistake in a configuration.
///
/// `Display` is one line: `FILE:LINE:COLUMN: KEY: MESSAGE`, without the parts that are not known, or `environment variable NAME:
/// KEY: MESSAGE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfError {
    /// The file as the user named it, or `environment variable NAME`.
    pub file: String,
    /// Line and column, both counted from 1; `None` where the file itself is the matter, and for a variable.
    pub position: Option<(usize, usize)>,
    /// Path of the key, such as `pools[0].backends[1].id`; empty for the whole document.
    pub key: String,
    /// What was wrong and what would be right.
    pub message: String,
}

impl ConfError {
    /// The same, at `place`.
    pub(crate) fn at(mut self, place: &Place) -> Self {
        if let (Some(old), None) = (place.old_name, &place.variable) {
            let _ = write!(self.message, " (given as \"{old}\", its old name)");
        }
        match &place.variable {
            Some(variable) => Self {
                file: format!("environment variable {variable}"),
                position: None,
                ..self
            },
            None => Self {
                position: Some((place.line as usize, place.column as usize)),
                ..self
            },
        }
    }
}

impl fmt::Display for ConfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfError {}

/// All mistakes that were found in one configuration, never empty, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfErrors(pub Vec<ConfError>);

impl fmt::Display for ConfErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if 0 < index {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfErrors {}

impl From<ConfError> for ConfErrors {
    fn from(error: ConfError) -> Self {
        Self(vec![error])
    }
}
