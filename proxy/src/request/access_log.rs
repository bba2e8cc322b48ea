//! The access log: one JSON line for each request, and one for each tunnel when it ends.
//!
//! A request never waits for its line: lines go through a bounded queue to a thread of their own ([`LogWriter`]). A line is dropped
//! and counted if the queue is full, or if it cannot be written. Query strings, cookies and bodies, which may hold secrets, are
//! never logged.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use causeway_conf::{LogConfig, LogEvents, LogLine, LogTarget, LogWriter};
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

use crate::config;

/// The bounds of the queue: about a second of a busy edge, and at most 32 MiB.
const QUEUE: LogConfig = LogConfig {
    name: "access-log",
    lines_max: 16 * 1024,
    bytes_max: 32 << 20,
};

/// The most of a path or a host that is logged: a tunnel keeps it for its lifetime.
const TEXT_BYTES_MAX: usize = 1024;

/// One line. Fields that do not apply are omitted.
#[derive(Debug, Serialize)]
pub(crate) struct AccessLine {
    /// When the request arrived, in UNIX time.
    #[serde(serialize_with = "unix_seconds")]
    pub(crate) ts: SystemTime,
    pub(crate) kind: Kind,
    pub(crate) client: Option<IpAddr>,
    pub(crate) request_id: Option<Box<str>>,
    pub(crate) method: Option<Box<str>>,
    pub(crate) host: Option<Box<str>>,
    /// Without the query.
    pub(crate) path: Option<Box<str>>,
    pub(crate) status: Option<u16>,
    #[serde(serialize_with = "milliseconds")]
    pub(crate) duration_ms: Duration,
    /// Bytes of the request body, or of the tunnel, received from the client.
    pub(crate) bytes_in: u64,
    /// Bytes of the response body, or of the tunnel, sent to the client.
    pub(crate) bytes_out: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backend: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) affinity: Option<&'static str>,
    /// Backends that were tried; omitted when it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) attempts: Option<usize>,
    /// How long the request was parked.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "some_milliseconds"
    )]
    pub(crate) waited_ms: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) close_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) close_code: Option<u16>,
    /// The codes that the client and the backend sent; `close_code` is the first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backend_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<Box<str>>,
}

impl AccessLine {
    /// The line of a request that was not admitted.
    pub(crate) fn rejected(peer: Option<IpAddr>, status: u16) -> Self {
        Self {
            ts: SystemTime::now(),
            kind: Kind::Request,
            client: peer,
            request_id: None,
            method: None,
            host: None,
            path: None,
            status: Some(status),
            duration_ms: Duration::ZERO,
            bytes_in: 0,
            bytes_out: 0,
            backend: None,
            affinity: None,
            attempts: None,
            waited_ms: None,
            close_reason: None,
            close_code: None,
            client_code: None,
            backend_code: None,
            error: None,
        }
    }
}

/// `text`, cut to [`TEXT_BYTES_MAX`].
pub(crate) fn excerpt(text: &str) -> Box<str> {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].into()
}

/// What the line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Request,
    Tunnel,
}

fn unix_seconds<S: serde::Serializer>(time: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    to.serialize_f64(since.as_millis() as f64 / 1000.0)
}

fn milliseconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_micros() as f64 / 1000.0)
}

fn some_milliseconds<S: serde::Serializer>(
    time: &Option<Duration>,
    to: S,
) -> Result<S::Ok, S::Error> {
    milliseconds(&time.unwrap_or_default(), to)
}

impl LogLine for AccessLine {
    fn bytes(&self) -> usize {
        // Each field is named, so that a new one does not compile until it is known whether it has memory of its own.
        let Self {
            ts: _,
            kind: _,
            client: _,
            request_id,
            method,
            host,
            path,
            status: _,
            duration_ms: _,
            bytes_in: _,
            bytes_out: _,
            backend,
            affinity: _,
            attempts: _,
            waited_ms: _,
            close_reason: _,
            close_code: _,
            client_code: _,
            backend_code: _,
            error,
        } = self;
        let texts = [request_id, method, host, path, backend, error];
        let texts = texts.into_iter().flatten();
        size_of::<Self>() + texts.map(|text| text.len()).sum::<usize>()
    }

    fn append_to(self, text: &mut Vec<u8>) {
        let written = serde_json::to_writer(&mut *text, &self);
        debug_assert!(written.is_ok(), "a line is plain data, and a Vec takes it");
        text.push(b'\n');
    }
}

/// The access log. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AccessLog {
    /// `None` if it is disabled.
    log: Option<LogWriter<AccessLine>>,
}

/// The access log cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the access log {path}: {source}")]
pub struct AccessLogError {
    path: String,
    #[source]
    source: io::Error,
}

impl AccessLog {
    /// Opens `target` and starts the thread that writes to it. Lost lines are counted in `dropped`.
    ///
    /// # Errors
    ///
    /// [`AccessLogError`] if the file cannot be opened, or no thread can be started.
    pub(crate) fn open(
        target: &config::AccessLog,
        dropped: Counter,
    ) -> Result<Self, AccessLogError> {
        let Some((name, target)) = named(target) else {
            return Ok(Self { log: None });
        };
        let events = Events {
            name: name.clone(),
            dropped,
        };
        match LogWriter::start(&target, QUEUE, events) {
            Ok(log) => Ok(Self { log: Some(log) }),
            Err(source) => Err(AccessLogError { path: name, source }),
        }
    }

