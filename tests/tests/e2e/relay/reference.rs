//! The node beside the reference server, npm sockjs: both are asked the same, one request after the other, and what they
//! response is compared. Where they differ on purpose, a request says so, and that is checked as well.

use std::{fmt::Write as _, net::SocketAddr};

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    clients,
    conformance::Conformance,
    http::{self, Response},
    process::Process,
    scratch::Scratch,
};
use serde_json::json;

/// What clients go by, besides status and body.
const HEADERS: [&str; 13] = [
    "content-type",
    "cache-control",
    "expires",
    "etag",
    "last-modified",
    "allow",
    "vary",
    "set-cookie",
    "x-content-type-options",
    "access-control-allow-origin",
    "access-control-allow-credentials",
    "access-control-allow-methods",
    "access-control-max-age",
];

const FORM: &[(&str, &str)] = &[("Content-Type", "application/x-www-form-urlencoded")];
const TEXT: &[(&str, &str)] = &[("Content-Type", "text/plain")];
const ORIGIN: &[(&str, &str)] = &[("Origin", "http://chat.example")];
const NULL_ORIGIN: &[(&str, &str)] = &[("Origin", "null")];
const PREFLIGHT: &[(&str, &str)] = &[
    ("Origin", "http://chat.example"),
    ("Access-Control-Request-Method", "POST"),
    ("Access-Control-Request-Headers", "a, b, c"),
];
const COOKIE: &[(&str, &str)] = &[("Cookie", "a=b; JSESSIONID=abc")];
/// Behind `Connection: close`, which every request here has.
const UPGRADE: &[(&str, &str)] = &[("Upgrade", "WebSocket")];

const SERVICES: [&str; 4] = [
    "/echo",
    "/cookie_needed_echo",
    "/disabled_websocket_echo",
    "/close",
];

/// Three bytes each at most: well below the node's `message_size`.
const MESSAGE_CHARS_MAX: usize = 8192;

/// One request, and in what the responses are known to differ.
#[derive(Clone)]
struct Step {
    method: &'static str,
    path: String,
    headers: &'static [(&'static str, &'static str)],
    body: String,
    known: &'static [&'static str],
}

fn step(method: &'static str, path: impl Into<String>) -> Step {
    Step {
        method,
        path: path.into(),
        headers: &[],
        body: String::new(),
        known: &[],
    }
}

fn get(path: impl Into<String>) -> Step {
    step("GET", path)
}

fn options(path: impl Into<String>) -> Step {
    step("OPTIONS", path)
}

fn post(path: impl Into<String>, body: impl Into<String>) -> Step {
    Step {
        body: body.into(),
        ..step("POST", path)
    }
}

impl Step {
    fn with(self, headers: &'static [(&'static str, &'static str)]) -> Self {
        Self { headers, ..self }
    }

    /// The responses differ in each of `parts`, and are meant to.
    fn but(self, parts: &'static [&'static str]) -> Self {
        Self {
            known: parts,
            ..self
        }
    }

    /// What a client sees of the response, part by part.
    async fn ask(&self, address: SocketAddr) -> Result<Vec<(&'static str, String)>> {
        let body = self.body.as_bytes();
        let response = http::request(address, self.method, &self.path, self.headers, body)
            .await
            .with_context(|| self.to_string())?;
        let mut parts = vec![("status", response.status.to_string())];
        for name in HEADERS {
            parts.push((name, comparable(name, &response)));
        }
        parts.push(("body", body_of(&response)));
        Ok(parts)
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body: String = self.body.chars().take(60).collect();
        write!(f, "{} {} {:?} {body}", self.method, self.path, self.headers)
    }
}

/// A header's value as far as it can be compared; empty if it is not there.
fn comparable(name: &str, response: &Response) -> String {
    let value = response.header(name).unwrap_or_default();
    match name {
        "content-type" if response.status == 404 => String::new(), // It goes with the body.
        // Its time and its hash are the server's own.
        "expires" | "etag" if !value.is_empty() => "there".to_owned(),
        "allow" => {
            let mut methods: Vec<&str> = value.split(", ").collect();
            methods.sort_unstable();
            methods.join(", ")
        }
        _ => value.to_owned(),
    }
}

/// The body without its random number, and without the spaces that only fill it up.
fn body_of(response: &Response) -> String {
    // A response for nobody to read: the servers have texts of their own.
    if response.status == 404 {
        return String::new();
    }
    let text = response.text();
    let text = match text.split_once("\"entropy\":") {
        Some((before, _)) => before.to_owned(),
        None => text,
    };
    let lines = text.split("\r\n").map(|line| line.trim_end_matches(' '));
    lines.collect::<Vec<_>>().join("\r\n")
}

