//! Clients of the edge that behave oddly while others are handed off.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    handoff_faults::{publish, scene::NARROW, shared::parse},
    harness::{
        http::Connection,
        websocket::{self, WebSocket},
    },
};

/// For what is to come.
const WAIT: Duration = Duration::from_secs(20);

/// The parts of a fragmented message: in the middle of the first one it waits.
const FRAGMENT: usize = 2 << 20;

/// What a client that reads nothing is sent: more than a narrow outbox and the buffers on the way hold.
const MESSAGES: u64 = 700;
const MESSAGE_BYTES: usize = 4 << 10;

/// Sends a frame of a handoff, as only the edge may. It has to be disconnected with 1002.
///
/// # Errors
///
/// It is not.
pub async fn reserved_opcode(edge: SocketAddr) -> Result<()> {
    for payload in [&b"leaving"[..], b"done", b"handoff 0123456789abcdef 0123"] {
        let mut socket = WebSocket::open(edge, "/narrow").await?;
        let mut frame = vec![0x8b, 0x80 | u8::try_from(payload.len())?, 0, 0, 0, 0];
        frame.extend(payload);
        socket.send_raw(&frame).await?;
        let code = socket.close_code().await?;
        ensure!(code == Some(1002), "closed with {code:?}");
    }
    Ok(())
}

/// A client in the middle of a fragmented message.
#[derive(Debug)]
pub struct Fragmented {
    stream: TcpStream,
    observer: WebSocket,
    mark: String,
}

impl Fragmented {
    /// Sends half of the first fragment.
    ///
    /// # Errors
    ///
    /// It is not accepted.
    pub async fn begin(edge: SocketAddr, own: SocketAddr) -> Result<Self> {
        let observer = WebSocket::open(own, "/large").await?;
        let mut connection = Connection::open(edge).await?;
        connection
            .send(websocket::handshake(edge, "/large", &[]))
            .await?;
        let response = connection.head().await?;
        ensure!(response.status == 101, "{response:?}");
        let (mut stream, _) = connection.into_parts();
        let mark = format!("{:016x}", fastrand::u64(..));
        let mut head = vec![0x01, 0x80 | 127];
        head.extend(u64::try_from(FRAGMENT)?.to_be_bytes());
        head.extend([0; 4]);
        head.extend(mark.as_bytes());
        head.resize(14 + FRAGMENT / 2, b'x');
        timeout(WAIT, stream.write_all(&head)).await??;
        Ok(Self {
            stream,
            observer,
            mark,
        })
    }

    /// Sends the rest: the message arrives whole, once, unless the client is told.
    ///
    /// # Errors
    ///
    /// It does not. `may_end`: whether the connection may have ended, since a process was killed.
    pub async fn finish(mut self, may_end: bool) -> Result<()> {
        let mut rest = vec![b'x'; FRAGMENT - FRAGMENT / 2];
        rest.extend([0x80, 0x80 | 127]);
        rest.extend(u64::try_from(FRAGMENT)?.to_be_bytes());
        rest.extend([0; 4]);
        rest.resize(rest.len() + FRAGMENT, b'x');
        let sent = timeout(WAIT, self.stream.write_all(&rest)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return Self::is_told(&mut self.stream, may_end).await;
        }
        loop {
            match timeout(WAIT, self.observer.message()).await {
                Ok(Ok(Some(Message::Text(text)))) if text.starts_with(&self.mark) => {
                    let length = text.len();
                    ensure!(length == 2 * FRAGMENT, "{length} bytes of {}", 2 * FRAGMENT);
                    break;
                }
                Ok(Ok(Some(_))) => {}
                _ => return Self::is_told(&mut self.stream, may_end).await,
            }
        }
        // Once.
        let mut again = self.observer;
        let again = timeout(Duration::from_millis(50), again.message()).await;
        if let Ok(Ok(Some(Message::Text(text)))) = again {
            ensure!(!text.starts_with(&self.mark), "it arrives twice");
        }
        Ok(())
    }

    /// That a Close frame has come: the message is not lost silently.
    async fn is_told(stream: &mut TcpStream, may_end: bool) -> Result<()> {
        let mut read = Vec::new();
        let ended = timeout(WAIT, stream.read_to_end(&mut read)).await;
        let ended = ended.context("the message is lost, and its client is not told")?;
        let is_closed = read.windows(2).any(|pair| pair[0] == 0x88 && pair[1] < 126);
        ensure!(
            is_closed || may_end,
            "the connection ends without a Close frame: {ended:?}"
        );
        Ok(())
    }
}

