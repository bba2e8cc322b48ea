//! Reading the head of an answer off a connection.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

use crate::http1::{AnswerHead, BadAnswer, find_end};

/// The most that is read of an answer at once.
const SCRATCH: usize = 64 * 1024;

/// The most that the head of an answer may come to, which is kept until it is whole. Other proxies allow 8 to 64 KiB.
const HEAD_MAX: usize = 64 * 1024;

thread_local! {
    /// Where all answers of this thread are read to.
    static SCRATCH_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into());
}

/// Reads once, into memory of the thread, and gives what came to `take`. Nothing is the end.
///
/// # Errors
///
/// What reading fails with.
pub(crate) fn poll_come<T>(
    reader: &mut (impl AsyncRead + Unpin),
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8], &mut Context<'_>) -> T,
) -> Poll<io::Result<T>> {
    SCRATCH_BUFFER.with_borrow_mut(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(reader).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(take(buffer.filled(), cx)))
    })
}

/// Why there is no head.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoHead {
    #[error("the connection broke or ended before the answer")]
    Broken(#[source] io::Error),
    #[error("the head of the answer is larger than {HEAD_MAX} bytes")]
    TooLarge,
    #[error(transparent)]
    Bad(#[from] BadAnswer),
}

/// What has come of an answer: heads that are read one after the other, and what is behind them.
#[derive(Debug, Default)]
pub(crate) struct AnswerReader {
    come: Vec<u8>,
    searched: usize,
}

impl AnswerReader {
    /// The next head, once it is whole.
    ///
    /// # Errors
    ///
    /// [`NoHead`]; nothing more may be read then.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut (impl AsyncRead + Unpin),
    ) -> Poll<Result<AnswerHead, NoHead>> {
        loop {
            if let Some(end) = find_end(&self.come, self.searched) {
                let head = BytesMut::from(&self.come[..end]);
                self.come.drain(..end);
                self.searched = 0;
                return Poll::Ready(Ok(AnswerHead::parse(head)?));
            }
            if HEAD_MAX <= self.come.len() {
                return Poll::Ready(Err(NoHead::TooLarge));
            }
            self.searched = self.come.len().saturating_sub(2);
            let come = &mut self.come;
            let count = poll_come(reader, cx, |data, _| {
                come.extend_from_slice(data);
                data.len()
            });
            match ready!(count) {
                Ok(0) => {
                    let end = io::ErrorKind::UnexpectedEof;
                    return Poll::Ready(Err(NoHead::Broken(end.into())));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(NoHead::Broken(error))),
            }
        }
    }

    /// What came behind the last head.
    pub(crate) fn into_rest(self) -> Vec<u8> {
        self.come
    }
}
