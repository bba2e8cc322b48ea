//! Channels, with npm centrifuge as it is, in JSON and in Protobuf, over WebSocket; on one node, and on two with Redis.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use causeway_tests::harness::{
    channels::{Channels, Codec, Refused},
    node::{self, Node},
    redis::Redis,
    scratch::Scratch,
    settings::Settings,
    wait,
};
use serde_json::{Value, json};

/// Two clients, and where they are connected: the same node, or two nodes that share a Redis.
struct Scene {
    clients: Channels,
    nodes: Vec<Node>,
    _redis: Option<Redis>,
    scratch: Scratch,
}

/// How messages get from node to node.
#[derive(Clone, Copy, Debug)]
enum Broker {
    Memory,
    Redis,
}

impl Broker {
    const ALL: [Self; 2] = [Self::Memory, Self::Redis];
}

fn settings(base: Settings) -> Settings {
    let namespace = |name: &str, publish: &str, more: Value| {
        let mut namespace = json!({ "name": name, "subscribe": "anyone", "publish": publish });
        for (key, value) in more.as_object().into_iter().flatten() {
            namespace[key] = value.clone();
        }
        namespace
    };
    let kept = json!({ "size": 10, "lifetime": "1m" });
    base.with("auth.anonymous", json!(true))
        .with("endpoints", json!([{ "path": "/connection", "mode": "channels", "publish_rate": { "per_second": 1000 } }]))
        .with("channels.limits", json!({ "channels_per_client": 8, "history_page": 5 }))
        .with(
            "channels.namespaces",
            json!([
                namespace("", "anyone", json!({})),
                namespace("chat", "subscribers", json!({
                    "history": kept, "recovery": true, "presence": true, "join_leave": true,
                })),
                namespace("closed", "nobody", json!({ "subscribe": "token" })),
                namespace("bytes", "anyone", json!({ "data": "binary" })),
            ]),
        )
}

impl Scene {
    async fn new(name: &str, broker: Broker) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let (base, redis, count) = match broker {
            Broker::Memory => (node::settings(), None, 1),
            Broker::Redis => {
                let redis = Redis::start(Ipv4Addr::LOCALHOST, scratch.path()).await?;
                (node::settings_with_redis(&redis.url()), Some(redis), 2)
            }
        };
        let mut nodes = Vec::new();
        for number in 1..=count {
            let id = format!("node-{number}");
            let node = Node::start(&id, settings(base.clone()), scratch.path()).await?;
            node.ready().await?;
            nodes.push(node);
        }
        let clients = Channels::start(scratch.path())?;
        Ok(Self {
            clients,
            nodes,
            _redis: redis,
            scratch,
        })
    }

    /// Connects `client`, the next one to the next node.
    async fn open(&mut self, client: &str, codec: Codec) -> Result<Value> {
        let place = usize::from(client.ends_with('2')) % self.nodes.len();
        let url = format!("ws://{}/connection/websocket", self.nodes[place].address);
        self.clients.open(client, &url, codec, json!({})).await
    }

    async fn subscribe(&mut self, client: &str, channel: &str) -> Result<Value> {
        self.clients
            .granted(client, "subscribe", json!({ "channel": channel }))
            .await
    }

    async fn publish(&mut self, client: &str, channel: &str, data: Value) -> Result<Value> {
        self.clients
            .granted(
                client,
                "publish",
                json!({ "channel": channel, "data": data }),
            )
            .await
    }

    /// The data of the next publication that `client` hears.
    async fn heard(&mut self, client: &str) -> Result<Value> {
        Ok(self.clients.event(client, "publication").await?["data"].clone())
    }
}

