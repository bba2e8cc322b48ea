//! Clients of channels that come back: each on any node, with the positions that it had.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use crate::{
    chaos::{
        checker::{Position, Subscribed},
        record::Record,
        scene::SILENCE,
    },
    harness::{http::Connection, websocket},
};

/// The kernel's buffer for what a client has not read: small, so that a client that stops reading shows.
const RECEIVE_BUFFER_BYTES: u32 = 8 << 10;

/// For a connection, with its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The longest pause before another attempt.
const PAUSE_MAX_MILLIS: u64 = 400;

/// What a client is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Be connected and read.
    Listen,
    /// Stay connected and read nothing.
    Dawdle,
    /// Stay connected, unsubscribe from everything and subscribe again, for as long as this lasts.
    Resubscribe,
    /// Be away, without a word or with a close frame.
    Away(Manner),
    /// The run is over.
    End,
}

/// How a client goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As the browser does it.
    Closing,
    /// As a phone in a tunnel does it, but that the kernel tells.
    Vanishing,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    /// Its number.
    pub number: usize,
    /// The channels that it follows.
    pub follows: Vec<usize>,
    /// Where the nodes are.
    pub nodes: Vec<SocketAddr>,
    /// Where all that it sees goes.
    pub record: Arc<Record>,
    /// What it is to do.
    pub behaviour: watch::Receiver<Behaviour>,
    /// Chooses nodes and pauses.
    pub dice: fastrand::Rng,
}

/// Why a connection is over.
struct Over(String);

