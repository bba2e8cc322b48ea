//! Headers of requests and responses: which are passed on, which are not, and which are set by the edge.

use std::net::Ipv4Addr;

use crate::{
    case::{Case, Connection, Request, case, get, ok, post, stream},
    path::{HTTP2, PINGORA},
};

const NO_CONNECTION: &str = "HTTP/2 has no Connection header";

/// One of `trusted_proxies`.
const TRUSTED: Ipv4Addr = Ipv4Addr::new(127, 0, 77, 1);

/// Everything that says who the client is.
const FORWARDING: &str = "keep-alive, X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, X-Forwarded-Port, Forwarded, \
                          X-Real-IP, X-Request-Id, Host, Cookie";

pub(crate) fn rows() -> Vec<Case> {
    let mut rows = forwarding();
    rows.extend(hops());
    rows.extend(kept());
    rows.extend(cookies());
    rows
}

/// Says of a request what the edge says of its client, for the host that it asks for and its port.
fn forwarded(case: Case, host: &'static str, port: &'static str) -> Case {
    let element = format!("for=127.0.0.1;host=\"{host}\";proto={{scheme}}");
    case.sees("host", &[host])
        .sees("x-forwarded-for", &["127.0.0.1"])
        .sees("x-real-ip", &["127.0.0.1"])
        .sees("x-forwarded-proto", &["{scheme}"])
        .sees("x-forwarded-host", &[host])
        .sees("x-forwarded-port", &[port])
        .sees("forwarded", &[&element])
}

fn forwarding() -> Vec<Case> {
    let forged = |request: Request| {
        request
            .header("X-Forwarded-For", "6.6.6.6")
            .header("X-Forwarded-Proto", "gopher")
            .header("X-Forwarded-Host", "evil")
            .header("X-Forwarded-Port", "1")
            .header("X-Forwarded-Prefix", "/evil")
            .header("X-Real-IP", "6.6.6.6")
            .header("Forwarded", "for=6.6.6.6")
            .header("X_Forwarded_For", "6.6.6.6")
            .header("Proxy", "http://evil/")
    };
    vec![
        forwarded(
            case("forwarding headers of a GET", get("/plain")),
            "chat.example",
            "{port}",
        ),
        forwarded(
            case("forwarding headers of a body", stream("/body", &[b"hello"])),
            "chat.example",
            "{port}",
        ),
        forwarded(
            case(
                "forwarding headers of a host with a port",
                get("/plain").host("chat.example:8443"),
            ),
            "chat.example:8443",
            "8443",
        ),
        forwarded(
            case("forwarding headers that are forged", forged(get("/plain"))),
            "chat.example",
            "{port}",
        )
        .sees("x-forwarded-prefix", &[])
        .sees("x_forwarded_for", &[])
        .sees("proxy", &[]),
        case(
            "forwarding headers of a trusted proxy",
            get("/plain")
                .from(TRUSTED)
                .header("X-Forwarded-For", "6.6.6.6, 1.2.3.4")
                .header("X-Forwarded-Proto", "https")
                .header("X-Forwarded-Host", "front.example:8443")
                .header("X-Forwarded-Prefix", "/app")
                .header("X-Request-Id", "request-1"),
        )
        .sees("x-forwarded-for", &["1.2.3.4, 127.0.77.1"])
        .sees("x-real-ip", &["1.2.3.4"])
        .sees("x-forwarded-proto", &["https"])
        .sees("x-forwarded-host", &["front.example:8443"])
        .sees("x-forwarded-port", &["8443"])
        .sees("x-forwarded-prefix", &["/app"])
        .sees("x-request-id", &["request-1"])
        .sees(
            "forwarded",
            &["for=1.2.3.4;host=\"front.example:8443\";proto=https, for=127.0.77.1"],
        ),
    ]
}

fn hops() -> Vec<Case> {
    let tokens: Vec<String> = (0..2_000).map(|number| format!("h{number}")).collect();
    vec![
        case(
            "hop-by-hop headers of a request, and those that Connection names",
            get("/plain")
                .header("Connection", "keep-alive, X-Hop")
                .header("Connection", "x-other")
                .header("X-Hop", "1")
                .header("X-Other", "2")
                .header("X-Stays", "3")
                .header("Keep-Alive", "timeout=5")
                .header("Proxy-Connection", "keep-alive")
                .header("TE", "trailers")
                .header("Upgrade", "h2c"),
        )
        .sees("x-hop", &[])
        .sees("x-other", &[])
        .sees("x-stays", &["3"])
        .sees("te", &[])
        .skips(HTTP2, NO_CONNECTION),
        forwarded(
            case(
                "Connection names the forwarding headers, Host and Cookie",
                get("/plain").header("Connection", FORWARDING).header("Cookie", "a=b"),
            ),
            "chat.example",
            "{port}",
        )
        .sees("cookie", &["a=b"])
        .skips(HTTP2, NO_CONNECTION),
        forwarded(
            case(
                "Connection names Content-Length and the forwarding headers",
                post("/body", &[b"hello"])
                    .header("Connection", "Content-Length")
                    .header("Connection", FORWARDING),
            ),
            "chat.example",
            "{port}",
        )
        .skips(HTTP2, NO_CONNECTION),
        forwarded(
            case(
                "Connection names Transfer-Encoding and the forwarding headers",
                stream("/body", &[b"hello"])
                    .header("Connection", "Transfer-Encoding")
                    .header("Connection", FORWARDING),
            ),
            "chat.example",
            "{port}",
        )
        .skips(HTTP2, NO_CONNECTION),
        case(
            "Connection names 2,000 headers",
            get("/plain").header("Connection", &tokens.join(",")),
        )
        .gets_one_of(&[400, 431])
        .connection(Connection::Either)
        .sees_times(0)
        .skips(HTTP2, NO_CONNECTION),
        case("hop-by-hop headers of a response, and those that Connection names", get("/plain"))
            .answered(ok(
                "Connection: keep-alive, X-Hop\r\nConnection: x-other\r\nX-Hop: 1\r\nX-Other: 2\r\nX-Stays: 3\r\n\
                 Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nContent-Length: 5\r\n",
                "hello",
            ))
            .gets_header("x-hop", &[])
            .gets_header("x-other", &[])
            .gets_header("x-stays", &["3"]),
        case("a response that offers an upgrade", get("/plain"))
            .answered(ok("Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n", "hello")),
        case("Connection names headers that the response stands on", get("/plain"))
            .answered(ok(
                "Connection: Content-Length, Content-Type, Set-Cookie\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n",
                "hello",
            ))
            .gets_header("content-length", &["5"]),
    ]
}

