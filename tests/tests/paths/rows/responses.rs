//! Responses: what a backend may send, and how it reaches the client.

use std::time::Duration;

use crate::{
    case::{
        Case, Connection, HELLO, Step, bodiless, case, does, get, ok, post, response, send, sends,
        stream,
    },
    path::{HTTP10, PINGORA, PINGORA_HTTP1},
};

pub(crate) fn rows() -> Vec<Case> {
    let mut rows = framed();
    rows.extend(bodiless_ones());
    rows.extend(lenient());
    rows.extend(wrong());
    rows.extend(either());
    rows.extend(wrong_chunks());
    rows.extend(interim());
    rows.extend(connections());
    rows
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

fn chunked(body: &str) -> String {
    ok(CHUNKED, body)
}

fn framed() -> Vec<Case> {
    let large = "x".repeat(1024 * 1024);
    let length = format!("Content-Length: {}\r\n", large.len());
    let large_chunk = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let head = "HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 5\r\n\r\n";
    let bytes: Vec<[u8; 1]> = [head, "hello"]
        .concat()
        .bytes()
        .map(|byte| [byte])
        .collect();
    let stream = does(vec![
        Step::ReadAll,
        send(chunked("5\r\nhello\r\n")),
        Step::ClientHas(5),
        send("6\r\n world\r\n"),
        Step::ClientHas(11),
        send("0\r\n\r\n"),
    ]);
    let with_length = does(vec![
        Step::ReadAll,
        send(ok("Content-Length: 11\r\n", "hello")),
        Step::ClientHas(5),
        send(" world"),
    ]);
    vec![
        case("a response with a length", get("/plain")).gets_header("content-length", &["5"]),
        case("a response with a length, in pieces", get("/plain")).answered_in(&[
            "HTTP/1.1 200 OK\r\nContent-Le",
            "ngth: 5\r\n\r\nhe",
            "llo",
        ]),
        case("a response byte by byte", get("/plain")).answered_in(&bytes),
        case("a response with a length of 0", get("/plain"))
            .answered(ok("Content-Length: 0\r\n", ""))
            .gets(200, ""),
        case("a response in chunks", get("/plain"))
            .answered(chunked("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"))
            .gets(200, "hello world"),
        case("a response in chunks, in pieces", get("/plain")).answered_in(&[
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5",
            "\r\nhel",
            "lo\r",
            "\n0\r\n",
            "\r\n",
        ]),
        case("a response that ends with its connection", get("/plain"))
            .attempted(vec![sends(&[ok("", "hello")]).then(Step::Close)]),
        case("1 MiB with a length", get("/plain"))
            .answered(ok(&length, &large))
            .gets(200, &large),
        case("1 MiB in a chunk", get("/plain"))
            .answered(chunked(&large_chunk))
            .gets(200, &large),
        case("1 MiB that ends with its connection", get("/plain"))
            .attempted(vec![sends(&[ok("", &large)]).then(Step::Close)])
            .gets(200, &large),
        case(
            "a response in chunks is passed on as it comes",
            get("/plain"),
        )
        .attempted(vec![stream])
        .gets(200, "hello world"),
        case(
            "a response with a length is passed on as it comes",
            get("/plain"),
        )
        .attempted(vec![with_length])
        .gets(200, "hello world")
        .skips(PINGORA_HTTP1, "Pingora holds a body with a length back"),
        case(
            "trailers of a response",
            get("/plain").header("TE", "trailers"),
        )
        .answered(ok(
            "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n",
            "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
        ))
        .gets_trailer("x-sum", "1")
        .differs(
            PINGORA,
            "Pingora passes no trailers on",
            Case::without_trailers,
        ),
    ]
}

fn bodiless_ones() -> Vec<Case> {
    vec![
        case("204", get("/plain"))
            .answered(response("204 No Content", "", ""))
            .gets(204, ""),
        case("204 with a length of 0", get("/plain"))
            .answered(response("204 No Content", "Content-Length: 0\r\n", ""))
            .gets(204, ""),
        case("204 in chunks", get("/plain"))
            .answered(response("204 No Content", CHUNKED, ""))
            .gets(204, ""),
        case("204 with a body", get("/plain"))
            .attempted(vec![
                sends(&[response("204 No Content", "Content-Length: 5\r\n", "hello")])
                    .spent("a 204 has no body"),
            ])
            .gets(204, ""),
        case("304 with the length of what it stands for", get("/plain"))
            .answered(response(
                "304 Not Modified",
                "ETag: \"a\"\r\nContent-Length: 5\r\n",
                "",
            ))
            .gets(304, "")
            .gets_header("etag", &["\"a\""]),
        case(
            "HEAD, with a response in chunks",
            bodiless("HEAD", "/plain"),
        )
        .answered(ok(CHUNKED, ""))
        .gets(200, ""),
        case("HEAD, with a body", bodiless("HEAD", "/plain"))
            .attempted(vec![
                sends(&[HELLO]).spent("a response to HEAD has no body"),
            ])
            .gets(200, ""),
        case("304 with a body", get("/plain"))
            .attempted(vec![
                sends(&[response(
                    "304 Not Modified",
                    "Content-Length: 5\r\n",
                    "hello",
                )])
                .spent("a 304 has no body"),
            ])
            .gets(304, ""),
        case("HEAD, without a length", bodiless("HEAD", "/plain"))
            .answered(ok("", ""))
            .gets(200, ""),
    ]
}

/// What other proxies take too, and what can be read in one way only.
fn lenient() -> Vec<Case> {
    let headers: String = (0..100)
        .map(|number| format!("X-{number}: y\r\n"))
        .collect();
    let head_of_40_kb = format!("X-Long: {}\r\nContent-Length: 5\r\n", "y".repeat(40_000));
    vec![
        case("two equal lengths", get("/plain"))
            .answered(ok("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"))
            .gets_header("content-length", &["5"]),
        case("Transfer-Encoding: Chunked", get("/plain")).answered(ok(
            "Transfer-Encoding: Chunked\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
        )),
        case("a chunk size followed by blanks", get("/plain"))
            .answered(chunked("5  \r\nhello\r\n0 \r\n\r\n")),
        case("a chunk with an extension", get("/plain"))
            .answered(chunked("5;a=b\r\nhello\r\n0;c\r\n\r\n")),
        case("a chunk size with zeros before it", get("/plain"))
            .answered(chunked("0005\r\nhello\r\n000\r\n\r\n")),
        case("a chunk size in capitals", get("/plain"))
            .answered(chunked("A\r\nhellohello\r\n0\r\n\r\n"))
            .gets(200, "hellohello"),
        case("a status without a reason", get("/plain"))
            .answered("HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello"),
        case("a status that nobody knows", get("/plain"))
            .answered(response("299 Odd", "Content-Length: 5\r\n", "hello"))
            .gets(299, "hello"),
        case(
            "a response of HTTP/1.0 that ends with its connection",
            get("/plain"),
        )
        .attempted(vec![
            sends(&["HTTP/1.0 200 OK\r\n\r\nhello"]).then(Step::Close),
        ]),
        case("a response of HTTP/1.0 with a length", get("/plain")).attempted(vec![
            sends(&["HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"])
                .spent("a response of HTTP/1.0 is the last one"),
        ]),
        case("100 headers", get("/plain"))
            .answered(ok(&format!("{headers}Content-Length: 5\r\n"), "hello"))
            .gets_header("x-99", &["y"]),
        case("a head of 40 KB", get("/plain")).answered(ok(&head_of_40_kb, "hello")),
    ]
}

/// What nobody can be sure to read as it was meant: it is refused before anything of it has gone out.
fn wrong() -> Vec<Case> {
    let wrong = |name: &'static str, bytes: &str| {
        case(name, get("/plain"))
            .attempted(vec![sends(&[bytes]).spent("it sent a wrong response")])
            .refused(502)
            .sees_any_times()
    };
    let with = |name, headers: &str| wrong(name, &ok(headers, "hello"));
    let many: String = (0..300)
        .map(|number| format!("X-{number}: y\r\n"))
        .collect();
    let many = many + "Content-Length: 5\r\n";
    let head = |size: usize| format!("X-Long: {}\r\nContent-Length: 5\r\n", "y".repeat(size));
    vec![
        with(
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: gzip, chunked\r\n",
        ),
        with("Transfer-Encoding: gzip", "Transfer-Encoding: gzip\r\n"),
        with(
            "Transfer-Encoding: identity",
            "Transfer-Encoding: identity\r\nContent-Length: 5\r\n",
        ),
        with(
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked, chunked\r\n",
        ),
        with(
            "two lengths that differ",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
        ),
        with("a length of -5", "Content-Length: -5\r\n"),
        with("a length of +5", "Content-Length: +5\r\n"),
        with(
            "a length of 2^64 + 5",
            "Content-Length: 18446744073709551621\r\n",
        ),
        with("a length that is no number", "Content-Length: five\r\n"),
        with("a head of 100 KB", &head(100_000)),
        with("a head of 300 KB", &head(300_000)),
        with("300 headers of a response", &many),
        with("a NUL in a header", "X-A: b\0c\r\nContent-Length: 5\r\n"),
        with("a line without a colon", "X-A\r\nContent-Length: 5\r\n"),
        wrong("a response that is no HTTP", "hello\r\n\r\n"),
        wrong(
            "a response of HTTP/2.0",
            "HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        ),
        wrong(
            "a status of four digits",
            "HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nhello",
        ),
        wrong(
            "a status below 100",
            "HTTP/1.1 099 OK\r\nContent-Length: 5\r\n\r\nhello",
        ),
    ]
}

/// What may be set right or refused, but not passed on as it is.
fn either() -> Vec<Case> {
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    let either = |name: &'static str, headers: &str, body: &str| {
        case(name, get("/plain"))
            .answered(ok(headers, body))
            .gets_one_of(&[200, 502])
            .connection(Connection::Either)
            .sees_any_times()
    };
    vec![
        either(
            "a space before the colon",
            "X-A : b\r\nContent-Length: 5\r\n",
            "hello",
        ),
        either(
            "a folded header",
            "X-A: b\r\n c\r\nContent-Length: 5\r\n",
            "hello",
        ),
        either(
            "a line feed in a header",
            "X-A: b\nX-B: c\r\nContent-Length: 5\r\n",
            "hello",
        ),
        either(
            "a carriage return in a header",
            "X-A: b\rX-B: c\r\nContent-Length: 5\r\n",
            "hello",
        ),
        either(
            "a list of equal lengths",
            "Content-Length: 5, 5\r\n",
            "hello",
        ),
        either(
            "chunks and a length",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            chunks,
        ),
        either(
            "two Transfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            chunks,
        ),
    ]
}

