//! A channel client of one node continues on another while its connection stays open: nothing is lost, repeated or out of
//! order, nobody is told that it has left or joined, and commands of the application reach it at every moment.

use std::{
    collections::{BTreeMap, HashMap},
    future::ready,
    net::SocketAddr,
    pin::pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    channels::{Channels, Codec},
    cluster::{Cluster, ClusterConfig},
    edge::{self, Edge, Program},
    http, loopback,
    node::{self, Node},
    redis::Redis,
    redis_cluster::RedisCluster,
    scratch::Scratch,
    sentinel::{Watched, WatchedConfig},
    server_api,
    settings::Settings,
    subscriber::{Subscriber, token},
    wait,
    websocket::WebSocket,
};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_tungstenite::tungstenite::Message;

use super::lifecycle::stored;

const DEADLINE: Duration = Duration::from_secs(60);
const KEY: &str = "the key of the application";
const SECRET: &str = "a secret of at least thirty-two bytes";
const PATH: &str = "/connection/websocket";

/// How often each publisher publishes.
const PACE: Duration = Duration::from_millis(3);

/// With a history and without, and with presence whose changes are told.
const CHANNELS: [&str; 3] = ["past:1", "live:1", "room:1"];

fn channels(settings: Settings) -> Settings {
    let history = json!({ "size": 10_000, "lifetime": "1h" });
    settings
        .with("trusted_proxies", json!(["127.0.0.0/8"]))
        .with(
            "endpoints",
            json!([
                { "path": "/connection", "mode": "channels", "allowed_origins": ["*"] },
                { "path": "/ws", "protocol": "websocket", "allowed_origins": ["*"] },
            ]),
        )
        .with(
            "channels.namespaces",
            json!([
                {
                    "name": "past", "subscribe": "anyone", "publish": "authenticated", "history": history,
                    "recovery": true,
                },
                { "name": "live", "subscribe": "anyone", "publish": "authenticated" },
                {
                    "name": "room", "subscribe": "anyone", "publish": "authenticated", "presence": true,
                    "join_leave": true,
                },
            ]),
        )
        .with("auth.keys", json!([{ "algorithm": "HS256", "key": SECRET }]))
        .with("api.keys", json!([KEY]))
}

async fn start(name: &str, nodes: usize) -> Result<Cluster> {
    let config = ClusterConfig {
        nodes,
        node_settings: channels,
        ..ClusterConfig::three_nodes()
    };
    Cluster::start(name, config).await
}

fn channels_with_events(settings: Settings) -> Settings {
    let namespace = json!({ "name": "own", "subscribe": "anyone", "lifecycle": true });
    channels(settings)
        .with(
            "lifecycle",
            json!({ "connections": true, "coalesce": "0s" }),
        )
        .with(
            "channels",
            json!({ "linger": "0s", "namespaces": [namespace] }),
        )
}

/// Two nodes on two Redis servers, which share the channels, and the second server.
async fn start_on_two_servers(name: &str) -> Result<(Cluster, Redis)> {
    let scratch = Scratch::new(name)?;
    let servers = [scratch.path().join("one"), scratch.path().join("two")];
    for server in &servers {
        std::fs::create_dir(server)?;
    }
    let redis = Redis::start(loopback::own(), &servers[0]).await?;
    let second = Redis::start(loopback::own(), &servers[1]).await?;
    let broker = json!({ "kind": "redis", "urls": [redis.url(), second.url()] });
    let (edge, nodes) = start_two(&broker, &scratch).await?;
    let cluster = Cluster {
        edge,
        nodes,
        redis,
        scratch,
    };
    Ok((cluster, second))
}

/// Two nodes with this broker, and the edge in front of them.
async fn start_two(broker: &Value, scratch: &Scratch) -> Result<(Edge, Vec<Node>)> {
    let mut nodes = Vec::new();
    for id in ["n1", "n2"] {
        let settings = node::settings()
            .with("broker", broker.clone())
            .with("listen", json!(loopback::own_any_port()));
        nodes.push(Node::start(id, channels(settings), scratch.path()).await?);
    }
    for node in &nodes {
        node.ready().await?;
    }
    let backends: Vec<_> = nodes
        .iter()
        .map(|node| (node.id.as_str(), node.address))
        .collect();
    let edge = Edge::start_in(Program::Edge, &edge::settings(&backends), scratch.path()).await?;
    for node in &nodes {
        edge.backend_in_state(&node.id, "up").await?;
    }
    Ok((edge, nodes))
}

