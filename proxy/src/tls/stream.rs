//! A TLS connection, of either side, that owns no buffer while it is idle.
//!
//! rustls' buffered connection keeps 4 KiB from the first read on. This one uses the unbuffered interface: ciphertext is read
//! into a buffer of the thread and decrypted there. A connection owns memory only for an incomplete record, plaintext that its
//! reader had no room for, and ciphertext that the socket did not accept; each is freed when it is consumed.
//!
//! A tunnel takes the keys out of rustls and goes on without it ([`TlsStream::into_records`]), where that is possible.

use std::cell::RefCell;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pingora::protocols::tls::SslDigest;
use pingora::protocols::{ALPN, IO, Ssl};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};
use rustls::{CommonState, ExtractedSecrets, HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::net::pingora_stream::pingora_stream;
use crate::tls::record::{Captured, Carried, Cipher, RecordStream, Records, Role};
use crate::tls::record::{PLAIN_MAX, RECORD_MAX, TrafficSecrets, complete_records};

/// The most bytes of a handshake; certificate chains are the largest part of it.
const HANDSHAKE_MAX: usize = 64 * 1024;

thread_local! {
    /// A partial record, and room for a whole one after it.
    static INCOMING: RefCell<Box<[u8]>> = RefCell::new(vec![0; 2 * RECORD_MAX].into());
    static OUTGOING: RefCell<Box<[u8]>> = RefCell::new(vec![0; RECORD_MAX].into());
}

/// One of the two sides of a connection, in rustls.
pub(crate) trait Side: Unpin + Send + Sync + 'static {
    type Data: Send + Sync + 'static;

    const ROLE: Role;

    /// `process_tls_records` of rustls, which both sides have.
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn state(&self) -> &CommonState;

    /// How many session tickets it has received after the handshake.
    fn tickets(&self) -> u32;

    /// `dangerous_into_kernel_connection` of rustls, which both sides have.
    fn into_kernel(self)
    -> Result<(ExtractedSecrets, KernelConnection<Self::Data>), rustls::Error>;
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    const ROLE: Role = Role::Server;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn tickets(&self) -> u32 {
        0
    }

    fn into_kernel(
        self,
    ) -> Result<(ExtractedSecrets, KernelConnection<Self::Data>), rustls::Error> {
        self.dangerous_into_kernel_connection()
    }
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    const ROLE: Role = Role::Client;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn tickets(&self) -> u32 {
        self.tls13_tickets_received()
    }

    fn into_kernel(
        self,
    ) -> Result<(ExtractedSecrets, KernelConnection<Self::Data>), rustls::Error> {
        self.dangerous_into_kernel_connection()
    }
}

/// A connection whose handshake is complete.
pub(crate) struct TlsStream<S, T> {
    transport: T,
    tls: Box<S>,
    /// An incomplete record.
    partial: Vec<u8>,
    /// Decrypted, but not read yet.
    plain: Vec<u8>,
    plain_read: usize,
    /// Encrypted, but not sent yet: it has to be sent before anything else.
    unsent: Vec<u8>,
    ended: bool,
    /// The connection ended without a close_notify of the peer.
    truncated: bool,
    /// rustls has returned an error: it is not called again.
    failed: bool,
    close_notify_queued: bool,
    /// For [`TlsStream::into_records`].
    secrets: Option<Box<TrafficSecrets>>,
    pending: Pending,
}

/// What rustls may hold besides keys: it is lost if the keys are taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pending {
    /// A part of a handshake message, whose records were decrypted in place and are passed to rustls again.
    fragment: bool,
    /// The reply to a key update, which rustls sends with the next data.
    reply: bool,
}

impl Pending {
    /// Notes what rustls has made of `length` bytes, the first `complete` of which were complete records.
    ///
    /// While a fragment is held the bytes need not begin with a record, so that only having used them all shows that it is gone.
    fn note(&mut self, progress: &Progress, complete: usize, length: usize) {
        self.fragment = match self.fragment {
            true => progress.used != length,
            false => progress.used != complete,
        };
        self.reply |= progress.has_control;
    }
}

impl<S, T> std::fmt::Debug for TlsStream<S, T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("TlsStream").finish_non_exhaustive()
    }
}

