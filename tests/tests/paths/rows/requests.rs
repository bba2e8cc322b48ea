//! Requests and their bodies: however they come, the backend gets the same one, with one end.

use std::time::Duration;

use crate::{
    case::{
        Behind, BodyEnd, Case, Connection, HELLO, Pace, Step, bodiless, case, does, get, ok, post,
        response, send, sends, stream,
    },
    path::{EXPECT, HTTP2, HTTP10, PINGORA, PINGORA_HTTP1},
    site::BODY_MAX,
};

const NO_CONNECTION: &str = "HTTP/2 has no Connection header";

pub(crate) fn rows() -> Vec<Case> {
    let mut rows = plain();
    rows.extend(targets());
    rows.extend(bodies());
    rows.extend(connections());
    rows.extend(trailers());
    rows.extend(expectations());
    rows.extend(early());
    rows
}

fn plain() -> Vec<Case> {
    vec![
        case("GET", get("/plain")),
        case("HEAD", bodiless("HEAD", "/plain"))
            .answered(ok("Content-Length: 5\r\n", ""))
            .gets(200, "")
            .gets_header("content-length", &["5"]),
        case("DELETE without a body", bodiless("DELETE", "/plain")),
        case("a method that nobody knows", bodiless("PURGE", "/plain")),
        case("OPTIONS", bodiless("OPTIONS", "/plain")),
        case(
            "a target with escapes, dots and a query",
            get("/a%20b;p=1/%C3%A9/c%2Fd/x.y?x=1&y=%2F?&z"),
        ),
    ]
}

/// What is for the operators of a backend has no route, however it is spelled.
fn targets() -> Vec<Case> {
    const SPELLINGS: [&str; 9] = [
        "/metrics",
        "/ready?x=1",
        "/%6Detrics",
        "//metrics",
        "/./metrics",
        "/x/../metrics",
        "/metrics;a=b",
        "/x;y/../metrics",
        "/%256Detrics",
    ];
    let row = |target| {
        case(format!("{target} has no route"), get(target))
            .refused(404)
            .sees_times(0)
    };
    SPELLINGS.map(row).to_vec()
}

fn bodies() -> Vec<Case> {
    let large = vec![b'x'; 64 * 1024];
    let many: Vec<&[u8]> = vec![&large; 16];
    let too_many: Vec<&[u8]> = vec![&large; 1 + BODY_MAX / large.len()];
    let too_large: &[&[u8]] = &too_many;
    vec![
        case("POST with a length", post("/body", &[b"hello"])),
        case(
            "POST with a length, in pieces",
            post("/body", &[b"he", b"l", b"lo"]),
        ),
        case(
            "POST of no known length",
            stream("/body", &[b"hello ", b"world"]),
        ),
        case(
            "POST of no known length, ended by its last piece",
            stream("/body", &[b"hello ", b"world"]).end_on_last_piece(),
        ),
        case(
            "POST of no known length, without a byte",
            stream("/body", &[]),
        ),
        case("PUT with a length of 0", post("/body", &[]).method("PUT")),
        case("GET with a body", post("/body", &[b"hello"]).method("GET")),
        case("1 MiB with a length", post("/body", &many)),
        case("1 MiB of no known length", stream("/body", &many)),
        case(
            "a body with a length is passed on as it comes",
            post("/body", &[b"one", b"two", b"three"]).pace(Pace::BackendHas),
        ),
        case(
            "a body of no known length is passed on as it comes",
            stream("/body", &[b"one", b"two", b"three"]).pace(Pace::BackendHas),
        ),
        case(
            "the client leaves within a body with a length",
            post("/body", &[b"hello"])
                .declares(1000)
                .then(Behind::Leave),
        )
        .sees_body(BodyEnd::Cut),
        case(
            "the client leaves within a body of no known length",
            stream("/body", &[b"hello"]).then(Behind::Leave),
        )
        .sees_body(BodyEnd::Cut),
        case(
            "a body that stops coming",
            post("/body", &[b"hello"])
                .declares(1000)
                .then(Behind::Nothing),
        )
        .gets_one_of(&[408, 0])
        .waits()
        .connection(Connection::Either)
        .sees_body(BodyEnd::Cut),
        case(
            "a declared length over limits.body_size",
            post("/body", &[])
                .declares(BODY_MAX + 1)
                .then(Behind::Nothing),
        )
        .refused(413)
        .connection(Connection::Either)
        .sees_times(0),
        case(
            "a body with a length over limits.body_size",
            post("/body", too_large).then(Behind::Nothing),
        )
        .refused(413)
        .connection(Connection::Either)
        .sees_times(0),
        case(
            "a body of no known length over limits.body_size",
            stream("/body", too_large).then(Behind::Nothing),
        )
        .refused(413)
        .connection(Connection::Either)
        .sees_body(BodyEnd::Cut),
    ]
}

