//! Channel clients as npm and PyPI have them, in Node, in Chromium and in Python, over every transport and through the edge:
//! the same tour on the memory broker and on Redis.

use std::{collections::BTreeSet, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    backend::{Backend, Request},
    clients,
    cluster::{Cluster, ClusterConfig},
    edge::{self, Edge},
    node::{self, Node},
    process::Process,
    programs,
    scratch::Scratch,
    settings::Settings,
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// For all tours of one test together.
const DEADLINE: Duration = Duration::from_secs(300);

fn with_channels(settings: Settings) -> Settings {
    let room = json!({
        "subscribe": "authenticated", "publish": "subscribers", "history": { "size": 100, "lifetime": "1h" },
        "recovery": true, "presence": true, "join_leave": true,
    });
    let namespace = |name: &str, more: Value| {
        let mut all = json!({ "name": name });
        let object = all.as_object_mut().expect("it is one");
        object.extend(more.as_object().expect("it is one").clone());
        all
    };
    settings
        .with(
            "endpoints",
            json!([{ "path": "/connection", "mode": "channels", "allowed_origins": ["*"] }]),
        )
        .with(
            "channels.namespaces",
            json!([
                namespace("chat", room),
                namespace(
                    "news",
                    json!({ "subscribe": "nobody", "publish": "authenticated" })
                ),
                namespace("secret", json!({ "subscribe": "token" })),
                namespace("dialog", json!({ "user_limited": true })),
                namespace("silent", json!({ "subscribe": "anyone" })),
            ]),
        )
        .with(
            "auth.keys",
            json!([{ "algorithm": "HS256", "key": SECRET }]),
        )
}

/// What every tour sees, whatever its wire.
fn expected(transport: &str) -> Value {
    json!({
        "transport": transport,
        "subscribed": { "recoverable": true, "positioned": true },
        "joined": true,
        "heard": { "same": true, "by": true, "name": "Ann", "offset": 1 },
        "presence": ["ann", "bob"],
        "presenceStats": [2, 2],
        "history": [1],
        "missed": { "wasRecovering": true, "recovered": true, "missed": [2, 3, 4] },
        "news": 5,
        "refused": { "unknown": 102, "dialog": 103, "noToken": 103, "rpc": 108, "silent": 108, "otherToken": 103 },
        "granted": true,
        "left": true,
        "refreshed": true,
        "forged": 3500,
    })
}

/// Each runtime with each codec and each transport that has it.
fn runs() -> Vec<Value> {
    let mut runs = Vec::new();
    for runtime in ["node", "chromium"] {
        for (codec, transport) in [
            ("json", "websocket"),
            ("json", "http_stream"),
            ("json", "sse"),
            ("protobuf", "websocket"),
            ("protobuf", "http_stream"),
        ] {
            let name = format!("{runtime}-{codec}-{transport}");
            runs.push(
                json!({ "runtime": runtime, "codec": codec, "transport": transport, "name": name }),
            );
        }
    }
    runs
}

/// All tours, from pages of another origin than what they connect to.
async fn tours(base: &str, page: &str, directory: &Path) -> Result<()> {
    let runs = runs();
    let orders = json!({
        "chromium": programs::installed(&["chromium", "chromium-browser", "google-chrome"])?,
        "base": base, "page": page, "secret": SECRET, "runs": runs,
    });
    let command = clients::command("sdk.mjs", &orders)?;
    let mut tours = Process::spawn("channels", command, directory)?;
    let status = tours.exit(DEADLINE).await?;
    assert!(status.success(), "{}", tours.tail());
    let mut done = BTreeSet::new();
    for line in tours.output_lines() {
        let transport = line["run"]["transport"].as_str().context("its transport")?;
        assert_eq!(line["seen"], expected(transport), "{}", line["run"]);
        done.insert(line["run"]["name"].to_string());
    }
    assert_eq!(done.len(), runs.len(), "every tour came to its end");
    Ok(())
}

#[tokio::test]
async fn python_clients_take_part_in_both_codecs() -> Result<()> {
    let config = ClusterConfig {
        node_settings: with_channels,
        ..ClusterConfig::three_nodes()
    };
    let cluster = Cluster::start("channels-python", config).await?;
    let url = format!("ws://{}/connection/websocket", cluster.edge.address);
    let orders = json!({ "url": url, "secret": SECRET });
    let command = clients::command("sdk.py", &orders)?;
    let mut python = Process::spawn("python", command, cluster.scratch.path())?;
    let status = python.exit(DEADLINE).await?;
    assert!(status.success(), "{}", python.tail());
    let number = |number: u32| json!({ "number": number });
    let seen = json!({
        "joined": "bob",
        "heard": number(1),
        "history": [number(1)],
        "presence": ["ann", "bob"],
        "presence_stats": [2, 2],
        "rpc": 108,
        "missed": [number(2), number(3)],
    });
    let expected = ["json", "protobuf"].map(|codec| json!({ "codec": codec, "seen": seen }));
    assert_eq!(python.output_lines(), expected);
    Ok(())
}

#[tokio::test]
async fn sdk_clients_do_the_same_over_every_transport_on_one_node() -> Result<()> {
    let scratch = Scratch::new("channels-memory")?;
    let node = Node::start("n1", with_channels(node::settings()), scratch.path()).await?;
    node.ready().await?;
    let edge = Edge::start(&edge::settings(&[("n1", node.address)]), scratch.path()).await?;
    edge.backend_in_state("n1", "up").await?;
    let base = format!("http://{}/connection", edge.address);
    tours(&base, &format!("http://{}/", node.address), scratch.path()).await
}

#[tokio::test]
async fn sdk_clients_do_the_same_over_every_transport_on_three_nodes() -> Result<()> {
    let config = ClusterConfig {
        node_settings: with_channels,
        ..ClusterConfig::three_nodes()
    };
    let cluster = Cluster::start("channels-redis", config).await?;
    let base = format!("http://{}/connection", cluster.edge.address);
    let page = format!("http://{}/", cluster.nodes[0].address);
    tours(&base, &page, cluster.scratch.path()).await
}

/// What the application says about clients.
fn decide(path: &str, question: &Value) -> Value {
    let channel = &question["channel"];
    match path {
        "/connect" if question["data"]["key"] == "open sesame" => {
            json!({ "result": { "user": "42", "data": { "hello": 42 }, "meta": { "plan": "pro" } } })
        }
        "/subscribe" if channel == "hooked:open" && question["meta"]["plan"] == "pro" => {
            json!({ "result": { "data": { "topic": "hooks" } } })
        }
        "/subscribe" => json!({ "error": { "code": 403, "message": "closed" } }),
        "/publish" if question["data"]["rude"] == true => {
            json!({ "error": { "code": 422, "message": "rude" } })
        }
        "/publish" => json!({ "result": { "data": { "said": "by the application" } } }),
        "/rpc" if question["method"] == "add" => {
            let number = |name: &str| question["data"][name].as_i64().unwrap_or_default();
            json!({ "result": { "data": { "sum": number("a") + number("b"), "of": question["user"] } } })
        }
        "/rpc" if question["method"] == "misbehave" => {
            json!({ "disconnect": { "code": 4501, "reason": "banned" } })
        }
        _ => json!({ "error": { "code": 404, "message": "no such method" } }),
    }
}

async fn respond(mut request: Request) {
    let length = request
        .header("content-length")
        .and_then(|length| length.parse().ok());
    while request.rest.len() < length.unwrap_or(0) {
        if !matches!(request.stream.read_buf(&mut request.rest).await, Ok(1..)) {
            return;
        }
    }
    let path = request
        .head
        .split(' ')
        .nth(1)
        .unwrap_or_default()
        .to_owned();
    let question = serde_json::from_slice(&request.rest).unwrap_or_default();
    let response = decide(&path, &question).to_string();
    // A node that has gone needs no response.
    request.respond("200 OK", "", &response).await.ok();
}

#[tokio::test]
async fn the_application_decides_about_clients_over_every_transport() -> Result<()> {
    let application = Backend::start(respond).await?;
    let scratch = Scratch::new("channels-hooks")?;
    let address = |hook: &str| json!(format!("http://{}/{hook}", application.address));
    let settings = with_channels(node::settings())
        .with(
            "channels.namespaces",
            json!([{ "name": "hooked", "subscribe": "hook", "publish": "hook" }]),
        )
        .with("hooks.timeout", json!("30s"))
        .with("hooks.connect", address("connect"))
        .with("hooks.subscribe", address("subscribe"))
        .with("hooks.publish", address("publish"))
        .with("hooks.rpc", address("rpc"));
    let node = Node::start("n1", settings, scratch.path()).await?;
    let base = format!("http://{}/connection", node.address);
    let runs = ["websocket", "http_stream", "sse"].map(|transport| {
        json!({ "runtime": "node", "codec": "json", "transport": transport, "name": transport, "hooks": true })
    });
    let orders = json!({ "base": base, "secret": SECRET, "runs": runs });
    let command = clients::command("sdk.mjs", &orders)?;
    let mut clients = Process::spawn("hooks", command, scratch.path())?;
    let status = clients.exit(DEADLINE).await?;
    assert!(status.success(), "{}", clients.tail());
    let seen = json!({
        "welcome": { "hello": 42 },
        "granted": { "data": { "topic": "hooks" } },
        "refused": { "code": 403 },
        "heard": { "said": "by the application" },
        "unsaid": 422,
        "rpc": { "sum": 3, "of": "42" },
        "unknown": [404, "no such method"],
        "banned": [4501, "banned"],
    });
    let expected = runs.map(|run| json!({ "run": run, "seen": seen }));
    assert_eq!(clients.output_lines(), expected);
    Ok(())
}
