//! A client over WebSocket that speaks as the system's SDK does, and connects again as it does.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};

use crate::continuity::rivals::{System, sdk, tally::Tally};

/// For a connection, with its handshakes and its subscription: `timeout` of socket.io-client.
const CONNECT_WAIT: Duration = Duration::from_secs(20);

/// The buffers of a client: messages are short.
const BUFFER_BYTES: usize = 4 << 10;

/// Codes of an unsubscribe from which on the SDK subscribes again.
const RESUBSCRIBE_CODES: u64 = 2_500;

type Socket = WebSocketStream<TcpStream>;

/// One client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) number: usize,
    pub(super) channel: String,
    pub(super) system: System,
    pub(super) front: SocketAddr,
    pub(super) tally: Arc<Tally>,
    pub(super) is_over: watch::Receiver<bool>,
    /// Held while it connects for the first time, so that not all do at once.
    pub(super) connecting: Arc<Semaphore>,
}

/// What a client connects again with.
#[derive(Debug, Default)]
struct Memory {
    /// Centrifugo's protocol: where it is in the channel.
    position: Option<(String, u64)>,
    /// Socket.IO's: what its session is called, and the last message.
    session: Option<String>,
    offset: Option<String>,
    was_connected: bool,
}

/// One connection.
struct Connection<'a> {
    client: &'a Client,
    memory: &'a mut Memory,
    is_joined: bool,
    /// The last command.
    command: u64,
    /// Subscriptions that were refused one after the other, and when it tries again.
    refusals: u32,
    again: Option<Instant>,
}

impl Client {
    /// Stays connected until the end.
    pub(super) async fn live(mut self) {
        let mut memory = Memory::default();
        let mut is_over = self.is_over.clone();
        let mut permit = Arc::clone(&self.connecting).acquire_owned().await.ok();
        let mut failed = 0;
        while !*is_over.borrow_and_update() {
            let (is_joined, ended) = self.connect(&mut memory, &mut permit).await;
            match ended {
                Ok(()) => return,
                Err(why) if is_joined => {
                    failed = 0;
                    self.tally.ended(self.number, format!("{why:#}"));
                }
                Err(why) => self.tally.refused(self.number, format!("{why:#}")),
            }
            let delay = match self.system {
                System::Causeway | System::Centrifugo => sdk::centrifuge(failed),
                System::SocketIo | System::SocketIoStreams => sdk::socket_io(failed),
            };
            failed += 1;
            tokio::select! {
                _ = is_over.changed() => {}
                () = sleep(delay) => {}
            }
        }
    }

    /// Connects and listens until the end. Says whether it was connected, and if this is not the end, why it is over.
    async fn connect(
        &mut self,
        memory: &mut Memory,
        permit: &mut Option<OwnedSemaphorePermit>,
    ) -> (bool, Result<()>) {
        let deadline = Instant::now() + CONNECT_WAIT;
        let opened = timeout_at(deadline, self.open()).await;
        let socket = match opened.context("not connected in time").flatten() {
            Ok(socket) => socket,
            Err(error) => return (false, Err(error)),
        };
        let mut is_over = self.is_over.clone();
        let mut connection = Connection {
            client: self,
            memory,
            is_joined: false,
            command: 0,
            refusals: 0,
            again: None,
        };
        let ended = connection.converse(socket, deadline, &mut is_over, permit);
        let ended = ended.await;
        (connection.is_joined, ended)
    }

    async fn open(&self) -> Result<Socket> {
        let stream = TcpStream::connect(self.front).await.context("no TCP")?;
        stream.set_nodelay(true)?;
        let config = WebSocketConfig::default()
            .read_buffer_size(BUFFER_BYTES)
            .write_buffer_size(0);
        let path = match self.system {
            System::Causeway | System::Centrifugo => "/connection/websocket".to_owned(),
            System::SocketIo | System::SocketIoStreams => format!(
                "/socket.io/?EIO=4&transport=websocket&channel={}",
                self.channel
            ),
        };
        let url = format!("ws://{}{path}", self.front);
        let opened = client_async_with_config(url, stream, Some(config)).await;
        Ok(opened.context("no WebSocket")?.0)
    }
}

