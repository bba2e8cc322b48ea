//! The access log: one JSON line for each request, and one for each tunnel when it ends.
//!
//! Whoever writes a line never waits: lines go through a bounded queue to a thread of their own, which alone touches the file.
//! A line that finds the queue full is dropped and counted. What could identify more than the client (query strings, cookies,
//! bodies) is never logged.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;

use crate::config;

/// Lines that may wait for the disk: about a second of a busy edge, and at most some thirty megabytes.
const QUEUE: usize = 16 * 1024;

/// The most of a path or a host that is kept for a line: a tunnel keeps it for all its life.
const TEXT_BYTES_MAX: usize = 1024;

/// How much is gathered for one write, unless there is nothing more to gather.
const WRITE_BYTES: usize = 64 * 1024;

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

/// Where lines are handed in. Cheap to clone.
#[derive(Clone)]
pub(crate) struct AccessLog {
    shared: Option<Arc<Shared>>,
}

struct Shared {
    /// `None` once the log is closed.
    queue: Mutex<Option<SyncSender<AccessLine>>>,
    /// Disconnected when the thread has written everything and ended.
    ended: Mutex<Receiver<()>>,
    dropped: Counter,
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
        let failed = |path: &str, source| AccessLogError {
            path: path.to_owned(),
            source,
        };
        match target {
            config::AccessLog::Off => Ok(Self { shared: None }),
            config::AccessLog::Stdout => {
                Self::start(io::stdout(), dropped).map_err(|error| failed("stdout", error))
            }
            config::AccessLog::Stderr => {
                Self::start(io::stderr(), dropped).map_err(|error| failed("stderr", error))
            }
            config::AccessLog::File(path) => OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .and_then(|file| Self::start(file, dropped))
                .map_err(|error| failed(&path.display().to_string(), error)),
        }
    }

    fn start(target: impl Write + Send + 'static, dropped: Counter) -> io::Result<Self> {
        let (queue, lines) = sync_channel(QUEUE);
        let (ending, ended) = sync_channel(0);
        let lost = dropped.clone();
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || {
                write_lines(&lines, target, &lost);
                drop(ending);
            })?;
        let shared = Shared {
            queue: Mutex::new(Some(queue)),
            ended: Mutex::new(ended),
            dropped,
        };
        Ok(Self {
            shared: Some(Arc::new(shared)),
        })
    }

    /// Whether lines go anywhere, so that nobody makes them in vain.
    pub(crate) fn is_on(&self) -> bool {
        self.shared.is_some()
    }

    /// Hands in a line, or drops it if the queue is full.
    pub(crate) fn write(&self, line: AccessLine) {
        let Some(shared) = &self.shared else {
            return;
        };
        let sent = match &*shared.queue.lock() {
            Some(queue) => queue.try_send(line),
            None => return,
        };
        if sent.is_err() {
            shared.dropped.inc();
        }
    }

    /// Writes out what is queued and ends the thread, in at most `wait`. Lines handed in later are lost.
    pub(crate) fn close(&self, wait: Duration) {
        let Some(shared) = &self.shared else {
            return;
        };
        drop(shared.queue.lock().take());
        if shared.ended.lock().recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the access log is stuck: its last lines are lost");
        }
    }
}

/// Writes lines until the queue is closed, as many at once as there are. Lines that cannot be written count as `lost`.
fn write_lines(lines: &Receiver<AccessLine>, mut target: impl Write, lost: &Counter) {
    let mut text = Vec::new();
    let mut failing = false;
    while let Ok(first) = lines.recv() {
        let mut count = append(&mut text, &first);
        while text.len() < WRITE_BYTES
            && let Ok(line) = lines.try_recv()
        {
            count += append(&mut text, &line);
        }
        let written = target.write_all(&text).and_then(|()| target.flush());
        text.clear();
        match written {
            Ok(()) => failing = false,
            Err(error) => {
                lost.inc_by(count);
                text.push(b'\n'); // What was cut off in the middle ends before the next line.
                if !failing {
                    failing = true;
                    tracing::error!(%error, "cannot write the access log");
                }
            }
        }
    }
}

/// Appends `line` to `text`; returns how many lines that makes.
fn append(text: &mut Vec<u8>, line: &AccessLine) -> u64 {
    let written = serde_json::to_writer(&mut *text, line);
    debug_assert!(written.is_ok(), "a line is plain data, and a Vec takes it");
    text.push(b'\n');
    1
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

    /// A target that a test can read while the log holds it.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_is_one_json_object_without_what_does_not_apply() {
        let sink = Sink::default();
        let log = AccessLog::start(sink.clone(), Counter::default()).unwrap();
        log.write(line());
        log.close(Duration::from_secs(10));
        let text = String::from_utf8(sink.0.lock().clone()).unwrap();
        expect_test::expect![[r#"
            {"ts":1.5,"kind":"tunnel","client":"10.0.0.7","request_id":"abc","method":"GET","host":"example.com","path":"/ws","status":101,"duration_ms":2.5,"bytes_in":3,"bytes_out":4,"backend":"n1","affinity":"hit","close_reason":"client_closed","close_code":1000,"client_code":1000}
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn everything_handed_in_before_the_end_is_written() {
        let sink = Sink::default();
        let log = AccessLog::start(sink.clone(), Counter::default()).unwrap();
        (0..1000).for_each(|_| log.write(line()));
        log.close(Duration::from_secs(10));
        assert_eq!(
            sink.0.lock().iter().filter(|byte| **byte == b'\n').count(),
            1000
        );
    }

    #[test]
    fn a_target_that_is_stuck_costs_lines_and_holds_up_nobody() {
        struct Stuck(Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(data.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, stuck) = sync_channel(0);
        let dropped = Counter::default();
        let log = AccessLog::start(Stuck(stuck), dropped.clone()).unwrap();
        (0..3 * QUEUE).for_each(|_| log.write(line()));
        assert!(dropped.get() > 0);
        drop(release);
        log.close(Duration::from_secs(10));
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_do_not_spoil_the_next() {
        /// Takes half of the first write and fails.
        struct Torn(Sink, bool);
        impl Write for Torn {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                if std::mem::replace(&mut self.1, true) {
                    return self.0.write(data);
                }
                self.0.write(&data[..data.len() / 2])?;
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let sink = Sink::default();
        let lost = Counter::default();
        let log = AccessLog::start(Torn(sink.clone(), false), lost.clone()).unwrap();
        log.write(line());
        while lost.get() == 0 {
            std::thread::yield_now();
        }
        log.write(line());
        log.close(Duration::from_secs(10));
        assert_eq!(lost.get(), 1);
        let text = String::from_utf8(sink.0.lock().clone()).unwrap();
        let last = text.lines().last().unwrap();
        assert!(
            serde_json::from_str::<serde_json::Value>(last).is_ok(),
            "{text}"
        );
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
