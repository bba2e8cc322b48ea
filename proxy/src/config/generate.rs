//! A configuration to start with, for `genconfig`.

use ring::error::Unspecified;
use ring::rand::{SecureRandom, SystemRandom};

use super::Config;

/// It works as it is; `@KEY@` is a random key.
const TEMPLATE: &str = include_str!("template.yaml");

const KEY_BYTES: usize = 32;

impl Config {
    /// A commented file that works as it is, with fresh keys.
    ///
    /// # Errors
    ///
    /// The system has no random numbers.
    pub fn generate() -> Result<String, Unspecified> {
        let random = SystemRandom::new();
        let mut text = TEMPLATE.to_owned();
        while text.contains("@KEY@") {
            let mut key = [0; KEY_BYTES];
            random.fill(&mut key)?;
            let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            text = text.replacen("@KEY@", &key, 1);
        }
        Ok(text)
    }
}