impl Client {
    /// Connects, again and again, until the end.
    pub async fn live(mut self) {
        loop {
            let behaviour = *self.behaviour.borrow_and_update();
            match behaviour {
                Behaviour::End => return,
                Behaviour::Away(_) => {
                    if self.behaviour.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
                Behaviour::Listen | Behaviour::Dawdle | Behaviour::Resubscribe => {}
            }
            let node = self.dice.usize(..self.nodes.len());
            match timeout(CONNECT_TIMEOUT, connect(self.nodes[node])).await {
                Ok(Ok(socket)) => {
                    let Over(why) = self.converse(socket, node).await;
                    self.record.disconnected(self.number, &why);
                }
                Ok(Err(_)) | Err(_) => self.record.refused_connection(),
            }
            let pause = Duration::from_millis(self.dice.u64(20..PAUSE_MAX_MILLIS));
            sleep(pause).await;
        }
    }

    /// Subscribes and listens until the connection is over.
    async fn converse(&mut self, mut socket: WebSocketStream<TcpStream>, node: usize) -> Over {
        self.record.connected(self.number, node);
        let mut talk = Talk::default();
        let hello = json!({ "id": talk.next(), "connect": {} }).to_string();
        if let Err(over) = say(&mut socket, hello).await {
            return over;
        }
        for channel in self.follows.clone() {
            if let Err(over) = self.subscribe(&mut socket, &mut talk, channel).await {
                return over;
            }
        }
        let mut heard_at = Instant::now();
        loop {
            let behaviour = *self.behaviour.borrow_and_update();
            match behaviour {
                Behaviour::Listen => talk.leave_at = None,
                Behaviour::Resubscribe => {
                    let pause = Duration::from_millis(self.dice.u64(20..200));
                    talk.leave_at.get_or_insert_with(|| Instant::now() + pause);
                }
                Behaviour::Dawdle => {
                    if self.behaviour.changed().await.is_err() {
                        return Over("the end".to_owned());
                    }
                    heard_at = Instant::now();
                    continue;
                }
                Behaviour::Away(Manner::Vanishing) => return Over("vanished".to_owned()),
                Behaviour::Away(Manner::Closing) | Behaviour::End => {
                    // Whether it arrives is no matter.
                    timeout(CONNECT_TIMEOUT, socket.close(None)).await.ok();
                    return Over("closed".to_owned());
                }
            }
            let (again, leave_at) = (talk.next_again(), talk.leave_at);
            tokio::select! {
                changed = self.behaviour.changed() => {
                    if changed.is_err() {
                        return Over("the end".to_owned());
                    }
                }
                () = sleep_until(again) => {
                    for channel in talk.due() {
                        if let Err(over) = self.subscribe(&mut socket, &mut talk, channel).await {
                            return over;
                        }
                    }
                }
                () = sleep_until(leave_at) => {
                    talk.leave_at = None;
                    for channel in self.follows.clone() {
                        if let Err(over) = self.unsubscribe(&mut socket, &mut talk, channel).await {
                            return over;
                        }
                    }
                }
                next = timeout_at(heard_at + SILENCE, socket.next()) => {
                    heard_at = Instant::now();
                    let text = match next {
                        Err(_) => return Over(format!("silence for {SILENCE:?}")),
                        Ok(Some(Ok(Message::Text(text)))) => text,
                        Ok(Some(Ok(Message::Close(frame)))) => {
                            let code = frame.map(|frame| u16::from(frame.code));
                            self.record.closed(code);
                            return Over(format!("closed with {code:?}"));
                        }
                        Ok(Some(Ok(_))) => continue,
                        Ok(Some(Err(error))) => {
                            self.record.closed(None);
                            return Over(format!("broken: {error}"));
                        }
                        Ok(None) => {
                            self.record.closed(None);
                            return Over("ended".to_owned());
                        }
                    };
                    for line in text.lines() {
                        let response = self.take(line, &mut talk);
                        match response {
                            Ok(None) => {}
                            Ok(Some(Response::Pong)) => {
                                if let Err(over) = say(&mut socket, "{}".to_owned()).await {
                                    return over;
                                }
                            }
                            Ok(Some(Response::Subscribe(channel))) => {
                                if let Err(over) = self.subscribe(&mut socket, &mut talk, channel).await {
                                    return over;
                                }
                            }
                            Err(error) => return Over(format!("cannot understand: {error:#}")),
                        }
                    }
                }
            }
        }
    }

    /// Asks for a channel, from where it was.
    async fn subscribe(
        &mut self,
        socket: &mut WebSocketStream<TcpStream>,
        talk: &mut Talk,
        channel: usize,
    ) -> Result<(), Over> {
        let since = self.record.position(self.number, channel);
        let mut body = json!({ "channel": self.record.channel(channel) });
        if let Some(since) = &since {
            body["recover"] = json!(true);
            body["epoch"] = json!(&*since.epoch);
            body["offset"] = json!(since.offset);
        }
        let id = talk.next();
        talk.asked.push((id, channel, since));
        say(socket, json!({ "id": id, "subscribe": body }).to_string()).await
    }

    /// Leaves a channel that it has, to subscribe again when that is confirmed.
    async fn unsubscribe(
        &mut self,
        socket: &mut WebSocketStream<TcpStream>,
        talk: &mut Talk,
        channel: usize,
    ) -> Result<(), Over> {
        let is_under_way = talk.asked.iter().any(|(_, asked, _)| *asked == channel)
            || talk.left.iter().any(|(_, left)| *left == channel)
            || talk.again.iter().any(|(_, again)| *again == channel);
        if is_under_way {
            return Ok(());
        }
        let id = talk.next();
        talk.left.push((id, channel));
        let body = json!({ "channel": self.record.channel(channel) });
        say(socket, json!({ "id": id, "unsubscribe": body }).to_string()).await
    }

    /// Notes what a line says; what is to be done about it.
    fn take(&mut self, line: &str, talk: &mut Talk) -> Result<Option<Response>> {
        let mut reply: Value = serde_json::from_str(line).context("not JSON")?;
        if reply.as_object().is_some_and(serde_json::Map::is_empty) {
            return Ok(Some(Response::Pong));
        }
        if let Some(id) = reply["id"].as_u64() {
            if let Some(at) = talk.left.iter().position(|(asked, _)| *asked == id) {
                let (_, channel) = talk.left.swap_remove(at);
                if !reply["error"].is_null() {
                    bail!("an unsubscribe was refused: {}", reply["error"]);
                }
                self.record.left(self.number, channel);
                return Ok(Some(Response::Subscribe(channel)));
            }
            let Some(at) = talk.asked.iter().position(|(asked, ..)| *asked == id) else {
                return match &reply["error"] {
                    Value::Null => Ok(None),
                    error => bail!("the node refuses the connection: {error}"),
                };
            };
            let (_, channel, since) = talk.asked.swap_remove(at);
            if !reply["error"].is_null() {
                let pause = Duration::from_millis(self.dice.u64(50..PAUSE_MAX_MILLIS));
                talk.again.push((Instant::now() + pause, channel));
                self.record.refused_subscription();
                return Ok(None);
            }
            let told = told(&reply["subscribe"], since)?;
            self.record.subscribed(self.number, channel, &told);
            return Ok(None);
        }
        let push = reply["push"].take();
        let name = push["channel"].as_str().unwrap_or_default();
        let Some(channel) = self.record.channel_number(name) else {
            return Ok(None);
        };
        if !push["pub"].is_null() {
            let (offset, id) = publication(&push["pub"])?;
            self.record.heard(self.number, channel, offset, id);
        } else if let Some(code) = push["unsubscribe"]["code"].as_u64() {
            self.record.unsubscribed(self.number, channel, code);
            // Its own end and the node's have crossed: it subscribes again after its own.
            if talk.left.iter().any(|(_, left)| *left == channel) {
                return Ok(None);
            }
            if 2500 <= code {
                return Ok(Some(Response::Subscribe(channel)));
            }
            bail!("an unsubscribe with {code}, which nobody has asked for");
        }
        Ok(None)
    }
}

enum Response {
    Pong,
    Subscribe(usize),
}

/// What was asked over one connection.
#[derive(Default)]
struct Talk {
    last: u64,
    /// Subscriptions that are not answered: command, channel, position.
    asked: Vec<(u64, usize, Option<Position>)>,
    /// Channels that it has left, which is not confirmed yet.
    left: Vec<(u64, usize)>,
    /// When it leaves its channels, to subscribe again.
    leave_at: Option<Instant>,
    /// Those that were refused, and when to ask again.
    again: Vec<(Instant, usize)>,
}

impl Talk {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn next_again(&self) -> Option<Instant> {
        self.again.iter().map(|(at, _)| *at).min()
    }

