//! One publisher for each channel: the system's own HTTP API, through what stands before the nodes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{sleep, timeout, timeout_at},
};

use crate::{
    chaos::scene::KEY,
    continuity::rivals::{System, tally::Tally},
    harness::http::Connection,
};

/// For one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// From one attempt to the next.
const PAUSE: Duration = Duration::from_millis(100);

/// Attempts before a publisher gives up for good.
const ATTEMPTS: usize = 300;

const PADDING_BYTES: usize = 150;

/// Who publishes in one channel.
#[derive(Debug)]
pub(super) struct Publisher {
    pub(super) channel: usize,
    pub(super) name: String,
    pub(super) system: System,
    pub(super) front: SocketAddr,
    /// From one message to the next.
    pub(super) interval: Duration,
    pub(super) tally: Arc<Tally>,
    pub(super) goes_on: watch::Receiver<bool>,
}

impl Publisher {
    /// Publishes until it is told to stop. A message is due at its time also if the one before it was accepted late.
    pub(super) async fn publish(mut self) {
        let mut connection = None;
        let mut due = self.tally.now() + self.interval.mul_f64(fastrand::f64());
        while self.goes_on_at(due).await {
            let number = self.tally.next_message(self.channel, due);
            if !self.send(number, &mut connection).await {
                return;
            }
            due += self.interval;
        }
    }

    /// Waits until `due`, unless it is told to stop before. Says whether it is to go on.
    async fn goes_on_at(&mut self, due: Duration) -> bool {
        let wait = due.saturating_sub(self.tally.now());
        let deadline = tokio::time::Instant::now() + wait;
        let told = timeout_at(deadline, self.goes_on.wait_for(|goes_on| !goes_on)).await;
        told.is_err()
    }

    /// Sends a message until it is accepted, and says whether it was.
    async fn send(&self, number: usize, connection: &mut Option<Connection>) -> bool {
        let request = self.request(number);
        for _ in 0..ATTEMPTS {
            match timeout(ATTEMPT_TIMEOUT, self.attempt(connection, &request)).await {
                Ok(Ok(())) => {
                    self.tally.accepted(self.channel);
                    return true;
                }
                Ok(Err(_)) | Err(_) => {
                    *connection = None;
                    self.tally.attempt_failed();
                    sleep(PAUSE).await;
                }
            }
        }
        false
    }

    fn request(&self, number: usize) -> String {
        let data = json!({ "n": number, "padding": "x".repeat(PADDING_BYTES) });
        let mut body = json!({ "channel": self.name, "data": data });
        let path = match self.system {
            System::Causeway | System::Centrifugo => {
                body["idempotency_key"] = json!(format!("{} {number}", self.name));
                "/api/publish"
            }
            System::SocketIo | System::SocketIoStreams => "/publish",
        };
        let body = body.to_string();
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: n\r\nX-API-Key: {KEY}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
    }

    async fn attempt(&self, connection: &mut Option<Connection>, request: &str) -> Result<()> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(Connection::open(self.front).await?),
        };
        connection.send(request).await?;
        let response = connection.response().await?;
        let body: Value = serde_json::from_slice(&response.body)?;
        if response.status != 200 || body["result"].is_null() {
            bail!("not accepted: {} {body}", response.status);
        }
        Ok(())
    }
}
