//! A SockJS client over HTTP: it polls and sends by requests. When its session ends it begins another.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, anyhow};
use tokio::time::{sleep, timeout};

use crate::{
    handoff_faults::shared::{End, Shared},
    harness::http::{Connection, Response},
};

/// Before another session.
const PAUSE: Duration = Duration::from_millis(50);

/// From one message to the next.
const PACE: Duration = Duration::from_millis(150);

/// For a request that sends: a session that is handed off holds it back.
const SEND_WAIT: Duration = Duration::from_secs(15);

/// One client.
#[derive(Debug)]
pub struct Client {
    /// Which one.
    pub number: usize,
    /// What all share.
    pub shared: Arc<Shared>,
}

/// A request over a connection of its own, or over one that is kept.
struct Requests {
    edge: SocketAddr,
    path: String,
    connection: Option<Connection>,
}

impl Client {
    /// Begins one session after the other until the end.
    pub async fn live(self) {
        let mut over = self.shared.over.subscribe();
        let over = over.wait_for(|over| *over);
        tokio::select! {
            _ = over => {}
            () = self.sessions() => {}
        }
    }

    async fn sessions(&self) {
        loop {
            match self.begin().await {
                Ok(path) => {
                    let stream = self.shared.stream_of(self.number);
                    self.shared.connected(self.number, None, Some(stream));
                    let end = tokio::select! {
                        end = self.poll(&path) => end,
                        end = self.send(&path, stream) => end,
                    };
                    self.shared.ended(self.number, &end);
                }
                Err(why) => self.shared.refused(self.number, &format!("{why:#}")),
            }
            sleep(PAUSE + Duration::from_millis(fastrand::u64(..50))).await;
        }
    }

    async fn begin(&self) -> Result<String> {
        let path = format!("/sockjs/000/p{}-{:x}", self.number, fastrand::u64(..));
        let mut requests = self.requests(&path);
        self.shared.record.lock().begins_all(self.number, None);
        let opened = requests.post("xhr", "").await?;
        if opened.status != 200 || opened.body != b"o\n" {
            return Err(anyhow!("a session begins with {opened:?}"));
        }
        Ok(path)
    }

    fn requests(&self, path: &str) -> Requests {
        Requests {
            edge: self.shared.edge,
            path: path.to_owned(),
            connection: None,
        }
    }

    async fn poll(&self, path: &str) -> End {
        let mut requests = self.requests(path);
        loop {
            let response = match requests.post("xhr", "").await {
                Ok(response) => response,
                Err(error) => return End::broken(&format!("poll: {error:#}")),
            };
            if response.status != 200 {
                return End::told(&format!("poll: {}", response.status));
            }
            for frame in response.text().lines() {
                if let Err(end) = self.shared.sockjs(self.number, frame) {
                    return end;
                }
            }
        }
    }

    async fn send(&self, path: &str, stream: usize) -> End {
        let mut requests = self.requests(path);
        loop {
            sleep(PACE).await;
            let number = self.shared.record.lock().next(stream);
            let body = format!("[\"s {stream} {number}\"]");
            // Until it is acknowledged, its client does not know what became of it.
            self.shared.record.lock().uncertain(stream, number);
            let sent = timeout(SEND_WAIT, requests.post("xhr_send", &body)).await;
            match sent {
                Ok(Ok(response)) if response.status == 204 => {
                    self.shared.record.lock().certain(stream, number);
                }
                Ok(Ok(response)) => return End::told(&format!("send: {}", response.status)),
                Ok(Err(error)) => return End::broken(&format!("send: {error:#}")),
                Err(_) => return End::broken("send: no response in time"),
            }
        }
    }
}

impl Requests {
    async fn post(&mut self, what: &str, body: &str) -> Result<Response> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(self.edge).await?,
        };
        let (path, edge, length) = (&self.path, self.edge, body.len());
        let request = format!(
            "POST {path}/{what} HTTP/1.1\r\nHost: {edge}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        connection.send(request).await?;
        let response = connection.response().await.context("no response")?;
        if response.header("connection") != Some("close") {
            self.connection = Some(connection);
        }
        Ok(response)
    }
}
