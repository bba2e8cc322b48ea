//! A Redis that is full, that evicts, that is loading, or that allows too little; and two nodes that take themselves for one.

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    cluster::{Cluster, ClusterConfig},
    http, loopback,
    node::{self, Node},
    redis::Redis,
    scratch::Scratch,
    server_api,
    settings::Settings,
    subscriber::{Subscriber, token},
    wait,
};
use serde_json::{Value, json};

const KEY: &str = "the key of the application";
const SECRET: &str = "a secret of at least thirty-two bytes";
const CHANNEL: &str = "chat:a";

fn channels(settings: Settings) -> Settings {
    // Clients that do not read respond to no ping.
    let ping = json!({ "interval": "1h", "timeout": "1m" });
    settings
        .with(
            "endpoints",
            json!([{ "path": "/connection", "mode": "channels", "ping": ping }]),
        )
        .with(
            "channels.namespaces",
            json!([{
                "name": "chat", "subscribe": "anyone", "presence": true, "recovery": true,
                "history": { "size": 10, "lifetime": "1h" },
            }]),
        )
        .with(
            "auth.keys",
            json!([{ "algorithm": "HS256", "key": SECRET }]),
        )
        .with("api.keys", json!([KEY]))
        .with("registry", json!({ "renew": "250ms", "lease": "1s" }))
}

async fn two_nodes(name: &str, settings: fn(Settings) -> Settings) -> Result<Cluster> {
    let config = ClusterConfig {
        nodes: 2,
        node_settings: settings,
        ..ClusterConfig::three_nodes()
    };
    Cluster::start(name, config).await
}

/// Status and body of `/ready`, once `wanted` says so.
async fn ready_says(node: &Node, wanted: impl Fn(u16, &str) -> bool) -> Result<()> {
    let mut last = None;
    let said = wait::until("the word of /ready", wait::SOON, async || {
        let response = http::get(node.address, "/ready").await.ok()?;
        let is_wanted = wanted(response.status, &response.text());
        last = Some((response.status, response.text()));
        is_wanted.then_some(())
    })
    .await;
    said.with_context(|| format!("it says {last:?}"))
}

/// The message of the error of a method.
async fn error(node: &Node, method: &str, body: &Value) -> Option<String> {
    let called = server_api::call(node.address, KEY, method, body).await;
    called.err().map(|error| format!("{error:#}"))
}

#[tokio::test]
async fn a_ban_that_a_full_redis_keeps_from_happening_is_an_error() -> Result<()> {
    let cluster = two_nodes("redis-full", channels).await?;
    let [first, second] = cluster.nodes.as_slice() else {
        unreachable!("there are two")
    };
    let mut ann = Subscriber::connect(first.address, &token(SECRET, "ann")).await?;
    ann.subscribe(CHANNEL).await?;
    let redis = &cluster.redis;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]).await?;
    for node in [first, second] {
        ready_says(node, |status, text| {
            status == 200 && text.contains("ready, but redis is full")
        })
        .await?;
    }
    // With leases that are not renewed nobody would be anywhere after a second.
    let methods = [
        ("disconnect", json!({ "user": "ann" })),
        ("unsubscribe", json!({ "user": "ann", "channel": CHANNEL })),
        ("subscribe", json!({ "user": "ann", "channel": "chat:b" })),
        ("presence", json!({ "channel": CHANNEL })),
        ("presence_stats", json!({ "channel": CHANNEL })),
        ("info", json!({})),
        ("publish", json!({ "channel": CHANNEL, "data": 1 })),
    ];
    for (method, body) in &methods {
        let refused = error(second, method, body).await;
        let why = refused.with_context(|| format!("{method} reports success"))?;
        let is_said = why.contains("redis is full") || why.contains("OOM");
        assert!(is_said, "{method}: {why}");
    }
    let metrics = http::get(second.admin, "/metrics").await?.text();
    assert!(metrics.contains("causeway_node_redis_full 1"), "{metrics}");
    assert!(
        metrics.contains("causeway_node_registry_ready 0"),
        "{metrics}"
    );

    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]).await?;
    for node in [first, second] {
        ready_says(node, |status, text| (status, text) == (200, "ready\n")).await?;
    }
    let ban = json!({ "user": "ann" });
    wait::until("the ban to be taken", wait::SOON, async || {
        error(second, "disconnect", &ban)
            .await
            .is_none()
            .then_some(())
    })
    .await?;
    ann.close_code().await?;
    Ok(())
}