fn connections() -> Vec<Case> {
    vec![
        case(
            "Connection: close",
            get("/plain").header("Connection", "close"),
        )
        .connection(Connection::Closed)
        .skips(HTTP2, NO_CONNECTION),
        case(
            "Connection: close behind a body",
            stream("/body", &[b"hello"]).header("Connection", "close"),
        )
        .connection(Connection::Closed)
        .skips(HTTP2, NO_CONNECTION),
        case(
            "Connection: keep-alive in HTTP/1.0",
            get("/plain").header("Connection", "keep-alive"),
        )
        .only(HTTP10),
        case(
            "a second request at once",
            get("/plain").then(Behind::Pipelined),
        )
        .skips(
            PINGORA_HTTP1,
            "Pingora serves no request that comes before the response to the one before",
        ),
        case(
            "a second request right behind a body with a length",
            post("/body", &[b"hello"]).then(Behind::Pipelined),
        )
        .skips(
            PINGORA_HTTP1,
            "Pingora serves no request that comes before the response to the one before",
        ),
        case(
            "a second request right behind a body of no known length",
            stream("/body", &[b"hello"]).then(Behind::Pipelined),
        )
        .skips(
            PINGORA_HTTP1,
            "Pingora serves no request that comes before the response to the one before",
        ),
        case(
            "the client ends its side behind a GET",
            get("/plain").then(Behind::HalfClose),
        )
        .attempted(vec![slowly()])
        .connection(Connection::Either)
        .skips(
            PINGORA_HTTP1,
            "to Pingora a client that ends its side has left",
        ),
        case(
            "the client ends its side behind a body",
            post("/body", &[b"hello"]).then(Behind::HalfClose),
        )
        .attempted(vec![slowly()])
        .connection(Connection::Either)
        .skips(
            PINGORA_HTTP1,
            "to Pingora a client that ends its side has left",
        ),
        case(
            "the client ends its side behind a body of no known length",
            stream("/body", &[b"hello"]).then(Behind::HalfClose),
        )
        .attempted(vec![slowly()])
        .connection(Connection::Either)
        .skips(
            PINGORA_HTTP1,
            "to Pingora a client that ends its side has left",
        ),
    ]
}

/// Responds when the edge has had the time to see that the client has ended its side.
fn slowly() -> crate::case::Attempt {
    let mut attempt = sends::<&str>(&[]);
    attempt.steps.push(Step::Pause(Duration::from_millis(100)));
    attempt.then(send(HELLO))
}

fn trailers() -> Vec<Case> {
    vec![
        case(
            "trailers of a request",
            stream("/body", &[b"hello"])
                .header("Trailer", "X-Sum, X-Rest")
                .trailer("X-Sum", "1")
                .trailer("X-Rest", "2"),
        )
        .sees_trailer("x-sum", "1")
        .sees_trailer("x-rest", "2")
        .differs(
            PINGORA,
            "Pingora passes no trailers on",
            Case::without_trailers,
        ),
        case(
            "trailers of a request without a body",
            stream("/body", &[]).trailer("X-Sum", "1"),
        )
        .sees_trailer("x-sum", "1")
        .differs(
            PINGORA,
            "Pingora passes no trailers on",
            Case::without_trailers,
        ),
        case(
            "trailers that are none: framing, host, cookie, who the client is",
            stream("/body", &[b"hello"])
                .trailer("X-Sum", "1")
                .trailer("Content-Length", "5")
                .trailer("Host", "evil")
                .trailer("Cookie", "a=b")
                .trailer("X-Forwarded-For", "6.6.6.6"),
        )
        .gets_one_of(&[200, 400])
        .connection(Connection::Either)
        .any_interim()
        .sees_body(BodyEnd::Either)
        .sees_any_times()
        .sees_trailer("x-sum", "1")
        .differs(
            PINGORA,
            "Pingora passes no trailers on",
            Case::without_trailers,
        ),
    ]
}

