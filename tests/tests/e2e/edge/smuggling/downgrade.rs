//! What HTTP/2 can say and HTTP/1 cannot (RFC 9113, 8).

use crate::edge::smuggling::{
    corpus::SMUGGLED,
    h2::{Response, block, request},
};

/// One connection's frames, and what may come of them.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) frames: Vec<u8>,
    pub(crate) responses: &'static [Response],
    /// How many requests may get behind.
    pub(crate) front: usize,
}

type Field = (&'static [u8], &'static [u8]);

const REFUSED: &[Response] = &[Response::Refused, Response::Status(400)];
const SERVED: &[Response] = &[Response::Status(200)];

/// The pseudo-headers of an ordinary request.
fn usual() -> Vec<Field> {
    of("GET", "/case")
}

fn of(method: &'static str, path: &'static str) -> Vec<Field> {
    vec![
        (b":method", method.as_bytes()),
        (b":scheme", b"https"),
        (b":authority", b"chat.example"),
        (b":path", path.as_bytes()),
    ]
}

/// [`usual`] without one, and with others behind.
fn without(name: &'static str, more: &[Field]) -> Vec<Field> {
    let mut fields = usual();
    fields.retain(|(found, _)| *found != name.as_bytes());
    fields.extend(more);
    fields
}

fn refused(name: &'static str, fields: &[Field]) -> Case {
    Case {
        name,
        frames: request(&block(fields), None),
        responses: REFUSED,
        front: 0,
    }
}

/// An ordinary request with one header more.
fn with(name: &'static str, header: &'static [u8], value: &'static [u8]) -> Case {
    refused(name, &without("", &[(header, value)]))
}

