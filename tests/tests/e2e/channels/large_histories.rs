//! Channels that keep a million publications: whoever subscribes or comes back costs Redis a bounded read, and is told
//! plainly what cannot be recovered.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Error, Result, ensure};
use causeway_tests::harness::{
    node::{self, Node},
    redis::Redis,
    scratch::Scratch,
    server_api,
    subscriber::{self, Subscriber},
    wait,
};
use serde_json::{Value, json};

const KEY: &str = "a key that is long enough";
const SECRET: &str = "a secret that is long enough for HS256";

/// Publications that the channel keeps.
const KEPT: u64 = 600_000;

/// Bytes of each.
const DATA: usize = 100;

/// What Redis may write for a few clients, in bytes: less than a tenth of the stream.
const WRITTEN_MAX: u64 = 8 << 20;

/// What a recovery brings at most: the default of `channels.limits.recovery`.
const RECOVERY: u64 = 10_000;

#[tokio::test]
async fn a_large_history_keeps_nobody_from_subscribing_or_recovering() -> Result<()> {
    let scratch = Scratch::new("large-histories")?;
    let redis = Redis::start(Ipv4Addr::LOCALHOST, scratch.path()).await?;
    let broker = json!({ "kind": "redis", "url": redis.url(), "response_timeout": "300ms" });
    let settings = node::settings()
        .with("broker", broker)
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
            json!([{
                "name": "c", "subscribe": "anyone", "read_history": "anyone", "recovery": true,
                "history": { "size": 1_000_000, "lifetime": "1h" },
            }]),
        );
    let first = Node::start("first", settings.clone(), scratch.path()).await?;
    first.ready().await?;
    let publish = json!({ "channel": "c:x", "data": "x".repeat(DATA) });
    server_api::call(first.address, KEY, "publish", &publish).await?;
    fill(&redis).await?;

    // A node that has not heard the channel yet.
    let second = Node::start("second", settings, scratch.path()).await?;
    second.ready().await?;
    let written_before = written(&redis).await?;
    let token = subscriber::token(SECRET, "ann");
    let mut client = Subscriber::connect(second.address, &token).await?;
    let told = ask(&mut client, "subscribe", &json!({ "channel": "c:x" })).await?;
    ensure!(told["offset"] == KEPT, "subscribed at {told}");

    for (missed, is_recovered) in [
        (10, true),
        (RECOVERY, true),
        (RECOVERY + 1, false),
        (KEPT / 2, false),
    ] {
        let mut client = Subscriber::connect(second.address, &token).await?;
        let since = KEPT - missed;
        let recover = json!({
            "channel": "c:x", "recover": true, "epoch": told["epoch"], "offset": since,
        });
        let told = ask(&mut client, "subscribe", &recover).await?;
        ensure!(
            told["recovered"].as_bool().unwrap_or_default() == is_recovered,
            "{missed} publications were missed: {}",
            short(&told)
        );
        ensure!(told["was_recovering"] == true, "{}", short(&told));
        let offsets = told["publications"].as_array().into_iter().flatten();
        let offsets = offsets.filter_map(|publication| publication["offset"].as_u64());
        let up_to = if is_recovered { since } else { KEPT };
        ensure!(
            offsets.eq(up_to + 1..=KEPT),
            "{missed} publications were missed"
        );
    }

    let page = json!({ "channel": "c:x", "limit": 1_000_000, "since": { "epoch": told["epoch"], "offset": 7 } });
    let page = ask(&mut client, "history", &page).await?;
    let publications = page["publications"].as_array().context("a page")?;
    ensure!(publications.len() == 1000 && publications[0]["offset"] == 8);
    let written = written(&redis).await? - written_before;
    ensure!(written < WRITTEN_MAX, "Redis has written {written} bytes");
    Ok(())
}

/// Asks again while the error is temporary: on a busy machine Redis exceeds `response_timeout` now and then. If the node read the whole
/// stream, it would exceed it every time.
async fn ask(client: &mut Subscriber, command: &str, body: &Value) -> Result<Value> {
    wait::until(command, wait::SOON, async || {
        let result = client.ask(command, body.clone()).await;
        let is_temporary = |error: &Error| error.to_string().contains(r#""temporary":true"#);
        (!result.as_ref().is_err_and(is_temporary)).then_some(result)
    })
    .await?
}

/// Gives channel `c:x` as many publications as it keeps, like the one that it has.
async fn fill(redis: &Redis) -> Result<()> {
    let script = "local body = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][2][2]
        for offset = 2, ARGV[1] do redis.call('XADD', KEYS[1], offset .. '-0', 'p', body) end
        return redis.call('HSET', KEYS[2], 'offset', ARGV[1])";
    let keys = ["causeway:st:{c:x}", "causeway:me:{c:x}"];
    let kept = KEPT.to_string();
    let filled = redis
        .cli(&["EVAL", script, "2", keys[0], keys[1], &kept])
        .await?;
    ensure!(filled == "0", "cannot fill the stream: {filled}");
    Ok(())
}

/// What Redis has written to all its clients, in bytes.
async fn written(redis: &Redis) -> Result<u64> {
    let stats = redis.cli(&["INFO", "stats"]).await?;
    let mut lines = stats.lines();
    let found = lines.find_map(|line| line.trim().strip_prefix("total_net_output_bytes:"));
    found
        .context("Redis counts its output")?
        .parse()
        .context("a number")
}

/// A reply without its publications.
fn short(told: &Value) -> Value {
    let mut told = told.clone();
    told["publications"] = Value::Null;
    told
}
