//! Targets and hosts (RFC 9112, 3.2, and RFC 9110, 7).

use crate::edge::smuggling::corpus::{Case, refused, served};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = targets();
    cases.extend(hosts());
    cases
}

fn targets() -> Vec<Case> {
    let of = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let options = |target: &str| format!("OPTIONS {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let latin = b"GET /\xe4 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
    vec![
        Case {
            line: Some("GET /case?x=y HTTP/1.1"),
            present: &[("host", "a")],
            ..served("a URL", of("http://a/case?x=y"))
        },
        Case {
            line: Some("GET / HTTP/1.1"),
            ..served("a URL without a path", of("http://a"))
        },
        Case {
            line: Some("GET /?x HTTP/1.1"),
            ..served("a URL with a query alone", of("http://a?x"))
        },
        Case {
            line: Some("OPTIONS * HTTP/1.1"),
            statuses: &[200, 404],
            ..served("OPTIONS of a URL without a path", options("http://a"))
        },
        Case {
            line: Some("OPTIONS * HTTP/1.1"),
            ..served("OPTIONS *", options("*"))
        },
        // RFC 9112, 3.2.2: the host of the target counts, or the request is refused.
        refused("a URL of another host", &[400], of("http://b/case")),
        refused("a URL with a user", &[400], of("http://user@a/case")),
        refused(
            "a URL with a user and a password",
            &[400],
            of("http://user:password@a/case"),
        ),
        refused("a URL without a host", &[400], of("http:///case")),
        refused(
            "a URL with a colon for a host",
            &[400],
            of("http://:80/case"),
        ),
        refused(
            "a URL with a backslash for a slash",
            &[400],
            of("http:\\\\a\\case"),
        ),
        refused("a URL with one slash", &[400], of("http:/a/case")),
        refused("a URL of another scheme", &[400], of("ftp://a/case")),
        refused("a URL of a file", &[400], of("file:///etc/passwd")),
        refused("a URL of javascript", &[400], of("javascript:alert(1)")),
        refused("a host and a port", &[400], of("a:80")),
        refused("a host", &[400], of("a")),
        refused("a path without a slash", &[400], of("case/x")),
        refused("a query without a path", &[400], of("?x=y")),
        refused("* for a GET", &[400], of("*")),
        refused("** for OPTIONS", &[400], options("**")),
        refused(
            "CONNECT",
            &[405, 400, 501],
            "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
        ),
        refused(
            "CONNECT of a path",
            &[405, 400, 501],
            "CONNECT /case HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        refused("a fragment", &[400], of("/case#fragment")),
        refused("a space in a path", &[400], of("/case x")),
        refused("a NUL in a path", &[400], of("/case\0")),
        refused("0x01 in a path", &[400], of("/case\x01")),
        refused("0x7f in a path", &[400], of("/case\x7f")),
        refused("0xe4 in a path", &[400], latin),
        refused("a carriage return in a path", &[400], of("/case\rX:y")),
        refused(
            "a request in a path",
            &[400],
            of("/case HTTP/1.1\r\nHost: a\r\nX: GET /smuggled"),
        ),
        Case {
            line: Some("GET /case%00%0d%0a HTTP/1.1"),
            ..served("control characters in percents", of("/case%00%0d%0a"))
        },
        Case {
            line: Some("GET /../case HTTP/1.1"),
            ..served("dots", of("/../case"))
        },
        Case {
            line: Some("GET //b/case HTTP/1.1"),
            present: &[("host", "a")],
            ..served("two slashes", of("//b/case"))
        },
        Case {
            line: Some("GET /case?u=http://b/ HTTP/1.1"),
            present: &[("host", "a")],
            ..served("a URL in a query", of("/case?u=http://b/"))
        },
        Case {
            line: Some("GET /{a|b}^?`{c|d}\\^ HTTP/1.1"),
            ..served("what browsers do not escape", of("/{a|b}^?`{c|d}\\^"))
        },
    ]
}

fn hosts() -> Vec<Case> {
    let of = |hosts: &str| format!("GET /case HTTP/1.1\r\n{hosts}\r\n");
    vec![
        Case {
            present: &[("host", "a:8080")],
            ..served("a host with a port", of("Host: a:8080\r\n"))
        },
        Case {
            present: &[("host", "[::1]:80")],
            ..served("a host in brackets", of("Host: [::1]:80\r\n"))
        },
        Case {
            absent: &["host_"],
            present: &[("host", "a")],
            ..served("a host in capitals", of("HOST: a\r\n"))
        },
        refused("no host", &[400], of("")),
        refused("two hosts, alike", &[400], of("Host: a\r\nHost: a\r\n")),
        refused("two hosts", &[400], of("Host: a\r\nHost: b\r\n")),
        refused("two hosts in one", &[400], of("Host: a, b\r\n")),
        refused(
            "two hosts, one with a space before the colon",
            &[400],
            of("Host: a\r\nHost : b\r\n"),
        ),
        refused(
            "two hosts, one folded",
            &[400],
            of("Host: a\r\n Host: b\r\n"),
        ),
        refused("a host that is empty", &[400], of("Host:\r\n")),
        refused("a host with a user", &[400], of("Host: user@a\r\n")),
        refused("a host with a path", &[400], of("Host: a/b\r\n")),
        refused("a host with a scheme", &[400], of("Host: http://a\r\n")),
        refused("a host with a space", &[400], of("Host: a b\r\n")),
        refused("a host with a tab", &[400], of("Host: a\tb\r\n")),
        refused("a host with a NUL", &[400], of("Host: a\0b\r\n")),
        refused("a host with a backslash", &[400], of("Host: a\\b\r\n")),
        refused("a host with a quote", &[400], of("Host: a\"b\r\n")),
        refused(
            "a host with a port that is none",
            &[400],
            of("Host: a:b\r\n"),
        ),
        refused(
            "a host with a port of 65536",
            &[400],
            of("Host: a:65536\r\n"),
        ),
        refused("a host with two ports", &[400], of("Host: a:80:81\r\n")),
        refused("a host that is a port", &[400], of("Host: :80\r\n")),
        refused("a host with half a bracket", &[400], of("Host: [::1\r\n")),
        refused("a host that is not ASCII", &[400], of("Host: \u{e4}\r\n")),
        Case {
            absent: &["x_host"],
            present: &[("host", "a")],
            ..served(
                "a host with a dash and an underscore beside it",
                of("Host: a\r\nX-Forwarded-Host: evil\r\nX_Forwarded_Host: evil\r\n"),
            )
        },
    ]
}
