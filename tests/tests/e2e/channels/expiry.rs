//! The end of connections and subscriptions as npm centrifuge sees it: what a hook prolongs, stale tokens, and newer tokens
//! that say something else.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use causeway_tests::harness::{
    application::{Application, Question},
    channels::{Channels, Transport},
    node::{self, Node},
    scratch::Scratch,
    server_api,
    settings::Settings,
    subscriber::token_with,
    wait,
    websocket::WebSocket,
};
use serde_json::{Value, json};

const SECRET: &str = "a secret of at least thirty-two bytes";
const KEY: &str = "the key of the application";

/// How long the first grant of each kind holds, in seconds.
const BRIEF: i64 = 4;

/// In UNIX seconds, from now on.
fn after(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    i64::try_from(now).unwrap_or_default() + seconds
}

/// A token of the user `ann` that ends after so many seconds.
fn token(seconds: i64, mut more: Value) -> String {
    more["exp"] = json!(after(seconds));
    token_with(SECRET, "ann", more)
}

fn settings() -> Settings {
    node::settings()
        .with(
            "endpoints",
            json!([{ "path": "/connection", "mode": "channels" }]),
        )
        .with(
            "auth",
            json!({ "keys": [{ "algorithm": "HS256", "key": SECRET }], "leeway": "0s" }),
        )
        .with("api.keys", json!([KEY]))
        .with(
            "channels.namespaces",
            json!([
                { "name": "hooked", "subscribe": "hook", "publish": "subscribers" },
                { "name": "secret", "subscribe": "token" },
                { "name": "news", "subscribe": "nobody", "publish": "authenticated", "presence": true },
            ]),
        )
}

/// Runs `case` over each transport, all at a time: much of it is waiting for an end.
async fn everywhere(case: impl AsyncFn(Transport) -> Result<()>) -> Result<()> {
    let [first, second, third] = Transport::ALL;
    tokio::try_join!(case(first), case(second), case(third))?;
    Ok(())
}

/// Grants everything for a moment, again and again.
async fn grant_briefly(question: Question) -> Value {
    match question.hook.as_str() {
        "connect" => json!({ "result": { "user": "ann", "expire_at": after(BRIEF) } }),
        _ => json!({ "result": { "expire_at": after(BRIEF) } }),
    }
}

