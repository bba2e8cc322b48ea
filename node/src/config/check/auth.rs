//! Keys for tokens, and what tokens must say.

use std::collections::HashMap;
use std::path::PathBuf;

use super::Checker;
use crate::config::Auth;
use crate::config::KeyFile;
use crate::config::KeySetFile;
use crate::config::raw;
use crate::config::settings;
use crate::jwt::Key;

/// The longest key id.
const ID_BYTES_MAX: usize = 255;

/// A token without `kid` is tried with every key of its algorithm.
const KEYS_MAX: usize = 64;

impl Checker<'_> {
    pub(super) fn auth(&mut self, raw: raw::Auth) -> Auth {
        let audience = raw.audience.unwrap_or_default();
        for (index, audience) in audience.iter().enumerate() {
            if audience.is_empty() {
                self.error(
                    &format!("auth.audience[{index}]"),
                    "expected a text, found \"\"",
                );
            }
        }
        if raw.issuer.as_deref() == Some("") {
            self.error(
                "auth.issuer",
                "expected a text, found \"\"; leave it out to accept any issuer that has a key",
            );
        }
        let (keys, key_files) = self.auth_keys(raw.keys.unwrap_or_default());
        Auth {
            keys,
            key_files,
            key_set: raw.key_set.and_then(|path| self.key_set(path)),
            audience,
            issuer: raw.issuer,
            leeway: self.span("auth.leeway", raw.leeway, &settings::LEEWAY),
            anonymous: raw.anonymous.unwrap_or(settings::ANONYMOUS),
        }
    }

    /// The keys, and those of them that come from files.
    fn auth_keys(&mut self, raw: Vec<raw::AuthKey>) -> (Vec<Key>, Vec<KeyFile>) {
        if KEYS_MAX < raw.len() {
            self.error(
                "auth.keys",
                format!("expected at most {KEYS_MAX} keys, found {}", raw.len()),
            );
        }
        let mut keys: Vec<Key> = Vec::new();
        let mut ids = HashMap::new();
        let mut files = Vec::new();
        for (index, raw) in raw.into_iter().take(KEYS_MAX).enumerate() {
            let at = format!("auth.keys[{index}]");
            if let Some(id) = &raw.id {
                if !(1..=ID_BYTES_MAX).contains(&id.len()) {
                    let found = id.len();
                    self.error(
                        &format!("{at}.id"),
                        format!("expected 1 to {ID_BYTES_MAX} bytes, found {found}"),
                    );
                } else if let Some(first) = ids.insert(id.clone(), index) {
                    self.error(
                        &format!("{at}.id"),
                        format!("duplicate id {id:?}, auth.keys[{first}] has it already"),
                    );
                }
            }
            match Key::new(raw.id.clone(), raw.algorithm, raw.key.expose()) {
                Ok(key) => {
                    files.extend(raw.key.file().map(|path| KeyFile {
                        index: keys.len(),
                        path: path.to_owned(),
                        id: raw.id,
                        algorithm: raw.algorithm,
                    }));
                    keys.push(key);
                }
                Err(error) => self.error(&format!("{at}.key"), error.to_string()),
            }
        }
        (keys, files)
    }

    fn key_set(&mut self, path: String) -> Option<KeySetFile> {
        let path = PathBuf::from(path);
        match Key::set_in_file(&path) {
            Ok(keys) => Some(KeySetFile { path, keys }),
            Err(error) => {
                self.error("auth.key_set", format!("{}: {error}", path.display()));
                None
            }
        }
    }
}
