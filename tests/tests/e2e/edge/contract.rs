//! What the edge and the node must agree on: headers, paths, codes. Each side is tested alone in its own crate; here both are.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    backend::{Backend, Request},
    edge::{self, Edge, Program},
    http::{self, Connection},
    node::{self, Node},
    scratch::Scratch,
    wait,
    websocket::WebSocket,
};
use causeway_tests::on_edge_and_plugin;
use serde_json::json;
use tokio::{io::AsyncReadExt as _, sync::mpsc, task::JoinSet, time::timeout};

/// An edge before a backend that responds with the head of the request, and with headers that are not for clients.
async fn mirror(name: &str) -> Result<(Scratch, Backend, Edge)> {
    let scratch = Scratch::new(name)?;
    let backend = Backend::start(async |mut request: Request| {
        let head = request.head.clone();
        let headers =
            "Causeway-Drain: 1\r\nCauseway-Secret: x\r\nCauseway-Node: b1\r\nX-Own: y\r\n";
        request
            .respond("200 OK", headers, &head)
            .await
            .unwrap_or_default();
    })
    .await?;
    let edge = Edge::start(&edge::settings(&[("b1", backend.address)]), scratch.path()).await?;
    edge.backend_in_state("b1", "up").await?;
    Ok((scratch, backend, edge))
}

#[tokio::test]
async fn headers_between_edge_and_node_stay_between_them() -> Result<()> {
    let (_scratch, _backend, edge) = mirror("mirror").await?;
    let response = http::get(edge.address, "/").await?;
    assert_eq!(response.header("causeway-drain"), None);
    assert_eq!(response.header("causeway-secret"), None);
    assert_eq!(response.header("causeway-node"), Some("b1"));
    assert_eq!(response.header("x-own"), Some("y"));
    Ok(())
}

