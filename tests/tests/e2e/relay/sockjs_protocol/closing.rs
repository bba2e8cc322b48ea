//! Sessions that end: by the server, by a second receiver, by a client that goes away.

use anyhow::{Context as _, Result};
use causeway_tests::harness::{http::Connection, wait};

use crate::relay::sockjs_protocol::polling::busy;
use crate::relay::sockjs_protocol::service::{Server, same, session};

const GO_AWAY: &str = "c[3000,\"Go away!\"]\n";

pub(crate) async fn a_session_that_the_server_closes(server: Server) -> Result<()> {
    let session = session("close");
    same("the first frame", &*server.poll(&session).await?, "o\n")?;
    for _ in 0..2 {
        same("the close frame", &*server.poll(&session).await?, GO_AWAY)?;
    }
    Ok(())
}

pub(crate) async fn the_close_frame_is_for_every_receiver(server: Server) -> Result<()> {
    let session = session("close");
    let mut first = stream(server, &session).await?;
    next(&mut first, "o\n").await?;
    next(&mut first, GO_AWAY).await?;
    let mut second = stream(server, &session).await?;
    next(&mut second, GO_AWAY).await?;
    end(&mut first).await?;
    end(&mut second).await
}

pub(crate) async fn a_second_receiver(server: Server) -> Result<()> {
    let session = session("echo");
    let mut first = stream(server, &session).await?;
    next(&mut first, "o\n").await?;
    refused(server, &session).await?;
    server.send(&session, r#"["still here"]"#).await?;
    next(&mut first, "a[\"still here\"]\n").await
}

pub(crate) async fn an_aborted_stream(server: Server) -> Result<()> {
    let session = session("echo");
    let mut first = stream(server, &session).await?;
    next(&mut first, "o\n").await?;
    refused(server, &session).await?;
    drop(first);
    let reopened = wait::until("the session to be over", wait::SOON, async || {
        let mut again = stream(server, &session).await.ok()?;
        let frame = again.chunk().await.ok()?;
        is_over(&String::from_utf8_lossy(&frame))
    });
    reopened.await
}

pub(crate) async fn an_aborted_poll(server: Server) -> Result<()> {
    let session = session("echo");
    same("the first frame", &*server.poll(&session).await?, "o\n")?;
    // Whichever comes second is told so. The other one, which waits, is then dropped.
    tokio::select! {
        found = server.poll(&session) => busy(&found?),
        found = server.poll(&session) => busy(&found?),
    }?;
    let reopened = wait::until("the session to be over", wait::SOON, async || {
        is_over(&server.poll(&session).await.ok()?)
    });
    reopened.await
}

/// Whether a receiver gets what it gets behind one that went away. `None`: the server does not know yet.
fn is_over(frame: &str) -> Option<()> {
    ["o\n", "c[1002,\"Connection interrupted\"]\n"]
        .contains(&frame)
        .then_some(())
}

async fn refused(server: Server, session: &str) -> Result<()> {
    let mut second = stream(server, session).await?;
    next(&mut second, "c[2010,\"Another connection still open\"]\n").await?;
    end(&mut second).await
}

/// An `xhr_streaming` receiver behind its prelude.
pub(crate) async fn stream(server: Server, session: &str) -> Result<Connection> {
    let (_, mut receiver) = server
        .stream("POST", &format!("{session}/xhr_streaming"))
        .await?;
    next(&mut receiver, &format!("{}\n", "h".repeat(2048))).await?;
    Ok(receiver)
}

/// The next frame must be this one, in a chunk of its own.
pub(crate) async fn next(receiver: &mut Connection, expected: &str) -> Result<()> {
    let chunk = receiver.chunk().await;
    let chunk = chunk.with_context(|| format!("while waiting for {expected:?}"))?;
    same("the chunk", &*String::from_utf8_lossy(&chunk), expected)
}

/// The response must end here.
pub(crate) async fn end(receiver: &mut Connection) -> Result<()> {
    next(receiver, "").await
}
