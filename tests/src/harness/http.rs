//! A small HTTP/1.1 client that sends what it is told to, also when that is wrong.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail};
use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// How long a response may take; longer than any response of ours that is not parked on purpose.
const DEADLINE: Duration = Duration::from_secs(20);

/// The most that a head may take.
const HEAD_BYTES_MAX: usize = 256 * 1024;

/// A response with its body.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers in their order; names are lower case.
    pub headers: Vec<(String, String)>,
    /// The body, without its chunking.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of this (lower-case) name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The value of a cookie that the response sets.
    #[must_use]
    pub fn cookie(&self, name: &str) -> Option<String> {
        let set = self
            .headers
            .iter()
            .filter(|(found, _)| found == "set-cookie");
        let mut pairs = set.filter_map(|(_, value)| value.split(';').next()?.split_once('='));
        pairs
            .find(|(found, _)| found.trim() == name)
            .map(|(_, value)| value.to_owned())
    }
}

/// One connection, and what has been read from it beyond the last response.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    unread: BytesMut,
}

impl Connection {
    /// Opens one.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self::of(stream))
    }

    /// Takes one that is open, and of which nothing has been read.
    #[must_use]
    pub fn of(stream: TcpStream) -> Self {
        Self {
            stream,
            unread: BytesMut::new(),
        }
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    ///
    /// The other side has gone.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.stream
            .write_all(bytes.as_ref())
            .await
            .context("cannot send")
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    ///
    /// The other side has gone.
    pub async fn finish(&mut self) -> Result<()> {
        self.stream.shutdown().await.context("cannot shut down")
    }

    /// Reads the head of a response; what follows stays unread. The body of the result is empty.
    ///
    /// # Errors
    ///
    /// The connection ended, or what came is no response.
    pub async fn head(&mut self) -> Result<Response> {
        timeout(DEADLINE, self.read_head())
            .await
            .context("no response in time")?
    }

    /// Reads a response with its body. Responses to HEAD must be read with [`Connection::head`].
    ///
    /// # Errors
    ///
    /// The connection ended too early, or what came is no response.
    pub async fn response(&mut self) -> Result<Response> {
        let mut response = self.head().await?;
        response.body = self.body_of(&response).await?;
        Ok(response)
    }

    /// Reads the body that belongs to a head that [`Connection::head`] has read.
    ///
    /// # Errors
    ///
    /// The connection ended too early.
    pub async fn body_of(&mut self, head: &Response) -> Result<Vec<u8>> {
        timeout(DEADLINE, self.read_body(head))
            .await
            .context("no body in time")?
    }

    /// Reads exactly `count` bytes of what follows a head.
    ///
    /// # Errors
    ///
    /// The connection ended before that.
    pub async fn bytes(&mut self, count: usize) -> Result<Vec<u8>> {
        timeout(DEADLINE, self.read_bytes(count))
            .await
            .with_context(|| format!("no {count} bytes in time"))?
    }

    /// Reads up to and including the next CRLF-ended chunk of a chunked body; empty at its end.
    ///
    /// # Errors
    ///
    /// The connection ended, or what came is no chunk.
    pub async fn chunk(&mut self) -> Result<Vec<u8>> {
        timeout(DEADLINE, self.read_chunk())
            .await
            .context("no chunk in time")?
    }

    /// Whether the other side has closed (or reset) the connection, as far as this one knows.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let read = self.stream.try_read(&mut [0]);
        read.map_or_else(
            |error| error.kind() != std::io::ErrorKind::WouldBlock,
            |count| count == 0,
        )
    }

    /// Whether the other side closes (or resets) the connection soon; what it still sends is read away.
    pub async fn is_closed_soon(&mut self) -> bool {
        let drained = timeout(DEADLINE, async { while self.fill().await.is_ok() {} });
        drained.await.is_ok()
    }

    /// The socket itself, and what had been read from it already.
    #[must_use]
    pub fn into_parts(self) -> (TcpStream, BytesMut) {
        (self.stream, self.unread)
    }

    async fn read_head(&mut self) -> Result<Response> {
        let end = loop {
            if let Some(at) = find(&self.unread, b"\r\n\r\n") {
                break at;
            }
            if HEAD_BYTES_MAX < self.unread.len() {
                bail!("the head of the response has no end");
            }
            self.fill().await?;
        };
        let head = self.unread.split_to(end + 4);
        parse_head(&String::from_utf8_lossy(&head[..end]))
    }

    async fn read_body(&mut self, response: &Response) -> Result<Vec<u8>> {
        if response.status == 204 || response.status == 304 || response.status < 200 {
            return Ok(Vec::new());
        }
        if response
            .header("transfer-encoding")
            .is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
        {
            let mut body = Vec::new();
            loop {
                let chunk = self.read_chunk().await?;
                if chunk.is_empty() {
                    return Ok(body);
                }
                body.extend_from_slice(&chunk);
            }
        }
        if let Some(length) = response.header("content-length") {
            return self
                .read_bytes(length.parse().context("content-length is no number")?)
                .await;
        }
        while self.fill().await.is_ok() {}
        Ok(self.unread.split().to_vec())
    }

    async fn read_chunk(&mut self) -> Result<Vec<u8>> {
        let line = loop {
            if let Some(at) = find(&self.unread, b"\r\n") {
                break self.unread.split_to(at + 2);
            }
            self.fill().await?;
        };
        let size = String::from_utf8_lossy(&line);
        let size = usize::from_str_radix(size.trim().split(';').next().unwrap_or_default(), 16)
            .context("no chunk size")?;
        let mut chunk = self.read_bytes(size + 2).await?;
        chunk.truncate(size);
        Ok(chunk)
    }

    async fn read_bytes(&mut self, count: usize) -> Result<Vec<u8>> {
        while self.unread.len() < count {
            self.fill().await?;
        }
        let bytes = self.unread[..count].to_vec();
        self.unread.advance(count);
        Ok(bytes)
    }

    async fn fill(&mut self) -> Result<()> {
        match self.stream.read_buf(&mut self.unread).await? {
            0 => bail!("the connection ended"),
            _ => Ok(()),
        }
    }
}

/// GETs `path` on a connection of its own.
///
/// # Errors
///
/// There was no response.
pub async fn get(address: SocketAddr, path: &str) -> Result<Response> {
    get_with(address, path, &[]).await
}

/// GETs `path` with these headers on a connection of its own.
///
/// # Errors
///
/// There was no response.
pub async fn get_with(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Response> {
    request(address, "GET", path, headers, b"").await
}

/// Sends a request on a connection of its own.
///
/// # Errors
///
/// There was no response.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Response> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut connection = Connection::open(address).await?;
    connection.send([head.as_bytes(), body].concat()).await?;
    if method == "HEAD" {
        connection.head().await
    } else {
        connection.response().await
    }
}

fn parse_head(head: &str) -> Result<Response> {
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    let status = status.with_context(|| format!("no status line: {status_line:?}"))?;
    let fields = lines.filter_map(|line| line.split_once(':'));
    let headers = fields
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Ok(Response {
        status,
        headers,
        body: Vec::new(),
    })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
