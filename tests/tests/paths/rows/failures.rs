//! Backends that fail: what is tried again, what the client gets, and that its connection stays open where its request has
//! been read.

use crate::{
    case::{
        BodyEnd, Case, Connection, HELLO, Step, case, does, get, ok, post, send, sends, stream,
    },
    path::{PINGORA_HTTP1, Path},
};

/// Where the edge may know of the failure before the body has come.
const BODY_LATER: &[Path] = &[
    Path::Two,
    Path::Bytes,
    Path::Expect,
    Path::OldTwo,
    Path::TlsTwo,
    Path::PluginTwo,
];

pub(crate) fn rows() -> Vec<Case> {
    let mut rows = without_a_response();
    rows.extend(cut_off());
    rows
}

fn without_a_response() -> Vec<Case> {
    let close = || does(vec![Step::ReadAll, Step::Close]);
    let reset = || does(vec![Step::ReadAll, Step::Reset]);
    let half_a_head = || {
        does(vec![
            Step::ReadAll,
            send("HTTP/1.1 200 OK\r\nContent-"),
            Step::Close,
        ])
    };
    let silent = || does(vec![Step::ReadAll, Step::Silent]);
    let responses = || sends(&[HELLO]);
    vec![
        case("a backend that is not there", get("/down"))
            .refused(503)
            .sees_times(0),
        case(
            "a backend that is not there, for a body",
            post("/down", &[b"hello"]),
        )
        .refused(503)
        .sees_times(0)
        .differs(BODY_LATER, "the request may not have been read", |case| {
            case.connection(Connection::Either)
        }),
        case("the backend closes without a response", get("/plain"))
            .attempted(vec![close()])
            .refused(502)
            .sees_any_times(),
        case("the backend resets without a response", get("/plain"))
            .attempted(vec![reset()])
            .refused(502)
            .sees_any_times(),
        case("the backend closes within the head", get("/plain"))
            .attempted(vec![half_a_head()])
            .refused(502)
            .sees_any_times(),
        case(
            "the backend closes without a response to a body",
            post("/body", &[b"hello"]),
        )
        .attempted(vec![close()])
        .refused(502),
        case(
            "the backend closes without a response to a body of no known length",
            stream("/body", &[b"hello"]),
        )
        .attempted(vec![close()])
        .refused(502),
        case(
            "the backend closes within the body",
            post("/body", &[b"hello"]),
        )
        .attempted(vec![does(vec![Step::Close])])
        .refused(502)
        .sees_body(BodyEnd::Either)
        .differs(BODY_LATER, "the request may not have been read", |case| {
            case.connection(Connection::Either)
        }),
        case(
            "another backend responds to what is idempotent",
            get("/two"),
        )
        .attempted(vec![close(), responses()])
        .sees_times(2),
        case(
            "no other backend gets what is not",
            post("/two", &[b"hello"]),
        )
        .attempted(vec![close(), responses()])
        .refused(502)
        .sees_times(1),
        case("the backend says nothing", get("/plain"))
            .attempted(vec![silent()])
            .waits()
            .refused(504)
            .sees_any_times(),
        case(
            "the backend says nothing to a body",
            stream("/body", &[b"hello"]),
        )
        .attempted(vec![silent()])
        .waits()
        .refused(504),
    ]
}

fn cut_off() -> Vec<Case> {
    let cut = |bytes: &str| sends(&[bytes]).then(Step::ClientHas(5)).then(Step::Close);
    let reset = |bytes: &str| sends(&[bytes]).then(Step::ClientHas(5)).then(Step::Reset);
    let length = ok("Content-Length: 10\r\n", "hello");
    let chunk = ok("Transfer-Encoding: chunked\r\n", "a\r\nhello");
    let no_last_chunk = ok("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n");
    let endless = ok("", "hello");
    vec![
        case("a response cut off before its length", get("/plain"))
            .attempted(vec![cut(&length)])
            .gets_cut("hello")
            .skips(PINGORA_HTTP1, "Pingora holds a body with a length back"),
        case("a response cut off within a chunk", get("/plain"))
            .attempted(vec![cut(&chunk)])
            .gets_cut("hello"),
        case("a response cut off before its last chunk", get("/plain"))
            .attempted(vec![cut(&no_last_chunk)])
            .gets_cut("hello"),
        case("a response reset before its length", get("/plain"))
            .attempted(vec![reset(&length)])
            .gets_cut("hello")
            .skips(PINGORA_HTTP1, "Pingora holds a body with a length back"),
        case("a response reset before its last chunk", get("/plain"))
            .attempted(vec![reset(&no_last_chunk)])
            .gets_cut("hello"),
        case(
            "a response that ends with its connection, reset",
            get("/plain"),
        )
        .attempted(vec![reset(&endless)])
        .gets_cut("hello"),
        case("a response that stops before its length", get("/plain"))
            .attempted(vec![sends(&[&length]).then(Step::Silent)])
            .waits()
            .gets_cut("hello"),
    ]
}
