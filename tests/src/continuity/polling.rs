//! A SockJS client over HTTP. When its session ends, it begins another.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{
    sync::{Semaphore, watch},
    time::sleep,
};

use crate::{
    continuity::{
        client,
        client::{Listeners, Phase},
        population::{Kind, Member},
        record::Record,
    },
    harness::http::{Connection, Response},
};

/// Before another session.
const PAUSE_MILLIS: std::ops::Range<u64> = 100..500;

/// One client.
#[derive(Debug)]
pub struct Client {
    /// Which one.
    pub member: Member,
    /// Where it connects.
    pub listeners: Arc<Listeners>,
    /// Where all that it sees goes.
    pub record: Arc<Record>,
    /// What it does.
    pub phase: watch::Receiver<Phase>,
    /// Held while it begins a session.
    pub connecting: Arc<Semaphore>,
}

impl Client {
    /// Begins one session after the other until the end.
    pub async fn live(mut self) {
        let mut end = self.phase.clone();
        tokio::select! {
            _ = end.wait_for(|phase| *phase == Phase::End) => {}
            () = self.sessions() => {}
        }
    }

    async fn sessions(&mut self) {
        loop {
            match self.begin().await {
                Ok(session) => {
                    let ended = match self.member.kind {
                        Kind::SockjsStreaming => self.stream(session).await,
                        _ => self.poll(session).await,
                    };
                    if let Err(why) = ended {
                        self.record.ended(self.member.number, &format!("{why:#}"));
                    }
                }
                Err(why) => self.record.refused(self.member.number, &format!("{why:#}")),
            }
            sleep(Duration::from_millis(fastrand::u64(PAUSE_MILLIS))).await;
        }
    }

    /// Opens a session: the response to its first request has the opening frame.
    async fn begin(&self) -> Result<Session> {
        let permit = Arc::clone(&self.connecting).acquire_owned().await;
        let _permit = permit.context("clients may connect")?;
        let Member {
            number, channel, ..
        } = self.member;
        let id = fastrand::u32(..);
        let mut session = Session {
            path: format!("/sockjs-{channel}/000/p{number}-{id:x}"),
            listeners: Arc::clone(&self.listeners),
            connection: None,
        };
        let opened = session.ask("xhr").await?.text();
        ensure!(opened == "o\n", "a session begins with {opened:?}");
        self.record.joined(number);
        Ok(session)
    }

    async fn poll(&self, mut session: Session) -> Result<()> {
        loop {
            let frames = session.ask("xhr").await?.text();
            for frame in frames.lines() {
                client::sockjs(&self.record, &self.member, frame)?;
            }
        }
    }

    async fn stream(&self, mut session: Session) -> Result<()> {
        loop {
            let mut connection = session.start("xhr_streaming").await?;
            let mut unread = Vec::new();
            loop {
                let chunk = connection.chunk().await?;
                if chunk.is_empty() {
                    break;
                }
                unread.extend_from_slice(&chunk);
                let end = unread.iter().rposition(|byte| *byte == b'\n');
                let frames: Vec<u8> = unread.drain(..end.map_or(0, |end| end + 1)).collect();
                for frame in String::from_utf8(frames)?.lines() {
                    // The response begins with padding.
                    if !frame.starts_with("hh") {
                        client::sockjs(&self.record, &self.member, frame)?;
                    }
                }
            }
        }
    }
}

/// A session.
struct Session {
    path: String,
    listeners: Arc<Listeners>,
    /// If the edge keeps it.
    connection: Option<Connection>,
}

impl Session {
    /// Sends a request, and waits for the head of the response.
    async fn request(&mut self, what: &str) -> Result<(Connection, Response)> {
        let host = self.listeners.plain;
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(host).await?,
        };
        let path = &self.path;
        let request =
            format!("POST {path}/{what} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n");
        connection.send(request).await?;
        let head = connection.head().await?;
        if head.status != 200 {
            bail!("{what}: {}", head.status);
        }
        Ok((connection, head))
    }

    async fn ask(&mut self, what: &str) -> Result<Response> {
        let (mut connection, mut response) = self.request(what).await?;
        response.body = connection.body_of(&response).await?;
        if response.header("connection") != Some("close") {
            self.connection = Some(connection);
        }
        Ok(response)
    }

    async fn start(&mut self, what: &str) -> Result<Connection> {
        let (connection, head) = self.request(what).await?;
        ensure!(
            head.header("transfer-encoding") == Some("chunked"),
            "{what}: not chunked"
        );
        Ok(connection)
    }
}