/// The result of [`advance`].
struct Progress {
    used: usize,
    /// The peer has sent a close_notify.
    peer_closed: bool,
    /// There were records with neither data nor session tickets, such as key updates.
    has_control: bool,
}

/// Passes `incoming` to rustls until it needs more bytes: `plain` gets the decrypted bytes, `unsent` those to send.
///
/// Unused bytes have to be passed again, in front of the next ones: rustls remembers offsets into them. That also holds for
/// writing, or an incomplete message makes rustls access bytes that are not there.
fn advance<S: Side>(
    tls: &mut S,
    incoming: &mut [u8],
    mut plain: impl FnMut(&[u8]),
    unsent: &mut Vec<u8>,
    pending: &mut Pending,
) -> io::Result<Progress> {
    let (length, (complete, records)) = (incoming.len(), complete_records(incoming));
    let (mut used, mut data_records, tickets) = (0, 0, tls.tickets());
    loop {
        let UnbufferedStatus {
            mut discard, state, ..
        } = tls.process(&mut incoming[used..]);
        let mut wants_more = false;
        let mut peer_closed = false;
        match state {
            Ok(ConnectionState::ReadTraffic(mut records)) => {
                while let Some(record) = records.next_record() {
                    let record = record.map_err(broken)?;
                    discard += record.discard;
                    data_records += 1;
                    plain(record.payload);
                }
            }
            Ok(ConnectionState::EncodeTlsData(message)) => encode(message, unsent)?,
            Ok(ConnectionState::TransmitTlsData(message)) => message.done(),
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                (peer_closed, wants_more) = (true, true);
            }
            // In TLS 1.3 a server may write before the client's Finished: see `is_handshaking`.
            Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => {
                wants_more = true;
            }
            // Early data is never accepted.
            Ok(_) => return Err(broken("an unexpected state")),
            Err(error) => {
                // The alert for the peer is available now; a further call would fail again.
                let rest = &mut incoming[used + discard..];
                if let Ok(ConnectionState::EncodeTlsData(alert)) = tls.process(rest).state {
                    encode(alert, unsent)?;
                }
                return Err(broken(error));
            }
        }
        used += discard;
        if wants_more {
            let tickets = (tls.tickets() - tickets) as usize;
            let progress = Progress {
                used,
                peer_closed,
                has_control: data_records + tickets < records,
            };
            pending.note(&progress, complete, length);
            return Ok(progress);
        }
    }
}

fn encode<D>(mut message: EncodeTlsData<'_, D>, unsent: &mut Vec<u8>) -> io::Result<()> {
    let size = match message.encode(&mut []) {
        Err(EncodeError::InsufficientSize(needed)) => needed.required_size,
        Err(error) => return Err(broken(error)),
        Ok(_) => return Ok(()),
    };
    let at = unsent.len();
    unsent.resize(at + size, 0);
    message.encode(&mut unsent[at..]).map_err(broken)?;
    Ok(())
}

