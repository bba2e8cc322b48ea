//! A backend that reads its requests byte by byte, and takes nothing in doubt.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use bytes::BytesMut;
use causeway_tests::harness::loopback;
use ring::digest::{Context as Digest, SHA256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    backend::{Framing, excerpt, find, framing, parse_field, parse_head},
    exchange::Seen,
};

/// Pieces of a response in chunks.
const CHUNK: usize = 20_000;

/// The most faults that are kept.
const FAULTS_MAX: usize = 50;

#[derive(Debug, Default)]
struct Counts {
    requests: usize,
    cut: usize,
    faults: Vec<String>,
}

/// The backend.
#[derive(Debug)]
pub(super) struct Checker {
    pub(super) address: SocketAddr,
    counts: Arc<Mutex<Counts>>,
    /// The accepting task, which owns the serving ones.
    _tasks: JoinSet<()>,
}

impl Checker {
    pub(super) async fn start() -> Result<Self> {
        let listener = TcpListener::bind(loopback::own_any_port()).await?;
        let address = listener.local_addr()?;
        let counts = Arc::<Mutex<Counts>>::default();
        let (mut tasks, shared) = (JoinSet::new(), Arc::clone(&counts));
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                tokio::select! {
                    Some(_) = serving.join_next() => {}
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        stream.set_nodelay(true).ok();
                        let connection = Connection { stream, unread: BytesMut::new() };
                        serving.spawn(connection.serve(Arc::clone(&shared)));
                    }
                }
            }
        });
        Ok(Self {
            address,
            counts,
            _tasks: tasks,
        })
    }

    /// Requests that came whole.
    pub(super) fn requests(&self) -> usize {
        lock(&self.counts).requests
    }

    /// Requests that ended within their bodies.
    pub(super) fn cut(&self) -> usize {
        lock(&self.counts).cut
    }

    pub(super) fn faults(&self) -> Vec<String> {
        lock(&self.counts).faults.clone()
    }
}

fn lock(counts: &Mutex<Counts>) -> MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Connection {
    stream: TcpStream,
    unread: BytesMut,
}

/// Why a connection goes no further.
enum Stop {
    /// It has ended within a request.
    Cut,
    /// Something came that is no request.
    Fault(String),
}

impl Connection {
    async fn serve(mut self, counts: Arc<Mutex<Counts>>) {
        loop {
            match self.request().await {
                Ok(None) => return,
                Ok(Some(response)) => {
                    lock(&counts).requests += 1;
                    if self.stream.write_all(&response).await.is_err() {
                        return;
                    }
                }
                Err(Stop::Cut) => {
                    lock(&counts).cut += 1;
                    return;
                }
                Err(Stop::Fault(fault)) => {
                    let mut counts = lock(&counts);
                    if counts.faults.len() < FAULTS_MAX {
                        counts.faults.push(fault);
                    }
                    return;
                }
            }
        }
    }

    /// Reads a request; returns the response to it. `None` at the end of the connection.
    async fn request(&mut self) -> Result<Option<Vec<u8>>, Stop> {
        let head = loop {
            if let Some(end) = find(&self.unread, b"\r\n\r\n") {
                break self.unread.split_to(end + 4);
            }
            if self.fill().await.is_err() {
                return if self.unread.is_empty() {
                    Ok(None)
                } else {
                    Err(Stop::Fault(format!(
                        "half a head: {}",
                        excerpt(&self.unread)
                    )))
                };
            }
        };
        let wrong = |fault: String| Stop::Fault(format!("{fault} in {}", excerpt(&head)));
        let seen = parse_head(&head).map_err(wrong)?;
        if !seen.values("expect").is_empty() {
            let sent = self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
            sent.await.map_err(|_| Stop::Cut)?;
        }
        let (bytes, sum) = self.body(framing(&seen).map_err(wrong)?).await?;
        let value = |name: &str| seen.values(name).concat();
        if value("x-sum") != sum {
            return Err(wrong(format!(
                "a body of {bytes} bytes that adds up to {sum}"
            )));
        }
        Ok(Some(response(&seen, bytes, &sum)))
    }

    /// How many bytes of a body came, and what they add up to.
    async fn body(&mut self, framing: Framing) -> Result<(usize, String), Stop> {
        let mut digest = Digest::new(&SHA256);
        let mut bytes = 0;
        match framing {
            Framing::Over => {}
            Framing::Length(length) => {
                self.content(length, &mut digest).await?;
                bytes = length;
            }
            Framing::Chunks => loop {
                let line = self.line().await?;
                let size = std::str::from_utf8(&line).unwrap_or_default();
                let digits = !size.is_empty()
                    && size.len() < 16
                    && size.bytes().all(|byte| byte.is_ascii_hexdigit());
                let size = usize::from_str_radix(size, 16).ok().filter(|_| digits);
                let size =
                    size.ok_or_else(|| Stop::Fault(format!("a chunk of size {}", excerpt(&line))))?;
                if size == 0 {
                    break self.trailers().await?;
                }
                self.content(size, &mut digest).await?;
                bytes += size;
                let end = self.line().await?;
                if !end.is_empty() {
                    return Err(Stop::Fault(format!("{} behind a chunk", excerpt(&end))));
                }
            },
        }
        let sum = digest.finish();
        let digits = sum.as_ref().iter().map(|byte| format!("{byte:02x}"));
        Ok((bytes, digits.collect()))
    }

    async fn content(&mut self, bytes: usize, digest: &mut Digest) -> Result<(), Stop> {
        let mut left = bytes;
        while 0 < left {
            if self.unread.is_empty() {
                self.fill().await?;
            }
            let come = self.unread.split_to(left.min(self.unread.len()));
            digest.update(&come);
            left -= come.len();
        }
        Ok(())
    }

    async fn trailers(&mut self) -> Result<(), Stop> {
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(());
            }
            if parse_field(&String::from_utf8_lossy(&line)).is_none() {
                return Err(Stop::Fault(format!("the trailer {}", excerpt(&line))));
            }
        }
    }

    async fn line(&mut self) -> Result<Vec<u8>, Stop> {
        loop {
            if let Some(end) = find(&self.unread, b"\r\n") {
                let line = self.unread.split_to(end + 2);
                return Ok(line[..end].to_vec());
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), Stop> {
        match self.stream.read_buf(&mut self.unread).await {
            Ok(1..) => Ok(()),
            _ => Err(Stop::Cut),
        }
    }
}

/// Says whose it is, and is as long as the request wants it.
fn response(seen: &Seen, bytes: usize, sum: &str) -> Vec<u8> {
    let value = |name: &str| seen.values(name).concat();
    let id = value("x-id");
    let filler = "x".repeat(value("x-response").parse().unwrap_or_default());
    let body = format!("{id} {bytes} {sum}\n{filler}");
    let head = format!("HTTP/1.1 200 OK\r\nx-id: {id}\r\nx-sum: {sum}\r\n");
    if value("x-chunked").is_empty() {
        return format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes();
    }
    let mut response = format!("{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
    for piece in body.as_bytes().chunks(CHUNK) {
        response.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        response.extend_from_slice(piece);
        response.extend_from_slice(b"\r\n");
    }
    response.extend_from_slice(b"0\r\n\r\n");
    response
}
