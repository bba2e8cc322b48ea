//! Logs a message or a body that was rejected because of its size, with the setting that limits it.

use std::sync::LazyLock;
use std::time::Instant;

use tracing::warn;

use crate::logging::Throttle;

/// Shared by all endpoints.
static LINES: LazyLock<Throttle> = LazyLock::new(Throttle::default);

/// Logs, at most once a second, that something was larger than `bytes_max`, the value of `setting`.
pub(crate) fn too_large(endpoint: &str, setting: &'static str, bytes_max: usize) {
    if let Some(held_back) = LINES.admit(Instant::now()) {
        warn!(
            endpoint,
            setting,
            bytes_max,
            held_back,
            "message or body of a client rejected: it is larger than this setting allows"
        );
    }
}
