//! Waiting for a condition, never for a length of time.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout_at};

/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(10);

/// Long enough for anything that should happen "at once", also on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Waits until `probe` gives something, and returns it.
///
/// # Errors
///
/// `probe` gave nothing within `deadline`; the error names `what` was waited for.
pub async fn until<T>(
    what: &str,
    deadline: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match timeout_at(end, probe()).await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) if Instant::now() < end => sleep(PAUSE).await,
            Ok(None) | Err(_) => bail!("waited {deadline:?} in vain for {what}"),
        }
    }
}
