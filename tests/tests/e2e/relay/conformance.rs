//! The files of `make conformance`: the services are what public suites expect, directly and through the edge, and the
//! edge passes on at once that a client has gone, by which SockJS sessions end.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    conformance::Conformance,
    http::{self, Connection},
    scratch::Scratch,
    wait,
    websocket::WebSocket,
};
use tokio_tungstenite::tungstenite::Message;

const GO_AWAY: &str = "c[3000,\"Go away!\"]";

/// What `/info` says of each SockJS service: WebSockets and cookies.
const SERVICES: [(&str, bool, bool); 7] = [
    ("/echo", true, false),
    ("/disabled_websocket_echo", false, false),
    ("/cookie_needed_echo", true, true),
    ("/close", true, false),
    ("/broadcast", true, false),
    ("/amplify", true, false),
    ("/ticker", true, false),
];

/// The wires that receive, the one that ends a poll and those that stream.
const WIRES: [&str; 5] = [
    "xhr",
    "xhr_streaming",
    "eventsource",
    "htmlfile?c=x",
    "jsonp?c=x",
];

async fn post(address: SocketAddr, path: &str, body: &str) -> Result<http::Response> {
    http::request(address, "POST", path, &[], body.as_bytes()).await
}

#[tokio::test]
async fn every_service_is_there_directly_and_through_the_edge() -> Result<()> {
    let scratch = Scratch::new("services")?;
    let running = Conformance::start(scratch.path()).await?;
    for (way, address) in [("node", running.node), ("edge", running.edge.address)] {
        for (service, websocket, cookie) in SERVICES {
            let info = http::get(address, &format!("{service}/info")).await?.text();
            let expected =
                format!(r#"{{"websocket":{websocket},"origins":["*:*"],"cookie_needed":{cookie},"#);
            assert!(info.starts_with(&expected), "{service}: {info}");
            let page = http::get(address, &format!("{service}/iframe.html")).await?;
            assert_eq!(page.status, 200, "{service}");
            let session = format!("{service}/0/{way}");
            let first = post(address, &format!("{session}/xhr"), "").await?;
            assert_eq!(first.text(), "o\n", "{service}");
            let sent = post(address, &format!("{session}/xhr_send"), "[\"x\"]").await?;
            assert_eq!(sent.status, 204, "{service}");
            let next = post(address, &format!("{session}/xhr"), "").await?;
            let expected = match service {
                "/close" => GO_AWAY,
                "/amplify" => "a[\"xx\"]",
                "/ticker" => "a[\"tick!\"]",
                _ => "a[\"x\"]",
            };
            assert_eq!(next.text(), format!("{expected}\n"), "{service}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_broadcast_reaches_everyone_the_sender_too() -> Result<()> {
    let scratch = Scratch::new("broadcast")?;
    let running = Conformance::start(scratch.path()).await?;
    let mut sender = WebSocket::open(running.edge.address, "/broadcast/0/a/websocket").await?;
    let mut other = WebSocket::open(running.node, "/broadcast/websocket").await?;
    assert_eq!(sender.text().await?, "o");
    sender.send("[\"x\"]").await?;
    assert_eq!(sender.text().await?, "a[\"x\"]");
    assert_eq!(other.text().await?, "x");
    Ok(())
}

#[tokio::test]
async fn the_raw_echo_takes_messages_of_16_mib() -> Result<()> {
    let scratch = Scratch::new("raw")?;
    let running = Conformance::start(scratch.path()).await?;
    for address in [running.node, running.edge.address] {
        let mut socket = WebSocket::open(address, "/raw").await?;
        let message = vec![0x5a; 16 << 20];
        socket.send_binary(&message).await?;
        let echoed = socket.message().await?;
        assert!(
            echoed == Some(Message::binary(message)),
            "not what was sent"
        );
    }
    Ok(())
}

/// A receiver of `session` that waits for its next frame, on a connection of its own.
async fn receiver(edge: SocketAddr, session: &str, wire: &str) -> Result<Connection> {
    let method = if wire.starts_with("xhr") {
        "POST"
    } else {
        "GET"
    };
    let mut connection = Connection::open(edge).await?;
    let head =
        format!("{method} {session}/{wire} HTTP/1.1\r\nHost: {edge}\r\nContent-Length: 0\r\n\r\n");
    connection.send(head).await?;
    Ok(connection)
}

/// Two receivers at once: one is refused, and the other one waits at the node.
async fn waiting_receiver(edge: SocketAddr, session: &str, wire: &str) -> Result<Connection> {
    let mut first = receiver(edge, session, wire).await?;
    let mut second = receiver(edge, session, wire).await?;
    let (refusal, waiting) = tokio::select! {
        refusal = first.response() => (refusal?, second),
        refusal = second.response() => (refusal?, first),
    };
    ensure!(
        refusal.text().contains("c[2010"),
        "{wire}: {}",
        refusal.text()
    );
    Ok(waiting)
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_session_on_every_wire_through_the_edge() -> Result<()> {
    let scratch = Scratch::new("gone")?;
    let running = Conformance::start(scratch.path()).await?;
    let edge = running.edge.address;
    for wire in WIRES {
        let session = format!("/echo/0/of-{}", wire.trim_end_matches("?c=x"));
        assert_eq!(
            post(edge, &format!("{session}/xhr"), "").await?.text(),
            "o\n"
        );
        drop(waiting_receiver(edge, &session, wire).await?);
        // Sooner than a heartbeat could find out; without a receiver a session goes on for a while.
        wait::until("the session to end", wait::SOON, async || {
            let sent = post(edge, &format!("{session}/xhr_send"), "[]")
                .await
                .ok()?;
            (sent.status == 404).then_some(())
        })
        .await
        .context(wire)?;
        let next = post(edge, &format!("{session}/xhr"), "").await?.text();
        assert_eq!(next, "c[1002,\"Connection interrupted\"]\n", "{wire}");
    }
    Ok(())
}

#[tokio::test]
async fn a_message_of_100_kb_comes_back_over_each_wire() -> Result<()> {
    let scratch = Scratch::new("large-messages")?;
    let running = Conformance::start(scratch.path()).await?;
    let message = "x".repeat(100_000);
    for address in [running.node, running.edge.address] {
        let mut client = WebSocket::open(address, "/echo/0/large/websocket").await?;
        ensure!(client.text().await? == "o");
        client.send(&format!("[\"{message}\"]")).await?;
        ensure!(client.text().await? == format!("a[\"{message}\"]"));
        let session = format!("/echo/0/large-{}", address.port());
        post(address, &format!("{session}/xhr"), "").await?;
        let sent = post(
            address,
            &format!("{session}/xhr_send"),
            &format!("[\"{message}\"]"),
        )
        .await?;
        ensure!(sent.status == 204, "{sent:?}");
        let echo = post(address, &format!("{session}/xhr"), "").await?;
        ensure!(echo.text() == format!("a[\"{message}\"]\n"));
    }
    Ok(())
}