/// Chunks that are none: what has come before may have gone out, and the client sees that it is not all.
fn wrong_chunks() -> Vec<Case> {
    let wrong = |name: &'static str, body: &str| {
        case(name, get("/plain"))
            .attempted(vec![sends(&[chunked(body)]).spent("it sent a wrong chunk")])
            .gets_cut_or_502()
            .sees_any_times()
    };
    let later = |name: &'static str, body: &str| {
        case(name, get("/plain"))
            .attempted(vec![
                sends(&[chunked("5\r\nhello\r\n")])
                    .then(Step::ClientHas(5))
                    .then(send(body))
                    .spent("it sent a wrong chunk"),
            ])
            .gets_cut("hello")
    };
    vec![
        wrong("a chunk of size -5", "-5\r\nhello\r\n0\r\n\r\n"),
        wrong("a chunk of size zz", "zz\r\nhello\r\n0\r\n\r\n"),
        wrong("a chunk of size 0x5", "0x5\r\nhello\r\n0\r\n\r\n"),
        wrong("a chunk of no size", "\r\nhello\r\n0\r\n\r\n")
            .skips(PINGORA, "Pingora takes it for the last one"),
        wrong(
            "a chunk of size 2^64 + 5",
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
        ),
        wrong(
            "a chunk of size 2^64 - 1",
            "ffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        )
        .waits(),
        wrong("a chunk longer than its size", "3\r\nhello\r\n0\r\n\r\n"),
        later(
            "a chunk of size -5 behind a good one",
            "-5\r\nhello\r\n0\r\n\r\n",
        ),
        later(
            "a chunk of size zz behind a good one",
            "zz\r\nhello\r\n0\r\n\r\n",
        ),
        later(
            "a chunk without CR LF behind a good one",
            "5\r\nhelloXX0\r\n\r\n",
        ),
    ]
}

