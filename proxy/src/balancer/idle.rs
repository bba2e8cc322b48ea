//! Idle connections to a backend, kept for reuse.
//!
//! No task polls them: a closed one is noticed when it is taken, and by a sweep each second. Each belongs to the runtime whose I/O
//! driver it is registered with, so that a connection of the current runtime is preferred.

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

/// How many of the most recently used are searched for one of the current runtime.
const SEARCH_MAX: usize = 16;

/// A connection to a backend.
#[derive(Debug)]
pub(crate) struct UpstreamConnection {
    pub(crate) socket: Socket,
    /// The address that it is connected to, if the backend is given by a host name.
    pub(crate) address: Option<SocketAddr>,
}

impl UpstreamConnection {
    /// Whether it is a TLS connection that ended without close_notify (RFC 8446, 6.1): data may be missing.
    pub(crate) fn was_truncated(&self) -> bool {
        match &self.socket {
            Socket::Tcp(_) | Socket::Unix(_) | Socket::Tls(_) => false,
            Socket::Wrapped(stream) => {
                let tls = (**stream).as_any().downcast_ref::<ClientStream<Socket>>();
                tls.is_some_and(ClientStream::was_truncated)
            }
        }
    }
}

/// The idle connections of one backend, the most recently used last.
///
/// The lock is held only to add or remove connections.
#[derive(Debug, Default)]
pub(crate) struct IdleConnections(Mutex<Vec<IdleConnection>>);

#[derive(Debug)]
struct IdleConnection {
    connection: UpstreamConnection,
    since: Instant,
    /// The number of the TLS connector that made it; 0 is plain TCP.
    tls: u64,
    /// The runtime whose I/O driver it is registered with.
    runtime: runtime::Id,
    _permit: OwnedSemaphorePermit,
}

impl IdleConnections {
    /// Takes the most recently used one that is younger than `age`, was made by `tls`, is connected to an address that `is_current`,
    /// and is not known to be closed; preferably one of the current runtime.
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
            let mut connections = self.0.lock();
            let last = connections.last()?;
            // All before it are older.
            if age <= last.since.elapsed() {
                return None;
            }
            let late = connections.len().saturating_sub(SEARCH_MAX);
            let ours = connections[late..]
                .iter()
                .rposition(|idle| idle.runtime == here);
            let chosen = ours.map_or(connections.len() - 1, |index| late + index);
            let mut idle = connections.remove(chosen);
            drop(connections);
            if idle.tls == tls
                && idle.since.elapsed() < age
                && is_current(idle.connection.address)
                && is_unused(&mut idle.connection.socket)
            {
                return if idle.runtime == here {
                    Some(idle.connection)
                } else {
                    move_to_runtime(idle.connection).ok()
                };
            }
        }
    }

    /// Keeps `connection`, which belongs to the current runtime, if `permits` has one left.
    pub(crate) fn put(&self, connection: UpstreamConnection, tls: u64, permits: &Arc<Semaphore>) {
        let Ok(permit) = Arc::clone(permits).try_acquire_owned() else {
            return;
        };
        self.0.lock().push(IdleConnection {
            connection,
            since: Instant::now(),
            tls,
            runtime: Handle::current().id(),
            _permit: permit,
        });
    }

    /// Closes those that are older than `age`, were closed by the backend, or are connected to an address that is not `is_current`.
    pub(crate) fn close_stale(
        &self,
        age: Duration,
        is_current: impl Fn(Option<SocketAddr>) -> bool,
    ) {
        self.0.lock().retain_mut(|idle| {
            idle.since.elapsed() < age
                && is_current(idle.connection.address)
                && is_unused(&mut idle.connection.socket)
        });
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.0.lock().len()
    }
}

/// Registers the connection with the current runtime. One over TLS stays with its own, which works too.
fn move_to_runtime(connection: UpstreamConnection) -> io::Result<UpstreamConnection> {
    let UpstreamConnection { socket, address } = connection;
    let socket = match socket {
        Socket::Tcp(socket) => Socket::Tcp(TcpStream::from_std(socket.into_std()?)?),
        Socket::Unix(socket) => Socket::Unix(UnixStream::from_std(socket.into_std()?)?),
        other @ (Socket::Tls(_) | Socket::Wrapped(_)) => other,
    };
    Ok(UpstreamConnection { socket, address })
}

