//! One row of the table: a request, what the backend does with it, and what both sides must see.
//!
//! A row says nothing of what is the same in all of them ([`check`](crate::check)), or follows from the version of HTTP
//! ([`Case::on`]).

use std::{net::Ipv4Addr, time::Duration};

use crate::path::{ALL, EXPECT, HTTP2, HTTP10, PINGORA_HTTP1, Path, UPGRADES};

/// A row.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) request: Request,
    /// What the backend does with the first attempt, the second, ...; the last one stands for all that follow.
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) backend: MustSee,
    pub(crate) client: MustGet,
    /// Whether a deadline of the edge decides it: such rows are played beside the others.
    pub(crate) waits: bool,
    paths: &'static [Path],
    differences: Vec<Difference>,
}

/// What a client sends.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) target: &'static str,
    pub(crate) host: &'static str,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Body,
    pub(crate) pace: Pace,
    pub(crate) behind: Behind,
    /// What the next request over the same connection asks for.
    pub(crate) next: &'static str,
    /// The address that it comes from.
    pub(crate) from: Ipv4Addr,
    /// Set on a request for an upgrade.
    pub(crate) upgrade: Option<Upgrade>,
}

/// The body of a request, in pieces: chunks of HTTP/1.1, frames of HTTP/2.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    None,
    /// With a `Content-Length` of this, whatever the pieces have.
    Length(usize, Vec<Vec<u8>>),
    /// Of a length that the head does not say.
    Unknown {
        pieces: Vec<Vec<u8>>,
        trailers: Vec<(String, String)>,
        /// Whether HTTP/2 ends it with an empty DATA frame, and not with the last piece.
        empty_last: bool,
    },
}

impl Body {
    pub(crate) fn pieces(&self) -> &[Vec<u8>] {
        match self {
            Self::None => &[],
            Self::Length(_, pieces) | Self::Unknown { pieces, .. } => pieces,
        }
    }

    pub(crate) fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

/// When the pieces of a body behind the first are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// At once.
    AtOnce,
    /// Each when the backend has what was sent before.
    BackendHas,
    /// When the response has come.
    ResponseCame,
}

/// What the client does behind the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behind {
    /// Reads the response, then sends another request.
    Next,
    /// Sends another request at once, without waiting for the response.
    Pipelined,
    /// Says that it will send nothing more, and reads the response.
    HalfClose,
    /// Goes away when the backend has what was sent.
    Leave,
    /// Reads the response and sends nothing more.
    Nothing,
}

/// What goes through a tunnel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upgrade {
    /// Sent right behind the request.
    pub(crate) early: Vec<u8>,
    /// Sent once the tunnel is open.
    pub(crate) then: Vec<u8>,
}

/// What the backend does with one attempt.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempt {
    pub(crate) steps: Vec<Step>,
    /// Why no other request may come over the same connection.
    pub(crate) spent: Option<&'static str>,
    /// Whether it responds to `Expect: 100-continue` with a 100 before it reads the body.
    pub(crate) continues: bool,
}

/// One thing that the backend does.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Reads the request to its end.
    ReadAll,
    /// Sends these bytes, and waits until the edge has read them.
    Send(Vec<u8>),
    /// Waits until the client has this much of the body of the response.
    ClientHas(usize),
    /// Waits. Only where nothing else could be waited for.
    Pause(Duration),
    /// Sends back what comes, and notes it, until the other side ends.
    Echo,
    /// The same for this many bytes.
    EchoOnly(usize),
    /// Says nothing until the edge closes the connection.
    Silent,
    /// Closes the connection.
    Close,
    /// Resets it.
    Reset,
    /// Drops it, in TLS without a close_notify.
    Drop,
}

