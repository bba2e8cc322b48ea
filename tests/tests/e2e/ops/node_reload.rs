//! SIGHUP has a node read its file again: what changes at once, what needs a restart, and what a bad file does.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    http,
    node::{self, Node},
    process::{Signal, json_lines},
    scratch::Scratch,
    server_api,
    settings::Settings,
    subscriber::{Subscriber, token},
    wait,
    websocket::handshake,
};
use serde_json::{Value, json};

const OLD: &str = "the old secret, at least thirty-two bytes";
const NEW: &str = "the new secret, at least thirty-two bytes";
const OLD_API_KEY: &str = "the old key of the application";
const NEW_API_KEY: &str = "the new key of the application";

struct Scene {
    node: Node,
    scratch: Scratch,
}

fn settings(secret: &Value, origin: &str) -> Settings {
    let endpoint = json!({
        "path": "/connection",
        "mode": "channels",
        "allowed_origins": [origin],
        // Its default depends on `channels_per_client`.
        "commands_size": "256KiB",
    });
    node::settings()
        .with("node.id", json!("n1"))
        .with("endpoints", json!([endpoint]))
        .with(
            "auth.keys",
            json!([{ "algorithm": "HS256", "key": secret }]),
        )
        .with(
            "channels.namespaces",
            json!([{ "name": "old", "subscribe": "anyone" }]),
        )
}

impl Scene {
    async fn start(name: &str, settings: Settings) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let node = Node::start("n1", settings, scratch.path()).await?;
        node.ready().await?;
        Ok(Self { node, scratch })
    }

    fn file(&self) -> PathBuf {
        self.scratch.path().join("n1.yaml")
    }

    /// Writes the file and sends SIGHUP; returns when the node has logged a line with this message once more.
    async fn reload(&mut self, text: &str, message: &str) -> Result<Value> {
        let before = self.lines(message).len();
        fs::write(self.file(), text)?;
        self.node.process.signal(Signal::Hangup);
        wait::until(message, wait::SOON, async || {
            let mut lines = self.lines(message);
            (before < lines.len()).then(|| lines.pop()).flatten()
        })
        .await
    }

    async fn apply(&mut self, settings: &Settings) -> Result<()> {
        self.reload(&settings.text(), "configuration applied")
            .await
            .map(drop)
    }

    /// The fields of the node's lines with this message.
    fn lines(&self, message: &str) -> Vec<Value> {
        let lines = json_lines(&self.node.process.log()).into_iter();
        let fields = lines.map(|mut line| {
            let level = line["level"].take();
            let mut fields = line["fields"].take();
            fields["level"] = level;
            fields
        });
        fields
            .filter(|fields| fields["message"] == message)
            .collect()
    }

    async fn connect(&self, secret: &str) -> Result<Subscriber> {
        Subscriber::connect(self.node.address, &token(secret, "ann")).await
    }

    /// The status of an upgrade that a page of `origin` asks for.
    async fn upgrade_from(&self, origin: &str) -> Result<u16> {
        let handshake = handshake(
            self.node.address,
            "/connection/websocket",
            &[("Origin", origin)],
        );
        let mut connection = http::Connection::open(self.node.address).await?;
        connection.send(handshake).await?;
        Ok(connection.head().await?.status)
    }

    async fn call_api(&self, key: &str) -> Result<Value> {
        server_api::call(self.node.address, key, "info", &json!({})).await
    }
}