/// Whether nothing was received, neither bytes nor the end. Unexpected bytes are no response to any request.
///
/// Costs no system call unless the socket is readable.
fn is_unused(socket: &mut Socket) -> bool {
    let mut byte = [0];
    let would_block = |read: io::Result<usize>| {
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    };
    match socket {
        Socket::Tcp(socket) => would_block(socket.try_read(&mut byte)),
        Socket::Unix(socket) => would_block(socket.try_read(&mut byte)),
        Socket::Tls(_) | Socket::Wrapped(_) => {
            // The next reader registers its own waker.
            let mut cx = Context::from_waker(Waker::noop());
            let mut buffer = ReadBuf::new(&mut byte);
            Pin::new(socket)
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

    /// Waits until the connection that was kept last is readable.
    async fn readable(idle: &IdleConnections) {
        std::future::poll_fn(
            |cx| match &idle.0.lock().last().unwrap().connection.socket {
                Socket::Tcp(socket) => socket.poll_read_ready(cx),
                _ => unreachable!("it is TCP"),
            },
        )
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn the_most_recently_used_open_connection_of_the_same_tls_is_taken() {
        let (idle, permits) = (IdleConnections::default(), Arc::new(Semaphore::new(9)));
        let (first, other_tls, mut unexpected, mut closed) = (
            Socket::pair().await,
            Socket::pair().await,
            Socket::pair().await,
            Socket::pair().await,
        );
        unexpected.1.write_all(b"?").await.unwrap();
        closed.1.shutdown().await.unwrap();
        idle.put(dialed(first.0), 0, &permits);
        idle.put(dialed(other_tls.0), 1, &permits);
        for (ours, _other) in [unexpected, closed] {
            idle.put(dialed(ours), 0, &permits);
            readable(&idle).await;
        }
        assert!(
            idle.take(Duration::ZERO, 0, |_| true).is_none(),
            "all are too old"
        );
        assert_eq!(idle.count(), 4);
        let taken = idle.take(AGE, 0, |_| true).map(|taken| taken.socket);
        let Some(Socket::Tcp(taken)) = taken else {
            panic!("one is left");
        };
        assert_eq!(taken.local_addr().unwrap(), first.1.peer_addr().unwrap());
        assert_eq!(idle.count(), 0, "the unusable ones are closed");
    }

    /// The other runtime has ended by the time that the connection is readable.
    #[test]
    fn a_connection_of_this_runtime_is_preferred_and_one_of_another_moves_to_it() {
        let runtime = || {
            let mut builder = runtime::Builder::new_current_thread();
            builder.enable_all().build().unwrap()
        };
        let (here, there) = (runtime(), runtime());
        let (idle, permits) = (IdleConnections::default(), Arc::new(Semaphore::new(9)));
        let (ours, theirs) = (
            here.block_on(Socket::pair()),
            there.block_on(Socket::pair()),
        );
        let addresses = [&ours, &theirs].map(|(_, other)| other.peer_addr().unwrap());
        here.block_on(async { idle.put(dialed(ours.0), 0, &permits) });
        there.block_on(async { idle.put(dialed(theirs.0), 0, &permits) });
        let take = || match idle.take(AGE, 0, |_| true).map(|taken| taken.socket) {
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
        let woken = async { tokio::time::timeout(AGE, second.readable()).await };
        here.block_on(woken).unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_connection_to_an_address_that_the_name_no_longer_has_is_closed() {
        let (idle, permits) = (IdleConnections::default(), Arc::new(Semaphore::new(9)));
        let addresses = ["127.0.0.2:1", "127.0.0.3:1"].map(|address| address.parse().ok());
        let pairs = [Socket::pair().await, Socket::pair().await];
        let mut others = Vec::new();
        for (address, (socket, other)) in addresses.into_iter().zip(pairs) {
            idle.put(UpstreamConnection { socket, address }, 0, &permits);
            others.push(other);
        }
        let taken = idle.take(AGE, 0, |address| address == addresses[0]);
        assert_eq!(taken.unwrap().address, addresses[0]);
        assert_eq!(idle.count(), 0);
        let (socket, _other) = Socket::pair().await;
        let address = addresses[1];
        idle.put(UpstreamConnection { socket, address }, 0, &permits);
        idle.close_stale(AGE, |address| address != addresses[1]);
        assert_eq!(idle.count(), 0);
    }

    #[tokio::test]
    async fn no_more_connections_are_kept_than_there_are_permits() {
        let (idle, permits) = (IdleConnections::default(), Arc::new(Semaphore::new(1)));
        let (first, second) = (Socket::pair().await, Socket::pair().await);
        idle.put(dialed(first.0), 0, &permits);
        idle.put(dialed(second.0), 0, &permits);
        assert_eq!((idle.count(), permits.available_permits()), (1, 0));
        assert!(idle.take(AGE, 0, |_| true).is_some());
        assert_eq!((idle.count(), permits.available_permits()), (0, 1));
    }

    #[tokio::test]
    async fn closed_and_old_connections_are_not_kept() {
        let (idle, permits) = (IdleConnections::default(), Arc::new(Semaphore::new(9)));
        let (open, closed) = (Socket::pair().await, Socket::pair().await);
        idle.put(dialed(open.0), 0, &permits);
        idle.put(dialed(closed.0), 0, &permits);
        drop(closed.1);
        readable(&idle).await;
        idle.close_stale(AGE, |_| true);
        assert_eq!(idle.count(), 1);
        idle.close_stale(Duration::ZERO, |_| true);
        assert_eq!((idle.count(), permits.available_permits()), (0, 9));
    }
}
