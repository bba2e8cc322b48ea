//! A backend may be reached by an IPv4 or IPv6 address, a host name or a unix socket: requests and upgrades work alike.

use anyhow::Result;
use causeway_tests::harness::{
    edge::{self, Edge},
    http,
    node::{self, Node},
    scratch::Scratch,
    websocket::WebSocket,
};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixListener},
    task::JoinSet,
};

/// Carries bytes between one connection and the node.
async fn carry(mut stream: impl AsyncRead + AsyncWrite + Unpin, node: std::net::SocketAddr) {
    if let Ok(mut to) = TcpStream::connect(node).await {
        copy_bidirectional(&mut stream, &mut to).await.ok();
    }
}

#[tokio::test]
async fn a_backend_is_reached_by_every_kind_of_address() -> Result<()> {
    let scratch = Scratch::new("addresses")?;
    let node = Node::start("n1", node::settings(), scratch.path()).await?;
    let to = node.address;

    let mut connections = JoinSet::new();
    let path = scratch.path().join("node.sock");
    let unix = UnixListener::bind(&path)?;
    connections.spawn(async move {
        let mut carried = JoinSet::new();
        while let Ok((stream, _)) = unix.accept().await {
            carried.spawn(carry(stream, to));
        }
    });
    let mut addresses = vec![
        to.to_string(),
        format!("localhost:{}", to.port()),
        format!("unix:{}", path.display()),
    ];
    // Some containers have no IPv6 at all.
    if let Ok(listener) = TcpListener::bind("[::1]:0").await {
        addresses.push(listener.local_addr()?.to_string());
        connections.spawn(async move {
            let mut carried = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                carried.spawn(carry(stream, to));
            }
        });
    }

    for address in addresses {
        let pool = json!([{ "name": "nodes", "backends": [{ "id": "b1", "address": address }] }]);
        let edge = Edge::start(&edge::settings(&[]).with("pools", pool), scratch.path()).await?;
        edge.backend_in_state("b1", "up").await?;
        assert_eq!(http::get(edge.address, "/").await?.status, 200, "{address}");
        let mut socket = WebSocket::open(edge.address, "/echo/websocket").await?;
        socket.send("there and back").await?;
        assert_eq!(socket.text().await?, "there and back", "{address}");
    }
    Ok(())
}
