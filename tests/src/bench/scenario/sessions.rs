//! Memory of SockJS sessions over HTTP: between two polls, with a poll that waits, and after their clients
//! have gone.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use async_trait::async_trait;
use tokio::time;

use crate::bench::Options;
use crate::bench::contender::causeway;
use crate::bench::contender::{Contender, Contenders, Running};
use crate::bench::report::Figure;
use crate::bench::scenario::measuring::Memory;
use crate::bench::scenario::{Scenario, Stage, explained};

/// Where sessions outlive the measurement.
pub(crate) const LASTING: &str = "/polling";
/// Where sessions end soon after their clients have left.
pub(crate) const BRIEF: &str = "/abandoned";

/// What a browser sends with each request.
const HEADERS: &str = "Host: bench\r\nOrigin: http://bench\r\nReferer: http://bench/chat\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0\r\n\
    Accept: */*\r\nAccept-Encoding: gzip, deflate\r\nAccept-Language: en-US,en;q=0.9\r\n";

/// How long a response, or the end of sessions, may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the allocator may take to give back what it holds.
const RETURN: Duration = Duration::from_secs(15);

/// Sessions of clients that poll.
pub(super) struct Polling;
/// Sessions of clients that have gone.
pub(super) struct Abandoned;

pub(super) static POLLING: Polling = Polling;
pub(super) static ABANDONED: Abandoned = Abandoned;

const POLLING_CLIENTS: usize = 4_000;
const ABANDONED_CLIENTS: usize = 20_000;

#[async_trait(?Send)]
impl Scenario for Polling {
    fn name(&self) -> &'static str {
        "node-polling"
    }

    fn title(&self) -> &'static str {
        "relay: SockJS session that polls"
    }

    fn work(&self, options: &Options) -> String {
        let clients = options.clients(POLLING_CLIENTS);
        format!("{clients} SockJS clients that poll, idle")
    }

    fn contenders(&self) -> Contenders {
        &[&causeway::Node]
    }

    fn peer(&self) -> &'static str {
        "causeway-node"
    }

    fn shown(&self) -> &'static [&'static str] {
        &[]
    }

    fn rounds(&self) -> usize {
        1
    }

    async fn measure(&self, contender: &dyn Contender, options: &Options) -> Result<Vec<Figure>> {
        let stage = Stage::new(options)?;
        let server = contender.start(&stage.place()).await?;
        let figures = polling(&server, options.clients(POLLING_CLIENTS), options).await;
        explained(&server, figures)
    }
}

#[async_trait(?Send)]
impl Scenario for Abandoned {
    fn name(&self) -> &'static str {
        "node-abandoned"
    }

    fn title(&self) -> &'static str {
        "relay: SockJS session whose client has gone"
    }

    fn work(&self, options: &Options) -> String {
        let clients = options.sessions(ABANDONED_CLIENTS);
        format!("{clients} SockJS sessions whose clients do not come back")
    }

    fn contenders(&self) -> Contenders {
        &[&causeway::Node]
    }

    fn peer(&self) -> &'static str {
        "causeway-node"
    }

    fn shown(&self) -> &'static [&'static str] {
        &[]
    }

    fn rounds(&self) -> usize {
        1
    }

    async fn measure(&self, contender: &dyn Contender, options: &Options) -> Result<Vec<Figure>> {
        let stage = Stage::new(options)?;
        let server = contender.start(&stage.place()).await?;
        let figures = abandoned(&server, options.sessions(ABANDONED_CLIENTS), options).await;
        explained(&server, figures)
    }
}

