//! Headers of one connection (RFC 9110, 7.6.1), and headers that say who the client is.

use crate::edge::smuggling::corpus::{Case, Fate, get, post, refused, served};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = hops();
    cases.extend(forged());
    cases
}

fn hops() -> Vec<Case> {
    vec![
        Case {
            absent: &["x-private"],
            ..served(
                "Connection: a header",
                get("Connection: X-Private\r\nX-Private: 1\r\n"),
            )
        },
        Case {
            absent: &["x-private"],
            ..served(
                "Connection: a header in capitals",
                get("Connection: keep-alive, X-PRIVATE\r\nX-Private: 1\r\n"),
            )
        },
        Case {
            absent: &["x-one", "x-two"],
            ..served(
                "Connection: two headers in two",
                get("Connection: X-One\r\nConnection: X-Two\r\nX-One: 1\r\nX-Two: 2\r\n"),
            )
        },
        // It is for the backend, whatever a proxy before says.
        Case {
            present: &[("cookie", "a=b")],
            ..served(
                "Connection: cookie",
                get("Connection: cookie\r\nCookie: a=b\r\n"),
            )
        },
        Case {
            absent: &["authorization"],
            ..served(
                "Connection: authorization",
                get("Connection: authorization\r\nAuthorization: x\r\n"),
            )
        },
        Case {
            statuses: &[200, 400],
            fate: Fate::Either,
            ..served(
                "Connection: x-forwarded-for",
                get("Connection: X-Forwarded-For\r\nX-Forwarded-For: 6.6.6.6\r\n"),
            )
        },
        Case {
            statuses: &[200, 400],
            fate: Fate::Either,
            ..served(
                "Connection: close, x-forwarded-for",
                get("Connection: close, X-Forwarded-For, X-Real-IP\r\n"),
            )
        },
        Case {
            statuses: &[200, 400],
            fate: Fate::Either,
            ..served("Connection: host", get("Connection: Host\r\n"))
        },
        Case {
            statuses: &[200, 400],
            fate: Fate::Either,
            ..served(
                "Connection: content-length",
                post(
                    "Connection: Content-Length\r\nContent-Length: 5\r\n",
                    "hello",
                ),
            )
        },
        Case {
            statuses: &[200, 400],
            fate: Fate::Either,
            ..served(
                "Connection: transfer-encoding",
                post(
                    "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n",
                    "5\r\nhello\r\n0\r\n\r\n",
                ),
            )
        },
        Case {
            statuses: &[200, 400],
            fate: Fate::Either,
            ..served(
                "Connection: what is no token",
                get("Connection: \"X-Forwarded-For\", a b\r\n"),
            )
        },
        Case {
            statuses: &[200, 400],
            fate: Fate::Either,
            ..served(
                "Connection: 100 headers",
                get(&format!("Connection: {}\r\n", vec!["x"; 100].join(", "))),
            )
        },
        Case {
            fate: Fate::Closed,
            ..served("Connection: close", get("Connection: close\r\n"))
        },
        Case {
            fate: Fate::Closed,
            ..served(
                "Connection: close, upgrade",
                get("Connection: close, upgrade\r\nUpgrade: h2c\r\n"),
            )
        },
        Case {
            fate: Fate::Closed,
            ..served(
                "Connection: keep-alive, close",
                get("Connection: keep-alive\r\nConnection: close\r\n"),
            )
        },
        served(
            "Keep-Alive",
            get("Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n"),
        ),
        served(
            "Keep-Alive that is not nominated",
            get("Keep-Alive: timeout=5\r\n"),
        ),
        served("Proxy-Connection", get("Proxy-Connection: keep-alive\r\n")),
        served("TE", get("TE: trailers\r\n")),
        served(
            "TE that is nominated",
            get("Connection: TE\r\nTE: trailers, deflate\r\n"),
        ),
        served(
            "Trailer",
            post(
                "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n",
                "5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
            ),
        ),
        Case {
            absent: &["upgrade"],
            ..served(
                "Upgrade that is not nominated",
                get("Upgrade: websocket\r\n"),
            )
        },
        Case {
            absent: &["upgrade", "http2-settings"],
            ..served(
                "Upgrade to h2c",
                get(
                    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
                ),
            )
        },
        Case {
            absent: &["http2-settings"],
            ..served(
                "HTTP2-Settings that is not nominated",
                get("HTTP2-Settings: AAMAAABkAAQAAP__\r\n"),
            )
        },
        Case {
            absent: &["upgrade"],
            ..served(
                "Upgrade to HTTP/2.0",
                get("Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n"),
            )
        },
        Case {
            statuses: &[200, 417],
            fate: Fate::Either,
            ..served(
                "an expectation that nobody knows",
                post("Expect: a-miracle\r\nContent-Length: 5\r\n", "hello"),
            )
        },
        served(
            "an expectation of 100",
            post("Expect: 100-continue\r\nContent-Length: 5\r\n", "hello"),
        ),
        Case {
            fate: Fate::Either,
            ..served(
                "an expectation of 100 without a body",
                get("Expect: 100-continue\r\n"),
            )
        },
    ]
}

