//! A client stays on its node, by its cookie or by the session in its path, until it asks for another.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result};
use causeway_tests::{
    harness::{
        backend::{Backend, Request},
        cluster::{Cluster, ClusterConfig},
        edge::{self, Edge, Program},
        http::{self, Response},
        scratch::Scratch,
        websocket::WebSocket,
    },
    on_edge_and_plugin,
};
use serde_json::json;

const COOKIE: &str = "causeway";

fn node_of(response: &Response) -> String {
    response
        .header("causeway-node")
        .unwrap_or_default()
        .to_owned()
}

async fn get_as(cluster: &Cluster, path: &str, cookie: &str) -> Result<Response> {
    http::get_with(
        cluster.edge.address,
        path,
        &[("Cookie", &format!("other=1; {COOKIE}={cookie}"))],
    )
    .await
}

on_edge_and_plugin!(
    a_cookie_keeps_its_client_and_newcomers_are_spread,
    the_101_binds_a_newcomer,
    a_visitor_who_wants_to_move_is_bound_to_another_node,
    a_sockjs_session_without_cookies_stays_on_its_node,
    a_signed_cookie_holds_and_a_forged_one_counts_as_none,
    a_session_in_the_query_stays_on_the_backend_that_named_it,
);

async fn a_cookie_keeps_its_client_and_newcomers_are_spread(program: Program) -> Result<()> {
    let cluster = Cluster::start(
        "affinity",
        ClusterConfig::three_nodes().with_edge_in(program),
    )
    .await?;
    let mut nodes = HashSet::new();
    for _ in 0..3 {
        let first = http::get(cluster.edge.address, "/").await?;
        let cookie = first.cookie(COOKIE).context("the first response binds")?;
        nodes.insert(node_of(&first));
        for _ in 0..5 {
            let again = get_as(&cluster, "/", &cookie).await?;
            assert_eq!(node_of(&again), node_of(&first));
            assert_eq!(
                again.cookie(COOKIE),
                None,
                "a cookie that holds is not set again"
            );
        }
        let pair = format!("{COOKIE}={cookie}");
        let socket =
            WebSocket::open_with(cluster.edge.address, "/ws", &[("Cookie", &pair)]).await?;
        assert_eq!(socket.node(), node_of(&first));
        assert_eq!(socket.handshake.cookie(COOKIE), None);
    }
    assert_eq!(nodes.len(), 3);
    Ok(())
}

async fn the_101_binds_a_newcomer(program: Program) -> Result<()> {
    let cluster = Cluster::start(
        "affinity-101",
        ClusterConfig::three_nodes().with_edge_in(program),
    )
    .await?;
    let socket = WebSocket::open(cluster.edge.address, "/ws").await?;
    let cookie = socket.handshake.cookie(COOKIE).context("the 101 binds")?;
    for _ in 0..5 {
        assert_eq!(
            node_of(&get_as(&cluster, "/", &cookie).await?),
            socket.node()
        );
    }
    Ok(())
}

async fn a_visitor_who_wants_to_move_is_bound_to_another_node(program: Program) -> Result<()> {
    let cluster =
        Cluster::start("move", ClusterConfig::three_nodes().with_edge_in(program)).await?;
    let first = http::get(cluster.edge.address, "/").await?;
    let mut cookie = first.cookie(COOKIE).context("the first response binds")?;
    let mut node = node_of(&first);
    for _ in 0..3 {
        let moved = get_as(&cluster, "/move", &cookie).await?;
        assert_eq!(moved.status, 303);
        assert_eq!(moved.header("location"), Some("/"));
        assert_eq!(
            moved.header("causeway-release"),
            None,
            "that header is for the edge alone"
        );
        cookie = moved.cookie(COOKIE).context("a move binds anew")?;
        let after = node_of(&get_as(&cluster, "/", &cookie).await?);
        assert_ne!(after, node);
        node = after;
    }
    Ok(())
}

