//! Headers and statuses to the letter: clients and the protocol's suite depend on them.

use super::*;

const NO_CACHE: &str = "no-store, no-cache, no-transform, must-revalidate, max-age=0";

const ENDPOINTS: &str = "
node: { id: n1 }
trusted_proxies: [ 127.0.0.1 ]
endpoints:
  - { path: /echo, protocol: sockjs, mode: echo, allowed_origins: ['*'] }
  - { path: /cookie, protocol: sockjs, mode: echo, allowed_origins: ['*'], cookie_needed: true }
  - { path: /ws, protocol: websocket, mode: echo }
  - { path: /same, protocol: sockjs, mode: echo }
";

fn with_origin(method: &str, path: &str, origin: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: node\r\nOrigin: {origin}\r\nContent-Length: 0\r\n\r\n"
    )
}

#[tokio::test]
async fn every_response_names_its_node() {
    let node = TestNode::start(ENDPOINTS);
    for path in [
        "/",
        "/move",
        "/live",
        "/ready",
        "/metrics",
        "/echo",
        "/nothing",
        "/echo/a/b/xhr",
    ] {
        assert_eq!(
            node.get(path).await.header("causeway-node"),
            Some("n1"),
            "{path}"
        );
    }
    for path in ["/live", "/metrics", "/nothing"] {
        let response = node.get_from_admin(path).await;
        assert_eq!(response.header("causeway-node"), Some("n1"), "{path}");
    }
}

#[tokio::test]
async fn the_greeting_is_plain_text_without_cookies() {
    let node = TestNode::start(ENDPOINTS);
    for path in ["/echo", "/echo/", "/cookie"] {
        let response = node.get(path).await;
        assert_eq!(
            (response.status, &response.body[..]),
            (200, "Welcome to SockJS!\n")
        );
        assert_eq!(
            response.header("content-type"),
            Some("text/plain; charset=UTF-8")
        );
        assert_eq!(response.header("set-cookie"), None);
    }
}