fn forged() -> Vec<Case> {
    vec![
        served("X-Forwarded-For", get("X-Forwarded-For: 6.6.6.6\r\n")),
        served(
            "X-Forwarded-For twice",
            get("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\n"),
        ),
        served("X_Forwarded_For", get("X_Forwarded_For: 6.6.6.6\r\n")),
        Case {
            absent: &["x-forwarded_for", "x_forwarded-for"],
            ..served(
                "X-Forwarded_For",
                get("X-Forwarded_For: 6.6.6.6\r\nX_Forwarded-For: 6.6.6.6\r\n"),
            )
        },
        Case {
            present: &[("x-real-ip", "127.0.0.1")],
            ..served(
                "X-Real-IP",
                get("X-Real-IP: 6.6.6.6\r\nX_Real_IP: 6.6.6.6\r\n"),
            )
        },
        Case {
            present: &[("x-forwarded-proto", "http")],
            absent: &["x_forwarded_proto"],
            ..served(
                "X-Forwarded-Proto",
                get("X-Forwarded-Proto: https\r\nX_Forwarded_Proto: https\r\n"),
            )
        },
        Case {
            present: &[("x-forwarded-host", "a")],
            absent: &["x_forwarded_host"],
            ..served(
                "X-Forwarded-Host",
                get("X-Forwarded-Host: evil\r\nX_Forwarded_Host: evil\r\n"),
            )
        },
        Case {
            present: &[("x-forwarded-port", "80")],
            absent: &["x_forwarded_port"],
            ..served(
                "X-Forwarded-Port",
                get("X-Forwarded-Port: 443\r\nX_Forwarded_Port: 443\r\n"),
            )
        },
        Case {
            absent: &[
                "x-forwarded-prefix",
                "x-forwarded-server",
                "x-forwarded-ssl",
            ],
            ..served(
                "others of the family",
                get(
                    "X-Forwarded-Prefix: /evil\r\nX-Forwarded-Server: evil\r\nX-Forwarded-Ssl: on\r\n",
                ),
            )
        },
        Case {
            present: &[("forwarded", "for=127.0.0.1;host=\"a\";proto=http")],
            ..served("Forwarded", get("Forwarded: for=6.6.6.6;proto=https\r\n"))
        },
        served("Proxy, as HTTP_PROXY", get("Proxy: http://evil/\r\n")),
        Case {
            absent: &["host_name", "connection_"],
            ..served(
                "Connection with an underscore",
                get("Keep_Alive: 1\r\nProxy_Connection: x\r\n"),
            )
        },
        Case {
            present: &[("cookie", "mine=1")],
            absent: &["causeway-node"],
            ..served(
                "the edge's own cookie",
                get("Cookie: causeway=v1.x.y; mine=1\r\n"),
            )
        },
        refused(
            "X-Forwarded-For behind a line feed",
            &[400],
            get("X: y\nX-Forwarded-For: 6.6.6.6\r\n"),
        ),
        refused(
            "X-Forwarded-For with a space before the colon",
            &[400],
            get("X-Forwarded-For : 6.6.6.6\r\n"),
        ),
    ]
}
