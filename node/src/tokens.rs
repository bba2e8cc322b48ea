//! Commands for tokens: makes one, and says what the node says of one.
//!
//! Decides nothing about a token: [`auth`](crate::auth) does, by the same code as in a running node. No text has a part of a key.

mod check;
mod generate;

pub use check::TokenCheck;
pub use check::Verdict;
pub use check::check_token;
pub use generate::TokenError;
pub use generate::TokenRequest;
pub use generate::generate_token;

use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use causeway_conf::Timestamp;

use crate::config::Config;
use crate::jwt::Key;

/// Later moments have no date.
const LAST_SECOND: u64 = 253_402_300_799;

/// The keys that tokens are checked with.
fn keys(config: &Config) -> Vec<Key> {
    let of_set = config.auth.key_set.iter().flat_map(|set| &set.keys);
    config.auth.keys.iter().chain(of_set).cloned().collect()
}

/// The keys of `config`, without any part of them.
fn key_names(keys: &[Key]) -> String {
    if keys.is_empty() {
        return "there is none: auth.keys and auth.key_set are empty".to_owned();
    }
    let names = keys.iter().map(|key| match key.id() {
        Some(id) => format!("{} with the id {id:?}", key.algorithm()),
        None => format!("{} without an id", key.algorithm()),
    });
    names.collect::<Vec<_>>().join(", ")
}

/// UNIX seconds as a date.
fn date(seconds: u64) -> String {
    if LAST_SECOND < seconds {
        return format!("{seconds} seconds");
    }
    let moment = UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    moment.map_or_else(
        || format!("{seconds} seconds"),
        |moment| Timestamp(moment).to_string(),
    )
}

fn unix_seconds(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests;
