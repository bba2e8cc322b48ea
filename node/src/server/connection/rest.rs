//! A waiting poll on a connection without hyper, and its response.

use std::io;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;
use http::HeaderValue;
use http::Response;
use http::header;
use tokio::io::AsyncWriteExt;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time;
use tracing::debug;

use crate::server::Server;
use crate::server::connection::Socket;
use crate::server::connection::progress::STRIDE_BYTES;
use crate::server::routing::WaitingPoll;

/// How often a connection whose next request is already there is checked for its end.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Waits for the response of `poll` and writes it. `None`: the connection is finished.
///
/// # Cancel safety
///
/// Dropping this future interrupts the session.
pub(super) async fn rest(
    server: &Arc<Server>,
    mut socket: Socket,
    poll: WaitingPoll,
) -> Option<Socket> {
    let mut response = tokio::select! {
        biased;
        response = poll => response,
        () = gone(&socket.stream) => return None,
    };
    let is_kept = server.sign(response.headers_mut());
    if !is_kept {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    let bytes = encode(&response);
    drop(response);
    let timeout = server.config.limits.get().send_timeout;
    if let Err(error) = write(&mut socket.stream, &bytes, timeout).await {
        debug!(%error, "the client does not read its response");
        return None;
    }
    if !is_kept {
        let _ = socket.stream.shutdown().await; // The client may have closed it already.
        return None;
    }
    Some(socket)
}

/// Returns when the client has closed its connection, or it has broken.
async fn gone(stream: &TcpStream) {
    if !matches!(stream.peek(&mut [0]).await, Ok(1..)) {
        return;
    }
    // The client has sent another request already: only readiness shows that it has closed after that.
    loop {
        time::sleep(LOOK_INTERVAL).await;
        match stream.ready(Interest::READABLE).await {
            Ok(ready) if !ready.is_read_closed() => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// The response in HTTP/1.1 (RFC 9112), with a persistent connection.
fn encode(response: &Response<Bytes>) -> Bytes {
    let (status, body) = (response.status(), response.body());
    let mut out = BytesMut::with_capacity(512 + body.len());
    let reason = status.canonical_reason().unwrap_or_default();
    out.put_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
    for (name, value) in response.headers() {
        out.put_slice(name.as_str().as_bytes());
        out.put_slice(b": ");
        out.put_slice(value.as_bytes());
        out.put_slice(b"\r\n");
    }
    let date = httpdate::fmt_http_date(SystemTime::now());
    let rest = format!("content-length: {}\r\ndate: {date}\r\n\r\n", body.len());
    out.put_slice(rest.as_bytes());
    out.put_slice(body);
    out.freeze()
}

/// Writes `bytes`; the client may take `timeout` for each stride of them.
async fn write(stream: &mut TcpStream, bytes: &[u8], timeout: Duration) -> io::Result<()> {
    for stride in bytes.chunks(STRIDE_BYTES) {
        time::timeout(timeout, stream.write_all(stride)).await??;
    }
    Ok(())
}