pub(crate) fn all() -> Vec<Case> {
    let body = |name, more: &[Field], body: &[u8]| {
        let mut fields = of("POST", "/case");
        fields.extend(more);
        Case {
            name,
            frames: request(&block(&fields), Some(body)),
            responses: REFUSED,
            front: 1,
        }
    };
    let served = |case| Case {
        responses: SERVED,
        front: 1,
        ..case
    };
    vec![
        served(refused("h2: a GET", &usual())),
        served(body(
            "h2: a POST with a length",
            &[(b"content-length", b"5")],
            b"hello",
        )),
        served(body("h2: a POST without a length", &[], b"hello")),
        served(body("h2: a request as a body", &[], SMUGGLED.as_bytes())),
        served(with("h2: te: trailers", b"te", b"trailers")),
        served(with("h2: a value with 0xe4", b"x", b"\xe4")),
        served(refused(
            "h2: a host for the authority",
            &without(":authority", &[(b"host", b"chat.example")]),
        )),
        served(refused(
            "h2: cookies in crumbs",
            &without("", &[(b"cookie", b"a=1"), (b"cookie", b"b=2")]),
        )),
        body(
            "h2: a length that is too short",
            &[(b"content-length", b"3")],
            b"hello",
        ),
        body(
            "h2: a length that is too long",
            &[(b"content-length", b"9")],
            b"hello",
        ),
        body(
            "h2: a length of 0 and a request",
            &[(b"content-length", b"0")],
            SMUGGLED.as_bytes(),
        ),
        body(
            "h2: two lengths",
            &[(b"content-length", b"5"), (b"content-length", b"6")],
            b"hello",
        ),
        body(
            "h2: a list of lengths",
            &[(b"content-length", b"5, 6")],
            b"hello",
        ),
        body(
            "h2: a length with a plus",
            &[(b"content-length", b"+5")],
            b"hello",
        ),
        body(
            "h2: a length that is none",
            &[(b"content-length", b"five")],
            b"hello",
        ),
        Case {
            front: 0,
            ..body(
                "h2: chunked",
                &[(b"transfer-encoding", b"chunked")],
                b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
            )
        },
        Case {
            front: 0,
            ..body(
                "h2: chunked in capitals",
                &[(b"Transfer-Encoding", b"chunked")],
                b"0\r\n\r\n",
            )
        },
        Case {
            front: 0,
            ..body(
                "h2: chunked in a value",
                &[(b"x", b"y\r\nTransfer-Encoding: chunked")],
                b"0\r\n\r\n",
            )
        },
        Case {
            front: 0,
            ..body(
                "h2: chunked in a name",
                &[(b"x: y\r\nTransfer-Encoding", b"chunked")],
                b"0\r\n\r\n",
            )
        },
        with(
            "h2: CR LF in a value",
            b"x",
            b"y\r\nx-forwarded-for: 6.6.6.6",
        ),
        with("h2: LF in a value", b"x", b"y\nz: z"),
        with("h2: CR in a value", b"x", b"y\rz: z"),
        with("h2: NUL in a value", b"x", b"y\0z"),
        with(
            "h2: a whole request in a value",
            b"x",
            b"y\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        with("h2: CR LF in a name", b"x\r\nz", b"y"),
        with("h2: a colon in a name", b"x: z", b"y"),
        with("h2: a space in a name", b"x z", b"y"),
        with("h2: NUL in a name", b"x\0", b"y"),
        with("h2: 0xe4 in a name", b"x\xe4", b"y"),
        with("h2: a capital in a name", b"X", b"y"),
        with("h2: no name", b"", b"y"),
        with("h2: a space before a value", b"x", b" y"),
        with("h2: a tab behind a value", b"x", b"y\t"),
        with("h2: connection", b"connection", b"x-forwarded-for"),
        with("h2: keep-alive", b"keep-alive", b"timeout=5"),
        with("h2: proxy-connection", b"proxy-connection", b"keep-alive"),
        with("h2: upgrade", b"upgrade", b"websocket"),
        with("h2: te: gzip", b"te", b"gzip"),
        with("h2: another host", b"host", b"evil.example"),
        with("h2: two authorities", b":authority", b"evil.example"),
        with("h2: two paths", b":path", b"/smuggled"),
        with("h2: two methods", b":method", b"POST"),
        with("h2: a pseudo-header that nobody knows", b":x", b"y"),
        with("h2: a status", b":status", b"200"),
        refused(
            "h2: a pseudo-header behind a header",
            &without(":path", &[(b"x", b"y"), (b":path", b"/case")]),
        ),
        refused("h2: no path", &without(":path", &[])),
        refused("h2: an empty path", &without(":path", &[(b":path", b"")])),
        refused("h2: no method", &without(":method", &[])),
        refused("h2: no scheme", &without(":scheme", &[])),
        refused("h2: no authority", &without(":authority", &[])),
        refused(
            "h2: an empty authority",
            &without(":authority", &[(b":authority", b"")]),
        ),
        refused(
            "h2: an authority with a user",
            &without(":authority", &[(b":authority", b"user@chat.example")]),
        ),
        refused(
            "h2: an authority with a path",
            &without(":authority", &[(b":authority", b"chat.example/x")]),
        ),
        refused(
            "h2: an authority with CR LF",
            &without(":authority", &[(b":authority", b"a\r\nx-y: z")]),
        ),
        refused(
            "h2: an authority with a space",
            &without(":authority", &[(b":authority", b"a b")]),
        ),
        refused("h2: a path without a slash", &of("GET", "case")),
        refused(
            "h2: a URL for a path",
            &of("GET", "http://evil.example/case"),
        ),
        refused("h2: * for a GET", &of("GET", "*")),
        refused("h2: a path with a space", &of("GET", "/case HTTP/1.1")),
        refused(
            "h2: a path with CR LF",
            &of("GET", "/case HTTP/1.1\r\nHost: a\r\n\r\nGET /smuggled"),
        ),
        refused("h2: a path with a tab", &of("GET", "/case\tx")),
        refused("h2: a path with NUL", &of("GET", "/case\0")),
        // Cut off before anybody sees it.
        served(refused("h2: a fragment", &of("GET", "/case#x"))),
        refused(
            "h2: a method with a space",
            &of("GET /smuggled HTTP/1.1\r\n", "/case"),
        ),
        refused("h2: a method with CR LF", &of("GET\r\n", "/case")),
        refused("h2: an empty method", &of("", "/case")),
        refused(
            "h2: a scheme with CR LF",
            &without(":scheme", &[(b":scheme", b"https\r\nx: y")]),
        ),
        Case {
            responses: &[
                Response::Refused,
                Response::Status(405),
                Response::Status(501),
                Response::Status(400),
            ],
            ..refused(
                "h2: CONNECT",
                &[(b":method", b"CONNECT"), (b":authority", b"a:443")],
            )
        },
        Case {
            responses: &[
                Response::Refused,
                Response::Status(405),
                Response::Status(501),
                Response::Status(400),
            ],
            ..refused(
                "h2: CONNECT with a protocol",
                &[
                    (b":method", b"CONNECT"),
                    (b":protocol", b"websocket"),
                    (b":scheme", b"https"),
                    (b":path", b"/switch"),
                    (b":authority", b"chat.example"),
                ],
            )
        },
        Case {
            responses: &[Response::Status(431), Response::Refused],
            ..refused(
                "h2: a cookie jar of 100 KB",
                &without("", &vec![(&b"cookie"[..], &[b'a'; 1000][..]); 100]),
            )
        },
    ]
}
