//! A backend that does what the row says, and notes what reaches it, byte by byte: it takes nothing that could be read in two
//! ways, and notices what comes behind a request and belongs to none.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use bytes::BytesMut;
use causeway_tests::harness::{loopback, segments::Ends};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    case::{Attempt, Step},
    exchange::{End, Exchange, ID, Seen},
};

/// How long the backend waits for the client to have what it was sent: less than the edge waits for the backend.
const PATIENCE: Duration = Duration::from_secs(3);

/// The exchanges that requests may belong to, by their ids, and what came that belongs to none.
#[derive(Debug, Default)]
pub(crate) struct Exchanges {
    known: Mutex<HashMap<usize, Arc<Exchange>>>,
    strays: Mutex<Vec<String>>,
}

impl Exchanges {
    pub(crate) fn add(&self, exchange: &Arc<Exchange>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(exchange.id, Arc::clone(exchange));
    }

    fn of(&self, seen: &Seen) -> Option<Arc<Exchange>> {
        let id = seen.values(ID).first()?.parse().ok()?;
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&id).cloned()
    }

    fn stray(&self, what: String) {
        let mut strays = self.strays.lock().unwrap_or_else(PoisonError::into_inner);
        strays.push(what);
    }

    /// What came that belongs to no request of this run.
    pub(crate) fn strays(&self) -> Vec<String> {
        let strays = self.strays.lock().unwrap_or_else(PoisonError::into_inner);
        strays.clone()
    }
}

/// A connection, in plain or over TLS.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    async fn read(&mut self, unread: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read_buf(unread).await,
            Self::Tls(stream) => stream.read_buf(unread).await,
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    /// Ends it, in TLS with a close_notify.
    async fn end(&mut self) {
        match self {
            Self::Plain(stream) => stream.shutdown().await.ok(),
            Self::Tls(stream) => stream.shutdown().await.ok(),
        };
    }
}

/// A listening backend.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    /// The accepting task, which owns the serving ones.
    _tasks: JoinSet<()>,
}

impl Backend {
    pub(crate) async fn start(exchanges: &Arc<Exchanges>) -> Result<Self> {
        Self::listen(exchanges, None).await
    }

    /// One that speaks TLS.
    pub(crate) async fn start_tls(
        exchanges: &Arc<Exchanges>,
        certificate: (String, String),
    ) -> Result<Self> {
        let (chain, key) = certificate;
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        Self::listen(exchanges, Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn listen(exchanges: &Arc<Exchanges>, tls: Option<TlsAcceptor>) -> Result<Self> {
        let listener = TcpListener::bind(loopback::own_any_port()).await?;
        let address = listener.local_addr()?;
        let (mut tasks, exchanges) = (JoinSet::new(), Arc::clone(exchanges));
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            loop {
                tokio::select! {
                    Some(_) = serving.join_next() => {}
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { return };
                        let (exchanges, tls) = (Arc::clone(&exchanges), tls.clone());
                        serving.spawn(async move {
                            let connection = Connection::new(stream, tls, exchanges);
                            if let Ok(connection) = connection.await {
                                connection.serve().await;
                            }
                        });
                    }
                }
            }
        });
        Ok(Self {
            address,
            _tasks: tasks,
        })
    }
}

struct Connection {
    stream: Stream,
    ends: Ends,
    unread: BytesMut,
    exchanges: Arc<Exchanges>,
    /// Whose request was the last one.
    last: Option<Arc<Exchange>>,
    /// Why there may be no other request.
    spent: Option<&'static str>,
}

/// The request under way.
struct Current {
    exchange: Arc<Exchange>,
    number: usize,
    framing: Framing,
}

/// Where the body of a request ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Framing {
    Length(usize),
    Chunks,
    /// It has been read.
    Over,
}

/// The connection goes no further.
struct Ended;