fn interim() -> Vec<Case> {
    let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";
    let early = does(vec![
        Step::ReadAll,
        send(hints),
        Step::Pause(Duration::from_millis(20)),
        send(HELLO),
    ]);
    vec![
        case("103, and the response at once", get("/plain"))
            .answered([hints, HELLO].concat())
            .gets_interim(&[103]),
        case("103, and the response later", get("/plain"))
            .attempted(vec![early])
            .gets_interim(&[103]),
        case("two 103 in chunks of their own", get("/plain"))
            .answered_in(&[hints, hints, HELLO])
            .gets_interim(&[103, 103]),
        case("103 before a response to a body", post("/body", &[b"hello"]))
            .answered_in(&[hints, HELLO])
            .gets_interim(&[103]),
        case("1,000 interim responses", get("/plain"))
            .answered([hints.repeat(1_000), HELLO.to_owned()].concat())
            .gets_one_of(&[200, 502])
            .any_interim()
            .connection(Connection::Either)
            .sees_any_times()
            .differs(HTTP10, "HTTP/1.0 has no interim responses", |case| {
                case.gets_interim(&[])
            }),
        case("100 that nobody asked for", get("/plain"))
            .answered(["HTTP/1.1 100 Continue\r\n\r\n", HELLO].concat())
            .any_interim()
            .differs(HTTP10, "HTTP/1.0 has no interim responses", |case| case.gets_interim(&[])),
        case("101 that nobody asked for", get("/plain"))
            .attempted(vec![
                sends(&["HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"])
                    .then(Step::Silent),
            ])
            .refused(502)
            .sees_any_times(),
    ]
}

