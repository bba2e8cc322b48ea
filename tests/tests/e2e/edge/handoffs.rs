//! The clients of a backend that drains are handed off some at a time, so that the edge never has more connections than it may.
//!
//! Both backends are played by the test.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    backend::{Backend, Request},
    descriptors,
    edge::{self, Edge},
    http,
    scratch::Scratch,
    wait,
    websocket::{ACCEPT, WebSocket},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::watch,
};

/// How many the edge hands off at a time: one for 64 descriptors, and no more than this.
const AT_A_TIME: usize = 128;

/// What both backends do.
#[derive(Clone)]
struct Script {
    /// Whether the first one tells the edge that it drains.
    leaves: watch::Receiver<bool>,
    /// Whether the other one continues clients.
    continues: watch::Receiver<bool>,
    /// Connections over which it may continue one.
    offered: Arc<AtomicUsize>,
}

/// The frame of a handoff with this payload.
fn frame(payload: &str) -> Vec<u8> {
    [&[0x8b, payload.len() as u8], payload.as_bytes()].concat()
}

fn head(upgrade: &str, name: &str) -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\nCauseway-Node: {name}\r\nCauseway-Handoff: 1\r\n\r\n"
    )
}

async fn play(name: &'static str, mut script: Script, mut request: Request) -> Result<()> {
    let stream = &mut request.stream;
    if request.head.starts_with("GET /.causeway/handoff ") {
        stream
            .write_all(head("causeway-handoff", name).as_bytes())
            .await?;
        script.offered.fetch_add(1, Ordering::Relaxed);
        script.continues.wait_for(|continues| *continues).await?;
        stream.write_all(&frame("ready ab cd")).await?;
        stream.write_all(b"\x81\x05moved").await?;
        stream.read_u8().await?;
    } else if request.header("upgrade").is_some() {
        let stream = &mut request.stream;
        stream.write_all(head("websocket", name).as_bytes()).await?;
        script.leaves.wait_for(|leaves| *leaves).await?;
        if name == "a" {
            stream.write_all(&frame("leaving")).await?;
        }
        // The client says nothing: this is the order of the edge.
        stream.read_u8().await?;
        stream.write_all(&frame("done")).await?;
    } else {
        request.respond("200 OK", "", "hello").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_of_a_draining_backend_are_handed_off_some_at_a_time() -> Result<()> {
    descriptors::raise_limit()?;
    let at_a_time = (descriptors::limit()? / 64).min(AT_A_TIME);
    let scratch = Scratch::new("edge-handoffs")?;
    let (leave, leaves) = watch::channel(false);
    let (go_on, continues) = watch::channel(false);
    let script = Script {
        leaves,
        continues,
        offered: Arc::default(),
    };
    let offered = Arc::clone(&script.offered);
    let start = async |name: &'static str| {
        let script = script.clone();
        let handle = move |request| {
            let played = play(name, script.clone(), request);
            async move { drop(played.await) } // An error is the end of the connection.
        };
        Backend::start(handle).await
    };
    let (a, b) = (start("a").await?, start("b").await?);
    let settings =
        edge::settings(&[("a", a.address), ("b", b.address)]).with("timeouts.connect", json!("1m"));
    let edge = Edge::start(&settings, scratch.path()).await?;
    for id in ["a", "b"] {
        edge.backend_in_state(id, "up").await?;
    }
    let mut clients = Vec::new();
    for _ in 0..2 * (at_a_time + 20) {
        clients.push(WebSocket::open(edge.address, "/ws").await?);
    }
    clients.retain(|client| client.node() == "a");
    ensure!(at_a_time < clients.len(), "{} are at a", clients.len());

    leave.send(true)?;
    wait::until("the first handoffs", wait::SOON, async || {
        (at_a_time <= offered.load(Ordering::Relaxed)).then_some(())
    })
    .await?;
    // Others would have begun as well by now.
    for _ in 0..20 {
        let response = http::get(edge.address, "/").await?;
        ensure!(response.status == 200, "{response:?}");
    }
    assert_eq!(offered.load(Ordering::Relaxed), at_a_time);
    go_on.send(true)?;
    for (number, client) in clients.iter_mut().enumerate() {
        let text = client.text().await;
        assert_eq!(text.with_context(|| format!("client {number}"))?, "moved");
    }
    assert_eq!(offered.load(Ordering::Relaxed), clients.len());
    Ok(())
}
