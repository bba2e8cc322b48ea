//! Where log lines go: standard error, as JSON or text.

use tracing_subscriber::EnvFilter;

use crate::config::Log;
use crate::config::LogFormat;

/// What of the libraries below us is worth a line. Pingora reports every client that breaks off as an error, and announces
/// each step of its start.
const LIBRARIES: &str = "pingora=error,pingora_core=error,pingora_proxy=off,pingora_pool=error,pingora_load_balancing=error";

/// Sets up logging for the whole process. A second call changes nothing.
pub(crate) fn start(log: &Log) {
    let filter = EnvFilter::new(format!("{},{LIBRARIES}", log.level.as_str()));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Json => lines.json().try_init(),
        LogFormat::Text => lines.try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging is set up already");
    }
}