fn broken(error: impl Into<Box<dyn Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<S: Side, T: IO> TlsStream<S, T> {
    /// Does the handshake. `incoming` is what was already read from `transport`.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::InvalidData`] around rustls' error if the peer violates the protocol or is not trusted (it gets an
    /// alert), or the error of the connection.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the connection.
    pub(crate) async fn handshake(
        mut tls: Box<S>,
        mut transport: T,
        mut incoming: Vec<u8>,
    ) -> io::Result<Self> {
        let (mut plain, mut unsent) = (Vec::new(), Vec::new());
        let (mut captured, mut pending) = (Captured::default(), Pending::default());
        let ended = loop {
            let keep = |bytes: &[u8]| plain.extend_from_slice(bytes);
            let progress = advance(&mut *tls, &mut incoming, keep, &mut unsent, &mut pending);
            // Also after an error: what is captured must not stay for another connection.
            captured.collect();
            if !unsent.is_empty() {
                transport.write_all(&unsent).await?;
                transport.flush().await?;
                unsent = Vec::new();
            }
            let progress = progress?;
            incoming.drain(..progress.used);
            if !tls.state().is_handshaking() {
                // A client may send data, and even its close_notify, together with the end of its handshake.
                break progress.peer_closed;
            }
            if progress.peer_closed {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if HANDSHAKE_MAX < incoming.len() {
                return Err(broken("a handshake that is too large"));
            }
            incoming.reserve(2048);
            if transport.read_buf(&mut incoming).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        incoming.shrink_to_fit();
        plain.shrink_to_fit();
        if tls.state().protocol_version() == Some(ProtocolVersion::TLSv1_2) {
            pending.reply = false; // It has no key updates.
        }
        // Only a connection of HTTP/1 can become a tunnel.
        let is_http2 = tls.state().alpn_protocol() == Some(b"h2");
        Ok(Self {
            transport,
            tls,
            partial: incoming,
            plain,
            plain_read: 0,
            unsent,
            ended,
            truncated: false,
            failed: false,
            close_notify_queued: false,
            secrets: captured.complete().filter(|_| !is_http2),
            pending,
        })
    }

    /// Goes on without rustls: takes the keys out of it.
    ///
    /// # Errors
    ///
    /// The connection as it is, if that is not possible: the suite is not one of [`Cipher::of`], the connection has failed or has been
    /// closed by this side, or rustls holds a part of a message, or a reply that it has not sent.
    pub(crate) fn into_records(self: Box<Self>) -> Result<RecordStream<T>, Box<Self>> {
        let state = self.tls.state();
        let suite = state.negotiated_cipher_suite();
        let is_between_messages = !self.failed
            && !self.close_notify_queued
            && self.pending == Pending::default()
            && !state.is_handshaking()
            && !state.wants_write();
        let Some(cipher) = suite.and_then(|suite| Cipher::of(suite.suite())) else {
            return Err(self);
        };
        if !is_between_messages {
            return Err(self);
        }
        let Self {
            transport,
            tls,
            partial,
            mut plain,
            plain_read,
            unsent,
            ended,
            secrets,
            ..
        } = *self;
        // Its conditions are those above, and that the configuration allows it, which all of the edge do.
        let (extracted, schedule) = tls.into_kernel().expect("its conditions were checked");
        let records = Records::new(S::ROLE, cipher, &extracted, secrets, schedule);
        let records = records.expect("the keys are those of the suite");
        plain.drain(..plain_read);
        let carried = Carried {
            partial: if ended { Vec::new() } else { partial },
            plain,
            unsent,
            ended,
        };
        Ok(RecordStream::new(transport, records, carried))
    }

    /// The size of its buffers, in bytes.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.partial.capacity() + self.plain.capacity() + self.unsent.capacity()
    }

    #[cfg(test)]
    pub(super) fn has_secrets(&self) -> bool {
        self.secrets.is_some()
    }

    /// Whether it has ended without a close_notify.
    pub(crate) fn was_truncated(&self) -> bool {
        self.truncated
    }

    /// Whether the session was resumed with a ticket.
    pub(crate) fn is_resumed(&self) -> bool {
        self.tls.state().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Sends the encrypted bytes.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        let result = loop {
            if sent == self.unsent.len() {
                self.unsent = Vec::new();
                return Poll::Ready(Ok(()));
            }
            match Pin::new(&mut self.transport).poll_write(cx, &self.unsent[sent..]) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => sent += count,
                other => break other.map_ok(|_| ()),
            }
        };
        self.unsent.drain(..sent);
        result
    }

    /// Reads once from the socket and decrypts complete records: into `buffer`, and what does not fit there into `plain`.
    fn poll_decrypt(
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
                self.ended = true;
                self.truncated = true;
                return Poll::Ready(Ok(()));
            }
            scratch[..before].copy_from_slice(&self.partial);
            let incoming = &mut scratch[..before + count];
            let overflow = &mut self.plain;
            let hand_out = |bytes: &[u8]| {
                let fits = if overflow.is_empty() {
                    buffer.remaining().min(bytes.len())
                } else {
                    0
                };
                buffer.put_slice(&bytes[..fits]);
                overflow.extend_from_slice(&bytes[fits..]);
            };
            let progress = advance(
                &mut *self.tls,
                incoming,
                hand_out,
                &mut self.unsent,
                &mut self.pending,
            );
            let progress = progress.and_then(|progress| {
                let rest = &incoming[progress.used..];
                // More than a record is a fragmented handshake message, and none that long is valid after the handshake.
                if RECORD_MAX < rest.len() {
                    return Err(broken("a handshake message that is too long"));
                }
                self.partial = rest.to_vec();
                Ok(progress)
            });
            let progress = progress.inspect_err(|_| {
                self.failed = true;
                self.partial = Vec::new();
                // The connection is not read any further, so this is the only chance to send the alert.
                let _ = self.poll_send(cx);
            })?;
            self.ended |= progress.peer_closed;
            Poll::Ready(Ok(()))
        })
    }

    /// Encrypts one record of `data` into `record`. Returns its length.
    fn encrypt(&mut self, data: &[u8], record: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.failed {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let UnbufferedStatus { state, .. } = self.tls.process(&mut self.partial);
            match state.map_err(broken)? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let encrypted = traffic.encrypt(data, record).map_err(|error| match error {
                        EncryptError::EncryptExhausted => {
                            io::Error::new(io::ErrorKind::BrokenPipe, error.to_string())
                        }
                        EncryptError::InsufficientSize(_) => broken(error),
                    });
                    self.pending.reply &= encrypted.is_err();
                    return encrypted;
                }
                ConnectionState::EncodeTlsData(message) => encode(message, &mut self.unsent)?,
                ConnectionState::TransmitTlsData(message) => message.done(),
                // The peer has ended its direction; this one is still open.
                ConnectionState::PeerClosed => self.ended = true,
                _ => return Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
    }
}

