//! The read buffer that all clients of a thread share, so that none of them needs its own.

use std::cell::RefCell;
use std::io;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use tokio::net::TcpStream;

/// The size of the buffer, and so of one read.
const SCRATCH_BYTES: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into());
}

/// Reads once and calls `take` with the bytes; none mean that the peer has ended its sending direction.
///
/// It uses tokio's cooperative budget, so that a client that always sends does not block the thread. `take` must not call
/// this function.
pub(super) fn poll_read<T>(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    SCRATCH.with_borrow_mut(|scratch| {
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read(scratch) {
                Ok(count) => return Poll::Ready(Ok(take(&scratch[..count]))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {} // Now it is not ready.
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    })
}
