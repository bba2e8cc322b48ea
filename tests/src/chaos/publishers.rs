//! One publisher for each channel: it sends the next message when it knows what became of the last.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    chaos::{checker::Position, record::Record, scene::KEY},
    harness::http::Connection,
};

/// For one attempt; then another node is asked.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// Attempts with the same idempotency key, before it stays open what became of the message.
const ATTEMPTS: usize = 20;

/// From one attempt to the next.
const PAUSE: Duration = Duration::from_millis(100);

/// How much of what could not be sent in time is sent later.
const BACKLOG_MAX: Duration = Duration::from_secs(4);

/// Who publishes in one channel.
#[derive(Debug)]
pub struct Publisher {
    /// Its channel.
    pub channel: usize,
    /// Where the nodes are.
    pub nodes: Vec<SocketAddr>,
    /// Where it says what it knows.
    pub record: Arc<Record>,
    /// The numbers of messages, of all publishers together.
    pub ids: Arc<AtomicU64>,
    /// From one message to the next.
    pub interval: Duration,
    /// Whether it is to go on.
    pub goes_on: watch::Receiver<bool>,
    /// Chooses nodes and lengths.
    pub dice: fastrand::Rng,
}

impl Publisher {
    /// Publishes until it is told to stop; then one last message, until it is acknowledged, whose position is returned.
    ///
    /// # Errors
    ///
    /// The last message is not acknowledged.
    pub async fn publish(mut self) -> Result<Position> {
        let mut connection = None;
        // Not all at once: in a channel with few messages, a fault would then meet none of it, or everything.
        let mut next = Instant::now() + self.interval.mul_f64(self.dice.f64());
        while self.goes_on_at(next).await {
            self.next_message(&mut connection).await;
            next = (next + self.interval).max(Instant::now() - BACKLOG_MAX);
        }
        for _ in 0..ATTEMPTS {
            if let Some(position) = self.next_message(&mut connection).await {
                return Ok(position);
            }
        }
        bail!("the last message of a channel was not acknowledged")
    }

    /// Waits until `next`, unless it is told to stop before. Says whether it is to go on.
    async fn goes_on_at(&mut self, next: Instant) -> bool {
        let told = timeout_at(next, self.goes_on.wait_for(|goes_on| !goes_on)).await;
        told.is_err()
    }

    /// Sends a message until it is acknowledged.
    async fn next_message(&mut self, connection: &mut Option<Connection>) -> Option<Position> {
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        let length = if self.dice.u8(..) < 16 { 1_500 } else { 150 };
        let at = u64::try_from(self.record.now().as_micros()).unwrap_or(u64::MAX);
        let body = json!({
            "channel": self.record.channel(self.channel),
            "data": { "id": id, "at": at, "padding": "x".repeat(length) },
            "idempotency_key": format!("message {id}"),
            "ack": "stored",
        })
        .to_string();
        self.record.sent(self.channel, id);
        let began = Instant::now();
        for _ in 0..ATTEMPTS {
            match timeout(ATTEMPT_TIMEOUT, self.attempt(connection, &body)).await {
                Ok(Ok(position)) => {
                    let took = began.elapsed();
                    self.record.acked(self.channel, id, &position, took);
                    return Some(position);
                }
                Ok(Err(_)) | Err(_) => {
                    *connection = None;
                    self.record.tally().failed_attempts += 1;
                    sleep(PAUSE).await;
                }
            }
        }
        self.record.tally().given_up += 1;
        None
    }

    async fn attempt(
        &mut self,
        connection: &mut Option<Connection>,
        body: &str,
    ) -> Result<Position> {
        let connection = match connection {
            Some(connection) => connection,
            None => {
                let node = self.nodes[self.dice.usize(..self.nodes.len())];
                connection.insert(Connection::open(node).await?)
            }
        };
        let length = body.len();
        let head = format!(
            "POST /api/publish HTTP/1.1\r\nHost: n\r\nX-API-Key: {KEY}\r\nContent-Length: {length}\r\n\r\n"
        );
        connection.send(format!("{head}{body}")).await?;
        let response = connection.response().await?;
        let response: Value = serde_json::from_slice(&response.body)?;
        let result = &response["result"];
        let epoch = result["epoch"].as_str();
        let epoch = epoch.with_context(|| format!("not acknowledged: {response}"))?;
        Ok(Position {
            epoch: epoch.into(),
            offset: result["offset"].as_u64().context("it has an offset")?,
        })
    }
}
