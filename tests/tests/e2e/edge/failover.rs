//! Backends that die, drain, refuse or keep silent: what clients see.

use std::time::Duration;

use anyhow::{Context as _, Result};
use causeway_tests::{
    harness::{
        backend::{Backend, Request},
        cluster::{Cluster, ClusterConfig},
        edge::{self, Edge, Program},
        http::{self, Connection},
        process::Signal,
        scratch::Scratch,
        websocket::{self, WebSocket},
    },
    on_edge_and_plugin,
};
use serde_json::json;

/// The code that tells a client to come back at once.
const RESTART: u16 = 1012;

on_edge_and_plugin!(
    clients_of_a_killed_node_come_back_on_others_and_nobody_else_notices,
    with_no_backend_left_the_response_is_503_and_says_when_to_come_back,
    a_backend_that_keeps_silent_is_504,
    a_get_goes_to_another_backend_when_its_own_hangs_up,
    a_post_in_flight_when_its_backend_hangs_up_is_502,
    a_node_that_drains_sends_its_clients_away_and_gets_no_new_ones,
    an_edge_that_drains_closes_its_tunnels_with_1012_and_ends_well,
);

async fn clients_of_a_killed_node_come_back_on_others_and_nobody_else_notices(
    program: Program,
) -> Result<()> {
    // The killed node never comes back: its clients are not to wait for it for long.
    let impatient = ClusterConfig {
        edge_settings: |settings| settings.with("affinity", json!({ "hold": "1s" })),
        ..ClusterConfig::three_nodes().with_edge_in(program)
    };
    let mut cluster = Cluster::start("failover", impatient).await?;
    let edge = cluster.edge.address;
    let mut sockets = Vec::new();
    for _ in 0..9 {
        let socket = WebSocket::open(edge, "/ws").await?;
        let cookie = socket
            .handshake
            .cookie("causeway")
            .context("the 101 binds")?;
        sockets.push((socket, cookie));
    }
    let victim = sockets[0].0.node().to_owned();
    let (lost, kept): (Vec<_>, Vec<_>) = sockets
        .into_iter()
        .partition(|(socket, _)| socket.node() == victim);
    assert_eq!(lost.len(), 3, "newcomers are spread evenly");

    cluster.node(&victim).kill().await?;
    for (mut socket, cookie) in lost {
        socket.close_code().await?;
        let again =
            WebSocket::open_with(edge, "/ws", &[("Cookie", &format!("causeway={cookie}"))]).await?;
        assert_ne!(again.node(), victim);
        assert!(
            again
                .handshake
                .cookie("causeway")
                .is_some_and(|anew| anew != cookie),
            "the client is bound anew"
        );
    }
    for (number, (mut socket, _)) in kept.into_iter().enumerate() {
        let word = format!("still here {number}");
        socket.send(&word).await?;
        while socket.text().await? != word {}
    }
    Ok(())
}

async fn with_no_backend_left_the_response_is_503_and_says_when_to_come_back(
    program: Program,
) -> Result<()> {
    let mut cluster = Cluster::start(
        "no-backend",
        ClusterConfig::three_nodes().with_edge_in(program),
    )
    .await?;
    for node in &mut cluster.nodes {
        node.kill().await?;
    }
    let edge = cluster.edge.address;
    let plain = http::get(edge, "/").await?;
    let mut connection = Connection::open(edge).await?;
    connection
        .send(websocket::handshake(edge, "/ws", &[]))
        .await?;
    for response in [plain, connection.response().await?] {
        assert_eq!(response.status, 503);
        let retry_after: u64 = response
            .header("retry-after")
            .context("it says when")?
            .parse()?;
        assert!((1..=60).contains(&retry_after));
        assert!(
            (1..200).contains(&response.body.len()),
            "{}",
            response.text()
        );
    }
    Ok(())
}

