//! A backend that writes down what reaches it, and takes nothing that could be read in two ways.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use bytes::BytesMut;
use causeway_tests::harness::loopback;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What decides about a request is never said behind it.
const NO_TRAILERS: [&str; 9] = [
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "forwarded",
    "host",
    "trailer",
    "transfer-encoding",
    "x-real-ip",
];

/// One request, or what came instead of one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The request line, or `TUNNEL` for what came behind a 101.
    pub(crate) line: String,
    /// The headers; names are lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// The body, or what went through the tunnel.
    pub(crate) body: Vec<u8>,
    /// What a strict reader does not like about it.
    pub(crate) fault: Option<String>,
}

impl Seen {
    /// All values of this (lower-case) name.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(found, _)| found == name);
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The target in the request line.
    pub(crate) fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }
}

/// The backend.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// The accepting task, which owns the serving ones.
    _tasks: JoinSet<()>,
}

impl Recorder {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind(loopback::own_any_port()).await?;
        let address = listener.local_addr()?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut tasks, shared) = (JoinSet::new(), Arc::clone(&seen));
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                tokio::select! {
                    Some(_) = serving.join_next() => {}
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        let connection = Connection { stream, unread: BytesMut::new(), seen: Arc::clone(&shared) };
                        serving.spawn(connection.serve());
                    }
                }
            }
        });
        Ok(Self {
            address,
            seen,
            _tasks: tasks,
        })
    }

    /// What has come since the last call.
    pub(crate) fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Connection {
    stream: TcpStream,
    unread: BytesMut,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Connection {
    async fn serve(mut self) {
        self.stream.set_nodelay(true).ok();
        while let Some(head) = self.head().await {
            let mut seen = read_head(&head);
            // Written down before its body has come: it has got this far.
            let at = self.record(seen.clone());
            if seen.fault.is_none() {
                seen.fault = self.body(&mut seen).await.err();
            }
            let (target, faulty) = (seen.target().to_owned(), seen.fault.is_some());
            let (to_head, protocol) = (
                seen.line.starts_with("HEAD "),
                seen.values("upgrade").concat(),
            );
            self.amend(at, seen);
            if faulty {
                return;
            }
            if target.starts_with("/switch") && !protocol.is_empty() {
                return self.tunnel(&protocol).await;
            }
            let text = format!("behind: {target}\n");
            let mut response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", text.len());
            if !to_head {
                response.push_str(&text);
            }
            if self.stream.write_all(response.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn record(&self, seen: Seen) -> usize {
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(seen);
        all.len() - 1
    }

    /// Completes what was written down, unless it has been taken since.
    fn amend(&self, at: usize, seen: Seen) {
        let mut all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = all.get_mut(at).filter(|place| place.line == seen.line) {
            *place = seen;
        }
    }

    async fn tunnel(mut self, protocol: &str) {
        let response = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        );
        if self.stream.write_all(response.as_bytes()).await.is_err() {
            return;
        }
        while self.fill().await {}
        let body = self.unread.to_vec();
        self.record(Seen {
            line: "TUNNEL".to_owned(),
            body,
            ..Seen::default()
        });
    }

    async fn head(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = find(&self.unread, b"\r\n\r\n") {
                return Some(self.unread.split_to(end + 4).to_vec());
            }
            if !self.fill().await {
                if !self.unread.is_empty() {
                    let fault = Some(format!("half a head: {}", self.unread.escape_ascii()));
                    self.record(Seen {
                        line: "HALF".to_owned(),
                        fault,
                        ..Seen::default()
                    });
                }
                return None;
            }
        }
    }

    /// Reads the body that the head announces; an end before its end is no fault, but the edge's way to give up.
    async fn body(&mut self, seen: &mut Seen) -> Result<(), String> {
        if seen.values("transfer-encoding").is_empty() {
            let length = seen
                .values("content-length")
                .first()
                .map_or(Ok(0), |length| length.parse());
            let length: usize = length.map_err(|_| "a length that is no number".to_owned())?;
            while self.unread.len() < length && self.fill().await {}
            let came = length.min(self.unread.len());
            seen.body = self.unread.split_to(came).to_vec();
            return Ok(());
        }
        loop {
            let Some(line) = self.line().await else {
                return Ok(());
            };
            let size = std::str::from_utf8(&line)
                .ok()
                .filter(|size| size.bytes().all(|byte| byte.is_ascii_hexdigit()));
            let size = size.and_then(|size| usize::from_str_radix(size, 16).ok());
            let size = size.ok_or_else(|| format!("a chunk of size `{}`", line.escape_ascii()))?;
            while 0 < size && self.unread.len() < size + 2 {
                if !self.fill().await {
                    return Ok(());
                }
            }
            seen.body.extend_from_slice(&self.unread.split_to(size));
            if size == 0 {
                // Behind the last chunk there is no line end of its own, but trailers.
                return self.trailers().await;
            }
            if &self.unread.split_to(2)[..] != b"\r\n" {
                return Err("no CR LF behind a chunk".to_owned());
            }
        }
    }

    /// Reads trailers, which may be anything but what a request stands on (RFC 9110, 6.5.1).
    async fn trailers(&mut self) -> Result<(), String> {
        while let Some(line) = self.line().await.filter(|line| !line.is_empty()) {
            let text = String::from_utf8_lossy(&line).to_ascii_lowercase();
            let name = text.split(':').next().unwrap_or_default();
            let right = text.contains(':') && !name.is_empty() && name.bytes().all(is_token);
            let firm = NO_TRAILERS.contains(&name) || name.starts_with("x-forwarded-");
            if !right || firm || text.contains(['\r', '\n', '\0']) {
                return Err(format!("a trailer: {}", line.escape_ascii()));
            }
        }
        Ok(())
    }

    async fn line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = find(&self.unread, b"\r\n") {
                let line = self.unread.split_to(end + 2);
                return Some(line[..end].to_vec());
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    async fn fill(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.unread).await, Ok(1..))
    }
}

/// Reads a head as strictly as RFC 9112 lets a server be.
fn read_head(head: &[u8]) -> Seen {
    let text = String::from_utf8_lossy(head).into_owned();
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let line = lines.next().unwrap_or_default().to_owned();
    let mut fault = None;
    let mut headers = Vec::new();
    let mut complain = |what: String| fault = fault.take().or(Some(what));
    let parts: Vec<&str> = line.split(' ').collect();
    let right = matches!(parts[..], [method, target, "HTTP/1.1"]
        if method.bytes().all(is_token) && (target.starts_with('/') || target == "*") && target.bytes().all(|byte| byte.is_ascii_graphic()));
    if !right {
        complain(format!("a request line: {}", line.escape_debug()));
    }
    for field in lines {
        match field.split_once(':') {
            Some((name, value))
                if !name.is_empty()
                    && name.bytes().all(is_token)
                    && !value.contains(['\r', '\n', '\0']) =>
            {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            _ => complain(format!("a header: {}", field.escape_debug())),
        }
    }
    let seen = Seen {
        line,
        headers,
        ..Seen::default()
    };
    let lengths = seen.values("content-length");
    let codings = seen.values("transfer-encoding");
    if 1 < lengths.len() + codings.len() {
        complain(format!("{lengths:?} and {codings:?} for one body"));
    }
    if lengths
        .iter()
        .any(|length| length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()))
    {
        complain(format!("the length {lengths:?}"));
    }
    if codings.iter().any(|coding| *coding != "chunked") {
        complain(format!("the coding {codings:?}"));
    }
    if seen.values("host").len() != 1 {
        complain(format!("hosts {:?}", seen.values("host")));
    }
    Seen { fault, ..seen }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