/// What the backend must see.
#[derive(Clone, Debug)]
pub(crate) struct MustSee {
    /// How many requests; `None` does not matter.
    pub(crate) requests: Option<usize>,
    pub(crate) body: BodyEnd,
    /// All values of these headers.
    pub(crate) headers: Vec<(&'static str, Vec<String>)>,
    pub(crate) trailers: Vec<(&'static str, String)>,
}

/// How a body must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyEnd {
    Whole,
    /// So that it cannot be taken for a whole one.
    Cut,
    Either,
}

/// What the client must get.
#[derive(Clone, Debug)]
pub(crate) struct MustGet {
    /// One of these statuses; 0 stands for the end of the connection without a response.
    pub(crate) statuses: Vec<u16>,
    /// The interim responses; `None` does not matter.
    pub(crate) interim: Option<Vec<u16>>,
    /// All values of these headers.
    pub(crate) headers: Vec<(&'static str, Vec<String>)>,
    /// `None` does not matter: the texts of the edge's own responses are not held to a word.
    pub(crate) body: Option<Vec<u8>>,
    pub(crate) end: BodyEnd,
    /// `None` does not matter.
    pub(crate) trailers: Option<Vec<(&'static str, String)>>,
    pub(crate) connection: Connection,
    /// What must come out of a tunnel.
    pub(crate) tunnel: Vec<u8>,
}

/// What becomes of the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    /// It serves another request.
    Kept,
    Closed,
    Either,
}

/// A path that rightly differs.
#[derive(Clone, Debug)]
struct Difference {
    paths: &'static [Path],
    /// `None`: the row does not exist there.
    change: Option<fn(Case) -> Case>,
}

/// The response of a backend that has nothing to add.
pub(crate) const HELLO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

/// How a client without the affinity cookie is told apart in values: the edge gives it one.
pub(crate) const HOST: &str = "chat.example";

fn request(method: &'static str, target: &'static str, body: Body) -> Request {
    Request {
        method,
        target,
        host: HOST,
        headers: Vec::new(),
        body,
        pace: Pace::AtOnce,
        behind: Behind::Next,
        next: "/next",
        from: Ipv4Addr::LOCALHOST,
        upgrade: None,
    }
}

pub(crate) fn get(target: &'static str) -> Request {
    request("GET", target, Body::None)
}

pub(crate) fn bodiless(method: &'static str, target: &'static str) -> Request {
    request(method, target, Body::None)
}

/// A POST with a `Content-Length`.
pub(crate) fn post(target: &'static str, pieces: &[&[u8]]) -> Request {
    let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
    let length = pieces.iter().map(Vec::len).sum();
    request("POST", target, Body::Length(length, pieces))
}

/// A POST of which the head says no length: in chunks, or in frames with an empty one for the end.
pub(crate) fn stream(target: &'static str, pieces: &[&[u8]]) -> Request {
    let body = Body::Unknown {
        pieces: pieces.iter().map(|piece| piece.to_vec()).collect(),
        trailers: Vec::new(),
        empty_last: true,
    };
    request("POST", target, body)
}

/// A request for a WebSocket.
pub(crate) fn websocket(target: &'static str, early: &[u8], then: &[u8]) -> Request {
    let upgrade = Upgrade {
        early: early.to_vec(),
        then: then.to_vec(),
    };
    Request {
        upgrade: Some(upgrade),
        ..request("GET", target, Body::None)
    }
}

impl Request {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn trailer(mut self, name: &str, value: &str) -> Self {
        if let Body::Unknown { trailers, .. } = &mut self.body {
            trailers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    /// Ends a body of an unknown length with its last piece, where HTTP/2 can.
    pub(crate) fn end_on_last_piece(mut self) -> Self {
        if let Body::Unknown { empty_last, .. } = &mut self.body {
            *empty_last = false;
        }
        self
    }

    pub(crate) fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }

    pub(crate) fn host(mut self, host: &'static str) -> Self {
        self.host = host;
        self
    }

    /// Has the next request ask for this.
    pub(crate) fn next(mut self, next: &'static str) -> Self {
        self.next = next;
        self
    }

    /// Comes from another address of this machine.
    pub(crate) fn from(mut self, from: Ipv4Addr) -> Self {
        self.from = from;
        self
    }

    pub(crate) fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    pub(crate) fn then(mut self, behind: Behind) -> Self {
        self.behind = behind;
        self
    }

    /// Whether it asks for its connection to be kept, which is for HTTP/1.0 to ask.
    fn asks_to_stay(&self) -> bool {
        let named = |(name, _): &&(String, String)| name == "Connection";
        let mut values = self.headers.iter().filter(named);
        values.any(|(_, value)| value.contains("keep-alive"))
    }

