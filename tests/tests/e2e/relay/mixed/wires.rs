//! Clients over the transports that no npm client has outside of a browser: `eventsource`, `htmlfile` and `jsonp`.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use causeway_tests::harness::http::{Connection, Response};
use tokio::time::sleep;

use crate::relay::mixed::Record;

/// Before a client that was closed comes back.
const PAUSE: Duration = Duration::from_millis(100);
/// The callback of `htmlfile` and `jsonp`.
const CALLBACK: &str = "c";

#[derive(Clone, Copy, Debug)]
pub(crate) enum Wire {
    Eventsource,
    Htmlfile,
    Jsonp,
}

/// One client, which comes back whenever it is closed, as long as this is polled.
pub(crate) async fn run(wire: Wire, edge: SocketAddr, record: Arc<Mutex<Record>>) {
    let mut cookie = None;
    loop {
        let id: String = std::iter::repeat_with(fastrand::alphanumeric)
            .take(12)
            .collect();
        let session = Session {
            path: format!("/sockjs/000/{id}"),
            wire,
            edge,
            record: &record,
        };
        // Why it ended is for the record to tell.
        session.live(&mut cookie).await.ok();
        record
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .close();
        sleep(PAUSE).await;
    }
}

struct Session<'a> {
    path: String,
    wire: Wire,
    edge: SocketAddr,
    record: &'a Mutex<Record>,
}

impl Session<'_> {
    /// Receives until the session is over, which is an error.
    async fn live(&self, cookie: &mut Option<String>) -> Result<()> {
        loop {
            let (head, mut connection) = self.ask(cookie.as_deref()).await?;
            if let Some(bound) = head.cookie("causeway") {
                *cookie = Some(bound);
            }
            ensure!(head.status == 200, "{head:?}");
            match self.wire {
                Wire::Jsonp => {
                    let length = head.header("content-length").context("no length")?;
                    let body = connection.bytes(length.parse()?).await?;
                    let body = String::from_utf8(body)?;
                    let frame = body
                        .strip_prefix(&format!("/**/{CALLBACK}("))
                        .and_then(|rest| rest.strip_suffix(");\r\n"))
                        .with_context(|| format!("no call: {body}"))?;
                    self.take(&serde_json::from_str::<String>(frame)?)?;
                }
                Wire::Eventsource => {
                    self.stream(&mut connection, "\r\n\r\n", |event| {
                        let data = event.trim_start().strip_prefix("data: ");
                        Ok(data.map(str::to_owned))
                    })
                    .await?;
                }
                Wire::Htmlfile => {
                    self.stream(&mut connection, "</script>\r\n", |script| {
                        let call = script.rsplit_once("<script>\np(");
                        let frame = call.and_then(|(_, rest)| rest.strip_suffix(");\n"));
                        Ok(frame.map(serde_json::from_str).transpose()?)
                    })
                    .await?;
                }
            }
        }
    }

    async fn ask(&self, cookie: Option<&str>) -> Result<(Response, Connection)> {
        let wire = match self.wire {
            Wire::Eventsource => "eventsource".to_owned(),
            Wire::Htmlfile => format!("htmlfile?c={CALLBACK}"),
            Wire::Jsonp => format!("jsonp?c={CALLBACK}"),
        };
        let cookie = cookie.map_or_else(String::new, |cookie| {
            format!("Cookie: causeway={cookie}\r\n")
        });
        let edge = self.edge;
        let mut connection = Connection::open(edge).await?;
        // A script is given to pages of the same site alone, which the referer tells.
        connection
            .send(format!(
                "GET {}/{wire} HTTP/1.1\r\nHost: {edge}\r\nReferer: http://{edge}/\r\n{cookie}\r\n",
                self.path
            ))
            .await?;
        let head = connection.head().await?;
        Ok((head, connection))
    }

    /// Takes frames until the response ends in order. Pieces that hold none are passed over.
    async fn stream(
        &self,
        connection: &mut Connection,
        delimiter: &str,
        frame: impl Fn(&str) -> Result<Option<String>>,
    ) -> Result<()> {
        let mut unread = String::new();
        loop {
            let chunk = connection.chunk().await?;
            if chunk.is_empty() {
                return Ok(());
            }
            unread.push_str(std::str::from_utf8(&chunk)?);
            while let Some((piece, rest)) = unread.split_once(delimiter) {
                if let Some(frame) = frame(piece)? {
                    self.take(&frame)?;
                }
                unread = rest.to_owned();
            }
        }
    }

    fn take(&self, frame: &str) -> Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        match frame.split_at_checked(1) {
            Some(("o", _)) if record.open => bail!("the session was lost"),
            Some(("o", _)) => record.open = true,
            Some(("h", _)) => {}
            Some(("a", messages)) => {
                for message in serde_json::from_str::<Vec<String>>(messages)? {
                    record.hear(message.parse()?);
                }
            }
            _ => bail!("the session is over: {frame}"),
        }
        Ok(())
    }
}
