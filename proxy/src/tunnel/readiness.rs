//! Skips reads of a socket that is not readable.
//!
//! A tunnel is woken for one of its two sockets and does not know which. Polling the other one costs two locks of the runtime
//! and some of the task's budget, for nothing: it has the task's waker already. So it is polled only if it may be readable.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;

/// The read readiness of a stream, without a system call.
pub(crate) trait ReadReadiness {
    /// `false` only if a read would be pending, and the waker of the last read is still registered.
    fn may_be_readable(&self) -> bool;
}

/// A stream that remembers which task waits to read from it.
pub(super) struct ReadinessTracked<S> {
    stream: S,
    /// The task whose waker is registered for reading, as returned by [`task_of`]; 0 if unknown.
    waiting_task: usize,
}

impl<S> ReadinessTracked<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            waiting_task: 0,
        }
    }

    pub(super) fn get(&self) -> &S {
        &self.stream
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }
}

/// Identifies a task by the address of its waker's data: a registered waker keeps that memory from being reused.
pub(super) fn task_of(cx: &Context<'_>) -> usize {
    cx.waker().data().addr()
}

impl<S: AsyncRead + ReadReadiness + Unpin> AsyncRead for ReadinessTracked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let task = task_of(cx);
        if self.waiting_task == task && task != 0 && !self.stream.may_be_readable() {
            return Poll::Pending;
        }
        // A task without budget left is woken at once, and the stream has registered no waker.
        let has_budget = coop::has_budget_remaining();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.waiting_task = if read.is_pending() && has_budget {
            task
        } else {
            0
        };
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadinessTracked<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;
    use crate::tunnel::Socket;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// Counts wake-ups.
    #[derive(Default)]
    struct WakeCounter(AtomicUsize);

    impl Wake for WakeCounter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn pair() -> (ReadinessTracked<Socket>, TcpStream) {
        let (near, far) = Socket::pair().await;
        (ReadinessTracked::new(near), far)
    }

    #[tokio::test]
    async fn a_task_that_used_up_its_budget_is_woken_by_later_data() {
        let (mut tracked, far) = pair().await;
        far.writable().await.unwrap();
        let mut turn = 0;
        let read = poll_fn(move |cx| {
            turn += 1;
            while turn == 1 && coop::has_budget_remaining() {
                let _ = pin!(coop::consume_budget()).poll(cx);
            }
            let mut piece = [0; 16];
            let mut buffer = ReadBuf::new(&mut piece);
            let read = Pin::new(&mut tracked).poll_read(cx, &mut buffer);
            if turn == 2 {
                assert!(read.is_pending(), "no data has arrived");
                far.try_write(b"!").unwrap();
            }
            read.map(|_| buffer.filled().to_vec())
        });
        // In a separate task, which the deadline does not wake.
        let mut tasks = JoinSet::new();
        tasks.spawn(read);
        let read = timeout(DEADLINE, tasks.join_next()).await;
        assert_eq!(read.unwrap().unwrap().unwrap(), b"!");
    }

    /// The task that polled last is woken, whether or not another task polled before.
    #[tokio::test]
    async fn the_task_that_polled_last_is_woken() {
        let (mut tracked, mut far) = pair().await;
        let tasks = [
            Arc::new(WakeCounter::default()),
            Arc::new(WakeCounter::default()),
        ];
        let mut read = |task: &Arc<WakeCounter>| {
            let waker = Waker::from(Arc::clone(task));
            let (mut cx, mut piece) = (Context::from_waker(&waker), [0; 16]);
            let mut buffer = ReadBuf::new(&mut piece);
            let read = Pin::new(&mut tracked).poll_read(&mut cx, &mut buffer);
            read.map(|_| buffer.filled().to_vec())
        };
        for (turn, polling) in [&[0][..], &[0, 0], &[0, 1], &[1, 0, 0]].iter().enumerate() {
            let last = &tasks[*polling.last().unwrap()];
            let before = last.0.load(Ordering::SeqCst);
            for task in *polling {
                assert!(read(&tasks[*task]).is_pending(), "turn {turn}");
            }
            far.write_all(b"!").await.unwrap();
            let woken = async {
                while last.0.load(Ordering::SeqCst) == before {
                    tokio::task::yield_now().await;
                }
            };
            timeout(DEADLINE, woken).await.expect("it is woken");
            assert_eq!(read(last), Poll::Ready(b"!".to_vec()), "turn {turn}");
        }
    }
}