impl<S: Side, T: IO> AsyncRead for TlsStream<S, T> {
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
            let waiting = &this.plain[this.plain_read..];
            if !waiting.is_empty() {
                let count = buffer.remaining().min(waiting.len());
                buffer.put_slice(&waiting[..count]);
                this.plain_read += count;
                if this.plain_read == this.plain.len() {
                    (this.plain, this.plain_read) = (Vec::new(), 0);
                }
                return Poll::Ready(Ok(()));
            }
            if this.ended || this.failed {
                return Poll::Ready(Ok(()));
            }
            ready!(this.poll_decrypt(cx, buffer))?;
            if !this.unsent.is_empty() {
                // The reply to a key update: what the socket does not accept is sent before the next write.
                let _ = this.poll_send(cx)?;
            }
            if before < buffer.filled().len() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: Side, T: IO> AsyncWrite for TlsStream<S, T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        // At most one record is buffered: a writer that is faster than the peer waits here.
        ready!(this.poll_send(cx))?;
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let count = data.len().min(PLAIN_MAX);
        OUTGOING.with_borrow_mut(|record| {
            let length = this.encrypt(&data[..count], record)?;
            let mut sent = 0;
            while this.unsent.is_empty() && sent < length {
                match Pin::new(&mut this.transport).poll_write(cx, &record[sent..length])? {
                    Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(more) => sent += more,
                    Poll::Pending => break,
                }
            }
            this.unsent.extend_from_slice(&record[sent..length]);
            Poll::Ready(Ok(count))
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.close_notify_queued && !this.failed {
            this.close_notify_queued = true;
            let mut alert = [0; 128];
            let UnbufferedStatus { state, .. } = this.tls.process(&mut this.partial);
            if let Ok(ConnectionState::WriteTraffic(mut traffic)) = state
                && let Ok(length) = traffic.queue_close_notify(&mut alert)
            {
                this.unsent.extend_from_slice(&alert[..length]);
            }
        }
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.transport).poll_shutdown(cx)
    }
}

impl<S: Side, T: IO> Ssl for TlsStream<S, T> {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        let tls = self.tls.state();
        let suite = tls.negotiated_cipher_suite();
        let cipher = suite.and_then(|suite| suite.suite().as_str());
        let version = tls.protocol_version().and_then(|version| version.as_str());
        let (cipher, version) = (cipher.unwrap_or_default(), version.unwrap_or_default());
        Some(Arc::new(SslDigest::new(
            cipher,
            version,
            None,
            None,
            Vec::new(),
        )))
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        match self.tls.state().alpn_protocol()? {
            b"h2" => Some(ALPN::H2),
            _ => Some(ALPN::H1),
        }
    }
}

pingora_stream!([S: Side, T: IO] TlsStream<S, T>, over transport);
