//! A client of HTTP/1 that decides what is in each segment, and reads a response as strictly as RFC 9112 lets a client be.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Result;
use bytes::BytesMut;
use causeway_tests::harness::{segments::Ends, tls};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf},
    sync::watch,
    time::timeout,
};

use crate::{
    backend::{excerpt, find, parse_field},
    case::{Behind, Body, Case, Pace, Request},
    exchange::{Exchange, ID, values},
    got::{After, Ended, Got, Head, Heard},
    path::{Cut, Path},
};

/// How long a client waits for a 100, or for what a row waits for before it goes on.
const GO_ON: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(10);

/// How many bytes are sent one by one.
const SINGLE_BYTES: usize = 1_200;

/// The most that a head may take: more than any backend here sends.
const HEAD_BYTES_MAX: usize = 512 * 1024;

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// Sends the request of `case` on a connection of its own, and reads what comes.
pub(crate) async fn play(
    path: Path,
    address: SocketAddr,
    clients: &Arc<ClientConfig>,
    case: &Case,
    exchange: &Exchange,
    next: &Exchange,
) -> Result<Got> {
    let stream = tls::connect_from(case.request.from, address).await?;
    stream.set_nodelay(true)?;
    let ends = Ends::of(&stream)?;
    let stream: Box<dyn Duplex> = if path.is_tls() {
        Box::new(tls::handshake(clients, stream).await?)
    } else {
        Box::new(stream)
    };
    let (reader, writer) = tokio::io::split(stream);
    let (heard, hears) = watch::channel(Heard::Nothing);
    let mut sender = Sender {
        writer,
        ends,
        cut: path.cut(),
        singles: SINGLE_BYTES,
        is_read: true,
    };
    let mut receiver = Receiver {
        reader,
        unread: BytesMut::new(),
    };
    let request = &case.request;
    let segments = segments(path, request, exchange, next);
    let mut got = Got::default();

    let sent = {
        let send = sender.send(&segments, request, exchange, hears);
        tokio::pin!(send);
        if request.behind == Behind::Leave {
            send.await;
            got.end = Ended::Left;
            return Ok(got);
        }
        let receive = receiver.response(request.method, &mut got, Some(exchange), &heard);
        tokio::pin!(receive);
        let mut sent = None;
        loop {
            tokio::select! {
                () = &mut receive => break,
                whole = &mut send, if sent.is_none() => sent = Some(whole),
            }
        }
        match sent {
            Some(sent) => sent,
            // What is left of the body may be unwanted.
            None => timeout(PATIENCE, send).await.unwrap_or(Sent::Part),
        }
    };
    if got.head.as_ref().is_some_and(|head| head.status == 101) {
        let upgrade = request.upgrade.clone().unwrap_or_default();
        // At the same time: what comes back while it is sent may be more than the sockets hold.
        tokio::join!(
            sender.write(&upgrade.then),
            receiver.tunnel(&mut got, case.client.tunnel.len())
        )
        .0
        .ok();
        sender.writer.shutdown().await.ok();
        receiver.tunnel(&mut got, usize::MAX).await;
        return Ok(got);
    }
    if got.end != Ended::Whole || sent == Sent::Part || !got.faults.is_empty() {
        return Ok(got);
    }
    let close = got
        .head
        .as_ref()
        .is_none_or(|head| says(head, "close") || (path.is_http10() && !says(head, "keep-alive")));
    if close {
        receiver.end(&mut got).await;
        got.after = After::Closed;
        return Ok(got);
    }
    match request.behind {
        Behind::Next => {
            let bytes = next_request(path, request, next);
            sender.write(&bytes).await.ok();
        }
        Behind::Pipelined => {}
        Behind::HalfClose | Behind::Nothing | Behind::Leave => return Ok(got),
    }
    let mut other = Got::default();
    receiver.response("GET", &mut other, None, &heard).await;
    got.after = match other.head {
        None if other.faults.is_empty() => After::Closed,
        None => After::Unknown,
        Some(_) => After::Kept,
    };
    if got.after == After::Kept && other.body != next.next_body().as_bytes() {
        let status = other.head.map(|head| head.status);
        got.faults.push(format!(
            "the next request got the response {status:?} {}",
            excerpt(&other.body)
        ));
    }
    got.faults.extend(other.faults);
    Ok(got)
}

fn says(head: &Head, token: &str) -> bool {
    let values = values(&head.headers, "connection").join(",");
    values
        .split(',')
        .any(|found| found.trim().eq_ignore_ascii_case(token))
}

/// Some bytes, and what they wait for.
struct Segment {
    waits: Wait,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    No,
    /// For the edge to have read all before.
    Drained,
    /// For a 100.
    GoOn,
    /// For the backend to have this much of the body.
    BackendHas(usize),
    Response,
}

