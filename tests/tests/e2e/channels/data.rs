//! What is published at the ends of what can be: `null`, nothing at all, and JSON that is very deep. Over connections in both
//! codecs and over the server API, and as npm and PyPI centrifuge hear it.

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    application::Application,
    channels::{Channels, Codec},
    clients,
    node::{self, Node},
    process::Process,
    scratch::Scratch,
    server_api,
    settings::Settings,
    wait,
};
use serde_json::{Value, json};

const KEY: &str = "the key of the application";

fn settings() -> Settings {
    node::settings()
        .with(
            "endpoints",
            json!([{ "path": "/connection", "mode": "channels" }]),
        )
        .with("auth.anonymous", json!(true))
        .with("api.keys", json!([KEY]))
        .with(
            "channels.namespaces",
            json!([
                { "name": "chat", "subscribe": "anyone", "publish": "anyone" },
                { "name": "bytes", "subscribe": "anyone", "publish": "anyone", "data": "binary" },
            ]),
        )
}

/// A node, and clients of npm's package: `json` and `protobuf`.
struct Scene {
    clients: Channels,
    node: Node,
    scratch: Scratch,
}

impl Scene {
    async fn set(name: &str, settings: Settings) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let node = Node::start("n1", settings, scratch.path()).await?;
        let mut clients = Channels::start(scratch.path())?;
        for (name, codec) in [("json", Codec::Json), ("protobuf", Codec::Protobuf)] {
            let url = url(&node);
            clients.open(name, &url, codec, json!({})).await?;
        }
        Ok(Self {
            clients,
            node,
            scratch,
        })
    }

    /// A client of PyPI's package that hears these channels.
    async fn python(&self, codec: &str, channels: &[&str]) -> Result<Process> {
        let orders = json!({ "url": url(&self.node), "codec": codec, "channels": channels });
        let command = clients::command("listens.py", &orders)?;
        let python = Process::spawn(codec, command, self.scratch.path())?;
        let what = format!("Python's client in {codec} to be subscribed");
        wait::until(&what, wait::SOON, async || {
            (python.output_lines().len() == channels.len()).then_some(())
        })
        .await
        .with_context(|| python.tail())?;
        Ok(python)
    }

    async fn subscribe(&mut self, client: &str, channel: &str) -> Result<()> {
        let about = json!({ "channel": channel });
        self.clients.granted(client, "subscribe", about).await?;
        Ok(())
    }

    async fn publish(&mut self, client: &str, channel: &str, data: Value) -> Result<()> {
        let order = json!({ "channel": channel, "data": data });
        self.clients.granted(client, "publish", order).await?;
        Ok(())
    }

    async fn publish_by_api(&self, channel: &str, mut data: Value) -> Result<()> {
        data["channel"] = json!(channel);
        server_api::call(self.node.address, KEY, "publish", &data).await?;
        Ok(())
    }

    async fn heard(&mut self, client: &str) -> Result<Value> {
        let publication = self.clients.event(client, "publication").await?;
        Ok(publication["data"].clone())
    }
}

fn url(node: &Node) -> String {
    format!("ws://{}/connection/websocket", node.address)
}

/// What a client of Python has heard, once it has ended.
async fn heard_by(mut python: Process) -> Result<Vec<Value>> {
    let status = python.exit(wait::SOON).await?;
    ensure!(status.success(), "{}", python.tail());
    let lines = python.output_lines().into_iter();
    let heard = lines.filter(|line| line["subscribed"].is_null());
    Ok(heard.map(|line| line["data"].clone()).collect())
}

#[tokio::test]
async fn null_is_data_whoever_publishes_it_and_whoever_hears_it() -> Result<()> {
    let mut scene = Scene::set("data-null", settings()).await?;
    let mut pythons = Vec::new();
    for codec in ["json", "protobuf"] {
        scene.subscribe(codec, "chat:a").await?;
        pythons.push(scene.python(codec, &["chat:a"]).await?);
    }
    scene.publish("json", "chat:a", Value::Null).await?;
    scene.publish("protobuf", "chat:a", Value::Null).await?;
    for data in [
        json!({ "data": null }),
        json!({ "b64data": "bnVsbA==" }),
        json!({ "data": null, "b64data": null }),
    ] {
        scene.publish_by_api("chat:a", data).await?;
    }
    scene.publish("json", "chat:a", json!("the end")).await?;
    let expected = [vec![Value::Null; 5], vec![json!("the end")]].concat();
    for codec in ["json", "protobuf"] {
        for expected in &expected {
            let heard = scene.heard(codec).await?;
            ensure!(heard == *expected, "{codec}: {heard}");
        }
    }
    for python in pythons {
        ensure!(heard_by(python).await? == expected);
    }
    Ok(())
}

