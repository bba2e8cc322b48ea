//! `uni_sse` with npm eventsource as it is: it recovers by the id of the last event, and comes back or stays away as it
//! should.

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    clients,
    http::Connection,
    node::{self, Node},
    process::Process,
    scratch::Scratch,
    server_api, subscriber, wait,
};
use serde_json::{Value, json};

const KEY: &str = "a key that is long enough";
const SECRET: &str = "a secret that is long enough for HS256";

struct Scene {
    node: Node,
    scratch: Scratch,
}

impl Scene {
    async fn new(name: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let history = json!({ "size": 100, "lifetime": "1m" });
        let settings = node::settings()
            .with(
                "auth",
                json!({ "keys": [{ "algorithm": "HS256", "key": SECRET }] }),
            )
            .with("api", json!({ "keys": [KEY] }))
            .with(
                "endpoints",
                json!([{ "path": "/connection", "mode": "channels" }]),
            )
            .with(
                "channels.namespaces",
                json!([
                    { "name": "c", "history": history, "recovery": true },
                    { "name": "plain" },
                ]),
            );
        let node = Node::start("node", settings, scratch.path()).await?;
        node.ready().await?;
        Ok(Self { node, scratch })
    }

    fn open(&self, token: &str) -> Result<Process> {
        let connect = json!({ "token": token }).to_string();
        let encoded: String = connect.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let url = format!(
            "http://{}/connection/uni_sse?cf_connect={encoded}",
            self.node.address
        );
        let command = clients::command("eventsource.mjs", &json!({ "url": url }))?;
        Process::spawn("eventsource", command, self.scratch.path())
    }

    async fn call(&self, method: &str, body: Value) -> Result<Value> {
        server_api::call(self.node.address, KEY, method, &body).await
    }

    async fn publish(&self, channel: &str, data: u64) -> Result<()> {
        let body = json!({ "channel": channel, "data": data });
        self.call("publish", body).await.map(drop)
    }
}

/// Waits until as many events as `count` are `wanted`, and returns them.
async fn events(
    source: &Process,
    count: usize,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Vec<Value>> {
    let found = wait::until("events of a stream", wait::SOON, async || {
        let lines = source.output_lines().into_iter();
        let found: Vec<Value> = lines.filter(|line| wanted(line)).collect();
        (count <= found.len()).then_some(found)
    });
    found.await.with_context(|| source.output())
}

fn is_connect(line: &Value) -> bool {
    line["data"]["connect"].is_object()
}

fn is_publication(line: &Value) -> bool {
    line["data"]["pub"].is_object()
}

/// The data of all publications in order, those that were recovered included.
fn heard(source: &Process, channel: &str) -> Vec<u64> {
    let mut heard = Vec::new();
    for line in source.output_lines() {
        let data = &line["data"];
        let recovered = data["connect"]["subs"][channel]["publications"].as_array();
        heard.extend(
            recovered
                .into_iter()
                .flatten()
                .map(|one| one["data"].clone()),
        );
        if data["channel"] == channel && data["pub"].is_object() {
            heard.push(data["pub"]["data"].clone());
        }
    }
    heard.iter().filter_map(Value::as_u64).collect()
}

#[tokio::test]
async fn what_was_missed_while_it_was_away_comes_once_and_in_order() -> Result<()> {
    let scene = Scene::new("event-source-recovery").await?;
    let channels = json!({ "channels": ["c:1", "c:2, =%", "plain:3"] });
    let source = scene.open(&subscriber::token_with(SECRET, "ann", channels))?;
    events(&source, 1, is_connect).await?;
    scene.publish("c:1", 1).await?;
    scene.publish("c:2, =%", 1).await?;
    scene.publish("plain:3", 1).await?;
    scene.publish("c:1", 2).await?;
    let told = events(&source, 4, is_publication).await?;
    let has_id = |line: &Value| line["id"].as_str().is_some_and(|id| !id.is_empty());
    let is_kept = |line: &Value| line["data"]["channel"] != "plain:3";
    ensure!(told.iter().all(|line| has_id(line) || !is_kept(line)));
    for time in 0..2 {
        scene
            .call(
                "disconnect",
                json!({ "user": "ann", "disconnect": { "code": 4000, "reason": "come again" } }),
            )
            .await?;
        events(&source, time + 1, |line| {
            line["data"]["disconnect"].is_object()
        })
        .await?;
        // Missed: it comes again in 3 s.
        scene.publish("c:1", 3 + 2 * time as u64).await?;
        scene.publish("c:2, =%", 2 + time as u64).await?;
        let connected = events(&source, time + 2, is_connect).await?;
        let subs = &connected[time + 1]["data"]["connect"]["subs"];
        ensure!(subs["c:1"]["recovered"] == true, "{subs}");
        ensure!(subs["plain:3"]["recovered"].is_null(), "{subs}");
        scene.publish("c:1", 4 + 2 * time as u64).await?;
        events(&source, time + 5, is_publication).await?;
    }
    ensure!(
        heard(&source, "c:1") == [1, 2, 3, 4, 5, 6],
        "{}",
        source.output()
    );
    ensure!(
        heard(&source, "c:2, =%") == [1, 2, 3],
        "{}",
        source.output()
    );
    Ok(())
}

#[tokio::test]
async fn one_that_is_refused_for_good_stays_away() -> Result<()> {
    let scene = Scene::new("event-source-refused").await?;
    let source = scene.open("no token")?;
    let told = events(&source, 1, |line| line["event"] == "error").await?;
    ensure!(told[0]["closed"] == true, "it tries again: {told:?}");
    ensure!(told[0]["code"] == 204, "{told:?}");
    Ok(())
}

#[tokio::test]
async fn one_that_is_sent_away_for_good_is_told_never_to_retry() -> Result<()> {
    let scene = Scene::new("event-source-final").await?;
    for (user, code, is_final) in [("ann", 4499, false), ("bob", 4500, true)] {
        let token = subscriber::token(SECRET, user);
        let mut stream = Connection::open(scene.node.address).await?;
        let body = json!({ "token": token }).to_string();
        let length = body.len();
        let head = format!(
            "POST /connection/uni_sse HTTP/1.1\r\nHost: n\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.send(format!("{head}{body}")).await?;
        let disconnect = json!({ "user": user, "disconnect": { "code": code, "reason": "bye" } });
        let told = async {
            // The client is there once the application can find it.
            wait::until("a client", wait::SOON, async || {
                let info = scene.call("info", json!({})).await.ok()?;
                (info["nodes"][0]["num_users"] == 1).then_some(())
            })
            .await?;
            scene.call("disconnect", disconnect).await
        };
        let (response, disconnected) = tokio::join!(stream.response(), told);
        disconnected?;
        let told = response?.text();
        ensure!(told.contains(&format!("\"code\":{code}")), "{told}");
        ensure!(told.contains("\nretry: 2147483647\n") == is_final, "{told}");
    }
    Ok(())
}
