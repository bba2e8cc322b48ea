//! Any order of subscribing, unsubscribing and recovering on one connection while others publish: each publication
//! comes once and in order, and only between the reply to a subscribe and the end of that subscription.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use futures_util::SinkExt;
use futures_util::StreamExt;
use futures_util::stream::SplitSink;
use futures_util::stream::SplitStream;
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner;
use proptest::test_runner::TestRunner;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::runtime;
use tokio::time;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::redis::testing::RedisServer;

const KEY: &str = "a key that is long enough";

/// Connections that only read, so that a batch is not written in a moment.
const CROWD: usize = 64;

/// Ids of commands whose replies are not looked at.
const IGNORED: u64 = 1;

/// What the watched client does next, while others publish.
#[derive(Debug, Clone)]
enum Step {
    Subscribe {
        recover: bool,
    },
    Unsubscribe,
    /// The application ends the subscription.
    EndByServer,
    /// What was to be sent goes out, and some time passes.
    Pause(Duration),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pause =
        (0..6_u64).prop_map(|milliseconds| Step::Pause(Duration::from_millis(milliseconds)));
    let step = prop_oneof![
        3 => any::<bool>().prop_map(|recover| Step::Subscribe { recover }),
        3 => Just(Step::Unsubscribe),
        1 => Just(Step::EndByServer),
        4 => pause,
    ];
    proptest::collection::vec(step, 1..60)
}

