//! Hooks as applications and SDKs know them from Centrifugo: its codes, the headers that an SDK sends, and limits that let no
//! hook hold up another.

use std::sync::Arc;

use anyhow::{Result, ensure};
use causeway_tests::harness::{
    application::{Application, Question},
    channels::{Channels, Codec, Transport},
    memory,
    node::{self, Node},
    scratch::Scratch,
    settings::Settings,
    wait,
    websocket::WebSocket,
};
use serde_json::{Value, json};
use tokio::sync::Notify;

/// A node that asks `application` when clients connect and when they call a method.
fn settings(application: &Application) -> Settings {
    node::settings()
        .with(
            "endpoints",
            json!([{ "path": "/connection", "mode": "channels" }]),
        )
        .with("channels.namespaces", json!([{ "name": "chat" }]))
        .with("hooks.connect", application.hook("connect"))
        .with("hooks.rpc", application.hook("rpc"))
        .with("hooks.timeout", json!("60s"))
}

/// Lets everyone in, and says what it is asked to say.
async fn obey(question: Question) -> Value {
    match question.hook.as_str() {
        "connect" => json!({ "result": { "user": "ann" } }),
        _ => question.body["data"].clone(),
    }
}

#[tokio::test]
async fn the_codes_of_backends_written_for_centrifugo_reach_the_sdk() -> Result<()> {
    let application = Application::start(obey).await?;
    let scratch = Scratch::new("hooks-codes")?;
    let node = Node::start("n1", settings(&application), scratch.path()).await?;
    let mut clients = Channels::start(scratch.path())?;
    clients
        .open_over("ann", Transport::WebSocket, node.address, json!({}))
        .await?;
    for code in [100, 109, 399, 400, 1999, 2000, 4000] {
        let error = json!({ "error": { "code": code, "message": "as I say" } });
        let order = json!({ "method": "say", "data": error });
        let refused = clients.refused("ann", "rpc", order).await?;
        ensure!(refused.code == code, "{code}: {refused:?}");
        ensure!(refused.message == "as I say", "{refused:?}");
    }
    for (codec, code) in [
        (Codec::Json, 3000),
        (Codec::Json, 3503),
        (Codec::Protobuf, 4000),
        (Codec::Protobuf, 4999),
    ] {
        let name = format!("sent away with {code}");
        let url = format!("ws://{}/connection/websocket", node.address);
        clients.open(&name, &url, codec, json!({})).await?;
        clients.event(&name, "connecting").await?;
        let disconnect = json!({ "disconnect": { "code": code, "reason": "as I say" } });
        let order = json!({ "method": "say", "data": disconnect });
        let called = clients.begin(&name, "rpc", order).await?;
        let comes_back = (3000..3500).contains(&code) || (4000..4500).contains(&code);
        let event = if comes_back {
            "connecting"
        } else {
            "disconnected"
        };
        let event = clients.event(&name, event).await?;
        ensure!(
            event["code"] == code && event["reason"] == "as I say",
            "{event}"
        );
        drop(called);
    }
    Ok(())
}

#[tokio::test]
async fn headers_of_the_sdk_reach_the_hooks_if_they_are_listed_for_it() -> Result<()> {
    let application = Application::start(obey).await?;
    let scratch = Scratch::new("hooks-headers")?;
    let settings = settings(&application)
        .with("hooks.emulated_headers", json!(["Authorization", "X-Both"]))
        .with("hooks.forward_headers", json!(["X-Real-IP", "X-Both"]));
    let node = Node::start("n1", settings, scratch.path()).await?;
    let mut clients = Channels::start(scratch.path())?;
    for (count, transport) in (1..).zip(Transport::ALL) {
        let name = format!("{transport:?}");
        let headers = json!({
            "authorization": "Bearer t0ken", "X-Both": "by the client", "X-Real-IP": "1.2.3.4", "X-Other": "x",
        });
        clients
            .open_over(
                &name,
                transport,
                node.address,
                json!({ "headers": headers }),
            )
            .await?;
        let data = json!({ "result": { "data": "heard" } });
        let order = json!({ "method": "say", "data": data });
        clients.granted(&name, "rpc", order).await?;
        for hook in ["connect", "rpc"] {
            let asked = application.asked(hook);
            ensure!(asked.len() == count, "{name}: {asked:?}");
            let asked = &asked[count - 1];
            ensure!(
                asked.headers("Authorization") == ["Bearer t0ken"],
                "{asked:?}"
            );
            ensure!(asked.headers("X-Both") == ["by the client"], "{asked:?}");
            // What only the request may say, and what nobody wants to know.
            ensure!(asked.headers("X-Real-IP").is_empty(), "{asked:?}");
            ensure!(asked.headers("X-Other").is_empty(), "{asked:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_slow_rpc_keeps_nobody_from_connecting() -> Result<()> {
    let told = Arc::new(Notify::new());
    let response = Arc::clone(&told);
    let application = Application::start(move |question| {
        let response = Arc::clone(&response);
        async move {
            if question.hook == "rpc" {
                response.notified().await;
            }
            obey(question).await
        }
    })
    .await?;
    let scratch = Scratch::new("hooks-slow")?;
    let settings = settings(&application).with("hooks.open", json!(1));
    let node = Node::start("n1", settings, scratch.path()).await?;
    let mut clients = Channels::start(scratch.path())?;
    clients
        .open_over("ann", Transport::WebSocket, node.address, json!({}))
        .await?;
    let data = json!({ "result": { "data": "at last" } });
    let order = json!({ "method": "say", "data": data });
    let called = clients.begin("ann", "rpc", order).await?;
    wait::until("the call to be with the backend", wait::SOON, async || {
        (application.asked("rpc").len() == 1).then_some(())
    })
    .await?;
    clients
        .open_over("bob", Transport::WebSocket, node.address, json!({}))
        .await?;
    told.notify_one();
    let answered = clients.outcome(called).await?;
    ensure!(answered.is_ok_and(|response| response["data"] == "at last"));
    Ok(())
}

#[tokio::test]
async fn a_header_that_is_forwarded_costs_an_idle_client_its_own_length() -> Result<()> {
    const CLIENTS: usize = 1_000;
    let application = Application::start(obey).await?;
    let scratch = Scratch::new("hooks-idle")?;
    let settings = settings(&application)
        .with("hooks.forward_headers", json!(["Cookie"]))
        .with("auth.anonymous", json!(true))
        .with("hooks.connect", Value::Null);
    let node = Node::start("n1", settings, scratch.path()).await?;
    let mut clients = Vec::new();
    let mut connect = async |count: usize| -> Result<u64> {
        for _ in 0..count {
            let cookie = ("Cookie", "session=0123456789abcdef");
            let path = "/connection/websocket";
            let mut client = WebSocket::open_with(node.address, path, &[cookie]).await?;
            client.send(r#"{"id":1,"connect":{}}"#).await?;
            client.text().await?;
            clients.push(client);
        }
        memory::pss(node.process.pid())
    };
    let before = connect(CLIENTS / 10).await?;
    let after = connect(CLIENTS).await?;
    let each = after.saturating_sub(before) / CLIENTS as u64;
    ensure!(each < 3 << 10, "{each} bytes");
    Ok(())
}
