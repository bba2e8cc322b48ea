//! Sends a request to a backend: its head, and its body as it arrives from the client.
//!
//! A body of known length is sent unchanged; any other in chunks of the edge's own, so that no chunk extension and no unusual chunk
//! reaches a backend. The end of the body is sent exactly once. A piece is read only when the previous one has been written.

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

/// The largest body that is buffered for another attempt.
const REPLAY_MAX: usize = 64 * 1024;

/// With fewer bytes to send than this, more of the body is read first, to send both together.
const GATHER: usize = 4096;

/// How the end of the body is marked for the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// By its length, or there is no body.
    Length,
    Chunked,
}

/// Why a request cannot be sent.
#[derive(Debug)]
pub(super) enum UploadError {
    /// Its client disconnected, or sent a malformed body.
    Client(BodyError),
    /// It is rejected: too large, or too slow.
    Rejected(Rejection),
    /// Writing to the backend failed.
    Backend(io::Error),
}

/// A request that is being sent.
pub(super) struct Upload {
    framing: Framing,
    /// Bytes to be sent; the first `sent` of them have been.
    out: Vec<u8>,
    sent: usize,
    /// Whether the end of the body is in `out`.
    has_ended: bool,
    /// Whether all of it has been sent and flushed.
    is_sent: bool,
    /// Bytes of the body that were received.
    received: u64,
    /// The body so far, for another attempt; `None` if the request is not idempotent, or the body is larger than [`REPLAY_MAX`].
    buffered: Option<Vec<u8>>,
    trailers_buffered: Option<HeaderMap>,
    rate: Option<RateMeter>,
    /// Counts reads and writes, so that the stall timer sees progress.
    progress: u64,
}

impl Upload {
    /// For a request with a body, which is buffered for another attempt if `buffers_body`.
    pub(super) fn new(framing: Framing, rate: Option<BodyRate>, buffers_body: bool) -> Self {
        Self {
            framing,
            out: Vec::new(),
            sent: 0,
            has_ended: false,
            is_sent: false,
            received: 0,
            buffered: buffers_body.then(Vec::new),
            trailers_buffered: None,
            rate: rate.map(RateMeter::new),
            progress: 0,
        }
    }

    /// For a request without a body.
    pub(super) fn without_body() -> Self {
        Self {
            has_ended: true,
            ..Self::new(Framing::Length, None, false)
        }
    }

    /// Starts to send the request on a new connection, with the head that `head` writes.
    pub(super) fn begin(&mut self, head: impl FnOnce(&mut Vec<u8>)) {
        self.out.clear();
        self.sent = 0;
        self.is_sent = false;
        self.out.reserve(1024);
        head(&mut self.out);
        if let Some(buffered) = self
            .buffered
            .as_deref()
            .filter(|buffered| !buffered.is_empty())
        {
            write_content(self.framing, buffered, &mut self.out);
        }
        if self.has_ended {
            write_end(self.framing, self.trailers_buffered.as_ref(), &mut self.out);
        }
    }

    /// Whether all of the body that was read can be sent again.
    pub(super) fn replay(&self) -> Replay {
        match self.buffered {
            Some(_) => Replay::Possible,
            None if self.received == 0 => Replay::Possible,
            None => Replay::Impossible,
        }
    }

    /// How many bytes of the body were received from the client.
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

    /// Whether everything received has been sent, and the client has to send more.
    pub(super) fn waits_for_client(&self) -> bool {
        !self.has_ended && self.sent == self.out.len()
    }

    /// Reads from `client` and writes to `socket` until either would block. Ready when all is sent. `check` gets the length of the
    /// body so far.
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
            let mut is_pending = false;
            if !self.has_ended && self.out.len() - self.sent < GATHER {
                is_pending = self.poll_read(cx, client, &check)?.is_pending();
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
            if is_pending {
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
        let (before, buffered) = (*received, &mut self.buffered);
        let read = client.poll_body(cx, |content| {
            *received += content.len() as u64;
            write_content(framing, content, out);
            match buffered.as_mut() {
                Some(bytes) if bytes.len() + content.len() <= REPLAY_MAX => {
                    bytes.extend_from_slice(content);
                }
                _ => *buffered = None,
            }
        });
        let read = match read {
            Poll::Ready(read) => read.map_err(UploadError::Client)?,
            Poll::Pending => {
                if let Some(rate) = &mut self.rate {
                    rate.start_wait();
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
                self.trailers_buffered = trailers;
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

/// Measures the rate of a request body, counting only the time spent waiting for the client, not for a slow backend.
struct RateMeter {
    rate_min: BodyRate,
    /// In the current window.
    waited: Duration,
    bytes: u64,
    wait_started: Option<Instant>,
}

impl RateMeter {
    fn new(rate_min: BodyRate) -> Self {
        Self {
            rate_min,
            waited: Duration::ZERO,
            bytes: 0,
            wait_started: None,
        }
    }

    /// Starts to count the time until the next piece.
    fn start_wait(&mut self) {
        self.wait_started.get_or_insert_with(Instant::now);
    }

    /// Counts `bytes` that were received. Whether the rate is high enough.
    fn suffices(&mut self, bytes: u64) -> bool {
        let waited = self.wait_started.take().map(|since| since.elapsed());
        self.count(bytes, waited.unwrap_or_default())
    }

    fn count(&mut self, bytes: u64, after: Duration) -> bool {
        self.bytes += bytes;
        self.waited += after;
        if self.waited < self.rate_min.window {
            return true;
        }
        let least = self.waited.as_secs_f64() * self.rate_min.per_second as f64;
        let suffices = least <= self.bytes as f64;
        (self.waited, self.bytes) = (Duration::ZERO, 0);
        suffices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE_MIN: BodyRate = BodyRate {
        per_second: 100,
        window: Duration::from_secs(10),
    };

    #[test]
    fn a_body_that_trickles_is_too_slow_after_a_window_and_not_before() {
        let mut meter = RateMeter::new(RATE_MIN);
        for _ in 0..9 {
            assert!(meter.count(1, Duration::from_secs(1)));
        }
        assert!(!meter.count(1, Duration::from_secs(1)));
    }

    #[test]
    fn a_body_that_is_fast_enough_on_average_is_never_too_slow() {
        let mut meter = RateMeter::new(RATE_MIN);
        for _ in 0..100 {
            assert!(meter.count(1000, Duration::from_secs(10)));
            // Bytes that arrive without a wait do not count against it.
            assert!(meter.count(1, Duration::ZERO));
        }
        assert!(!meter.count(998, Duration::from_secs(10)));
    }

    #[test]
    fn a_replayed_body_is_framed_as_before() {
        let mut upload = Upload::new(Framing::Chunked, None, true);
        upload.buffered = Some(b"abc".to_vec());
        upload.has_ended = true;
        upload.begin(|out| out.extend_from_slice(b"head\r\n\r\n"));
        assert_eq!(upload.out, b"head\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
        upload.has_ended = false;
        upload.framing = Framing::Length;
        upload.begin(|out| out.extend_from_slice(b"head\r\n\r\n"));
        assert_eq!(upload.out, b"head\r\n\r\nabc");
    }

    #[test]
    fn a_request_can_be_sent_again_while_all_of_its_body_is_buffered() {
        let mut upload = Upload::new(Framing::Length, None, false);
        assert_eq!(upload.replay(), Replay::Possible);
        upload.received = 1;
        assert_eq!(upload.replay(), Replay::Impossible);
        upload.buffered = Some(b"a".to_vec());
        assert_eq!(upload.replay(), Replay::Possible);
    }
}