impl Connection {
    async fn new(
        stream: TcpStream,
        tls: Option<TlsAcceptor>,
        exchanges: Arc<Exchanges>,
    ) -> Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            ends: Ends::of(&stream)?,
            stream: match tls {
                Some(tls) => Stream::Tls(Box::new(tls.accept(stream).await?)),
                None => Stream::Plain(stream),
            },
            unread: BytesMut::new(),
            exchanges,
            last: None,
            spent: None,
        })
    }

    async fn serve(mut self) {
        while let Some(head) = self.head().await {
            let seen = match parse_head(&head) {
                Ok(seen) => seen,
                Err(fault) => {
                    self.complain(format!("{fault} in {}", excerpt(&head)));
                    return;
                }
            };
            let Some(exchange) = self.exchanges.of(&seen) else {
                self.complain(format!("a request that nobody sent: {}", excerpt(&head)));
                return;
            };
            if let Some(why) = self.spent {
                self.complain(format!("its connection was used again, and {why}"));
            }
            let framing = match framing(&seen) {
                Ok(framing) => framing,
                Err(fault) => {
                    exchange.complain(fault);
                    exchange.begin(Seen {
                        end: End::Cut,
                        done: true,
                        ..seen
                    });
                    return;
                }
            };
            let expects = !seen.values("expect").is_empty();
            let (number, attempt) = exchange.begin(seen);
            self.last = Some(Arc::clone(&exchange));
            let mut current = Current {
                exchange,
                number,
                framing,
            };
            if expects && attempt.continues {
                let sent = self.stream.write(b"HTTP/1.1 100 Continue\r\n\r\n");
                sent.await.ok();
            }
            let answered = self.respond(&mut current, &attempt).await;
            if answered.is_err() {
                current.ended();
            }
            current
                .exchange
                .note(current.number, |seen| seen.done = true);
            if answered.is_err() {
                return;
            }
            self.spent = attempt.spent;
        }
    }

    async fn respond(&mut self, current: &mut Current, attempt: &Attempt) -> Result<(), Ended> {
        for step in &attempt.steps {
            match step {
                Step::ReadAll => self.body(current).await?,
                Step::Send(bytes) => {
                    self.stream.write(bytes).await.map_err(|_| Ended)?;
                    self.ends.drained().await;
                }
                Step::ClientHas(bytes) => {
                    let mut has = current.exchange.client_has();
                    let waited = timeout(PATIENCE, has.wait_for(|has| bytes <= has));
                    if waited.await.is_err() {
                        let has = *current.exchange.client_has().borrow();
                        current.exchange.complain(format!(
                            "the client has {has} bytes of the response and not {bytes}: what has come is held back"
                        ));
                    }
                }
                Step::Pause(length) => sleep(*length).await,
                Step::Echo => {
                    self.echo(current, usize::MAX).await;
                    self.stream.end().await;
                    return Err(Ended);
                }
                Step::EchoOnly(bytes) => self.echo(current, *bytes).await,
                Step::Silent => {
                    while self.fill().await {}
                    return Err(Ended);
                }
                Step::Close => {
                    self.stream.end().await;
                    return Err(Ended);
                }
                Step::Reset => {
                    self.stream.tcp().set_zero_linger().ok();
                    return Err(Ended);
                }
                Step::Drop => return Err(Ended),
            }
        }
        // A response may be earlier than the end of its request.
        self.body(current).await
    }

    /// Sends back and notes at most this many bytes.
    async fn echo(&mut self, current: &Current, most: usize) {
        let mut left = most;
        while 0 < left && (!self.unread.is_empty() || self.fill().await) {
            let come = self.unread.split_to(left.min(self.unread.len()));
            left -= come.len();
            let noted = |seen: &mut Seen| seen.tunnel.extend_from_slice(&come);
            current.exchange.note(current.number, noted);
            if self.stream.write(&come).await.is_err() {
                return;
            }
        }
    }

    /// Blames what came on the request before it.
    fn complain(&self, fault: String) {
        match &self.last {
            Some(last) => last.complain(format!("behind the request at the backend: {fault}")),
            None => self.exchanges.stray(fault),
        }
    }

    async fn head(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = find(&self.unread, b"\r\n\r\n") {
                return Some(self.unread.split_to(end + 4).to_vec());
            }
            if !self.fill().await {
                if !self.unread.is_empty() {
                    self.complain(format!("half a head, {}", excerpt(&self.unread)));
                }
                return None;
            }
        }
    }

    /// Reads the rest of the body that the head announces.
    async fn body(&mut self, current: &mut Current) -> Result<(), Ended> {
        match current.framing {
            Framing::Over => {}
            Framing::Length(mut left) => {
                while 0 < left {
                    if self.unread.is_empty() && !self.fill().await {
                        return Err(Ended);
                    }
                    let come = self.unread.split_to(left.min(self.unread.len()));
                    left -= come.len();
                    current.framing = Framing::Length(left);
                    current.content(&come);
                }
            }
            Framing::Chunks => self.chunks(current).await?,
        }
        current.framing = Framing::Over;
        if !current.exchange.becomes_tunnel(current.number) {
            current.end(End::Whole);
        }
        Ok(())
    }

    async fn chunks(&mut self, current: &Current) -> Result<(), Ended> {
        loop {
            let line = self.line().await?;
            let size = match std::str::from_utf8(&line) {
                Ok(size)
                    if size.len() < 16 && size.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
                {
                    usize::from_str_radix(size, 16).ok()
                }
                _ => None,
            };
            let Some(size) = size else {
                current
                    .exchange
                    .complain(format!("a chunk of size {}", excerpt(&line)));
                return Err(Ended);
            };
            if size == 0 {
                return self.trailers(current).await;
            }
            let mut left = size;
            while 0 < left {
                if self.unread.is_empty() && !self.fill().await {
                    return Err(Ended);
                }
                let come = self.unread.split_to(left.min(self.unread.len()));
                left -= come.len();
                current.content(&come);
            }
            if !self.line().await?.is_empty() {
                current.exchange.complain("no CR LF behind a chunk");
                return Err(Ended);
            }
        }
    }

    async fn trailers(&mut self, current: &Current) -> Result<(), Ended> {
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(());
            }
            match parse_field(&String::from_utf8_lossy(&line)) {
                Some(trailer) => {
                    let noted = |seen: &mut Seen| seen.trailers.push(trailer);
                    current.exchange.note(current.number, noted);
                }
                None => {
                    let fault = format!("a trailer {}", excerpt(&line));
                    current.exchange.complain(fault);
                    return Err(Ended);
                }
            }
        }
    }

    /// The next line, without its end.
    async fn line(&mut self) -> Result<Vec<u8>, Ended> {
        loop {
            if let Some(end) = find(&self.unread, b"\r\n") {
                let line = self.unread.split_to(end + 2);
                return Ok(line[..end].to_vec());
            }
            if !self.fill().await {
                return Err(Ended);
            }
        }
    }

    async fn fill(&mut self) -> bool {
        matches!(self.stream.read(&mut self.unread).await, Ok(1..))
    }
}

