//! A server behind a wire that is long: every byte takes its time, in both directions.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::harness::loopback;

/// Pieces that are on their way in one direction.
const PIECES_MAX: usize = 4_096;

/// A wire to a server.
#[derive(Debug)]
pub struct Delayed {
    /// Where it listens.
    pub address: SocketAddr,
    /// The accepting task, which owns the carrying ones.
    _tasks: JoinSet<()>,
}

impl Delayed {
    /// A wire to `server` over which a byte takes `delay`.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start(server: SocketAddr, delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind(loopback::own_any_port()).await?;
        let address = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut carried = JoinSet::new();
            loop {
                tokio::select! {
                    Some(_) = carried.join_next() => {}
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        carried.spawn(carry(stream, server, delay));
                    }
                }
            }
        });
        Ok(Self {
            address,
            _tasks: tasks,
        })
    }
}

async fn carry(client: TcpStream, server: SocketAddr, delay: Duration) {
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    for stream in [&client, &server] {
        stream.set_nodelay(true).ok();
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(
        pass_on(from_client, to_server, delay),
        pass_on(from_server, to_client, delay),
    );
}

async fn pass_on(from: OwnedReadHalf, to: OwnedWriteHalf, delay: Duration) {
    let (pieces, due) = mpsc::channel(PIECES_MAX);
    tokio::join!(read(from, pieces, delay), write(to, due));
}

async fn read(mut from: OwnedReadHalf, pieces: mpsc::Sender<(Instant, Bytes)>, delay: Duration) {
    loop {
        let mut piece = BytesMut::with_capacity(16 << 10);
        if !matches!(from.read_buf(&mut piece).await, Ok(1..)) {
            return;
        }
        if pieces
            .send((Instant::now() + delay, piece.freeze()))
            .await
            .is_err()
        {
            return;
        }
    }
}

async fn write(mut to: OwnedWriteHalf, mut due: mpsc::Receiver<(Instant, Bytes)>) {
    while let Some((at, piece)) = due.recv().await {
        sleep_until(at).await;
        if to.write_all(&piece).await.is_err() {
            return;
        }
    }
    to.shutdown().await.ok();
}