#[tokio::test]
async fn keys_namespaces_limits_origins_and_the_log_level_change_and_clients_stay() -> Result<()> {
    let old = settings(&json!(OLD), "https://old.example").with("api.keys", json!([OLD_API_KEY]));
    let mut scene = Scene::start("node-reload", old).await?;
    let mut client = scene.connect(OLD).await?;
    client.subscribe("old:a").await?;
    ensure!(client.subscribe("new:a").await.is_err());
    ensure!(scene.upgrade_from("https://old.example").await? == 101);
    ensure!(scene.upgrade_from("https://new.example").await? == 403);
    scene.call_api(OLD_API_KEY).await?;

    let new = settings(&json!(NEW), "https://new.example")
        .with("api.keys", json!([NEW_API_KEY]))
        .with(
            "channels",
            json!({
                "namespaces": [{ "name": "new", "subscribe": "anyone" }],
                "limits": { "channels_per_client": 2 },
            }),
        )
        .with("limits.body_size", json!("1KiB"))
        .with("log.level", json!("debug"));
    scene.apply(&new).await?;

    // A client that is connected stays, and is bound by the new settings from its next command on.
    client.subscribe("new:a").await?;
    let refused = client.subscribe("new:b").await.err();
    ensure!(refused.is_some(), "a third channel, with a limit of two");
    ensure!(client.subscribe("old:b").await.is_err());
    scene.connect(NEW).await?;
    ensure!(scene.connect(OLD).await.is_err());
    ensure!(scene.upgrade_from("https://old.example").await? == 403);
    ensure!(scene.upgrade_from("https://new.example").await? == 101);
    scene.call_api(NEW_API_KEY).await?;
    ensure!(scene.call_api(OLD_API_KEY).await.is_err());
    let large = json!({ "channel": "new:a", "data": "x".repeat(2000) });
    let large = server_api::call(scene.node.address, NEW_API_KEY, "publish", &large).await;
    ensure!(
        large.is_err(),
        "a body of 2,000 bytes, with a limit of 1 KiB"
    );
    // The log is written behind what it tells of.
    wait::until("a line of level DEBUG", wait::SOON, async || {
        let log = json_lines(&scene.node.process.log());
        { log.iter() }
            .any(|line| line["level"] == "DEBUG")
            .then_some(())
    })
    .await?;
    let warnings = scene.lines("these settings take a restart");
    ensure!(warnings.is_empty(), "{warnings:?}");
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_not_valid_changes_nothing_and_is_one_line_with_where_and_what() -> Result<()>
{
    let old = settings(&json!(OLD), "https://old.example");
    let mut scene = Scene::start("node-reload-bad", old.clone()).await?;
    let bad = settings(&json!(NEW), "https://new.example")
        .with("limits.sessions", json!("many"))
        .text();
    let message = "configuration refused, the old one stays";
    let line = scene.reload(&bad, message).await?;
    ensure!(line["level"] == "ERROR", "{line}");
    let errors = line["errors"].as_str().context("what is wrong")?;
    let at = bad.lines().position(|line| line.contains("\"sessions\""));
    let at = format!("n1.yaml:{}:", at.context("a line")? + 1);
    ensure!(
        errors.contains(&at) && errors.contains("limits.sessions"),
        "{errors}"
    );
    scene.connect(OLD).await?;
    ensure!(scene.connect(NEW).await.is_err());
    ensure!(scene.upgrade_from("https://new.example").await? == 403);

    // One that is gone is no other case, and one that is right again is applied.
    fs::remove_file(scene.file())?;
    scene.node.process.signal(Signal::Hangup);
    wait::until("the second refusal", wait::SOON, async || {
        (scene.lines(message).len() == 2).then_some(())
    })
    .await?;
    let good = settings(&json!(NEW), "https://old.example");
    scene.apply(&good).await?;
    scene.connect(NEW).await?;
    Ok(())
}

#[tokio::test]
async fn all_changed_settings_that_need_a_restart_are_named_in_one_warning() -> Result<()> {
    let old = settings(&json!(OLD), "https://old.example");
    let mut scene = Scene::start("node-reload-restart", old.clone()).await?;
    let new = settings(&json!(NEW), "https://old.example")
        .with("threads", json!(1))
        .with("drain.spread", json!("7s"))
        .with("limits.connections", json!(100))
        .text();
    let message = "these settings take a restart";
    let warning = scene.reload(&new, message).await?;
    let named = warning["settings"].as_str().context("their names")?;
    let named: BTreeSet<_> = named.split(", ").collect();
    let expected = BTreeSet::from(["threads", "drain", "limits.connections"]);
    ensure!(named == expected, "{named:?}");
    scene.connect(NEW).await.context("the rest is applied")?;
    // They are still not applied, and told of again.
    scene.reload(&new, message).await?;
    scene.apply(&old).await?;
    ensure!(scene.lines(message).len() == 2, "what runs is in the file");
    Ok(())
}

#[tokio::test]
async fn the_file_of_a_key_is_read_again_without_a_signal() -> Result<()> {
    let scratch = Scratch::new("node-key-file")?;
    let secret = scratch.write("secret", OLD)?;
    let mut scene = Scene::start(
        "node-key-file",
        settings(&json!({ "file": secret }), "https://old.example"),
    )
    .await?;
    scene.connect(OLD).await?;
    fs::write(&secret, "too short")?;
    let message = "key file reload failed, still using its previous keys";
    wait::until("the error", wait::SOON, async || scene.lines(message).pop()).await?;
    scene.connect(OLD).await?;
    fs::write(&secret, NEW)?;
    wait::until("the new key", wait::SOON, async || {
        scene.connect(NEW).await.ok()
    })
    .await?;
    ensure!(scene.connect(OLD).await.is_err());
    ensure!(scene.node.process.is_running());
    Ok(())
}
