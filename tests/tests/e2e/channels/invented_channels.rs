//! A client that subscribes to channels that it invents leaves nothing in Redis, and has a limit on its commands.

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    cluster::{Cluster, ClusterConfig},
    http,
    node::{self, Node},
    process::json_lines,
    scratch::Scratch,
    server_api,
    settings::Settings,
    subscriber::{Subscriber, token},
    wait,
    websocket::WebSocket,
};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

const KEY: &str = "the key of the application";
const SECRET: &str = "a secret of at least thirty-two bytes";

/// More than any client needs, and more than the burst that it has.
const CHANNELS: usize = 1200;

/// The error of a command that comes too fast.
const TOO_MANY_REQUESTS: i64 = 111;

/// What closes a client that goes on all the same.
const TOO_MANY_ERRORS: u16 = 3509;

fn channels(settings: Settings) -> Settings {
    settings
        .with(
            "endpoints",
            // The default burst with a low rate, so that also a slow machine exceeds it.
            json!([{ "path": "/connection", "mode": "channels", "command_rate": { "per_second": 1, "burst": 1000 } }]),
        )
        .with(
            "channels.namespaces",
            json!([{
                "name": "chat", "subscribe": "anyone", "recovery": true,
                "history": { "size": 10, "lifetime": "1h" },
            }]),
        )
        .with(
            "auth.keys",
            json!([{ "algorithm": "HS256", "key": SECRET }]),
        )
        .with("api.keys", json!([KEY]))
}

#[tokio::test]
async fn subscribing_to_invented_channels_writes_nothing_and_has_a_limit() -> Result<()> {
    let config = ClusterConfig {
        nodes: 1,
        node_settings: channels,
        ..ClusterConfig::three_nodes()
    };
    let cluster = Cluster::start("invented", config).await?;
    let node = cluster.nodes[0].address;
    let mut client = Subscriber::connect(node, &token(SECRET, "")).await?;
    let mut is_slowed = false;
    for number in 0..CHANNELS {
        let channel = json!({ "channel": format!("chat:invented {number}") });
        let reply = client.ask_for_reply("subscribe", channel.clone()).await?;
        let code = reply["error"]["code"].as_i64();
        assert!([None, Some(TOO_MANY_REQUESTS)].contains(&code), "{reply}");
        is_slowed |= code.is_some();
        client.ask_for_reply("unsubscribe", channel).await?;
    }
    assert!(is_slowed, "{CHANNELS} channels in no time");
    let keys = async || {
        cluster
            .redis
            .cli(&["KEYS", "causeway:*{chat:invented*"])
            .await
    };
    assert_eq!(keys().await?, "");

    // A client that was subscribed before the first publication has missed nothing when it comes back.
    let mut reader = Subscriber::connect(node, &token(SECRET, "ann")).await?;
    let subscribed = reader.subscribe("chat:invented 0").await?;
    drop(reader);
    for data in [1, 2] {
        let publish = json!({ "channel": "chat:invented 0", "data": data });
        server_api::call(node, KEY, "publish", &publish).await?;
    }
    assert_eq!(keys().await?.lines().count(), 2);
    let epoch = subscribed["epoch"].as_str().context("an epoch")?.to_owned();
    let mut reader = Subscriber::connect(node, &token(SECRET, "ann")).await?;
    let since = json!({
        "channel": "chat:invented 0", "recover": true, "epoch": epoch, "offset": 0,
    });
    let recovered = reader.ask("subscribe", since).await?;
    assert_eq!(recovered["recovered"], true, "{recovered}");
    assert_eq!(recovered["publications"].as_array().map(Vec::len), Some(2));
    Ok(())
}

#[tokio::test]
async fn a_command_over_the_rate_may_be_tried_again_and_a_flood_ends_the_client() -> Result<()> {
    const REFUSALS_MAX: usize = 1000;
    let scratch = Scratch::new("command-rate")?;
    let endpoint = json!({
        "path": "/connection", "mode": "channels", "command_rate": { "per_second": 1, "burst": 5 },
    });
    let settings = channels(node::settings()).with("endpoints", json!([endpoint]));
    let node = Node::start("n1", settings, scratch.path()).await?;
    node.ready().await?;
    let mut client = WebSocket::open(node.address, "/connection/websocket").await?;
    let connect = json!({ "id": 1, "connect": { "token": token(SECRET, "ann") } });
    client.send(&connect.to_string()).await?;
    client.text().await?;

    // In one frame, as SDKs send what they subscribe to again.
    let subscribe = |id: usize| {
        json!({ "id": id, "subscribe": { "channel": format!("chat:{id}") } }).to_string()
    };
    let together: Vec<_> = (2..=7).map(subscribe).collect();
    client.send(&together.join("\n")).await?;
    let mut errors = Vec::new();
    let mut replies = 0;
    while replies < together.len() {
        for line in client.text().await?.lines() {
            let reply: Value = serde_json::from_str(line)?;
            if !reply["id"].is_null() {
                replies += 1;
                errors.extend(reply.get("error").cloned());
            }
        }
    }
    let expected =
        json!({ "code": TOO_MANY_REQUESTS, "message": "too many requests", "temporary": true });
    ensure!(errors == [expected], "{errors:?}");

    // One by one, so that no reset of the connection overtakes the close frame.
    let mut closed = None;
    for id in 0..2 * REFUSALS_MAX {
        client.send(&subscribe(100 + id)).await?;
        if let Some(Message::Close(frame)) = client.message().await? {
            closed = frame.map(|frame| u16::from(frame.code));
            break;
        }
    }
    ensure!(closed == Some(TOO_MANY_ERRORS), "{closed:?}");
    let metrics = http::get(node.admin, "/metrics").await?.text();
    let counted = metrics
        .lines()
        .find_map(|line| line.strip_prefix("causeway_node_commands_refused_total "));
    let counted: usize = counted.context("a counter")?.parse()?;
    ensure!(counted >= REFUSALS_MAX, "{counted}");
    let line = wait::until("a line of rejected commands", wait::SOON, async || {
        let log = json_lines(&node.process.log()).into_iter();
        let mut fields = log.map(|mut line| line["fields"].take());
        fields.find(|fields| {
            fields["message"] == "commands rejected: the client exceeds its command rate"
        })
    })
    .await?;
    ensure!(
        line["user"] == "ann" && line["setting"] == "command_rate",
        "{line}"
    );
    Ok(())
}