#[tokio::test]
async fn what_a_hook_prolongs_lives_on_in_an_sdk_that_has_no_tokens() -> Result<()> {
    let application = Application::start(grant_briefly).await?;
    let scratch = Scratch::new("expiry-hooks")?;
    let hooks = ["connect", "refresh", "subscribe", "sub_refresh"];
    let settings = hooks.into_iter().fold(settings(), |settings, hook| {
        settings.with(&format!("hooks.{hook}"), application.hook(hook))
    });
    let settings = settings.with("hooks.timeout", json!("30s"));
    let node = Node::start("n1", settings, scratch.path()).await?;
    let mut clients = Channels::start(scratch.path())?;
    let room = json!({ "channel": "hooked:room" });
    let names = Transport::ALL.map(|transport| format!("{transport:?}"));
    for (name, transport) in names.iter().zip(Transport::ALL) {
        clients
            .open_over(name, transport, node.address, json!({}))
            .await?;
        clients.granted(name, "subscribe", room.clone()).await?;
    }
    for hook in ["refresh", "sub_refresh"] {
        let what = format!("each client to be prolonged twice by {hook}");
        wait::until(&what, wait::SOON, async || {
            (3 * names.len() <= application.asked(hook).len()).then_some(())
        })
        .await?;
    }
    for name in &names {
        for event in ["disconnected", "unsubscribed", "error"] {
            let seen = clients.events(name, event);
            ensure!(seen.is_empty(), "{name}: {seen:?}");
        }
        ensure!(clients.events(name, "connecting").len() == 1, "{name}");
        let publish = json!({ "channel": "hooked:room", "data": 1 });
        clients.granted(name, "publish", publish).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_sdk_whose_connection_no_hook_prolongs_connects_anew() -> Result<()> {
    let application = Application::start(grant_briefly).await?;
    let scratch = Scratch::new("expiry-anew")?;
    let settings = settings().with("hooks.connect", application.hook("connect"));
    let node = Node::start("n1", settings, scratch.path()).await?;
    let mut clients = Channels::start(scratch.path())?;
    clients
        .open_over("ann", Transport::WebSocket, node.address, json!({}))
        .await?;
    clients.event("ann", "connected").await?;
    clients.event("ann", "connecting").await?;
    let again = clients.event("ann", "connecting").await?;
    ensure!(again["code"] == 3005, "{again}");
    clients.event("ann", "connected").await?;
    let seen = clients.events("ann", "error");
    ensure!(seen.is_empty(), "{seen:?}");
    // Whether an SDK asks for a token before the node closes is chance: so none is told of an end.
    let mut client = WebSocket::open(node.address, "/connection/websocket").await?;
    client.send(r#"{"id":1,"connect":{}}"#).await?;
    let reply = client.text().await?;
    ensure!(!reply.contains("expires"), "{reply}");
    Ok(())
}

#[tokio::test]
async fn after_a_stale_token_in_a_refresh_an_sdk_comes_back_with_a_newer_one() -> Result<()> {
    everywhere(shows_stale_tokens).await
}

async fn shows_stale_tokens(transport: Transport) -> Result<()> {
    let scratch = Scratch::new("expiry-stale")?;
    let node = Node::start("n1", settings(), scratch.path()).await?;
    let mut clients = Channels::start(scratch.path())?;
    let name = format!("{transport:?}");
    let options = json!({
        "token": token(BRIEF, json!({})),
        "tokens": [token(-60, json!({})), token(3600, json!({}))],
    });
    clients
        .open_over(&name, transport, node.address, options)
        .await?;
    clients.event(&name, "connected").await?;
    clients.event(&name, "connecting").await?;
    let again = clients.event(&name, "connecting").await?;
    ensure!(again["code"] == 3005, "{name}: {again}");
    clients.event(&name, "connected").await?;

    let room = |seconds| token(seconds, json!({ "channel": "secret:room" }));
    let options = json!({ "token": room(BRIEF), "tokens": [room(-60), room(3600)] });
    let order = json!({ "channel": "secret:room", "options": options });
    clients.granted(&name, "subscribe", order).await?;
    clients.event(&name, "subscribed").await?;
    let again = clients.event(&name, "connecting").await?;
    ensure!(again["code"] == 3006, "{name}: {again}");
    clients.event(&name, "subscribed").await?;
    for event in ["disconnected", "unsubscribed"] {
        let seen = clients.events(&name, event);
        ensure!(seen.is_empty(), "{name}: {seen:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_newer_token_changes_the_channels_that_came_with_the_connection() -> Result<()> {
    everywhere(changes_its_channels).await
}

async fn changes_its_channels(transport: Transport) -> Result<()> {
    let scratch = Scratch::new("expiry-channels")?;
    let node = Node::start("n1", settings(), scratch.path()).await?;
    let mut clients = Channels::start(scratch.path())?;
    let name = format!("{transport:?}");
    let place = |number| json!({ "info": { "place": number } });
    let before = json!({ "subs": { "news:gone": {}, "news:kept": place(1) } });
    let after = json!({ "subs": { "news:kept": place(2), "news:new": {} } });
    let options = json!({ "token": token(BRIEF, before), "tokens": [token(3600, after)] });
    let ann = clients
        .open_over(&name, transport, node.address, options)
        .await?;
    for channel in ["news:gone", "news:kept"] {
        let subscribed = clients.event(&name, "subscribed").await?;
        ensure!(subscribed["channel"] == channel, "{name}: {subscribed}");
    }
    let subscribed = clients.event(&name, "subscribed").await?;
    ensure!(subscribed["channel"] == "news:new", "{name}: {subscribed}");
    let unsubscribed = clients.event(&name, "unsubscribed").await?;
    ensure!(
        unsubscribed["channel"] == "news:gone",
        "{name}: {unsubscribed}"
    );
    for channel in ["news:gone", "news:new", "news:kept"] {
        let publish = json!({ "channel": channel, "data": channel });
        server_api::call(node.address, KEY, "publish", &publish).await?;
    }
    // Whatever is said in what is gone would be heard before what is said behind it.
    for channel in ["news:new", "news:kept"] {
        let heard = clients.event(&name, "publication").await?;
        ensure!(heard["data"] == channel, "{name}: {heard}");
    }
    let about = json!({ "channel": "news:kept" });
    let presence = server_api::call(node.address, KEY, "presence", &about).await?;
    let id = ann["client"].as_str().unwrap_or_default();
    let info = &presence["presence"][id]["chan_info"];
    ensure!(*info == json!({ "place": 2 }), "{name}: {presence}");
    ensure!(clients.events(&name, "connecting").len() == 1, "{name}");
    Ok(())
}

#[tokio::test]
async fn a_newer_token_that_has_a_channel_otherwise_brings_the_sdk_back() -> Result<()> {
    let scratch = Scratch::new("expiry-overrides")?;
    let node = Node::start("n1", settings(), scratch.path()).await?;
    let mut clients = Channels::start(scratch.path())?;
    let absent = json!({ "override": { "presence": { "value": false } } });
    let options = json!({
        "token": token(BRIEF, json!({ "channels": ["news:a"] })),
        "tokens": [token(3600, json!({ "subs": { "news:a": absent } }))],
    });
    clients
        .open_over("ann", Transport::WebSocket, node.address, options)
        .await?;
    clients.event("ann", "connected").await?;
    clients.event("ann", "connecting").await?;
    let again = clients.event("ann", "connecting").await?;
    ensure!(again["code"] == 3010, "{again}");
    clients.event("ann", "connected").await?;
    let about = json!({ "channel": "news:a" });
    let presence = server_api::call(node.address, KEY, "presence", &about).await?;
    ensure!(presence["presence"] == json!({}), "{presence}");
    Ok(())
}