/// Greeting, capabilities, the page for frames, and paths that are none.
fn places() -> Vec<Step> {
    let mut steps = vec![step("HEAD", "/echo"), step("DELETE", "/echo/info")];
    for service in SERVICES {
        for path in [
            "",
            "/",
            "/info",
            "/info/?t=1",
            "/iframe.html",
            "/iframe-1.6.1.html?t=1",
        ] {
            steps.push(get(format!("{service}{path}")));
        }
        steps.push(options(format!("{service}/info")).with(PREFLIGHT));
    }
    for path in [
        "//",
        "///",
        "/a",
        "/a/",
        "/a.html",
        "/a/a",
        "/a/a/",
        "/iframe.htm",
        "/iframe",
        "/IFRAME.HTML",
        "/iframe-/.html",
        "//a/xhr",
        "/a//xhr",
        "/a./a/xhr",
        "/a/a./xhr",
        "/a/b/c/xhr",
        "/a/b/xhr2",
    ] {
        steps.push(get(format!("/echo{path}")));
        steps.push(post(format!("/echo{path}"), ""));
    }
    for path in ["/websocket", "/0/0/websocket"] {
        steps.push(
            get(format!("/disabled_websocket_echo{path}")).but(&["cache-control", "expires"]),
        );
        for headers in [&[], UPGRADE] {
            let refused = get(format!("/echo{path}")).with(headers);
            steps.push(refused.but(&["content-type", "body"])); // Ours says what is wrong.
        }
        steps.push(post(format!("/echo{path}"), ""));
    }
    steps
}

/// Who may ask, with which method, and what browsers and caches are told.
fn headers() -> Vec<Step> {
    let mut steps = Vec::new();
    for headers in [ORIGIN, NULL_ORIGIN, COOKIE, PREFLIGHT] {
        steps.push(get("/echo/info").with(headers));
        for path in [
            "/echo/0/0/xhr",
            "/cookie_needed_echo/0/0/xhr_send",
            "/echo/0/0/xhr_streaming",
        ] {
            steps.push(options(path).with(headers));
            steps.push(step("DELETE", path).with(headers));
        }
        steps.push(post("/echo/0/unknown/xhr_send", "[]").with(headers));
    }
    for wire in ["xhr", "xhr_send", "xhr_streaming", "jsonp_send"] {
        steps.push(get(format!("/echo/0/0/{wire}")));
    }
    for wire in ["eventsource", "htmlfile?c=x", "jsonp?c=x"] {
        steps.push(post(format!("/echo/0/0/{wire}"), ""));
        steps.push(options(format!("/echo/0/0/{wire}")));
    }
    for wire in ["htmlfile", "jsonp"] {
        for query in [
            "",
            "?c=%20",
            "?c=*",
            "?c=abc(",
            "?c=abc%28",
            "?callback=%C3%A4",
        ] {
            steps.push(get(format!("/echo/0/0/{wire}{query}")).but(&["content-type"]));
        }
    }
    let long = "x".repeat(33);
    steps.push(get(format!("/echo/0/0/jsonp?c={long}")).but(&["content-type"]));
    steps
}