/// The bytes of a request, as `path` sends them.
fn segments(path: Path, request: &Request, exchange: &Exchange, next: &Exchange) -> Vec<Segment> {
    let mut head = head(path, request, exchange);
    let early = request
        .upgrade
        .as_ref()
        .map_or(&[][..], |upgrade| &upgrade.early);
    let mut first = Wait::No;
    if path.cut() == Cut::Two {
        first = Wait::Drained;
    } else if path == Path::Expect {
        first = Wait::GoOn;
    }
    let mut segments = Vec::new();
    if matches!(request.body, Body::None) && early.is_empty() && path.cut() == Cut::Two {
        let rest = head.split_off(head.len() / 2);
        segments.push(Segment {
            waits: Wait::No,
            bytes: head,
        });
        segments.push(Segment {
            waits: Wait::Drained,
            bytes: rest,
        });
    } else {
        segments.push(Segment {
            waits: Wait::No,
            bytes: head,
        });
    }
    let mut push = |waits: Wait, bytes: &[u8]| match segments.last_mut() {
        Some(last) if waits == Wait::No => last.bytes.extend_from_slice(bytes),
        _ => segments.push(Segment {
            waits,
            bytes: bytes.to_vec(),
        }),
    };
    if !early.is_empty() {
        push(first, early);
    }
    let unknown = request.body.is_unknown();
    let mut before = 0;
    for (number, piece) in request.body.pieces().iter().enumerate() {
        let waits = match (number, request.pace) {
            (0, _) => first,
            (_, Pace::AtOnce) => Wait::No,
            (_, Pace::BackendHas) => Wait::BackendHas(before),
            (_, Pace::ResponseCame) => Wait::Response,
        };
        before += piece.len();
        if unknown {
            let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
            push(waits, &chunk);
        } else {
            push(waits, piece);
        }
    }
    if let Body::Unknown {
        pieces, trailers, ..
    } = &request.body
        && request.behind != Behind::Leave
    {
        let mut last = b"0\r\n".to_vec();
        for (name, value) in trailers {
            last.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        last.extend_from_slice(b"\r\n");
        push(if pieces.is_empty() { first } else { Wait::No }, &last);
    }
    if request.behind == Behind::Pipelined {
        push(Wait::No, &next_request(path, request, next));
    }
    segments
}

fn head(path: Path, request: &Request, exchange: &Exchange) -> Vec<u8> {
    let version = if path.is_http10() { "1.0" } else { "1.1" };
    let mut head = format!(
        "{} {} HTTP/{version}\r\nHost: {}\r\n{ID}: {}\r\n",
        request.method, request.target, request.host, exchange.id
    );
    if request.upgrade.is_some() {
        head.push_str(
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        );
    }
    if path == Path::Expect {
        head.push_str("Expect: 100-continue\r\n");
    }
    for (name, value) in &request.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    match &request.body {
        Body::None => {}
        Body::Length(length, _) => head.push_str(&format!("Content-Length: {length}\r\n")),
        Body::Unknown { .. } => head.push_str("Transfer-Encoding: chunked\r\n"),
    }
    head.push_str("\r\n");
    head.into_bytes()
}

fn next_request(path: Path, request: &Request, next: &Exchange) -> Vec<u8> {
    let version = if path.is_http10() { "1.0" } else { "1.1" };
    format!(
        "GET {} HTTP/{version}\r\nHost: {}\r\n{ID}: {}\r\n\r\n",
        request.next, request.host, next.id
    )
    .into_bytes()
}

/// How much of a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Whole,
    Part,
}

struct Sender {
    writer: WriteHalf<Box<dyn Duplex>>,
    ends: Ends,
    cut: Cut,
    /// How many more bytes are sent one by one.
    singles: usize,
    /// Whether the edge reads what is sent.
    is_read: bool,
}