/// Reads memory of sessions without a connection, with a kept one, and with a poll that waits.
async fn polling(server: &Running, clients: usize, options: &Options) -> Result<Vec<Figure>> {
    let mut caller = Caller::connect(server.address)?;
    caller.open(&format!("{LASTING}/0/first"))?;
    let memory = Memory::new(server)?;
    let session = |number: usize| format!("{LASTING}/0/s{number}");
    for number in 0..clients {
        caller.open(&session(number))?;
    }
    time::sleep(options.settle()).await;
    let between = memory.per_client(clients)?;

    let mut callers = Vec::new();
    for number in 0..clients {
        let mut caller = Caller::connect(server.address)?;
        caller.ask("POST", &format!("{}/xhr_send", session(number)), "[]")?;
        caller.response()?;
        callers.push(caller);
    }
    time::sleep(options.settle()).await;
    let kept = memory.per_client(clients)?;

    for (number, waiting) in callers.iter_mut().enumerate() {
        waiting.ask("POST", &format!("{}/xhr", session(number)), "")?;
    }
    time::sleep(options.settle()).await;
    let parked = memory.per_client(clients)?;

    for (number, waiting) in callers.iter_mut().enumerate() {
        let send = format!("{}/xhr_send", session(number));
        caller.ask("POST", &send, "[\"x\"]")?;
        caller.response()?;
        let frame = waiting.response()?;
        ensure!(frame == "a[\"x\"]\n", "the poll was answered {frame:?}");
    }
    Ok(vec![
        Figure::kilobytes("between polls", between),
        Figure::kilobytes("between polls, connection kept", kept),
        Figure::kilobytes("with a parked poll", parked),
    ])
}

/// Reads memory of sessions whose clients never come back, and what is left when they are over.
async fn abandoned(server: &Running, clients: usize, options: &Options) -> Result<Vec<Figure>> {
    let mut caller = Caller::connect(server.address)?;
    caller.open(&format!("{LASTING}/0/first"))?;
    let memory = Memory::new(server)?;
    for number in 0..clients {
        caller.open(&format!("{BRIEF}/0/s{number}"))?;
    }
    let alive = memory.per_client(clients)?;
    let start = Instant::now();
    let admin = server.admin.context("a node has an admin listener")?;
    while sessions(admin)? != 1 {
        ensure!(start.elapsed() < PATIENCE, "sessions do not end");
        time::sleep(Duration::from_millis(100)).await;
    }
    let rest = if options.quick {
        options.settle()
    } else {
        RETURN
    };
    time::sleep(rest).await;
    let left = memory.per_client(clients)?;
    Ok(vec![
        Figure::kilobytes("abandoned", alive),
        Figure::kilobytes("left of each when gone", left),
    ])
}

/// How many sessions a node counts.
fn sessions(admin: SocketAddr) -> Result<usize> {
    let mut caller = Caller::connect(admin)?; // A connection carries one request.
    caller.ask("GET", "/metrics", "")?;
    let text = caller.response()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("causeway_node_sessions "));
    Ok(line.context("sessions are not counted")?.parse()?)
}

/// A connection of a client that polls.
pub(crate) struct Caller {
    stream: TcpStream,
    /// What was read and belongs to the next response.
    read: Vec<u8>,
}

impl Caller {
    /// Connects to a node, or to an edge before one.
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let read = Vec::new();
        Ok(Self { stream, read })
    }

    /// Opens a session by its first poll.
    pub(crate) fn open(&mut self, session: &str) -> Result<()> {
        self.ask("POST", &format!("{session}/xhr"), "")?;
        let frame = self.response()?;
        ensure!(
            frame == "o\n",
            "the first poll of {session} was answered {frame:?}"
        );
        Ok(())
    }

    fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<()> {
        let length = body.len();
        let request =
            format!("{method} {path} HTTP/1.1\r\n{HEADERS}Content-Length: {length}\r\n\r\n{body}");
        Ok(self.stream.write_all(request.as_bytes())?)
    }

    /// Reads the body of a response that says its length, or has none.
    fn response(&mut self) -> Result<String> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut response = httparse::Response::new(&mut headers);
            if let httparse::Status::Complete(head) = response.parse(&self.read)? {
                let code = response.code.unwrap_or(0);
                ensure!((200..300).contains(&code), "a request was answered {code}");
                let length = response
                    .headers
                    .iter()
                    .find(|header| header.name.eq_ignore_ascii_case("content-length"));
                let length = match length {
                    Some(length) => std::str::from_utf8(length.value)?.parse()?,
                    None => 0,
                };
                if head + length <= self.read.len() {
                    let body = String::from_utf8(self.read[head..head + length].to_vec())?;
                    self.read.drain(..head + length);
                    return Ok(body);
                }
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes)? {
                0 => bail!("the server closed the connection"),
                count => self.read.extend_from_slice(&bytes[..count]),
            }
        }
    }
}