/// A session that polls: what is taken, what is refused, and how it comes back.
fn polling() -> Vec<Step> {
    let (poll, send) = ("/echo/000/polling/xhr", "/echo/999/polling/xhr_send");
    let mut steps = vec![post(poll, "").with(ORIGIN)];
    for headers in [
        TEXT,
        NULL_ORIGIN,
        &[("Content-Type", "application/json; charset=utf-8")],
    ] {
        steps.push(post(send, "[\"a\"]").with(headers));
    }
    for body in ["[]", "[\"b\",\"c\"]", " [ \"d\" ] "] {
        steps.push(post(send, body));
    }
    for body in ["", "{}", "\"x\"", "null", "[\"x", "x", "[\"x\"]]"] {
        steps.push(post(send, body).but(&["content-type"]));
    }
    steps.push(post(poll, ""));
    // Every code point below U+10000 that is no surrogate, and two above, in messages that are not too large.
    let units: Vec<u16> = (0..0xd800).chain(0xe000..=0xffff).collect();
    let bare = units.chunks(MESSAGE_CHARS_MAX).map(|units| {
        let all = String::from_utf16_lossy(units);
        let plain = all
            .chars()
            .filter(|c| !c.is_ascii_control() && !matches!(c, '"' | '\\'));
        format!("\"{}😀\u{10ffff}\"", plain.collect::<String>())
    });
    let escaped = units.chunks(MESSAGE_CHARS_MAX).map(|units| {
        let escapes = units.iter().map(|unit| format!("\\u{unit:04x}"));
        format!("\"{}\\ud83d\\ude00\"", escapes.collect::<String>())
    });
    for messages in [bare.collect::<Vec<_>>(), escaped.collect()] {
        steps.push(post(send, format!("[{}]", messages.join(","))));
        steps.push(post(poll, "").with(COOKIE));
    }
    // The node replaces what no UTF-8 can hold; the reference server hands it on.
    steps.push(post(send, r#"["\ud800x\udc00"]"#));
    steps.push(post(poll, "").but(&["body"]));
    steps
}

/// A session that goes from stream to stream, each ended by the response limit.
fn streaming() -> Vec<Step> {
    let session = "/echo/0/streaming";
    let send = |message: &str| {
        let fill = "x".repeat(5000);
        post(
            format!("{session}/xhr_send"),
            format!("[\"{message}{fill}\"]"),
        )
    };
    vec![
        post(format!("{session}/xhr"), ""),
        send("a"),
        post(format!("{session}/xhr_streaming"), "").with(ORIGIN),
        send("100 % of %41"),
        get(format!("{session}/eventsource")).with(ORIGIN),
        send("ä\\n\\u2028"),
        // As everywhere, a page without an origin may read the response with its cookies.
        get(format!("{session}/eventsource"))
            .with(NULL_ORIGIN)
            .but(&[
                "access-control-allow-origin",
                "access-control-allow-credentials",
            ]),
        send("\\\"\\\\"),
        get(format!("{session}/htmlfile?c=_jp.a%2Db")),
        // A message must not end the script around it.
        send("</script>"),
        get(format!("{session}/htmlfile?callback=cb")).but(&["body"]),
    ]
}

/// A session by scripts and forms.
fn scripts() -> Vec<Step> {
    let (poll, send) = (
        "/cookie_needed_echo/0/scripts/jsonp?c=%63b",
        "/cookie_needed_echo/0/scripts/jsonp_send?i=a",
    );
    let mut steps = vec![get(poll)];
    for body in ["d=%5B%22x%22%5D", "d=%5B%5D", "a=b&d=[\"%C3%A4+\"]&d2="] {
        steps.push(post(send, body).with(FORM));
    }
    steps.push(post(send, "[\"%61bc\",\"\\\"\\\\\"]").with(TEXT));
    steps.push(get(poll).with(COOKIE));
    for body in ["", "d=", "p=p", "d=%7B%7D", "d=%5B%22x"] {
        steps.push(post(send, body).with(FORM).but(&["content-type"]));
    }
    for body in ["", "{}", "d=%5B%5D"] {
        steps.push(post(send, body).with(TEXT).but(&["content-type"]));
    }
    steps.push(post("/echo/0/unknown/jsonp_send", "d=%5B%5D").with(FORM));
    steps
}

/// Sessions that the server closes as soon as they are open.
fn closing() -> Vec<Step> {
    let mut steps = Vec::new();
    for wire in [
        "xhr",
        "xhr_streaming",
        "eventsource",
        "htmlfile?c=x",
        "jsonp?c=x",
    ] {
        let session = format!("/close/0/{}", wire.trim_end_matches("?c=x"));
        for _ in 0..3 {
            let path = format!("{session}/{wire}");
            steps.push(if wire.starts_with("xhr") {
                post(path, "")
            } else {
                get(path)
            });
        }
        steps.push(post(format!("{session}/xhr_send"), "[\"x\"]"));
    }
    steps
}

#[tokio::test]
async fn the_node_responds_as_the_reference_server_does() -> Result<()> {
    let scratch = Scratch::new("reference")?;
    let command = clients::command("reference.mjs", &json!({}))?;
    let mut reference = Process::spawn("reference", command, scratch.path())?;
    let theirs = reference.listening("reference").await?;
    let running = Conformance::start(scratch.path()).await?;
    let ours = running.node;

    let mut wrong = String::new();
    for step in [
        places(),
        headers(),
        polling(),
        streaming(),
        scripts(),
        closing(),
    ]
    .concat()
    {
        let (expected, found) = (step.ask(theirs).await?, step.ask(ours).await?);
        for ((part, expected), (_, found)) in expected.into_iter().zip(found) {
            if (expected == found) == step.known.contains(&part) {
                let [expected, found] =
                    [expected, found].map(|value| value.chars().take(200).collect::<String>());
                writeln!(
                    wrong,
                    "{step}\n  {part}: theirs {expected:?}, ours {found:?}"
                )?;
            }
        }
    }
    assert!(wrong.is_empty(), "differences that nobody meant:\n{wrong}");
    Ok(())
}
