//! A client that sees every byte.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufStream;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longer than anything takes that works.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

pub(super) struct Client(BufStream<TcpStream>);

#[derive(Debug)]
pub(super) struct Response {
    pub(super) version: String,
    pub(super) status: u16,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: String,
}

impl Response {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

impl Client {
    pub(super) async fn connect(address: SocketAddr) -> Self {
        Self(BufStream::new(TcpStream::connect(address).await.unwrap()))
    }

    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
        self.0.flush().await.unwrap();
    }

    pub(super) async fn post(&mut self, path: &str, body: &str) {
        let length = body.len();
        self.send(format!(
            "POST {path} HTTP/1.1\r\nHost: node\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await;
    }

    /// Reads a head and nothing after it.
    pub(super) async fn head(&mut self) -> Response {
        let first = self.line().await.expect("a response is expected");
        let mut words = first.splitn(3, ' ');
        let version = words.next().unwrap().to_owned();
        let status = words.next().unwrap().parse().unwrap();
        let mut headers = HashMap::new();
        loop {
            let line = self.line().await.unwrap();
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        Response {
            version,
            status,
            headers,
            body: String::new(),
        }
    }

    /// Reads a response with its body, whichever way that is delimited.
    pub(super) async fn response(&mut self) -> Response {
        let mut response = self.head().await;
        if response.header("transfer-encoding").is_some() {
            while let Some(chunk) = self.chunk().await {
                response.body.push_str(&chunk);
            }
        } else if let Some(length) = response.header("content-length") {
            response.body = self.exactly(length.parse().unwrap()).await;
        }
        response
    }

    /// Reads one chunk; `None` at the last one.
    pub(super) async fn chunk(&mut self) -> Option<String> {
        let length = self.line().await.expect("a chunk is expected");
        let length = usize::from_str_radix(&length, 16).unwrap();
        let chunk = self.exactly(length).await;
        self.line().await;
        (0 < length).then_some(chunk)
    }

    pub(super) async fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        timeout(DEADLINE, self.0.read_exact(&mut bytes))
            .await
            .expect("in time")
            .unwrap();
        bytes
    }

    /// Reads until the node closes the connection.
    pub(super) async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset is an end too: the node may not have read all that was sent.
        let _ = timeout(DEADLINE, self.0.read_to_end(&mut bytes))
            .await
            .expect("in time");
        bytes
    }

    /// Reads a line without its end; `None` if the connection is closed.
    pub(super) async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = timeout(DEADLINE, self.0.read_line(&mut line))
            .await
            .expect("in time");
        (0 < read.unwrap()).then(|| line.trim_end().to_owned())
    }

    async fn exactly(&mut self, length: usize) -> String {
        String::from_utf8(self.bytes(length).await).unwrap()
    }
}
