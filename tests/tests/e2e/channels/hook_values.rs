//! Session values go along when the application's backend is asked: the client's own before those of its user.

use anyhow::Result;
use causeway_tests::harness::{
    backend::{Backend, Request},
    node::{self, Node},
    scratch::Scratch,
    server_api,
    subscriber::{Subscriber, token},
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

const KEY: &str = "the key of the application";
const SECRET: &str = "a secret of at least thirty-two bytes";

/// Responds to a call with the values that came with it.
async fn respond(mut request: Request) {
    let length = request.header("content-length").unwrap_or_default();
    let length: usize = length.parse().unwrap_or_default();
    while request.rest.len() < length {
        if !matches!(request.stream.read_buf(&mut request.rest).await, Ok(1..)) {
            return;
        }
    }
    let question: Value = serde_json::from_slice(&request.rest).unwrap_or_default();
    let response = json!({ "result": { "data": { "values": question["values"] } } });
    // A node that has gone needs no response.
    request
        .respond("200 OK", "", &response.to_string())
        .await
        .ok();
}

#[tokio::test]
async fn the_backend_is_told_the_values_that_it_wants_to_know_and_no_others() -> Result<()> {
    let application = Backend::start(respond).await?;
    let scratch = Scratch::new("hook-values")?;
    let settings = node::settings()
        .with(
            "endpoints",
            json!([{ "path": "/connection", "mode": "channels" }]),
        )
        .with(
            "auth.keys",
            json!([{ "algorithm": "HS256", "key": SECRET }]),
        )
        .with("channels.namespaces", json!([{ "name": "chat" }]))
        .with("api.keys", json!([KEY]))
        .with("hooks.timeout", json!("30s"))
        .with(
            "hooks.rpc",
            json!(format!("http://{}/rpc", application.address)),
        )
        .with("hooks.values", json!(["cart", "theme"]));
    let node = Node::start("n1", settings, scratch.path()).await?;
    let mut ann = Subscriber::connect(node.address, &token(SECRET, "ann")).await?;
    let mut bob = Subscriber::connect(node.address, &token(SECRET, "bob")).await?;
    for (owner, name, of, value) in [
        ("user", "cart", "ann", json!([1, 2])),
        ("user", "theme", "ann", json!("light")),
        ("client", "theme", ann.id.as_str(), json!("dark")),
        ("user", "secret", "ann", json!("nobody asks for it")),
    ] {
        let put = json!({ owner: of, "name": name, "value": value, "ttl": 60 });
        server_api::call(node.address, KEY, "value_put", &put).await?;
    }
    let call = json!({ "method": "anything", "data": {} });
    let told = ann.ask("rpc", call.clone()).await?;
    assert_eq!(
        told["data"]["values"],
        json!({ "cart": [1, 2], "theme": "dark" })
    );
    let told = bob.ask("rpc", call).await?;
    assert_eq!(told["data"]["values"], Value::Null, "he has none");
    Ok(())
}
