//! Session paths, and sessions over `xhr` and `xhr_send`.

use anyhow::{Context as _, Result, ensure};

use crate::relay::sockjs_protocol::service::{
    Server, body, content_type, cors, empty, not_cached, preflights, same, session, status, without,
};

const ORIGIN: &str = "http://page.example";

pub(crate) async fn any_server_and_session(server: Server) -> Result<()> {
    let random = fastrand::u32(..);
    for path in ["/a/a", "/_/_", "/1/", "/abcdefgh_i-j%20/abcdefg_i-j%20"] {
        let found = server.poll(&format!("/echo{path}{random}")).await;
        same("the first frame", &*found.with_context(|| path)?, "o\n")?;
    }
    Ok(())
}

pub(crate) async fn malformed_session_paths(server: Server) -> Result<()> {
    for path in ["//", "/a./a", "/a/a.", "/./.", "/", "///"] {
        let path = format!("/echo{path}/xhr");
        for response in [
            server.get(&path, &[]).await?,
            server.post(&path, &[], "").await?,
        ] {
            status(&response, 404).with_context(|| path.clone())?;
        }
    }
    Ok(())
}

pub(crate) async fn the_server_id_means_nothing(server: Server) -> Result<()> {
    let session = session("echo");
    same("the first frame", &*server.poll(&session).await?, "o\n")?;
    server.send(&session, r#"["a"]"#).await?;
    let elsewhere = session.replace("/000/", "/999/");
    same(
        "the message",
        &*server.poll(&elsewhere).await?,
        "a[\"a\"]\n",
    )
}

pub(crate) async fn a_session(server: Server) -> Result<()> {
    let session = session("echo");
    same("the first frame", &*server.poll(&session).await?, "o\n")?;
    server.send(&session, r#"["a"]"#).await?;
    same("the message", &*server.poll(&session).await?, "a[\"a\"]\n")?;
    let unknown = server
        .post("/echo/000/bad_session/xhr_send", &[], r#"["a"]"#)
        .await?;
    status(&unknown, 404)?;
    // Two at once: whichever comes second is told so, and the first waits.
    tokio::select! {
        found = server.poll(&session) => busy(&found?),
        found = server.poll(&session) => busy(&found?),
    }
}

pub(crate) fn busy(frame: &str) -> Result<()> {
    same(
        "the frame",
        frame,
        "c[2010,\"Another connection still open\"]\n",
    )
}

pub(crate) async fn preflight(server: Server) -> Result<()> {
    for wire in ["xhr", "xhr_send"] {
        preflights(
            server,
            &format!("/echo/abc/abc/{wire}"),
            &["OPTIONS", "POST"],
        )
        .await
        .with_context(|| wire)?;
    }
    Ok(())
}

pub(crate) async fn transport(server: Server) -> Result<()> {
    let session = session("echo");
    let origin = [("Origin", ORIGIN)];
    let response = server.post(&format!("{session}/xhr"), &origin, "").await?;
    status(&response, 200)?;
    body(&response, "o\n")?;
    content_type(&response, "application/javascript;charset=UTF-8")?;
    cors(&response, Some(ORIGIN))?;
    not_cached(&response)?;

    let response = server
        .post(&format!("{session}/xhr_send"), &origin, r#"["x"]"#)
        .await?;
    status(&response, 204)?;
    empty(&response)?;
    content_type(&response, "text/plain;charset=UTF-8")?;
    cors(&response, Some(ORIGIN))?;
    not_cached(&response)?;

    same("the message", &*server.poll(&session).await?, "a[\"x\"]\n")
}

pub(crate) async fn unknown_session(server: Server) -> Result<()> {
    let path = format!("{}/xhr_send", session("echo"));
    status(&server.post(&path, &[], r#"["x"]"#).await?, 404)
}

pub(crate) async fn bad_json(server: Server) -> Result<()> {
    let session = session("echo");
    same("the first frame", &*server.poll(&session).await?, "o\n")?;
    for (sent, expected) in [("[\"x", "Broken JSON encoding."), ("", "Payload expected.")] {
        let response = server
            .post(&format!("{session}/xhr_send"), &[], sent)
            .await?;
        status(&response, 500)?;
        ensure!(response.text().contains(expected), "{sent:?}: {response:?}");
    }
    server.send(&session, r#"["a"]"#).await?;
    same("the message", &*server.poll(&session).await?, "a[\"a\"]\n")
}

pub(crate) async fn content_types(server: Server) -> Result<()> {
    const TYPES: [&str; 8] = [
        "text/plain",
        "T",
        "application/json",
        "application/xml",
        "",
        "application/json; charset=utf-8",
        "text/xml; charset=utf-8",
        "text/xml",
    ];
    let session = session("echo");
    same("the first frame", &*server.poll(&session).await?, "o\n")?;
    for content_type in TYPES {
        let headers = [("Content-Type", content_type)];
        let response = server
            .post(&format!("{session}/xhr_send"), &headers, r#"["a"]"#)
            .await?;
        status(&response, 204).with_context(|| content_type)?;
        empty(&response)?;
    }
    let expected = format!("a[{}]\n", [r#""a""#; TYPES.len()].join(","));
    same("the messages", &*server.poll(&session).await?, &*expected)
}

pub(crate) async fn preflight_headers(server: Server) -> Result<()> {
    for (requested, allowed) in [
        (Some("a, b, c"), Some("a, b, c")),
        (Some(""), None),
        (None, None),
    ] {
        let mut headers = vec![
            ("Origin", ORIGIN),
            ("Access-Control-Request-Method", "POST"),
        ];
        headers.extend(requested.map(|requested| ("Access-Control-Request-Headers", requested)));
        let response = server
            .options(&format!("{}/xhr", session("echo")), &headers)
            .await?;
        ensure!([200, 204].contains(&response.status), "{response:?}");
        cors(&response, Some(ORIGIN))?;
        match allowed {
            Some(_) => same(
                "the allowed headers",
                &response.header("access-control-allow-headers"),
                &allowed,
            )?,
            None => without(&response, "access-control-allow-headers")?,
        }
    }
    Ok(())
}

pub(crate) async fn no_messages(server: Server) -> Result<()> {
    let session = session("echo");
    same("the first frame", &*server.poll(&session).await?, "o\n")?;
    server.send(&session, "[]").await?;
    server.send(&session, r#"["a"]"#).await?;
    same("the message", &*server.poll(&session).await?, "a[\"a\"]\n")
}
