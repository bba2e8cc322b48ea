//! The wires of SockJS that are loaded as events, pages and scripts, to the letter of the protocol.

use super::*;

const ENDPOINTS: &str = "
endpoints:
  - { path: /echo, protocol: sockjs, mode: echo, allowed_origins: ['*'], response_limit: 4KiB, disconnect_delay: 1m }
  - { path: /cookie, protocol: sockjs, mode: echo, allowed_origins: ['*'], cookie_needed: true }
  - { path: /page, protocol: sockjs, mode: echo, client_script: 'https://cdn.example/sockjs.js?a&b' }
  - { path: /brief, protocol: sockjs, mode: echo, allowed_origins: ['*'], heartbeat: 100ms }
";

const NO_CACHE: &str = "no-store, no-cache, no-transform, must-revalidate, max-age=0";

/// A wire that is asked for with GET, and what a frame looks like on it.
struct Wire {
    /// Behind the session, with its query.
    path: &'static str,
    content_type: &'static str,
    before: &'static str,
    after: &'static str,
}

const EVENTSOURCE: Wire = Wire {
    path: "eventsource",
    content_type: "text/event-stream",
    before: "data: ",
    after: "\r\n\r\n",
};

const HTMLFILE: Wire = Wire {
    path: "htmlfile?c=%63b",
    content_type: "text/html; charset=UTF-8",
    before: "<script>\np(\"",
    after: "\");\n</script>\r\n",
};

const JSONP: Wire = Wire {
    path: "jsonp?t=1&c=%63b",
    content_type: "application/javascript; charset=UTF-8",
    before: "/**/cb(\"",
    after: "\");\r\n",
};

impl Wire {
    /// A frame that needs no escapes.
    fn frame(&self, frame: &str) -> String {
        format!("{}{frame}{}", self.before, self.after)
    }

    /// Opens a stream and reads up to its first frame, which it returns.
    async fn stream(&self, node: &TestNode, session: &str) -> (Client, String) {
        let mut client = node.connect().await;
        let path = self.path;
        client
            .send(format!(
                "GET {session}/{path} HTTP/1.1\r\nHost: node\r\n\r\n"
            ))
            .await;
        let head = client.head().await;
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), Some(self.content_type));
        assert_eq!(head.header("cache-control"), Some(NO_CACHE));
        let prelude = client.chunk().await.unwrap();
        match self.path {
            "eventsource" => assert_eq!(prelude, "\r\n"),
            _ => assert!(prelude.contains("var c = parent.cb;") && 1024 < prelude.len()),
        }
        let first = client.chunk().await.unwrap();
        (client, first)
    }
}

async fn send(node: &TestNode, session: &str, messages: &str) -> u16 {
    node.post(&format!("{session}/xhr_send"), messages)
        .await
        .status
}