fn kept() -> Vec<Case> {
    let long = "y".repeat(12 * 1024);
    let longer = "y".repeat(17 * 1024);
    vec![
        case(
            "headers of a request stay as they are",
            get("/plain")
                .header("X-A", "1")
                .header("X-B", "2")
                .header("X-A", "3")
                .header("X-Empty", "")
                .header("X-Text", "gr\u{fc}n, \"a b\"\t;c")
                .header("Authorization", "Basic Zm9v"),
        )
        .sees("x-a", &["1", "3"])
        .sees("x-b", &["2"])
        .sees("x-empty", &[""])
        .sees("x-text", &["gr\u{fc}n, \"a b\"\t;c"])
        .sees("authorization", &["Basic Zm9v"]),
        case("headers of a response stay as they are", get("/plain"))
            .answered(ok(
                "X-A: 1\r\nX-B: 2\r\nX-A: 3\r\nX-Empty:\r\nX-Text: gr\u{fc}n, \"a b\"\t;c\r\nServer: me\r\nContent-Length: 5\r\n",
                "hello",
            ))
            .gets_header("x-a", &["1", "3"])
            .gets_header("x-b", &["2"])
            .gets_header("x-empty", &[""])
            .gets_header("x-text", &["gr\u{fc}n, \"a b\"\t;c"])
            .gets_header("server", &["me"]),
        case("a header of 12 KB", get("/plain").header("X-Long", &long)).sees("x-long", &[&long]),
        case("a header of 17 KB", get("/plain").header("X-Long", &longer))
            .refused(431)
            .connection(Connection::Either)
            .sees_times(0),
        case("200 headers of a request", many(get("/plain"), 200)).sees("x-199", &["y"]),
        case("300 headers of a request", many(get("/plain"), 300))
            .gets_one_of(&[400, 431])
            .connection(Connection::Either)
            .sees_times(0),
        case("headers that are for the edge", get("/plain"))
            .answered(ok(
                "Causeway-Secret: 1\r\nCauseway-Node: n1\r\nContent-Length: 5\r\n",
                "hello",
            ))
            .gets_header("causeway-node", &["n1"]),
        case("a date", get("/plain"))
            .answered(ok("Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 5\r\n", "hello"))
            .gets_header("date", &["Sun, 06 Nov 1994 08:49:37 GMT"])
            .skips(PINGORA, "Pingora writes a date of its own"),
    ]
}

fn many(mut request: Request, headers: usize) -> Request {
    for number in 0..headers {
        request = request.header(&format!("X-{number}"), "y");
    }
    request
}

fn cookies() -> Vec<Case> {
    vec![
        case("the affinity cookie is set", get("/plain"))
            .gets_header("set-cookie", &["causeway=*"])
            .gets_header("cache-control", &["private"]),
        case(
            "the affinity cookie is set behind a body",
            stream("/body", &[b"hello"]),
        )
        .gets_header("set-cookie", &["causeway=*"]),
        case("the affinity cookie is set beside others", get("/plain"))
            .answered(ok(
                "Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 5\r\n",
                "hello",
            ))
            .gets_header("set-cookie", &["a=1", "b=2", "causeway=*"]),
        case(
            "the affinity cookie that is right is not set again, and is not passed on",
            get("/plain").header("Cookie", "a=1; causeway={cookie}; b=2"),
        )
        .sees("cookie", &["a=1; b=2"])
        .gets_header("set-cookie", &[])
        .gets_header("cache-control", &[]),
        case(
            "the affinity cookie alone",
            get("/plain").header("Cookie", "causeway={cookie}"),
        )
        .sees("cookie", &[])
        .gets_header("set-cookie", &[]),
        case(
            "cookies in several headers",
            get("/plain")
                .header("Cookie", "a=1")
                .header("Cookie", "b=2"),
        )
        // As HTTP/2 has it for those that come so (RFC 9113, 8.2.3), and RFC 6265 for all.
        .sees("cookie", &["a=1; b=2"]),
    ]
}
