//! What an application's backend does over the HTTP API, with PyPI's cent: to clients on three nodes.

use std::{collections::BTreeSet, process::Stdio};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    clients,
    cluster::{Cluster, ClusterConfig},
    http,
    process::Process,
    settings::Settings,
    subscriber::{Subscriber, token},
    wait,
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

const KEY: &str = "the key of the application";
const SECRET: &str = "a secret of at least thirty-two bytes";

/// Rooms with a past and a list, and a namespace that has neither.
fn channels(settings: Settings) -> Settings {
    settings
        .with(
            "endpoints",
            // Who only waits sends no pongs: on a busy machine it must not be given up for that.
            json!([{ "path": "/connection", "mode": "channels", "ping": { "interval": "1h", "timeout": "1m" } }]),
        )
        .with(
            "channels.namespaces",
            json!([
                {
                    "name": "chat", "subscribe": "anyone", "publish": "subscribers", "recovery": true,
                    "history": { "size": 100, "lifetime": "1h" }, "presence": true, "join_leave": true,
                },
                { "name": "plain", "subscribe": "anyone" },
            ]),
        )
        .with(
            "auth.keys",
            json!([{ "algorithm": "HS256", "key": SECRET }]),
        )
        .with("api.keys", json!(["another key of the application", KEY]))
}

fn three_nodes() -> ClusterConfig {
    ClusterConfig {
        node_settings: channels,
        ..ClusterConfig::three_nodes()
    }
}

/// PyPI's cent, in a process of its own.
struct Cent {
    process: Process,
    calls: usize,
}

impl Cent {
    fn start(cluster: &Cluster, node: usize, key: &str) -> Result<Self> {
        let url = format!("http://{}/api", cluster.nodes[node].address);
        let mut command = clients::command("server_api.py", &json!({ "url": url, "key": key }))?;
        command.stdin(Stdio::piped());
        let name = format!("cent-{node}-{}", key.len());
        let process = Process::spawn(&name, command, cluster.scratch.path())?;
        Ok(Self { process, calls: 0 })
    }

    /// Calls a method; what came of it has a `result` or an `error`.
    async fn call(&mut self, method: &str, arguments: Value) -> Result<Value> {
        let order = json!({ "method": method, "arguments": arguments });
        let input = self.process.stdin().context("it is piped")?;
        input.write_all(format!("{order}\n").as_bytes()).await?;
        self.calls += 1;
        let calls = self.calls;
        wait::until("cent's response", wait::SOON, async || {
            let responses = self.process.output_lines();
            responses.into_iter().nth(calls - 1)
        })
        .await
        .with_context(|| format!("{method}: {}", self.process.log()))
    }

    async fn result(&mut self, method: &str, arguments: Value) -> Result<Value> {
        let mut response = self.call(method, arguments).await?;
        ensure!(response["error"].is_null(), "{method}: {response}");
        Ok(response["result"].take())
    }

    async fn error(&mut self, method: &str, arguments: Value) -> Result<Value> {
        let mut response = self.call(method, arguments).await?;
        ensure!(response["result"].is_null(), "{method}: {response}");
        Ok(response["error"].take())
    }
}

