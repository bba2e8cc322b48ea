//! A backend with endless responses, that reads no body.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use anyhow::Result;
use causeway_tests::harness::loopback;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::watch,
};

use super::{Tasks, flood, socket};

/// A response without an end.
pub(crate) const ENDLESS: &str = "/endless";
/// A request whose body is not read.
pub(crate) const UNREAD: &str = "/unread";
/// A WebSocket on which the backend does not stop to send.
pub(crate) const FLOOD: &str = "/flood";
/// A WebSocket that gets back what it sends, until one of the two closes it.
pub(crate) const ECHO: &str = "/echo";
/// A WebSocket that the backend refuses.
pub(crate) const REFUSED: &str = "/refused";

/// As long as the largest file.
const LENGTH: u64 = i64::MAX as u64;

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                      Connection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";

#[derive(Debug, Default)]
struct Counts {
    stuck: AtomicUsize,
    sent: AtomicU64,
}

/// The backend, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
    go: watch::Sender<bool>,
    /// The accepting task, which owns the serving ones.
    _tasks: Tasks,
}

impl Backend {
    pub(super) fn start() -> Result<Self> {
        let socket = socket()?;
        socket.bind(loopback::own_any_port())?;
        // Those that it accepts have its buffers.
        let listener = socket.listen(1024)?;
        let address = listener.local_addr()?;
        let counts = Arc::<Counts>::default();
        let (go, goes) = watch::channel(false);
        let (mut tasks, shared) = (Tasks::new(), Arc::clone(&counts));
        tasks.spawn(async move {
            let mut serving = Tasks::new();
            loop {
                tokio::select! {
                    Some(_) = serving.join_next() => {}
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        serving.spawn(serve(stream, Arc::clone(&shared), goes.clone()));
                    }
                }
            }
        });
        Ok(Self {
            address,
            counts,
            go,
            _tasks: tasks,
        })
    }

    /// How many endless requests have come.
    pub(super) fn stuck(&self) -> usize {
        self.counts.stuck.load(Ordering::Relaxed)
    }

    /// How many bytes of endless responses have gone out.
    pub(super) fn sent(&self) -> u64 {
        self.counts.sent.load(Ordering::Relaxed)
    }

    /// Lets all that waits go on behind the heads of their responses.
    pub(super) fn go(&self) {
        self.go.send_replace(true);
    }
}

async fn serve(mut stream: TcpStream, counts: Arc<Counts>, mut goes: watch::Receiver<bool>) {
    while let Some(target) = head(&mut stream).await {
        let response = match &*target {
            ENDLESS => format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"),
            FLOOD | ECHO => SWITCH.to_owned(),
            UNREAD => String::new(),
            REFUSED => "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_owned(),
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        };
        if stream.write_all(response.as_bytes()).await.is_err() {
            return;
        }
        match &*target {
            ENDLESS | FLOOD => {
                counts.stuck.fetch_add(1, Ordering::Relaxed);
                if goes.wait_for(|goes| *goes).await.is_ok() {
                    flood(&mut stream, &counts.sent).await;
                }
                return;
            }
            UNREAD => {
                counts.stuck.fetch_add(1, Ordering::Relaxed);
                // Until the backend ends.
                return std::future::pending().await;
            }
            ECHO => {
                let (mut reading, mut writing) = stream.split();
                let _ = tokio::io::copy(&mut reading, &mut writing).await;
                return;
            }
            _ => {}
        }
    }
}

/// The target of the request that comes next, read to the end of its head and not further. `None` at the end of the connection.
async fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&head);
    Some(head.split(' ').nth(1)?.to_owned())
}