#[tokio::test]
async fn a_full_redis_takes_nodes_out_where_a_setting_says_so() -> Result<()> {
    let cluster = two_nodes("redis-full-unready", |settings| {
        channels(settings).with("broker.unready_when_full", json!(true))
    })
    .await?;
    let redis = &cluster.redis;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]).await?;
    for node in &cluster.nodes {
        ready_says(node, |status, text| {
            status == 503 && text.starts_with("redis is full")
        })
        .await?;
    }
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]).await?;
    for node in &cluster.nodes {
        node.ready().await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_redis_evicts_is_written_again_and_its_policy_is_warned_about() -> Result<()> {
    let cluster = two_nodes("redis-evicts", channels).await?;
    let [first, second] = cluster.nodes.as_slice() else {
        unreachable!("there are two")
    };
    let mut clients = Vec::new();
    for number in 0..20 {
        let user = format!("user {number}");
        let mut client = Subscriber::connect(first.address, &token(SECRET, &user)).await?;
        client.subscribe(&format!("chat:{number}")).await?;
        clients.push(client);
    }
    // Every key, one by one, as if Redis had chosen it, and then some that it does choose.
    let redis = &cluster.redis;
    let junk = "for number = 1, 500 do \
                redis.call('SET', 'junk ' .. number, string.rep('x', 1000), 'EX', 1000) end";
    redis.cli(&["EVAL", junk, "0"]).await?;
    for pattern in ["causeway:pr:*", "causeway:us:*", "causeway:ix:*"] {
        let keys = redis.cli(&["--scan", "--pattern", pattern]).await?;
        for key in keys.lines() {
            redis.cli(&["DEL", key]).await?;
        }
    }
    let used = redis.cli(&["INFO", "memory"]).await?;
    let used = used
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"));
    let used: u64 = used.context("it says so")?.trim().parse()?;
    let less = (used - 100_000).to_string();
    redis
        .cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"])
        .await?;
    redis.cli(&["CONFIG", "SET", "maxmemory", &less]).await?;
    wait::until("evictions", wait::SOON, async || {
        let stats = redis.cli(&["INFO", "stats"]).await.ok()?;
        (!stats.contains("evicted_keys:0")).then_some(())
    })
    .await?;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1gb"]).await?;
    for (number, client) in clients.iter_mut().enumerate() {
        let ask = json!({ "channel": format!("chat:{number}") });
        let what = format!("the member of chat:{number}");
        wait::until(&what, wait::SOON, async || {
            let list = server_api::call(second.address, KEY, "presence", &ask).await;
            (list.ok()?["presence"].as_object()?.len() == 1).then_some(())
        })
        .await?;
        let ban = json!({ "user": format!("user {number}") });
        server_api::call(second.address, KEY, "disconnect", &ban).await?;
        client.close_code().await?;
    }
    wait::until("a warning", wait::SOON, async || {
        let log = second.process.log();
        let warns =
            log.contains("allkeys-lru") && log.contains("set maxmemory-policy to noeviction");
        warns.then_some(())
    })
    .await
}

#[tokio::test]
async fn publications_wait_for_a_redis_that_loads_its_data_set() -> Result<()> {
    let cluster = two_nodes("redis-loads", |settings| {
        channels(settings).with("broker.publish_queue_wait", json!("30s"))
    })
    .await?;
    let [first, second] = cluster.nodes.as_slice() else {
        unreachable!("there are two")
    };
    let mut ann = Subscriber::connect(second.address, &token(SECRET, "ann")).await?;
    ann.subscribe(CHANNEL).await?;

    // Some seconds of loading, in which Redis replies LOADING to nearly everything, also over connections that are new.
    let redis = &cluster.redis;
    redis
        .cli(&["CONFIG", "SET", "key-load-delay", "2000"])
        .await?;
    let interval = "loading-process-events-interval-bytes";
    redis.cli(&["CONFIG", "SET", interval, "1024"]).await?;
    redis
        .cli(&["DEBUG", "POPULATE", "1500", "filler", "1024"])
        .await?;
    let reload = redis.cli(&["DEBUG", "RELOAD"]);
    let publish = async {
        wait::until("redis to load", wait::SOON, async || {
            let said = redis.cli(&["PING"]).await.ok()?;
            said.starts_with("LOADING").then_some(())
        })
        .await?;
        let mut number = 0_u64;
        loop {
            let body = json!({ "channel": CHANNEL, "data": number });
            server_api::call(first.address, KEY, "publish", &body)
                .await
                .with_context(|| format!("publication {number}"))?;
            number += 1;
            if redis.cli(&["PING"]).await? == "PONG" {
                return anyhow::Ok(number);
            }
        }
    };
    let (reloaded, published) = tokio::join!(reload, publish);
    reloaded?;
    for number in 0..published? {
        let heard = ann.push("pub").await?;
        assert_eq!(heard["pub"]["data"], json!(number), "{heard}");
    }
    ready_says(first, |status, _| status == 200).await
}

#[tokio::test]
async fn a_node_whose_scripts_are_refused_is_not_ready_and_says_why() -> Result<()> {
    let scratch = Scratch::new("redis-rights")?;
    let redis = Redis::start(loopback::own(), scratch.path()).await?;
    let rights = [
        "ACL", "SETUSER", "node", "on", ">pw", "~*", "&*", "+@all", "-eval", "-evalsha",
    ];
    assert_eq!(redis.cli(&rights).await?, "OK");
    let url = format!("redis://node:pw@{}", redis.address());
    let settings = channels(node::settings_with_redis(&url));
    let node = Node::start("n1", settings, scratch.path()).await?;
    ready_says(&node, |status, text| {
        status == 503
            && text.contains("redis rejects commands that this node needs")
            && text.contains("eval")
    })
    .await?;
    redis
        .cli(&["ACL", "SETUSER", "node", "+eval", "+evalsha"])
        .await?;
    node.ready().await
}

#[tokio::test]
async fn two_nodes_with_one_id_say_so_loudly() -> Result<()> {
    let scratch = Scratch::new("redis-same-id")?;
    let redis = Redis::start(loopback::own(), scratch.path()).await?;
    let mut nodes = Vec::new();
    for folder in ["one", "two"] {
        let directory = scratch.path().join(folder);
        std::fs::create_dir_all(&directory)?;
        let settings = channels(node::settings_with_redis(&redis.url()));
        nodes.push(Node::start("n1", settings, &directory).await?);
    }
    for node in &nodes {
        wait::until("an error in the log", wait::SOON, async || {
            let log = node.process.log();
            let is_loud = log.contains("another node has this node's id") && log.contains("ERROR");
            is_loud.then_some(())
        })
        .await?;
    }
    Ok(())
}