    /// Declares this length, which is more than is sent.
    pub(crate) fn declares(mut self, length: usize) -> Self {
        if let Body::Length(declared, _) = &mut self.body {
            *declared = length;
        }
        self
    }
}

/// Reads the request, then sends these pieces of a response.
pub(crate) fn sends<B: AsRef<[u8]>>(pieces: &[B]) -> Attempt {
    let mut attempt = Attempt {
        steps: vec![Step::ReadAll],
        spent: None,
        continues: true,
    };
    for piece in pieces {
        attempt.steps.push(Step::Send(piece.as_ref().to_vec()));
    }
    attempt
}

/// Does these things, and sends no 100 by itself.
pub(crate) fn does(steps: Vec<Step>) -> Attempt {
    Attempt {
        steps,
        spent: None,
        continues: false,
    }
}

impl Attempt {
    pub(crate) fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// No other request may come over this connection.
    pub(crate) fn spent(mut self, why: &'static str) -> Self {
        self.spent = Some(why);
        self
    }
}

pub(crate) fn send(bytes: impl AsRef<[u8]>) -> Step {
    Step::Send(bytes.as_ref().to_vec())
}

/// A response with status 200.
pub(crate) fn ok(headers: &str, body: &str) -> String {
    response("200 OK", headers, body)
}

pub(crate) fn response(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}\r\n{body}")
}

/// A row: a backend that responds to [`HELLO`], which must reach the client, over a connection that serves the next request too.
pub(crate) fn case(name: impl Into<String>, request: Request) -> Case {
    let is_upgrade = request.upgrade.is_some();
    Case {
        name: name.into(),
        attempts: vec![sends(&[HELLO])],
        backend: MustSee {
            requests: Some(1),
            body: BodyEnd::Whole,
            headers: Vec::new(),
            trailers: Vec::new(),
        },
        client: MustGet {
            statuses: vec![200],
            interim: Some(Vec::new()),
            headers: Vec::new(),
            body: Some(b"hello".to_vec()),
            end: BodyEnd::Whole,
            trailers: None,
            connection: Connection::Kept,
            tunnel: Vec::new(),
        },
        request,
        waits: false,
        paths: if is_upgrade { &UPGRADES } else { &ALL },
        differences: Vec::new(),
    }
}

impl Case {
    /// The backend reads the request and sends this.
    pub(crate) fn answered(self, bytes: impl AsRef<[u8]>) -> Self {
        self.attempted(vec![sends(&[bytes])])
    }

    /// The same in several pieces, each read by the edge on its own.
    pub(crate) fn answered_in<B: AsRef<[u8]>>(self, pieces: &[B]) -> Self {
        self.attempted(vec![sends(pieces)])
    }

    pub(crate) fn attempted(mut self, attempts: Vec<Attempt>) -> Self {
        self.attempts = attempts;
        self
    }

    /// The client gets this status and body.
    pub(crate) fn gets(mut self, status: u16, body: impl AsRef<[u8]>) -> Self {
        self.client.statuses = vec![status];
        self.client.body = Some(body.as_ref().to_vec());
        self
    }

    /// The client gets one of these statuses; 0 is the end of the connection.
    pub(crate) fn gets_one_of(mut self, statuses: &[u16]) -> Self {
        self.client.statuses = statuses.to_vec();
        self.client.body = None;
        self
    }

    /// The edge itself responds with this status.
    pub(crate) fn refused(self, status: u16) -> Self {
        self.gets_one_of(&[status])
    }

    /// The client sees that this is not all of the body.
    pub(crate) fn gets_cut(mut self, body: impl AsRef<[u8]>) -> Self {
        self.client.body = Some(body.as_ref().to_vec());
        self.client.end = BodyEnd::Cut;
        self.client.connection = Connection::Either;
        self
    }

    /// Either the client gets 502, or a response that is cut off within its body.
    pub(crate) fn gets_cut_or_502(mut self) -> Self {
        self.client.statuses = vec![200, 502];
        self.client.body = None;
        self.client.end = BodyEnd::Cut;
        self.client.connection = Connection::Either;
        self
    }

    /// All values that a header has at the client; none at all if there are none. A `*` at the end of one stands for anything.
    pub(crate) fn gets_header(mut self, name: &'static str, values: &[&str]) -> Self {
        self.client.headers.push((name, owned(values)));
        self
    }

    pub(crate) fn gets_trailer(mut self, name: &'static str, value: &str) -> Self {
        let trailers = self.client.trailers.get_or_insert_default();
        trailers.push((name, value.to_owned()));
        self
    }

    pub(crate) fn gets_interim(mut self, statuses: &[u16]) -> Self {
        self.client.interim = Some(statuses.to_vec());
        self
    }

    pub(crate) fn any_interim(mut self) -> Self {
        self.client.interim = None;
        self
    }

