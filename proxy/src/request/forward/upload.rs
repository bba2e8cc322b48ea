//! The request on its way to a backend: its head, and its body as it comes from the client.
//!
//! A body of a known length goes out as it is; any other in chunks of the edge's own, so that no extension and no unusual chunk
//! reaches a backend. However it ends, the backend gets one end. A piece is read only when the backend has taken the one before.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::HeaderMap;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use crate::config::BodyRate;
use crate::downstream::{BodyError, BodyEvent, Downstream};
use crate::http::http1::{write_chunk, write_last_chunk};
use crate::request::error::Rejection;
use crate::request::exchange::Replay;
use crate::tunnel::Socket;

/// The most of a body that is kept for another attempt.
const REPLAY_MAX: usize = 64 * 1024;

/// With less than this to send, what is there of the body joins it.
const GATHER: usize = 4096;

/// How the backend is told where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// By its length, or there is none.
    Length,
    Chunked,
}

/// Why a request cannot be sent on.
#[derive(Debug)]
pub(super) enum UploadError {
    /// Its client left, or sent what is no body.
    Client(BodyError),
    /// It is not to be sent on.
    Rejected(Rejection),
    /// The backend does not take it.
    Backend(io::Error),
}

/// A request that is being sent.
pub(super) struct Upload {
    framing: Framing,
    /// To be sent, with what is sent of it.
    out: Vec<u8>,
    sent: usize,
    /// Whether the end of the body is in `out`.
    has_ended: bool,
    /// Whether everything has been sent, and flushed.
    is_sent: bool,
    /// Bytes of content that have come.
    received: u64,
    /// What came of the body, of a request that may be sent again; `None` once that is too much.
    kept: Option<Vec<u8>>,
    kept_trailers: Option<HeaderMap>,
    rate: Option<RateMeter>,
    /// Counts what has come to pass, so that a wait can be told from progress.
    progress: u64,
}

impl Upload {
    /// Of a request whose body may have to be sent again.
    pub(super) fn new(framing: Framing, rate: Option<BodyRate>, keeps_body: bool) -> Self {
        Self {
            framing,
            out: Vec::new(),
            sent: 0,
            has_ended: false,
            is_sent: false,
            received: 0,
            kept: keeps_body.then(Vec::new),
            kept_trailers: None,
            rate: rate.map(RateMeter::new),
            progress: 0,
        }
    }

    /// Of a request that has none.
    pub(super) fn without_body() -> Self {
        Self {
            has_ended: true,
            ..Self::new(Framing::Length, None, false)
        }
    }

    /// Begins to send it to another backend, or again: with this head.
    pub(super) fn begin(&mut self, head: impl FnOnce(&mut Vec<u8>)) {
        self.out.clear();
        self.sent = 0;
        self.is_sent = false;
        self.out.reserve(1024);
        head(&mut self.out);
        if let Some(kept) = self.kept.as_deref().filter(|kept| !kept.is_empty()) {
            write_content(self.framing, kept, &mut self.out);
        }
        if self.has_ended {
            write_end(self.framing, self.kept_trailers.as_ref(), &mut self.out);
        }
    }

    /// Whether all that has been read of the body can be sent once more.
    pub(super) fn replay(&self) -> Replay {
        match self.kept {
            Some(_) => Replay::Possible,
            None if self.received == 0 => Replay::Possible,
            None => Replay::Impossible,
        }
    }

    /// How many bytes of content have come from the client.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    pub(super) fn progress(&self) -> u64 {
        self.progress
    }

    /// Whether all of it has been sent.
    pub(super) fn is_sent(&self) -> bool {
        self.is_sent
    }

    /// Whether nothing can go on before the client sends more.
    pub(super) fn waits_for_client(&self) -> bool {
        !self.has_ended && self.sent == self.out.len()
    }

    /// Reads from `client` and sends to `socket` as far as it goes. Ready when all is sent. `check` judges the length of the body
    /// so far.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut impl Downstream,
        socket: &mut Socket,
        check: impl Fn(u64) -> Result<(), Rejection>,
    ) -> Poll<Result<(), UploadError>> {
        if self.is_sent {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut waits = false;
            if !self.has_ended && self.out.len() - self.sent < GATHER {
                waits = self.poll_read(cx, client, &check)?.is_pending();
            }
            while self.sent < self.out.len() {
                let written = Pin::new(&mut *socket).poll_write(cx, &self.out[self.sent..]);
                match ready!(written).map_err(UploadError::Backend)? {
                    0 => {
                        return Poll::Ready(Err(UploadError::Backend(
                            io::ErrorKind::WriteZero.into(),
                        )));
                    }
                    count => self.sent += count,
                }
                self.progress += 1;
            }
            self.out.clear();
            self.sent = 0;
            ready!(Pin::new(&mut *socket).poll_flush(cx)).map_err(UploadError::Backend)?;
            if self.has_ended {
                self.out = Vec::new();
                self.is_sent = true;
                return Poll::Ready(Ok(()));
            }
            if waits {
                return Poll::Pending;
            }
        }
    }

    /// Reads one piece of the body into `out`.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut impl Downstream,
        check: &impl Fn(u64) -> Result<(), Rejection>,
    ) -> Poll<Result<(), UploadError>> {
        let (framing, out, received) = (self.framing, &mut self.out, &mut self.received);
        let (before, kept) = (*received, &mut self.kept);
        let read = client.poll_body(cx, |content| {
            *received += content.len() as u64;
            write_content(framing, content, out);
            match kept.as_mut() {
                Some(bytes) if bytes.len() + content.len() <= REPLAY_MAX => {
                    bytes.extend_from_slice(content);
                }
                _ => *kept = None,
            }
        });
        let read = match read {
            Poll::Ready(read) => read.map_err(UploadError::Client)?,
            Poll::Pending => {
                if let Some(rate) = &mut self.rate {
                    rate.waits();
                }
                return Poll::Pending;
            }
        };
        self.progress += 1;
        match read {
            BodyEvent::Content => {
                let too_slow = Rejection::BodyTimeout("slower than timeouts.request_body_rate");
                let length = self.received - before;
                if self
                    .rate
                    .as_mut()
                    .is_some_and(|rate| !rate.suffices(length))
                {
                    return Poll::Ready(Err(UploadError::Rejected(too_slow)));
                }
                Poll::Ready(check(self.received).map_err(UploadError::Rejected))
            }
            BodyEvent::End(trailers) => {
                self.has_ended = true;
                write_end(framing, trailers.as_ref(), &mut self.out);
                self.kept_trailers = trailers;
                Poll::Ready(Ok(()))
            }
        }
    }
}

