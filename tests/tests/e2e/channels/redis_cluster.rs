//! Nodes on a Redis Cluster of three primaries and three replicas: failovers and migrations of slots, under publications.

use std::{collections::HashSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use causeway_tests::harness::{
    edge::{self, Edge},
    http, loopback,
    node::{self, Node},
    redis::Redis,
    redis_cluster::RedisCluster,
    scratch::Scratch,
    server_api,
    settings::Settings,
    subscriber::{self, Subscriber},
    wait,
    websocket::WebSocket,
};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time};
use tokio_util::sync::CancellationToken;

const KEY: &str = "the key of the application";
const SECRET: &str = "a secret of at least thirty-two bytes";
const CHANNEL: &str = "c:x";

/// All that is kept of [`CHANNEL`] is in the slot of this.
const CHANNEL_KEY: &str = "{c:x}";

/// From one publication to the next.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(10);

/// How long the nodes may use different primaries.
const FAILOVER_MAX: Duration = Duration::from_secs(10);

/// Nodes, their Redis and their files; the processes are dropped before the files.
struct Scene {
    nodes: Vec<Node>,
    redis: RedisCluster,
    scratch: Scratch,
}

fn settings(cluster: Value) -> Result<Settings> {
    let listen = std::net::TcpListener::bind(loopback::own_any_port())?.local_addr()?;
    let history = json!({ "size": 10_000, "lifetime": "10m" });
    let broker = json!({ "kind": "redis", "cluster": cluster, "backoff_max": "250ms" });
    let namespaces = json!([
        { "name": "c", "subscribe": "anyone", "history": history, "recovery": true },
        { "name": "p", "subscribe": "anyone", "presence": true },
        { "name": "f", "subscribe": "anyone" },
    ]);
    Ok(node::settings()
        .with("listen", json!(listen))
        .with("node.advertise", json!(listen))
        .with("broker", broker)
        .with("auth.anonymous", json!(true))
        .with("api", json!({ "keys": [KEY] }))
        .with(
            "endpoints",
            json!([
                { "path": "/connection", "mode": "channels" },
                { "path": "/ws", "protocol": "websocket" },
            ]),
        )
        .with("channels.namespaces", namespaces))
}

impl Scene {
    async fn new(name: &str, change: impl Fn(&mut Value)) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let redis = RedisCluster::start(loopback::own(), scratch.path(), 3, 1).await?;
        let mut cluster = redis.settings();
        change(&mut cluster);
        let mut nodes = Vec::new();
        for id in ["n1", "n2"] {
            nodes.push(Node::start(id, settings(cluster.clone())?, scratch.path()).await?);
        }
        for node in &nodes {
            node.ready().await?;
        }
        Ok(Self {
            nodes,
            redis,
            scratch,
        })
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.address).collect()
    }

    /// Waits until each node uses the server with this index as a primary, by its metrics, and is ready.
    async fn follows(&self, primary: usize) -> Result<()> {
        let address = self.redis.servers[primary].address();
        let line = format!("causeway_node_broker_primary{{address=\"{address}\"}} 1\n");
        for node in &self.nodes {
            wait::until("the node to use the primary", wait::SOON, async || {
                let metrics = http::get(node.admin, "/metrics").await.ok()?;
                metrics.text().contains(&line).then_some(())
            })
            .await?;
            node.ready().await?;
        }
        Ok(())
    }

    /// Waits until a client of each node hears a relay client of the first one.
    async fn relays(&self) -> Result<()> {
        let mut listeners = self.listeners().await?;
        let mut speaker = WebSocket::open(self.nodes[0].address, "/ws").await?;
        for (number, listener) in listeners.iter_mut().enumerate() {
            let word = format!("to {number}");
            hears(listener, &word, async || speaker.send(&word).await).await?;
        }
        Ok(())
    }

    async fn listeners(&self) -> Result<Vec<WebSocket>> {
        let mut listeners = Vec::new();
        for node in &self.nodes {
            listeners.push(WebSocket::open(node.address, "/ws").await?);
        }
        Ok(listeners)
    }
}