async fn submit(node: &TestNode, session: &str, content_type: &str, body: &str) -> raw::Response {
    let length = body.len();
    node.request(&format!(
        "POST {session}/jsonp_send?i=1 HTTP/1.1\r\nHost: node\r\nContent-Type: {content_type}\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    ))
    .await
}

#[tokio::test]
async fn each_frame_of_events_and_of_a_page_is_a_chunk_of_its_own() {
    let node = TestNode::start(ENDPOINTS);
    for (wire, session, message) in [
        (EVENTSOURCE, "/echo/0/events", "a[\"x\"]"),
        (HTMLFILE, "/echo/0/page", "a[\\\"x\\\"]"),
    ] {
        let (mut client, first) = wire.stream(&node, session).await;
        assert_eq!(first, wire.frame("o"));
        for _ in 0..2 {
            assert_eq!(send(&node, session, r#"["x"]"#).await, 204);
            assert_eq!(client.chunk().await, Some(wire.frame(message)));
        }
    }
}

#[tokio::test]
async fn events_and_pages_end_at_the_limit_and_lose_nothing() {
    let node = TestNode::start(ENDPOINTS);
    for (wire, session) in [(EVENTSOURCE, "/echo/0/events"), (HTMLFILE, "/echo/0/page")] {
        let (mut client, _) = wire.stream(&node, session).await;
        send(&node, session, &format!("[\"{}\"]", "x".repeat(4096))).await;
        assert!(client.chunk().await.unwrap().contains("xxx"));
        assert_eq!(client.chunk().await, None);
        send(&node, session, r#"["after"]"#).await;
        let (_client, next) = wire.stream(&node, session).await;
        assert!(next.contains("after"), "{next}");
    }
}

#[tokio::test]
async fn what_would_break_a_wire_is_escaped() {
    let node = TestNode::start(ENDPOINTS);
    let message = r#"["100 %41 </script>\u2028 \r\n\u0000"]"#;
    for (wire, session, frame) in [
        (
            EVENTSOURCE,
            "/echo/0/events",
            r#"a["100 %2541 </script>\u2028 \r\n\u0000"]"#,
        ),
        (
            HTMLFILE,
            "/echo/0/page",
            r#"a[\"100 %41 \u003c/script>\\u2028 \\r\\n\\u0000\"]"#,
        ),
    ] {
        let (mut client, _) = wire.stream(&node, session).await;
        assert_eq!(send(&node, session, message).await, 204);
        assert_eq!(client.chunk().await, Some(wire.frame(frame)));
    }
}

#[tokio::test]
async fn a_script_polls_and_a_form_sends() {
    let node = TestNode::start(ENDPOINTS);
    let session = "/echo/0/a";
    let poll = async || node.get(&format!("{session}/{}", JSONP.path)).await;
    let first = poll().await;
    assert_eq!((first.status, first.body), (200, JSONP.frame("o")));
    for (name, value) in [
        ("content-type", JSONP.content_type),
        ("cache-control", NO_CACHE),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(first.headers.get(name).map(String::as_str), Some(value));
    }
    let form = "application/x-www-form-urlencoded";
    for (content_type, body) in [
        (form, "d=%5B%22%C3%A4+%22%5D"),
        (
            "Application/X-WWW-Form-Urlencoded; charset=UTF-8",
            "x=1&d=[\"b\"]",
        ),
        (form, "d=%5B%5D"),
        ("text/plain", "[\"%61\"]"),
        ("", "[\"c\"]"),
    ] {
        let response = submit(&node, session, content_type, body).await;
        assert_eq!((response.status, &response.body[..]), (200, "ok"), "{body}");
        assert_eq!(
            response.header("content-type"),
            Some("text/plain; charset=UTF-8")
        );
        assert_eq!(response.header("cache-control"), Some(NO_CACHE));
    }
    let messages = r#"a[\"ä \",\"b\",\"%61\",\"c\"]"#;
    assert_eq!(poll().await.body, JSONP.frame(messages));
}

#[tokio::test]
async fn a_form_that_holds_no_messages_is_named_and_the_session_goes_on() {
    let node = TestNode::start(ENDPOINTS);
    let session = "/echo/0/a";
    let form = "application/x-www-form-urlencoded";
    let unknown = submit(&node, session, form, "d=%5B%5D").await;
    assert_eq!(unknown.status, 404);
    node.get(&format!("{session}/{}", JSONP.path)).await;
    for (content_type, body, text) in [
        (form, "", "Payload expected."),
        (form, "d=", "Payload expected."),
        (form, "p=p", "Payload expected."),
        (form, "d=%7B%7D", "Payload expected."),
        (form, "d=%5B%22x", "Broken JSON encoding."),
        (form, "d=%5B%22%FF%22%5D", "Broken JSON encoding."),
        ("text/plain", "", "Payload expected."),
        ("text/plain", "d=%5B%22x%22%5D", "Broken JSON encoding."),
    ] {
        let response = submit(&node, session, content_type, body).await;
        assert_eq!((response.status, &response.body[..]), (500, text), "{body}");
    }
    assert_eq!(
        submit(&node, session, form, "d=%5B%22x%22%5D").await.body,
        "ok"
    );
    let next = node.get(&format!("{session}/{}", JSONP.path)).await;
    assert_eq!(next.body, JSONP.frame("a[\\\"x\\\"]"));
}

#[tokio::test]
async fn a_bad_callback_is_refused_and_opens_no_session() {
    let node = TestNode::start(ENDPOINTS);
    for wire in ["htmlfile", "jsonp"] {
        for (query, text) in [
            ("", "\"callback\" parameter required"),
            ("?c=", "\"callback\" parameter required"),
            ("?c=%20", "invalid \"callback\" parameter"),
            ("?c=abc%28", "invalid \"callback\" parameter"),
            ("?callback=a;b", "invalid \"callback\" parameter"),
        ] {
            let response = node.get(&format!("/echo/0/a/{wire}{query}")).await;
            assert_eq!(
                (response.status, &response.body[..]),
                (500, text),
                "{query}"
            );
            assert_eq!(response.header("cache-control"), Some(NO_CACHE));
        }
    }
    assert_eq!(send(&node, "/echo/0/a", "[]").await, 404);
}

#[tokio::test]
async fn a_second_receiver_of_another_wire_is_refused() {
    let node = TestNode::start(ENDPOINTS);
    let (mut first, _) = EVENTSOURCE.stream(&node, "/echo/0/a").await;
    let busy = r#"c[2010,\"Another connection still open\"]"#;
    let (mut second, frame) = HTMLFILE.stream(&node, "/echo/0/a").await;
    assert_eq!(frame, HTMLFILE.frame(busy));
    assert_eq!(second.chunk().await, None);
    let third = node.get(&format!("/echo/0/a/{}", JSONP.path)).await;
    assert_eq!(third.body, JSONP.frame(busy));
    send(&node, "/echo/0/a", r#"["x"]"#).await;
    assert_eq!(first.chunk().await, Some(EVENTSOURCE.frame("a[\"x\"]")));
}

#[tokio::test]
async fn a_quiet_receiver_receives_heartbeats_on_every_wire() {
    let node = TestNode::start(ENDPOINTS);
    for (wire, session) in [
        (EVENTSOURCE, "/brief/0/events"),
        (HTMLFILE, "/brief/0/page"),
    ] {
        let (mut client, _) = wire.stream(&node, session).await;
        assert_eq!(client.chunk().await, Some(wire.frame("h")));
    }
    let poll = async || node.get(&format!("/brief/0/script/{}", JSONP.path)).await;
    assert_eq!(poll().await.body, JSONP.frame("o"));
    assert_eq!(poll().await.body, JSONP.frame("h"));
}

#[tokio::test]
async fn a_client_that_goes_away_interrupts_its_session_on_every_wire() {
    let node = TestNode::start(ENDPOINTS);
    let gone = async |session: &str, client: Client| {
        drop(client);
        until(async || send(&node, session, "[]").await == 404).await;
        let next = node.post(&format!("{session}/xhr"), "").await.body;
        assert_eq!(next, "c[1002,\"Connection interrupted\"]\n");
    };
    for (wire, session) in [(EVENTSOURCE, "/echo/0/events"), (HTMLFILE, "/echo/0/page")] {
        gone(session, wire.stream(&node, session).await.0).await;
    }
    let path = format!("/echo/0/script/{}", JSONP.path);
    node.get(&path).await;
    let (mut first, mut second) = (node.connect().await, node.connect().await);
    for client in [&mut first, &mut second] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n");
        client.send(request).await;
    }
    // One of them is refused: then the other one waits.
    let (refusal, waiting) = tokio::select! {
        refusal = first.response() => (refusal, second),
        refusal = second.response() => (refusal, first),
    };
    assert!(refusal.body.contains("c[2010"), "{}", refusal.body);
    gone("/echo/0/script", waiting).await;
}

#[tokio::test]
async fn an_old_client_gets_no_chunks_on_any_wire() {
    let node = TestNode::start(ENDPOINTS);
    for (wire, session) in [(EVENTSOURCE, "/echo/0/events"), (HTMLFILE, "/echo/0/page")] {
        let mut client = node.connect().await;
        let request = format!("GET {session}/{} HTTP/1.0\r\n\r\n", wire.path);
        client.send(request).await;
        let head = client.head().await;
        let framing = ["transfer-encoding", "content-length"].map(|name| head.header(name));
        assert_eq!((head.status, framing), (200, [None, None]));
        send(&node, session, &format!("[\"{}\"]", "x".repeat(4096))).await;
        let body = String::from_utf8(client.rest().await).unwrap();
        assert!(
            body.contains(&wire.frame("o")) && body.ends_with(wire.after),
            "{body}"
        );
    }
}

#[tokio::test]
async fn only_wires_that_scripts_read_are_shared_with_other_origins() {
    let node = TestNode::start(ENDPOINTS);
    for (wire, method, shared) in [
        ("eventsource", "GET", true),
        ("htmlfile?c=x", "GET", false),
        ("jsonp?c=x", "GET", false),
        ("jsonp_send", "POST", false),
        ("xhr_streaming", "POST", true),
    ] {
        let mut client = node.connect().await;
        let request = format!(
            "{method} /cookie/0/{method}{shared}/{wire} HTTP/1.1\r\nHost: node\r\nOrigin: null\r\n\
             Content-Length: 0\r\n\r\n"
        );
        client.send(request).await;
        let head = client.head().await;
        let cors = [
            "access-control-allow-origin",
            "access-control-allow-credentials",
            "vary",
        ];
        let expected = [Some("null"), Some("true"), Some("Origin")];
        assert_eq!(
            cors.map(|name| head.header(name)),
            expected.map(|value| value.filter(|_| shared)),
            "{wire}"
        );
        assert_eq!(head.header("set-cookie"), Some("JSESSIONID=dummy; path=/"));
    }
}

#[tokio::test]
async fn the_page_for_frames_is_kept_for_a_year() {
    let node = TestNode::start(ENDPOINTS);
    let first = node.get("/page/iframe.html").await;
    assert_eq!(first.status, 200);
    assert!(
        first
            .body
            .contains("<script src=\"https://cdn.example/sockjs.js?a&amp;b\"></script>")
    );
    for (name, value) in [
        ("content-type", Some("text/html; charset=UTF-8")),
        ("cache-control", Some("public, max-age=31536000")),
        ("content-security-policy", Some("frame-ancestors 'self'")),
        ("last-modified", None),
        ("set-cookie", None),
        ("access-control-allow-origin", None),
    ] {
        assert_eq!(first.header(name), value);
    }
    assert!(first.header("expires").unwrap().ends_with(" GMT"));
    for path in ["/page/iframe-1.6.1.html", "/page/iframe-a.html?t=1"] {
        assert_eq!(node.get(path).await.body, first.body);
    }
    let etag = first.header("etag").unwrap();
    let again = node
        .request(&format!(
            "GET /page/iframe.html HTTP/1.1\r\nHost: node\r\nIf-None-Match: {etag}\r\n\r\n"
        ))
        .await;
    assert_eq!((again.status, &again.body[..]), (304, ""));
    assert_eq!(again.header("content-type"), None);
    assert_eq!(again.header("etag"), Some(etag));
    assert_eq!(node.get("/echo/iframe.html").await.status, 404);
}
