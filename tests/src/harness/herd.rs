//! Many npm clients (sockjs-client, ws) in a few processes: `tests/clients/herd.mjs`.

use std::{collections::HashMap, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::harness::{clients, process::Process, wait};

/// A client library with one wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// sockjs-client over WebSocket.
    Websocket,
    /// sockjs-client over a streamed response.
    XhrStreaming,
    /// sockjs-client over one response for each frame.
    XhrPolling,
    /// npm ws on the plain endpoint.
    Ws,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Websocket,
        Self::XhrStreaming,
        Self::XhrPolling,
        Self::Ws,
    ];
}

/// One client to be.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Its number, of all herds together.
    pub index: usize,
    /// What it is.
    pub kind: Kind,
    /// How many messages it sends.
    pub sends: usize,
}

/// What one client heard.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// Its number.
    pub index: usize,
    /// What it is.
    pub kind: Kind,
    /// How many messages of other clients and of its own came.
    pub received: usize,
    /// The first few that came twice, too early or too late.
    pub wrong: Vec<Value>,
    /// How often each text came that is no client's message.
    pub bare: HashMap<String, usize>,
}

/// One process with some of the clients.
#[derive(Debug)]
pub struct Herd {
    process: Process,
}

impl Herd {
    /// Starts it; the clients connect at once.
    ///
    /// # Errors
    ///
    /// Node or the npm packages are not there.
    pub fn start(
        name: &str,
        url: &str,
        plans: &[Plan],
        expected: usize,
        directory: &Path,
    ) -> Result<Self> {
        let orders = json!({ "url": url, "clients": plans, "expected": expected });
        let mut command = clients::command("herd.mjs", &orders)?;
        command.stdin(Stdio::piped());
        Ok(Self {
            process: Process::spawn(name, command, directory)?,
        })
    }

    /// Gives it a command: `send` or `report`.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub async fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self
            .process
            .stdin()
            .context("the input of a herd is piped")?;
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .await
            .context("the herd has ended")
    }

    /// Waits for an event with this name, and this text if it is a `bare` one.
    ///
    /// # Errors
    ///
    /// It did not come within `deadline`, or a client was closed before.
    pub async fn event(
        &mut self,
        name: &str,
        text: Option<&str>,
        deadline: Duration,
    ) -> Result<Value> {
        let what = format!("`{name}` of {}", self.process.name());
        let found = wait::until(&what, deadline, async || {
            let events = self.process.output_lines();
            let wanted = |event: &&Value| {
                event["event"] == name && text.is_none_or(|text| event["text"] == text)
            };
            if let Some(event) = events.iter().find(wanted) {
                return Some(Ok(event.clone()));
            }
            if let Some(closed) = events.iter().find(|event| event["event"] == "closed") {
                return Some(Err(anyhow::anyhow!("a client was closed: {closed}")));
            }
            (!self.process.is_running()).then(|| Err(anyhow::anyhow!("the herd ended")))
        });
        found
            .await
            .and_then(|found| found)
            .with_context(|| self.process.tail())
    }

    /// What each client heard so far.
    ///
    /// # Errors
    ///
    /// It does not tell.
    pub async fn report(&mut self) -> Result<Vec<Report>> {
        self.tell("report").await?;
        let mut event = self.event("report", None, wait::SOON).await?;
        serde_json::from_value(event["clients"].take()).context("a report of another shape")
    }
}

/// Divides `count` clients of all kinds in turn among `herds` herds; the first `senders` of them send `sends` messages each.
///
/// # Errors
///
/// `herds` is 0.
pub fn plans(count: usize, herds: usize, senders: usize, sends: usize) -> Result<Vec<Vec<Plan>>> {
    if herds == 0 {
        bail!("no herd to put clients in");
    }
    let mut plans = vec![Vec::new(); herds];
    for index in 0..count {
        let kind = Kind::ALL[index % Kind::ALL.len()];
        let sends = if index < senders { sends } else { 0 };
        plans[(index / Kind::ALL.len()) % herds].push(Plan { index, kind, sends });
    }
    Ok(plans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_herd_gets_clients_of_every_kind() {
        let plans = plans(300, 3, 20, 50).unwrap();
        assert_eq!(plans.iter().map(Vec::len).sum::<usize>(), 300);
        for herd in plans {
            assert!(
                Kind::ALL
                    .iter()
                    .all(|kind| herd.iter().any(|plan| plan.kind == *kind))
            );
        }
    }
}
