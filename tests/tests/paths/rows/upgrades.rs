//! Upgrades, over HTTP/1.1 and as extended CONNECT over HTTP/2 (RFC 8441).

use crate::{
    case::{Attempt, Case, Connection, HELLO, Step, case, does, ok, response, send, websocket},
    path::HTTP2,
};

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A message of a client, and one of a server.
const CLIENT: &[u8] = b"\x81\x85\0\0\0\0hello";
const SERVER: &[u8] = b"\x81\x05world";

pub(crate) fn rows() -> Vec<Case> {
    let mut rows = opened();
    rows.extend(refused());
    rows.extend(wrong());
    rows
}

fn switches(head: impl AsRef<[u8]>) -> Attempt {
    does(vec![Step::ReadAll, send(head), Step::Echo])
}

fn opened() -> Vec<Case> {
    let two = [CLIENT, CLIENT].concat();
    vec![
        case("an upgrade", websocket("/ws", b"", CLIENT))
            .attempted(vec![switches(SWITCH)])
            .tunnels(CLIENT)
            .sees("host", &["chat.example"])
            .sees("x-forwarded-proto", &["{scheme}"])
            .sees("x-forwarded-host", &["chat.example"])
            .sees("x-forwarded-port", &["{port}"])
            .sees("sec-websocket-version", &["13"])
            .gets_header("set-cookie", &["causeway=*"]),
        case(
            "an upgrade with bytes behind the request",
            websocket("/ws", CLIENT, CLIENT),
        )
        .attempted(vec![switches(SWITCH)])
        .tunnels(&two),
        case(
            "an upgrade with bytes behind the 101",
            websocket("/ws", b"", CLIENT),
        )
        .attempted(vec![switches([SWITCH.as_bytes(), SERVER].concat())])
        .tunnels([SERVER, CLIENT].concat()),
        case(
            "an upgrade with bytes behind both",
            websocket("/ws", CLIENT, b""),
        )
        .attempted(vec![switches([SWITCH.as_bytes(), SERVER].concat())])
        .tunnels([SERVER, CLIENT].concat()),
        case(
            "an upgrade that the backend ends",
            websocket("/ws", b"", CLIENT),
        )
        .attempted(vec![does(vec![
            Step::ReadAll,
            send(SWITCH),
            Step::EchoOnly(CLIENT.len()),
            Step::Close,
        ])])
        .tunnels(CLIENT),
        case("a 101 with framing headers", websocket("/ws", b"", CLIENT))
            .attempted(vec![switches(
                SWITCH.replace("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n"),
            )])
            .tunnels(CLIENT)
            .gets_header("content-length", &[]),
        case(
            "a 101 with headers of its connection",
            websocket("/ws", b"", CLIENT),
        )
        .attempted(vec![switches(SWITCH.replace(
            "Connection: Upgrade\r\n",
            "Connection: upgrade, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n",
        ))])
        .tunnels(CLIENT)
        .gets_header("x-hop", &[]),
        case(
            "an upgrade that another backend takes",
            websocket("/two", b"", CLIENT),
        )
        .attempted(vec![
            does(vec![Step::ReadAll, Step::Close]),
            switches(SWITCH),
        ])
        .tunnels(CLIENT)
        .sees_times(2),
        case("103 before a 101", websocket("/ws", b"", CLIENT))
            .attempted(vec![switches(
                ["HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", SWITCH].concat(),
            )])
            .tunnels(CLIENT)
            .any_interim(),
    ]
}

/// The backend responds as it would respond to any request.
fn refused() -> Vec<Case> {
    let declined = |name, head: String, status, body| {
        case(name, websocket("/ws", b"", b""))
            .answered(head)
            .gets(status, body)
            .connection(Connection::Either)
    };
    vec![
        declined(
            "an upgrade that is refused",
            response("403 Forbidden", "Content-Length: 2\r\n", "no"),
            403,
            "no",
        ),
        declined(
            "an upgrade that is refused in chunks",
            response(
                "403 Forbidden",
                "Transfer-Encoding: chunked\r\n",
                "2\r\nno\r\n0\r\n\r\n",
            ),
            403,
            "no",
        ),
        declined(
            "an upgrade that is refused with headers of its connection",
            response(
                "403 Forbidden",
                "Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 2\r\n",
                "no",
            ),
            403,
            "no",
        )
        .gets_header("x-hop", &[]),
        declined(
            "an upgrade that is answered with 200",
            HELLO.to_owned(),
            200,
            "hello",
        )
        .differs(HTTP2, "a status of 200 would be an open tunnel", |case| {
            case.gets_one_of(&[502])
        }),
    ]
}

fn wrong() -> Vec<Case> {
    let refused = |name, attempt: Attempt| {
        case(name, websocket("/ws", b"", b""))
            .attempted(vec![attempt])
            .refused(502)
            .connection(Connection::Either)
            .sees_any_times()
    };
    vec![
        refused(
            "an upgrade that is answered with junk",
            does(vec![Step::ReadAll, send("hello\r\n\r\n"), Step::Silent]),
        ),
        refused(
            "an upgrade that is not answered",
            does(vec![Step::ReadAll, Step::Close]),
        ),
        refused(
            "a 101 to another protocol",
            does(vec![
                Step::ReadAll,
                send(SWITCH.replace("Upgrade: websocket", "Upgrade: chat")),
                Step::Silent,
            ]),
        ),
        refused(
            "a 101 to no protocol",
            does(vec![
                Step::ReadAll,
                send(SWITCH.replace("Upgrade: websocket\r\n", "")),
                Step::Silent,
            ]),
        ),
        refused(
            "an upgrade that is answered with a wrong length",
            does(vec![
                Step::ReadAll,
                send(ok("Content-Length: 5\r\nContent-Length: 6\r\n", "hello")),
                Step::Silent,
            ]),
        ),
        case(
            "an upgrade of a backend that is not there",
            websocket("/down", b"", b""),
        )
        .refused(503)
        .connection(Connection::Either)
        .sees_times(0),
        case(
            "an upgrade that is not answered in time",
            websocket("/ws", b"", b""),
        )
        .attempted(vec![does(vec![Step::ReadAll, Step::Silent])])
        .waits()
        .refused(504)
        .connection(Connection::Either)
        .sees_any_times(),
    ]
}