#[tokio::test]
async fn info_says_what_the_endpoint_can_and_is_never_cached() {
    let node = TestNode::start(ENDPOINTS);
    let (first, second) = (
        node.get("/echo/info").await,
        node.get("/echo/info?t=1").await,
    );
    assert_eq!(
        first.header("content-type"),
        Some("application/json; charset=UTF-8")
    );
    assert_eq!(first.header("cache-control"), Some(NO_CACHE));
    assert_eq!(first.header("expires"), None);
    assert_eq!(first.header("access-control-allow-origin"), Some("*"));
    assert_eq!(first.header("access-control-allow-credentials"), None);
    assert!(
        first
            .body
            .starts_with(r#"{"websocket":true,"origins":["*:*"],"cookie_needed":false,"entropy":"#)
    );
    assert_ne!(first.body, second.body, "each has its own entropy");
    let cookie = node.get("/cookie/info").await;
    assert!(cookie.body.contains(r#""cookie_needed":true"#));
    assert_eq!(cookie.header("set-cookie"), None);
}

#[tokio::test]
async fn an_origin_is_repeated_with_credentials() {
    let node = TestNode::start(ENDPOINTS);
    for origin in ["http://chat.example", "null"] {
        for (method, path) in [("GET", "/echo/info"), ("POST", "/echo/0/a/xhr_send")] {
            let response = node.request(&with_origin(method, path, origin)).await;
            assert_eq!(response.header("access-control-allow-origin"), Some(origin));
            assert_eq!(
                response.header("access-control-allow-credentials"),
                Some("true")
            );
        }
    }
}

#[tokio::test]
async fn a_preflight_holds_for_a_year() {
    let node = TestNode::start(ENDPOINTS);
    for (path, methods) in [
        ("/echo/info", "OPTIONS, GET"),
        ("/echo/0/a/xhr", "OPTIONS, POST"),
        ("/echo/0/a/xhr_streaming", "OPTIONS, POST"),
        ("/cookie/0/a/xhr_send", "OPTIONS, POST"),
    ] {
        let response = node
            .request(&format!(
                "OPTIONS {path} HTTP/1.1\r\nHost: node\r\nOrigin: test\r\n\
                 Access-Control-Request-Headers: a, b\r\n\r\n"
            ))
            .await;
        assert_eq!((response.status, &response.body[..]), (204, ""));
        assert_eq!(
            response.header("access-control-allow-methods"),
            Some(methods)
        );
        assert_eq!(
            response.header("access-control-allow-headers"),
            Some("a, b")
        );
        assert_eq!(response.header("access-control-max-age"), Some("31536000"));
        assert_eq!(
            response.header("cache-control"),
            Some("public, max-age=31536000")
        );
        assert!(response.header("expires").unwrap().ends_with(" GMT"));
        assert_eq!(
            response.header("set-cookie").is_some(),
            path.starts_with("/cookie")
        );
    }
}

#[tokio::test]
async fn empty_request_headers_are_not_repeated() {
    let node = TestNode::start(ENDPOINTS);
    let response = node
        .request(
            "OPTIONS /echo/0/a/xhr HTTP/1.1\r\nHost: node\r\nOrigin: test\r\n\
             Access-Control-Request-Headers: \r\n\r\n",
        )
        .await;
    assert_eq!(response.header("access-control-allow-headers"), None);
}

#[tokio::test]
async fn a_wrong_method_gets_allow_and_nothing_else() {
    let node = TestNode::start(ENDPOINTS);
    for (method, path, allow) in [
        ("POST", "/echo", "GET"),
        ("POST", "/echo/info", "OPTIONS, GET"),
        ("GET", "/echo/0/a/xhr", "OPTIONS, POST"),
        ("POST", "/echo/0/a/websocket", "GET"),
        ("POST", "/echo/websocket", "GET"),
        ("DELETE", "/", "GET, HEAD"),
        ("POST", "/ready", "GET, HEAD"),
    ] {
        let response = node.request(&with_origin(method, path, "test")).await;
        assert_eq!(
            (response.status, &response.body[..]),
            (405, ""),
            "{method} {path}"
        );
        assert_eq!(response.header("allow"), Some(allow));
        assert_eq!(response.header("content-type"), None);
    }
}

#[tokio::test]
async fn a_foreign_origin_is_refused_by_name_of_the_setting() {
    let node = TestNode::start(ENDPOINTS);
    for (method, path) in [
        ("GET", "/ws"),
        ("GET", "/same/info"),
        ("POST", "/same/0/a/xhr"),
    ] {
        let response = node
            .request(&with_origin(method, path, "http://evil.example"))
            .await;
        assert_eq!(response.status, 403, "{path}");
        assert!(
            response.body.contains("`allowed_origins` of the endpoint"),
            "{}",
            response.body
        );
        assert_eq!(response.header("access-control-allow-origin"), None);
    }
    let response = node
        .request(&with_origin("GET", "/same/info", "http://node"))
        .await;
    assert_eq!(response.status, 200);
}

#[tokio::test]
async fn a_script_of_a_foreign_or_unknown_page_is_refused() {
    let node = TestNode::start(ENDPOINTS);
    let jsonp = async |path: &str, headers: &str| {
        let session = headers.len(); // A session of its own for each: a second poll would wait.
        node.request(&format!(
            "GET {path}/0/{session}/jsonp?c=x HTTP/1.1\r\nHost: node\r\n{headers}\r\n"
        ))
        .await
    };
    for headers in [
        "",
        "Referer: http://evil.example/\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
    ] {
        let response = jsonp("/same", headers).await;
        assert_eq!(response.status, 403, "{headers}");
        assert!(
            response.body.contains("known by its Referer")
                && response.body.contains("allowed_origins"),
            "{}",
            response.body
        );
        assert_eq!(jsonp("/echo", headers).await.status, 200);
    }
    assert_eq!(
        jsonp("/same", "Referer: http://node/page\r\n").await.status,
        200
    );
}

#[tokio::test]
async fn a_trusted_proxy_says_under_which_name_it_is_reached() {
    let node = TestNode::start(ENDPOINTS);
    let response = node
        .request(
            "GET /same/info HTTP/1.1\r\nHost: 10.0.0.1\r\nOrigin: https://chat.example\r\n\
             X-Forwarded-Proto: https\r\nX-Forwarded-Host: chat.example\r\n\r\n",
        )
        .await;
    assert_eq!(response.status, 200);
}

#[tokio::test]
async fn the_session_cookie_is_set_where_it_is_switched_on() {
    let node = TestNode::start(ENDPOINTS);
    let response = node.post("/cookie/0/a/xhr", "").await;
    assert_eq!(
        response.header("set-cookie"),
        Some("JSESSIONID=dummy; path=/")
    );
    let response = node
        .request(
            "POST /cookie/0/b/xhr HTTP/1.1\r\nHost: node\r\nCookie: JSESSIONID=abc\r\n\
             Content-Length: 0\r\n\r\n",
        )
        .await;
    assert_eq!(
        response.header("set-cookie"),
        Some("JSESSIONID=abc; path=/")
    );
    assert_eq!(
        node.post("/echo/0/a/xhr", "").await.header("set-cookie"),
        None
    );
}

#[tokio::test]
async fn the_page_has_its_files_and_a_way_to_another_node() {
    let node = TestNode::start(ENDPOINTS);
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
    ] {
        let response = node.get(path).await;
        assert_eq!(
            (response.status, response.header("content-type")),
            (200, Some(content_type))
        );
        assert!(response.header("content-security-policy").is_some());
    }
    let mut client = node.connect().await;
    client
        .send("HEAD / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(client.head().await.status, 200);
    assert!(client.rest().await.is_empty(), "HEAD has no body");
    let response = node.get("/move").await;
    assert_eq!(
        (response.status, response.header("location")),
        (303, Some("/"))
    );
    assert_eq!(response.header("causeway-release"), Some("1"));
}

#[tokio::test]
async fn another_site_cannot_move_a_client() {
    let node = TestNode::start("");
    let sites = [
        ("same-origin", true),
        ("none", true),
        ("same-site", false),
        ("cross-site", false),
    ];
    for (site, released) in sites {
        let request = format!("GET /move HTTP/1.1\r\nHost: node\r\nSec-Fetch-Site: {site}\r\n\r\n");
        let response = node.request(&request).await;
        assert_eq!(
            (response.status, response.header("location")),
            (303, Some("/"))
        );
        assert_eq!(
            response.header("causeway-release").is_some(),
            released,
            "{site}"
        );
    }
}