#[tokio::test]
async fn a_backend_sees_what_the_edge_knows_and_nothing_that_a_client_claims() -> Result<()> {
    let (_scratch, _backend, edge) = mirror("forwarded").await?;
    let claims = [
        ("X-Forwarded-For", "6.6.6.6"),
        ("X-Forwarded-Proto", "gopher"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Port", "666"),
        ("X-Real-IP", "6.6.6.6"),
        ("Forwarded", "for=6.6.6.6"),
        ("X_Forwarded_For", "6.6.6.6"),
        ("X-Request-Id", "forged"),
        ("Cookie", "a=1; causeway=v1.b1.0; b=2"),
    ];
    let seen = http::get_with(edge.address, "/", &claims)
        .await?
        .text()
        .to_ascii_lowercase();
    for claim in [
        "6.6.6.6",
        "gopher",
        "evil.example",
        "666",
        "causeway=",
        "forged",
    ] {
        assert!(!seen.contains(claim), "{claim} in\n{seen}");
    }
    for known in [
        "x-forwarded-for: 127.0.0.1\r\n",
        "x-forwarded-proto: http\r\n",
        "cookie: a=1; b=2\r\n",
        "x-request-id: ",
    ] {
        assert!(seen.contains(known), "no {known} in\n{seen}");
    }
    assert!(
        seen.contains(&format!("host: {}\r\n", edge.address)),
        "{seen}"
    );
    Ok(())
}

#[tokio::test]
async fn paths_for_operators_are_not_for_clients() -> Result<()> {
    let scratch = Scratch::new("operators")?;
    let node = Node::start("n1", node::settings(), scratch.path()).await?;
    let edge = Edge::start(&edge::settings(&[("n1", node.address)]), scratch.path()).await?;
    edge.backend_in_state("n1", "up").await?;
    for path in ["/live", "/ready"] {
        let probed = http::get(node.address, path).await?;
        assert_eq!(
            probed.status, 200,
            "{path} where clients of the node connect"
        );
    }
    for path in ["/metrics", "/slowest"] {
        let refused = http::get(node.address, path).await?;
        assert_eq!(
            refused.status, 404,
            "{path} where clients of the node connect"
        );
        let shown = http::get(node.admin, path).await?;
        assert_eq!(shown.status, 200, "{path} of the node");
    }
    for path in ["/live", "/ready", "/metrics"] {
        assert_eq!(
            http::get(node.admin, path).await?.status,
            200,
            "{path} of the node"
        );
        assert_eq!(
            http::get(edge.admin, path)
                .await
                .with_context(|| path)?
                .status,
            200,
            "{path} of the edge"
        );
        assert_eq!(
            http::get(edge.address, path).await?.status,
            404,
            "{path} through the edge"
        );
    }
    Ok(())
}

on_edge_and_plugin!(
    no_spelling_of_a_path_for_operators_reaches_a_backend,
    the_server_api_of_a_node_is_closed_unless_a_route_names_it,
    a_route_changes_what_backends_and_clients_see,
    a_connection_that_closes_after_an_early_response_is_announced_to_close,
);

async fn no_spelling_of_a_path_for_operators_reaches_a_backend(program: Program) -> Result<()> {
    let scratch = Scratch::new("spellings")?;
    let backend = Backend::start(async |mut request: Request| {
        let line = request.head.lines().next().unwrap_or_default().to_owned();
        request
            .respond("200 OK", "", &line)
            .await
            .unwrap_or_default();
    })
    .await?;
    let settings = edge::settings(&[("b1", backend.address)]);
    let edge = Edge::start_in(program, &settings, scratch.path()).await?;
    edge.backend_in_state("b1", "up").await?;
    let ask = async |line: &str, more: &str| -> Result<u16> {
        let mut connection = Connection::open(edge.address).await?;
        let request = format!("{line}\r\nHost: a\r\n{more}\r\n");
        connection.send(request).await?;
        Ok(connection.response().await?.status)
    };
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for path in [
        "/metrics",
        "/METRICS",
        "/metrics/",
        "//metrics",
        "//host/metrics",
        "http://host//metrics",
        "/./metrics",
        "/x/../metrics",
        "/x;y/../metrics",
        "/x/..;y/metrics",
        "/metrics;x",
        "/%2e%2e/metrics",
        "/x/%2e%2e/metrics",
        "/%252e%252e/metrics",
        "/x%2f..%2fmetrics",
        "/x%252fy/../metrics",
        "/%6detrics",
        "/%256detrics",
        "/metrics%3fx",
        "/metrics%00",
        "/%c0%aemetrics/../metrics",
        "/\\metrics",
        "/x%5c..%5cmetrics",
        "/api/publish",
        "/x/../api/publish",
        "/api%2fpublish",
        "/slowest",
        "/live",
        "/ready",
    ] {
        for more in ["", upgrade] {
            let status = ask(&format!("GET {path} HTTP/1.1"), more).await?;
            assert!([400, 404].contains(&status), "{path}: {status}");
        }
    }
    // Others go through as they are.
    for path in ["/x/metrics", "/caf%C3%A9", "/x;y/z", "/a%20b/../c"] {
        let response = http::get(edge.address, path).await?;
        assert_eq!(response.text(), format!("GET {path} HTTP/1.1"));
    }
    Ok(())
}

async fn the_server_api_of_a_node_is_closed_unless_a_route_names_it(
    program: Program,
) -> Result<()> {
    const KEY: &str = "a key of the application";
    let scratch = Scratch::new("closed-api")?;
    let settings = node::settings().with("api.keys", json!([KEY]));
    let node = Node::start("n1", settings, scratch.path()).await?;
    let statuses = async |name: &str, routes: serde_json::Value| -> Result<[u16; 2]> {
        let directory = scratch.path().join(name);
        std::fs::create_dir_all(&directory)?;
        let settings = edge::settings(&[("n1", node.address)]).with("routes", routes);
        let edge = Edge::start_in(program, &settings, &directory).await?;
        edge.backend_in_state("n1", "up").await?;
        let ask = async |path: &str| -> Result<u16> {
            let mut connection = Connection::open(edge.address).await?;
            let request = format!(
                "POST {path} HTTP/1.1\r\nHost: a\r\nX-API-Key: {KEY}\r\nContent-Length: 2\r\n\r\n{{}}"
            );
            connection.send(request).await?;
            Ok(connection.response().await?.status)
        };
        Ok([ask("/api/info").await?, ask("/api/channels").await?])
    };
    let all = json!({ "path": "/", "pool": "nodes" });
    assert_eq!(statuses("none", json!(null)).await?, [404, 404]);
    assert_eq!(statuses("all", json!([all])).await?, [404, 404]);
    let info = json!({ "path": "/api/info", "pool": "nodes" });
    assert_eq!(statuses("info", json!([all, info])).await?, [200, 404]);
    Ok(())
}

async fn a_route_changes_what_backends_and_clients_see(program: Program) -> Result<()> {
    let scratch = Scratch::new("route-changes")?;
    let backend = Backend::start(async |mut request: Request| {
        let head = request.head.clone();
        let headers = "Server: secret/1.0\r\nX-Tag: own\r\nSet-Cookie: app=1\r\n";
        let status = match request.header("upgrade") {
            Some(_) => "403 Forbidden",
            None => "200 OK",
        };
        request
            .respond(status, headers, &head)
            .await
            .unwrap_or_default();
    })
    .await?;
    let routes = json!([{
        "path": "/app",
        "pool": "nodes",
        "strip_prefix": "/app",
        "request_headers": {
            "remove": ["X-Debug"],
            "set": { "X-Env": "prod", "Host": "app.internal" },
            "add": { "X-Tag": "edge" },
        },
        "response_headers": {
            "remove": ["server"],
            "set": { "Strict-Transport-Security": "max-age=60" },
            "add": { "X-Tag": "edge" },
        },
    }]);
    let settings = edge::settings(&[("b1", backend.address)]).with("routes", routes);
    let edge = Edge::start_in(program, &settings, scratch.path()).await?;
    edge.backend_in_state("b1", "up").await?;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (line, more, body) in [
        ("GET /app/x?y=/app HTTP/1.1", "", ""),
        ("POST /app/x?y=/app HTTP/1.1", "Content-Length: 2\r\n", "ok"),
        ("GET /app/x?y=/app HTTP/1.1", upgrade, ""),
    ] {
        let mut connection = Connection::open(edge.address).await?;
        let head = format!(
            "{line}\r\nHost: a\r\nX-Debug: 1\r\nx-env: test\r\nX-Tag: client\r\nX-Forwarded-Prefix: /forged\r\n{more}\r\n"
        );
        connection.send(head).await?;
        if !body.is_empty() {
            // In a segment of its own.
            tokio::task::yield_now().await;
            connection.send(body).await?;
        }
        let response = connection.response().await?;
        let seen = response.text().to_ascii_lowercase();
        assert!(seen.contains(" /x?y=/app http/1.1\r\n"), "{line}: {seen}");
        for (name, values) in [
            ("x-debug", vec![]),
            ("x-env", vec!["prod"]),
            ("host", vec!["app.internal"]),
            ("x-tag", vec!["client", "edge"]),
            ("x-forwarded-prefix", vec!["/app"]),
            ("x-forwarded-host", vec!["a"]),
        ] {
            let prefix = format!("{name}: ");
            let found: Vec<&str> = seen
                .lines()
                .filter_map(|line| line.strip_prefix(&prefix))
                .collect();
            assert_eq!(found, values, "{name} of {line}: {seen}");
        }
        assert_eq!(response.header("server"), None, "{line}");
        let hsts = response.header("strict-transport-security");
        assert_eq!(hsts, Some("max-age=60"), "{line}");
        let all = |name: &str| -> Vec<&str> {
            let headers = response.headers.iter();
            headers
                .filter(|(found, _)| found.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.as_str())
                .collect()
        };
        assert_eq!(all("x-tag"), ["own", "edge"], "{line}");
        // Ours comes besides.
        assert_eq!(all("set-cookie").len(), 2, "{line}");
    }
    // What a prefix hides is closed all the same.
    assert_eq!(http::get(edge.address, "/app/metrics").await?.status, 404);
    assert_eq!(http::get(edge.address, "/x").await?.status, 404);
    Ok(())
}

#[tokio::test]
async fn a_draining_node_says_so_in_the_words_that_the_edge_reads() -> Result<()> {
    let scratch = Scratch::new("drain-words")?;
    let settings = node::settings().with("drain", json!({ "lead": "5s" }));
    let mut node = Node::start("n1", settings, scratch.path()).await?;
    let edge = Edge::start(&edge::settings(&[("n1", node.address)]), scratch.path()).await?;
    edge.backend_in_state("n1", "up").await?;
    node.drain();
    let response = wait::until("a 503 of /ready", wait::SOON, async || {
        http::get(node.address, "/ready")
            .await
            .ok()
            .filter(|response| response.status == 503)
    });
    assert_eq!(response.await?.header("causeway-drain"), Some("1"));
    edge.backend_in_state("n1", "draining").await
}

#[tokio::test]
async fn a_node_believes_the_edge_about_the_scheme_and_nobody_else() -> Result<()> {
    let scratch = Scratch::new("scheme")?;
    let trusting = Node::start(
        "trusting",
        node::settings().with("trusted_proxies", json!(["127.0.0.1"])),
        scratch.path(),
    )
    .await?;
    let wary = Node::start("wary", node::settings(), scratch.path()).await?;
    for (node, trusted) in [(&trusting, true), (&wary, false)] {
        let origin = format!("https://{}", node.address);
        let headers = [("Origin", origin.as_str()), ("X-Forwarded-Proto", "https")];
        let opened = WebSocket::open_with(node.address, "/ws", &headers).await;
        assert_eq!(opened.is_ok(), trusted, "{}: {:?}", node.id, opened.err());
    }
    Ok(())
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_request_at_the_backend_at_once() -> Result<()> {
    let scratch = Scratch::new("abort")?;
    let (tell, mut told) = mpsc::channel(4);
    let backend = Backend::start(move |mut request: Request| {
        let tell = tell.clone();
        async move {
            tell.send("arrived").await.ok();
            while matches!(request.stream.read_buf(&mut request.rest).await, Ok(1..)) {}
            tell.send("gone").await.ok();
        }
    })
    .await?;
    let edge = Edge::start(&edge::settings(&[("b1", backend.address)]), scratch.path()).await?;
    edge.backend_in_state("b1", "up").await?;

    for head in [
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "GET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let mut parked = http::Connection::open(edge.address).await?;
        parked.send(head).await?;
        assert_eq!(timeout(wait::SOON, told.recv()).await?, Some("arrived"));
        drop(parked);
        // Much sooner than any time-out: sessions of SockJS end by it.
        assert_eq!(
            timeout(Duration::from_secs(2), told.recv())
                .await
                .context(head)?,
            Some("gone")
        );
    }
    Ok(())
}

/// The backend responds before the body of the request has been sent. Unless the response says `Connection: close`, the client may
/// send the body and its next request.
async fn a_connection_that_closes_after_an_early_response_is_announced_to_close(
    program: Program,
) -> Result<()> {
    let scratch = Scratch::new("early-response")?;
    let backend = Backend::start(async |mut request: Request| {
        drop(request.respond("200 OK", "", "early").await)
    })
    .await?;
    let settings = edge::settings(&[("b1", backend.address)]);
    let edge = Edge::start_in(program, &settings, scratch.path()).await?;
    edge.backend_in_state("b1", "up").await?;
    for (framing, body) in [
        ("Content-Length: 5", "hello"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
    ] {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
        let mut connection = http::Connection::open(edge.address).await?;
        connection.send(&head).await?;
        let response = connection.response().await?;
        ensure!(response.text() == "early", "{framing}: {response:?}");
        if response.header("connection") == Some("close") {
            continue;
        }
        connection.send(body).await?;
        connection.send(&head).await?;
        let next = connection.response().await;
        let next =
            next.with_context(|| format!("{framing}: the connection was not announced to close"))?;
        ensure!(next.text() == "early", "{framing}: {next:?}");
    }
    Ok(())
}

/// A connection that ends after a response must say so in it, or the edge keeps it, and the next request that comes just then
/// fails for nothing that its client did.
#[tokio::test]
async fn a_node_that_refuses_a_body_unread_says_that_the_connection_ends() -> Result<()> {
    let scratch = Scratch::new("refused-body")?;
    let node = Node::start("n1", node::settings(), scratch.path()).await?;
    let mut connection = http::Connection::open(node.address).await?;
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    connection.send(head).await?;
    let refused = connection.response().await?;
    assert_eq!(refused.status, 405);
    assert_eq!(refused.header("connection"), Some("close"), "{refused:?}");

    let edge = Edge::start(&edge::settings(&[("n1", node.address)]), scratch.path()).await?;
    edge.backend_in_state("n1", "up").await?;
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        clients.spawn(async move {
            let mut connection = http::Connection::open(edge.address).await?;
            for number in 0..50 {
                connection.send(head).await?;
                connection.send("hello").await?;
                let refused = connection.response().await?;
                ensure!(refused.status == 405, "{number}: {refused:?}");
                if refused.header("connection") == Some("close") {
                    connection = http::Connection::open(edge.address).await?;
                }
            }
            Ok(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}
