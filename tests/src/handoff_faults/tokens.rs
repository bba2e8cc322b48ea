//! Tokens that a node must not accept: forged, repeated, too late. The harness speaks as an edge, to the nodes themselves.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::harness::{http::Connection, websocket};

/// For a frame: a node gives a handoff up after 5 s.
const WAIT: Duration = Duration::from_secs(15);

/// A node keeps a connection without a client so long.
const TOKEN_LASTS: Duration = Duration::from_secs(10);

const OFFER: (&str, &str) = ("Causeway-Handoff", "1");
const HANDOFF: u8 = 0x8b;
const CLOSE: u8 = 0x88;

/// A connection of an edge to a node.
#[derive(Debug)]
struct Wire {
    stream: TcpStream,
    unread: BytesMut,
}

/// A connection that waits for a client, and its token.
#[derive(Debug)]
pub struct Waiting {
    wire: Wire,
    /// Instance and token.
    target: String,
    since: Instant,
}

impl Waiting {
    /// Has a node wait for a client.
    ///
    /// # Errors
    ///
    /// It does not.
    pub async fn open(node: SocketAddr) -> Result<Self> {
        let head = websocket::handshake(node, "/.causeway/handoff", &[OFFER]);
        let head = head.replace("Upgrade: websocket", "Upgrade: causeway-handoff");
        let mut wire = Wire::open(node, head).await?;
        let (first, payload) = wire.frame().await?.context("a frame")?;
        let payload = String::from_utf8(payload)?;
        let target = payload.strip_prefix("ready ").context("a target")?;
        ensure!(first == HANDOFF, "{first:x}");
        let target = target.to_owned();
        let since = Instant::now();
        Ok(Self {
            wire,
            target,
            since,
        })
    }

    /// Whether its time is over.
    #[must_use]
    pub fn is_too_late(&self) -> bool {
        TOKEN_LASTS + Duration::from_secs(1) < self.since.elapsed()
    }
}

/// A client of a node, with the harness in the place of the edge.
#[derive(Debug)]
struct Client {
    wire: Wire,
}

impl Client {
    async fn connect(node: SocketAddr) -> Result<Self> {
        let head = websocket::handshake(node, "/narrow", &[OFFER]);
        let wire = Wire::open(node, head).await?;
        Ok(Self { wire })
    }

    /// Orders the handoff; returns what the node says.
    async fn order(&mut self, target: &str) -> Result<String> {
        self.wire
            .send(HANDOFF, &format!("handoff {target}"))
            .await?;
        loop {
            match self.wire.frame().await?.context("the connection ended")? {
                (HANDOFF, payload) if payload == b"leaving" => {}
                (HANDOFF, payload) => return Ok(String::from_utf8(payload)?),
                (CLOSE, payload) => bail!("closed: {payload:?}"),
                _ => {}
            }
        }
    }

    /// That the node keeps the client, which is served as before.
    async fn is_kept(&mut self, target: &str) -> Result<()> {
        let said = self.order(target).await?;
        ensure!(said.starts_with("kept "), "the node says {said:?}");
        self.wire.send(0x81, "still here").await?;
        loop {
            let (first, payload) = self.wire.frame().await?.context("the connection ended")?;
            match first {
                0x81 if payload == b"still here" => return Ok(()),
                CLOSE => bail!("closed: {payload:?}"),
                _ => {}
            }
        }
    }
}

/// A token that no node has made.
///
/// # Errors
///
/// The node does something else than to keep the client.
pub async fn forged(source: SocketAddr, target: SocketAddr) -> Result<()> {
    let real = Waiting::open(target).await?;
    let (instance, _) = real.target.split_once(' ').context("two words")?;
    let token: String = (0..32)
        .map(|_| char::from(b"0123456789abcdef"[fastrand::usize(..16)]))
        .collect();
    let mut client = Client::connect(source).await?;
    client.is_kept(&format!("{instance} {token}")).await
}

/// A token that another client has used.
///
/// # Errors
///
/// As [`forged`], or the first client is not handed off.
pub async fn repeated(source: SocketAddr, target: SocketAddr) -> Result<()> {
    let waiting = Waiting::open(target).await?;
    let mut first = Client::connect(source).await?;
    let said = first.order(&waiting.target).await?;
    ensure!(said == "done", "the node says {said:?}");
    let mut second = Client::connect(source).await?;
    second.is_kept(&waiting.target).await?;
    // The first one is served where it is now, over a connection that nobody else got.
    let mut wire = waiting.wire;
    wire.send(0x81, "moved").await?;
    loop {
        let (opcode, payload) = wire.frame().await?.context("the connection ended")?;
        match opcode {
            0x81 if payload == b"moved" => return Ok(()),
            CLOSE => bail!("closed: {payload:?}"),
            _ => {}
        }
    }
}

/// A token whose connection has ended, and one whose time is over if there is one.
///
/// # Errors
///
/// As [`forged`].
pub async fn late(source: SocketAddr, target: SocketAddr, expired: Option<Waiting>) -> Result<()> {
    let ended = Waiting::open(target).await?;
    let late = ended.target.clone();
    drop(ended);
    let mut client = Client::connect(source).await?;
    // The node may not have seen the end of the connection: then it moves there, and is disconnected, which is told.
    let kept = client.is_kept(&late).await;
    if let Err(error) = kept {
        let told = ["done", "closed"]
            .iter()
            .any(|it| format!("{error}").contains(it));
        ensure!(told, "{error}");
    }
    if let Some(mut expired) = expired {
        let mut client = Client::connect(source).await?;
        client.is_kept(&expired.target).await.context("expired")?;
        let rest = expired.wire.frame().await;
        ensure!(!matches!(rest, Ok(Some(_))), "it waits still: {rest:?}");
    }
    Ok(())
}

impl Wire {
    async fn open(node: SocketAddr, head: String) -> Result<Self> {
        let mut connection = Connection::open(node).await?;
        connection.send(head).await?;
        let response = connection.head().await?;
        ensure!(response.status == 101, "{response:?}");
        let offered = response.header("causeway-handoff");
        ensure!(offered == Some("1"), "{response:?}");
        let (stream, unread) = connection.into_parts();
        let unread = BytesMut::from(&unread[..]);
        Ok(Self { stream, unread })
    }

    /// The first byte and the payload of the next frame; `None` at the end of the connection.
    async fn frame(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let next = async {
            loop {
                if let Some(frame) = self.take()? {
                    return Ok(Some(frame));
                }
                if self.stream.read_buf(&mut self.unread).await? == 0 {
                    return Ok(None);
                }
            }
        };
        timeout(WAIT, next).await.context("no frame in time")?
    }

    fn take(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let [first, length, rest @ ..] = &self.unread[..] else {
            return Ok(None);
        };
        let (header, length) = match (*length, rest) {
            (127, _) => bail!("a frame of more than 64 KiB"),
            (126, [high, low, ..]) => (4, usize::from(u16::from_be_bytes([*high, *low]))),
            (126, _) => return Ok(None),
            (length, _) => (2, usize::from(length)),
        };
        if self.unread.len() < header + length {
            return Ok(None);
        }
        let frame = (*first, self.unread[header..header + length].to_vec());
        self.unread.advance(header + length);
        Ok(Some(frame))
    }

    async fn send(&mut self, first: u8, payload: &str) -> Result<()> {
        let mut frame = vec![first, 0x80 | u8::try_from(payload.len())?];
        frame.extend([0; 4]);
        frame.extend(payload.bytes());
        Ok(self.stream.write_all(&frame).await?)
    }
}
