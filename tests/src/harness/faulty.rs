//! A node behind a wire whose faults the test chooses while it is in use.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::harness::loopback;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Connections are accepted, and not a byte comes back. When that is over, connections that saw it are cut.
    Silent,
    /// Every request gets 503, health checks too. WebSockets that are open stay.
    Unavailable,
    /// Every response, to health checks too, is reset in its middle: in its body, or in its head if it has no body.
    /// WebSockets that are open stay.
    ResetsMidway,
}

/// What a backend says that is out of order.
const UNAVAILABLE: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nConnection: close\r\n\r\nout\n";

/// A wire to a node.
#[derive(Debug)]
pub struct Faulty {
    /// Where it listens.
    pub address: SocketAddr,
    fault: watch::Sender<Fault>,
    /// The accepting task, which owns the carrying ones.
    _tasks: JoinSet<()>,
}

impl Faulty {
    /// A wire to `node`, without a fault.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub async fn start(node: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(loopback::own_any_port()).await?;
        let address = listener.local_addr()?;
        let (fault, watched) = watch::channel(Fault::None);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut carried = JoinSet::new();
            loop {
                tokio::select! {
                    Some(_) = carried.join_next() => {}
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        let watched = watched.clone();
                        // An error ends the connection, which is all that it means.
                        carried.spawn(async move { carry(stream, node, watched).await.unwrap_or_default() });
                    }
                }
            }
        });
        Ok(Self {
            address,
            fault,
            _tasks: tasks,
        })
    }

    /// Changes what is wrong, at once and for connections that are open too.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }
}

/// Carries one connection of the edge.
async fn carry(
    mut edge: TcpStream,
    node: SocketAddr,
    mut fault: watch::Receiver<Fault>,
) -> std::io::Result<()> {
    edge.set_nodelay(true)?;
    let mut node = TcpStream::connect(node).await?;
    node.set_nodelay(true)?;
    let mut upgraded = false;
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    loop {
        asked.clear();
        answered.clear();
        if *fault.borrow_and_update() == Fault::Silent {
            return fault.changed().await.map_err(std::io::Error::other);
        }
        tokio::select! {
            changed = fault.changed() => changed.map_err(std::io::Error::other)?,
            read = edge.read_buf(&mut asked) => {
                let now = *fault.borrow();
                match (read?, now) {
                    (0, _) => return node.shutdown().await,
                    (_, Fault::Unavailable) if !upgraded => return refuse(edge).await,
                    (_, Fault::Silent) => {}
                    _ => {
                        upgraded |= asks_for_upgrade(&asked);
                        node.write_all(&asked).await?;
                    }
                }
            }
            read = node.read_buf(&mut answered) => {
                let now = *fault.borrow();
                match (read?, now) {
                    (0, _) => return edge.shutdown().await,
                    (_, Fault::ResetsMidway) if !upgraded => return break_off(edge, &answered).await,
                    (_, Fault::Silent) => {}
                    _ => edge.write_all(&answered).await?,
                }
            }
        }
    }
}

fn asks_for_upgrade(bytes: &[u8]) -> bool {
    String::from_utf8_lossy(bytes)
        .to_ascii_lowercase()
        .contains("\r\nupgrade: websocket\r\n")
}

async fn refuse(mut edge: TcpStream) -> std::io::Result<()> {
    edge.write_all(UNAVAILABLE).await?;
    edge.shutdown().await?;
    // What is left unread would make a reset of the end, and the response might be lost.
    let mut rest = [0; 512];
    while edge.read(&mut rest).await? != 0 {}
    Ok(())
}

async fn break_off(mut edge: TcpStream, response: &[u8]) -> std::io::Result<()> {
    let head = response.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let head = head.map_or(response.len(), |at| at + 4);
    let body = response.len() - head;
    let kept = if body == 0 { head / 2 } else { head + body / 2 };
    edge.write_all(&response[..kept]).await?;
    SockRef::from(&edge).set_linger(Some(Duration::ZERO))
}
