//! Clients that are stuck, 400 at a time: they read nothing of a response without an end, or send a body that no backend reads. What
//! the edge holds for them is bounded, and gone when they leave.
//!
//! Nothing is read only once every request has had the head of its response, or every upload has reached its backend. The memory is
//! read when no byte moves any more.

#[path = "stuck/backend.rs"]
pub(crate) mod backend;
#[path = "stuck/http1.rs"]
mod http1;
#[path = "stuck/http2.rs"]
pub(crate) mod http2;
#[path = "stuck/site.rs"]
mod site;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{descriptors, http, memory, wait};
use serde_json::json;
use socket2::SockRef;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt as _},
    net::TcpSocket,
    task::JoinSet,
};

pub(crate) use self::{http2::Client as Http2Client, site::Site};

/// How many connections of HTTP/2 there are, and how many streams each of them has; and how many connections of HTTP/1.1.
pub(crate) const CLIENTS: usize = 4;
pub(crate) const STREAMS: usize = 100;
const ALL: usize = CLIENTS * STREAMS;

/// How much the edge may grow for all of them: for each, 164 KiB.
const GROWTH_MAX: u64 = 64 * 1024 * 1024;
/// The same for tunnels: each holds what it has read at once, 64 KiB, and as much in its stream (`limits.http2_send_buffer`).
const TUNNEL_GROWTH_MAX: u64 = 80 * 1024 * 1024;

/// For all of them to be there, and for nothing to move any more, on a machine that has much else to do.
const LONG: Duration = Duration::from_secs(120);

/// How often in a row the count of bytes has to be the same for nothing to move any more, and how often it is looked at.
const STILL: usize = 20;
const LOOK: Duration = Duration::from_millis(50);

/// What the clients are stuck with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A response that they do not read.
    Response,
    /// A request that their backend does not read.
    Upload,
    /// A WebSocket that they do not read.
    Tunnel,
}

/// What they speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Plain,
    Tls,
    /// HTTP/2, and flow control holds up what is not read.
    Http2,
    /// HTTP/2 with windows that never fill: the socket is not read.
    Http2WideOpen,
}

/// The clients of one run. Dropped, they leave.
enum Clients {
    Http1(http1::Clients),
    Http2(Vec<Http2Client>),
}

/// Has all of them stuck on an edge of their own, and returns what that came to, for a person.
///
/// # Errors
///
/// The edge has grown by more than it may, keeps something of them once they have left, or serves them wrongly.
pub(crate) async fn run(kind: Kind, wire: Wire) -> Result<String> {
    descriptors::raise_limit()?;
    // None of them is to be closed because it is stuck, and what is bounded is not bounded by a limit of their number.
    let site = Site::start(|settings| {
        settings
            .with("timeouts.downstream_write", json!("10m"))
            .with("timeouts.downstream_read", json!("10m"))
            .with("timeouts.upstream_read", json!("10m"))
            .with("timeouts.upstream_write", json!("10m"))
            .with("timeouts.request_body_rate", json!("off"))
    });
    let mut site = site.await?;
    site.warm_up().await?;
    let before = memory::pss(site.edge.process.pid())?;

    let clients = match wire {
        Wire::Plain | Wire::Tls => {
            let opened = http1::open(&site, kind, wire == Wire::Tls);
            Clients::Http1(opened.await?)
        }
        Wire::Http2 | Wire::Http2WideOpen => {
            Clients::Http2(http2::open(&site, kind, wire == Wire::Http2WideOpen).await?)
        }
    };
    let all_there = wait::until("all requests to reach the backend", LONG, async || {
        (site.backend.stuck() == ALL).then_some(())
    });
    all_there
        .await
        .with_context(|| format!("{} have", site.backend.stuck()))?;
    site.backend.go();
    still(|| site.backend.sent() + clients.sent()).await?;
    let held = memory::pss(site.edge.process.pid())?.saturating_sub(before);
    let moved = site.backend.sent() + clients.sent();

    let page = http::get(site.edge.admin, "/metrics").await?.text();
    let open = open_of(kind, &page);
    let (kib, each) = (held / 1024, held as f64 / 1024.0 / ALL as f64);
    let text = format!(
        "{kind:?} over {wire:?}: {ALL} stuck with {} KiB sent, the edge +{kib} KiB, {each:.1} KiB each",
        moved / 1024
    );
    ensure!(open == ALL, "{open} are open: {text}");
    ensure!(0 < moved, "nothing was sent: {text}");
    let most = match kind {
        Kind::Response | Kind::Upload => GROWTH_MAX,
        Kind::Tunnel => TUNNEL_GROWTH_MAX,
    };
    ensure!(held <= most, "more than {} KiB: {text}", most / 1024);
    drop(clients);
    site.nothing_left().await.with_context(|| text.clone())?;
    ensure!(site.edge.process.is_running(), "the edge has ended: {text}");
    Ok(text)
}

impl Clients {
    /// How many bytes of their bodies they have got rid of.
    fn sent(&self) -> u64 {
        match self {
            Self::Http1(clients) => clients.sent(),
            Self::Http2(clients) => clients.iter().map(Http2Client::sent).sum(),
        }
    }
}

/// How many requests or tunnels of the clients the edge has open.
fn open_of(kind: Kind, page: &str) -> usize {
    let name = match kind {
        Kind::Response | Kind::Upload => "causeway_proxy_requests_in_flight{backend=\"b1\"}",
        Kind::Tunnel => "causeway_proxy_tunnels_open{backend=\"b1\"}",
    };
    value(page, name).unwrap_or_default()
}

/// The value of a metric, by its name and labels.
pub(crate) fn value(page: &str, name: &str) -> Option<usize> {
    let line = page.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().parse().ok()
}

/// Waits until a count has come to rest.
async fn still(count: impl Fn() -> u64) -> Result<()> {
    let (mut last, mut times) = (count(), 0);
    let mut pace = tokio::time::interval(LOOK);
    wait::until("nothing to move any more", LONG, async || {
        pace.tick().await;
        let now = count();
        times = if now == last { times + 1 } else { 0 };
        last = now;
        (STILL <= times).then_some(())
    })
    .await
}

/// How many bytes the piece has that a flood repeats.
const PIECE: usize = 16 * 1024;

/// Sends without an end, and counts what is taken: WebSocket frames, where somebody looks at it.
async fn flood(stream: &mut (impl AsyncWrite + Unpin), sent: &AtomicU64) {
    let mut piece = vec![b'x'; PIECE];
    // A whole binary message (RFC 6455, 5.2), with the length behind two bytes.
    let [high, low] = ((PIECE - 4) as u16).to_be_bytes();
    piece[..4].copy_from_slice(&[0x82, 126, high, low]);
    let mut at = 0;
    while let Ok(count @ 1..) = stream.write(&piece[at..]).await {
        sent.fetch_add(count as u64, Ordering::Relaxed);
        at = (at + count) % PIECE;
        if stream.flush().await.is_err() {
            return;
        }
    }
}

/// A socket for which the kernel holds little at both ends, as that is no concern of the edge: its buffers are small, and so are the
/// segments that it asks for. With those of the loopback interface the other end would be given buffers of megabytes.
fn socket() -> Result<TcpSocket> {
    const BUFFER: u32 = 32 * 1024;
    const SEGMENT: u32 = 1460;
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_send_buffer_size(BUFFER)?;
    SockRef::from(&socket).set_tcp_mss(SEGMENT)?;
    Ok(socket)
}

/// Tasks that end with what they belong to.
type Tasks = JoinSet<()>;
