//! A socket of an event loop, with what the kernel would not take yet and what is no whole unit yet.
//!
//! Shared by the load generator and its backend. Reads go into one scratch buffer of the loop's, so
//! that a connection between two messages owns no buffer.

use std::io::{self, Read, Write};

use mio::net::TcpStream;

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
    unread: Vec<u8>,
    unsent: Vec<u8>,
}

impl Pipe {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            unread: Vec::new(),
            unsent: Vec::new(),
        }
    }

    /// Puts what was kept, and behind it what one read brings, into `scratch`.
    pub(crate) fn fill(&mut self, scratch: &mut [u8]) -> io::Result<Filled> {
        let kept = self.unread.len();
        let Some(room) = scratch.get_mut(kept..).filter(|room| !room.is_empty()) else {
            return Err(io::Error::other("a message is larger than the bench reads"));
        };
        match self.stream.read(room) {
            Ok(0) => Ok(Filled::End),
            Ok(read) => {
                let more = read == room.len();
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
