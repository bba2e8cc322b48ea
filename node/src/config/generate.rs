//! A configuration to start with, for `genconfig`.

use std::io;

use crate::config::Config;

/// It works as it is; each `@KEY@` is a random key.
const TEMPLATE: &str = include_str!("template.yaml");

const KEY_BYTES: usize = 32;

impl Config {
    /// A commented file that works as it is, with fresh keys.
    ///
    /// # Errors
    ///
    /// The system has no random numbers.
    pub fn generate() -> io::Result<String> {
        let mut text = TEMPLATE.to_owned();
        while text.contains("@KEY@") {
            let mut key = [0; KEY_BYTES];
            getrandom::fill(&mut key).map_err(io::Error::other)?;
            let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            text = text.replacen("@KEY@", &key, 1);
        }
        Ok(text)
    }
}
