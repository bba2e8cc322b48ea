//! Who is on a channel's list, and what stands there of them.

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    cluster::{Cluster, ClusterConfig},
    server_api,
    settings::Settings,
    subscriber::{Subscriber, token, token_with},
    wait,
};
use serde_json::{Value, json};

const KEY: &str = "the key of the application";
const SECRET: &str = "a secret of at least thirty-two bytes";
const CHANNEL: &str = "chat:a";

/// Rooms with a list, with and without a past.
fn channels(settings: Settings) -> Settings {
    settings
        .with(
            "endpoints",
            json!([{ "path": "/connection", "mode": "channels" }]),
        )
        .with(
            "channels.namespaces",
            json!([
                {
                    "name": "chat", "subscribe": "anyone", "recovery": true, "presence": true, "join_leave": true,
                    "history": { "size": 10, "lifetime": "1h" },
                },
                { "name": "list", "subscribe": "anyone", "presence": true, "join_leave": true },
                {
                    "name": "open", "subscribe": "anyone", "presence": true, "join_leave": true,
                    "force_push_join_leave": true,
                },
            ]),
        )
        .with("auth.keys", json!([{ "algorithm": "HS256", "key": SECRET }]))
        .with("api.keys", json!([KEY]))
}

async fn two_nodes(name: &str) -> Result<Cluster> {
    let config = ClusterConfig {
        nodes: 2,
        node_settings: channels,
        ..ClusterConfig::three_nodes()
    };
    Cluster::start(name, config).await
}

/// Waits until the list of a channel, as `node` shows it, is as wanted.
async fn listed(
    cluster: &Cluster,
    node: usize,
    channel: &str,
    wanted: impl Fn(&Value) -> bool,
) -> Result<()> {
    let address = cluster.nodes[node].address;
    let mut last = Value::Null;
    let found = wait::until("the list", wait::SOON, async || {
        let ask = json!({ "channel": channel });
        last = server_api::call(address, KEY, "presence", &ask)
            .await
            .ok()?;
        wanted(&last["presence"]).then_some(())
    })
    .await;
    found.with_context(|| format!("the list is {last}"))
}

fn has(list: &Value, client: &str) -> bool {
    !list[client].is_null()
}

#[tokio::test]
async fn who_is_told_that_its_subscription_ended_is_off_the_list() -> Result<()> {
    let cluster = two_nodes("presence-ended").await?;
    let mut ann = Subscriber::connect(cluster.nodes[0].address, &token(SECRET, "ann")).await?;
    let mut bob = Subscriber::connect(cluster.nodes[1].address, &token(SECRET, "bob")).await?;
    ann.subscribe(CHANNEL).await?;
    let (ann_is, bob_is) = (ann.id.clone(), bob.id.clone());
    listed(&cluster, 1, CHANNEL, |list| has(list, &ann_is)).await?;

    // The stream begins anew: whoever follows it is told to start over, and she does not come again.
    let publish = json!({ "channel": CHANNEL, "data": 1 });
    server_api::call(cluster.nodes[1].address, KEY, "publish", &publish).await?;
    cluster.redis.cli(&["DEL", "causeway:me:{chat:a}"]).await?;
    server_api::call(cluster.nodes[1].address, KEY, "publish", &publish).await?;
    let push = ann.push("unsubscribe").await?;
    assert_eq!(push["unsubscribe"]["code"], 2500, "{push}");
    bob.subscribe(CHANNEL).await?;
    let left = bob.push("leave").await?;
    assert_eq!(left["leave"]["info"]["client"], *ann.id, "{left}");
    let bob_alone = |list: &Value| !has(list, &ann_is) && has(list, &bob_is);
    listed(&cluster, 0, CHANNEL, bob_alone).await?;

    ann.subscribe(CHANNEL).await?;
    let both = |list: &Value| has(list, &ann_is) && has(list, &bob_is);
    listed(&cluster, 1, CHANNEL, both).await
}

#[tokio::test]
async fn the_list_says_what_the_newest_token_says() -> Result<()> {
    let cluster = two_nodes("presence-refreshed").await?;
    let says = |info: &str| token_with(SECRET, "ann", json!({ "info": { "is": info } }));
    let mut ann = Subscriber::connect(cluster.nodes[0].address, &says("here")).await?;
    ann.subscribe(CHANNEL).await?;
    ann.subscribe("list:all").await?;
    let id = ann.id.clone();
    let shown = |field: &'static str, value: Value| {
        let id = id.clone();
        move |list: &Value| list[&id][field] == value
    };
    for channel in [CHANNEL, "list:all"] {
        let here = shown("conn_info", json!({ "is": "here" }));
        listed(&cluster, 1, channel, here).await?;
    }
    ann.ask("refresh", json!({ "token": says("away") })).await?;
    for channel in [CHANNEL, "list:all"] {
        let away = shown("conn_info", json!({ "is": "away" }));
        listed(&cluster, 1, channel, away).await?;
    }
    let claims = json!({ "channel": CHANNEL, "info": { "sits": "left" } });
    let newer = token_with(SECRET, "ann", claims);
    ann.ask("sub_refresh", json!({ "channel": CHANNEL, "token": newer }))
        .await?;
    let left = shown("chan_info", json!({ "sits": "left" }));
    listed(&cluster, 1, CHANNEL, left).await?;
    // A token that says nothing of her takes nothing away.
    ann.ask("refresh", json!({ "token": token(SECRET, "ann") }))
        .await?;
    let away = shown("conn_info", json!({ "is": "away" }));
    listed(&cluster, 1, CHANNEL, away).await
}

#[tokio::test]
async fn who_comes_and_goes_is_told_to_those_who_ask_or_to_all_where_the_namespace_says_so()
-> Result<()> {
    let cluster = two_nodes("presence-joins").await?;
    let at = |node: usize| cluster.nodes[node].address;
    let mut asks = Subscriber::connect(at(0), &token(SECRET, "asks")).await?;
    let mut quiet = Subscriber::connect(at(0), &token(SECRET, "quiet")).await?;
    for channel in ["list:all", "open:all"] {
        asks.subscribe(channel).await?;
        let without = json!({ "channel": channel });
        quiet.ask("subscribe", without).await?;
    }
    let mut comes = Subscriber::connect(at(1), &token(SECRET, "comes")).await?;
    comes.subscribe("list:all").await?;
    comes.subscribe("open:all").await?;
    let news = |push: &Value, kind: &str| {
        let info = &push[kind]["info"];
        info["client"] == *comes.id
    };
    // Its own coming may be told too, and that of the other. Channels have no order between them.
    let mut joined = Vec::new();
    while joined.len() < 2 {
        let push = asks.push("join").await?;
        if news(&push, "join") {
            joined.push(push["channel"].as_str().unwrap_or_default().to_owned());
        }
    }
    joined.sort();
    assert_eq!(joined, ["list:all", "open:all"]);
    loop {
        let push = quiet.push("join").await?;
        assert_eq!(push["channel"], "open:all", "it did not ask: {push}");
        if news(&push, "join") {
            break;
        }
    }
    let id = comes.id.clone();
    drop(comes);
    for (client, channels) in [
        (&mut asks, &["list:all", "open:all"][..]),
        (&mut quiet, &["open:all"]),
    ] {
        let mut heard = Vec::new();
        while heard.len() < channels.len() {
            let push = client.push("leave").await?;
            assert_eq!(push["leave"]["info"]["client"], *id, "{push}");
            heard.push(push["channel"].as_str().unwrap_or_default().to_owned());
        }
        heard.sort();
        assert_eq!(heard, channels);
    }
    Ok(())
}