/// Runs `case` with both brokers and both builds of the client.
async fn everywhere(name: &str, case: impl AsyncFn(&mut Scene, Codec) -> Result<()>) -> Result<()> {
    for broker in Broker::ALL {
        for codec in Codec::ALL {
            let mut scene = Scene::new(name, broker).await?;
            let done = case(&mut scene, codec).await;
            done.map_err(|error| error.context(format!("{broker:?}, {codec:?}")))?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_one_client_says_the_others_of_its_channel_hear_in_order() -> Result<()> {
    everywhere("channels-order", async |scene, codec| {
        for client in ["ann1", "bob2", "eve1"] {
            scene.open(client, codec).await?;
        }
        scene.subscribe("ann1", "chat:a").await?;
        scene.subscribe("bob2", "chat:a").await?;
        scene.subscribe("eve1", "chat:b").await?;
        for number in 0..20 {
            scene
                .publish("ann1", "chat:a", json!({ "number": number }))
                .await?;
        }
        for number in 0..20 {
            for client in ["ann1", "bob2"] {
                ensure!(
                    scene.heard(client).await? == json!({ "number": number }),
                    "{client} {number}"
                );
            }
        }
        ensure!(
            scene.clients.events("eve1", "publication").is_empty(),
            "it is not her channel"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn json_and_protobuf_clients_understand_each_other() -> Result<()> {
    for broker in Broker::ALL {
        let mut scene = Scene::new("channels-codecs", broker).await?;
        scene.open("json1", Codec::Json).await?;
        scene.open("protobuf2", Codec::Protobuf).await?;
        for client in ["json1", "protobuf2"] {
            scene.subscribe(client, "chat:a").await?;
        }
        for client in ["json1", "protobuf2"] {
            let said = json!({ "by": client, "text": "ä \n \"quoted\"" });
            scene.publish(client, "chat:a", said.clone()).await?;
            for listener in ["json1", "protobuf2"] {
                ensure!(
                    scene.heard(listener).await? == said,
                    "{client} to {listener}"
                );
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn who_comes_back_gets_what_it_missed_once_and_in_order() -> Result<()> {
    everywhere("channels-recover", async |scene, codec| {
        scene.open("ann1", codec).await?;
        scene.open("bob2", codec).await?;
        scene.subscribe("ann1", "chat:a").await?;
        scene.subscribe("bob2", "chat:a").await?;
        for round in 0..3 {
            scene.clients.granted("bob2", "break", json!({})).await?;
            for number in 0..5 {
                scene
                    .publish("ann1", "chat:a", json!([round, number]))
                    .await?;
            }
            for number in 0..5 {
                ensure!(
                    scene.heard("bob2").await? == json!([round, number]),
                    "{round} {number}"
                );
            }
        }
        let subscribed = scene.clients.events("bob2", "subscribed");
        let lost = subscribed
            .iter()
            .filter(|event| event["wasRecovering"] == true && event["recovered"] != true);
        ensure!(lost.count() == 0, "{subscribed:?}");
        ensure!(
            scene.clients.events("bob2", "publication").len() == 15,
            "nothing comes twice"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn who_missed_too_much_is_told_so() -> Result<()> {
    everywhere("channels-lost", async |scene, codec| {
        scene.open("ann1", codec).await?;
        scene.open("bob2", codec).await?;
        scene.subscribe("ann1", "chat:a").await?;
        scene.subscribe("bob2", "chat:a").await?;
        scene.clients.event("bob2", "subscribed").await?;
        // More than is kept, while nobody of them is there.
        scene
            .clients
            .granted("bob2", "disconnect", json!({}))
            .await?;
        for number in 0..30 {
            scene.publish("ann1", "chat:a", json!(number)).await?;
        }
        let since = json!({ "channel": "chat:a", "options": { "limit": 0 } });
        let position = scene.clients.granted("ann1", "history", since).await?;
        ensure!(
            position["offset"] == 30 && position["publications"] == json!([]),
            "{position}"
        );
        scene.open("late2", codec).await?;
        let since = json!({ "offset": 1, "epoch": position["epoch"] });
        let order = json!({ "channel": "chat:a", "options": { "since": since } });
        let subscribed = scene.clients.granted("late2", "subscribe", order).await?;
        ensure!(
            subscribed["wasRecovering"] == true && subscribed["recovered"] == false,
            "{subscribed}"
        );
        scene.publish("ann1", "chat:a", json!("next")).await?;
        ensure!(
            scene.heard("late2").await? == "next",
            "it goes on from there"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn it_is_known_who_is_there_and_told_who_comes_and_goes() -> Result<()> {
    everywhere("channels-presence", async |scene, codec| {
        let ann = scene.open("ann1", codec).await?;
        let bob = scene.open("bob2", codec).await?;
        let asking = json!({ "channel": "chat:a", "options": { "joinLeave": true } });
        scene.clients.granted("ann1", "subscribe", asking).await?;
        scene.subscribe("bob2", "chat:a").await?;
        let about = json!({ "channel": "chat:a" });
        let present = scene
            .clients
            .granted("bob2", "presence", about.clone())
            .await?;
        for client in [&ann, &bob] {
            let id = client["client"].as_str().unwrap_or_default();
            ensure!(present["clients"][id]["client"] == id, "{present}");
        }
        let stats = scene
            .clients
            .granted("ann1", "presenceStats", about.clone())
            .await?;
        ensure!(stats["numClients"] == 2, "{stats}");
        loop {
            // Her own coming, and his.
            if scene.clients.event("ann1", "join").await?["info"]["client"] == bob["client"] {
                break;
            }
        }
        scene
            .clients
            .granted("bob2", "unsubscribe", about.clone())
            .await?;
        let left = scene.clients.event("ann1", "leave").await?;
        ensure!(left["info"]["client"] == bob["client"], "{left}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn history_comes_in_pages_from_either_end() -> Result<()> {
    everywhere("channels-history", async |scene, codec| {
        scene.open("ann1", codec).await?;
        scene.subscribe("ann1", "chat:a").await?;
        for number in 1..=8 {
            scene.publish("ann1", "chat:a", json!(number)).await?;
        }
        let mut page = async |options: Value| {
            let order = json!({ "channel": "chat:a", "options": options });
            let page = scene.clients.granted("ann1", "history", order).await?;
            let publications = page["publications"].as_array().into_iter().flatten();
            let data: Vec<Value> = publications.map(|one| one["data"].clone()).collect();
            anyhow::Ok((json!(data), page))
        };
        let (data, first) = page(json!({ "limit": 3 })).await?;
        ensure!(data == json!([1, 2, 3]), "{first}");
        let since = json!({ "offset": 3, "epoch": first["epoch"] });
        let (data, _) = page(json!({ "limit": 2, "since": since })).await?;
        ensure!(data == json!([4, 5]), "{data}");
        let (data, _) = page(json!({ "limit": 2, "reverse": true })).await?;
        ensure!(data == json!([8, 7]), "{data}");
        let (data, _) = page(json!({ "limit": -1 })).await?;
        ensure!(data == json!([1, 2, 3, 4, 5]), "a page is as long as it may be: {data}");
        let order = json!({ "channel": "chat:a", "options": { "limit": 1, "since": { "offset": 3, "epoch": "other" } } });
        let refused = scene.clients.refused("ann1", "history", order).await?;
        ensure!(refused.code == 112, "{refused:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_may_not_be_done_is_refused_with_the_protocols_codes() -> Result<()> {
    for codec in Codec::ALL {
        let mut scene = Scene::new("channels-refused", Broker::Memory).await?;
        scene.open("ann1", codec).await?;
        let publish = |channel: &str| json!({ "channel": channel, "data": 1 });
        let about = |channel: &str| json!({ "channel": channel });
        for (what, order, code) in [
            ("subscribe", about("nowhere:a"), 102),
            ("subscribe", about("closed:a"), 103),
            (
                "subscribe",
                json!({ "channel": "chat:delta", "options": { "delta": "fossil" } }),
                108,
            ),
            ("publish", publish("closed:a"), 103),
            ("publish", publish("chat:a"), 103),
            ("publish", publish("nowhere:a"), 102),
            ("publish", publish(&"x".repeat(256)), 107),
            ("presence", about("news"), 108),
            ("presence", about("chat:a"), 103),
            ("presenceStats", about("news"), 108),
            (
                "history",
                json!({ "channel": "news", "options": { "limit": 1 } }),
                108,
            ),
            (
                "history",
                json!({ "channel": "chat:a", "options": { "limit": 1 } }),
                103,
            ),
            ("rpc", json!({ "method": "anything", "data": 1 }), 108),
        ] {
            let shown = format!("{codec:?} {what} {order}");
            let refused = scene.clients.refused("ann1", what, order).await?;
            ensure!(refused.code == code, "{shown}: {refused:?}");
        }
        scene
            .clients
            .granted("ann1", "send", json!({ "data": 1 }))
            .await?;
        for number in 0..8 {
            scene.subscribe("ann1", &format!("chat:{number}")).await?;
        }
        let refused = scene
            .clients
            .refused("ann1", "subscribe", about("chat:8"))
            .await?;
        ensure!(refused.code == 106, "{refused:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_binary_channel_is_for_protobuf_clients() -> Result<()> {
    let mut scene = Scene::new("channels-binary", Broker::Memory).await?;
    scene.open("json1", Codec::Json).await?;
    scene.open("protobuf1", Codec::Protobuf).await?;
    let refused = scene
        .clients
        .refused("json1", "subscribe", json!({ "channel": "bytes:a" }))
        .await?;
    let expected = "the channel carries binary data: connect with Protobuf";
    ensure!(
        refused
            == Refused {
                code: 108,
                message: expected.to_owned()
            },
        "{refused:?}"
    );
    scene.subscribe("protobuf1", "bytes:a").await?;
    let bytes = json!({ "base64": "AP/+gA==" });
    scene.publish("protobuf1", "bytes:a", bytes.clone()).await?;
    ensure!(
        scene.heard("protobuf1").await? == bytes,
        "bytes come as they went"
    );
    let refused = scene
        .clients
        .refused(
            "protobuf1",
            "publish",
            json!({ "channel": "chat:a", "data": bytes }),
        )
        .await?;
    ensure!(refused.code == 103, "{refused:?}");
    scene.subscribe("protobuf1", "chat:a").await?;
    let refused = scene
        .clients
        .refused(
            "protobuf1",
            "publish",
            json!({ "channel": "chat:a", "data": bytes }),
        )
        .await?;
    ensure!(
        refused.code == 107,
        "what is no JSON is not for a channel of JSON: {refused:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_node_that_stops_sends_its_clients_elsewhere() -> Result<()> {
    let mut scene = Scene::new("channels-drain", Broker::Memory).await?;
    scene.open("ann1", Codec::Json).await?;
    scene.nodes[0].drain();
    let event = wait::until("the client to be told", wait::SOON, async || {
        let mut events = scene.clients.events("ann1", "connecting");
        events.retain(|event| event["code"] != 0);
        events.into_iter().next()
    })
    .await?;
    ensure!(
        event["code"] == 3001 && event["reason"] == "shutdown",
        "{event}"
    );
    drop(scene.scratch);
    Ok(())
}
