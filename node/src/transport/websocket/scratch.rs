//! Where the clients of a thread read into: a buffer for the thread, so that none of them owns one.

use std::cell::RefCell;
use std::io;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use tokio::net::TcpStream;

/// The most that one read takes from a socket.
const SCRATCH_BYTES: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into());
}

/// Reads once and hands what came to `take`; nothing at all means that the peer sends no more.
///
/// It uses tokio's budget, so that a client that always has something does not keep the thread.
/// `take` must not read itself.
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
