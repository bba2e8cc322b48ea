//! Clients that hold on to a connection and ask for nothing.

use std::{
    future, iter,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use causeway_tests::harness::tls::connect_from;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, tcp::WriteHalf},
    task::JoinSet,
    time::{Instant, interval},
};

/// How many come from one address: fewer than the handshakes that one address may have under way.
const FROM_ONE: usize = 200;

/// Between two bytes of one attacker.
const DRIP: Duration = Duration::from_secs(1);

/// How they hold on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weapon {
    /// The head of a request comes byte by byte.
    SlowHead,
    /// Half of a handshake's first message comes, or nothing.
    IdleHandshake,
}

/// A number of attackers.
pub(crate) struct Attack {
    left: Arc<AtomicUsize>,
    /// What the life of the shortest-lived was, of those that have ended.
    shortest: Arc<Mutex<Option<Duration>>>,
    _tasks: JoinSet<()>,
}

impl Attack {
    /// Connects all of them.
    pub(crate) async fn begin(weapon: Weapon, target: SocketAddr, number: usize) -> Result<Self> {
        let (left, shortest) = (
            Arc::new(AtomicUsize::new(number)),
            Arc::new(Mutex::new(None)),
        );
        let mut tasks = JoinSet::new();
        for at in 0..number {
            let source = Ipv4Addr::new(127, 99, 0, u8::try_from(at / FROM_ONE + 1)?);
            let mut stream = connect_from(source, target).await?;
            let (left, shortest) = (Arc::clone(&left), Arc::clone(&shortest));
            tasks.spawn(async move {
                let begun = Instant::now();
                hold_on(&mut stream, weapon, at).await;
                let lasted = begun.elapsed();
                let mut shortest = shortest.lock().unwrap_or_else(PoisonError::into_inner);
                *shortest = Some(shortest.map_or(lasted, |other: Duration| other.min(lasted)));
                left.fetch_sub(1, Ordering::Relaxed);
            });
        }
        Ok(Self {
            left,
            shortest,
            _tasks: tasks,
        })
    }

    /// How many are still connected.
    pub(crate) fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    pub(crate) fn shortest(&self) -> Option<Duration> {
        *self.shortest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds on until the other side has closed the connection.
async fn hold_on(stream: &mut TcpStream, weapon: Weapon, at: usize) {
    let (mut reading, mut writing) = stream.split();
    let mut response = [0; 1024];
    let closed = async { while matches!(reading.read(&mut response).await, Ok(1..)) {} };
    match weapon {
        Weapon::SlowHead => tokio::select! { () = closed => {}, () = drip(writing) => {} },
        Weapon::IdleHandshake => {
            if at.is_multiple_of(2) {
                // The start of a ClientHello of 508 bytes.
                let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
                writing.write_all(hello).await.ok();
            }
            closed.await;
        }
    }
}

/// A head that comes byte by byte and has no end.
async fn drip(mut writing: WriteHalf<'_>) {
    let start = b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ";
    let mut pace = interval(DRIP);
    for byte in start.iter().chain(iter::repeat(&b'x')) {
        pace.tick().await;
        if writing.write_all(&[*byte]).await.is_err() {
            break;
        }
    }
    // That it is closed shows when reading.
    future::pending().await
}
