//! WebSockets, with SockJS frames and raw.

use anyhow::{Result, bail, ensure};
use causeway_tests::harness::{
    http::Connection,
    websocket::{self, WebSocket},
};
use tokio_tungstenite::tungstenite::Message;

use crate::relay::sockjs_protocol::service::{
    Server, method_not_allowed, same, session, status, without,
};

pub(crate) async fn a_get_without_upgrade(server: Server) -> Result<()> {
    status(&server.get("/echo/0/0/websocket", &[]).await?, 400)
}

pub(crate) async fn an_upgrade_with_another_connection(server: Server) -> Result<()> {
    // The harness sends `Connection: close` with it.
    let response = server
        .get("/echo/0/0/websocket", &[("Upgrade", "WebSocket")])
        .await?;
    status(&response, 400)
}

pub(crate) async fn a_post(server: Server) -> Result<()> {
    method_not_allowed(&server.post("/echo/0/0/websocket", &[], "").await?)?;
    let mut connection = Connection::open(server.address).await?;
    let request = "POST /echo/0/0/websocket HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\
                   Content-Length: 0\r\n\r\n";
    connection.send(request).await?;
    method_not_allowed(&connection.response().await?)
}

pub(crate) async fn transport(server: Server) -> Result<()> {
    let mut socket = open(server, &session("echo")).await?;
    echo(&mut socket, "a").await
}

pub(crate) async fn close(server: Server) -> Result<()> {
    let mut socket = open(server, &session("close")).await?;
    same("the frame", &*socket.text().await?, "c[3000,\"Go away!\"]")?;
    closed(&mut socket).await
}

pub(crate) async fn headers(server: Server) -> Result<()> {
    let mut connection = Connection::open(server.address).await?;
    let path = format!("{}/websocket", session("echo"));
    let origin = [("Sec-WebSocket-Origin", "http://asd")];
    let request = websocket::handshake(server.address, &path, &origin);
    connection.send(request).await?;
    let response = connection.head().await?;
    status(&response, 101)?;
    let lower = |name| response.header(name).map(str::to_ascii_lowercase);
    same(
        "connection",
        &lower("connection").as_deref(),
        &Some("upgrade"),
    )?;
    same("upgrade", &lower("upgrade").as_deref(), &Some("websocket"))?;
    same(
        "the accepted key",
        &response.header("sec-websocket-accept"),
        &Some(websocket::ACCEPT),
    )?;
    without(&response, "content-length")
}

pub(crate) async fn empty_messages(server: Server) -> Result<()> {
    let mut socket = open(server, &session("echo")).await?;
    for nothing in ["", "[]"] {
        socket.send(nothing).await?;
    }
    echo(&mut socket, "a").await
}

pub(crate) async fn a_session_id_used_twice(server: Server) -> Result<()> {
    let session = session("echo");
    let mut one = open(server, &session).await?;
    let mut other = open(server, &session).await?;
    echo(&mut one, "a").await?;
    echo(&mut other, "b").await?;
    one.close().await?;
    other.close().await?;
    let mut again = open(server, &session).await?;
    echo(&mut again, "a").await
}

pub(crate) async fn bad_json(server: Server) -> Result<()> {
    let mut socket = open(server, &session("echo")).await?;
    socket.send("[\"a").await?;
    closed(&mut socket).await
}

pub(crate) async fn raw(server: Server) -> Result<()> {
    let mut socket = server.websocket("/echo/websocket").await?;
    socket.send("Hello world!\u{ffff}").await?;
    same("the echo", &*socket.text().await?, "Hello world!\u{ffff}")
}

pub(crate) async fn raw_close(server: Server) -> Result<()> {
    let mut socket = server.websocket("/close/websocket").await?;
    match socket.message().await? {
        Some(Message::Close(Some(frame))) => {
            same("the code", &u16::from(frame.code), &3000)?;
            same("the reason", frame.reason.as_str(), "Go away!")
        }
        other => bail!("expected a close frame with a reason, got {other:?}"),
    }
}

/// A WebSocket of this session behind its open frame.
async fn open(server: Server, session: &str) -> Result<WebSocket> {
    let mut socket = server.websocket(&format!("{session}/websocket")).await?;
    same("the first frame", &*socket.text().await?, "o")?;
    Ok(socket)
}

async fn echo(socket: &mut WebSocket, message: &str) -> Result<()> {
    socket.send(&format!("[\"{message}\"]")).await?;
    same(
        "the echo",
        &*socket.text().await?,
        &*format!("a[\"{message}\"]"),
    )
}

/// Nothing but the end may come.
async fn closed(socket: &mut WebSocket) -> Result<()> {
    let message = socket.message().await?;
    ensure!(
        matches!(message, None | Some(Message::Close(_))),
        "something comes before the end: {message:?}"
    );
    Ok(())
}