    /// Checks whether `target` can be opened, without creating a file.
    ///
    /// # Errors
    ///
    /// As [`AccessLog::open`].
    pub(crate) fn check(target: &config::AccessLog) -> Result<(), AccessLogError> {
        let Some((path, target)) = named(target) else {
            return Ok(());
        };
        target
            .check()
            .map_err(|source| AccessLogError { path, source })
    }

    /// Whether it is enabled, so that lines are not built in vain.
    pub(crate) fn is_on(&self) -> bool {
        self.log.is_some()
    }

    /// Queues a line, or drops it if the queue is full.
    pub(crate) fn write(&self, line: AccessLine) {
        if let Some(log) = &self.log {
            log.push(line);
        }
    }

    /// Reopens the file under the same name. Other targets are not affected.
    pub(crate) fn reopen(&self) {
        if let Some(log) = &self.log {
            log.reopen();
        }
    }

    /// Writes the queued lines and ends the thread, within `wait`. Later lines are lost.
    pub(crate) fn close(&self, wait: Duration) {
        let is_flushed = self.log.as_ref().is_none_or(|log| log.close(wait));
        if !is_flushed {
            tracing::warn!("the access log cannot be written in time, its last lines are lost");
        }
    }
}

/// The target and its name, unless it is off.
fn named(target: &config::AccessLog) -> Option<(String, LogTarget)> {
    Some(match target {
        config::AccessLog::Off => return None,
        config::AccessLog::Stdout => ("stdout".to_owned(), LogTarget::Stdout),
        config::AccessLog::Stderr => ("stderr".to_owned(), LogTarget::Stderr),
        config::AccessLog::File(path) => {
            (path.display().to_string(), LogTarget::File(path.clone()))
        }
    })
}

/// Reports events of the access log in the program log.
struct Events {
    name: String,
    dropped: Counter,
}

impl LogEvents<AccessLine> for Events {
    fn lost(&self, lines: u64) {
        self.dropped.inc_by(lines);
    }

    fn failing(&self, error: &io::Error) {
        tracing::error!(path = self.name, %error, "cannot write the access log");
    }

    fn recovered(&self, lost: u64) {
        tracing::warn!(
            path = self.name,
            lost,
            "the access log can be written again, lines were lost"
        );
    }

    fn reopened(&self, result: io::Result<()>) {
        match result {
            Ok(()) => tracing::info!(path = self.name, "access log reopened"),
            Err(error) => {
                tracing::error!(path = self.name, %error, "cannot reopen the access log, still writing to the old file");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> AccessLine {
        AccessLine {
            ts: SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
            kind: Kind::Tunnel,
            client: Some(IpAddr::from([10, 0, 0, 7])),
            request_id: Some("abc".into()),
            method: Some("GET".into()),
            host: Some("example.com".into()),
            path: Some("/ws".into()),
            status: Some(101),
            duration_ms: Duration::from_micros(2500),
            bytes_in: 3,
            bytes_out: 4,
            backend: Some("n1".into()),
            affinity: Some("hit"),
            attempts: None,
            waited_ms: None,
            close_reason: Some("client_closed"),
            close_code: Some(1000),
            client_code: Some(1000),
            backend_code: None,
            error: None,
        }
    }

    #[test]
    fn a_line_is_one_json_object_without_fields_that_do_not_apply() {
        let mut text = Vec::new();
        line().append_to(&mut text);
        expect_test::expect![[r#"
            {"ts":1.5,"kind":"tunnel","client":"10.0.0.7","request_id":"abc","method":"GET","host":"example.com","path":"/ws","status":101,"duration_ms":2.5,"bytes_in":3,"bytes_out":4,"backend":"n1","affinity":"hit","close_reason":"client_closed","close_code":1000,"client_code":1000}
        "#]]
        .assert_eq(&String::from_utf8(text).unwrap());
    }

    #[test]
    fn a_line_counts_the_bytes_of_its_texts() {
        let mut long = line();
        long.path = Some("x".repeat(TEXT_BYTES_MAX).into());
        assert_eq!(long.bytes() - line().bytes(), TEXT_BYTES_MAX - "/ws".len());
    }

    #[test]
    fn the_guide_explains_every_field() {
        const GUIDE: &str = include_str!("../../README.md");
        let whole = AccessLine {
            attempts: Some(2),
            waited_ms: Some(Duration::ZERO),
            backend_code: Some(1000),
            error: Some("e".into()),
            ..line()
        };
        let whole = serde_json::to_value(whole).unwrap();
        let fields = whole.as_object().unwrap();
        assert_eq!(fields.len(), 20, "the line of this test has all fields");
        for field in fields.keys() {
            assert!(GUIDE.contains(&format!("\n| `{field}` | ")), "{field}");
        }
    }

    #[test]
    fn a_text_of_any_length_takes_bounded_memory() {
        assert_eq!(&*excerpt("/ws"), "/ws");
        let long = format!("/{}", "é".repeat(TEXT_BYTES_MAX));
        assert_eq!(excerpt(&long).len(), TEXT_BYTES_MAX - 1);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let target = config::AccessLog::File("/nonexistent/access.log".into());
        let error = AccessLog::open(&target, Counter::default())
            .map(|_| ())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot open the access log /nonexistent/access.log: No such file or directory (os error 2)"
        );
    }
}