fn yaml(broker: &str) -> String {
    format!(
        "broker: {broker}
auth: {{ anonymous: true }}
api: {{ keys: [\"{KEY}\"] }}
fanout: {{ window: 5ms }}
endpoints: [{{ path: /connection, mode: channels }}]
channels:
  namespaces:
    - {{ name: c, subscribe: anyone, history: {{ size: 100000, lifetime: 10m }}, recovery: true }}
"
    )
}

#[test]
fn any_interleaving_delivers_each_publication_once_without_redis() {
    check(&yaml("{ kind: memory }"));
}

#[test]
fn any_interleaving_delivers_each_publication_once_with_redis() {
    let threads = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let redis = threads.block_on(RedisServer::start());
    check(&yaml(&format!(
        "{{ kind: redis, url: \"{}\" }}",
        redis.url()
    )));
}

#[tokio::test]
async fn what_was_published_before_the_application_ends_a_subscription_comes_before_the_end() {
    let node = TestNode::start(&yaml("{ kind: memory }"));
    let (client, mut writer, mut reader) = connected(node.address).await;
    let subscribe = r#"{"id":2,"subscribe":{"channel":"c:1"}}"#;
    let mut next = async || -> Value {
        let message = time::timeout(DEADLINE, reader.next()).await.unwrap();
        serde_json::from_str(message.unwrap().unwrap().to_text().unwrap()).unwrap()
    };
    for number in 0..20 {
        writer.send(Message::text(subscribe)).await.unwrap();
        assert!(next().await["subscribe"].is_object());
        let commands = json!({ "commands": [
            { "publish": { "channel": "c:1", "data": number } },
            { "unsubscribe": { "client": client, "channel": "c:1" } },
            { "publish": { "channel": "c:1", "data": "too late" } },
        ] });
        api(node.address, "batch", &commands).await;
        assert_eq!(next().await["push"]["pub"]["data"], number);
        // The node may carry the order out a little later.
        let mut push = next().await;
        if push["push"]["pub"].is_object() {
            push = next().await;
        }
        assert!(push["push"]["unsubscribe"].is_object(), "{push}");
    }
}

fn check(yaml: &str) {
    let threads = runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    let node = threads.block_on(async { TestNode::start(yaml) });
    let mut writers = Vec::new();
    let mut reading = JoinSet::new();
    threads.block_on(async {
        for _ in 0..CROWD {
            let (_, writer, mut reader) = connected(node.address).await;
            writers.push(writer);
            reading.spawn(async move { while let Some(Ok(_)) = reader.next().await {} });
        }
    });
    // What happens depends on the moment too, so a smaller case would prove nothing.
    let config = test_runner::Config {
        cases: 20,
        max_shrink_iters: 0,
        failure_persistence: None,
        ..test_runner::Config::default()
    };
    let mut number = 0;
    let case = |steps| {
        number += 1;
        let channel = format!("c:{number}");
        threads.block_on(async {
            let subscribe = json!({ "id": IGNORED, "subscribe": { "channel": channel } });
            for writer in &mut writers {
                writer
                    .send(Message::text(subscribe.to_string()))
                    .await
                    .unwrap();
            }
            let told = run(node.address, &channel, steps).await;
            let result = told.verify();
            prop_assert!(result.is_ok(), "{}\n{:#?}", result.unwrap_err(), told.lines);
            Ok(())
        })
    };
    let case = RefCell::new(case);
    let result = TestRunner::new(config).run(&steps(), |steps| (case.borrow_mut())(steps));
    result.unwrap();
}

type Writer = SplitSink<WebSocketStream<TcpStream>, Message>;
type Reader = SplitStream<WebSocketStream<TcpStream>>;

/// A client over WebSocket that has connected, and its id.
async fn connected(node: SocketAddr) -> (String, Writer, Reader) {
    let mut stream = TcpStream::connect(node).await.unwrap();
    let handshake = "GET /connection/websocket HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(handshake.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "));
    let socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    let (mut writer, mut reader) = socket.split();
    writer
        .send(Message::text(r#"{"id":1,"connect":{}}"#))
        .await
        .unwrap();
    let connected = reader.next().await.unwrap().unwrap();
    let connected: Value = serde_json::from_str(connected.to_text().unwrap()).unwrap();
    let id = connected["connect"]["client"].as_str().unwrap().to_owned();
    (id, writer, reader)
}

async fn api(node: SocketAddr, method: &str, body: &Value) -> Value {
    let body = body.to_string();
    let mut client = Client::connect(node).await;
    let length = body.len();
    client
        .send(format!(
            "POST /api/{method} HTTP/1.1\r\nHost: node\r\nX-API-Key: {KEY}\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
        .await;
    serde_json::from_str(&client.response().await.body).unwrap()
}

/// A command whose reply is looked at.
#[derive(Debug, Clone, Copy)]
enum Asked {
    /// With the offset after which publications are missing, if it asks for them.
    Subscribe(Option<u64>),
    Unsubscribe,
}

/// All that the watched client was told, and what it asked for.
struct Told {
    asked: HashMap<u64, Asked>,
    lines: Vec<Value>,
}

async fn run(node: SocketAddr, channel: &str, steps: Vec<Step>) -> Told {
    let stop = CancellationToken::new();
    let mut publishing = JoinSet::new();
    publishing.spawn({
        let (stop, channel) = (stop.clone(), channel.to_owned());
        async move {
            let mut last = 0;
            while !stop.is_cancelled() {
                let batch: Vec<Value> = (0..fastrand::u8(1..4))
                    .map(|_| json!({ "publish": { "channel": channel, "data": 1 } }))
                    .collect();
                let response = api(node, "batch", &json!({ "commands": batch })).await;
                for reply in response["replies"].as_array().unwrap() {
                    last = reply["publish"]["offset"].as_u64().unwrap();
                }
                time::sleep(Duration::from_millis(fastrand::u64(..3))).await;
            }
            last
        }
    });
    let (client, mut writer, mut reader) = connected(node).await;
    let lines = Arc::new(Mutex::new(Vec::<Value>::new()));
    let received = Arc::new(AtomicU64::new(0));
    let mut reading = JoinSet::new();
    reading.spawn({
        let (lines, received) = (Arc::clone(&lines), Arc::clone(&received));
        async move {
            while let Some(Ok(Message::Text(text))) = reader.next().await {
                for line in text.lines().filter(|line| *line != "{}") {
                    let line: Value = serde_json::from_str(line).unwrap();
                    let in_reply = line["subscribe"]["publications"].as_array();
                    let in_reply = in_reply.and_then(|publications| publications.last());
                    let offset = in_reply.unwrap_or(&line["push"]["pub"])["offset"].as_u64();
                    received.fetch_max(offset.unwrap_or_default(), Ordering::Relaxed);
                    lines.lock().push(line);
                }
            }
        }
    });
    let epoch = api(node, "history", &json!({ "channel": channel, "limit": 0 })).await;
    let epoch = epoch["result"]["epoch"].clone();
    let mut asking = Asking {
        channel: channel.to_owned(),
        epoch,
        asked: HashMap::new(),
        message: String::new(),
        next: IGNORED + 1,
    };
    let mut orders = JoinSet::new();
    for step in steps {
        match step {
            Step::Subscribe { recover } => {
                asking.subscribe(recover.then(|| received.load(Ordering::Relaxed)));
            }
            Step::Unsubscribe => asking.unsubscribe(),
            Step::EndByServer => {
                let order = json!({ "client": client, "channel": channel });
                orders.spawn(async move { api(node, "unsubscribe", &order).await });
            }
            Step::Pause(pause) => {
                asking.send(&mut writer).await;
                time::sleep(pause).await;
            }
        }
    }
    orders.join_all().await;
    stop.cancel();
    let last = publishing.join_next().await.unwrap().unwrap();
    // It recovers what there is, even if the application ends a subscription a moment later.
    until(async || {
        asking.unsubscribe();
        asking.subscribe(Some(received.load(Ordering::Relaxed)));
        asking.send(&mut writer).await;
        time::sleep(Duration::from_millis(50)).await;
        last <= received.load(Ordering::Relaxed)
    })
    .await;
    reading.shutdown().await;
    let lines = std::mem::take(&mut *lines.lock());
    let asked = asking.asked;
    Told { asked, lines }
}

/// The commands of the watched client.
struct Asking {
    channel: String,
    epoch: Value,
    asked: HashMap<u64, Asked>,
    message: String,
    next: u64,
}

impl Asking {
    fn subscribe(&mut self, since: Option<u64>) {
        let subscribe = json!({
            "channel": self.channel,
            "recover": since.is_some(),
            "epoch": self.epoch,
            "offset": since.unwrap_or_default(),
        });
        self.ask(Asked::Subscribe(since), "subscribe", subscribe);
    }

    fn unsubscribe(&mut self) {
        let unsubscribe = json!({ "channel": self.channel });
        self.ask(Asked::Unsubscribe, "unsubscribe", unsubscribe);
    }

    fn ask(&mut self, asked: Asked, command: &str, body: Value) {
        self.asked.insert(self.next, asked);
        let command = json!({ "id": self.next, command: body });
        self.message.push_str(&command.to_string());
        self.message.push('\n');
        self.next += 1;
    }

    async fn send(&mut self, writer: &mut Writer) {
        if !self.message.is_empty() {
            let message = std::mem::take(&mut self.message);
            writer.send(Message::text(message)).await.unwrap();
        }
    }
}

impl Told {
    /// What is wrong, if anything.
    fn verify(&self) -> Result<(), String> {
        // While it is subscribed, the offset of the last publication.
        let mut subscribed: Option<u64> = None;
        for line in &self.lines {
            let before = subscribed;
            let wrong = |what: &str| Err(format!("{what}, subscribed: {before:?}, at {line}"));
            let id = line["id"].as_u64().unwrap_or_default();
            let push = &line["push"];
            if let Some(offset) = push["pub"]["offset"].as_u64() {
                match &mut subscribed {
                    Some(last) if *last + 1 == offset => *last = offset,
                    _ => return wrong("a publication that is not due"),
                }
            } else if push["unsubscribe"].is_object() {
                if subscribed.take().is_none() {
                    return wrong("an end of nothing");
                }
            } else if let Some(asked) = self.asked.get(&id) {
                subscribed = match asked {
                    Asked::Unsubscribe if line["error"].is_null() => None,
                    Asked::Subscribe(_) if line["error"]["code"] == 105 && subscribed.is_some() => {
                        subscribed
                    }
                    Asked::Subscribe(since) if line["error"].is_null() && subscribed.is_none() => {
                        Some(subscribe(*since, &line["subscribe"])?)
                    }
                    _ => return wrong("a reply that is not due"),
                };
            } else {
                return wrong("something else");
            }
        }
        Ok(())
    }
}

/// The offset of the last publication that a client has after the reply to a subscribe.
fn subscribe(since: Option<u64>, result: &Value) -> Result<u64, String> {
    let Some(since) = since else {
        return Ok(result["offset"].as_u64().unwrap_or_default());
    };
    if result["recovered"] != true {
        return Err(format!("not recovered: {result}"));
    }
    let mut last = since;
    for publication in result["publications"].as_array().into_iter().flatten() {
        if publication["offset"] != last + 1 {
            return Err(format!("{last} is followed by {publication}"));
        }
        last += 1;
    }
    Ok(last)
}