/// How many tunnels the edge has moved.
async fn moved(edge: &Edge) -> Result<usize> {
    let metrics = http::get(edge.admin, "/metrics").await?.text();
    let name = "causeway_proxy_handoffs_total{outcome=\"moved\"} ";
    let moved = metrics.lines().find_map(|line| line.strip_prefix(name));
    Ok(moved.unwrap_or("0").parse()?)
}

/// Restarts a node, whose clients are handed off meanwhile.
async fn restart(cluster: &mut Cluster, id: &str) -> Result<()> {
    let node = cluster.node(id);
    node.drain();
    let status = node.process.exit(DEADLINE).await?;
    ensure!(status.success(), "{id} ended with {status}");
    node.restart().await?;
    node.ready().await?;
    cluster.edge.backend_in_state(id, "up").await
}

/// What a client was sent.
#[derive(Default)]
struct Heard {
    /// Numbers by channel and publisher.
    numbers: HashMap<(String, String), Vec<u64>>,
    /// Offsets in the channel with a history.
    offsets: Vec<u64>,
    /// Joins by client.
    joins: HashMap<String, usize>,
    leaves: usize,
    ends: usize,
}

impl Heard {
    fn take(&mut self, push: &Value) -> Result<()> {
        let channel = push["channel"].as_str().unwrap_or_default();
        if let Some(publication) = push.get("pub") {
            if let Some(offset) = publication["offset"].as_u64() {
                self.offsets.push(offset);
            }
            let data = &publication["data"];
            let by = data["by"].as_str().context("a publisher")?;
            match data["n"].as_u64() {
                Some(number) => {
                    let key = (channel.to_owned(), by.to_owned());
                    self.numbers.entry(key).or_default().push(number);
                }
                None => self.ends += 1,
            }
        } else if let Some(join) = push.get("join") {
            let client = join["info"]["client"].as_str().context("a client")?;
            *self.joins.entry(client.to_owned()).or_default() += 1;
        } else if push.get("leave").is_some() {
            self.leaves += 1;
        } else {
            anyhow::bail!("an unexpected push: {push}");
        }
        Ok(())
    }

    fn check(&self, published: &BTreeMap<String, u64>) -> Result<()> {
        for channel in CHANNELS {
            for (by, count) in published {
                let key = (channel.to_owned(), by.clone());
                let numbers = self.numbers.get(&key).context("some of each")?;
                let first = *numbers.first().context("a number")?;
                let expected: Vec<u64> = (first..*count).collect();
                ensure!(
                    *numbers == expected,
                    "{channel} by {by}: {:?}",
                    gaps(numbers)
                );
            }
        }
        ensure!(gaps(&self.offsets).is_empty(), "{:?}", gaps(&self.offsets));
        ensure!(self.leaves == 0, "{} leaves are told", self.leaves);
        let again = self.joins.iter().find(|(_, count)| 1 < **count);
        ensure!(again.is_none(), "a join is told again: {again:?}");
        Ok(())
    }
}

/// Where numbers do not go on by one.
fn gaps(numbers: &[u64]) -> Vec<(u64, u64)> {
    let pairs = numbers.windows(2).map(|pair| (pair[0], pair[1]));
    pairs.filter(|(one, next)| one + 1 != *next).collect()
}

/// A raw client of the edge.
struct Client {
    socket: WebSocket,
    id: String,
    commands: u64,
    heard: Heard,
}

impl Client {
    async fn connect(edge: SocketAddr, user: &str) -> Result<Self> {
        let mut client = Self {
            socket: WebSocket::open(edge, PATH).await?,
            id: String::new(),
            commands: 0,
            heard: Heard::default(),
        };
        let token = json!({ "token": token(SECRET, user) });
        let reply = client.ask("connect", token).await?;
        let id = reply["connect"]["client"].as_str().context("an id")?;
        client.id = id.to_owned();
        Ok(client)
    }

