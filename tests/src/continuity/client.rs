//! A client over WebSocket: it connects to the edge once, and if its connection ends all the same, again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::{ClientConfig, pki_types::ServerName};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Semaphore, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};

use crate::{
    chaos::{
        checker::Position,
        clients::{publication, told},
    },
    continuity::{
        population::{Kind, Member, Security},
        record::Record,
    },
    harness::tls::NAME,
};

/// For a connection, with its handshakes and its subscription.
const CONNECT_WAIT: Duration = Duration::from_secs(30);

/// Before another attempt.
const PAUSE_MILLIS: std::ops::Range<u64> = 100..500;

/// The buffers of a client: messages are short.
const BUFFER_BYTES: usize = 4 << 10;

/// What all clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// They connect.
    Join,
    /// Those that publish do.
    Publish,
    /// They publish nothing any more.
    Listen,
    /// They close their connections.
    End,
}

/// Where clients connect.
#[derive(Clone, Debug)]
pub struct Listeners {
    /// Without TLS.
    pub plain: SocketAddr,
    /// With it.
    pub secure: SocketAddr,
    /// How they speak TLS 1.2.
    pub tls12: Arc<ClientConfig>,
    /// How they speak TLS 1.3.
    pub tls13: Arc<ClientConfig>,
}

/// One client.
#[derive(Debug)]
pub struct Client {
    /// Which one.
    pub member: Member,
    /// Its channel.
    pub channel: String,
    /// Where it connects.
    pub listeners: Arc<Listeners>,
    /// Where all that it sees goes.
    pub record: Arc<Record>,
    /// What it does.
    pub phase: watch::Receiver<Phase>,
    /// From one message to the next, if it publishes.
    pub interval: Duration,
    /// Held while it connects, so that not all do at once.
    pub connecting: Arc<Semaphore>,
}

/// A connection to the edge.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

type Socket = WebSocketStream<Box<dyn Stream>>;

impl Client {
    /// Stays connected until the end.
    pub async fn live(mut self) {
        let mut since = None;
        while !self.is_over() {
            match self.connect(&mut since).await {
                Ok(socket) => {
                    let ended = self.converse(socket, &mut since).await;
                    match ended {
                        Ok(()) => return,
                        Err(why) => self.record.ended(self.member.number, &format!("{why:#}")),
                    }
                }
                Err(why) => self.record.refused(self.member.number, &format!("{why:#}")),
            }
            sleep(Duration::from_millis(fastrand::u64(PAUSE_MILLIS))).await;
        }
    }

    fn is_over(&self) -> bool {
        *self.phase.borrow() == Phase::End
    }

    fn path(&self) -> String {
        let Member {
            number,
            kind,
            channel,
            ..
        } = self.member;
        match kind {
            Kind::Relay => format!("/ws-{channel}"),
            Kind::History | Kind::NoHistory => "/connection/websocket".to_owned(),
            _ => {
                let session = fastrand::u32(..);
                format!("/sockjs-{channel}/000/c{number}-{session:x}/websocket")
            }
        }
    }

    /// Connects and subscribes. `since` is where it was in a channel with a history.
    async fn connect(&self, since: &mut Option<Position>) -> Result<Socket> {
        let permit = Arc::clone(&self.connecting).acquire_owned().await;
        let _permit = permit.context("clients may connect")?;
        let connected = timeout(CONNECT_WAIT, async {
            let mut socket = self.open().await?;
            match self.member.kind {
                Kind::SockjsWebSocket => {
                    let opened = text(&mut socket).await?;
                    ensure!(opened == "o", "a session begins with {opened:?}");
                    self.record.joined(self.member.number);
                }
                Kind::History | Kind::NoHistory => self.subscribe(&mut socket, since).await?,
                _ => self.record.joined(self.member.number),
            }
            anyhow::Ok(socket)
        });
        connected.await.context("not connected in time")?
    }

