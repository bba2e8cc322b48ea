//! Secrets: from the environment, from a file, or (for trying out) from the configuration itself.

use std::{
    env, fmt,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use crate::blocking::read_file;
use crate::reader::SECRET;

/// The largest secret that is read from a file, in bytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// A secret text, in the file as `{env: NAME}`, `{file: PATH}` or the text itself.
///
/// `Debug` and `Display` show `***`; only [`Secret::expose`] gives the text, so that a search for it
/// finds each place that may leak it. One line ending at the end of a secret's file is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    text: String,
    /// The file it was read from, if any.
    file: Option<PathBuf>,
}

impl Secret {
    /// A secret that does not come from a file, such as one a test made up.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self { text, file: None }
    }

    /// The file that it was read from with `{file: PATH}`; its content may have changed since.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Reads the secret in the file `path`, as `{file: PATH}` does.
    ///
    /// # Errors
    ///
    /// Why the file cannot be used, in words that do not repeat its content.
    pub fn from_path(path: &Path) -> Result<Self, String> {
        Self::from_file(&path.to_string_lossy())
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }

    fn from_env(name: &str) -> Result<Self, String> {
        match env::var(name) {
            Ok(text) if text.is_empty() => Err(format!("the variable `{name}` is empty")),
            Ok(text) => Ok(Self::new(text)),
            Err(env::VarError::NotPresent) => {
                Err(format!("the environment has no variable `{name}`"))
            }
            Err(env::VarError::NotUnicode(_)) => Err(format!("the variable `{name}` is not UTF-8")),
        }
    }

    fn from_file(path: &str) -> Result<Self, String> {
        let read = read_file(Path::new(path), SECRET_BYTES_MAX);
        let bytes =
            read.map_err(|error| format!("cannot read the secret from `{path}`: {error}"))?;
        let mut text =
            String::from_utf8(bytes).map_err(|_| format!("the secret in `{path}` is not UTF-8"))?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        if text.is_empty() {
            return Err(format!("the secret in `{path}` is empty"));
        }
        Ok(Self {
            text,
            file: Some(PathBuf::from(path)),
        })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SecretVisitor;
        impl<'de> Visitor<'de> for SecretVisitor {
            type Value = Secret;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a secret: {env: NAME}, {file: PATH} or a text")
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                deserializer: D,
            ) -> Result<Secret, D::Error> {
                deserializer.deserialize_any(self)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Secret, E> {
                Ok(Secret::new(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Secret, A::Error> {
                let Some(key) = map.next_key::<String>()? else {
                    return Err(de::Error::custom("expected {env: NAME} or {file: PATH}"));
                };
                let read = match key.as_str() {
                    "env" => Secret::from_env,
                    "file" => Secret::from_file,
                    _ => return Err(de::Error::unknown_field(&key, &["env", "file"])),
                };
                let place: String = map.next_value()?;
                if map.next_key::<de::IgnoredAny>()?.is_some() {
                    return Err(de::Error::custom(
                        "a secret comes from one place: either `env` or `file`",
                    ));
                }
                read(&place).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_newtype_struct(SECRET, SecretVisitor)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret: Secret = serde_yaml::from_str("hunter2").unwrap();
        assert_eq!(format!("{secret:?} {secret}"), "*** ***");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn a_secret_comes_from_a_file_without_its_last_line_ending() {
        let path = env::temp_dir().join(format!("causeway-secret-{}", std::process::id()));
        fs::write(&path, "from a file\r\n").unwrap();
        let secret: Secret =
            serde_yaml::from_str(&format!("{{file: {}}}", path.display())).unwrap();
        assert_eq!(secret.expose(), "from a file");
        assert_eq!(secret.file(), Some(path.as_path()));
        fs::write(&path, "another one").unwrap();
        assert_eq!(Secret::from_path(&path).unwrap().expose(), "another one");
        fs::remove_file(&path).unwrap();
        assert!(Secret::from_path(&path).is_err());
    }

    #[test]
    fn a_secret_comes_from_one_place_only() {
        let error = serde_yaml::from_str::<Secret>("{env: PATH, file: /x}").unwrap_err();
        assert!(error.to_string().contains("one place"), "{error}");
    }
}