#[tokio::test]
async fn no_bytes_are_data_where_data_is_bytes_and_nowhere_else() -> Result<()> {
    let mut scene = Scene::set("data-empty", settings()).await?;
    let nothing = json!({ "base64": "" });
    scene.subscribe("protobuf", "bytes:a").await?;
    let python = scene.python("protobuf", &["bytes:a"]).await?;
    scene
        .publish("protobuf", "bytes:a", nothing.clone())
        .await?;
    scene
        .publish_by_api("bytes:a", json!({ "b64data": "" }))
        .await?;
    scene
        .publish("protobuf", "bytes:a", json!("the end"))
        .await?;
    let expected = [Value::Null, Value::Null, json!("the end")];
    for expected in &expected {
        let heard = scene.heard("protobuf").await?;
        ensure!(heard == *expected, "{heard}");
    }
    ensure!(heard_by(python).await? == expected);

    let order = json!({ "channel": "chat:a", "data": nothing });
    let refused = scene.clients.refused("protobuf", "publish", order).await?;
    ensure!(refused.code == 107, "{refused:?}");
    ensure!(refused.message.contains("found none"), "{refused:?}");
    for data in [json!({ "b64data": "" }), json!({})] {
        let refused = scene.publish_by_api("chat:a", data).await;
        let error = refused.err().context("nothing is no JSON")?.to_string();
        ensure!(error.contains("107"), "{error}");
    }
    Ok(())
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(json!(1), |inner, _| json!([inner]))
}

#[tokio::test]
async fn data_that_ends_an_sdk_is_published_by_nobody() -> Result<()> {
    let application =
        Application::start(async |_| json!({ "result": { "data": nested(61) } })).await?;
    let settings = settings()
        .with("hooks.rpc", application.hook("rpc"))
        .with("hooks.publish", application.hook("publish"))
        .with(
            "channels.namespaces",
            json!([
                { "name": "chat", "subscribe": "anyone", "publish": "anyone" },
                { "name": "hooked", "subscribe": "anyone", "publish": "hook" },
            ]),
        );
    let mut scene = Scene::set("data-deep", settings).await?;
    let mut pythons = Vec::new();
    for codec in ["json", "protobuf"] {
        let python = scene.python(codec, &["chat:a", "hooked:a"]).await?;
        pythons.push(python);
    }
    for codec in ["json", "protobuf"] {
        scene.publish(codec, "chat:a", nested(60)).await?;
        for levels in [61, 1_200] {
            let order = json!({ "channel": "chat:a", "data": nested(levels) });
            let refused = scene.clients.refused(codec, "publish", order).await?;
            ensure!(refused.code == 107, "{codec}: {refused:?}");
            ensure!(refused.message.contains("60 levels"), "{refused:?}");
        }
        // What the application says is not better for that.
        let order = json!({ "channel": "hooked:a", "data": 1 });
        let refused = scene.clients.refused(codec, "publish", order).await?;
        ensure!(refused.code == 100, "{codec}: {refused:?}");
        let order = json!({ "method": "any", "data": 1 });
        let refused = scene.clients.refused(codec, "rpc", order).await?;
        ensure!(refused.code == 100, "{codec}: {refused:?}");
    }
    let refused = scene
        .publish_by_api("chat:a", json!({ "data": nested(1_200) }))
        .await;
    let error = refused.err().context("it is too deep")?.to_string();
    ensure!(error.contains("60 levels"), "{error}");
    scene.publish("json", "chat:a", json!("the end")).await?;
    let expected = [nested(60), nested(60), json!("the end")];
    for python in pythons {
        ensure!(heard_by(python).await? == expected);
    }
    Ok(())
}

#[tokio::test]
async fn null_and_nothing_come_back_from_a_call_as_the_application_says() -> Result<()> {
    let application = Application::start(async |question| match &question.body["method"] {
        Value::String(method) if method == "null" => json!({ "result": { "data": null } }),
        _ => json!({ "result": {} }),
    })
    .await?;
    let settings = settings().with("hooks.rpc", application.hook("rpc"));
    let mut scene = Scene::set("data-rpc", settings).await?;
    for codec in ["json", "protobuf"] {
        for (method, expected) in [("null", json!({ "data": null })), ("nothing", json!({}))] {
            let order = json!({ "method": method, "data": null });
            let answered = scene.clients.granted(codec, "rpc", order).await?;
            let is_nothing = method == "nothing" && codec == "protobuf";
            // Protobuf has no other word for nothing, and the driver shows it as null.
            let expected = if is_nothing {
                json!({ "data": null })
            } else {
                expected
            };
            ensure!(answered == expected, "{codec} {method}: {answered}");
        }
    }
    let asked = application.asked("rpc");
    ensure!(asked.len() == 4, "{asked:?}");
    for question in asked {
        ensure!(
            question.body.get("data") == Some(&Value::Null),
            "{question:?}"
        );
    }
    Ok(())
}