    async fn open(&self) -> Result<Socket> {
        let Listeners {
            plain,
            secure,
            tls12,
            tls13,
        } = &*self.listeners;
        let (address, tls) = match self.member.security {
            Security::Plain => (*plain, None),
            Security::Tls12 => (*secure, Some(tls12)),
            Security::Tls13 => (*secure, Some(tls13)),
        };
        let stream = TcpStream::connect(address)
            .await
            .context("cannot connect")?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(tls) => {
                let connector = TlsConnector::from(Arc::clone(tls));
                let secured = connector.connect(ServerName::try_from(NAME)?, stream).await;
                Box::new(secured.context("no TLS")?)
            }
        };
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(0);
        let url = format!("ws://{address}{}", self.path());
        let (socket, _) = client_async_with_config(url, stream, Some(config)).await?;
        Ok(socket)
    }

    async fn subscribe(&self, socket: &mut Socket, since: &mut Option<Position>) -> Result<()> {
        let mut body = json!({ "channel": self.channel, "join_leave": true });
        if let Some(since) = &since {
            body["recover"] = json!(true);
            body["epoch"] = json!(&*since.epoch);
            body["offset"] = json!(since.offset);
        }
        let commands = [
            json!({ "id": 1, "connect": {} }),
            json!({ "id": 2, "subscribe": body }),
        ];
        let commands = commands.map(|command| command.to_string()).join("\n");
        socket.send(Message::text(commands)).await?;
        let mut is_subscribed = false;
        while !is_subscribed {
            // The replies of one connection are in order; what is published from then on is behind them.
            for line in text(socket).await?.lines() {
                let reply: Value = serde_json::from_str(line)?;
                ensure!(reply["error"].is_null(), "refused: {reply}");
                if reply["id"] == 2 {
                    is_subscribed = true;
                    self.subscribed(&reply["subscribe"], since)?;
                } else {
                    self.push(&reply["push"], since)?;
                }
            }
        }
        Ok(())
    }

    /// Notes where its channel begins for it.
    fn subscribed(&self, reply: &Value, since: &mut Option<Position>) -> Result<()> {
        let Member {
            number,
            kind,
            channel,
            ..
        } = self.member;
        if kind != Kind::History {
            self.record.joined(number);
            return Ok(());
        }
        let told = told(reply, since.take())?;
        self.record.subscribed(number, channel, &told);
        let last = told.publications.last().map(|(offset, _)| *offset);
        let mut position = told.position;
        position.offset = last.unwrap_or(position.offset);
        *since = Some(position);
        Ok(())
    }

    /// Listens, and publishes, until the end.
    ///
    /// # Errors
    ///
    /// The connection ended before that, and why.
    async fn converse(&mut self, mut socket: Socket, since: &mut Option<Position>) -> Result<()> {
        let mut pace = interval(self.interval);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut commands = 2;
        let mut was_publishing = false;
        loop {
            let phase = *self.phase.borrow_and_update();
            if phase == Phase::End {
                // Whether it arrives is no matter.
                timeout(CONNECT_WAIT, socket.close(None)).await.ok();
                return Ok(());
            }
            let publishes = self.member.publishes && phase == Phase::Publish;
            if publishes && !was_publishing {
                // Not all publishers in the same moment.
                pace.reset_after(self.interval.mul_f64(fastrand::f64()));
            }
            was_publishing = publishes;
            tokio::select! {
                _ = self.phase.changed() => {}
                _ = pace.tick(), if publishes => {
                    commands += 1;
                    let (_, message) = self.record.next_message(self.member.channel);
                    let frame = self.publication(commands, &message);
                    socket.send(Message::text(frame)).await.context("cannot publish")?;
                }
                next = socket.next() => match next {
                    Some(Ok(Message::Text(text))) => {
                        if let Some(reply) = self.take(text.as_str(), since)? {
                            socket.send(Message::text(reply)).await?;
                        }
                    }
                    Some(Ok(Message::Close(frame))) => {
                        let code = frame.map(|frame| u16::from(frame.code));
                        bail!("closed with {code:?}");
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error).context("broken"),
                    None => bail!("ended without a close frame"),
                },
            }
        }
    }

    /// What a client sends to publish.
    fn publication(&self, command: u64, message: &str) -> String {
        match self.member.kind {
            Kind::Relay => message.to_owned(),
            Kind::History | Kind::NoHistory => {
                let body = json!({ "channel": self.channel, "data": message });
                json!({ "id": command, "publish": body }).to_string()
            }
            _ => json!([message]).to_string(),
        }
    }

    /// Notes what a WebSocket message says, and returns what has to be sent for it.
    fn take(&self, text: &str, since: &mut Option<Position>) -> Result<Option<String>> {
        let Member {
            number,
            channel,
            kind,
            ..
        } = self.member;
        match kind {
            Kind::Relay => self.record.numbered(number, channel, text)?,
            Kind::History | Kind::NoHistory => {
                if text == "{}" {
                    return Ok(Some("{}".to_owned()));
                }
                for line in text.lines() {
                    let reply: Value = serde_json::from_str(line)?;
                    if !reply["error"].is_null() {
                        self.record.publish_refused(&reply["error"].to_string());
                    }
                    self.push(&reply["push"], since)?;
                }
            }
            _ => sockjs(&self.record, &self.member, text)?,
        }
        Ok(None)
    }

    fn push(&self, push: &Value, since: &mut Option<Position>) -> Result<()> {
        let Member {
            number,
            channel,
            kind,
            ..
        } = self.member;
        if let Some(pushed) = push.get("pub") {
            if kind == Kind::NoHistory {
                let message = pushed["data"].as_str().context("a message")?;
                return self.record.numbered(number, channel, message);
            }
            let at = publication(pushed)?;
            let sent = pushed["data"]["at"].as_u64().context("a time")?;
            self.record
                .stored(number, channel, at, Duration::from_micros(sent));
            if let Some(since) = since {
                since.offset = at.0;
            }
        } else if let Some(join) = push.get("join") {
            let other = join["info"]["client"].as_str();
            self.record.join(number, other.context("a client")?);
        } else if let Some(leave) = push.get("leave") {
            let other = leave["info"]["client"].as_str();
            self.record.leave(number, other.context("a client")?);
        } else if let Some(other) = push.as_object() {
            bail!("told {other:?}");
        }
        Ok(())
    }
}

/// Notes what a SockJS frame says.
///
/// # Errors
///
/// It ends the session.
pub(super) fn sockjs(record: &Record, member: &Member, frame: &str) -> Result<()> {
    if let Some(messages) = frame.strip_prefix('a') {
        for message in serde_json::from_str::<Vec<String>>(messages)? {
            record.numbered(member.number, member.channel, &message)?;
        }
        return Ok(());
    }
    ensure!(frame == "h", "closed with {frame}");
    Ok(())
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