/// What a response says of its backend's connection is not what becomes of the client's.
fn connections() -> Vec<Case> {
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    let more = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let close = ok("Connection: close\r\nContent-Length: 5\r\n", "hello");
    let behind = |name: &'static str, response: &str| {
        case(name, get("/plain")).attempted(vec![
            sends(&[[response, more].concat()]).spent("more came behind the response"),
        ])
    };
    vec![
        case("a response with Connection: close", get("/plain"))
            .attempted(vec![sends(&[&close]).then(Step::Close)]),
        case(
            "a response with Connection: close, and the backend stays",
            get("/plain"),
        )
        .attempted(vec![sends(&[&close]).spent("it said that it would close")]),
        case(
            "the backend closes behind its response without a word",
            // Apart from the others: of a POST that meets such a connection nobody can say whether it has been served.
            get("/closing").next("/closing"),
        )
        .attempted(vec![sends(&[HELLO]).then(Step::Close)]),
        behind("a response with more behind it", HELLO),
        behind("a response in chunks with more behind it", &chunked(chunks)),
        behind(
            "a 204 with more behind it",
            "HTTP/1.1 204 No Content\r\n\r\n",
        )
        .gets(204, ""),
        case(
            "a response over TLS that ends with its connection",
            get("/tls"),
        )
        .attempted(vec![sends(&[ok("", "hello")]).then(Step::Close)]),
        case(
            "a response over TLS that ends without close_notify",
            get("/tls"),
        )
        .attempted(vec![
            sends(&[ok("", "hello")])
                .then(Step::ClientHas(5))
                .then(Step::Drop),
        ])
        .gets_cut("hello"),
        case("a response with a length over TLS", get("/tls")),
        case(
            "a body of no known length over TLS",
            stream("/tls", &[b"hello", b"world"]),
        ),
    ]
}
