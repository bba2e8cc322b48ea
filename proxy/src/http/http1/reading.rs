//! Reads response heads from a backend connection.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

use crate::http::http1::{BadResponse, ResponseHead, find_end};

/// The most bytes of a response that are read at once.
pub(crate) const SCRATCH: usize = 64 * 1024;

thread_local! {
    /// The read buffer that all responses of this thread share.
    static SCRATCH_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// Reads at most `max` bytes into the thread's buffer, and passes them to `take`. An empty slice is the end of the stream.
///
/// # Errors
///
/// The error of the read.
pub(crate) fn poll_read_scratch<T>(
    reader: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    max: usize,
    take: impl FnOnce(&[u8], &mut Context<'_>) -> T,
) -> Poll<io::Result<T>> {
    SCRATCH_BUFFER.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(&mut scratch[..max.min(SCRATCH)]);
        ready!(Pin::new(reader).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(take(buffer.filled(), cx)))
    })
}

/// The limits of a response head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResponseLimits {
    /// `limits.response_head_size`, in bytes.
    pub(crate) head_size: usize,
    /// `limits.headers`.
    pub(crate) headers: usize,
}

/// Why no response head could be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResponseHeadError {
    #[error("the connection broke or ended before the response")]
    Broken(#[source] io::Error),
    #[error("the response head is larger than limits.response_head_size")]
    TooLarge,
    #[error(transparent)]
    Bad(#[from] BadResponse),
}

/// Reads heads one after the other (interim ones, then the final one), and keeps the bytes after them.
#[derive(Debug)]
pub(crate) struct ResponseReader {
    limits: ResponseLimits,
    read: Vec<u8>,
    searched: usize,
}

impl ResponseReader {
    pub(crate) fn new(limits: ResponseLimits) -> Self {
        Self {
            limits,
            read: Vec::new(),
            searched: 0,
        }
    }

    /// The next head, once it is complete.
    ///
    /// # Errors
    ///
    /// [`ResponseHeadError`]; nothing more may be read then.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut (impl AsyncRead + Unpin),
    ) -> Poll<Result<ResponseHead, ResponseHeadError>> {
        loop {
            match find_end(&self.read, self.searched) {
                Some(end) if end <= self.limits.head_size => {
                    let head = BytesMut::from(&self.read[..end]);
                    self.read.drain(..end);
                    self.searched = 0;
                    return Poll::Ready(Ok(ResponseHead::parse(head, self.limits.headers)?));
                }
                None if self.read.len() < self.limits.head_size => {}
                _ => return Poll::Ready(Err(ResponseHeadError::TooLarge)),
            }
            self.searched = self.read.len().saturating_sub(2);
            let read = &mut self.read;
            let count = poll_read_scratch(reader, cx, SCRATCH, |data, _| {
                read.extend_from_slice(data);
                data.len()
            });
            match ready!(count) {
                Ok(0) => {
                    let end = io::ErrorKind::UnexpectedEof;
                    return Poll::Ready(Err(ResponseHeadError::Broken(end.into())));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(ResponseHeadError::Broken(error))),
            }
        }
    }

    /// The bytes that were read after the last head.
    pub(crate) fn into_rest(self) -> Vec<u8> {
        self.read
    }
}
