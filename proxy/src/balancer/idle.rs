//! Connections to a backend that have carried a request and can carry another.
//!
//! Nobody waits on them: that one was closed is seen when it is wanted, and by a look at all of them each second. Each belongs to
//! a runtime, whose threads its events wake, so that one of the runtime that wants it is taken before another.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::{self, Handle};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::tls::ClientStream;
use crate::tunnel::Socket;

/// How many are looked at to find one of this runtime.
const LOOKED_AT: usize = 16;

/// A connection to a backend.
#[derive(Debug)]
pub(crate) struct UpstreamConnection {
    pub(crate) socket: Socket,
    /// The address that it leads to, of those of a host name.
    pub(crate) address: Option<SocketAddr>,
}

impl UpstreamConnection {
    /// Whether it is a TLS connection that has ended without saying so (RFC 8446, 6.1): more may have been sent.
    pub(crate) fn was_truncated(&self) -> bool {
        match &self.socket {
            Socket::Tcp(_) | Socket::Unix(_) => false,
            Socket::Wrapped(stream) => {
                let tls = (**stream).as_any().downcast_ref::<ClientStream<Socket>>();
                tls.is_some_and(ClientStream::was_truncated)
            }
        }
    }
}

/// The kept connections of one backend, the last used at the end.
///
/// The lock is held for as long as it takes to move one.
#[derive(Debug, Default)]
pub(crate) struct IdleConnections(Mutex<Vec<IdleConnection>>);

#[derive(Debug)]
struct IdleConnection {
    connection: UpstreamConnection,
    since: Instant,
    /// By which TLS it was made.
    tls: u64,
    /// Whose events it is among.
    runtime: runtime::Id,
    _place: OwnedSemaphorePermit,
}

impl IdleConnections {
    /// The last used one that is not older than `age`, made by `tls`, leads to an address that `is_current`, and has not been closed
    /// as far as is known; of this runtime, if one of the last is.
    ///
    /// # Panics
    ///
    /// Outside a runtime.
    pub(crate) fn take(
        &self,
        age: Duration,
        tls: u64,
        is_current: impl Fn(Option<SocketAddr>) -> bool,
    ) -> Option<UpstreamConnection> {
        let here = Handle::current().id();
        loop {
            let mut kept = self.0.lock();
            let last = kept.last()?;
            // So are all before it.
            if age <= last.since.elapsed() {
                return None;
            }
            let late = kept.len().saturating_sub(LOOKED_AT);
            let ours = kept[late..].iter().rposition(|idle| idle.runtime == here);
            let chosen = ours.map_or(kept.len() - 1, |index| late + index);
            let mut idle = kept.remove(chosen);
            drop(kept);
            if idle.tls == tls
                && idle.since.elapsed() < age
                && is_current(idle.connection.address)
                && is_quiet(&mut idle.connection.socket)
            {
                return if idle.runtime == here {
                    Some(idle.connection)
                } else {
                    moved(idle.connection).ok()
                };
            }
        }
    }

    /// Keeps `connection`, which belongs to this runtime, unless as many are kept as there are `places`.
    pub(crate) fn put(&self, connection: UpstreamConnection, tls: u64, places: &Arc<Semaphore>) {
        let Ok(place) = Arc::clone(places).try_acquire_owned() else {
            return;
        };
        self.0.lock().push(IdleConnection {
            connection,
            since: Instant::now(),
            tls,
            runtime: Handle::current().id(),
            _place: place,
        });
    }

    /// Closes those that are older than `age`, were closed, or lead to an address that is not `is_current`.
    pub(crate) fn tidy(&self, age: Duration, is_current: impl Fn(Option<SocketAddr>) -> bool) {
        self.0.lock().retain_mut(|idle| {
            idle.since.elapsed() < age
                && is_current(idle.connection.address)
                && is_quiet(&mut idle.connection.socket)
        });
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.0.lock().len()
    }
}