fn expectations() -> Vec<Case> {
    let refusal = response("403 Forbidden", "Content-Length: 2\r\n", "no");
    vec![
        case("Expect: the backend says 100", post("/body", &[b"hello"])).only(EXPECT),
        case(
            "Expect: the client does not wait, and the backend says 100",
            post("/body", &[b"hello"]).header("Expect", "100-continue"),
        )
        .any_interim()
        .differs(
            PINGORA_HTTP1,
            "Pingora ends a connection on which it wrote a 100 within the body",
            |case| case.connection(Connection::Either),
        )
        .skips(EXPECT, "there it waits"),
        case(
            "Expect: the client does not wait, and the backend never says 100",
            post("/body", &[b"hello"]).header("Expect", "100-continue"),
        )
        .attempted(vec![does(vec![Step::ReadAll, send(HELLO)])])
        .any_interim()
        .skips(EXPECT, "there it waits"),
        case(
            "Expect: a body of no known length that does not wait",
            stream("/body", &[b"hello"]).header("Expect", "100-continue"),
        )
        .attempted(vec![does(vec![Step::ReadAll, send(HELLO)])])
        .any_interim()
        .skips(EXPECT, "there it waits"),
        case(
            "Expect: the backend never says 100",
            post("/body", &[b"hello"]),
        )
        .only(EXPECT)
        .attempted(vec![does(vec![Step::ReadAll, send(HELLO)])])
        .differs(
            EXPECT,
            "the edge may say it, or wait for the backend",
            Case::any_interim,
        ),
        case(
            "Expect: the backend responds at once, without the body",
            post("/body", &[b"hello"]),
        )
        .only(EXPECT)
        .attempted(vec![
            does(vec![send(&refusal)]).spent("a body that it expects did not come"),
        ])
        .gets(403, "no")
        .connection(Connection::Either)
        .sees_body(BodyEnd::Either),
        case(
            "Expect: the backend responds at once and closes",
            post("/body", &[b"hello"]),
        )
        .only(EXPECT)
        .attempted(vec![does(vec![send(&refusal), Step::Close])])
        .gets(403, "no")
        .connection(Connection::Either)
        .sees_body(BodyEnd::Either),
    ]
}

/// Responses that come before their requests have ended.
fn early() -> Vec<Case> {
    let refusal = response("403 Forbidden", "Content-Length: 2\r\n", "no");
    let rest = vec![b'x'; 100_000];
    let pieces: &[&[u8]] = &[b"hello", &rest];
    let early = |name, request| {
        case(name, request)
            .gets(403, "no")
            .connection(Connection::Either)
            .sees_body(BodyEnd::Either)
    };
    vec![
        early(
            "a response within a body with a length",
            post("/body", pieces).pace(Pace::ResponseCame),
        )
        .attempted(vec![does(vec![send(&refusal)])]),
        early(
            "a response within a body of no known length",
            stream("/body", pieces).pace(Pace::ResponseCame),
        )
        .attempted(vec![does(vec![send(&refusal)])]),
        early(
            "a response within a body, and its backend closes",
            post("/body", pieces).pace(Pace::ResponseCame),
        )
        .attempted(vec![does(vec![send(&refusal), Step::Close])]),
        early(
            "a response with Connection: close within a body",
            stream("/body", pieces).pace(Pace::ResponseCame),
        )
        .attempted(vec![does(vec![
            send(response(
                "403 Forbidden",
                "Connection: close\r\nContent-Length: 2\r\n",
                "no",
            )),
            Step::Close,
        ])]),
    ]
}
