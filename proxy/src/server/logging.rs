//! The program log: lines on standard error, as JSON or text, written by a thread of its own. Panics are logged too.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io;
use std::panic::{self, PanicHookInfo};
use std::sync::OnceLock;
use std::time::Duration;

use causeway_conf::{LogConfig, LogEvents, LogTarget, LogWriter, capture};
use tracing_subscriber::EnvFilter;

use crate::config::Log;
use crate::config::LogFormat;
use crate::metrics;

/// The log levels of libraries. Pingora logs every client that disconnects as an error, and each step of its start; it also logs
/// what it does with idle connections. rustls warns about every client that sends an IP address as server name.
const LIBRARIES: &str = "pingora=error,pingora_core=error,pingora_core::apps=off,pingora_core::connectors=off,\
    pingora_core::protocols=off,pingora_proxy=off,pingora_pool=error,pingora_load_balancing=error,rustls=error";

/// The queue of lines to be written: minutes of a busy log, and at most a few megabytes.
const QUEUE: LogConfig = LogConfig {
    name: "log",
    lines_max: 16 * 1024,
    bytes_max: 4 << 20,
};

/// How long the end of the process may be delayed to write the last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// The log of this process, once [`start`] has set it up.
static LOG: OnceLock<LogWriter<Box<[u8]>>> = OnceLock::new();

/// Sets up logging for the whole process. A second call changes nothing.
///
/// # Errors
///
/// The thread or the descriptor for it cannot be created.
pub(crate) fn start(log: &Log) -> io::Result<()> {
    let writer = LogWriter::start(&LogTarget::Stderr, QUEUE, Events)?;
    let written = writer.clone();
    let filter = EnvFilter::new(format!("{},{LIBRARIES}", log.level.as_str()));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // They would be printed to standard error directly, which panics where that is closed.
        .log_internal_errors(false)
        .with_writer(move || written.clone());
    let started = match log.format {
        LogFormat::Json => lines.json().try_init(),
        LogFormat::Text => lines.try_init(),
    };
    match started {
        Ok(()) => {
            let _ = LOG.set(writer); // The subscriber can be set only once, so this is the first call.
            panic::set_hook(Box::new(log_panic));
        }
        Err(error) => {
            writer.close(Duration::ZERO);
            tracing::debug!(%error, "logging is set up already");
        }
    }
    Ok(())
}

/// Writes the queued lines, within at most two seconds. For the end of the process.
pub(crate) fn flush() {
    if let Some(log) = LOG.get() {
        log.flush(LAST_LINES);
    }
}

/// Calls [`flush`] when it is dropped.
pub(crate) struct FlushAtEnd;

impl Drop for FlushAtEnd {
    fn drop(&mut self) {
        flush();
    }
}

/// Counts and reports lost lines.
struct Events;

impl LogEvents<Box<[u8]>> for Events {
    fn lost(&self, lines: u64) {
        metrics::LOG_LINES_DROPPED.inc_by(lines);
    }

    fn notice(&self, lost: u64) -> Option<Box<[u8]>> {
        capture(|| {
            tracing::error!(
                lost,
                "log lines were lost: standard error could not be written, or not fast enough"
            )
        })
    }
}

/// Logs a panic. The default hook prints to standard error, which may be full.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let message = panic.payload_as_str().unwrap_or("(no text)");
    let at = panic.location().map(ToString::to_string);
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then_some(backtrace);
    tracing::error!(
        thread,
        at,
        panic = message,
        backtrace = backtrace.as_ref().map(tracing::field::display),
        "panicked"
    );
}
