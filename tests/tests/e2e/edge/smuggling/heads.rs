//! Lines and fields of a head (RFC 9112, 2 to 5, and RFC 9110, 5).

use crate::edge::smuggling::corpus::{Case, Fate, SMUGGLED, get, refused, served};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = lines();
    cases.extend(versions());
    cases.extend(fields());
    cases.extend(sizes());
    cases
}

fn lines() -> Vec<Case> {
    vec![
        served(
            "an empty line before it",
            "\r\nGET /case HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        refused("line feeds only", &[400], "GET /case HTTP/1.1\nHost: a\n\n"),
        refused(
            "a line feed behind the request line",
            &[400],
            "GET /case HTTP/1.1\nHost: a\r\n\r\n",
        ),
        refused(
            "a line feed behind a header",
            &[400],
            "GET /case HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        ),
        refused(
            "a line feed for the end",
            &[400],
            "GET /case HTTP/1.1\r\nHost: a\r\n\n",
        ),
        refused(
            "two line feeds for the end, and a request",
            &[400],
            format!("GET /case HTTP/1.1\r\nHost: a\n\n{SMUGGLED}"),
        ),
        refused(
            "a carriage return behind the request line",
            &[400],
            "GET /case HTTP/1.1\rHost: a\r\n\r\n",
        ),
        refused(
            "a carriage return in a header",
            &[400],
            get("X: y\rZ: z\r\n"),
        ),
        refused(
            "two carriage returns behind a header",
            &[400],
            get("X: y\r\r\n"),
        ),
        refused(
            "a carriage return before the empty line",
            &[400],
            "GET /case HTTP/1.1\r\nHost: a\r\n\r\r\n\r\n",
        ),
        refused("a folded line", &[400], get("X: y\r\n z\r\n")),
        refused("a folded line with a tab", &[400], get("X: y\r\n\tz\r\n")),
        refused(
            "a folded host",
            &[400],
            "GET /case HTTP/1.1\r\nHost:\r\n a\r\n\r\n",
        ),
        refused(
            "a space before the first header",
            &[400],
            "GET /case HTTP/1.1\r\n X: y\r\nHost: a\r\n\r\n",
        ),
        refused(
            "two spaces in the request line",
            &[400],
            "GET  /case HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        refused(
            "two spaces before the version",
            &[400],
            "GET /case  HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        refused(
            "tabs in the request line",
            &[400],
            "GET\t/case\tHTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        refused(
            "a vertical tab in the request line",
            &[400],
            "GET /case\x0bHTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        refused(
            "a space before the method",
            &[400],
            " GET /case HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        refused(
            "a space behind the version",
            &[400],
            "GET /case HTTP/1.1 \r\nHost: a\r\n\r\n",
        ),
        refused(
            "a word behind the version",
            &[400],
            "GET /case HTTP/1.1 x\r\nHost: a\r\n\r\n",
        ),
        refused("no method", &[400], "/case HTTP/1.1\r\nHost: a\r\n\r\n"),
        refused(
            "a method that is no token",
            &[400],
            "GE(T /case HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        refused(
            "a method with a NUL",
            &[400],
            "GE\0T /case HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        Case {
            line: Some("get /case HTTP/1.1"),
            ..served(
                "a method in lower case",
                "get /case HTTP/1.1\r\nHost: a\r\n\r\n",
            )
        },
        Case {
            line: Some("BREW /case HTTP/1.1"),
            ..served(
                "a method that nobody knows",
                "BREW /case HTTP/1.1\r\nHost: a\r\n\r\n",
            )
        },
        Case {
            line: Some("HEAD /case HTTP/1.1"),
            ..served(
                "a HEAD with a body",
                "HEAD /case HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            )
        },
        refused(
            "bytes of TLS",
            &[400],
            "\x16\x03\x01\x02\0\x01\0\x01\u{7f}\x03\x03\r\n\r\n",
        ),
        refused("a header only", &[400], "Host: a\r\n\r\n"),
    ]
}

fn versions() -> Vec<Case> {
    let of = |version: &str| format!("GET /case {version}\r\nHost: a\r\n\r\n");
    vec![
        Case {
            fate: Fate::Closed,
            ..served("HTTP/1.0", of("HTTP/1.0"))
        },
        Case {
            fate: Fate::Closed,
            statuses: &[200],
            ..served("HTTP/1.0 without a host", "GET /case HTTP/1.0\r\n\r\n")
        },
        served("HTTP/1.2", of("HTTP/1.2")),
        refused("HTTP/0.9", &[400], "GET /case\r\n\r\n"),
        refused("HTTP/0.9 by name", &[400, 505], of("HTTP/0.9")),
        refused("HTTP/2.0", &[505], of("HTTP/2.0")),
        refused(
            "the preface of HTTP/2",
            &[505, 400],
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ),
        refused("HTTP/3.0", &[505], of("HTTP/3.0")),
        refused("HTTP/1.10", &[400, 505], of("HTTP/1.10")),
        refused("HTTP/01.1", &[400, 505], of("HTTP/01.1")),
        refused("HTTP/1", &[400, 505], of("HTTP/1")),
        refused("HTTP/1,1", &[400], of("HTTP/1,1")),
        refused("http/1.1", &[400], of("http/1.1")),
        refused("HTTPS/1.1", &[400], of("HTTPS/1.1")),
        refused("HTTP/+1.1", &[400], of("HTTP/+1.1")),
        refused("no version, and headers", &[400], of("")),
    ]
}

fn fields() -> Vec<Case> {
    let mut not_ascii = b"GET /case HTTP/1.1\r\nHost: a\r\nX-\xe4: y\r\n\r\n".to_vec();
    let value = b"GET /case HTTP/1.1\r\nHost: a\r\nX: \xe4\xff\r\n\r\n".to_vec();
    let name = std::mem::take(&mut not_ascii);
    vec![
        refused("a space before a colon", &[400], get("X : y\r\n")),
        refused("no name", &[400], get(": y\r\n")),
        refused("no colon", &[400], get("X y\r\n")),
        refused("a name with a space", &[400], get("X Y: z\r\n")),
        refused("a name with a NUL", &[400], get("X\0: y\r\n")),
        refused("a name with 0x7f", &[400], get("X\x7f: y\r\n")),
        refused("a name with 0xe4", &[400], name),
        refused("a name with a parenthesis", &[400], get("X(: y\r\n")),
        refused("a value with a NUL", &[400], get("X: y\0z\r\n")),
        refused("a value with 0x01", &[400], get("X: y\x01z\r\n")),
        refused("a value with 0x7f", &[400], get("X: y\x7fz\r\n")),
        served("a value with 0xe4", value),
        served("a value that is empty", get("X:\r\n")),
        Case {
            present: &[("x", "y")],
            ..served("spaces around a value", get("X: \t y \t \r\n"))
        },
        Case {
            present: &[("x", "y")],
            ..served("no space before a value", get("X:y\r\n"))
        },
        served("a name with an apostrophe", get("X'Y: z\r\n")),
    ]
}

fn sizes() -> Vec<Case> {
    let cookies = format!(
        "Cookie: {}\r\n",
        vec!["name=0123456789abcdef"; 800].join("; ")
    );
    let fits = format!(
        "Cookie: {}\r\n",
        vec!["name=0123456789abcdef"; 600].join("; ")
    );
    vec![
        refused("a cookie jar of 16 KB", &[431], get(&cookies)),
        served("a cookie jar of 14 KB", get(&fits)),
        refused(
            "a target of 40 KB",
            &[414],
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(40_000)),
        ),
        refused(
            "a method of 40 KB",
            &[414, 400, 431],
            format!("{} / HTTP/1.1\r\nHost: a\r\n\r\n", "A".repeat(40_000)),
        ),
        refused(
            "a header of 40 KB",
            &[431],
            get(&format!("X: {}\r\n", "y".repeat(40_000))),
        ),
        refused(
            "a name of 40 KB",
            &[431],
            get(&format!("{}: y\r\n", "X".repeat(40_000))),
        ),
        refused("300 headers", &[431], get(&"X: y\r\n".repeat(300))),
        refused("10,000 headers", &[431], get(&"X: y\r\n".repeat(10_000))),
        refused(
            "half a head",
            &[408, 400],
            "GET /case HTTP/1.1\r\nHost: a\r\nX: ",
        ),
        refused(
            "a head with a smuggled one behind half a line",
            &[400, 408],
            format!("GET /case HTTP/1.1\r\nHost: a\r\nX: {SMUGGLED}"),
        ),
    ]
}
