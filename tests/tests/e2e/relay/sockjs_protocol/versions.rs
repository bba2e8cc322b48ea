//! HTTP/1.0, which knows no chunks, and HTTP/1.1, which keeps connections.

use anyhow::{Result, ensure};
use causeway_tests::harness::http::{Connection, Response};

use crate::relay::sockjs_protocol::closing::{end, next};
use crate::relay::sockjs_protocol::service::{Server, body, same, session, status, without};

const GREETING: &str = "Welcome to SockJS!\n";

pub(crate) async fn http_1_0(server: Server) -> Result<()> {
    let mut connection = Connection::open(server.address).await?;
    let response = ask(&mut connection, "GET", "/echo", "1.0").await?;
    status(&response, 200)?;
    without(&response, "transfer-encoding")?;
    let keeps = response
        .header("connection")
        .is_some_and(|value| value.eq_ignore_ascii_case("keep-alive"));
    let length = response.header("content-length");
    if length.is_some() {
        same("the length", &length, &Some("19"))?;
        let text = connection.bytes(GREETING.len()).await?;
        same("the body", &*text, GREETING.as_bytes())?;
    }
    if length.is_some() && keeps {
        status(&ask(&mut connection, "GET", "/echo", "1.0").await?, 200)
    } else {
        ensure!(connection.is_closed_soon().await, "it stays open");
        Ok(())
    }
}

pub(crate) async fn http_1_0_stream(server: Server) -> Result<()> {
    let mut connection = Connection::open(server.address).await?;
    let path = format!("{}/xhr_streaming", session("close"));
    let response = ask(&mut connection, "POST", &path, "1.0").await?;
    status(&response, 200)?;
    without(&response, "transfer-encoding")?;
    without(&response, "content-length")?;
    let expected = format!("{}\no\nc[3000,\"Go away!\"]\n", "h".repeat(2048));
    let stream = connection.bytes(expected.len()).await?;
    same("the body", &*String::from_utf8(stream)?, &*expected)?;
    ensure!(connection.is_closed_soon().await, "it stays open");
    Ok(())
}

pub(crate) async fn http_1_1(server: Server) -> Result<()> {
    let mut connection = Connection::open(server.address).await?;
    for _ in 0..2 {
        let mut response = ask(&mut connection, "GET", "/echo", "1.1").await?;
        status(&response, 200)?;
        ensure!(
            response
                .header("connection")
                .is_none_or(|value| value.eq_ignore_ascii_case("keep-alive")),
            "it does not stay open: {response:?}"
        );
        same(
            "the length",
            &response.header("content-length"),
            &Some("19"),
        )?;
        without(&response, "transfer-encoding")?;
        response.body = connection.bytes(GREETING.len()).await?;
        body(&response, GREETING)?;
    }
    Ok(())
}

pub(crate) async fn http_1_1_stream(server: Server) -> Result<()> {
    let mut connection = Connection::open(server.address).await?;
    let path = format!("{}/xhr_streaming", session("close"));
    let response = ask(&mut connection, "POST", &path, "1.1").await?;
    status(&response, 200)?;
    let encoding = response.header("transfer-encoding");
    same("the encoding", &encoding, &Some("chunked"))?;
    without(&response, "content-length")?;
    next(&mut connection, &format!("{}\n", "h".repeat(2048))).await?;
    next(&mut connection, "o\n").await?;
    next(&mut connection, "c[3000,\"Go away!\"]\n").await?;
    end(&mut connection).await
}

/// Asks on an open connection, as a client that wants to keep it.
async fn ask(
    connection: &mut Connection,
    method: &str,
    path: &str,
    version: &str,
) -> Result<Response> {
    let request = format!(
        "{method} {path} HTTP/{version}\r\nHost: a\r\nConnection: Keep-Alive\r\nContent-Length: 0\r\n\r\n"
    );
    connection.send(request).await?;
    connection.head().await
}
