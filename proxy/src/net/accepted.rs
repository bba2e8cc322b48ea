//! An accepted client connection.
//!
//! Pingora's own stream does not release its socket: a tunnel would have to duplicate it, which takes five system calls.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pingora::protocols::l4::socket::SocketAddr as PingoraAddress;
use pingora::protocols::l4::stream::Stream as Transport;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, SocketDigest, Ssl, TimingDigest, UniqueID,
    UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::net::pingora_stream::pingora_stream;

/// An accepted connection, without Pingora's buffering.
#[derive(Debug)]
pub(crate) struct Accepted {
    socket: TcpStream,
    digest: Arc<SocketDigest>,
}

impl Accepted {
    /// The connection of `peer`, accepted on `listening`. Both addresses are kept, so neither takes a system call later.
    pub(crate) fn new(socket: TcpStream, peer: SocketAddr, listening: SocketAddr) -> Self {
        let digest = SocketDigest::from_raw_fd(socket.as_raw_fd());
        // The digest is new, so no address is set yet.
        let _ = digest.peer_addr.set(Some(PingoraAddress::Inet(peer)));
        if !listening.ip().is_unspecified() {
            let _ = digest.local_addr.set(Some(PingoraAddress::Inet(listening)));
        }
        Self {
            socket,
            digest: Arc::new(digest),
        }
    }

    /// The bare socket.
    pub(crate) fn into_socket(self) -> TcpStream {
        self.socket
    }

    /// Makes closing the connection a reset, so that the peer sees that the data was truncated.
    pub(crate) fn reset_on_close(&self) {
        // This fails only if the connection is gone already.
        let _ = socket2::SockRef::from(&self.socket).set_linger(Some(std::time::Duration::ZERO));
    }

    /// The connection as a Pingora stream, which can put bytes back.
    pub(crate) fn into_transport(self) -> Transport {
        let mut transport = Transport::from(self.socket);
        if let Some(digest) = Arc::into_inner(self.digest) {
            transport.set_socket_digest(digest);
        }
        transport
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

impl Ssl for Accepted {}

impl UniqueID for Accepted {
    fn id(&self) -> UniqueIDType {
        self.socket.as_raw_fd()
    }
}

impl GetTimingDigest for Accepted {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Accepted {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Accepted {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.digest))
    }

    fn set_socket_digest(&mut self, digest: SocketDigest) {
        self.digest = Arc::new(digest);
    }
}

pingora_stream!([] Accepted);
