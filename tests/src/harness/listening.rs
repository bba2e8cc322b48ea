//! A wire to Redis that remembers what Redis sent over it.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::harness::loopback;

/// A wire that is listened to.
#[derive(Debug)]
pub struct Listening {
    /// Where it begins.
    pub address: SocketAddr,
    heard: Heard,
    /// The accepting task, which owns the carrying ones.
    _tasks: JoinSet<()>,
}

/// What came over each connection.
type Heard = Arc<Mutex<Vec<Vec<u8>>>>;

impl Listening {
    /// A wire to `redis`.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start(redis: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(loopback::own_any_port()).await?;
        let address = listener.local_addr()?;
        let heard = Heard::default();
        let mut tasks = JoinSet::new();
        let all = Arc::clone(&heard);
        tasks.spawn(async move {
            let mut carried = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let number = {
                    let mut all = all.lock();
                    all.push(Vec::new());
                    all.len() - 1
                };
                let all = Arc::clone(&all);
                // An error ends the connection, which is all that it means.
                carried.spawn(async move {
                    carry(stream, redis, &all, number).await.unwrap_or_default();
                });
            }
        });
        Ok(Self {
            address,
            heard,
            _tasks: tasks,
        })
    }

    /// The URL that a node takes.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// How many bytes Redis has sent.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.heard.lock().iter().map(Vec::len).sum()
    }

    /// How often Redis has sent `text`.
    #[must_use]
    pub fn count(&self, text: &str) -> usize {
        let heard = self.heard.lock();
        let windows = heard.iter().flat_map(|bytes| bytes.windows(text.len()));
        windows.filter(|window| *window == text.as_bytes()).count()
    }

    /// Forgets what has come so far.
    pub fn forget(&self) {
        self.heard.lock().iter_mut().for_each(Vec::clear);
    }
}

async fn carry(
    mut node: TcpStream,
    redis: SocketAddr,
    heard: &Mutex<Vec<Vec<u8>>>,
    number: usize,
) -> Result<()> {
    let mut redis = TcpStream::connect(redis).await?;
    node.set_nodelay(true)?;
    redis.set_nodelay(true)?;
    let (mut from_node, mut to_node) = node.split();
    let (mut from_redis, mut to_redis) = redis.split();
    let there = tokio::io::copy(&mut from_node, &mut to_redis);
    let back = async {
        let mut bytes = vec![0; 64 << 10];
        loop {
            let count = from_redis.read(&mut bytes).await?;
            if count == 0 {
                return Ok(());
            }
            heard.lock()[number].extend_from_slice(&bytes[..count]);
            to_node.write_all(&bytes[..count]).await?;
        }
    };
    tokio::select! {
        ended = there => { ended?; }
        ended = back => { let ended: Result<()> = ended; ended?; }
    }
    Ok(())
}
