//! The log: lines on standard error, as JSON or text, written by a separate thread. Panics are logged too. Throttles lines that
//! clients can cause.

use std::backtrace::Backtrace;
use std::backtrace::BacktraceStatus;
use std::io;
use std::panic;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;

use causeway_conf::LogConfig;
use causeway_conf::LogEvents;
use causeway_conf::LogTarget;
use causeway_conf::LogWriter;
use causeway_conf::capture;
use tracing::warn;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

use crate::config::Log;
use crate::config::LogFormat;
use crate::metrics;

mod throttle;
mod too_large;

pub(crate) use throttle::Throttle;
pub(crate) use too_large::too_large;

/// The size of the queue for standard error: minutes of a busy log, and at most a few megabytes.
const QUEUE: LogConfig = LogConfig {
    name: "log",
    lines_max: 16 * 1024,
    bytes_max: 4 << 20,
};

/// How long the exit of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// The log of this process, once it is set up.
static LOG: OnceLock<LogWriter<Box<[u8]>>> = OnceLock::new();

/// A client that is disconnected because it reads too slowly.
#[derive(Debug)]
pub(crate) struct SlowClient<'a> {
    /// Its id, or its address where it has none.
    pub(crate) client: &'a str,
    /// Empty if it is not known.
    pub(crate) user: &'a str,
    /// The path of its endpoint.
    pub(crate) endpoint: &'a str,
    pub(crate) transport: &'static str,
    /// What was queued for it, in bytes.
    pub(crate) bytes_queued: usize,
}

/// Logs a client that was disconnected as too slow, at most one line a second.
pub(crate) fn slow_client(slow: &SlowClient<'_>) {
    static PACE: Throttle = Throttle::new();
    let SlowClient {
        client,
        user,
        endpoint,
        transport,
        bytes_queued,
    } = slow;
    if let Some(held_back) = PACE.admit(Instant::now()) {
        warn!(
            client,
            user,
            endpoint,
            transport,
            bytes_queued,
            held_back,
            "client disconnected: it reads too slowly"
        );
    }
}

/// Changes the level, once there is a log.
static SET_LEVEL: OnceLock<Box<dyn Fn(EnvFilter) + Send + Sync>> = OnceLock::new();

/// Sets up logging for the whole process. A second call changes nothing.
///
/// # Errors
///
/// The thread or the descriptor cannot be created.
pub(crate) fn start(log: &Log) -> io::Result<()> {
    let writer = LogWriter::start(&LogTarget::Stderr, QUEUE, Events)?;
    let written = writer.clone();
    let filter = EnvFilter::new(&log.level);
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // The default is to print to standard error, and to panic where that is closed.
        .log_internal_errors(false)
        .with_writer(move || written.clone());
    let started = match log.format {
        LogFormat::Json => {
            let lines = lines.json().with_filter_reloading();
            keep(lines.reload_handle());
            lines.try_init()
        }
        LogFormat::Text => {
            let lines = lines.with_filter_reloading();
            keep(lines.reload_handle());
            lines.try_init()
        }
    };
    match started {
        Ok(()) => {
            let _ = LOG.set(writer); // The subscriber can be set only once, so this is the first time.
            panic::set_hook(Box::new(log_panic));
        }
        Err(error) => {
            writer.close(Duration::ZERO);
            tracing::debug!(%error, "logging is set up already");
        }
    }
    Ok(())
}

/// Writes out what is queued, in at most two seconds. For the end of the process.
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

/// Reports lost lines.
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

/// The line of a panic. The default one is printed to standard error, which may be full.
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

/// Keeps the handle of the first log: a second one is never used.
fn keep<S: 'static>(handle: Handle<EnvFilter, S>) {
    // It fails only when the log is gone.
    let set = move |filter| drop(handle.reload(filter));
    let _ = SET_LEVEL.set(Box::new(set));
}

/// Changes what is logged to `level`: a level, or `tracing` filter directives.
pub(crate) fn set_level(level: &str) {
    if let Some(set) = SET_LEVEL.get() {
        set(EnvFilter::new(level));
    }
}
