//! Where log lines go (standard error, as JSON or text), and how many there are of what clients cause.

use tracing_subscriber::EnvFilter;

use crate::config::Log;
use crate::config::LogFormat;

mod pace;

pub(crate) use pace::Pace;

/// Sets up logging for the whole process. A second call changes nothing.
pub(crate) fn start(log: &Log) {
    let lines = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&log.level))
        .with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Json => lines.json().try_init(),
        LogFormat::Text => lines.try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging is set up already");
    }
}