impl Sender {
    async fn send(
        &mut self,
        segments: &[Segment],
        request: &Request,
        exchange: &Exchange,
        mut hears: watch::Receiver<Heard>,
    ) -> Sent {
        for segment in segments {
            match segment.waits {
                Wait::No => {}
                Wait::Drained => {
                    self.ends.drained().await;
                }
                Wait::GoOn => {
                    let heard = timeout(GO_ON, hears.wait_for(|heard| *heard != Heard::Nothing));
                    if let Ok(Ok(heard)) = heard.await
                        && *heard == Heard::Response
                    {
                        return Sent::Part;
                    }
                }
                Wait::BackendHas(bytes) => backend_has(exchange, bytes).await,
                Wait::Response => {
                    let came = hears.wait_for(|heard| *heard == Heard::Response);
                    if timeout(PATIENCE, came).await.is_err() {
                        exchange.complain("no response while the body was still being sent");
                    }
                }
            }
            if self.write(&segment.bytes).await.is_err() {
                return Sent::Part;
            }
        }
        match request.behind {
            Behind::HalfClose => {
                self.writer.shutdown().await.ok();
                self.ends.drained().await;
            }
            Behind::Leave => {
                let all = request.body.pieces().iter().map(Vec::len).sum();
                backend_has(exchange, all).await;
            }
            Behind::Next | Behind::Pipelined | Behind::Nothing => {}
        }
        Sent::Whole
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        if self.cut == Cut::Bytes {
            let singles = self.singles.min(bytes.len());
            self.singles -= singles;
            for byte in bytes[..singles].chunks(1) {
                self.writer.write_all(byte).await?;
                self.writer.flush().await?;
                // What is not read now is not read later either: the edge waits for something else.
                self.is_read = self.is_read && self.ends.drained().await;
            }
            rest = &bytes[singles..];
        }
        if !rest.is_empty() {
            self.writer.write_all(rest).await?;
        }
        self.writer.flush().await
    }
}

/// Waits until the backend has this much of the body.
pub(crate) async fn backend_has(exchange: &Exchange, bytes: usize) {
    let mut has = exchange.backend_has();
    if timeout(PATIENCE, has.wait_for(|has| Some(bytes) <= *has))
        .await
        .is_err()
    {
        let fault = match *exchange.backend_has().borrow() {
            Some(has) => format!(
                "the backend has {has} bytes of the body, and {bytes} were sent: what has come is held back"
            ),
            None => "the backend has no request".to_owned(),
        };
        exchange.complain(fault);
    }
}

struct Receiver {
    reader: ReadHalf<Box<dyn Duplex>>,
    unread: BytesMut,
}

impl Receiver {
    /// Reads interim responses and a response into `got`.
    async fn response(
        &mut self,
        method: &str,
        got: &mut Got,
        exchange: Option<&Exchange>,
        heard: &watch::Sender<Heard>,
    ) {
        let head = loop {
            let head = match self.head().await {
                Ok(Some(head)) => head,
                Ok(None) => return,
                Err(fault) => return got.faults.push(fault),
            };
            if head.status == 101 || 200 <= head.status {
                break head;
            }
            if head.status == 100 {
                heard.send_if_modified(|heard| {
                    let news = *heard < Heard::GoOn;
                    *heard = Heard::GoOn.max(*heard);
                    news
                });
            }
            got.interim.push(head);
        };
        heard.send_replace(Heard::Response);
        let framing = framing(method, &head);
        got.head = Some(head);
        let body = match framing {
            Ok(framing) => self.body(framing, got, exchange).await,
            Err(fault) => {
                got.faults.push(fault);
                Ok(())
            }
        };
        got.end = match body {
            Ok(()) => Ended::Whole,
            Err(why) => Ended::Cut(why),
        };
    }

    /// A head, or `None` if the connection ends before it.
    async fn head(&mut self) -> Result<Option<Head>, String> {
        let end = loop {
            if let Some(end) = find(&self.unread, b"\r\n\r\n") {
                break end;
            }
            if HEAD_BYTES_MAX < self.unread.len() {
                return Err("the head of the response has no end".to_owned());
            }
            if self.fill().await.is_err() {
                return if self.unread.is_empty() {
                    Ok(None)
                } else {
                    Err(format!("a head that is cut off: {}", excerpt(&self.unread)))
                };
            }
        };
        let bytes = self.unread.split_to(end + 4);
        let wrong = |what: &str| format!("{what} in the response {}", excerpt(&bytes));
        let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = text.split("\r\n");
        let status = lines
            .next()
            .and_then(|line| line.strip_prefix("HTTP/1."))
            .filter(|rest| {
                rest.get(1..2) == Some(" ") && matches!(rest.as_bytes().get(5), Some(b' ') | None)
            })
            .and_then(|rest| rest.get(2..5)?.parse().ok())
            .ok_or_else(|| wrong("no status line"))?;
        let headers: Option<Vec<_>> = lines.map(parse_field).collect();
        let headers = headers.ok_or_else(|| wrong("a wrong header"))?;
        Ok(Some(Head { status, headers }))
    }

