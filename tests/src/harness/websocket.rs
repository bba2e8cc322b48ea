//! A WebSocket client that keeps its handshake's response, and the means to send broken frames.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

use crate::harness::http::{Connection, Response};

/// How long a message may take.
const DEADLINE: Duration = Duration::from_secs(20);

/// The key of RFC 6455's example, and what it must be answered with.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// The `Sec-WebSocket-Accept` that belongs to [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// An open WebSocket.
#[derive(Debug)]
pub struct WebSocket {
    stream: WebSocketStream<TcpStream>,
    /// The 101.
    pub handshake: Response,
}

/// The head of a handshake request, with more headers if wanted.
#[must_use]
pub fn handshake(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> String {
    let mut head = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n"
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head + "\r\n"
}

impl WebSocket {
    /// Opens one.
    ///
    /// # Errors
    ///
    /// The response is not a right 101.
    pub async fn open(address: SocketAddr, path: &str) -> Result<Self> {
        Self::open_with(address, path, &[]).await
    }

    /// Opens one with more headers.
    ///
    /// # Errors
    ///
    /// The response is not a right 101.
    pub async fn open_with(
        address: SocketAddr,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self> {
        let mut connection = Connection::open(address).await?;
        connection.send(handshake(address, path, headers)).await?;
        let handshake = connection.head().await?;
        Self::begin(connection, handshake)
            .await
            .with_context(|| format!("no WebSocket at {address}{path}"))
    }

    /// Goes on with a connection on which `handshake` is the response to [`handshake()`].
    ///
    /// # Errors
    ///
    /// It is not a right 101.
    pub async fn begin(connection: Connection, handshake: Response) -> Result<Self> {
        if handshake.status != 101 || handshake.header("sec-websocket-accept") != Some(ACCEPT) {
            bail!("not a right 101: {handshake:?}");
        }
        let (stream, unread) = connection.into_parts();
        let stream =
            WebSocketStream::from_partially_read(stream, unread.to_vec(), Role::Client, None).await;
        Ok(Self { stream, handshake })
    }

    /// The stream itself, for who reads and writes as he likes.
    #[must_use]
    pub fn into_stream(self) -> WebSocketStream<TcpStream> {
        self.stream
    }

    /// The node that took it, by its `Causeway-Node` header.
    #[must_use]
    pub fn node(&self) -> &str {
        self.handshake.header("causeway-node").unwrap_or_default()
    }

    /// Sends a text message.
    ///
    /// # Errors
    ///
    /// It is closed.
    pub async fn send(&mut self, text: &str) -> Result<()> {
        self.stream
            .send(Message::text(text))
            .await
            .context("cannot send a message")
    }

    /// Sends a binary message.
    ///
    /// # Errors
    ///
    /// It is closed.
    pub async fn send_binary(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream
            .send(Message::binary(bytes.to_vec()))
            .await
            .context("cannot send a message")
    }

    /// Sends bytes as they are, past everything that makes frames of them.
    ///
    /// # Errors
    ///
    /// The other side has gone.
    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream
            .get_mut()
            .write_all(bytes)
            .await
            .context("cannot send")
    }

    /// The next message that is no ping or pong; `None` when the connection ended without a close frame.
    ///
    /// # Errors
    ///
    /// Nothing came in time.
    pub async fn message(&mut self) -> Result<Option<Message>> {
        let next = async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(message)) => return Some(message),
                    Some(Err(_)) | None => return None,
                }
            }
        };
        timeout(DEADLINE, next).await.context("no message in time")
    }

    /// The next message, which must be text.
    ///
    /// # Errors
    ///
    /// Something else came, or nothing.
    pub async fn text(&mut self) -> Result<String> {
        match self.message().await? {
            Some(Message::Text(text)) => Ok(text.as_str().to_owned()),
            other => bail!("expected text, got {other:?}"),
        }
    }

    /// The code that the other side closes with; messages before that are passed over. `None` without a close frame.
    ///
    /// # Errors
    ///
    /// It stays open.
    pub async fn close_code(&mut self) -> Result<Option<u16>> {
        loop {
            match self.message().await? {
                Some(Message::Close(frame)) => return Ok(frame.map(|frame| frame.code.into())),
                None => return Ok(None),
                Some(_) => {}
            }
        }
    }

    /// Closes it from this side and waits until the TCP connection is closed from the other.
    ///
    /// # Errors
    ///
    /// It stays open.
    pub async fn close(mut self) -> Result<()> {
        self.stream.close(None).await.ok();
        let end = async {
            while let Some(Ok(_)) = self.stream.next().await {}
            let mut rest = [0; 512];
            while matches!(self.stream.get_mut().read(&mut rest).await, Ok(1..)) {}
        };
        timeout(DEADLINE, end)
            .await
            .context("the connection stays open")
    }
}
