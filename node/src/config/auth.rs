//! Settings for the authentication of channel clients.

use std::path::PathBuf;
use std::time::Duration;

use causeway_conf::Secret;

use crate::jwt::Algorithm;
use crate::jwt::Key;

/// Accepted tokens, and whether clients may connect without one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Auth {
    /// Keys of the configuration.
    pub(crate) keys: Vec<Key>,
    /// Those of `keys` that come from files, which are read again while the node runs.
    pub(crate) key_files: Vec<KeyFile>,
    /// Keys that change while the node runs.
    pub(crate) key_set: Option<KeySetFile>,
    /// A token must be for one of them; empty: for anyone.
    pub(crate) audience: Vec<String>,
    /// The required issuer; `None`: any issuer with a key.
    pub(crate) issuer: Option<String>,
    /// The tolerated clock difference to the issuer of tokens.
    pub(crate) leeway: Duration,
    /// Whether a client without a token may connect as anonymous.
    pub(crate) anonymous: bool,
}

/// A file with one of the keys.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeyFile {
    /// Its index in [`Auth::keys`].
    pub(crate) index: usize,
    pub(crate) path: PathBuf,
    pub(crate) id: Option<String>,
    pub(crate) algorithm: Algorithm,
}

impl KeyFile {
    /// Reads the key from the file.
    ///
    /// # Errors
    ///
    /// Why it cannot be used.
    pub(crate) fn read(&self) -> Result<Key, String> {
        let secret = Secret::from_path(&self.path)?;
        let key = Key::new(self.id.clone(), self.algorithm, secret.expose());
        key.map_err(|error| error.to_string())
    }
}

/// A file with a JSON Web Key Set.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeySetFile {
    pub(crate) path: PathBuf,
    /// What it held when the configuration was read.
    pub(crate) keys: Vec<Key>,
}
