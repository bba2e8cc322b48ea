//! What stands at fixed paths: the greeting, the page for frames, what the service can do.

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::http::Response;
use serde_json::Value;

use crate::relay::sockjs_protocol::service::{
    Server, body, cached_for_long, content_type, cors, empty, no_cookie, not_cached, preflights,
    same, status, without,
};

/// The page, around the address of the script.
const IFRAME: [&str; 2] = [
    "<!DOCTYPE html>\n<html>\n<head>\n  <meta http-equiv=\"X-UA-Compatible\" content=\"IE=edge\" />\n  \
     <meta http-equiv=\"Content-Type\" content=\"text/html; charset=UTF-8\" />\n  <script src=\"",
    "\"></script>\n  <script>\n    document.domain = document.domain;\n    SockJS.bootstrap_iframe();\n  \
     </script>\n</head>\n<body>\n  <h2>Don't panic!</h2>\n  \
     <p>This is a SockJS hidden iframe. It's used for cross domain magic.</p>\n</body>\n</html>",
];

pub(crate) async fn greeting(server: Server) -> Result<()> {
    for path in ["/echo", "/echo/"] {
        let response = server.get(path, &[]).await?;
        status(&response, 200)?;
        content_type(&response, "text/plain;charset=UTF-8")?;
        body(&response, "Welcome to SockJS!\n")?;
        no_cookie(&response)?;
    }
    Ok(())
}

pub(crate) async fn unknown_paths(server: Server) -> Result<()> {
    for path in ["/a", "/a.html", "//", "///", "/a/a", "/a/a/", "/a/"] {
        let response = server.get(&format!("/echo{path}"), &[]).await?;
        status(&response, 404).with_context(|| path)?;
    }
    Ok(())
}

pub(crate) async fn iframe(server: Server) -> Result<()> {
    iframes(server, &["/iframe.html"]).await
}

pub(crate) async fn iframe_of_a_version(server: Server) -> Result<()> {
    let names = ["a", "", "0.1.2", "0.1.2abc-dirty.2144"];
    let paths = names.map(|name| format!("/iframe-{name}.html"));
    iframes(server, &paths.each_ref().map(String::as_str)).await
}

pub(crate) async fn iframe_with_a_query(server: Server) -> Result<()> {
    let names = [
        "a.html?t=1234",
        "0.1.2.html?t=123414",
        "0.1.2abc-dirty.2144.html?t=qweqweq123",
    ];
    let paths = names.map(|name| format!("/iframe-{name}"));
    iframes(server, &paths.each_ref().map(String::as_str)).await
}

pub(crate) async fn iframe_under_a_wrong_name(server: Server) -> Result<()> {
    for path in [
        "/iframe.htm",
        "/iframe",
        "/IFRAME.HTML",
        "/IFRAME",
        "/iframe.HTML",
        "/iframe.xml",
        "/iframe-/.html",
    ] {
        let response = server.get(&format!("/echo{path}"), &[]).await?;
        status(&response, 404).with_context(|| path)?;
    }
    Ok(())
}

pub(crate) async fn iframe_is_cached(server: Server) -> Result<()> {
    let tag = |response: &Response| response.header("etag").map(str::to_owned).context("no tag");
    let first = tag(&server.get("/echo/iframe.html", &[]).await?)?;
    let second = tag(&server.get("/echo/iframe.html", &[]).await?)?;
    same("the second tag", &second, &first)?;
    let known = [("If-None-Match", first.as_str())];
    let response = server.get("/echo/iframe.html", &known).await?;
    status(&response, 304)?;
    without(&response, "content-type")?;
    empty(&response)
}

async fn iframes(server: Server, paths: &[&str]) -> Result<()> {
    for path in paths {
        let response = server.get(&format!("/echo{path}"), &[]).await?;
        status(&response, 200).with_context(|| (*path).to_owned())?;
        content_type(&response, "text/html;charset=UTF-8")?;
        cached_for_long(&response)?;
        ensure!(response.header("etag").is_some(), "no tag: {response:?}");
        without(&response, "last-modified")?;
        no_cookie(&response)?;
        let page = response.text();
        let script = page
            .trim()
            .strip_prefix(IFRAME[0])
            .and_then(|rest| rest.strip_suffix(IFRAME[1]))
            .with_context(|| format!("another page: {page}"))?;
        ensure!(
            script.starts_with('/') || script.starts_with("http"),
            "no address of a script: {script:?}"
        );
    }
    Ok(())
}

pub(crate) async fn info(server: Server) -> Result<()> {
    let response = server
        .get("/echo/info", &[("Origin", "http://page.example")])
        .await?;
    status(&response, 200)?;
    content_type(&response, "application/json;charset=UTF-8")?;
    no_cookie(&response)?;
    not_cached(&response)?;
    cors(&response, Some("http://page.example"))?;
    let info = parse(&response)?;
    same("websocket", &info["websocket"], &Value::Bool(true))?;
    ensure!(info["cookie_needed"].is_boolean(), "{info}");
    same("origins", &info["origins"], &serde_json::json!(["*:*"]))?;
    entropy(&info).map(drop)
}

pub(crate) async fn info_has_entropy(server: Server) -> Result<()> {
    let first = entropy(&parse(&server.get("/echo/info", &[]).await?)?)?;
    // One in 2^32 is the same by chance; two in a row are not.
    for _ in 0..2 {
        if entropy(&parse(&server.get("/echo/info", &[]).await?)?)? != first {
            return Ok(());
        }
    }
    anyhow::bail!("the entropy is always {first}")
}

pub(crate) async fn info_preflight(server: Server) -> Result<()> {
    preflights(server, "/echo/info", &["OPTIONS", "GET"]).await
}

pub(crate) async fn info_preflight_of_no_origin(server: Server) -> Result<()> {
    let headers = [
        ("Origin", "null"),
        ("Access-Control-Request-Method", "POST"),
    ];
    let response = server.options("/echo/info", &headers).await?;
    ensure!([200, 204].contains(&response.status), "{response:?}");
    empty(&response)?;
    cors(&response, Some("null"))
}

pub(crate) async fn info_without_websocket(server: Server) -> Result<()> {
    let response = server.get("/disabled_websocket_echo/info", &[]).await?;
    status(&response, 200)?;
    same(
        "websocket",
        &parse(&response)?["websocket"],
        &Value::Bool(false),
    )?;
    for path in ["/websocket", "/0/0/websocket"] {
        let response = server
            .get(&format!("/disabled_websocket_echo{path}"), &[])
            .await?;
        status(&response, 404).with_context(|| path)?;
    }
    Ok(())
}

pub(crate) fn parse(response: &Response) -> Result<Value> {
    serde_json::from_slice(&response.body).with_context(|| format!("no JSON: {response:?}"))
}

fn entropy(info: &Value) -> Result<u32> {
    let entropy = info["entropy"]
        .as_u64()
        .and_then(|entropy| entropy.try_into().ok());
    entropy.with_context(|| format!("no entropy of 32 bits: {info}"))
}
