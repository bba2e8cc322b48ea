//! A connection to Redis that subscribes: reading and writing.
//!
//! It never waits for room to write before it reads: Redis disconnects a subscriber whose output buffer grows
//! (32 MiB, or 8 MiB for a minute), so reading never stops.

use std::future;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::ReadHalf;
use tokio::io::WriteHalf;

use super::connect::Opened;
use super::connect::ReadError;
use super::connect::Stream;
use super::connect::append;
use super::reply::Parser;
use super::reply::Reply;
use super::tenure::Tenure;

/// How much is read at once, at most: one read is one delivery to the hub.
const READ_BYTES: usize = 64 << 10;

/// An open, logged-in connection.
pub(crate) struct Connection {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    input: BytesMut,
    output: BytesMut,
    parser: Parser,
    tenure: Tenure,
}

impl Connection {
    /// Subscribes over `opened`. Publications over `message_bytes_max` are skipped.
    pub(crate) fn over(opened: Opened, message_bytes_max: usize) -> Self {
        let (reader, writer) = tokio::io::split(opened.stream);
        Self {
            reader,
            writer,
            input: BytesMut::new(),
            output: BytesMut::new(),
            parser: Parser::new(message_bytes_max),
            tenure: opened.tenure,
        }
    }

    /// The time for which the server is the primary.
    pub(crate) fn tenure(&self) -> Tenure {
        self.tenure.clone()
    }

    /// Adds a command to what will be written by [`progress`](Self::progress).
    pub(crate) fn queue<T: AsRef<[u8]>>(&mut self, arguments: &[T]) {
        append(&mut self.output, arguments);
    }

    /// Reads something or writes some of what is queued, whatever is possible first.
    ///
    /// # Errors
    ///
    /// [`ReadError`]: the connection can no longer be used.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped: bytes are in the buffers or in the kernel.
    pub(crate) async fn progress(&mut self) -> Result<(), ReadError> {
        if self.input.capacity() - self.input.len() < READ_BYTES / 4 {
            self.input.reserve(READ_BYTES);
        }
        let write = async {
            if self.output.is_empty() {
                future::pending().await
            } else {
                self.writer.write_buf(&mut self.output).await
            }
        };
        tokio::select! {
            read = self.reader.read_buf(&mut self.input) => match read {
                Ok(0) => Err(ReadError::Closed),
                Ok(_) => Ok(()),
                Err(error) => Err(ReadError::Broken(error)),
            },
            written = write => match written {
                Ok(_) => Ok(()),
                Err(error) => Err(ReadError::Broken(error)),
            },
        }
    }

    /// The next complete reply of the input.
    ///
    /// # Errors
    ///
    /// [`ReadError::ProtocolError`]: the connection can no longer be used.
    pub(crate) fn next_reply(&mut self) -> Result<Option<Reply>, ReadError> {
        Ok(self.parser.next(&mut self.input)?)
    }
}