    pub(crate) fn connection(mut self, connection: Connection) -> Self {
        self.client.connection = connection;
        self
    }

    /// What comes out of the tunnel that the request becomes.
    pub(crate) fn tunnels(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.client.statuses = vec![101];
        self.client.body = None;
        self.client.tunnel = bytes.as_ref().to_vec();
        self.client.connection = Connection::Either;
        self
    }

    /// All values that a header has at the backend; none at all if there are none. `{scheme}` and `{port}` are those of the path.
    pub(crate) fn sees(mut self, name: &'static str, values: &[&str]) -> Self {
        self.backend.headers.push((name, owned(values)));
        self
    }

    pub(crate) fn sees_trailer(mut self, name: &'static str, value: &str) -> Self {
        self.backend.trailers.push((name, value.to_owned()));
        self
    }

    /// The backend sees this many requests: one for each attempt.
    pub(crate) fn sees_times(mut self, requests: usize) -> Self {
        self.backend.requests = Some(requests);
        self
    }

    /// A deadline of the edge decides it.
    pub(crate) fn waits(mut self) -> Self {
        self.waits = true;
        self
    }

    /// How often the backend is tried does not matter.
    pub(crate) fn sees_any_times(mut self) -> Self {
        self.backend.requests = None;
        self
    }

    pub(crate) fn sees_body(mut self, body: BodyEnd) -> Self {
        self.backend.body = body;
        self
    }

    /// On `paths` the row is another one, for `reason`.
    pub(crate) fn differs(
        mut self,
        paths: &'static [Path],
        _reason: &'static str,
        change: fn(Self) -> Self,
    ) -> Self {
        self.differences.push(Difference {
            paths,
            change: Some(change),
        });
        self
    }

    /// There is no such request on `paths`, for `reason`.
    pub(crate) fn skips(mut self, paths: &'static [Path], _reason: &'static str) -> Self {
        self.differences.push(Difference {
            paths,
            change: None,
        });
        self
    }

    /// No trailers, in either direction.
    pub(crate) fn without_trailers(mut self) -> Self {
        self.backend.trailers.clear();
        self.client.trailers = None;
        self
    }

    /// The row is about these paths alone.
    pub(crate) fn only(mut self, paths: &'static [Path]) -> Self {
        self.paths = paths;
        self
    }

    /// The row as it is on `path`; `None` if it does not exist there. What the version of HTTP changes is said here, once:
    ///
    /// - HTTP/1.0 has no chunks for a request, no interim responses and no trailers, and its connection ends with the response
    ///   unless the client asks for it to stay.
    /// - HTTP/2 has no `Connection`: its connection is open for other requests, whatever becomes of this one. Interim responses
    ///   are passed on or dropped.
    /// - Where Pingora carries the request, the connection may end behind a 502, 503 or 504.
    /// - Only a request with a body expects a 100. It gets one where it is served; a refusal may come behind one or without.
    pub(crate) fn on(&self, path: Path) -> Option<Self> {
        if !self.paths.contains(&path) {
            return None;
        }
        let unknown = self.request.body.is_unknown();
        if HTTP10.contains(&path) && (unknown || self.request.behind == Behind::Pipelined) {
            return None;
        }
        if EXPECT.contains(&path) && self.request.body.pieces().is_empty() && !unknown {
            return None;
        }
        let mut case = self.clone();
        if HTTP10.contains(&path) {
            if case.client.connection == Connection::Kept && !self.request.asks_to_stay() {
                case.client.connection = Connection::Closed;
            }
            case.client.interim = Some(Vec::new());
            case.client.trailers = Some(Vec::new());
        }
        if HTTP2.contains(&path) {
            if case.client.connection == Connection::Closed {
                case.client.connection = Connection::Either;
            }
            case.client.interim = None;
        }
        if PINGORA_HTTP1.contains(&path) && self.client.statuses.iter().all(|status| 500 <= *status)
        {
            // Pingora closes a connection behind an attempt that failed.
            case.client.connection = Connection::Either;
        }
        if EXPECT.contains(&path) {
            let served = self.client.statuses == [200];
            case.client.interim = case.client.interim.filter(|_| served).map(|interim| {
                let mut all = vec![100];
                all.extend(interim);
                all
            });
        }
        for difference in &self.differences {
            if difference.paths.contains(&path) {
                case = difference.change?(case);
            }
        }
        Some(case)
    }
}

fn owned(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}
