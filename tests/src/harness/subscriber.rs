//! A client of channels: JSON over a WebSocket, command by command.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::harness::websocket::WebSocket;

/// Where it connects; the endpoint is `/connection`.
const PATH: &str = "/connection/websocket";

/// A client that is connected.
#[derive(Debug)]
pub struct Subscriber {
    socket: WebSocket,
    /// The id that its node gave it.
    pub id: String,
    last: u32,
    /// What has come and nobody has asked for yet.
    pushes: VecDeque<Value>,
}

/// A token for a client of `user`, signed with the secret of an HS256 key, for an hour.
#[must_use]
pub fn token(secret: &str, user: &str) -> String {
    token_with(secret, user, json!({}))
}

/// The same with more claims, an object.
#[must_use]
pub fn token_with(secret: &str, user: &str, more: Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let expires = now.unwrap_or_default() + Duration::from_secs(3600);
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = part(json!({ "alg": "HS256", "typ": "JWT" }));
    let mut claims = json!({ "sub": user, "exp": expires.as_secs() });
    for (name, value) in more.as_object().into_iter().flatten() {
        claims[name] = value.clone();
    }
    let claims = part(claims);
    let signed = format!("{head}.{claims}");
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    let signature = ring::hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

impl Subscriber {
    /// Connects with `token`.
    ///
    /// # Errors
    ///
    /// The node refuses.
    pub async fn connect(node: SocketAddr, token: &str) -> Result<Self> {
        Self::connect_with(node, token, &[]).await
    }

    /// The same with more headers.
    ///
    /// # Errors
    ///
    /// The node refuses.
    pub async fn connect_with(
        node: SocketAddr,
        token: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self> {
        let mut client = Self {
            socket: WebSocket::open_with(node, PATH, headers).await?,
            id: String::new(),
            last: 0,
            pushes: VecDeque::new(),
        };
        let connected = client.ask("connect", json!({ "token": token })).await?;
        client.id = connected["client"]
            .as_str()
            .context("a client has an id")?
            .to_owned();
        Ok(client)
    }

    /// Gives a command and returns its result.
    ///
    /// # Errors
    ///
    /// The node responds with an error, or not at all.
    pub async fn ask(&mut self, command: &str, body: Value) -> Result<Value> {
        let mut reply = self.ask_for_reply(command, body).await?;
        if reply["error"].is_null() {
            return Ok(reply[command].take());
        }
        bail!("{command} was refused: {}", reply["error"]);
    }

    /// Gives a command and returns its reply, which may be an error.
    ///
    /// # Errors
    ///
    /// There is none.
    pub async fn ask_for_reply(&mut self, command: &str, body: Value) -> Result<Value> {
        self.last += 1;
        let number = self.last;
        let order = json!({ "id": number, command: body });
        self.socket.send(&order.to_string()).await?;
        loop {
            let mut found = None;
            for reply in self.read().await? {
                if reply["id"] == number {
                    found = Some(reply);
                } else {
                    self.pushes.push_back(reply);
                }
            }
            if let Some(reply) = found {
                return Ok(reply);
            }
        }
    }

    /// Hears a channel from now on, and who comes and goes there if that is told.
    ///
    /// # Errors
    ///
    /// The node refuses.
    pub async fn subscribe(&mut self, channel: &str) -> Result<Value> {
        self.ask(
            "subscribe",
            json!({ "channel": channel, "join_leave": true }),
        )
        .await
    }

    /// The next push of this kind (`pub`, `join`, `leave`, `subscribe`, ...) with its channel; others before it are passed
    /// over.
    ///
    /// # Errors
    ///
    /// None came in time.
    pub async fn push(&mut self, kind: &str) -> Result<Value> {
        loop {
            while let Some(mut push) = self.pushes.pop_front() {
                if !push["push"][kind].is_null() {
                    return Ok(push["push"].take());
                }
            }
            let replies = self.read().await?;
            self.pushes.extend(replies);
        }
    }

    /// The code that the node closes the connection with.
    ///
    /// # Errors
    ///
    /// It stays open.
    pub async fn close_code(&mut self) -> Result<Option<u16>> {
        self.socket.close_code().await
    }

    /// What comes in the next message that is no ping. Pings are answered.
    async fn read(&mut self) -> Result<Vec<Value>> {
        loop {
            let text = self.socket.text().await?;
            if text == "{}" {
                self.socket.send("{}").await?;
                continue;
            }
            let lines = text.lines().map(serde_json::from_str);
            return lines
                .collect::<Result<_, _>>()
                .with_context(|| format!("replies are JSON, and this is not: {text}"));
        }
    }
}
