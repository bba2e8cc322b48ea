//! A client over WebSocket: it stays connected to the edge, and if it is disconnected it says so and connects again.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

use crate::{
    handoff_faults::{
        record::Record,
        shared::{End, Kind, Shared},
    },
    harness::websocket::WebSocket,
};

/// For a connection, with its subscription.
const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// Before another attempt.
const PAUSE: Duration = Duration::from_millis(50);

/// From one message of a client to the next.
const PACE: Duration = Duration::from_millis(100);

/// For a closing handshake.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

type Socket = WebSocketStream<TcpStream>;

/// One client.
#[derive(Debug)]
pub struct Client {
    /// Which one.
    pub number: usize,
    /// What it is.
    pub kind: Kind,
    /// What all share.
    pub shared: Arc<Shared>,
    /// Where it was in the channel with a history: epoch and offset.
    since: Option<(String, u64)>,
    /// Of its connection, if it publishes.
    stream: Option<usize>,
}

impl Client {
    /// A client that is not connected yet.
    #[must_use]
    pub fn new(number: usize, kind: Kind, shared: Arc<Shared>) -> Self {
        Self {
            number,
            kind,
            shared,
            since: None,
            stream: None,
        }
    }

    /// Stays connected until the end.
    pub async fn live(mut self) {
        while !self.shared.is_over() {
            let connected = timeout(CONNECT_WAIT, self.connect()).await;
            match connected.unwrap_or_else(|_| Err(anyhow::anyhow!("not connected in time"))) {
                Ok((socket, id)) => {
                    self.shared.connected(self.number, id, self.stream);
                    match self.converse(socket).await {
                        Ok(()) => return,
                        Err(end) => self.shared.ended(self.number, &end),
                    }
                }
                Err(why) => self.shared.refused(self.number, &format!("{why:#}")),
            }
            sleep(PAUSE + Duration::from_millis(fastrand::u64(..50))).await;
        }
    }

    /// Connects and subscribes; the id of a channel client.
    async fn connect(&mut self) -> Result<(Socket, Option<String>)> {
        let path = match self.kind {
            Kind::Relay => "/ws".to_owned(),
            Kind::History | Kind::Live => "/connection/websocket".to_owned(),
            Kind::Sockjs | Kind::Polling => {
                format!(
                    "/sockjs/000/w{}-{:x}/websocket",
                    self.number,
                    fastrand::u64(..)
                )
            }
        };
        let socket = WebSocket::open(self.shared.edge, &path).await?;
        let mut socket = socket.into_stream();
        let history = self.shared.past;
        let except = (self.kind == Kind::History).then_some(history);
        self.record().begins_all(self.number, except);
        match self.kind {
            Kind::History | Kind::Live => {
                let id = self.subscribe(&mut socket).await?;
                return Ok((socket, Some(id)));
            }
            Kind::Relay => {}
            Kind::Sockjs | Kind::Polling => {
                let opened = text(&mut socket).await?;
                ensure!(opened == "o", "a session begins with {opened:?}");
            }
        }
        self.stream = Some(self.shared.stream_of(self.number));
        Ok((socket, None))
    }