/// A client that reads nothing for a time.
#[derive(Debug)]
pub struct ReadsNothing {
    socket: WebSocket,
}

impl ReadsNothing {
    /// Connects, and is sent more than it may leave unread.
    ///
    /// # Errors
    ///
    /// It is not connected.
    pub async fn begin(edge: SocketAddr) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(8 << 10)?;
        let mut connection = Connection::of(socket.connect(edge).await?);
        connection
            .send(websocket::handshake(edge, "/narrow", &[]))
            .await?;
        let head = connection.head().await?;
        let socket = WebSocket::begin(connection, head).await?;
        Ok(Self { socket })
    }

    /// Publishes what it does not read.
    ///
    /// # Errors
    ///
    /// Redis does not take it.
    pub async fn publish(redis: SocketAddr) -> Result<()> {
        let mut connection = None;
        let padding = "x".repeat(MESSAGE_BYTES);
        for number in 1..=MESSAGES {
            let message = format!("s 0 {number} {padding}");
            publish::publish(&mut connection, redis, NARROW, &message).await?;
        }
        Ok(())
    }

    /// Reads: all of it in order, or up to a Close frame.
    ///
    /// # Errors
    ///
    /// Something else. `may_end`: as in [`Fragmented::finish`].
    pub async fn finish(self, may_end: bool) -> Result<()> {
        let mut stream = self.socket.into_stream();
        let mut last = 0;
        let read = async {
            loop {
                match stream.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let Some((_, number)) = parse(text.as_str()) else {
                            continue;
                        };
                        // An earlier round's may be on their way.
                        ensure!(last == 0 || number == last + 1, "{number} behind {last}");
                        last = number;
                        if last == MESSAGES {
                            return Ok(());
                        }
                    }
                    Some(Ok(Message::Close(Some(_)))) => return Ok(()),
                    Some(Ok(Message::Close(None))) => bail!("closed without a code"),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None if may_end => return Ok(()),
                    end => bail!("the connection ends without a Close frame: {end:?}"),
                }
            }
        };
        let read = timeout(WAIT, read).await;
        read.with_context(|| {
            format!("nothing more comes behind {last}, and the client is not told")
        })?
    }
}

/// A channel client whose state is larger than a snapshot may be.
#[derive(Debug)]
pub struct Large {
    socket: WebSocket,
}

impl Large {
    /// Connects and subscribes to very many channels.
    ///
    /// # Errors
    ///
    /// It is refused.
    pub async fn begin(edge: SocketAddr) -> Result<Self> {
        const CHANNELS: usize = 800;
        let mut socket = WebSocket::open(edge, "/connection/websocket").await?;
        let mut commands = vec![json!({ "id": 1, "connect": {} }).to_string()];
        for number in 0..CHANNELS {
            let channel = format!("wide:{number:0>100}");
            let subscribe = json!({ "id": number + 2, "subscribe": { "channel": channel } });
            commands.push(subscribe.to_string());
        }
        for commands in commands.chunks(100) {
            socket.send(&commands.join("\n")).await?;
        }
        let last = format!("\"id\":{}", CHANNELS + 1);
        while !socket.text().await?.contains(&last) {}
        Ok(Self { socket })
    }

    /// That it is served, or has been told.
    ///
    /// # Errors
    ///
    /// Neither. `may_end`: as in [`Fragmented::finish`].
    pub async fn finish(mut self, may_end: bool) -> Result<()> {
        let ask = json!({ "id": 5_000, "publish": { "channel": "room:2", "data": "x" } });
        // It may be closed already: then the Close frame says so.
        self.socket.send(&ask.to_string()).await.unwrap_or_default();
        loop {
            match self.socket.message().await? {
                Some(Message::Text(text)) if text.contains("\"id\":5000") => {
                    return self.socket.close().await;
                }
                Some(Message::Text(text)) if text.as_str() == "{}" => {
                    self.socket.send("{}").await.unwrap_or_default();
                }
                Some(Message::Close(Some(_))) => return Ok(()),
                None if may_end => return Ok(()),
                Some(Message::Close(None)) | None => bail!("it is disconnected without a code"),
                Some(_) => {}
            }
        }
    }
}
