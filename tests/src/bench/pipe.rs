//! A socket of an event loop, with what the kernel would not take yet and what is no whole unit yet.
//!
//! Shared by the load generator and its backend. Reads go into one scratch buffer of the loop's, so
//! that a connection between two messages owns no buffer.

use std::io::{self, Read, Write};
use std::sync::Arc;

use mio::net::TcpStream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

/// The size of a loop's scratch buffer, and so of the largest message.
pub(crate) const SCRATCH_BYTES: usize = 512 * 1024;

/// What one read brought.
pub(crate) enum Filled {
    /// The first so many bytes of the scratch buffer stand for what is unread.
    Bytes {
        /// How many there are.
        length: usize,
        /// Whether the socket may hold more.
        more: bool,
    },
    /// Nothing, for now.
    Nothing,
    /// The other side has ended the connection.
    End,
}

/// A non-blocking connection, registered for edges of both directions.
pub(crate) struct Pipe {
    /// The socket itself.
    pub(crate) stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    unread: Vec<u8>,
    unsent: Vec<u8>,
}

impl Pipe {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            tls: None,
            unread: Vec::new(),
            unsent: Vec::new(),
        }
    }

    /// The same, as a TLS client that asks for `name`. What is sent waits for the end of the handshake.
    pub(crate) fn over_tls(
        stream: TcpStream,
        config: &Arc<ClientConfig>,
        name: &'static str,
    ) -> io::Result<Self> {
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        let tls = ClientConnection::new(Arc::clone(config), name);
        let mut tls = tls.map_err(io::Error::other)?;
        tls.set_buffer_limit(None);
        Ok(Self {
            tls: Some(Box::new(tls)),
            ..Self::new(stream)
        })
    }

    /// Puts what was kept, and behind it what one read brings, into `scratch`.
    pub(crate) fn fill(&mut self, scratch: &mut [u8]) -> io::Result<Filled> {
        let kept = self.unread.len();
        let Some(room) = scratch.get_mut(kept..).filter(|room| !room.is_empty()) else {
            return Err(io::Error::other("a message is larger than the bench reads"));
        };
        let read = match &mut self.tls {
            None => self.stream.read(room),
            Some(tls) => read_tls(tls, &mut self.stream, room),
        };
        match read {
            Ok(0) => Ok(Filled::End),
            Ok(read) => {
                // Behind what TLS had in hand the socket has to be asked again.
                let more = read == room.len() || self.tls.is_some();
                scratch[..kept].copy_from_slice(&self.unread);
                self.unread = Vec::new();
                Ok(Filled::Bytes {
                    length: kept + read,
                    more,
                })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Filled::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Filled::Bytes {
                length: 0,
                more: true,
            }),
            Err(error) => Err(error),
        }
    }

    /// Keeps what was no whole unit for the next [`Pipe::fill`].
    pub(crate) fn keep(&mut self, rest: &[u8]) {
        self.unread.extend_from_slice(rest);
    }

    /// Sends `bytes` behind everything sent before.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.writer().write_all(bytes)?;
            return write_tls(tls, &mut self.stream);
        }
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return Ok(());
        }
        let taken = self.write(bytes)?;
        self.unsent.extend_from_slice(&bytes[taken..]);
        Ok(())
    }

    /// Sends what waits, when the socket has become writable.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            return write_tls(tls, &mut self.stream);
        }
        if self.unsent.is_empty() {
            return Ok(());
        }
        let unsent = std::mem::take(&mut self.unsent);
        let taken = self.write(&unsent)?;
        if taken < unsent.len() {
            self.unsent.extend_from_slice(&unsent[taken..]);
        }
        Ok(())
    }

    /// Writes until the socket takes no more, and says how much it took.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.stream.write(&bytes[taken..]) {
                Ok(written) => taken += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(taken)
    }
}

/// Reads and decrypts until there is something, and responds to what the handshake asks.
fn read_tls(
    tls: &mut ClientConnection,
    stream: &mut TcpStream,
    room: &mut [u8],
) -> io::Result<usize> {
    loop {
        match tls.reader().read(room) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
        if tls.read_tls(stream)? == 0 {
            return Ok(0);
        }
        tls.process_new_packets().map_err(io::Error::other)?;
        write_tls(tls, stream)?;
    }
}

/// Writes what is encrypted until the socket takes no more.
fn write_tls(tls: &mut ClientConnection, stream: &mut TcpStream) -> io::Result<()> {
    while tls.wants_write() {
        match tls.write_tls(stream) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
