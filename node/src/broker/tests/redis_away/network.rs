//! A broken link to Redis that is whole again later.

use std::future;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::redis::testing::RedisServer;

/// A network before Redis that can keep back what the connections of a moment have sent.
pub(super) struct Network {
    pub(super) port: u16,
    /// Connections below this number are held.
    held_below: watch::Sender<usize>,
    /// Whether what asks for subscriptions is held.
    subscribing_held: watch::Sender<bool>,
    accepted: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Network {
    pub(super) async fn before(server: &RedisServer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (held_below, held) = watch::channel(0);
        let (subscribing_held, subscribing) = watch::channel(false);
        let accepted = Arc::new(AtomicUsize::new(0));
        let (socket, counter) = (server.socket(), Arc::clone(&accepted));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let Ok(redis) = UnixStream::connect(&socket).await else {
                    continue; // Redis is away, and the client's connection ends.
                };
                let held = (held.clone(), subscribing.clone());
                connections.spawn(carry(client, redis, number, held));
            }
        });
        Self {
            port,
            held_below,
            subscribing_held,
            accepted,
            _tasks: tasks,
        }
    }

    /// Keeps back what all connections of now send; later ones are free.
    pub(super) fn hold(&self) {
        self.held_below
            .send_replace(self.accepted.load(Ordering::SeqCst));
    }

    pub(super) fn release(&self) {
        self.held_below.send_replace(0);
    }

    /// Keeps back what asks for a subscription, and what comes behind it on the same connection.
    pub(super) fn hold_subscribing(&self) {
        self.subscribing_held.send_replace(true);
    }

    pub(super) fn release_subscribing(&self) {
        self.subscribing_held.send_replace(false);
    }
}

async fn carry(
    client: TcpStream,
    redis: UnixStream,
    number: usize,
    (mut held, mut subscribing): (watch::Receiver<usize>, watch::Receiver<bool>),
) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_redis, mut to_redis) = redis.into_split();
    let there = async {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from_client.read(&mut bytes).await {
            held.wait_for(|below| *below <= number).await.unwrap();
            if bytes[..length].windows(9).any(|word| word == b"SUBSCRIBE") {
                subscribing.wait_for(|is_held| !is_held).await.unwrap();
            }
            if to_redis.write_all(&bytes[..length]).await.is_err() {
                break;
            }
        }
        to_redis.shutdown().await.ok();
    };
    // Redis ends the connection, be it by itself or because the node did.
    tokio::select! {
        _ = tokio::io::copy(&mut from_redis, &mut to_client) => {}
        () = there.then(|()| future::pending()) => {}
    }
}
