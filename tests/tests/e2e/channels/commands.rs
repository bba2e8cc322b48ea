//! The commands of one client, many at a time: how they are carried out side by side, in which order, and within which
//! limits. With npm centrifuge as it is, over each of its transports, where an SDK can do it.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use causeway_tests::harness::{
    application::{Application, Question},
    channels::{Channels, Codec, Transport},
    delayed::Delayed,
    memory,
    node::{self, Node},
    redis::Redis,
    scratch::Scratch,
    server_api,
    settings::Settings,
    subscriber::{token, token_with},
    wait,
    websocket::WebSocket,
};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::sync::{Barrier, Notify, watch};

const SECRET: &str = "a secret of at least thirty-two bytes";
const KEY: &str = "the key of the application";

/// How many commands of one client are under way at a time, unless the settings say otherwise.
const AT_A_TIME: usize = 16;

fn settings(base: Settings) -> Settings {
    base.with(
        "endpoints",
        json!([{ "path": "/connection", "mode": "channels" }]),
    )
    .with(
        "auth.keys",
        json!([{ "algorithm": "HS256", "key": SECRET }]),
    )
    .with("api.keys", json!([KEY]))
    .with(
        "channels.namespaces",
        json!([
            { "name": "hooked", "subscribe": "hook", "publish": "hook" },
            { "name": "open", "subscribe": "authenticated", "publish": "authenticated" },
            { "name": "secret", "subscribe": "token" },
            {
                "name": "room", "subscribe": "authenticated", "presence": true, "recovery": true,
                "history": { "size": 10, "lifetime": "1m" },
            },
        ]),
    )
    .with("hooks.timeout", json!("60s"))
}

fn subscribe_all(channels: impl Iterator<Item = String>) -> Value {
    let channels: BTreeMap<_, _> = channels.map(|channel| (channel, json!({}))).collect();
    json!({ "channels": channels })
}

/// How the SDK waits for a response when nobody tells it otherwise.
fn impatient() -> Value {
    json!({ "token": token(SECRET, "ann"), "timeout": 5_000 })
}

#[tokio::test]
async fn eighty_subscriptions_wait_for_a_hook_side_by_side_and_no_more_than_the_setting_says()
-> Result<()> {
    const CHANNELS: usize = 80;
    // The backend responds to none before so many are there.
    let (meeting, most) = (
        Arc::new(Barrier::new(AT_A_TIME)),
        Arc::new(AtomicUsize::new(0)),
    );
    let (met, counted, here) = (meeting, Arc::clone(&most), Arc::new(AtomicUsize::new(0)));
    let application = Application::start(move |_| {
        let (met, counted, here) = (Arc::clone(&met), Arc::clone(&counted), Arc::clone(&here));
        async move {
            let now = here.fetch_add(1, Ordering::SeqCst) + 1;
            counted.fetch_max(now, Ordering::SeqCst);
            met.wait().await;
            here.fetch_sub(1, Ordering::SeqCst);
            json!({ "result": {} })
        }
    })
    .await?;
    let scratch = Scratch::new("commands-hooks")?;
    let settings =
        settings(node::settings()).with("hooks.subscribe", application.hook("subscribe"));
    let node = Node::start("n1", settings, scratch.path()).await?;
    let mut clients = Channels::start(scratch.path())?;
    for (count, transport) in (1..).zip(Transport::ALL) {
        let name = format!("{transport:?}");
        clients
            .open_over(&name, transport, node.address, impatient())
            .await?;
        let channels = (0..CHANNELS).map(|number| format!("hooked:{number}"));
        clients
            .granted(&name, "subscribeAll", subscribe_all(channels))
            .await?;
        let errors = clients.events(&name, "error");
        ensure!(errors.is_empty(), "{name}: {errors:?}");
        let asked = application.asked("subscribe").len();
        ensure!(asked == count * CHANNELS, "{name}: {asked} questions");
        let most = most.load(Ordering::SeqCst);
        ensure!(most <= AT_A_TIME, "{name}: {most} questions at a time");
    }
    Ok(())
}