/// Says something again and again until `listener` hears `word`.
async fn hears(
    listener: &mut WebSocket,
    word: &str,
    mut say: impl AsyncFnMut() -> Result<()>,
) -> Result<()> {
    let end = time::Instant::now() + wait::SOON;
    loop {
        say().await?;
        let heard = time::timeout(Duration::from_millis(200), listener.text()).await;
        if matches!(heard, Ok(Ok(text)) if text == word) {
            return Ok(());
        }
        ensure!(time::Instant::now() < end, "{word:?} is not heard");
    }
}

/// Reads until a message contains `words`.
async fn reads(client: &mut WebSocket, words: &str) -> Result<()> {
    let read = async {
        loop {
            let text = client.text().await?;
            if text.lines().any(|line| line == "{}") {
                client.send("{}").await?; // A ping.
            }
            if text.contains(words) {
                return Ok(());
            }
        }
    };
    let read = time::timeout(wait::SOON, read).await;
    read.with_context(|| format!("{words:?} is not read"))?
}

/// What the subscriber of a channel got.
#[derive(Debug, Default)]
struct Received {
    publications: u64,
    /// How often it was told that it may have missed some.
    told: u64,
}

/// Subscribes, checks that no publication is missing, repeated or out of order unless that is told, and subscribes again
/// when it is told. Ends with the publication of "end".
async fn subscribe(node: SocketAddr) -> Result<Received> {
    let mut received = Received::default();
    let mut position: Option<(Value, u64)> = None;
    let mut number = 0_u64;
    // Until when the other node may still have published to a primary that this one has left.
    let mut lossy_until = time::Instant::now();
    let mut id = 2;
    let mut socket = WebSocket::open(node, "/connection/websocket").await?;
    socket.send(r#"{"id":1,"connect":{}}"#).await?;
    let mut ask = true;
    loop {
        if std::mem::take(&mut ask) {
            let mut subscribe = json!({ "channel": CHANNEL });
            if let Some((epoch, offset)) = &position {
                subscribe["recover"] = json!(true);
                subscribe["epoch"] = epoch.clone();
                subscribe["offset"] = json!(offset);
            }
            id += 1;
            let subscribe = json!({ "id": id, "subscribe": subscribe });
            socket.send(&subscribe.to_string()).await?;
        }
        for line in socket.text().await?.lines() {
            if line == "{}" {
                socket.send("{}").await?; // A ping.
                continue;
            }
            let reply: Value = serde_json::from_str(line).context("a reply")?;
            let mut publications = Vec::new();
            if let Some(subscribed) = reply.get("subscribe") {
                let is_first = position.is_none();
                let offset = subscribed["offset"].as_u64().unwrap_or_default();
                position = Some((subscribed["epoch"].clone(), offset));
                if !is_first && subscribed["recovered"] != true {
                    received.told += 1;
                    number = 0;
                    lossy_until = time::Instant::now() + FAILOVER_MAX;
                }
                let recovered = subscribed["publications"].as_array().cloned();
                publications.extend(recovered.unwrap_or_default());
            }
            if reply["push"]["unsubscribe"].is_object() || reply["error"].is_object() {
                // Temporary errors too: the SDKs subscribe again.
                time::sleep(Duration::from_millis(100)).await;
                ask = true;
                continue;
            }
            if reply["push"]["pub"].is_object() {
                publications.push(reply["push"]["pub"].clone());
            }
            for publication in publications {
                if publication["data"] == "end" {
                    return Ok(received);
                }
                let found = publication["data"].as_u64().context("a number")?;
                ensure!(
                    number < found || number == 0,
                    "{found} is repeated or out of order after {number}"
                );
                let is_told = time::Instant::now() < lossy_until;
                if number != 0 && found != number + 1 && !is_told {
                    bail!(
                        "{} to {} are missing, and that is not told",
                        number + 1,
                        found - 1
                    );
                }
                number = found;
                received.publications += 1;
                if let Some((_, offset)) = &mut position {
                    *offset = publication["offset"].as_u64().unwrap_or(*offset);
                }
            }
        }
    }
}

/// Publishes numbers until told to stop; one whose result is not known is published again under its idempotency key, if
/// they have one.
async fn publish(nodes: Vec<SocketAddr>, has_key: bool, stop: CancellationToken) -> Result<u64> {
    let mut number = 0_u64;
    while !stop.is_cancelled() {
        number += 1;
        let mut body = json!({ "channel": CHANNEL, "data": number });
        if has_key {
            body["idempotency_key"] = json!(format!("number {number}"));
        }
        publish_until_acknowledged(&nodes, &body).await?;
        time::sleep(PUBLISH_INTERVAL).await;
    }
    Ok(number)
}

async fn publish_until_acknowledged(nodes: &[SocketAddr], body: &Value) -> Result<()> {
    let end = time::Instant::now() + wait::SOON;
    loop {
        let mut last = None;
        for node in nodes {
            match server_api::call(*node, KEY, "publish", body).await {
                Ok(_) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        ensure!(
            time::Instant::now() < end,
            "nothing is published any more: {last:?}"
        );
        time::sleep(Duration::from_millis(50)).await;
    }
}

/// Subscribers on all nodes, and a publisher.
struct Load {
    subscribers: JoinSet<Result<Received>>,
    publisher: JoinSet<Result<u64>>,
    nodes: Vec<SocketAddr>,
    stop: CancellationToken,
}

impl Load {
    fn start(scene: &Scene, has_key: bool) -> Self {
        let nodes = scene.addresses();
        let stop = CancellationToken::new();
        let mut subscribers = JoinSet::new();
        for node in nodes.iter().cycle().take(6) {
            subscribers.spawn(subscribe(*node));
        }
        let mut publisher = JoinSet::new();
        publisher.spawn(publish(nodes.clone(), has_key, stop.clone()));
        Self {
            subscribers,
            publisher,
            nodes,
            stop,
        }
    }

    /// Ends it, and checks that no subscriber was told of more than `told_max` losses.
    async fn end(mut self, told_max: u64) -> Result<()> {
        self.stop.cancel();
        let published = self
            .publisher
            .join_next()
            .await
            .context("the publisher")???;
        let end = json!({ "channel": CHANNEL, "data": "end" });
        loop {
            // Again and again: a subscriber that is told of a loss misses what is published until it has subscribed again.
            publish_until_acknowledged(&self.nodes, &end).await?;
            let ended = time::timeout(Duration::from_millis(100), self.subscribers.join_next());
            let received = match ended.await {
                Err(_) => continue,
                Ok(None) => return Ok(()),
                Ok(Some(received)) => received??,
            };
            ensure!(received.told <= told_max, "{received:?} of {published}");
            let is_fair = 0 < received.publications && received.publications <= published;
            ensure!(is_fair, "{received:?} of {published}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_all_nodes_share_relays_channels_presence_and_the_server_api() -> Result<()> {
    let scene = Scene::new("cluster-whole", |_| {}).await?;
    scene.relays().await?;
    // Whoever publishes, at whichever server.
    let mut listeners = scene.listeners().await?;
    let server = &scene.redis.servers[1];
    for listener in &mut listeners {
        hears(listener, "hello", async || {
            server
                .cli(&["-c", "SPUBLISH", "global", "hello"])
                .await
                .map(drop)
        })
        .await?;
    }

    // Channels in different slots, each with a member on each node.
    let mut clients = Vec::new();
    for node in &scene.nodes {
        let mut client = WebSocket::open(node.address, "/connection/websocket").await?;
        client.send(r#"{"id":1,"connect":{}}"#).await?;
        for number in 0..12 {
            let subscribe =
                json!({ "id": 2 + number, "subscribe": { "channel": format!("p:{number}") } });
            client.send(&subscribe.to_string()).await?;
        }
        reads(&mut client, r#""id":13"#).await?;
        clients.push(client);
    }
    for number in 0..12 {
        let channel = json!({ "channel": format!("p:{number}") });
        let [first, last] = [&scene.nodes[0], &scene.nodes[1]];
        wait::until("both members to be present", wait::SOON, async || {
            let stats = server_api::call(first.address, KEY, "presence_stats", &channel)
                .await
                .ok()?;
            (stats["num_clients"] == 2).then_some(())
        })
        .await?;
        let body = json!({ "channel": format!("p:{number}"), "data": format!("word {number}") });
        server_api::call(last.address, KEY, "publish", &body).await?;
        for client in &mut clients {
            reads(client, &format!("word {number}")).await?;
        }
    }

    // Nodes ask each other: over the control channel of each.
    let info = server_api::call(scene.nodes[0].address, KEY, "info", &json!({})).await?;
    let nodes = info["nodes"].as_array().context("nodes")?;
    ensure!(nodes.len() == 2, "{info}");

    // Every shard does its part.
    for primary in &scene.redis.servers[..3] {
        let address = primary.address();
        let line = format!("causeway_node_broker_shard_ready{{address=\"{address}\"}} 1\n");
        wait::until(&line, wait::SOON, async || {
            let metrics = http::get(scene.nodes[0].admin, "/metrics").await.ok()?;
            metrics.text().contains(&line).then_some(())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failovers_lose_and_repeat_nothing_that_subscribers_are_not_told_of() -> Result<()> {
    let mut scene = Scene::new("cluster-failover", |_| {}).await?;
    let load = Load::start(&scene, true);

    // On purpose: the old primary lives, and keeps its connections for a moment.
    let second = scene.redis.fail_over(CHANNEL_KEY).await?;
    scene.follows(second).await?;
    scene.relays().await?;
    scene.redis.settled().await?;

    // By its end.
    scene.redis.servers[second].kill().await?;
    let third = scene.redis.another_primary(CHANNEL_KEY, second).await?;
    scene.follows(third).await?;
    scene.relays().await?;
    // Each failover has a new epoch.
    load.end(3).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_primary_is_replaced_and_its_return_changes_nothing() -> Result<()> {
    let mut scene = Scene::new("cluster-paused", |_| {}).await?;
    let load = Load::start(&scene, true);
    let first = scene.redis.primary_of(CHANNEL_KEY).await?;
    scene.redis.servers[first].freeze();
    let second = scene.redis.another_primary(CHANNEL_KEY, first).await?;
    scene.follows(second).await?;
    scene.relays().await?;
    scene.redis.servers[first].thaw();
    scene.redis.settled().await?;
    scene.relays().await?;
    scene.follows(second).await?;
    load.end(2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_under_publications_loses_and_repeats_nothing_silently() -> Result<()> {
    let mut scene = Scene::new("cluster-migration", |_| {}).await?;
    let load = Load::start(&scene, false);
    let first = scene.redis.primary_of(CHANNEL_KEY).await?;
    let second = (first + 1) % 3;
    scene.redis.migrate(CHANNEL_KEY, second).await?;
    scene
        .redis
        .migrate("global", (scene.redis.primary_of("global").await? + 1) % 3)
        .await?;
    scene.relays().await?;
    // To a server that is new.
    let third = scene
        .redis
        .add(loopback::own(), scene.scratch.path())
        .await?;
    scene.redis.migrate(CHANNEL_KEY, third).await?;
    scene.follows(third).await?;
    scene.relays().await?;
    scene.redis.migrate(CHANNEL_KEY, first).await?;
    load.end(4).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_slot_is_on_its_way_publications_are_heard() -> Result<()> {
    let scene = Scene::new("cluster-open-slot", |_| {}).await?;
    let node = scene.nodes[0].address;
    let body = |word: &str| json!({ "channel": CHANNEL, "data": word });
    publish_until_acknowledged(&[node], &body("first")).await?;
    let mut client = WebSocket::open(scene.nodes[1].address, "/connection/websocket").await?;
    client.send(r#"{"id":1,"connect":{}}"#).await?;
    client
        .send(&json!({ "id": 2, "subscribe": { "channel": CHANNEL } }).to_string())
        .await?;
    reads(&mut client, r#""id":2"#).await?;
    let from = scene.redis.primary_of(CHANNEL_KEY).await?;
    let to = (from + 1) % 3;
    let slot = scene.redis.open_slot(CHANNEL_KEY, to).await?;
    publish_until_acknowledged(&[node], &body("before the keys")).await?;
    reads(&mut client, "before the keys").await?;
    scene.redis.move_keys(&slot, from, to).await?;
    // The keys are there, and subscribers are still here.
    publish_until_acknowledged(&[node], &body("behind the keys")).await?;
    wait::until("it to be heard, or told", wait::SOON, async || {
        let text = time::timeout(Duration::from_millis(500), client.text()).await;
        let text = text.ok()?.ok()?;
        (text.contains("behind the keys") || text.contains("unsubscribe")).then_some(())
    })
    .await?;
    scene.redis.close_slot(&slot, from, to).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_of_the_cluster_are_replaced_and_relays_may_travel_classically() -> Result<()> {
    let scratch = Scratch::new("cluster-announce")?;
    let host = loopback::own();
    let redis = RedisCluster::start(host, scratch.path(), 1, 0).await?;
    let real = redis.servers[0].address();
    // Nothing listens where the cluster says that it is.
    let server = &redis.servers[0];
    let wrong = loopback::own().to_string();
    let said = server
        .cli(&["CONFIG", "SET", "cluster-announce-ip", &wrong])
        .await?;
    ensure!(said == "OK", "it does not announce another address: {said}");
    let named = format!("{wrong}:{}", real.port());
    wait::until("the other address", wait::SOON, async || {
        let said = server.cli(&["CLUSTER", "NODES"]).await.ok()?;
        said.contains(&named).then_some(())
    })
    .await?;
    let mut cluster = json!({ "servers": [real.to_string()], "relay_pubsub": "classic" });
    // The error names the setting that helps.
    let node = Node::start("n0", settings(cluster.clone())?, scratch.path()).await?;
    unready(&node, &named).await?;
    unready(&node, "`broker.cluster.announce`").await?;
    drop(node);
    cluster["announce"] = json!({ named: real.to_string() });
    let node = Node::start("n1", settings(cluster)?, scratch.path()).await?;
    node.ready().await?;
    let mut listener = WebSocket::open(node.address, "/ws").await?;
    hears(&mut listener, "hello", async || {
        server.cli(&["PUBLISH", "global", "hello"]).await.map(drop)
    })
    .await
}

#[tokio::test]
async fn a_server_that_is_no_cluster_and_slots_without_a_server_are_named() -> Result<()> {
    let scratch = Scratch::new("cluster-wrong")?;
    let plain = Redis::start(loopback::own(), scratch.path()).await?;
    let settings_of = |address: SocketAddr| settings(json!({ "servers": [address.to_string()] }));
    let node = Node::start("n1", settings_of(plain.address())?, scratch.path()).await?;
    unready(&node, "cluster support disabled").await?;

    let directory = scratch.path().join("cluster");
    let redis = RedisCluster::start(loopback::own(), &directory, 1, 0).await?;
    let server = &redis.servers[0];
    for setting in ["cluster-require-full-coverage", "no"].chunks(2) {
        server
            .cli(&["CONFIG", "SET", setting[0], setting[1]])
            .await?;
    }
    let slot = server.cli(&["CLUSTER", "KEYSLOT", "somewhere"]).await?;
    server.cli(&["CLUSTER", "DELSLOTS", &slot]).await?;
    let node = Node::start("n2", settings_of(server.address())?, scratch.path()).await?;
    unready(&node, "1 slots of the redis cluster have no server").await?;
    // The others are served.
    let mut listener = WebSocket::open(node.address, "/ws").await?;
    hears(&mut listener, "hello", async || {
        server.cli(&["SPUBLISH", "global", "hello"]).await.map(drop)
    })
    .await?;
    server.cli(&["CLUSTER", "ADDSLOTS", &slot]).await?;
    node.ready().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_their_values_and_what_they_do_are_known_to_all_nodes() -> Result<()> {
    const EVENTS: &str = "causeway:{lc}:events";
    let scratch = Scratch::new("cluster-users")?;
    let redis = RedisCluster::start(loopback::own(), scratch.path(), 3, 0).await?;
    // With no more rights than are documented.
    let rights = documented_rights()?;
    let rights: Vec<&str> = rights.iter().map(String::as_str).collect();
    for server in &redis.servers {
        let said = server.cli(&rights).await?;
        ensure!(said == "OK", "a server rejects the rights: {said}");
    }
    let mut cluster = redis.settings();
    cluster["user"] = json!("causeway");
    cluster["password"] = json!("secret");
    let key = json!({ "algorithm": "HS256", "key": SECRET });
    let mut nodes = Vec::new();
    for id in ["n1", "n2"] {
        let settings = settings(cluster.clone())?
            .with("auth", json!({ "keys": [key] }))
            .with("channels.limits", json!({ "connections_per_user": 2 }))
            .with(
                "lifecycle",
                json!({ "connections": true, "coalesce": "0s" }),
            );
        nodes.push(Node::start(id, settings, scratch.path()).await?);
    }
    for node in &nodes {
        node.ready().await?;
    }
    let [first, second] = [nodes[0].address, nodes[1].address];
    // Of different users, whose entries are in different slots.
    let users: Vec<String> = (0..6).map(|number| format!("user {number}")).collect();
    let token = |user: &str| subscriber::token(SECRET, user);
    let mut clients = Vec::new();
    for user in &users {
        for node in [first, second] {
            let mut client = Subscriber::connect(node, &token(user)).await?;
            client.subscribe("p:all").await?;
            clients.push((user, client));
        }
    }
    let stats = json!({ "channel": "p:all" });
    present(second, &stats, clients.len()).await?;
    // A node refuses what is too much for a user there.
    let _more = Subscriber::connect(first, &token(&users[0])).await?;
    let too_many = Subscriber::connect(first, &token(&users[0])).await;
    ensure!(too_many.is_err(), "one too many");

    // Session values.
    for user in &users {
        let put = json!({ "user": user, "name": "of", "value": user, "ttl": 60 });
        server_api::call(first, KEY, "value_put", &put).await?;
    }
    for user in &users {
        let get = json!({ "user": user, "name": "of" });
        let found = server_api::call(second, KEY, "value_get", &get).await?;
        ensure!(found["value"] == *user, "{found}");
    }

    // Whichever node is asked, and whichever has the clients.
    for (user, node) in users
        .iter()
        .zip([first, second].into_iter().cycle())
        .take(4)
    {
        server_api::call(node, KEY, "disconnect", &json!({ "user": user })).await?;
    }
    for (user, client) in &mut clients {
        if users[..4].contains(user) {
            let code = client.close_code().await?;
            ensure!(code == Some(3503), "{user}: {code:?}");
        }
    }
    present(second, &stats, 4).await?;

    // What a killed node held is told by the other one, which sweeps its lease.
    let events = async |kind: &str, wanted: usize| {
        wait::until(&format!("{wanted} {kind}"), wait::SOON, async || {
            let server = &redis.servers[redis.primary_of(EVENTS).await.ok()?];
            let events = server.cli(&["XRANGE", EVENTS, "-", "+"]).await.ok()?;
            let count = events.lines().filter(|line| *line == kind).count();
            (count == wanted).then_some(())
        })
        .await
    };
    events("connected", 13).await?;
    nodes[0].kill().await?;
    events("disconnected", 11).await?;
    present(second, &stats, 2).await?;
    wait::until("one node", wait::SOON, async || {
        let info = server_api::call(second, KEY, "info", &json!({})).await;
        (info.ok()?["nodes"].as_array()?.len() == 1).then_some(())
    })
    .await
}

/// The user of `conf/node.yaml`, with what it needs besides in a cluster.
fn documented_rights() -> Result<Vec<String>> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../conf/node.yaml");
    let text = std::fs::read_to_string(file)?;
    let lines = text.lines().map(str::trim);
    let alone = lines.clone().filter_map(|line| line.strip_prefix("#   | "));
    let besides = lines.filter_map(|line| line.strip_prefix("# Rights besides those above: "));
    let besides = besides.filter(|rights| rights.contains("+ssubscribe"));
    let words = alone.chain(besides).flat_map(str::split_whitespace);
    let words: Vec<String> = words.map(str::to_owned).collect();
    let is_whole = words.iter().any(|word| word == "SETUSER")
        && words.iter().any(|word| word == "+ssubscribe");
    ensure!(is_whole, "the file has the rights: {words:?}");
    Ok(words)
}

/// Waits until so many clients are present, as `node` knows it.
async fn present(node: SocketAddr, channel: &Value, count: usize) -> Result<()> {
    wait::until(&format!("{count} present"), wait::SOON, async || {
        let stats = server_api::call(node, KEY, "presence_stats", channel).await;
        (stats.ok()?["num_clients"] == count).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_gone_takes_nothing_but_its_slots_along() -> Result<()> {
    let scratch = Scratch::new("cluster-gone")?;
    let mut redis = RedisCluster::start(loopback::own(), scratch.path(), 3, 0).await?;
    for server in &redis.servers {
        for setting in [
            "cluster-require-full-coverage",
            "cluster-allow-pubsubshard-when-down",
        ] {
            let value = if setting.ends_with("coverage") {
                "no"
            } else {
                "yes"
            };
            server.cli(&["CONFIG", "SET", setting, value]).await?;
        }
    }
    let mut cluster = redis.settings();
    cluster["unready_when_partial"] = json!(false);
    let node = Node::start(
        "n1",
        settings(cluster)?.with("broker.publish_queue_wait", json!("1s")),
        scratch.path(),
    )
    .await?;
    node.ready().await?;
    // The registry has to stay.
    let registry = redis.primary_of("causeway:{no}:live").await?;
    let gone = (registry + 1) % 3;
    let mut channels = [None, None];
    for number in 0.. {
        let name = format!("c:{number}");
        let has_it = redis.primary_of(&format!("{{{name}}}")).await?;
        channels[usize::from(has_it == gone)].get_or_insert(name);
        if channels.iter().all(Option::is_some) {
            break;
        }
    }
    let [lives, dies] = channels.map(Option::unwrap_or_default);
    let mut client = WebSocket::open(node.address, "/connection/websocket").await?;
    client.send(r#"{"id":1,"connect":{}}"#).await?;
    for (id, channel) in [(2, &lives), (3, &dies)] {
        let subscribe = json!({ "id": id, "subscribe": { "channel": channel } });
        client.send(&subscribe.to_string()).await?;
        reads(&mut client, &format!(r#""id":{id}"#)).await?;
    }
    let publish = async |channel: &str, data: &str| {
        let body = json!({ "channel": channel, "data": data });
        server_api::call(node.address, KEY, "publish", &body).await
    };
    publish(&dies, "before").await?;
    reads(&mut client, "before").await?;

    redis.servers[gone].kill().await?;
    let refused = publish(&dies, "meanwhile").await;
    ensure!(refused.is_err(), "nobody has taken it: {refused:?}");
    publish(&lives, "meanwhile").await?;
    reads(&mut client, "meanwhile").await?;
    node.ready().await?;

    // What it had is lost, and that is told: the client subscribes again.
    redis.servers[gone].restart().await?;
    redis.settled().await?;
    wait::until("the other channels again", wait::SOON, async || {
        publish(&dies, "after").await.ok()
    })
    .await?;
    let told = reads(&mut client, r#""unsubscribe""#).await;
    told.context("the loss is not told")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_edge_discovers_nodes_in_a_cluster_and_after_a_failover() -> Result<()> {
    let scene = Scene::new("cluster-discovery", |_| {}).await?;
    let discover = json!({ "cluster": scene.redis.settings(), "every": "200ms" });
    let pool = json!([{ "name": "nodes", "discover": discover }]);
    let settings_of_edge = edge::settings(&[]).with("pools", pool);
    let edge = Edge::start(&settings_of_edge, scene.scratch.path()).await?;
    for id in ["n1", "n2"] {
        edge.backend_in_state(id, "up").await?;
    }
    let second = scene.redis.fail_over("causeway:{no}:live").await?;
    scene.follows(second).await?;
    // What is new is found only where it is registered now.
    let settings = settings(scene.redis.settings())?;
    let third = Node::start("n3", settings, scene.scratch.path()).await?;
    third.ready().await?;
    edge.backend_in_state("n3", "up").await
}

/// How many clients, and channels of each, in the test of many channels.
const CLIENTS: usize = 20;
const CHANNELS_OF_EACH: usize = 1000;

/// A channel without a history.
fn plain_channel(client: usize, number: usize) -> String {
    format!("f:{client}-{number}")
}

/// Subscribes to all of its channels.
async fn subscribe_to_many(node: SocketAddr, client: usize) -> Result<Subscriber> {
    let mut subscriber = Subscriber::connect(node, "").await?;
    for number in 0..CHANNELS_OF_EACH {
        subscriber.subscribe(&plain_channel(client, number)).await?;
    }
    Ok(subscriber)
}

/// How many of these channels are subscribed to at a server.
async fn channels_of(redis: &RedisCluster, server: usize) -> Result<usize> {
    let listed = redis.servers[server]
        .cli(&["PUBSUB", "SHARDCHANNELS", "*f:*"])
        .await?;
    Ok(listed.lines().filter(|line| !line.is_empty()).count())
}

/// Publishes numbers to `channel`, one after the other, until told to stop; returns the last one.
async fn publish_numbers(
    node: SocketAddr,
    channel: String,
    stop: CancellationToken,
) -> Result<u64> {
    let mut number = 0;
    while !stop.is_cancelled() {
        number += 1;
        let body = json!({ "channel": channel, "data": number });
        server_api::call(node, KEY, "publish", &body).await?;
        time::sleep(PUBLISH_INTERVAL).await;
    }
    Ok(number)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_20_000_channels_those_of_a_failover_are_subscribed_again_while_others_are_heard()
-> Result<()> {
    let scene = Scene::new("cluster-many-channels", |_| {}).await?;
    let limits = json!({ "channels_per_client": CHANNELS_OF_EACH });
    // The clients do not read, and so do not respond to pings, while others are still subscribing.
    let ping = json!({ "interval": "1h", "timeout": "1m" });
    let endpoint = json!({ "path": "/connection", "mode": "channels", "ping": ping });
    let settings = settings(scene.redis.settings())?
        .with("channels.limits", limits)
        .with("endpoints", json!([endpoint]));
    let node = Node::start("n3", settings, scene.scratch.path()).await?;
    node.ready().await?;
    let begin = (0..CLIENTS).map(|client| subscribe_to_many(node.address, client));
    let mut clients = futures_util::future::try_join_all(begin).await?;
    let first = scene.redis.primary_of(CHANNEL_KEY).await?;
    let count = channels_of(&scene.redis, first).await?;
    ensure!(
        CLIENTS * CHANNELS_OF_EACH / 4 < count,
        "only {count} channels are at the primary that is to be replaced"
    );

    // On another shard everything goes on.
    let mut numbers = 0..;
    let elsewhere = loop {
        let channel = format!("f:elsewhere-{}", numbers.next().context("a number")?);
        if scene.redis.primary_of(&channel).await? != first {
            break channel;
        }
    };
    let mut listener = Subscriber::connect(node.address, "").await?;
    listener.subscribe(&elsewhere).await?;
    let stop = CancellationToken::new();
    let publishing = publish_numbers(node.address, elsewhere.clone(), stop.clone());
    let mut publisher = JoinSet::new();
    publisher.spawn(publishing);
    let mut heard: JoinSet<Result<_>> = JoinSet::new();
    heard.spawn(async move {
        let (mut last, mut longest, mut at) = (0, Duration::ZERO, time::Instant::now());
        loop {
            let data = listener.push("pub").await?["pub"]["data"].take();
            if data == "end" {
                return Ok((last, longest));
            }
            let number: u64 = data.as_u64().context("a number")?;
            ensure!(number == last + 1, "{number} after {last}");
            last = number;
            longest = longest.max(at.elapsed());
            at = time::Instant::now();
        }
    });

    let second = scene.redis.fail_over(CHANNEL_KEY).await?;
    let replaced_at = time::Instant::now();
    wait::until(
        "all channels to be subscribed again",
        wait::SOON,
        async || {
            let subscribed = channels_of(&scene.redis, second).await.ok()?;
            (count <= subscribed).then_some(())
        },
    )
    .await?;
    let took = replaced_at.elapsed();

    // Each channel is heard, by those at the new primary too.
    let all = (0..CLIENTS)
        .flat_map(|client| (0..CHANNELS_OF_EACH).map(move |number| plain_channel(client, number)));
    let all: Vec<_> = all.collect();
    for channels in all.chunks(500) {
        let body = json!({ "channels": channels, "data": "again" });
        server_api::call(node.address, KEY, "broadcast", &body).await?;
    }
    for client in &mut clients {
        let mut heard = HashSet::new();
        while heard.len() < CHANNELS_OF_EACH {
            heard.insert(client.push("pub").await?["channel"].to_string());
        }
    }
    stop.cancel();
    let published = publisher.join_next().await.context("the publisher")???;
    let end = json!({ "channel": elsewhere, "data": "end" });
    server_api::call(node.address, KEY, "publish", &end).await?;
    let (last, longest) = heard.join_next().await.context("the listener")???;
    assert_eq!(last, published, "another shard has lost some");
    eprintln!(
        "{count} channels subscribed again after {took:?}; longest pause of another shard {longest:?}"
    );
    Ok(())
}

/// Waits until `node` is not ready, and says `why`.
async fn unready(node: &Node, why: &str) -> Result<()> {
    wait::until(&format!("`{why}`"), wait::SOON, async || {
        let response = http::get(node.admin, "/ready").await.ok()?;
        response.text().contains(why).then_some(())
    })
    .await
}