#[tokio::test]
async fn what_is_published_is_heard_everywhere_and_stored_once() -> Result<()> {
    let cluster = Cluster::start("api-publish", three_nodes()).await?;
    let mut cent = Cent::start(&cluster, 0, KEY)?;
    let mut client = Subscriber::connect(cluster.nodes[2].address, &token(SECRET, "ann")).await?;
    client.subscribe("chat:a").await?;
    client.subscribe("plain:a").await?;

    let arguments = json!({ "channel": "chat:a", "data": { "n": 1 }, "tags": { "t": "x" }, "idempotency_key": "k" });
    let first = cent.result("publish", arguments.clone()).await?;
    assert_eq!(first["offset"], 1);
    let again = cent.result("publish", arguments).await?;
    assert_eq!(again, first, "it was published already");
    let push = client.push("pub").await?;
    assert_eq!(push["channel"], "chat:a");
    assert_eq!(push["pub"]["data"], json!({ "n": 1 }));
    assert_eq!(push["pub"]["tags"], json!({ "t": "x" }));

    let skipped = json!({ "channel": "chat:a", "data": 2, "skip_history": true });
    assert_eq!(cent.result("publish", skipped).await?["offset"], 0);
    assert_eq!(client.push("pub").await?["pub"]["data"], 2);
    let base64 = json!({ "channel": "plain:a", "data": null, "b64data": "eyJiIjozfQ==" });
    cent.result("publish", base64).await?;
    assert_eq!(client.push("pub").await?["pub"]["data"], json!({ "b": 3 }));

    let broadcast = json!({ "channels": ["chat:a", "nowhere:a", "plain:a"], "data": 4 });
    let responses = cent.result("broadcast", broadcast).await?;
    assert_eq!(responses["responses"][0]["result"]["offset"], 2);
    assert_eq!(responses["responses"][1]["error"]["code"], 102);
    assert_eq!(responses["responses"][2]["result"]["offset"], 0);
    let heard = [client.push("pub").await?, client.push("pub").await?];
    let heard: BTreeSet<_> = heard
        .iter()
        .filter_map(|push| push["channel"].as_str())
        .collect();
    assert_eq!(heard, BTreeSet::from(["chat:a", "plain:a"]));

    let history = cent
        .result("history", json!({ "channel": "chat:a", "limit": 10 }))
        .await?;
    assert_eq!(history["offset"], 2);
    let data = |history: &Value| -> Vec<Value> {
        let publications = history["publications"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        publications
            .iter()
            .map(|publication| publication["data"].clone())
            .collect()
    };
    assert_eq!(data(&history), [json!({ "n": 1 }), json!(4)]);
    let since = json!({ "offset": 1, "epoch": history["epoch"] });
    let rest = json!({ "channel": "chat:a", "limit": 10, "since": since });
    assert_eq!(data(&cent.result("history", rest).await?), [json!(4)]);
    let reverse = json!({ "channel": "chat:a", "limit": 1, "reverse": true });
    assert_eq!(data(&cent.result("history", reverse).await?), [json!(4)]);
    let position = cent
        .result("history", json!({ "channel": "chat:a" }))
        .await?;
    assert_eq!((data(&position).len(), &position["offset"]), (0, &json!(2)));
    let old = json!({ "channel": "chat:a", "limit": 1, "since": { "offset": 1, "epoch": "gone" } });
    assert_eq!(cent.error("history", old).await?, 112);
    cent.result("history_remove", json!({ "channel": "chat:a" }))
        .await?;
    let history = cent
        .result("history", json!({ "channel": "chat:a", "limit": 10 }))
        .await?;
    assert_eq!(data(&history), [json!(null); 0]);

    for (method, arguments, code) in [
        ("publish", json!({ "channel": "nowhere:a", "data": 1 }), 102),
        ("publish", json!({ "channel": "", "data": 1 }), 107),
        (
            "publish",
            json!({ "channel": "plain:a", "data": 1, "b64data": "?" }),
            107,
        ),
        (
            "publish",
            json!({ "channel": "plain:a", "data": 1, "b64data": "/w==" }),
            107,
        ),
        ("history", json!({ "channel": "plain:a" }), 108),
        ("history_remove", json!({ "channel": "plain:a" }), 108),
        ("presence", json!({ "channel": "plain:a" }), 108),
        ("presence_stats", json!({ "channel": "nowhere:a" }), 102),
    ] {
        assert_eq!(
            cent.error(method, arguments.clone()).await?,
            code,
            "{method} {arguments}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn clients_are_found_and_led_wherever_they_are() -> Result<()> {
    let cluster = Cluster::start("api-clients", three_nodes()).await?;
    let mut cent = Cent::start(&cluster, 1, KEY)?;
    let mut clients = Vec::new();
    for (node, user) in [(0, "ann"), (1, "ann"), (2, "bob")] {
        let address = cluster.nodes[node].address;
        let mut client = Subscriber::connect(address, &token(SECRET, user)).await?;
        client.subscribe("chat:a").await?;
        clients.push(client);
    }
    let all = json!({ "channel": "chat:a" });
    wait::until("everybody on the list", wait::SOON, async || {
        let stats = cent.result("presence_stats", all.clone()).await.ok()?;
        (stats["num_clients"] == 3).then_some(())
    })
    .await?;
    let stats = cent.result("presence_stats", all.clone()).await?;
    assert_eq!(stats, json!({ "num_clients": 3, "num_users": 2 }));
    let presence = cent.result("presence", all).await?;
    for (client, user) in clients.iter().zip(["ann", "ann", "bob"]) {
        assert_eq!(presence["presence"][&client.id]["user"], user);
    }
    let channels = cent
        .result("channels", json!({ "pattern": "chat:*" }))
        .await?;
    assert_eq!(
        channels["channels"],
        json!({ "chat:a": { "num_clients": 3 } })
    );
    let info = cent.result("info", json!({})).await?;
    let nodes = info["nodes"].as_array().context("nodes are a list")?;
    let names: BTreeSet<_> = nodes
        .iter()
        .filter_map(|node| node["name"].as_str())
        .collect();
    assert_eq!(names, BTreeSet::from(["n1", "n2", "n3"]));
    assert!(
        nodes
            .iter()
            .all(|node| node["num_clients"] == 1 && node["num_subs"] == 1),
        "{info}"
    );

    // A subscription for all clients of a user, and its end for one of them.
    let subscribe = json!({ "user": "ann", "channel": "plain:b", "data": { "why": "so" } });
    cent.result("subscribe", subscribe).await?;
    for client in &mut clients[..2] {
        let push = client.push("subscribe").await?;
        assert_eq!(
            (&push["channel"], &push["subscribe"]["data"]),
            (&json!("plain:b"), &json!({ "why": "so" }))
        );
    }
    let one = json!({ "user": "ann", "channel": "plain:b", "client": clients[0].id });
    cent.result("unsubscribe", one).await?;
    assert_eq!(clients[0].push("unsubscribe").await?["channel"], "plain:b");
    cent.result("publish", json!({ "channel": "plain:b", "data": 1 }))
        .await?;
    assert_eq!(clients[1].push("pub").await?["channel"], "plain:b");

    // A batch, in order, with a command that fails in its midst.
    let batch = json!({ "requests": [
        { "method": "publish", "arguments": { "channel": "chat:a", "data": 1 } },
        { "method": "presence_stats", "arguments": { "channel": "chat:a" } },
    ] });
    let replies = cent.result("batch", batch).await?;
    assert_eq!(replies[0]["offset"], 1);
    assert_eq!(replies[1]["num_clients"], 3);

    // Sent away: one with words of its own, the others of its user with the usual ones.
    let kept = clients[1].id.clone();
    let words = json!({ "code": 4001, "reason": "enough" });
    let disconnect = json!({ "user": "ann", "whitelist": [kept], "disconnect": words });
    cent.result("disconnect", disconnect).await?;
    assert_eq!(clients[0].close_code().await?, Some(4001));
    cent.result("refresh", json!({ "user": "bob", "expired": true }))
        .await?;
    assert_eq!(clients[2].close_code().await?, Some(3005));
    cent.result("disconnect", json!({ "user": "ann" })).await?;
    assert_eq!(clients[1].close_code().await?, Some(3503));
    // Nobody is there any more, which is no error.
    cent.result("disconnect", json!({ "user": "ann" })).await?;
    for (arguments, code) in [
        (json!({ "user": "" }), 107),
        (json!({ "user": "ann", "client": "x" }), 107),
        (json!({ "user": "ann", "session": "x" }), 107),
        (
            json!({ "user": "ann", "disconnect": { "code": 1000, "reason": "" } }),
            107,
        ),
    ] {
        assert_eq!(cent.error("disconnect", arguments).await?, code);
    }
    Ok(())
}

#[tokio::test]
async fn without_a_key_nothing_is_told_and_what_is_malformed_is_named() -> Result<()> {
    let cluster = Cluster::start(
        "api-door",
        ClusterConfig {
            nodes: 1,
            ..three_nodes()
        },
    )
    .await?;
    let mut stranger = Cent::start(&cluster, 0, "no key of the application")?;
    assert_eq!(
        stranger.error("info", json!({})).await?,
        "CentUnauthorizedError"
    );
    let post = async |path: &str, key: &str, body: &str| -> Result<http::Response> {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: n\r\nX-API-Key: {key}\r\nContent-Length: {length}\r\n\r\n"
        );
        let mut connection = http::Connection::open(cluster.nodes[0].address).await?;
        connection.send(format!("{head}{body}")).await?;
        connection.response().await
    };
    for (path, key, body, status, told) in [
        ("/api/info", "", "{}", 401, "X-API-Key"),
        ("/api/nonsense", "", "{}", 401, "X-API-Key"),
        ("/api/nonsense", KEY, "{}", 404, "nonsense"),
        ("/api", KEY, "{}", 404, "method not found"),
        ("/api/publish", KEY, "{", 400, "line 1 column 1"),
        (
            "/api/publish",
            KEY,
            r#"{"channel":1}"#,
            400,
            "expected a string",
        ),
        (
            "/api/publish",
            KEY,
            r#"{"channel":"plain:a"}"#,
            200,
            "expected `data`",
        ),
        (
            "/api/publish",
            KEY,
            r#"{"channel":"chat:a","data":1,"ack":"fast"}"#,
            200,
            "fast",
        ),
        (
            "/api/publish",
            KEY,
            r#"{"channel":"plain:a","data":1,"ack":"replicated"}"#,
            200,
            "107",
        ),
        (
            "/api/publish",
            KEY,
            r#"{"channel":"plain:a","data":1,"ack":"soon"}"#,
            400,
            "replicated",
        ),
        (
            "/api/batch",
            KEY,
            r#"{"commands":[{"nonsense":{}},{"info":{}}]}"#,
            200,
            "n1",
        ),
        (
            "/api/value_put",
            KEY,
            r#"{"user":"ann","name":"cart","value":[1, 2],"ttl":60}"#,
            200,
            r#"{"result":{}}"#,
        ),
        (
            "/api/value_get",
            KEY,
            r#"{"user":"ann","name":"cart"}"#,
            200,
            r#"{"result":{"value":[1, 2]}}"#,
        ),
        (
            "/api/value_list",
            KEY,
            r#"{"user":"ann"}"#,
            200,
            r#"{"values":{"cart":[1, 2]}}"#,
        ),
        (
            "/api/value_delete",
            KEY,
            r#"{"user":"ann","name":"cart"}"#,
            200,
            r#"{"deleted":true}"#,
        ),
        (
            "/api/value_get",
            KEY,
            r#"{"user":"ann","name":"cart"}"#,
            200,
            r#"{"result":{"value":null}}"#,
        ),
        (
            "/api/value_put",
            KEY,
            r#"{"user":"ann","name":"cart","value":1}"#,
            200,
            "lifetime",
        ),
    ] {
        let response = post(path, key, body).await?;
        assert_eq!(response.status, status, "{path} {body}: {response:?}");
        assert!(
            response.text().contains(told),
            "{path} {body}: {}",
            response.text()
        );
    }
    let large = format!(
        r#"{{"channel":"plain:a","data":"{}"}}"#,
        "x".repeat(600 << 10)
    );
    assert_eq!(post("/api/publish", KEY, &large).await?.status, 413);
    let got = http::get(cluster.nodes[0].address, "/api/info").await?;
    assert_eq!((got.status, got.header("allow")), (405, Some("POST")));
    Ok(())
}

#[tokio::test]
async fn a_killed_node_takes_its_members_off_the_list() -> Result<()> {
    const MEMBERS: usize = 2_000;
    let mut cluster = Cluster::start("api-presence", three_nodes()).await?;
    let mut cent = Cent::start(&cluster, 0, KEY)?;
    let mut stays = Subscriber::connect(cluster.nodes[1].address, &token(SECRET, "stays")).await?;
    stays.subscribe("chat:a").await?;
    let mut gone = BTreeSet::new();
    let mut members = Vec::with_capacity(MEMBERS);
    for number in 0..MEMBERS {
        let token = token(SECRET, &format!("user {number}"));
        let mut member = Subscriber::connect(cluster.nodes[2].address, &token).await?;
        member.subscribe("chat:a").await?;
        gone.insert(member.id.clone());
        members.push(member);
    }
    let channel = json!({ "channel": "chat:a" });
    let mut listed = async |count: usize| {
        wait::until("an exact list", wait::SOON, async || {
            let stats = cent.result("presence_stats", channel.clone()).await.ok()?;
            (stats["num_clients"] == count).then_some(())
        })
        .await
    };
    listed(MEMBERS + 1).await?;
    cluster.node("n3").kill().await?;
    let began = std::time::Instant::now();
    listed(1).await?;
    while !gone.is_empty() {
        let push = stays.push("leave").await?;
        let client = push["leave"]["info"]["client"]
            .as_str()
            .context("somebody left")?;
        assert!(
            gone.remove(client),
            "{client} left twice, or never was there"
        );
    }
    eprintln!(
        "the list was exact, and all had left, after {:?}",
        began.elapsed()
    );
    listed(1).await
}