#[tokio::test]
async fn a_redis_that_is_far_away_keeps_no_sdk_from_its_250_channels() -> Result<()> {
    const CHANNELS: usize = 250;
    let scratch = Scratch::new("commands-redis")?;
    let redis = Redis::start(Ipv4Addr::LOCALHOST, scratch.path()).await?;
    // Four times as far, and four times as patient as an SDK is by default: the same, on a machine that is busy.
    let wire = Delayed::start(redis.address(), Duration::from_millis(20)).await?;
    let url = format!("redis://{}", wire.address);
    let settings = settings(node::settings_with_redis(&url))
        .with("channels.limits.channels_per_client", json!(2 * CHANNELS));
    let node = Node::start("n1", settings, scratch.path()).await?;
    node.ready().await?;
    let mut clients = Channels::start(scratch.path())?;
    // Some that it hears without asking, and some that it asks for.
    let channels: Vec<_> = (0..CHANNELS)
        .map(|number| format!("room:server-{number}"))
        .collect();
    let token = token_with(SECRET, "ann", json!({ "channels": channels }));
    let options = json!({ "token": token, "timeout": 20_000 });
    clients
        .open_over("ann", Transport::WebSocket, node.address, options)
        .await?;
    let channels = (0..CHANNELS).map(|number| format!("room:client-{number}"));
    clients
        .granted("ann", "subscribeAll", subscribe_all(channels))
        .await?;
    let errors = clients.events("ann", "error");
    ensure!(errors.is_empty(), "{errors:?}");
    ensure!(clients.events("ann", "connecting").len() == 1);
    ensure!(clients.events("ann", "subscribed").len() == 2 * CHANNELS);
    Ok(())
}

/// Grants what is published, the first in `hooked:a` not before something is published in `hooked:b`.
async fn hold_the_first(question: Question, other: Arc<Notify>) -> Value {
    let body = &question.body;
    match (question.hook.as_str(), body["channel"].as_str()) {
        ("publish", Some("hooked:a")) if body["data"] == 1 => other.notified().await,
        ("publish", Some("hooked:b")) => other.notify_one(),
        _ => {}
    }
    json!({ "result": {} })
}

