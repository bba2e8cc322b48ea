//! The situations of four files of nginx's public test suite (nginx-tests), on every path and as the newer RFCs have them.
//!
//! | file | situations | rows |
//! |---|---|---|
//! | `proxy_websocket.t` | handshake, a message, a large one, many in turn; a message behind the handshake in the same write | [`websockets`] |
//! | `proxy_noclose.t` | a backend that says `Connection: close` and does not close: with a length, in two packets, without a length | [`unclosed`] |
//! | `proxy_chunked_extra.t` | a response in chunks with more chunks behind its last one | [`behind_the_last_chunk`] |
//! | `http_expect_100_continue.t` | `100-continue`, in any case; in HTTP/1.0; an expectation that nobody knows, with a parameter too | [`expectations`] |
//!
//! Where a row wants something else than that suite does, it says so with the reason.

use crate::{
    case::{
        Attempt, Case, Connection, HELLO, Step, case, does, get, ok, post, send, sends, websocket,
    },
    path::{EXPECT, HTTP10, PINGORA_HTTP1},
};

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

pub(crate) fn rows() -> Vec<Case> {
    let mut rows = websockets();
    rows.extend(unclosed());
    rows.extend(behind_the_last_chunk());
    rows.extend(expectations());
    rows
}

/// A text frame of a client: its mask is zero, so that its payload can be read here.
fn frame(payload: &str) -> Vec<u8> {
    const FINAL_TEXT: u8 = 0x81;
    const MASKED: u8 = 0x80;
    let length = payload.len();
    let mut frame = vec![FINAL_TEXT];
    match u16::try_from(length) {
        Ok(length) if length < 126 => frame.push(MASKED | length as u8),
        Ok(length) => {
            frame.push(MASKED | 126);
            frame.extend(length.to_be_bytes());
        }
        Err(_) => {
            frame.push(MASKED | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload.as_bytes());
    frame
}

/// `proxy_websocket.t`: its backend changes each message; here what comes back must be what was sent, in its order.
fn websockets() -> Vec<Case> {
    let large = "large!".repeat(8 * 1024);
    let mut many = frame("first");
    many.extend(frame(&large));
    for number in 0..10 {
        many.extend(frame(&format!("{large}{number}")));
        many.extend(frame(&format!("small {number}")));
    }
    let (early, then) = (frame("at once"), frame("later"));
    let echoes = || does(vec![Step::ReadAll, send(SWITCH), Step::Echo]);
    vec![
        case(
            "nginx: large and small messages in turn",
            websocket("/ws", b"", &many),
        )
        .attempted(vec![echoes()])
        .tunnels(&many),
        case(
            "nginx: a message behind the handshake, and one after it",
            websocket("/ws", &early, &then),
        )
        .attempted(vec![echoes()])
        .tunnels([early, then].concat()),
    ]
}

/// `proxy_noclose.t`: where the end of a response is known from its framing, nobody waits for the backend to close.
fn unclosed() -> Vec<Case> {
    let closing = ok("Connection: close\r\nContent-Length: 10\r\n", "");
    let stays = |steps: Vec<Step>| {
        let mut all = vec![Step::ReadAll];
        all.extend(steps);
        all.push(Step::Silent);
        does(all)
    };
    vec![
        case(
            "nginx: Connection: close and a length, and the backend does not close",
            get("/plain"),
        )
        .attempted(vec![stays(vec![
            send([&closing, "0123456789"].concat()),
            Step::ClientHas(10),
        ])])
        .gets(200, "0123456789")
        .gets_header("content-length", &["10"])
        .skips(PINGORA_HTTP1, HOLDS_BACK),
        case("nginx: the same in two packets", get("/plain"))
            .attempted(vec![stays(vec![
                send([&closing, "01234"].concat()),
                Step::ClientHas(5),
                send("56789"),
                Step::ClientHas(10),
            ])])
            .gets(200, "0123456789")
            .skips(PINGORA_HTTP1, HOLDS_BACK),
        // nginx-tests wants what has come to reach the client ("not yet" there). Here it does, at once. But that it is all of the
        // response nobody can know: a backend that falls silent is no end of a body (RFC 9112, 6.3 and 8), so `timeouts.upstream_read` cuts it off.
        case(
            "nginx: Connection: close without a length, and the backend does not close",
            get("/plain"),
        )
        .attempted(vec![stays(vec![
            send(ok("Connection: close\r\n", "0123456789")),
            Step::ClientHas(10),
        ])])
        .waits()
        .gets_cut("0123456789"),
    ]
}

const HOLDS_BACK: &str = "Pingora holds a body with a length back";

/// `proxy_chunked_extra.t`: many chunks, then in one write the rest, the last chunk and another body in chunks.
fn behind_the_last_chunk() -> Vec<Case> {
    let chunk = |byte: &str, length: usize| format!("{length:x}\r\n{}\r\n", byte.repeat(length));
    let last = "0\r\n\r\n";
    let start: String = [128, 128, 128, 128, 32]
        .map(|length| chunk("x", length))
        .concat();
    let rest = [chunk("y", 117), last.to_owned()].concat();
    let extra = [chunk("z", 117), last.to_owned()].concat().repeat(2);
    let whole = ["x".repeat(4 * 128 + 32), "y".repeat(117)].concat();
    let row = |name: &'static str, headers: &str, attempt: fn(Attempt) -> Attempt| {
        let pieces = [
            ok(&format!("{headers}Transfer-Encoding: chunked\r\n"), &start),
            [&*rest, &*extra].concat(),
        ];
        case(name, get("/closing").next("/closing"))
            .attempted(vec![attempt(sends(&pieces))])
            .gets(200, &whole)
    };
    vec![
        row(
            "nginx: chunks behind the last chunk, and the backend closes",
            "Connection: close\r\n",
            |attempt| attempt.then(Step::Close),
        ),
        row(
            "nginx: chunks behind the last chunk, and the backend stays",
            "",
            |attempt| attempt.spent("more came behind the last chunk"),
        ),
    ]
}

/// `http_expect_100_continue.t`: each with `Content-Length: 0` there; here with a body too.
fn expectations() -> Vec<Case> {
    let silent = || does(vec![Step::ReadAll, send(HELLO)]);
    // RFC 2616 made 417 a duty (nginx-tests has it as "not yet"), RFC 9110, 10.1.1 allows it.
    let unknown = |value: &'static str| {
        let name = format!("nginx: Expect: {value}");
        case(name, post("/body", &[b"hello"]).header("Expect", value))
            .refused(417)
            .sees_times(0)
            .skips(EXPECT, "there the request says 100-continue")
            .differs(
                HTTP10,
                "what HTTP/1.0 expects is ignored (RFC 9110, 10.1.1)",
                |case| case.gets(200, "hello").sees("expect", &[]).sees_times(1),
            )
            .differs(
                PINGORA_HTTP1,
                "Pingora ends a connection on which a request was refused before its body was read",
                |case| case.connection(Connection::Either),
            )
    };
    vec![
        // nginx-tests wants a 100 here. RFC 9110, 10.1.1: a server may leave it out where the framing says that there is no body.
        case(
            "nginx: Expect: 100-continue and a length of 0",
            post("/body", &[]).header("Expect", "100-continue"),
        )
        .attempted(vec![silent()])
        .any_interim()
        .skips(EXPECT, "there the request says it already"),
        case(
            "nginx: Expect: 100-Continue in another case",
            post("/body", &[b"hello"]).header("Expect", "100-Continue"),
        )
        .any_interim()
        .differs(
            PINGORA_HTTP1,
            "Pingora ends a connection on which it wrote a 100 within the body",
            |case| case.connection(Connection::Either),
        )
        .skips(EXPECT, "there the request says it already"),
        // No 100 to HTTP/1.0, which `Case::on` asks of each row, and the expectation is ignored (RFC 9110, 10.1.1): it ends here.
        case(
            "nginx: Expect: 100-continue in HTTP/1.0",
            post("/body", &[b"hello"]).header("Expect", "100-continue"),
        )
        .only(HTTP10)
        .sees("expect", &[]),
        unknown("unknown"),
        unknown("token=param"),
        // Not in nginx-tests: both in one value, and one that some servers take for 100-continue.
        unknown("100-continue, unknown"),
        unknown("y 100-continue"),
    ]
}
