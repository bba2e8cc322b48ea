//! Connections of HTTP/1.1, plain or over TLS, with one request each.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::tls;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::{
    ALL, Kind, Site, Tasks,
    backend::{ENDLESS, FLOOD, UNREAD},
    flood, socket,
};

/// What a client reads and writes.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// All connections. Dropped, they are closed.
pub(super) struct Clients {
    sent: Arc<AtomicU64>,
    /// They do not read.
    _open: Vec<Box<dyn Io>>,
    /// They do not stop to send.
    _sending: Tasks,
}

impl Clients {
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// Opens all of them, and returns when each has had the head of its response, or sends its body.
pub(super) async fn open(site: &Site, kind: Kind, over_tls: bool) -> Result<Clients> {
    let sent = Arc::<AtomicU64>::default();
    let (mut open, mut sending) = (Vec::new(), Tasks::new());
    for number in 0..ALL {
        let mut stream = connect(site, over_tls).await?;
        stream.write_all(request(kind, number).as_bytes()).await?;
        stream.flush().await?;
        if kind == Kind::Upload {
            let sent = Arc::clone(&sent);
            sending.spawn(async move { flood(&mut stream, &sent).await });
            continue;
        }
        head(&mut stream, kind).await?;
        open.push(stream);
    }
    Ok(Clients {
        sent,
        _open: open,
        _sending: sending,
    })
}

async fn connect(site: &Site, over_tls: bool) -> Result<Box<dyn Io>> {
    if !over_tls {
        return Ok(Box::new(socket()?.connect(site.edge.address).await?));
    }
    let stream = socket()?.connect(site.tls).await?;
    Ok(Box::new(tls::handshake(&site.http1, stream).await?))
}

/// Bodies of both framings, in turn.
fn request(kind: Kind, number: usize) -> String {
    match kind {
        Kind::Response => format!("GET {ENDLESS} HTTP/1.1\r\nHost: a\r\n\r\n"),
        Kind::Tunnel => format!(
            "GET {FLOOD} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        ),
        Kind::Upload => {
            let (framing, chunk) = match number.is_multiple_of(2) {
                true => ("Content-Length: 9000000000000", ""),
                // One chunk without an end.
                false => ("Transfer-Encoding: chunked", "7fffffff\r\n"),
            };
            format!("POST {UNREAD} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{chunk}")
        }
    }
}

/// Reads the head of the response: nothing is sent behind it until later.
async fn head(stream: &mut dyn Io, kind: Kind) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = stream.read_buf(&mut head).await?;
        ensure!(0 < read, "the edge closed behind {head:?}");
    }
    let status = if kind == Kind::Tunnel { "101" } else { "200" };
    let text = String::from_utf8_lossy(&head);
    let wanted = text.starts_with(&format!("HTTP/1.1 {status} "));
    wanted.then_some(()).context(text.into_owned())
}