#[tokio::test]
async fn publications_of_one_client_keep_their_order_in_each_channel_and_in_no_other() -> Result<()>
{
    let other = Arc::new(Notify::new());
    let application =
        Application::start(move |question| hold_the_first(question, Arc::clone(&other))).await?;
    let scratch = Scratch::new("commands-order")?;
    let settings = settings(node::settings())
        .with("hooks.publish", application.hook("publish"))
        .with("hooks.subscribe", application.hook("subscribe"));
    let node = Node::start("n1", settings, scratch.path()).await?;
    let mut clients = Channels::start(scratch.path())?;
    for transport in Transport::ALL {
        let name = format!("{transport:?}");
        clients
            .open_over(&name, transport, node.address, impatient())
            .await?;
        for channel in ["hooked:a", "hooked:b"] {
            let about = json!({ "channel": channel });
            clients.granted(&name, "subscribe", about).await?;
        }
        // Over streams each would go in a request of its own, which have no order.
        clients.granted(&name, "startBatching", json!({})).await?;
        let mut begun = Vec::new();
        for (channel, number) in [("a", 1), ("a", 2), ("a", 3), ("b", 4)] {
            let order = json!({ "channel": format!("hooked:{channel}"), "data": number });
            begun.push(clients.begin(&name, "publish", order).await?);
        }
        clients.granted(&name, "stopBatching", json!({})).await?;
        for publish in begun {
            let published = clients.outcome(publish).await?;
            ensure!(published.is_ok(), "{name}: {published:?}");
        }
        let mut heard = BTreeMap::<String, Vec<Value>>::new();
        for _ in 0..4 {
            let publication = clients.event(&name, "publication").await?;
            let channel = publication["channel"].to_string();
            heard
                .entry(channel)
                .or_default()
                .push(publication["data"].clone());
        }
        let heard: Vec<_> = heard.into_values().collect();
        ensure!(
            heard == [vec![json!(1), json!(2), json!(3)], vec![json!(4)]],
            "{name}: {heard:?}"
        );
        clients.granted(&name, "disconnect", json!({})).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_a_client_published_before_it_left_is_published() -> Result<()> {
    let (open, closed) = watch::channel(false);
    let application = Application::start(move |question| {
        let mut closed = closed.clone();
        async move {
            if question.hook == "publish" {
                closed.wait_for(|open| *open).await.ok();
            }
            json!({ "result": {} })
        }
    })
    .await?;
    let scratch = Scratch::new("commands-left")?;
    let settings = settings(node::settings())
        .with("hooks.publish", application.hook("publish"))
        .with("hooks.subscribe", application.hook("subscribe"));
    let node = Node::start("n1", settings, scratch.path()).await?;
    let mut clients = Channels::start(scratch.path())?;
    clients
        .open_over("bob", Transport::WebSocket, node.address, impatient())
        .await?;
    let about = json!({ "channel": "hooked:a" });
    clients.granted("bob", "subscribe", about).await?;
    // As many as are carried out at a time, and so many that the client is not even read to its end.
    for count in [AT_A_TIME - 1, 2 * AT_A_TIME] {
        let mut ann = WebSocket::open(node.address, "/connection/websocket").await?;
        let connect = json!({ "id": 1, "connect": { "token": token(SECRET, "ann") } });
        ann.send(&connect.to_string()).await?;
        ann.text().await?;
        for number in 0..count {
            let publish = json!({ "channel": "hooked:a", "data": number });
            let publish = json!({ "id": 2 + number, "publish": publish });
            ann.send(&publish.to_string()).await?;
        }
        let mut ann = ann.into_stream();
        ann.close(None).await?;
        if count < AT_A_TIME {
            while let Some(Ok(_)) = ann.next().await {} // The node knows that it has left.
        }
        open.send_replace(true);
        for number in 0..count {
            let heard = clients.event("bob", "publication").await?;
            ensure!(heard["data"] == number, "{heard}");
        }
        open.send_replace(false);
    }
    Ok(())
}

/// Lets a client subscribe to all the channels that it may have, with tokens, then has it disconnected, and waits until it
/// is back in all of them.
async fn comes_back(clients: &mut Channels, node: &Node, name: &str) -> Result<()> {
    const CHANNELS: usize = 128;
    let channels = (0..CHANNELS).map(|number| {
        let channel = format!("secret:{number}");
        let claims = json!({ "channel": channel, "info": { "padding": "x".repeat(270) } });
        let token = token_with(SECRET, name, claims);
        assert!(539 <= token.len(), "{}", token.len());
        (channel, json!({ "token": token }))
    });
    let channels: BTreeMap<_, _> = channels.collect();
    let order = json!({ "channels": channels });
    clients.granted(name, "subscribeAll", order).await?;
    let disconnect = json!({ "code": 3000, "reason": "come back" });
    let order = json!({ "user": name, "disconnect": disconnect });
    server_api::call(node.address, KEY, "disconnect", &order).await?;
    let all = format!("{name} to be subscribed again");
    wait::until(&all, wait::SOON, async || {
        (2 * CHANNELS <= clients.events(name, "subscribed").len()).then_some(())
    })
    .await?;
    for event in ["disconnected", "unsubscribed", "error"] {
        let seen = clients.events(name, event);
        ensure!(seen.is_empty(), "{name}: {seen:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_sdk_with_all_the_channels_that_it_may_have_comes_back() -> Result<()> {
    let scratch = Scratch::new("commands-large")?;
    let node = Node::start("n1", settings(node::settings()), scratch.path()).await?;
    let mut clients = Channels::start(scratch.path())?;
    for transport in Transport::ALL {
        let name = format!("{transport:?}");
        let options = json!({ "token": token(SECRET, &name), "timeout": 5_000 });
        clients
            .open_over(&name, transport, node.address, options)
            .await?;
        comes_back(&mut clients, &node, &name).await?;
    }
    Ok(())
}

#[tokio::test]
async fn it_comes_back_also_when_what_it_says_comes_to_another_node() -> Result<()> {
    let scratch = Scratch::new("commands-elsewhere")?;
    let redis = Redis::start(Ipv4Addr::LOCALHOST, scratch.path()).await?;
    let settings = settings(node::settings_with_redis(&redis.url()));
    let node = Node::start("n1", settings.clone(), scratch.path()).await?;
    let other = Node::start("n2", settings, scratch.path()).await?;
    for node in [&node, &other] {
        node.ready().await?;
    }
    let mut clients = Channels::start(scratch.path())?;
    for transport in [Transport::HttpStream, Transport::Sse] {
        let name = format!("{transport:?}");
        let emulation = format!("http://{}/connection/emulation", other.address);
        let options = json!({
            "token": token(SECRET, &name), "timeout": 5_000, "emulationEndpoint": emulation,
        });
        clients
            .open_over(&name, transport, node.address, options)
            .await?;
        comes_back(&mut clients, &node, &name).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_command_that_is_too_large_is_refused_and_its_client_stays() -> Result<()> {
    let scratch = Scratch::new("commands-too-large")?;
    let node = Node::start("n1", settings(node::settings()), scratch.path()).await?;
    let mut clients = Channels::start(scratch.path())?;
    let url = format!("ws://{}/connection/websocket", node.address);
    clients
        .open("Protobuf", &url, Codec::Protobuf, impatient())
        .await?;
    for transport in Transport::ALL {
        let name = format!("{transport:?}");
        clients
            .open_over(&name, transport, node.address, impatient())
            .await?;
    }
    for name in ["Protobuf", "WebSocket", "HttpStream", "Sse"] {
        let publish = |length| json!({ "channel": "open:a", "data": "x".repeat(length) });
        clients.granted(name, "publish", publish(60 << 10)).await?;
        let refused = clients.refused(name, "publish", publish(65 << 10)).await?;
        ensure!(refused.code == 106, "{name}: {refused:?}");
        ensure!(refused.message.contains("message_size"), "{refused:?}");
        clients.granted(name, "publish", publish(1)).await?;
        ensure!(clients.events(name, "connecting").len() == 1, "{name}");
    }
    Ok(())
}

/// As many commands as fit into one message.
fn pongs(bytes: usize) -> String {
    "{}".repeat(bytes / 2)
}

#[tokio::test]
async fn commands_that_wait_for_others_are_held_as_they_came() -> Result<()> {
    const CLIENTS: usize = 40;
    const BYTES: usize = 64 << 10;
    let application = Application::start(async |_| std::future::pending::<Value>().await).await?;
    let scratch = Scratch::new("commands-held")?;
    let settings = settings(node::settings())
        .with("hooks.connect", application.hook("connect"))
        .with("hooks.open", json!(CLIENTS));
    let node = Node::start("n1", settings, scratch.path()).await?;
    let before = memory::pss(node.process.pid())?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = WebSocket::open(node.address, "/connection/websocket").await?;
        let connect = r#"{"id":1,"connect":{}}"#;
        client
            .send(&format!("{connect}{}", pongs(BYTES - connect.len())))
            .await?;
        clients.push(client);
    }
    wait::until("all to wait for the backend", wait::SOON, async || {
        (application.asked("connect").len() == CLIENTS).then_some(())
    })
    .await?;
    let each = memory::pss(node.process.pid())?.saturating_sub(before) / CLIENTS as u64;
    ensure!(each < 512 << 10, "{each} bytes for each of {BYTES}");
    Ok(())
}

#[tokio::test]
async fn more_than_a_client_may_send_at_once_is_not_taken() -> Result<()> {
    let scratch = Scratch::new("commands-size")?;
    let settings = settings(node::settings()).with(
        "endpoints",
        json!([{ "path": "/connection", "mode": "channels", "commands_size": "100KiB" }]),
    );
    let node = Node::start("n1", settings, scratch.path()).await?;
    let connect = format!(
        r#"{{"id":1,"connect":{{"token":"{}"}}}}"#,
        token(SECRET, "ann")
    );
    for (bytes, expected) in [(100 << 10, None), ((100 << 10) + 2, Some(1009))] {
        let mut client = WebSocket::open(node.address, "/connection/websocket").await?;
        client.send(&connect).await?;
        client.text().await?;
        client.send(&pongs(bytes)).await?;
        match expected {
            Some(code) => ensure!(client.close_code().await? == Some(code)),
            None => {
                client.send(r#"{"id":2,"ping":{}}"#).await?;
                ensure!(client.text().await?.contains(r#""id":2"#));
            }
        }
    }
    Ok(())
}