    fn record(&self) -> parking_lot::MutexGuard<'_, Record> {
        self.shared.record.lock()
    }

    fn channel(&self) -> &'static str {
        match self.kind {
            Kind::History => "past:1",
            _ => "room:1",
        }
    }

    async fn subscribe(&mut self, socket: &mut Socket) -> Result<String> {
        let subscribe = self.subscription(2);
        let commands = format!("{}\n{subscribe}", json!({ "id": 1, "connect": {} }));
        socket.send(Message::text(commands)).await?;
        let mut id = None;
        loop {
            for line in text(socket).await?.lines() {
                let reply: Value = serde_json::from_str(line)?;
                ensure!(reply["error"].is_null(), "refused: {reply}");
                if let Some(client) = reply["connect"]["client"].as_str() {
                    id = Some(client.to_owned());
                }
                self.push(&reply["push"])?;
                if reply["id"] == 2 {
                    self.subscribed(&reply["subscribe"])?;
                    return id.context("an id");
                }
            }
        }
    }

    fn subscription(&self, command: u64) -> String {
        let mut body = json!({ "channel": self.channel(), "join_leave": true });
        if let Some((epoch, offset)) = &self.since {
            body["recover"] = json!(true);
            body["epoch"] = json!(epoch);
            body["offset"] = json!(offset);
        }
        json!({ "id": command, "subscribe": body }).to_string()
    }

    /// A reply to its subscription.
    fn subscribed(&mut self, reply: &Value) -> Result<()> {
        if self.kind == Kind::Live {
            return Ok(());
        }
        let epoch = reply["epoch"].as_str().context("an epoch")?;
        let offset = reply["offset"].as_u64().unwrap_or(0);
        let asked = self.since.replace((epoch.to_owned(), offset)).is_some();
        if !asked || reply["recovered"] != true {
            let past = self.shared.past;
            let mut record = self.record();
            record.begins(self.number, past);
            if asked {
                *record.told.entry("not recovered".to_owned()).or_default() += 1;
            }
        }
        let publications = reply["publications"].as_array();
        for publication in publications.into_iter().flatten() {
            self.publication(publication)?;
        }
        Ok(())
    }

    /// Gets messages, and sends some, until the end.
    async fn converse(&mut self, mut socket: Socket) -> Result<(), End> {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut over = self.shared.over.subscribe();
        let mut commands = 2;
        loop {
            if self.shared.is_over() {
                // Whether it arrives is no matter.
                timeout(CLOSE_WAIT, socket.close(None)).await.ok();
                return Ok(());
            }
            tokio::select! {
                _ = over.changed() => {}
                _ = pace.tick(), if self.stream.is_some() => {
                    let frame = self.next_message();
                    if let Err(error) = socket.send(Message::text(frame)).await {
                        // A Close frame may be there already.
                        return Err(last_words(&mut socket, &error.to_string()).await);
                    }
                }
                next = socket.next() => match next {
                    Some(Ok(Message::Text(text))) => {
                        let reply = match self.take(text.as_str(), &mut commands) {
                            Ok(reply) => reply,
                            Err(end) => return Err(end),
                        };
                        if let Some(reply) = reply
                            && let Err(error) = socket.send(Message::text(reply)).await
                        {
                            return Err(last_words(&mut socket, &error.to_string()).await);
                        }
                    }
                    Some(Ok(Message::Close(frame))) => {
                        let code = frame.map(|frame| u16::from(frame.code));
                        timeout(CLOSE_WAIT, socket.close(None)).await.ok();
                        return Err(End::closed(code));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(End::broken(&error.to_string())),
                    None => return Err(End::broken("end of the connection")),
                },
            }
        }
    }

    /// Its next message, framed.
    fn next_message(&self) -> String {
        let Some(stream) = self.stream else {
            return String::new();
        };
        let number = self.record().next(stream);
        let message = format!("s {stream} {number}");
        match self.kind {
            Kind::Sockjs => json!([message]).to_string(),
            _ => message,
        }
    }

    /// Notes what a WebSocket message says, and returns what has to be sent for it.
    fn take(&mut self, text: &str, commands: &mut u64) -> Result<Option<String>, End> {
        let wrong = |error: anyhow::Error| End::broken(&format!("{error:#}: {text}"));
        match self.kind {
            Kind::Relay => self.shared.message(self.number, text),
            Kind::Sockjs | Kind::Polling => self.shared.sockjs(self.number, text)?,
            Kind::History | Kind::Live => {
                if text == "{}" {
                    return Ok(Some("{}".to_owned()));
                }
                for line in text.lines() {
                    let reply: Value =
                        serde_json::from_str(line).map_err(|error| wrong(error.into()))?;
                    if !reply["error"].is_null() {
                        return Err(End::told(&format!("refused: {}", reply["error"])));
                    }
                    if reply["push"]["unsubscribe"]["code"].is_u64() {
                        *commands += 1;
                        return Ok(Some(self.subscription(*commands)));
                    }
                    if reply["subscribe"].is_object() {
                        self.subscribed(&reply["subscribe"]).map_err(wrong)?;
                    }
                    self.push(&reply["push"]).map_err(wrong)?;
                }
            }
        }
        Ok(None)
    }

    fn push(&mut self, push: &Value) -> Result<()> {
        if let Some(publication) = push.get("pub") {
            self.publication(publication)?;
        } else if let Some(id) = push["join"]["info"]["client"].as_str() {
            self.shared.joined(self.number, id);
        } else if let Some(id) = push["leave"]["info"]["client"].as_str() {
            self.shared.left(self.number, id);
        }
        Ok(())
    }

    fn publication(&mut self, publication: &Value) -> Result<()> {
        if let (Some((_, since)), Some(offset)) = (&mut self.since, publication["offset"].as_u64())
        {
            *since = offset;
        }
        let message = publication["data"].as_str().context("a message")?;
        self.shared.message(self.number, message);
        Ok(())
    }
}

/// What a connection that takes nothing any more still has to say.
async fn last_words(socket: &mut Socket, error: &str) -> End {
    let rest = async {
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(frame))) => {
                    return End::closed(frame.map(|frame| u16::from(frame.code)));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return End::broken(error),
            }
        }
    };
    let rest = timeout(CLOSE_WAIT, rest).await;
    rest.unwrap_or_else(|_| End::broken(error))
}

/// The next text message.
async fn text(socket: &mut Socket) -> Result<String> {
    loop {
        match socket.next().await.context("ended")?? {
            Message::Text(text) => return Ok(text.as_str().to_owned()),
            Message::Close(frame) => bail!("closed with {frame:?}"),
            _ => {}
        }
    }
}