async fn a_sockjs_session_without_cookies_stays_on_its_node(program: Program) -> Result<()> {
    let cluster = Cluster::start(
        "affinity-path",
        ClusterConfig::three_nodes().with_edge_in(program),
    )
    .await?;
    let edge = cluster.edge.address;
    for session in ["abcdefgh", "ijklmnop", "qrstuvwx"] {
        let path = |transport: &str| format!("/echo/000/{session}/{transport}");
        let opened = http::request(edge, "POST", &path("xhr"), &[], b"").await?;
        assert_eq!(opened.text(), "o\n");
        for number in 0..5 {
            let sent = http::request(
                edge,
                "POST",
                &path("xhr_send"),
                &[],
                format!("[\"{number}\"]").as_bytes(),
            )
            .await?;
            assert_eq!((sent.status, node_of(&sent)), (204, node_of(&opened)));
            let polled = http::request(edge, "POST", &path("xhr"), &[], b"").await?;
            assert_eq!(polled.text(), format!("a[\"{number}\"]\n"));
        }
    }
    Ok(())
}

async fn a_signed_cookie_holds_and_a_forged_one_counts_as_none(program: Program) -> Result<()> {
    let signing = ClusterConfig {
        edge_settings: |settings| {
            settings.with(
                "affinity",
                json!({ "keys": ["0123456789abcdef0123456789abcdef"] }),
            )
        },
        ..ClusterConfig::three_nodes().with_edge_in(program)
    };
    let cluster = Cluster::start("affinity-signed", signing).await?;
    let first = http::get(cluster.edge.address, "/").await?;
    let cookie = first.cookie(COOKIE).context("the first response binds")?;
    let again = get_as(&cluster, "/", &cookie).await?;
    assert_eq!(
        (node_of(&again), again.cookie(COOKIE)),
        (node_of(&first), None)
    );

    let mut forged = cookie.clone();
    let last = forged.pop().context("a cookie is not empty")?;
    forged.push(if last == 'A' { 'B' } else { 'A' });
    for bad in [forged.as_str(), "", "v1", &"x".repeat(5_000)] {
        let response = get_as(&cluster, "/", bad).await?;
        assert_eq!(response.status, 200, "{bad:?}");
        assert!(
            response.cookie(COOKIE).is_some(),
            "{bad:?} is as good as none"
        );
    }
    Ok(())
}

/// Responds to a request without a session with the JSON that names one.
async fn name_session(backend: &'static str, number: Arc<AtomicUsize>, mut request: Request) {
    let line = request.head.lines().next().unwrap_or_default();
    let body = match line.contains("sid=") {
        true => "ok".to_owned(),
        false => {
            let number = number.fetch_add(1, Ordering::SeqCst);
            format!("0{{\"sid\":\"s{number}-_\",\"upgrades\":[]}}")
        }
    };
    let headers = format!("X-Backend: {backend}\r\n");
    let answered = request.respond("200 OK", &headers, &body).await;
    answered.unwrap_or_default();
}

async fn a_session_in_the_query_stays_on_the_backend_that_named_it(program: Program) -> Result<()> {
    let scratch = Scratch::new("query-session")?;
    let number = Arc::new(AtomicUsize::new(0));
    let mut backends = Vec::new();
    for name in ["a", "b", "c"] {
        let number = Arc::clone(&number);
        let handle = move |request| name_session(name, Arc::clone(&number), request);
        backends.push((name, Backend::start(handle).await?));
    }
    let addresses: Vec<_> = backends.iter().map(|(id, it)| (*id, it.address)).collect();
    let affinity = json!({ "cookie": "none", "query_parameter": "sid" });
    let settings = edge::settings(&addresses).with("affinity", affinity);
    let edge = Edge::start_in(program, &settings, scratch.path()).await?;
    for (id, _) in &addresses {
        edge.backend_in_state(id, "up").await?;
    }
    let mut seen = HashSet::new();
    for _ in 0..20 {
        let first = http::get(edge.address, "/io/?EIO=4").await?;
        assert_eq!(first.header("set-cookie"), None);
        let home = first.header("x-backend").context("a backend")?.to_owned();
        let text = first.text();
        let sid = text.split('"').nth(3).context("a session")?;
        for path in [
            format!("/io/?EIO=4&transport=polling&sid={sid}"),
            format!("/io/?sid={sid}"),
        ] {
            let again = http::get(edge.address, &path).await?;
            assert_eq!(again.header("x-backend"), Some(&*home), "{path}");
        }
        seen.insert(home);
    }
    assert!(1 < seen.len(), "newcomers are spread: {seen:?}");
    Ok(())
}
