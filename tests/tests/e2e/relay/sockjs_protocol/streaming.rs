//! Responses that stream: `xhr_streaming`, `eventsource`, `htmlfile`.

use anyhow::{Context as _, Result, ensure};

use crate::relay::sockjs_protocol::closing::{end, next, stream};
use crate::relay::sockjs_protocol::service::{
    Server, content_type, cors, not_cached, preflights, same, session, status,
};

/// What begins an `htmlfile` response, around the name of the callback.
const HTMLFILE: [&str; 2] = [
    "<!doctype html>\n<html><head>\n  <meta http-equiv=\"X-UA-Compatible\" content=\"IE=edge\" />\n  \
     <meta http-equiv=\"Content-Type\" content=\"text/html; charset=UTF-8\" />\n</head><body><h2>Don't panic!</h2>\n  \
     <script>\n    document.domain = document.domain;\n    var c = parent.",
    ";\n    c.start();\n    function p(d) {c.message(d);};\n    window.onload = function() {c.stop();};\n  </script>",
];
/// Browsers of its time showed nothing before so much had come.
const HTMLFILE_BYTES_MIN: usize = 1024;

pub(crate) async fn preflight(server: Server) -> Result<()> {
    preflights(server, "/echo/abc/abc/xhr_streaming", &["OPTIONS", "POST"]).await
}

pub(crate) async fn xhr(server: Server) -> Result<()> {
    let session = session("echo");
    let path = format!("{session}/xhr_streaming");
    let origin = "Origin: http://page.example\r\n";
    let (head, mut receiver) = server.stream_with("POST", &path, origin).await?;
    content_type(&head, "application/javascript;charset=UTF-8")?;
    cors(&head, Some("http://page.example"))?;
    not_cached(&head)?;
    next(&mut receiver, &format!("{}\n", "h".repeat(2048))).await?;
    next(&mut receiver, "o\n").await?;
    server.send(&session, r#"["x"]"#).await?;
    next(&mut receiver, "a[\"x\"]\n").await
}

pub(crate) async fn xhr_limit(server: Server) -> Result<()> {
    let session = session("echo");
    let mut receiver = stream(server, &session).await?;
    next(&mut receiver, "o\n").await?;
    // The 31st frame of 134 bytes is the first behind which 4096 bytes are full.
    let messages = format!("[\"{}\"]", "x".repeat(128));
    for _ in 0..31 {
        server.send(&session, &messages).await?;
        next(&mut receiver, &format!("a{messages}\n")).await?;
    }
    end(&mut receiver).await
}

pub(crate) async fn eventsource(server: Server) -> Result<()> {
    let session = session("echo");
    let path = format!("{session}/eventsource");
    let (head, mut receiver) = server.stream("GET", &path).await?;
    content_type(&head, "text/event-stream")?;
    not_cached(&head)?;
    next(&mut receiver, "\r\n").await?;
    next(&mut receiver, "data: o\r\n\r\n").await?;
    for messages in [r#"["x"]"#, r#"["  \u0000\n\r "]"#] {
        server.send(&session, messages).await?;
        next(&mut receiver, &format!("data: a{messages}\r\n\r\n")).await?;
    }
    Ok(())
}

pub(crate) async fn eventsource_limit(server: Server) -> Result<()> {
    let session = session("echo");
    let path = format!("{session}/eventsource");
    let (_, mut receiver) = server.stream("GET", &path).await?;
    next(&mut receiver, "\r\n").await?;
    next(&mut receiver, "data: o\r\n\r\n").await?;
    let messages = format!("[\"{}\"]", "x".repeat(4096));
    server.send(&session, &messages).await?;
    next(&mut receiver, &format!("data: a{messages}\r\n\r\n")).await?;
    end(&mut receiver).await
}

pub(crate) async fn htmlfile(server: Server) -> Result<()> {
    let session = session("echo");
    let path = format!("{session}/htmlfile?c=%63allback");
    let (head, mut receiver) = server.stream("GET", &path).await?;
    content_type(&head, "text/html;charset=UTF-8")?;
    not_cached(&head)?;
    let page = receiver.chunk().await.context("no page")?;
    ensure!(HTMLFILE_BYTES_MIN < page.len(), "only {} bytes", page.len());
    let page = String::from_utf8(page)?;
    same("the page", page.trim(), &*HTMLFILE.join("callback"))?;
    next(&mut receiver, "<script>\np(\"o\");\n</script>\r\n").await?;
    server.send(&session, r#"["x"]"#).await?;
    let expected = "<script>\np(\"a[\\\"x\\\"]\");\n</script>\r\n";
    next(&mut receiver, expected).await
}

pub(crate) async fn htmlfile_without_callback(server: Server) -> Result<()> {
    without_callback(server, "htmlfile").await
}

pub(crate) async fn htmlfile_with_a_bad_callback(server: Server) -> Result<()> {
    bad_callbacks(server, "htmlfile").await
}

pub(crate) async fn htmlfile_limit(server: Server) -> Result<()> {
    let session = session("echo");
    let path = format!("{session}/htmlfile?c=callback");
    let (_, mut receiver) = server.stream("GET", &path).await?;
    ensure!(!receiver.chunk().await?.is_empty(), "no page");
    next(&mut receiver, "<script>\np(\"o\");\n</script>\r\n").await?;
    let message = "x".repeat(4096);
    server.send(&session, format!("[\"{message}\"]")).await?;
    let expected = format!("<script>\np(\"a[\\\"{message}\\\"]\");\n</script>\r\n");
    next(&mut receiver, &expected).await?;
    end(&mut receiver).await
}

pub(crate) async fn without_callback(server: Server, wire: &str) -> Result<()> {
    let response = server.get(&format!("/echo/a/a/{wire}"), &[]).await?;
    status(&response, 500)?;
    same(
        "whether it says what is missing",
        &response.text().contains("\"callback\" parameter required"),
        &true,
    )
}

pub(crate) async fn bad_callbacks(server: Server, wire: &str) -> Result<()> {
    for callback in ["%20", "*", "abc(", "abc%28"] {
        let path = format!("/echo/a/a/{wire}?c={callback}");
        let response = server.get(&path, &[]).await?;
        status(&response, 500).context(callback)?;
        ensure!(
            response.text().contains("invalid \"callback\" parameter"),
            "{callback}: {response:?}"
        );
    }
    Ok(())
}