    async fn subscribe(&mut self) -> Result<()> {
        for channel in CHANNELS {
            let request = json!({ "channel": channel, "join_leave": true });
            self.ask("subscribe", request).await?;
        }
        Ok(())
    }

    /// Sends a command and waits for its reply.
    async fn ask(&mut self, command: &str, request: Value) -> Result<Value> {
        self.commands += 1;
        let id = self.commands;
        let message = json!({ "id": id, command: request }).to_string();
        self.socket.send(&message).await?;
        loop {
            for reply in self.read().await? {
                if reply["id"] == id {
                    ensure!(reply["error"].is_null(), "{command}: {reply}");
                    return Ok(reply);
                }
            }
        }
    }

    /// The replies in the next message; its pushes are noted.
    async fn read(&mut self) -> Result<Vec<Value>> {
        let text = self.socket.text().await?;
        if text == "{}" {
            self.socket.send("{}").await?;
            return Ok(Vec::new());
        }
        let mut replies = Vec::new();
        for line in text.lines() {
            let reply: Value = serde_json::from_str(line)?;
            match reply.get("push") {
                Some(push) => self.heard.take(push)?,
                None => replies.push(reply),
            }
        }
        Ok(replies)
    }
}

/// Listens until it has heard so many ends.
async fn listen(
    number: usize,
    edge: SocketAddr,
    ends: usize,
    started: mpsc::Sender<()>,
) -> Result<Client> {
    let mut client = Client::connect(edge, &format!("user{}", number % 5)).await?;
    client.subscribe().await?;
    drop(started);
    while client.heard.ends < ends {
        client
            .read()
            .await
            .with_context(|| format!("client {number}"))?;
    }
    Ok(client)
}

/// Publishes numbers by a client of the edge, one after the other, until it is told to stop, and then the end.
async fn publish(
    by: String,
    edge: SocketAddr,
    stop: watch::Receiver<bool>,
) -> Result<(String, u64)> {
    let mut client = Client::connect(edge, &by).await?;
    let mut number = 0;
    let mut pace = tokio::time::interval(PACE);
    while !*stop.borrow() {
        pace.tick().await;
        for channel in CHANNELS {
            let data = json!({ "by": by, "n": number });
            client
                .ask("publish", json!({ "channel": channel, "data": data }))
                .await?;
        }
        number += 1;
    }
    for channel in CHANNELS {
        let data = json!({ "by": by });
        client
            .ask("publish", json!({ "channel": channel, "data": data }))
            .await?;
    }
    Ok((by, number))
}

