//! Sessions over `jsonp` and `jsonp_send`.

use anyhow::{Result, ensure};

use crate::relay::sockjs_protocol::service::{
    FORM, Server, body, content_type, not_cached, session, status,
};
use crate::relay::sockjs_protocol::streaming;

pub(crate) async fn transport(server: Server) -> Result<()> {
    let session = session("echo");
    let path = format!("{session}/jsonp?c=%63allback");
    let response = server.get(&path, &[]).await?;
    status(&response, 200)?;
    content_type(&response, "application/javascript;charset=UTF-8")?;
    not_cached(&response)?;
    body(&response, "/**/callback(\"o\");\r\n")?;

    let path = format!("{session}/jsonp_send");
    let response = server.post(&path, &[FORM], "d=%5B%22x%22%5D").await?;
    status(&response, 200)?;
    body(&response, "ok")?;
    content_type(&response, "text/plain;charset=UTF-8")?;
    not_cached(&response)?;

    let path = format!("{session}/jsonp?c=%63allback");
    let response = server.get(&path, &[]).await?;
    status(&response, 200)?;
    body(&response, "/**/callback(\"a[\\\"x\\\"]\");\r\n")
}

pub(crate) async fn without_callback(server: Server) -> Result<()> {
    streaming::without_callback(server, "jsonp").await
}

pub(crate) async fn with_a_bad_callback(server: Server) -> Result<()> {
    streaming::bad_callbacks(server, "jsonp").await
}

pub(crate) async fn bad_json(server: Server) -> Result<()> {
    let session = session("echo");
    poll(server, &session, "o").await?;
    for (sent, expected) in [
        ("d=%5B%22x", "Broken JSON encoding."),
        ("", "Payload expected."),
        ("d=", "Payload expected."),
        ("p=p", "Payload expected."),
    ] {
        let path = format!("{session}/jsonp_send");
        let response = server.post(&path, &[FORM], sent).await?;
        status(&response, 500)?;
        ensure!(response.text().contains(expected), "{sent:?}: {response:?}");
    }
    send(server, &session, FORM, "d=%5B%22b%22%5D").await?;
    poll(server, &session, "a[\\\"b\\\"]").await
}

pub(crate) async fn content_types(server: Server) -> Result<()> {
    let session = session("echo");
    poll(server, &session, "o").await?;
    send(server, &session, FORM, "d=%5B%22abc%22%5D").await?;
    // Plain text is the JSON itself, with nothing to decode around it.
    let plain = ("Content-Type", "text/plain");
    send(server, &session, plain, "[\"%61bc\"]").await?;
    poll(server, &session, "a[\\\"abc\\\",\\\"%61bc\\\"]").await
}

pub(crate) async fn close(server: Server) -> Result<()> {
    let session = session("close");
    poll(server, &session, "o").await?;
    for _ in 0..2 {
        poll(server, &session, "c[3000,\\\"Go away!\\\"]").await?;
    }
    Ok(())
}

pub(crate) async fn no_messages(server: Server) -> Result<()> {
    let session = session("echo");
    poll(server, &session, "o").await?;
    send(server, &session, FORM, "d=%5B%5D").await?;
    send(server, &session, FORM, "d=%5B%22x%22%5D").await?;
    poll(server, &session, "a[\\\"x\\\"]").await
}

/// The next frame must be this one, as it stands within a string of JavaScript.
async fn poll(server: Server, session: &str, frame: &str) -> Result<()> {
    let response = server.get(&format!("{session}/jsonp?c=x"), &[]).await?;
    status(&response, 200)?;
    body(&response, &format!("/**/x(\"{frame}\");\r\n"))
}

async fn send(
    server: Server,
    session: &str,
    content_type: (&str, &str),
    messages: &str,
) -> Result<()> {
    let path = format!("{session}/jsonp_send");
    let response = server.post(&path, &[content_type], messages).await?;
    status(&response, 200)?;
    body(&response, "ok")
}