impl Connection<'_> {
    async fn converse(
        &mut self,
        mut socket: Socket,
        deadline: Instant,
        is_over: &mut watch::Receiver<bool>,
        permit: &mut Option<OwnedSemaphorePermit>,
    ) -> Result<()> {
        if matches!(self.client.system, System::Causeway | System::Centrifugo) {
            self.command = 1;
            let connect = json!({ "id": 1, "connect": {} });
            let commands = format!("{connect}\n{}", self.subscribe());
            socket.send(Message::text(commands)).await?;
        }
        loop {
            if *is_over.borrow_and_update() {
                // Whether it arrives is no matter.
                timeout_at(Instant::now() + CONNECT_WAIT, socket.close(None))
                    .await
                    .ok();
                return Ok(());
            }
            if self.is_joined {
                permit.take();
            }
            let reply = tokio::select! {
                _ = is_over.changed() => None,
                () = sleep_until(deadline), if !self.is_joined => bail!("not subscribed in time"),
                () = sleep_until(self.again.unwrap_or(deadline)), if self.again.is_some() => {
                    self.again = None;
                    Some(self.subscribe())
                }
                next = socket.next() => match next {
                    Some(Ok(Message::Text(text))) => self.take(text.as_str())?,
                    Some(Ok(Message::Close(frame))) => {
                        let code = frame.map(|frame| u16::from(frame.code));
                        bail!("closed with {code:?}");
                    }
                    Some(Ok(_)) => None,
                    Some(Err(error)) => return Err(error).context("broken"),
                    None => bail!("ended without a close frame"),
                },
            };
            if let Some(reply) = reply {
                socket.send(Message::text(reply)).await?;
            }
        }
    }

    /// Notes what a WebSocket message says, and returns what has to be sent for it.
    fn take(&mut self, text: &str) -> Result<Option<String>> {
        match self.client.system {
            System::Causeway | System::Centrifugo => {
                let mut reply = None;
                for line in text.lines() {
                    reply = self.take_line(line)?.or(reply);
                }
                Ok(reply)
            }
            System::SocketIo | System::SocketIoStreams => self.take_packet(text),
        }
    }

    fn joined(&mut self) {
        self.is_joined = true;
        self.memory.was_connected = true;
        self.client.tally.connected(self.client.number);
    }

    /// The command to subscribe, from where it was.
    fn subscribe(&mut self) -> String {
        self.command += 1;
        let mut body = json!({ "channel": self.client.channel });
        if let Some((epoch, offset)) = &self.memory.position {
            body["recover"] = json!(true);
            body["epoch"] = json!(epoch);
            body["offset"] = json!(offset);
        }
        json!({ "id": self.command, "subscribe": body }).to_string()
    }

    /// A line of Centrifugo's protocol.
    fn take_line(&mut self, line: &str) -> Result<Option<String>> {
        let reply: Value = serde_json::from_str(line)?;
        if reply.as_object().is_some_and(serde_json::Map::is_empty) {
            return Ok(Some("{}".to_owned()));
        }
        if reply["id"] == 1 {
            ensure!(reply["error"].is_null(), "refused: {}", reply["error"]);
        } else if reply["id"].is_u64() {
            if !reply["error"].is_null() {
                self.again = Some(Instant::now() + sdk::centrifuge(self.refusals));
                self.refusals += 1;
                return Ok(None);
            }
            self.refusals = 0;
            self.subscribed(&reply["subscribe"])?;
            self.joined();
        }
        let push = &reply["push"];
        if !push["pub"].is_null() {
            self.publication(&push["pub"])?;
        } else if let Some(code) = push["unsubscribe"]["code"].as_u64() {
            ensure!(RESUBSCRIBE_CODES <= code, "unsubscribed with {code}");
            return Ok(Some(self.subscribe()));
        }
        Ok(None)
    }

    fn subscribed(&mut self, reply: &Value) -> Result<()> {
        let recovered = reply["recovered"].as_bool().unwrap_or(false);
        if self.memory.was_connected && !recovered {
            self.client.tally.announced(self.client.number);
        }
        let epoch = reply["epoch"].as_str().context("a position has an epoch")?;
        let offset = reply["offset"].as_u64().unwrap_or(0);
        self.memory.position = Some((epoch.to_owned(), offset));
        for publication in reply["publications"].as_array().into_iter().flatten() {
            self.publication(publication)?;
        }
        Ok(())
    }

    fn publication(&mut self, publication: &Value) -> Result<()> {
        if let (Some((_, offset)), Some(at)) =
            (&mut self.memory.position, publication["offset"].as_u64())
        {
            *offset = at;
        }
        self.received(&publication["data"])
    }

    fn received(&self, data: &Value) -> Result<()> {
        let number = data["n"].as_u64().context("a message has a number")?;
        let (tally, now) = (&self.client.tally, self.client.tally.now());
        tally.received(self.client.number, number as usize, now);
        Ok(())
    }

    /// A packet of Engine.IO, with one of Socket.IO in it.
    fn take_packet(&mut self, packet: &str) -> Result<Option<String>> {
        if packet == "2" {
            return Ok(Some("3".to_owned()));
        }
        if packet.starts_with('0') {
            let Memory {
                session, offset, ..
            } = &self.memory;
            return Ok(Some(match session {
                Some(session) => {
                    let mut auth = json!({ "pid": session });
                    if let Some(offset) = offset {
                        auth["offset"] = json!(offset);
                    }
                    format!("40{auth}")
                }
                None => "40".to_owned(),
            }));
        }
        if let Some(connected) = packet.strip_prefix("40") {
            let connected: Value = serde_json::from_str(connected)?;
            let session = connected["pid"].as_str().map(str::to_owned);
            let recovered = session.is_some() && session == self.memory.session;
            if self.memory.was_connected && !recovered {
                self.client.tally.announced(self.client.number);
            }
            self.memory.session = session;
            self.joined();
        } else if let Some(event) = packet.strip_prefix("42") {
            let event: Value = serde_json::from_str(event)?;
            if let Some(offset) = event[2].as_str() {
                self.memory.offset = Some(offset.to_owned());
            }
            self.received(&event[1])?;
        } else {
            bail!("the packet {packet:?}");
        }
        Ok(None)
    }
}
