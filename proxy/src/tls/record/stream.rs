//! A connection over TLS after its handshake, that owns nothing while it is idle but its keys and its transport.
//!
//! Ciphertext is read into a buffer of the thread, opened there and copied to the reader; what is written is sealed in another one. The
//! connection owns memory only for an incomplete record, plaintext that its reader had no room for, and ciphertext that the transport
//! did not accept; each is freed when it is consumed.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pingora::protocols::tls::SslDigest;
use pingora::protocols::{ALPN, IO, Ssl};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::pingora_stream::pingora_stream;
use crate::tls::record::RECORD_MAX;
use crate::tls::record::RecordError;
use crate::tls::record::layer::Records;

/// The most bytes that are sealed by one write, in records of [`PLAIN_MAX`](crate::tls::record::PLAIN_MAX), and so about the most that
/// wait for a slow transport.
const WRITE_MAX: usize = 64 * 1024;

thread_local! {
    /// An incomplete record, and room for a whole one after it.
    static INCOMING: RefCell<Box<[u8]>> = RefCell::new(vec![0; 2 * RECORD_MAX].into());
    static OUTGOING: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What was under way when the keys were taken out of rustls.
pub(in crate::tls) struct Carried {
    /// An incomplete record.
    pub(in crate::tls) partial: Vec<u8>,
    /// Decrypted, but not read yet.
    pub(in crate::tls) plain: Vec<u8>,
    /// Encrypted, but not sent yet.
    pub(in crate::tls) unsent: Vec<u8>,
    /// The peer has ended its direction.
    pub(in crate::tls) ended: bool,
}

/// A connection whose handshake is complete, without rustls.
///
/// Invariant: `partial` is less than a record, and what is in `unsent` goes out before anything else.
pub(crate) struct RecordStream<T> {
    pub(super) transport: T,
    pub(super) records: Records,
    pub(super) partial: Vec<u8>,
    pub(super) plain: Vec<u8>,
    pub(super) unsent: Vec<u8>,
    /// An error for the next read: data that came before it was handed out first.
    pub(super) failure: Option<Box<RecordError>>,
}

impl<T> std::fmt::Debug for RecordStream<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("RecordStream")
            .finish_non_exhaustive()
    }
}

impl<T> RecordStream<T> {
    pub(in crate::tls) fn new(transport: T, mut records: Records, carried: Carried) -> Self {
        if carried.ended {
            records.end_rx();
        }
        Self {
            transport,
            records,
            partial: carried.partial,
            plain: carried.plain,
            unsent: carried.unsent,
            failure: None,
        }
    }

    /// The same connection over the transport that `change` makes of this one.
    pub(crate) fn map_transport<U>(self, change: impl FnOnce(T) -> U) -> RecordStream<U> {
        RecordStream {
            transport: change(self.transport),
            records: self.records,
            partial: self.partial,
            plain: self.plain,
            unsent: self.unsent,
            failure: self.failure,
        }
    }

    pub(crate) fn transport(&self) -> &T {
        &self.transport
    }

    /// Whether the next read is ready, whatever the transport has.
    pub(crate) fn is_read_ready(&self) -> bool {
        !self.plain.is_empty() || !self.records.is_rx_open()
    }

    /// The size of its buffers, in bytes.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.partial.capacity() + self.plain.capacity() + self.unsent.capacity()
    }

    #[cfg(test)]
    pub(super) fn records(&mut self) -> &mut Records {
        &mut self.records
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> RecordStream<T> {
    /// Sends `unsent`.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unsent.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut unsent = std::mem::take(&mut self.unsent);
        let (sent, result) = send(&mut self.transport, cx, &unsent);
        if sent < unsent.len() {
            unsent.drain(..sent);
            self.unsent = unsent;
        }
        result
    }

    /// Reads once from the transport and opens the complete records: into `buffer`, and what does not fit there into `plain`.
    fn poll_open(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        INCOMING.with_borrow_mut(|scratch| {
            let before = self.partial.len();
            let mut behind = ReadBuf::new(&mut scratch[before..]);
            ready!(Pin::new(&mut self.transport).poll_read(cx, &mut behind))?;
            let count = behind.filled().len();
            if count == 0 {
                // Without a close_notify too: the protocols in tunnels have ends of their own.
                self.records.end_rx();
                return Poll::Ready(Ok(()));
            }
            scratch[..before].copy_from_slice(&self.partial);
            let incoming = &mut scratch[..before + count];
            let overflow = &mut self.plain;
            let hand_out = |bytes: &[u8]| {
                let fits = match overflow.is_empty() {
                    true => buffer.remaining().min(bytes.len()),
                    false => 0,
                };
                buffer.put_slice(&bytes[..fits]);
                overflow.extend_from_slice(&bytes[fits..]);
            };
            match self.records.read(incoming, hand_out, &mut self.unsent) {
                Ok(used) if self.records.is_rx_open() => self.partial = incoming[used..].to_vec(),
                Ok(_) => self.partial = Vec::new(),
                Err(error) => {
                    self.partial = Vec::new();
                    self.failure = Some(Box::new(error));
                }
            }
            // Alerts. The connection may not be written any further, so this may be the only chance to send them.
            let _ = self.poll_send(cx);
            Poll::Ready(Ok(()))
        })
    }
}

/// Sends `bytes`. Returns how many were accepted, and the result: pending if not all.
fn send<T: AsyncWrite + Unpin>(
    transport: &mut T,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> (usize, Poll<io::Result<()>>) {
    let mut sent = 0;
    while sent < bytes.len() {
        match Pin::new(&mut *transport).poll_write(cx, &bytes[sent..]) {
            Poll::Ready(Ok(0)) => {
                return (sent, Poll::Ready(Err(io::ErrorKind::WriteZero.into())));
            }
            Poll::Ready(Ok(count)) => sent += count,
            Poll::Ready(Err(error)) => return (sent, Poll::Ready(Err(error))),
            Poll::Pending => return (sent, Poll::Pending),
        }
    }
    (sent, Poll::Ready(Ok(())))
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for RecordStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        loop {
            if !this.plain.is_empty() {
                let count = buffer.remaining().min(this.plain.len());
                buffer.put_slice(&this.plain[..count]);
                match count == this.plain.len() {
                    true => this.plain = Vec::new(),
                    false => drop(this.plain.drain(..count)),
                }
                return Poll::Ready(Ok(()));
            }
            if let Some(failure) = this.failure.take() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, *failure)));
            }
            if !this.records.is_rx_open() {
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_open(cx, buffer))?;
            if before < buffer.filled().len() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for RecordStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        // A writer that is faster than the peer waits here.
        ready!(this.poll_send(cx))?;
        let data = &data[..data.len().min(WRITE_MAX)];
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        OUTGOING.with_borrow_mut(|sealed| {
            sealed.clear();
            let written = this.records.write(data, sealed);
            let (sent, result) = send(&mut this.transport, cx, sealed);
            this.unsent.extend_from_slice(&sealed[sent..]);
            if let Err(error) = written {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, error)));
            }
            match result {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                // What was not sent is owned by this connection.
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(data.len())),
            }
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.records.close_notify(&mut this.unsent);
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.transport).poll_shutdown(cx)
    }
}

impl<T: IO> Ssl for RecordStream<T> {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        Some(Arc::new(SslDigest::new("", "", None, None, Vec::new())))
    }

    /// Keys are taken out of connections of HTTP/1 alone.
    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(ALPN::H1)
    }
}

// A client connection of another process is a Pingora stream between its requests.
pingora_stream!([T: IO] RecordStream<T>, over transport);