impl Current {
    fn content(&self, content: &[u8]) {
        self.exchange
            .note(self.number, |seen| seen.body.extend_from_slice(content));
    }

    fn end(&self, end: End) {
        self.exchange.note(self.number, |seen| {
            if seen.end == End::Open {
                seen.end = end;
            }
        });
    }

    /// Nothing more comes of a body that has not come.
    fn ended(&self) {
        self.end(match self.framing {
            Framing::Over | Framing::Length(0) => End::Whole,
            Framing::Length(_) | Framing::Chunks => End::Cut,
        });
    }
}

/// Reads a head as strictly as RFC 9112 lets a server be.
pub(crate) fn parse_head(head: &[u8]) -> Result<Seen, String> {
    let text = String::from_utf8_lossy(head).into_owned();
    let mut lines = text.trim_end_matches("\r\n").split("\r\n");
    let line = lines.next().unwrap_or_default();
    let parts: Vec<&str> = line.split(' ').collect();
    let [method, target, "HTTP/1.1"] = parts[..] else {
        return Err(format!("no request line, but `{}`", line.escape_debug()));
    };
    let right_target = (target.starts_with('/') || target == "*")
        && target.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_token(method) || !right_target {
        return Err(format!("the request line `{}`", line.escape_debug()));
    }
    let mut headers = Vec::new();
    for field in lines {
        let field = parse_field(field).ok_or_else(|| format!("the header {field:?}"))?;
        headers.push(field);
    }
    Ok(Seen {
        method: method.to_owned(),
        target: target.to_owned(),
        headers,
        ..Seen::default()
    })
}

/// A header or a trailer; the name in lower case.
pub(crate) fn parse_field(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    let plain = !value.contains(['\r', '\n', '\0']);
    (is_token(name) && plain).then(|| {
        (
            name.to_ascii_lowercase(),
            value.trim_matches([' ', '\t']).to_owned(),
        )
    })
}

pub(crate) fn framing(seen: &Seen) -> Result<Framing, String> {
    let lengths = seen.values("content-length");
    let codings = seen.values("transfer-encoding");
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(Framing::Length(0)),
        ([], ["chunked"]) => Ok(Framing::Chunks),
        ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => length
            .parse()
            .map(Framing::Length)
            .map_err(|_| format!("the length `{length}`")),
        _ => Err(format!(
            "the lengths {lengths:?} and codings {codings:?} at the backend"
        )),
    }
}

fn is_token(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(plain)
}

pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// The beginning of what came, for a person.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    let part = &bytes[..bytes.len().min(160)];
    let more = if part.len() < bytes.len() { "..." } else { "" };
    format!("`{}{more}`", part.escape_ascii())
}
