//! Connections to a backend that have carried a request and can carry another.
//!
//! Nobody waits on them: that one was closed is seen when it is wanted, and by a look at all of them each second.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::tunnel::Socket;

/// The kept connections of one backend, the last used at the end.
///
/// The lock is held for as long as it takes to move one.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Vec<Idle>>);

#[derive(Debug)]
struct Idle {
    socket: Socket,
    since: Instant,
    /// By which TLS it was made.
    tls: u64,
    _place: OwnedSemaphorePermit,
}

impl Kept {
    /// The last used one that is not older than `age`, made by `tls`, and has not been closed as far as is known.
    pub(crate) fn take(&self, age: Duration, tls: u64) -> Option<Socket> {
        loop {
            let mut kept = self.0.lock();
            let last = kept.last()?;
            // So are all before it.
            if age <= last.since.elapsed() {
                return None;
            }
            let mut last = kept.pop()?;
            drop(kept);
            if last.tls == tls && is_quiet(&mut last.socket) {
                return Some(last.socket);
            }
        }
    }

    /// Keeps `socket`, unless as many are kept as there are `places`.
    pub(crate) fn put(&self, socket: Socket, tls: u64, places: &Arc<Semaphore>) {
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            return;
        };
        self.0.lock().push(Idle {
            socket,
            since: Instant::now(),
            tls,
            _place: place,
        });
    }

    /// Closes those that are older than `age`, or were closed.
    pub(crate) fn tidy(&self, age: Duration) {
        let quiet = |idle: &mut Idle| idle.since.elapsed() < age && is_quiet(&mut idle.socket);
        self.0.lock().retain_mut(quiet);
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.0.lock().len()
    }
}

/// Whether nothing has come, not even the end. What comes unasked is no answer to anything.
///
/// Costs no system call unless something has.
fn is_quiet(socket: &mut Socket) -> bool {
    let mut byte = [0];
    let would_block = |read: io::Result<usize>| {
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    };
    match socket {
        Socket::Tcp(socket) => would_block(socket.try_read(&mut byte)),
        Socket::Unix(socket) => would_block(socket.try_read(&mut byte)),
        Socket::Wrapped(stream) => {
            // Whoever reads next registers a waker of its own.
            let mut cx = Context::from_waker(Waker::noop());
            let mut buffer = ReadBuf::new(&mut byte);
            Pin::new(stream)
                .poll_read(&mut cx, &mut buffer)
                .is_pending()
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const AGE: Duration = Duration::from_secs(60);

    /// Both ends of a connection.
    async fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (theirs, _) = listener.accept().await.unwrap();
        (Socket::Tcp(ours.unwrap()), theirs)
    }

    /// Waits until something has come on our end of the connection that was kept last.
    async fn something_comes(kept: &Kept) {
        std::future::poll_fn(|cx| match &kept.0.lock().last().unwrap().socket {
            Socket::Tcp(socket) => socket.poll_read_ready(cx),
            _ => unreachable!("it is TCP"),
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn the_last_used_that_is_open_and_of_this_tls_is_taken() {
        let (kept, places) = (Kept::default(), Arc::new(Semaphore::new(9)));
        let (first, other_tls, mut unasked, mut closed) =
            (pair().await, pair().await, pair().await, pair().await);
        unasked.1.write_all(b"?").await.unwrap();
        closed.1.shutdown().await.unwrap();
        kept.put(first.0, 0, &places);
        kept.put(other_tls.0, 1, &places);
        for (ours, _other) in [unasked, closed] {
            kept.put(ours, 0, &places);
            something_comes(&kept).await;
        }
        assert!(kept.take(Duration::ZERO, 0).is_none(), "all are too old");
        assert_eq!(kept.count(), 4);
        let Some(Socket::Tcp(taken)) = kept.take(AGE, 0) else {
            panic!("one is left");
        };
        assert_eq!(taken.local_addr().unwrap(), first.1.peer_addr().unwrap());
        assert_eq!(kept.count(), 0, "the others are of no use");
    }

    #[tokio::test]
    async fn no_more_are_kept_than_there_are_places() {
        let (kept, places) = (Kept::default(), Arc::new(Semaphore::new(1)));
        let (first, second) = (pair().await, pair().await);
        kept.put(first.0, 0, &places);
        kept.put(second.0, 0, &places);
        assert_eq!((kept.count(), places.available_permits()), (1, 0));
        assert!(kept.take(AGE, 0).is_some());
        assert_eq!((kept.count(), places.available_permits()), (0, 1));
    }

    #[tokio::test]
    async fn what_is_closed_or_old_is_not_kept() {
        let (kept, places) = (Kept::default(), Arc::new(Semaphore::new(9)));
        let (open, closed) = (pair().await, pair().await);
        kept.put(open.0, 0, &places);
        kept.put(closed.0, 0, &places);
        drop(closed.1);
        something_comes(&kept).await;
        kept.tidy(AGE);
        assert_eq!(kept.count(), 1);
        kept.tidy(Duration::ZERO);
        assert_eq!((kept.count(), places.available_permits()), (0, 9));
    }
}