    fn due(&mut self) -> Vec<usize> {
        let now = Instant::now();
        let (due, later) = self.again.iter().partition(|(at, _)| *at <= now);
        self.again = later;
        let due: Vec<(Instant, usize)> = due;
        due.into_iter().map(|(_, channel)| channel).collect()
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn connect(node: SocketAddr) -> Result<WebSocketStream<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    let stream = socket.connect(node).await?;
    stream.set_nodelay(true)?;
    let mut connection = Connection::of(stream);
    let path = "/connection/websocket";
    connection
        .send(websocket::handshake(node, path, &[]))
        .await?;
    let handshake = connection.head().await?;
    let socket = websocket::WebSocket::begin(connection, handshake).await?;
    Ok(socket.into_stream())
}

async fn say(socket: &mut WebSocketStream<TcpStream>, text: String) -> Result<(), Over> {
    use futures_util::SinkExt as _;
    match timeout(SILENCE, socket.send(Message::text(text))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Over(format!("broken: {error}"))),
        Err(_) => Err(Over("it takes nothing".to_owned())),
    }
}

/// What a reply to a subscribe command says.
pub(crate) fn told(reply: &Value, since: Option<Position>) -> Result<Subscribed> {
    let epoch = reply["epoch"].as_str().context("a position has an epoch")?;
    let publications = reply["publications"].as_array();
    let publications = publications.into_iter().flatten().map(publication);
    Ok(Subscribed {
        since,
        recovered: reply["recovered"].as_bool().unwrap_or(false),
        position: Position {
            epoch: epoch.into(),
            offset: reply["offset"].as_u64().unwrap_or(0),
        },
        publications: publications.collect::<Result<_>>()?,
    })
}

/// The offset and the number of a publication.
pub(crate) fn publication(publication: &Value) -> Result<(u64, u64)> {
    let offset = publication["offset"].as_u64();
    let id = publication["data"]["id"].as_u64();
    offset
        .zip(id)
        .with_context(|| format!("a publication has an offset and our number: {publication}"))
}