async fn a_backend_that_keeps_silent_is_504(program: Program) -> Result<()> {
    let scratch = Scratch::new("silent")?;
    let backend =
        Backend::start(async |_request: Request| std::future::pending::<()>().await).await?;
    let settings = edge::settings(&[("b1", backend.address)]);
    let settings = settings.with(
        "timeouts",
        json!({ "upstream_read": "1s", "upgrade": "1s" }),
    );
    let edge = Edge::start_in(program, &settings, scratch.path()).await?;
    edge.backend_in_state("b1", "up").await?;

    assert_eq!(http::get(edge.address, "/").await?.status, 504);
    let mut connection = Connection::open(edge.address).await?;
    connection
        .send(websocket::handshake(edge.address, "/ws", &[]))
        .await?;
    assert_eq!(connection.response().await?.status, 504);
    Ok(())
}

/// Two backends: one that hangs up on every request, one that responds.
async fn one_of_two_hangs_up(program: Program) -> Result<(Scratch, Backend, Backend, Edge)> {
    let scratch = Scratch::new("hang-up")?;
    let bad = Backend::start(async |request: Request| drop(request)).await?;
    let good = Backend::start(async |mut request: Request| {
        request
            .respond("200 OK", "", "fine")
            .await
            .unwrap_or_default()
    })
    .await?;
    let settings = edge::settings(&[("bad", bad.address), ("good", good.address)]);
    let edge = Edge::start_in(program, &settings, scratch.path()).await?;
    edge.backend_in_state("bad", "up").await?;
    edge.backend_in_state("good", "up").await?;
    Ok((scratch, bad, good, edge))
}

async fn a_get_goes_to_another_backend_when_its_own_hangs_up(program: Program) -> Result<()> {
    let (_scratch, _bad, _good, edge) = one_of_two_hangs_up(program).await?;
    for _ in 0..6 {
        assert_eq!(http::get(edge.address, "/").await?.text(), "fine");
    }
    Ok(())
}

async fn a_post_in_flight_when_its_backend_hangs_up_is_502(program: Program) -> Result<()> {
    let (_scratch, _bad, _good, edge) = one_of_two_hangs_up(program).await?;
    let mut seen = Vec::new();
    for _ in 0..6 {
        seen.push(
            http::request(edge.address, "POST", "/", &[], b"once")
                .await?
                .status,
        );
    }
    assert!(
        seen.contains(&502) && seen.iter().all(|status| [200, 502].contains(status)),
        "{seen:?}"
    );
    Ok(())
}

async fn a_node_that_drains_sends_its_clients_away_and_gets_no_new_ones(
    program: Program,
) -> Result<()> {
    let lead = ClusterConfig {
        node_settings: |settings| settings.with("drain", json!({ "lead": "5s" })),
        ..ClusterConfig::three_nodes().with_edge_in(program)
    };
    let mut cluster = Cluster::start("drain-node", lead).await?;
    let edge = cluster.edge.address;
    let mut socket = WebSocket::open(edge, "/ws").await?;
    let leaving = socket.node().to_owned();
    cluster.node(&leaving).drain();
    cluster.edge.backend_in_state(&leaving, "draining").await?;
    for _ in 0..6 {
        assert_ne!(WebSocket::open(edge, "/ws").await?.node(), leaving);
    }
    assert_eq!(socket.close_code().await?, Some(RESTART));
    let status = cluster
        .node(&leaving)
        .process
        .exit(Duration::from_secs(30))
        .await?;
    assert_eq!(status.code(), Some(0));
    Ok(())
}

async fn an_edge_that_drains_closes_its_tunnels_with_1012_and_ends_well(
    program: Program,
) -> Result<()> {
    let mut cluster = Cluster::start(
        "drain-edge",
        ClusterConfig::three_nodes().with_edge_in(program),
    )
    .await?;
    let mut socket = WebSocket::open(cluster.edge.address, "/ws").await?;
    cluster.edge.process.signal(Signal::Terminate);
    assert_eq!(socket.close_code().await?, Some(RESTART));
    let status = cluster.edge.process.exit(Duration::from_secs(30)).await?;
    assert_eq!(status.code(), Some(0), "{}", cluster.edge.process.tail());
    Ok(())
}