fn write_content(framing: Framing, content: &[u8], out: &mut Vec<u8>) {
    match framing {
        Framing::Length => out.extend_from_slice(content),
        // An empty chunk would be the last.
        Framing::Chunked if content.is_empty() => {}
        Framing::Chunked => write_chunk(content, out),
    }
}

fn write_end(framing: Framing, trailers: Option<&HeaderMap>, out: &mut Vec<u8>) {
    if framing == Framing::Chunked {
        write_last_chunk(trailers, out);
    }
}

/// How fast a body comes, counting only the time in which it is waited for: a backend that takes it slowly is not the client's
/// fault.
struct RateMeter {
    least: BodyRate,
    /// Of the window under way.
    waited: Duration,
    bytes: u64,
    waits_since: Option<Instant>,
}

impl RateMeter {
    fn new(least: BodyRate) -> Self {
        Self {
            least,
            waited: Duration::ZERO,
            bytes: 0,
            waits_since: None,
        }
    }

    /// Nothing has come yet.
    fn waits(&mut self) {
        self.waits_since.get_or_insert_with(Instant::now);
    }

    /// Takes in that `bytes` have come. Whether that is fast enough.
    fn suffices(&mut self, bytes: u64) -> bool {
        let waited = self.waits_since.take().map(|since| since.elapsed());
        self.came(bytes, waited.unwrap_or_default())
    }

    fn came(&mut self, bytes: u64, after: Duration) -> bool {
        self.bytes += bytes;
        self.waited += after;
        if self.waited < self.least.window {
            return true;
        }
        let least = self.waited.as_secs_f64() * self.least.per_second as f64;
        let suffices = least <= self.bytes as f64;
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        suffices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: BodyRate = BodyRate {
        per_second: 100,
        window: Duration::from_secs(10),
    };

    #[test]
    fn a_body_that_trickles_is_too_slow_after_a_window_and_not_before() {
        let mut meter = RateMeter::new(LEAST);
        for _ in 0..9 {
            assert!(meter.came(1, Duration::from_secs(1)));
        }
        assert!(!meter.came(1, Duration::from_secs(1)));
    }

    #[test]
    fn a_body_that_comes_fast_enough_on_average_is_never_too_slow() {
        let mut meter = RateMeter::new(LEAST);
        for _ in 0..100 {
            assert!(meter.came(1000, Duration::from_secs(10)));
            // What comes without a wait does not count against it.
            assert!(meter.came(1, Duration::ZERO));
        }
        assert!(!meter.came(998, Duration::from_secs(10)));
    }

    #[test]
    fn what_is_sent_again_is_framed_as_it_was() {
        let mut upload = Upload::new(Framing::Chunked, None, true);
        upload.kept = Some(b"abc".to_vec());
        upload.has_ended = true;
        upload.begin(|out| out.extend_from_slice(b"head\r\n\r\n"));
        assert_eq!(upload.out, b"head\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
        upload.has_ended = false;
        upload.framing = Framing::Length;
        upload.begin(|out| out.extend_from_slice(b"head\r\n\r\n"));
        assert_eq!(upload.out, b"head\r\n\r\nabc");
    }

    #[test]
    fn a_request_can_be_sent_again_while_all_of_its_body_is_kept() {
        let mut upload = Upload::new(Framing::Length, None, false);
        assert_eq!(upload.replay(), Replay::Possible);
        upload.received = 1;
        assert_eq!(upload.replay(), Replay::Impossible);
        upload.kept = Some(b"a".to_vec());
        assert_eq!(upload.replay(), Replay::Possible);
    }
}
