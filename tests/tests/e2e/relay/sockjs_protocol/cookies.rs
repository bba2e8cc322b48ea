//! The cookie JSESSIONID, for load balancers that stick to it.

use anyhow::{Result, ensure};
use causeway_tests::harness::http::Response;
use serde_json::Value;

use crate::relay::sockjs_protocol::pages::parse;
use crate::relay::sockjs_protocol::service::{
    FORM, Server, body, no_cookie, same, session, status,
};

const SERVICE: &str = "cookie_needed_echo";

pub(crate) async fn info(server: Server) -> Result<()> {
    let response = server.get(&format!("/{SERVICE}/info"), &[]).await?;
    status(&response, 200)?;
    no_cookie(&response)?;
    let needed = &parse(&response)?["cookie_needed"];
    same("cookie_needed", needed, &Value::Bool(true))
}

pub(crate) async fn xhr(server: Server) -> Result<()> {
    for (sent, value) in [(None, "dummy"), (Some("JSESSIONID=abcdef"), "abcdef")] {
        let headers: Vec<_> = sent.map(|cookie| ("Cookie", cookie)).into_iter().collect();
        let path = format!("{}/xhr", session(SERVICE));
        let response = server.post(&path, &headers, "").await?;
        status(&response, 200)?;
        body(&response, "o\n")?;
        cookie(&response, value)?;
    }
    Ok(())
}

pub(crate) async fn xhr_streaming(server: Server) -> Result<()> {
    stream(server, "POST", "xhr_streaming").await
}

pub(crate) async fn eventsource(server: Server) -> Result<()> {
    stream(server, "GET", "eventsource").await
}

pub(crate) async fn htmlfile(server: Server) -> Result<()> {
    stream(server, "GET", "htmlfile?c=%63allback").await
}

pub(crate) async fn jsonp(server: Server) -> Result<()> {
    let session = session(SERVICE);
    let path = format!("{session}/jsonp?c=%63allback");
    let response = server.get(&path, &[]).await?;
    status(&response, 200)?;
    cookie(&response, "dummy")?;
    body(&response, "/**/callback(\"o\");\r\n")?;
    let path = format!("{session}/jsonp_send");
    let response = server.post(&path, &[FORM], "d=%5B%22x%22%5D").await?;
    status(&response, 200)?;
    body(&response, "ok")?;
    cookie(&response, "dummy")
}

async fn stream(server: Server, method: &str, wire: &str) -> Result<()> {
    let path = format!("{}/{wire}", session(SERVICE));
    let (head, _receiver) = server.stream(method, &path).await?;
    cookie(&head, "dummy")
}

/// It must be set once, to this value, for the whole site.
fn cookie(response: &Response, value: &str) -> Result<()> {
    let set = response
        .headers
        .iter()
        .filter(|(name, _)| name == "set-cookie");
    let set: Vec<&str> = set.map(|(_, value)| value.as_str()).collect();
    let [set] = set[..] else {
        anyhow::bail!("one cookie was to be set: {set:?}");
    };
    let mut parts = set.split(';').map(str::trim);
    let pair = format!("JSESSIONID={value}");
    same("the cookie", &parts.next(), &Some(pair.as_str()))?;
    ensure!(
        parts.any(|part| part.eq_ignore_ascii_case("path=/")),
        "not for the whole site: {set}"
    );
    Ok(())
}
