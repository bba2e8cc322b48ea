//! Connections of HTTP/2 by the h2 crate, with many requests each.

use std::{
    future::{pending, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use causeway_tests::harness::{
    tls::{self, NAME},
    wait,
};
use h2::{
    Reason, RecvStream, SendStream,
    client::{Builder, SendRequest},
    ext::Protocol,
};
use http::{Method, Request};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    CLIENTS, Kind, LONG, PIECE, STREAMS, Site, Tasks,
    backend::{ENDLESS, FLOOD, UNREAD},
    socket,
};

/// What never fills: the largest window there is (RFC 9113, 6.9.1).
const WIDE_OPEN: u32 = (1 << 31) - 1;

/// One connection, and what is open on it. Dropped, all of it is closed.
pub(crate) struct Client {
    requests: SendRequest<Bytes>,
    sent: Arc<AtomicU64>,
    streams: Vec<Stream>,
    /// Those that do not stop to send.
    sending: Tasks,
    stops: CancellationToken,
    _driving: Tasks,
}

/// One request or tunnel.
pub(crate) struct Stream {
    send: SendStream<Bytes>,
    receive: RecvStream,
}

impl Stream {
    /// Ends it at once.
    pub(crate) fn reset(mut self) {
        self.send.send_reset(Reason::CANCEL);
    }

    /// Ends its own side, and waits for the end of the other.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        self.send.send_data(Bytes::new(), true)?;
        let end = async {
            while let Some(data) = self.receive.data().await {
                let data = data?;
                ensure!(data.is_empty(), "{data:?} came where the end was due");
            }
            Ok(())
        };
        timeout(LONG, end).await.context("no end")?
    }
}

/// Opens all of them, and returns when each request has had the head of its response, or its body is being sent.
pub(super) async fn open(site: &Site, kind: Kind, wide_open: bool) -> Result<Vec<Client>> {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut builder = Builder::new();
        if wide_open {
            builder
                .initial_window_size(WIDE_OPEN)
                .initial_connection_window_size(WIDE_OPEN);
        }
        let mut client = Client::connect(site, builder).await?;
        for _ in 0..STREAMS {
            match kind {
                Kind::Response => client.ask(ENDLESS).await?,
                Kind::Upload => client.upload(UNREAD).await?,
                Kind::Tunnel => {
                    let (status, stream) = client.tunnel(FLOOD).await?;
                    ensure!(status == 200, "the tunnel was answered {status}");
                    client.streams.extend(stream);
                }
            }
        }
        clients.push(client);
    }
    if wide_open {
        // From here on nothing is read from the sockets.
        for client in &clients {
            client.stops.cancel();
        }
    }
    Ok(clients)
}

impl Client {
    /// Connects as `builder` says.
    pub(crate) async fn connect(site: &Site, builder: Builder) -> Result<Self> {
        let stream = socket()?.connect(site.tls).await?;
        let stream = tls::handshake(&site.http2, stream).await?;
        let (requests, connection) = builder.handshake(stream).await?;
        let (stops, mut driving) = (CancellationToken::new(), Tasks::new());
        let stopped = stops.clone();
        driving.spawn(async move {
            let mut connection = pin!(connection);
            tokio::select! {
                biased;
                () = stopped.cancelled() => {}
                _ = &mut connection => return,
            }
            // It stays open, unread.
            pending::<()>().await;
        });
        let client = Self {
            requests,
            sent: Arc::default(),
            streams: Vec::new(),
            sending: Tasks::new(),
            stops,
            _driving: driving,
        };
        // They come with the settings of the edge.
        wait::until("extended CONNECT to be announced", wait::SOON, async || {
            let announced = client.requests.is_extended_connect_protocol_enabled();
            announced.then_some(())
        })
        .await?;
        Ok(client)
    }

    /// How many bytes of bodies have been sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Asks for `target` and reads all of a short response.
    pub(crate) async fn get(&self, target: &str) -> Result<()> {
        let (response, _) = self.send(Request::get(uri(target)).body(())?, true).await?;
        let response = timeout(LONG, response).await.context("no response")??;
        ensure!(response.status() == 200, "{}", response.status());
        let mut body = response.into_body();
        while let Some(data) = body.data().await {
            body.flow_control().release_capacity(data?.len())?;
        }
        Ok(())
    }

    /// Asks for `target`, and reads nothing behind the head of the response.
    async fn ask(&mut self, target: &str) -> Result<()> {
        let (response, send) = self.send(Request::get(uri(target)).body(())?, true).await?;
        let response = timeout(LONG, response).await.context("no response")??;
        ensure!(response.status() == 200, "{}", response.status());
        let receive = response.into_body();
        self.streams.push(Stream { send, receive });
        Ok(())
    }

    /// Sends a body without an end.
    async fn upload(&mut self, target: &str) -> Result<()> {
        let request = Request::post(uri(target)).body(())?;
        let (response, mut send) = self.send(request, false).await?;
        let sent = Arc::clone(&self.sent);
        self.sending.spawn(async move {
            let piece = Bytes::from_static(&[b'x'; PIECE]);
            loop {
                send.reserve_capacity(PIECE);
                let room = poll_fn(|cx| send.poll_capacity(cx)).await;
                let Some(Ok(room)) = room else { break };
                let data = piece.slice(..room.min(PIECE));
                let count = data.len() as u64;
                if send.send_data(data, false).is_err() {
                    break;
                }
                sent.fetch_add(count, Ordering::Relaxed);
            }
            drop(response);
        });
        Ok(())
    }

    /// Asks for a WebSocket; the status of the response, and the open tunnel if there is one.
    pub(crate) async fn tunnel(&self, target: &str) -> Result<(u16, Option<Stream>)> {
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri(uri(target))
            .header("sec-websocket-version", "13")
            .extension(Protocol::from_static("websocket"));
        let (response, send) = self.send(request.body(())?, false).await?;
        let response = timeout(LONG, response).await.context("no response")??;
        let status = response.status().as_u16();
        let receive = response.into_body();
        Ok((status, (status == 200).then_some(Stream { send, receive })))
    }

    async fn send(
        &self,
        request: Request<()>,
        is_over: bool,
    ) -> Result<(h2::client::ResponseFuture, SendStream<Bytes>)> {
        let mut requests = self.requests.clone().ready().await?;
        Ok(requests.send_request(request, is_over)?)
    }
}

fn uri(target: &str) -> String {
    format!("https://{NAME}{target}")
}
