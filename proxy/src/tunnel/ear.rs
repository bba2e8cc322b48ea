//! A socket that is listened to by one task, which it remembers.
//!
//! A tunnel is woken for one of its two sockets and does not know for which. Asking the other one costs the runtime two locks and
//! the task's budget, for nothing: it has the task's waker already. So it is asked only if something may have come.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop;

/// What can be told of a stream without a system call.
pub(crate) trait Readiness {
    /// Whether reading is worth a try. `false` only if it would wait, and goes on waiting with the waker that it has.
    fn may_have_come(&self) -> bool;
}

/// A stream, and who waits for it.
pub(super) struct Ear<S> {
    stream: S,
    /// The task whose waker the stream has for reading, as [`task_of`] knows it; 0: nobody's for certain.
    waits: usize,
}

impl<S> Ear<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, waits: 0 }
    }
}

/// What tells tasks apart: a waker that is held somewhere keeps its task's place in memory from being another's.
pub(super) fn task_of(cx: &Context<'_>) -> usize {
    cx.waker().data().addr()
}

impl<S: AsyncRead + Readiness + Unpin> AsyncRead for Ear<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let task = task_of(cx);
        if self.waits == task && task != 0 && !self.stream.may_have_come() {
            return Poll::Pending;
        }
        // A task that has used up its budget is woken at once, and the stream has not been asked.
        let is_asked = coop::has_budget_remaining();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.waits = if read.is_pending() && is_asked {
            task
        } else {
            0
        };
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ear<S> {
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

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn pair() -> (Ear<Socket>, TcpStream) {
        let (near, far) = Socket::pair().await;
        (Ear::new(near), far)
    }

    #[tokio::test]
    async fn a_task_whose_budget_was_used_up_is_woken_by_what_comes_later() {
        let (mut ear, far) = pair().await;
        far.writable().await.unwrap();
        let mut turn = 0;
        let read = poll_fn(move |cx| {
            turn += 1;
            while turn == 1 && coop::has_budget_remaining() {
                let _ = pin!(coop::consume_budget()).poll(cx);
            }
            let mut piece = [0; 16];
            let mut buffer = ReadBuf::new(&mut piece);
            let read = Pin::new(&mut ear).poll_read(cx, &mut buffer);
            if turn == 2 {
                assert!(read.is_pending(), "nothing has come");
                far.try_write(b"!").unwrap();
            }
            read.map(|_| buffer.filled().to_vec())
        });
        // A task of its own, which the deadline does not wake.
        let mut tasks = JoinSet::new();
        tasks.spawn(read);
        let read = timeout(DEADLINE, tasks.join_next()).await;
        assert_eq!(read.unwrap().unwrap().unwrap(), b"!");
    }

    /// Whoever asked last is woken, whether the task is the one that asked before or another.
    #[tokio::test]
    async fn each_task_that_waits_is_woken() {
        let (mut ear, mut far) = pair().await;
        let tasks = [Arc::new(Woken::default()), Arc::new(Woken::default())];
        let mut read = |task: &Arc<Woken>| {
            let waker = Waker::from(Arc::clone(task));
            let (mut cx, mut piece) = (Context::from_waker(&waker), [0; 16]);
            let mut buffer = ReadBuf::new(&mut piece);
            let read = Pin::new(&mut ear).poll_read(&mut cx, &mut buffer);
            read.map(|_| buffer.filled().to_vec())
        };
        for (turn, asking) in [&[0][..], &[0, 0], &[0, 1], &[1, 0, 0]].iter().enumerate() {
            let last = &tasks[*asking.last().unwrap()];
            let before = last.0.load(Ordering::SeqCst);
            for task in *asking {
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
