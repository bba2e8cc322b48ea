//! The line about a message or a body that was refused because of its size, with the setting that allows more.

use std::sync::LazyLock;
use std::time::Instant;

use tracing::warn;

use crate::logging::Pace;

/// Of all endpoints: a client can cause such lines as often as it likes.
static LINES: LazyLock<Pace> = LazyLock::new(Pace::default);

/// Logs, once a second at most, that something was larger than the `setting` allows, which is `bytes_max`.
pub(crate) fn too_large(endpoint: &str, setting: &'static str, bytes_max: usize) {
    if let Some(held_back) = LINES.admit(Instant::now()) {
        warn!(
            endpoint,
            setting, bytes_max, held_back, "a client sent more at once than this setting allows"
        );
    }
}
