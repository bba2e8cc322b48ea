//! Clients from another address, who go on with what they do.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use causeway_tests::harness::{
    tls::{connect_from, handshake},
    wait,
    websocket::KEY,
};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

const SOURCE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// For one response. Nobody notices anything: not even on a slow machine is this missed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two requests of one client.
const PACE: Duration = Duration::from_millis(20);

/// How many responses show that a client goes on.
const ENOUGH: u64 = 5;

/// What they do.
const KINDS: [&str; 5] = ["requests", "connections", "https", "ws", "wss"];

/// The clients, each a task that fails with the first thing that goes wrong.
pub(crate) struct Bystanders {
    served: Arc<[AtomicU64; KINDS.len()]>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<Result<()>>,
}

impl Bystanders {
    pub(crate) fn start(plain: SocketAddr, tls: SocketAddr, clients: &Arc<ClientConfig>) -> Self {
        let served: Arc<[AtomicU64; KINDS.len()]> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for kind in 0..KINDS.len() {
            let (served, stop, clients) =
                (Arc::clone(&served), Arc::clone(&stop), Arc::clone(clients));
            tasks.spawn(async move {
                let going_on = || {
                    served[kind].fetch_add(1, Ordering::Relaxed);
                    !stop.load(Ordering::Relaxed)
                };
                let done = match KINDS[kind] {
                    "requests" => requests(plain, going_on).await,
                    "connections" => connections(plain, going_on).await,
                    "https" => https(tls, &clients, going_on).await,
                    "ws" => echoes(connect_from(SOURCE, plain).await?, going_on).await,
                    _ => {
                        echoes(
                            handshake(&clients, connect_from(SOURCE, tls).await?).await?,
                            going_on,
                        )
                        .await
                    }
                };
                done.with_context(|| KINDS[kind])
            });
        }
        Self {
            served,
            stop,
            tasks,
        }
    }

    /// Waits until each of them has been served several times more.
    pub(crate) async fn all_go_on(&mut self) -> Result<()> {
        let count = |kind: usize| self.served[kind].load(Ordering::Relaxed);
        let before: Vec<u64> = (0..KINDS.len()).map(count).collect();
        let going_on = wait::until("all bystanders to be served", wait::SOON, async || {
            (0..KINDS.len())
                .all(|kind| before[kind] + ENOUGH <= count(kind))
                .then_some(())
        });
        tokio::select! {
            biased;
            Some(ended) = self.tasks.join_next() => bail!("a bystander has ended: {:?}", ended?),
            gone_on = going_on => gone_on,
        }
    }

    /// Ends them all. How often each kind was served.
    pub(crate) async fn stop(mut self) -> Result<Vec<(&'static str, u64)>> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(KINDS
            .iter()
            .zip(&*self.served)
            .map(|(kind, served)| (*kind, served.load(Ordering::Relaxed)))
            .collect())
    }
}

/// One connection, request after request.
async fn requests(address: SocketAddr, going_on: impl Fn() -> bool) -> Result<()> {
    let mut stream = connect_from(SOURCE, address).await?;
    loop {
        ask(&mut stream, "keep-alive").await?;
        if !going_on() {
            return Ok(());
        }
        sleep(PACE).await;
    }
}

/// A connection for each request.
async fn connections(address: SocketAddr, going_on: impl Fn() -> bool) -> Result<()> {
    loop {
        ask(&mut connect_from(SOURCE, address).await?, "close").await?;
        if !going_on() {
            return Ok(());
        }
        sleep(PACE).await;
    }
}

/// A handshake for each request.
async fn https(
    address: SocketAddr,
    clients: &Arc<ClientConfig>,
    going_on: impl Fn() -> bool,
) -> Result<()> {
    loop {
        let stream = connect_from(SOURCE, address).await?;
        ask(&mut handshake(clients, stream).await?, "close").await?;
        if !going_on() {
            return Ok(());
        }
        sleep(PACE).await;
    }
}

/// One tunnel, message after message.
async fn echoes(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    going_on: impl Fn() -> bool,
) -> Result<()> {
    let head = format!(
        "GET /echo/websocket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let response = read_until(&mut stream, b"\r\n\r\n").await?;
    if !response.starts_with(b"HTTP/1.1 101 ") {
        bail!("no WebSocket: {}", response.escape_ascii());
    }
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    for number in 0_u64.. {
        socket.send(Message::text(number.to_string())).await?;
        // The node asks tunnels whether they live.
        let echo = loop {
            let message = timeout(PATIENCE, socket.next()).await;
            let message = message
                .context("no echo in time")?
                .context("the tunnel has ended")??;
            if !message.is_ping() {
                break message;
            }
        };
        if echo.to_text()? != number.to_string() {
            bail!("{number} came back as {echo:?}");
        }
        if !going_on() {
            break;
        }
        sleep(PACE).await;
    }
    Ok(())
}

/// A GET and its response, which must be 200.
async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), connection: &str) -> Result<()> {
    let head = format!("GET /echo HTTP/1.1\r\nHost: a\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let response = read_until(stream, b"\r\n\r\n").await?;
    if !response.starts_with(b"HTTP/1.1 200 ") {
        bail!("not served: {}", response.escape_ascii());
    }
    let text = String::from_utf8_lossy(&response).to_ascii_lowercase();
    let length = text
        .split("content-length: ")
        .nth(1)
        .and_then(|rest| rest.split("\r\n").next()?.parse().ok());
    let mut body = vec![0; length.context("a response without a length")?];
    timeout(PATIENCE, stream.read_exact(&mut body))
        .await
        .context("no body in time")??;
    Ok(())
}

/// Reads byte by byte, so that nothing behind it is read.
async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &[u8]) -> Result<Vec<u8>> {
    let mut read = Vec::new();
    let reading = async {
        while !read.ends_with(end) {
            read.push(stream.read_u8().await?);
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, reading)
        .await
        .context("no response in time")??;
    Ok(read)
}