/// The connection as one of this runtime. One with layers around it stays where it is, and works from here all the same.
fn moved(connection: UpstreamConnection) -> io::Result<UpstreamConnection> {
    let UpstreamConnection { socket, address } = connection;
    let socket = match socket {
        Socket::Tcp(socket) => Socket::Tcp(TcpStream::from_std(socket.into_std()?)?),
        Socket::Unix(socket) => Socket::Unix(UnixStream::from_std(socket.into_std()?)?),
        Socket::Wrapped(stream) => Socket::Wrapped(stream),
    };
    Ok(UpstreamConnection { socket, address })
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

    use super::*;

    const AGE: Duration = Duration::from_secs(60);

    fn dialed(socket: Socket) -> UpstreamConnection {
        UpstreamConnection {
            socket,
            address: None,
        }
    }

    /// Waits until something has come on our end of the connection that was kept last.
    async fn something_comes(kept: &IdleConnections) {
        std::future::poll_fn(
            |cx| match &kept.0.lock().last().unwrap().connection.socket {
                Socket::Tcp(socket) => socket.poll_read_ready(cx),
                _ => unreachable!("it is TCP"),
            },
        )
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn the_last_used_that_is_open_and_of_this_tls_is_taken() {
        let (kept, places) = (IdleConnections::default(), Arc::new(Semaphore::new(9)));
        let (first, other_tls, mut unasked, mut closed) = (
            Socket::pair().await,
            Socket::pair().await,
            Socket::pair().await,
            Socket::pair().await,
        );
        unasked.1.write_all(b"?").await.unwrap();
        closed.1.shutdown().await.unwrap();
        kept.put(dialed(first.0), 0, &places);
        kept.put(dialed(other_tls.0), 1, &places);
        for (ours, _other) in [unasked, closed] {
            kept.put(dialed(ours), 0, &places);
            something_comes(&kept).await;
        }
        assert!(
            kept.take(Duration::ZERO, 0, |_| true).is_none(),
            "all are too old"
        );
        assert_eq!(kept.count(), 4);
        let taken = kept.take(AGE, 0, |_| true).map(|taken| taken.socket);
        let Some(Socket::Tcp(taken)) = taken else {
            panic!("one is left");
        };
        assert_eq!(taken.local_addr().unwrap(), first.1.peer_addr().unwrap());
        assert_eq!(kept.count(), 0, "the others are of no use");
    }

    /// The other runtime is gone by the time that something comes.
    #[test]
    fn one_of_this_runtime_goes_before_one_of_another_which_moves_over() {
        let runtime = || {
            let mut builder = runtime::Builder::new_current_thread();
            builder.enable_all().build().unwrap()
        };
        let (here, there) = (runtime(), runtime());
        let (kept, places) = (IdleConnections::default(), Arc::new(Semaphore::new(9)));
        let (ours, theirs) = (
            here.block_on(Socket::pair()),
            there.block_on(Socket::pair()),
        );
        let addresses = [&ours, &theirs].map(|(_, other)| other.peer_addr().unwrap());
        here.block_on(async { kept.put(dialed(ours.0), 0, &places) });
        there.block_on(async { kept.put(dialed(theirs.0), 0, &places) });
        let take = || match kept.take(AGE, 0, |_| true).map(|taken| taken.socket) {
            Some(Socket::Tcp(taken)) => taken,
            _ => panic!("there is one"),
        };
        let first = here.block_on(async { take() });
        assert_eq!(first.local_addr().unwrap(), addresses[0]);
        let second = here.block_on(async {
            let second = take();
            assert_eq!(second.local_addr().unwrap(), addresses[1]);
            second
        });
        drop(there);
        theirs.1.try_write(b"!").unwrap();
        let heard = async { tokio::time::timeout(AGE, second.readable()).await };
        here.block_on(heard).unwrap().unwrap();
    }

    #[tokio::test]
    async fn one_to_an_address_that_its_name_no_longer_has_is_closed() {
        let (kept, places) = (IdleConnections::default(), Arc::new(Semaphore::new(9)));
        let addresses = ["127.0.0.2:1", "127.0.0.3:1"].map(|address| address.parse().ok());
        let pairs = [Socket::pair().await, Socket::pair().await];
        let mut others = Vec::new();
        for (address, (socket, other)) in addresses.into_iter().zip(pairs) {
            kept.put(UpstreamConnection { socket, address }, 0, &places);
            others.push(other);
        }
        let taken = kept.take(AGE, 0, |address| address == addresses[0]);
        assert_eq!(taken.unwrap().address, addresses[0]);
        assert_eq!(kept.count(), 0);
        let (socket, _other) = Socket::pair().await;
        let address = addresses[1];
        kept.put(UpstreamConnection { socket, address }, 0, &places);
        kept.tidy(AGE, |address| address != addresses[1]);
        assert_eq!(kept.count(), 0);
    }

    #[tokio::test]
    async fn no_more_are_kept_than_there_are_places() {
        let (kept, places) = (IdleConnections::default(), Arc::new(Semaphore::new(1)));
        let (first, second) = (Socket::pair().await, Socket::pair().await);
        kept.put(dialed(first.0), 0, &places);
        kept.put(dialed(second.0), 0, &places);
        assert_eq!((kept.count(), places.available_permits()), (1, 0));
        assert!(kept.take(AGE, 0, |_| true).is_some());
        assert_eq!((kept.count(), places.available_permits()), (0, 1));
    }

    #[tokio::test]
    async fn what_is_closed_or_old_is_not_kept() {
        let (kept, places) = (IdleConnections::default(), Arc::new(Semaphore::new(9)));
        let (open, closed) = (Socket::pair().await, Socket::pair().await);
        kept.put(dialed(open.0), 0, &places);
        kept.put(dialed(closed.0), 0, &places);
        drop(closed.1);
        something_comes(&kept).await;
        kept.tidy(AGE, |_| true);
        assert_eq!(kept.count(), 1);
        kept.tidy(Duration::ZERO, |_| true);
        assert_eq!((kept.count(), places.available_permits()), (0, 9));
    }
}