/// The same by the server API of the node that is named last.
async fn publish_by_api(
    node: watch::Receiver<SocketAddr>,
    stop: watch::Receiver<bool>,
) -> Result<(String, u64)> {
    let by = "api".to_owned();
    let mut number = 0;
    let mut pace = tokio::time::interval(PACE);
    while !*stop.borrow() {
        pace.tick().await;
        for channel in CHANNELS {
            let address = *node.borrow();
            let data = json!({ "by": by, "n": number });
            let request = json!({ "channel": channel, "data": data });
            server_api::call(address, KEY, "publish", &request).await?;
        }
        number += 1;
    }
    let address = *node.borrow();
    for channel in CHANNELS {
        let request = json!({ "channel": channel, "data": { "by": by } });
        server_api::call(address, KEY, "publish", &request).await?;
    }
    Ok((by, number))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_all_nodes_disconnects_no_channel_client() -> Result<()> {
    const CLIENTS: usize = 30;
    const PUBLISHERS: usize = 2;
    let mut cluster = start("channel-handoff-rolling", 3).await?;
    let edge = cluster.edge.address;
    let (stop, stopped) = watch::channel(false);
    let (node, current) = watch::channel(cluster.nodes[2].address);
    let ends = (PUBLISHERS + 1) * CHANNELS.len();
    let (started, mut have_started) = mpsc::channel(1);
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(listen(number, edge, ends, started.clone()));
    }
    drop(started);
    ensure!(have_started.recv().await.is_none(), "all have begun");
    let mut publishers = JoinSet::new();
    for number in 0..PUBLISHERS {
        publishers.spawn(publish(format!("p{number}"), edge, stopped.clone()));
    }
    publishers.spawn(publish_by_api(current, stopped));

    for number in 1..=3 {
        // What was asked of a node before it is told to stop is still served.
        node.send(cluster.nodes[number % 3].address)?;
        restart(&mut cluster, &format!("n{number}")).await?;
    }
    stop.send(true)?;
    let mut published = BTreeMap::new();
    while let Some(publisher) = publishers.join_next().await {
        let (by, count) = publisher??;
        published.insert(by, count);
    }
    let mut ids = Vec::new();
    let mut all = Vec::new();
    while let Some(client) = clients.join_next().await {
        let client = client??;
        client.heard.check(&published)?;
        ids.push(client.id.clone());
        all.push(client);
    }
    let moved = moved(&cluster.edge).await?;
    ensure!(CLIENTS < moved, "{moved} handoffs");

    // They are on the list still, and each is found by its user.
    let request = json!({ "channel": "room:1" });
    let listed = server_api::call(cluster.nodes[0].address, KEY, "presence", &request).await?;
    for id in &ids {
        ensure!(
            !listed["presence"][id].is_null(),
            "{id} is not listed: {listed}"
        );
    }
    for user in 0..5 {
        let request = json!({ "user": format!("user{user}") });
        server_api::call(cluster.nodes[user % 3].address, KEY, "disconnect", &request).await?;
    }
    for client in &mut all {
        let code = client.socket.close_code().await?;
        ensure!(code == Some(3503), "{code:?}");
    }
    eprintln!("{published:?} published, {moved} handoffs of {CLIENTS} clients");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_are_handed_off_have_one_beginning_and_one_end_in_the_lifecycle_events()
-> Result<()> {
    const CLIENTS: usize = 20;
    let config = ClusterConfig {
        nodes: 3,
        node_settings: channels_with_events,
        ..ClusterConfig::three_nodes()
    };
    let mut cluster = Cluster::start("channel-handoff-events", config).await?;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let user = format!("user{number}");
        let mut client = Client::connect(cluster.edge.address, &user).await?;
        // Each is alone in a channel, which nobody else keeps occupied.
        for channel in ["own:all".to_owned(), format!("own:{number}")] {
            client
                .ask("subscribe", json!({ "channel": channel }))
                .await?;
        }
        clients.push(client);
    }
    let begun = [("connected", CLIENTS), ("occupied", CLIENTS + 1)];
    stored(&cluster.redis, &begun).await?;
    for number in 1..=3 {
        restart(&mut cluster, &format!("n{number}")).await?;
    }
    let moved = moved(&cluster.edge).await?;
    ensure!(CLIENTS < moved, "{moved} handoffs");
    for client in &mut clients {
        let request = json!({ "channel": "own:all" });
        client.ask("unsubscribe", request).await?;
    }
    // Behind all events that a handoff could have had.
    stored(&cluster.redis, &[("vacated", 1)]).await?;
    let still = [("disconnected", 0), ("vacated", 1)];
    stored(&cluster.redis, &[begun, still].concat()).await?;
    drop(clients);
    let ended = [("disconnected", CLIENTS), ("vacated", CLIENTS + 1)];
    stored(&cluster.redis, &[begun, ended].concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_the_application_reach_clients_while_they_are_handed_off() -> Result<()> {
    const CLIENTS: usize = 24;
    let mut cluster = start("channel-handoff-commands", 2).await?;
    let edge = cluster.edge.address;
    let api = cluster.nodes[1].address;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = Subscriber::connect(edge, &token(SECRET, &format!("u{number}"))).await?;
        client.subscribe("live:1").await?;
        clients.push(client);
    }
    let mut commands = JoinSet::new();
    for number in 0..CLIENTS {
        commands.spawn(async move {
            let user = format!("u{number}");
            // At different moments of the drain.
            tokio::time::sleep(Duration::from_millis(40) * u32::try_from(number)?).await;
            let request = json!({ "user": user, "channel": "live:1" });
            let sent = server_api::call(api, KEY, "unsubscribe", &request).await;
            anyhow::Ok((number, sent.map(drop)))
        });
    }
    let node = cluster.node("n1");
    node.drain();
    let status = node.process.exit(DEADLINE).await?;
    ensure!(status.success(), "{status}");
    while let Some(command) = commands.join_next().await {
        let (number, sent) = command??;
        // An error says that it may not have arrived: the application sends it again.
        if sent.is_err() {
            let request = json!({ "user": format!("u{number}"), "channel": "live:1" });
            server_api::call(api, KEY, "unsubscribe", &request).await?;
        }
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let push = client.push("unsubscribe").await;
        push.with_context(|| format!("client {number}"))?;
    }
    // By its id too, which names the node that has gone.
    for client in &mut clients {
        let words = json!({ "code": 4000, "reason": "enough" });
        let request = json!({ "user": "", "client": client.id, "disconnect": words });
        server_api::call(api, KEY, "disconnect", &request).await?;
        ensure!(client.close_code().await? == Some(4000));
    }
    ensure!(0 < moved(&cluster.edge).await?, "none was handed off");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_on_several_servers_are_cut_on_each() -> Result<()> {
    let (mut cluster, _second) = start_on_two_servers("channel-handoff-servers").await?;
    are_cut_on_each(&cluster.edge, &mut cluster.nodes).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_and_relays_of_a_redis_cluster_are_cut_in_each_slot() -> Result<()> {
    let scratch = Scratch::new("channel-handoff-cluster")?;
    let redis = RedisCluster::start(loopback::own(), scratch.path(), 3, 0).await?;
    let broker = json!({ "kind": "redis", "cluster": redis.settings() });
    let (edge, mut nodes) = start_two(&broker, &scratch).await?;
    are_cut_on_each(&edge, &mut nodes).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_and_relays_behind_sentinels_are_cut() -> Result<()> {
    let scratch = Scratch::new("channel-handoff-sentinels")?;
    let watched = Watched::start(loopback::own(), scratch.path(), WatchedConfig::default()).await?;
    let broker = json!({ "kind": "redis", "sentinel": watched.settings() });
    let (edge, mut nodes) = start_two(&broker, &scratch).await?;
    are_cut_on_each(&edge, &mut nodes).await
}

/// Drains one node after the other under publications: every client of it gets all of them once, in order.
async fn are_cut_on_each(edge: &Edge, nodes: &mut [Node]) -> Result<()> {
    const CLIENTS: usize = 8;
    let channels: Vec<String> = (0..4)
        .flat_map(|number| [format!("past:{number}"), format!("live:{number}")])
        .collect();
    let mut clients = Vec::new();
    let mut listeners = Vec::new();
    for number in 0..CLIENTS {
        let mut client = Client::connect(edge.address, &format!("u{number}")).await?;
        for channel in &channels {
            client
                .ask("subscribe", json!({ "channel": channel }))
                .await?;
        }
        clients.push(client);
        listeners.push(WebSocket::open(edge.address, "/ws").await?);
    }
    let mut number = 0_u64;
    for (draining, other) in [(0, 1), (1, 0)] {
        let api = nodes[other].address;
        let mut speaker = WebSocket::open(api, "/ws").await?;
        nodes[draining].drain();
        let status = {
            let mut exit = pin!(nodes[draining].process.exit(DEADLINE));
            loop {
                tokio::select! {
                    biased;
                    status = &mut exit => break status?,
                    () = ready(()) => {}
                }
                for channel in &channels {
                    let data = json!({ "by": "api", "n": number });
                    let request = json!({ "channel": channel, "data": data });
                    server_api::call(api, KEY, "publish", &request).await?;
                }
                speaker.send(&number.to_string()).await?;
                number += 1;
            }
        };
        ensure!(status.success(), "{status}");
        // The next speaker's messages take another way.
        while speaker.text().await? != (number - 1).to_string() {}
        nodes[draining].restart().await?;
        nodes[draining].ready().await?;
        edge.backend_in_state(&nodes[draining].id, "up").await?;
    }
    for channel in &channels {
        let request = json!({ "channel": channel, "data": { "by": "api" } });
        server_api::call(nodes[0].address, KEY, "publish", &request).await?;
    }
    for client in &mut clients {
        while client.heard.ends < channels.len() {
            client.read().await?;
        }
        for channel in &channels {
            let key = (channel.clone(), "api".to_owned());
            let numbers = client.heard.numbers.get(&key).context("some of each")?;
            let expected: Vec<u64> = (0..number).collect();
            ensure!(*numbers == expected, "{channel}: {:?}", gaps(numbers));
        }
    }
    for listener in &mut listeners {
        for expected in 0..number {
            let text = listener.text().await?;
            ensure!(text == expected.to_string(), "{text:?}, not {expected}");
        }
    }
    let moved = moved(edge).await?;
    ensure!(2 * CLIENTS <= moved, "{moved} handoffs");
    Ok(())
}

#[tokio::test]
async fn tokens_of_clients_that_were_handed_off_expire_and_are_refreshed() -> Result<()> {
    let mut cluster = start("channel-handoff-tokens", 2).await?;
    let edge = cluster.edge.address;
    let mut clients = Vec::new();
    for user in ["kept", "expired", "kept", "expired", "kept", "expired"] {
        let client = Subscriber::connect(edge, &token(SECRET, user)).await?;
        clients.push((user, client));
    }
    // A client has 25 s after the expiry to send a newer token: five of them are left.
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let request = json!({ "user": "expired", "expire_at": now - 20 });
    server_api::call(cluster.nodes[1].address, KEY, "refresh", &request).await?;
    restart(&mut cluster, "n1").await?;
    for (user, client) in &mut clients {
        if *user == "expired" {
            let code = client.close_code().await?;
            ensure!(code == Some(3005), "{code:?}");
        } else {
            let token = json!({ "token": token(SECRET, user) });
            let refreshed = client.ask("refresh", token).await?;
            ensure!(refreshed["expires"] == true, "{refreshed}");
        }
    }
    ensure!(0 < moved(&cluster.edge).await?, "none was handed off");
    Ok(())
}

#[tokio::test]
async fn a_client_whose_channel_the_other_node_does_not_have_is_told_to_reconnect() -> Result<()> {
    let mut cluster = start("channel-handoff-namespaces", 2).await?;
    let other = cluster.node("n2");
    other.drain();
    ensure!(other.process.exit(DEADLINE).await?.success(), "n2");
    let mut with_room = Vec::new();
    let mut without = Vec::new();
    for number in 0..4 {
        let user = token(SECRET, &format!("user{number}"));
        let mut client = Subscriber::connect(cluster.edge.address, &user).await?;
        client.subscribe("past:1").await?;
        if number % 2 == 0 {
            client.subscribe("room:1").await?;
            with_room.push(client);
        } else {
            without.push(client);
        }
    }
    let history = json!({ "size": 10_000, "lifetime": "1h" });
    let past = json!({
        "name": "past", "subscribe": "anyone", "publish": "authenticated", "history": history, "recovery": true,
    });
    let other = cluster.node("n2");
    other
        .restart_with(|settings| settings.with("channels.namespaces", json!([past])))
        .await?;
    cluster.edge.backend_in_state("n2", "up").await?;
    let node = cluster.node("n1");
    node.drain();
    for client in &mut with_room {
        let code = client.close_code().await?;
        ensure!(code == Some(3001), "{code:?}");
    }
    ensure!(node.process.exit(DEADLINE).await?.success(), "n1");
    let request = json!({ "channel": "past:1", "data": "still here" });
    server_api::call(cluster.nodes[1].address, KEY, "publish", &request).await?;
    for client in &mut without {
        let push = client.push("pub").await?;
        ensure!(push["pub"]["data"] == "still here", "{push}");
    }
    ensure!(moved(&cluster.edge).await? == without.len());
    Ok(())
}

/// What became of a client: whether it heard the last publication, or was disconnected.
async fn fate(mut client: WebSocket) -> Result<bool> {
    loop {
        match client.message().await? {
            Some(Message::Text(text)) if text.as_str() == "{}" => client.send("{}").await?,
            Some(Message::Text(text)) if text.as_str().contains("the last one") => return Ok(true),
            Some(Message::Close(_)) | None => return Ok(false),
            Some(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_while_it_takes_clients_over_leaves_none_without_a_word() -> Result<()> {
    const CLIENTS: usize = 60;
    let mut cluster = start("channel-handoff-killed", 3).await?;
    let edge = cluster.edge.address;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = Client::connect(edge, &format!("user{number}")).await?;
        let request = json!({ "channel": "past:1" });
        client.ask("subscribe", request).await?;
        clients.push(client.socket);
    }
    cluster.node("n1").drain();
    wait::until("a client on its way", DEADLINE, async || {
        (0 < moved(&cluster.edge).await.ok()?).then_some(())
    })
    .await?;
    cluster.node("n2").kill().await?;
    let status = cluster.node("n1").process.exit(DEADLINE).await?;
    ensure!(status.success(), "n1 ended with {status}");
    let mut fates = JoinSet::new();
    for client in clients {
        fates.spawn(fate(client));
    }
    // Again and again: clients may still be on their way.
    let api = cluster.nodes[2].address;
    let request = json!({ "channel": "past:1", "data": "the last one" });
    let (mut heard, mut disconnected) = (0, 0);
    while !fates.is_empty() {
        server_api::call(api, KEY, "publish", &request).await?;
        while let Some(fate) = fates.try_join_next() {
            if fate?? {
                heard += 1;
            } else {
                disconnected += 1;
            }
        }
        tokio::task::yield_now().await;
    }
    // About a third were on the node that died, and as many on the one that has stayed all the time.
    ensure!(
        0 < heard && 0 < disconnected,
        "{heard} heard it, {disconnected} did not"
    );
    Ok(())
}

#[tokio::test]
async fn clients_of_the_sdk_notice_nothing() -> Result<()> {
    let mut cluster = start("channel-handoff-sdk", 2).await?;
    let mut clients = Channels::start(cluster.scratch.path())?;
    let url = format!("ws://{}{PATH}", cluster.edge.address);
    let names: Vec<String> = (0..8).map(|number| format!("c{number}")).collect();
    for (number, name) in names.iter().enumerate() {
        let codec = Codec::ALL[number / 2 % 2];
        let options = json!({ "token": token(SECRET, name) });
        clients.open(name, &url, codec, options).await?;
        for channel in CHANNELS {
            let subscribe = json!({ "channel": channel, "options": { "joinLeave": true } });
            clients.granted(name, "subscribe", subscribe).await?;
        }
    }
    let mut number = 0_usize;
    for id in ["n1", "n2", "n1"] {
        let other = if id == "n1" { 1 } else { 0 };
        let api = cluster.nodes[other].address;
        cluster.node(id).drain();
        let status = {
            let mut exit = pin!(cluster.node(id).process.exit(DEADLINE));
            loop {
                tokio::select! {
                    biased;
                    status = &mut exit => break status?,
                    () = ready(()) => {}
                }
                for channel in CHANNELS {
                    let request = json!({ "channel": channel, "data": number });
                    server_api::call(api, KEY, "publish", &request).await?;
                }
                number += 1;
            }
        };
        ensure!(status.success(), "{status}");
        cluster.node(id).restart().await?;
        cluster.node(id).ready().await?;
        cluster.edge.backend_in_state(id, "up").await?;
    }
    for name in &names {
        let expected = number * CHANNELS.len();
        wait::until("all publications", DEADLINE, async || {
            (expected <= clients.events(name, "publication").len()).then_some(())
        })
        .await
        .with_context(|| format!("{name}: {}", clients.events(name, "publication").len()))?;
        for channel in CHANNELS {
            let publications = clients.events(name, "publication");
            let numbers: Vec<_> = { publications.iter() }
                .filter(|one| one["channel"] == channel)
                .filter_map(|one| one["data"].as_u64())
                .collect();
            let expected: Vec<u64> = (0..number as u64).collect();
            ensure!(
                numbers == expected,
                "{name} {channel}: {:?}",
                gaps(&numbers)
            );
        }
        for event in ["disconnected", "unsubscribed", "leave", "error"] {
            let events = clients.events(name, event);
            ensure!(events.is_empty(), "{name}: {events:?}");
        }
        ensure!(
            clients.events(name, "connected").len() == 1,
            "{name} connected again"
        );
        // Each of the three subscriptions once.
        ensure!(clients.events(name, "subscribed").len() == CHANNELS.len());
    }
    let moved = moved(&cluster.edge).await?;
    ensure!(names.len() <= moved, "{moved} handoffs");
    Ok(())
}
