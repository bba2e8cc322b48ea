//! Upgrades (RFC 9110, 7.8, and RFC 6455), and what hides behind them.

use crate::edge::smuggling::corpus::{Case, Fate, SMUGGLED, refused, served};

/// A request for a WebSocket on `path`, with more headers.
fn upgrade(path: &str, headers: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    )
}

pub(crate) fn cases() -> Vec<Case> {
    let switched = |name, bytes: String| Case {
        front: 1,
        statuses: &[101],
        fate: Fate::Closed,
        ..served(name, bytes)
    };
    let declined = |name, bytes: String| Case {
        front: 1,
        statuses: &[200],
        fate: Fate::Closed,
        ..served(name, bytes)
    };
    let plain = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    vec![
        switched("an upgrade", upgrade("/switch", "")),
        switched(
            "an upgrade, and bytes behind it",
            upgrade("/switch", "") + SMUGGLED,
        ),
        switched(
            "an upgrade with a length of 0",
            upgrade("/switch", "Content-Length: 0\r\n"),
        ),
        switched(
            "an upgrade in other words",
            upgrade("/switch", "").replace("Upgrade: websocket", "upgrade: WebSocket"),
        ),
        Case {
            absent: &["x-private"],
            ..switched(
                "an upgrade that nominates",
                upgrade("/switch", "Connection: X-Private\r\nX-Private: 1\r\n"),
            )
        },
        switched(
            "an upgrade that nominates who the client is",
            upgrade(
                "/switch",
                "Connection: X-Forwarded-For\r\nX-Forwarded-For: 6.6.6.6\r\n",
            ),
        ),
        switched("an upgrade of a URL", upgrade("http://a/switch", "")),
        // What comes behind is no request: the backend has not switched, and the client has.
        declined("an upgrade that is declined", upgrade("/stay", "")),
        declined(
            "an upgrade that is declined, and a request behind it",
            upgrade("/stay", "") + SMUGGLED,
        ),
        refused(
            "an upgrade with a body",
            &[400],
            upgrade(
                "/switch",
                &format!("Content-Length: {}\r\n", SMUGGLED.len()),
            ) + SMUGGLED,
        ),
        refused(
            "an upgrade with chunks",
            &[400],
            upgrade("/switch", "Transfer-Encoding: chunked\r\n")
                + "5\r\nhello\r\n0\r\n\r\n"
                + SMUGGLED,
        ),
        refused(
            "an upgrade with chunks and a length",
            &[400],
            upgrade(
                "/switch",
                "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
            ) + SMUGGLED,
        ),
        refused(
            "an upgrade with two lengths",
            &[400],
            upgrade("/switch", "Content-Length: 0\r\nContent-Length: 43\r\n") + SMUGGLED,
        ),
        refused(
            "an upgrade with a length that is none",
            &[400],
            upgrade("/switch", "Content-Length: +0\r\n") + SMUGGLED,
        ),
        refused(
            "an upgrade with a line feed",
            &[400],
            upgrade("/switch", "X: y\nZ: z\r\n"),
        ),
        refused(
            "an upgrade without a host",
            &[400],
            upgrade("/switch", "").replace("Host: a\r\n", ""),
        ),
        refused(
            "an upgrade of two hosts",
            &[400],
            upgrade("/switch", "Host: b\r\n"),
        ),
        refused(
            "an upgrade of a URL of another host",
            &[400],
            upgrade("http://b/switch", ""),
        ),
        Case {
            absent: &["upgrade"],
            fate: Fate::Either,
            ..served(
                "an upgrade in HTTP/1.0",
                upgrade("/switch", "").replace("HTTP/1.1", "HTTP/1.0"),
            )
        },
        Case {
            absent: &["upgrade"],
            ..served(
                "an upgrade that is a POST",
                format!(
                    "POST /switch HTTP/1.1\r\nHost: a\r\n{plain}Content-Length: 5\r\n\r\nhello"
                ),
            )
        },
        Case {
            front: 2,
            absent: &["upgrade"],
            fate: Fate::Either,
            ..served(
                "an upgrade that is a POST, and one behind it",
                format!(
                    "POST /switch HTTP/1.1\r\nHost: a\r\n{plain}Content-Length: 0\r\n\r\nGET /one HTTP/1.1\r\nHost: a\r\n\r\n"
                ),
            )
        },
        Case {
            absent: &["upgrade"],
            ..served(
                "an upgrade without Connection",
                upgrade("/switch", "").replace("Connection: Upgrade\r\n", ""),
            )
        },
        Case {
            absent: &["upgrade"],
            ..served(
                "an upgrade that is listed with another, and not allowed",
                upgrade("/switch", "").replace("Upgrade: websocket", "Upgrade: h2c, foo/1"),
            )
        },
        switched(
            "an upgrade behind another that is not allowed",
            upgrade("/switch", "").replace("Upgrade: websocket", "Upgrade: h2c, websocket"),
        ),
        Case {
            front: 2,
            fate: Fate::Closed,
            statuses: &[200],
            ..served(
                "an upgrade behind a request",
                format!(
                    "GET /one HTTP/1.1\r\nHost: a\r\n\r\n{}",
                    upgrade("/stay", "")
                ),
            )
        },
        Case {
            fate: Fate::Closed,
            ..served(
                "an upgrade with close",
                upgrade("/stay", "Connection: close\r\n"),
            )
        },
    ]
}