    /// Reads a body; the error says where it was cut off.
    async fn body(
        &mut self,
        framing: Framing,
        got: &mut Got,
        exchange: Option<&Exchange>,
    ) -> Result<(), String> {
        let tell = |got: &Got| {
            if let Some(exchange) = exchange {
                exchange.client_got(got.body.len());
            }
        };
        match framing {
            Framing::Length(length) => {
                while got.body.len() < length {
                    self.more(|| format!("at {} of {length} bytes", got.body.len()))
                        .await?;
                    let left = length - got.body.len();
                    let come = self.unread.split_to(left.min(self.unread.len()));
                    got.body.extend_from_slice(&come);
                    tell(got);
                }
                Ok(())
            }
            Framing::UntilClose => loop {
                got.body.extend_from_slice(&self.unread.split());
                tell(got);
                match self.fill().await {
                    Ok(()) => {}
                    Err(error)
                        if error.kind() == io::ErrorKind::UnexpectedEof
                            && error.get_ref().is_none() =>
                    {
                        return Ok(());
                    }
                    Err(error) => return Err(format!("by {error}, at {} bytes", got.body.len())),
                }
            },
            Framing::Chunks => loop {
                let line = self.line("where a chunk begins").await?;
                let size = line.split(';').next().unwrap_or_default();
                let digits = !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_hexdigit());
                let Some(mut left) = usize::from_str_radix(size, 16).ok().filter(|_| digits) else {
                    got.faults
                        .push(format!("a chunk of size `{}`", line.escape_debug()));
                    return Err(format!("by a chunk of size `{}`", line.escape_debug()));
                };
                if left == 0 {
                    return self.trailers(got).await;
                }
                while 0 < left {
                    self.more(|| format!("{left} bytes before the end of a chunk"))
                        .await?;
                    let come = self.unread.split_to(left.min(self.unread.len()));
                    left -= come.len();
                    got.body.extend_from_slice(&come);
                    tell(got);
                }
                let end = self.line("behind a chunk").await?;
                if !end.is_empty() {
                    got.faults
                        .push(format!("`{}` behind a chunk", end.escape_debug()));
                    return Err("behind a chunk".to_owned());
                }
            },
            Framing::None => Ok(()),
        }
    }

    async fn trailers(&mut self, got: &mut Got) -> Result<(), String> {
        loop {
            let line = self.line("in the trailers").await?;
            if line.is_empty() {
                return Ok(());
            }
            match parse_field(&line) {
                Some(trailer) => got.trailers.push(trailer),
                None => got
                    .faults
                    .push(format!("the trailer `{}`", line.escape_debug())),
            }
        }
    }

    async fn line(&mut self, place: &str) -> Result<String, String> {
        loop {
            if let Some(end) = find(&self.unread, b"\r\n") {
                let line = self.unread.split_to(end + 2);
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.fill().await.map_err(|_| place.to_owned())?;
        }
    }

    /// Reads more if nothing is left unread.
    async fn more(&mut self, place: impl FnOnce() -> String) -> Result<(), String> {
        if self.unread.is_empty() {
            return self.fill().await.map_err(|_| place());
        }
        Ok(())
    }

    async fn fill(&mut self) -> io::Result<()> {
        match self.reader.read_buf(&mut self.unread).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Reads on until `bytes` have come out of the tunnel, or its end.
    async fn tunnel(&mut self, got: &mut Got, bytes: usize) {
        let reading = async {
            loop {
                let left = bytes.saturating_sub(got.tunnel.len());
                let come = self.unread.split_to(left.min(self.unread.len()));
                got.tunnel.extend_from_slice(&come);
                if bytes <= got.tunnel.len() || self.fill().await.is_err() {
                    return;
                }
            }
        };
        if timeout(PATIENCE, reading).await.is_err() {
            let what = if bytes == usize::MAX { "end" } else { "bytes" };
            got.faults.push(format!("the tunnel has no {what} in time"));
        }
    }

    /// Waits for the end of a connection that was announced.
    async fn end(&mut self, got: &mut Got) {
        let end = async { while self.fill().await.is_ok() {} };
        if timeout(PATIENCE, end).await.is_err() {
            got.faults
                .push("the connection stays open after its last response".to_owned());
        }
        if !self.unread.is_empty() {
            got.faults.push(format!(
                "behind the last response came {}",
                excerpt(&self.unread)
            ));
        }
    }
}

/// Where the body of a response ends.
enum Framing {
    None,
    Length(usize),
    Chunks,
    UntilClose,
}

fn framing(method: &str, head: &Head) -> Result<Framing, String> {
    let lengths = values(&head.headers, "content-length");
    let codings = values(&head.headers, "transfer-encoding");
    if head.status == 101 || head.status == 204 {
        return if lengths.is_empty() && codings.is_empty() {
            Ok(Framing::None)
        } else {
            Err(format!("a {} with framing headers", head.status))
        };
    }
    let framing = match (&lengths[..], &codings[..]) {
        ([], []) => Framing::UntilClose,
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Framing::Chunks,
        ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => Framing::Length(
            length
                .parse()
                .map_err(|_| format!("the length `{length}`"))?,
        ),
        _ => {
            return Err(format!(
                "the lengths {lengths:?} and codings {codings:?} at the client"
            ));
        }
    };
    let bodiless = method == "HEAD" || head.status == 304;
    Ok(if bodiless { Framing::None } else { framing })
}
