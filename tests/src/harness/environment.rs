//! What whoever runs a test may choose, by variables that the Makefile sets.

use std::{env, str::FromStr};

/// The number that a variable holds, if it is set.
///
/// # Panics
///
/// It holds something else: a test that takes its own default instead would not be the one that was asked for.
#[must_use]
pub fn number<T: FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    let number = text.parse().ok();
    Some(number.unwrap_or_else(|| panic!("{name}={text} is no number that fits")))
}
