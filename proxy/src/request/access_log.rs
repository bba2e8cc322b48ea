//! The access log: one JSON line for each request, and one for each tunnel when it ends.
//!
//! A request never waits for its line: it goes through a bounded queue to a thread of its own ([`LogWriter`]). One that finds the
//! queue full, or that cannot be written, is dropped and counted. What could identify more than the client (query strings,
//! cookies, bodies) is never logged.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use causeway_conf::{LogConfig, LogEvents, LogLine, LogTarget, LogWriter};
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

use crate::config;

/// What may wait for the disk: about a second of a busy edge, and at most some thirty megabytes.
const QUEUE: LogConfig = LogConfig {
    name: "access-log",
    lines_max: 16 * 1024,
    bytes_max: 32 << 20,
};

/// The most of a path or a host that is kept for a line: a tunnel keeps it for all its life.
const TEXT_BYTES_MAX: usize = 1024;

/// What one line says. Fields that do not apply are left out.
#[derive(Debug, Serialize)]
pub(crate) struct AccessLine {
    /// When the request came, in UNIX time.
    #[serde(serialize_with = "unix_seconds")]
    pub(crate) ts: SystemTime,
    pub(crate) kind: Kind,
    pub(crate) client: Option<IpAddr>,
    pub(crate) request_id: Option<Box<str>>,
    pub(crate) method: Option<Box<str>>,
    pub(crate) host: Option<Box<str>>,
    /// Without the query, which may hold secrets.
    pub(crate) path: Option<Box<str>>,
    pub(crate) status: Option<u16>,
    #[serde(serialize_with = "milliseconds")]
    pub(crate) duration_ms: Duration,
    /// Bytes of the request's body, or of the tunnel, that came from the client.
    pub(crate) bytes_in: u64,
    /// Bytes of the answer's body, or of the tunnel, that went to the client.
    pub(crate) bytes_out: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backend: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) affinity: Option<&'static str>,
    /// Backends that were tried; left out when it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) attempts: Option<usize>,
    /// For how long the request waited for its backend to come back.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "some_milliseconds"
    )]
    pub(crate) waited_ms: Option<Duration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) close_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) close_code: Option<u16>,
    /// The codes that the client and the backend sent, which `close_code` is the first of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backend_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<Box<str>>,
}

impl AccessLine {
    /// The line of what got no further than the edge.
    pub(crate) fn refused(peer: Option<IpAddr>, status: u16) -> Self {
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

/// As much of `text` as a line may hold.
pub(crate) fn excerpt(text: &str) -> Box<str> {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].into()
}

/// What ended with this line.
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
        let texts = [
            &self.request_id,
            &self.method,
            &self.host,
            &self.path,
            &self.backend,
            &self.error,
        ];
        let texts = texts.into_iter().flatten();
        size_of::<Self>() + texts.map(|text| text.len()).sum::<usize>()
    }

    fn append_to(self, text: &mut Vec<u8>) {
        let written = serde_json::to_writer(&mut *text, &self);
        debug_assert!(written.is_ok(), "a line is plain data, and a Vec takes it");
        text.push(b'\n');
    }
}

/// Where lines are handed in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AccessLog {
    /// `None`: it is off.
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
    /// Opens what `target` says and starts the thread that writes to it. Lines that are lost are counted in `dropped`.
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

    /// Says whether what `target` says can be opened, without making it.
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

    /// Whether lines go anywhere, so that nobody makes them in vain.
    pub(crate) fn is_on(&self) -> bool {
        self.log.is_some()
    }

    /// Hands in a line, or drops it if the queue is full.
    pub(crate) fn write(&self, line: AccessLine) {
        if let Some(log) = &self.log {
            log.push(line);
        }
    }

    /// Opens the file again, under the same name. Other targets stay as they are.
    pub(crate) fn reopen(&self) {
        if let Some(log) = &self.log {
            log.reopen();
        }
    }

    /// Writes out what is queued and ends the thread, in at most `wait`. Lines handed in later are lost.
    pub(crate) fn close(&self, wait: Duration) {
        let is_written = self.log.as_ref().is_none_or(|log| log.close(wait));
        if !is_written {
            tracing::warn!("the access log is stuck: its last lines are lost");
        }
    }
}

/// Where lines go and what that is called, if they go anywhere.
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

/// What the program log says of the access log.
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
            "access log lines were lost, it is written again"
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
    fn a_line_is_one_json_object_without_what_does_not_apply() {
        let mut text = Vec::new();
        line().append_to(&mut text);
        expect_test::expect![[r#"
            {"ts":1.5,"kind":"tunnel","client":"10.0.0.7","request_id":"abc","method":"GET","host":"example.com","path":"/ws","status":101,"duration_ms":2.5,"bytes_in":3,"bytes_out":4,"backend":"n1","affinity":"hit","close_reason":"client_closed","close_code":1000,"client_code":1000}
        "#]]
        .assert_eq(&String::from_utf8(text).unwrap());
    }

    #[test]
    fn a_line_counts_with_the_texts_that_it_keeps() {
        let mut long = line();
        long.path = Some("x".repeat(TEXT_BYTES_MAX).into());
        assert_eq!(long.bytes() - line().bytes(), TEXT_BYTES_MAX - "/ws".len());
    }

    #[test]
    fn the_readme_explains_every_field() {
        const README: &str = include_str!("../../../README.md");
        let whole = AccessLine {
            attempts: Some(2),
            waited_ms: Some(Duration::ZERO),
            backend_code: Some(1000),
            error: Some("e".into()),
            ..line()
        };
        let whole = serde_json::to_value(whole).unwrap();
        let fields = whole.as_object().unwrap();
        assert_eq!(fields.len(), 20, "the line of this test has them all");
        for field in fields.keys() {
            assert!(README.contains(&format!("\n| `{field}` | ")), "{field}");
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
