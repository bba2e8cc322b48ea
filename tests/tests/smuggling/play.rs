//! One case against one proxy.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use causeway_tests::harness::http;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    corpus::{Case, Fate},
    proxies::Proxy,
    recorder::Seen,
};

/// For a proxy to say something: its own deadlines are of a second.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Sent behind a case on the same connection, to see what becomes of it.
const SENTINEL: &str = "GET /sentinel HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// What never reaches a backend: it belongs to the client's connection, or is the edge's to say.
const FORBIDDEN: [&str; 12] = [
    "keep-alive",
    "proxy-connection",
    "proxy",
    "te",
    "trailer",
    "http2-settings",
    "x_forwarded_for",
    "x_real_ip",
    "content_length",
    "transfer_encoding",
    "x-forwarded_for",
    "forwarded_",
];

/// What came of it.
#[derive(Debug)]
pub(crate) struct Played {
    /// The statuses that came back, interim ones left out.
    statuses: Vec<u16>,
    /// The requests behind, but for the sentinel and the witness.
    behind: Vec<Seen>,
    /// Whether the sentinel was served as a request of its own.
    goes_on: bool,
    /// What a client on another connection got afterwards, if it was not its own answer.
    mixed_up: Option<String>,
}

pub(crate) async fn play(proxy: &mut Proxy, case: &Case) -> Result<Played> {
    let said = timeout(PATIENCE, converse(proxy, case)).await;
    let said = said.with_context(|| format!("{}: no end", case.name))??;
    let mixed_up = witness(proxy).await.err().map(|error| format!("{error:#}"));
    let mut behind = proxy.recorder.take();
    behind.retain(|seen| seen.line != "GET /witness HTTP/1.1");
    let before = behind.len();
    behind.retain(|seen| seen.line != "GET /sentinel HTTP/1.1" || !seen.body.is_empty());
    Ok(Played {
        statuses: statuses(&said),
        goes_on: behind.len() + 1 == before,
        behind,
        mixed_up,
    })
}

/// A client on another connection, who must get its own answer.
pub(crate) async fn witness(proxy: &Proxy) -> Result<()> {
    let answer = http::get(proxy.address, "/witness").await?;
    if answer.text() != "behind: /witness\n" {
        bail!("another client got {:?}", answer.text());
    }
    Ok(())
}

/// Everything that came back.
async fn converse(proxy: &Proxy, case: &Case) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(proxy.address).await?;
    stream.set_nodelay(true)?;
    let mut said = Vec::new();
    // A proxy may answer and close before it has read all of it.
    stream.write_all(&case.bytes).await.ok();
    while statuses(&said).is_empty() {
        if !matches!(stream.read_buf(&mut said).await, Ok(1..)) {
            return Ok(said);
        }
    }
    if statuses(&said) == [101] {
        stream.shutdown().await.ok();
    } else {
        stream.write_all(SENTINEL.as_bytes()).await.ok();
    }
    while matches!(stream.read_buf(&mut said).await, Ok(1..)) {}
    Ok(said)
}

/// The status lines in `said`: no body here has a line that begins like one.
fn statuses(said: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(said);
    let lines = text.split("HTTP/1.").skip(1);
    let statuses = lines.filter_map(|line| line.get(2..5)?.parse().ok());
    statuses
        .filter(|status| *status == 101 || 200 <= *status)
        .collect()
}

impl Played {
    /// As the table has it.
    pub(crate) fn summary(&self, case: &Case) -> String {
        let statuses: Vec<String> = self.statuses.iter().map(u16::to_string).collect();
        let mut text = if statuses.is_empty() {
            "-".to_owned()
        } else {
            statuses.join(" ")
        };
        if !self.behind.is_empty() {
            text.push_str(&format!("={}", self.behind.len()));
        }
        if !self.goes_on {
            text.push('.');
        }
        if !self.leaks(case).is_empty() {
            text.push('!');
        }
        text
    }

    /// What reached the backend, or another client, and should not have.
    fn leaks(&self, case: &Case) -> Vec<String> {
        let mut leaks = leaks(&self.behind, case.front, case.absent);
        leaks.extend(self.mixed_up.clone());
        leaks
    }

    /// What is not as it should be.
    pub(crate) fn faults(&self, case: &Case) -> Vec<String> {
        let mut faults = self.leaks(case);
        match self.statuses.first() {
            Some(status) if case.statuses.contains(status) => {}
            None if case.statuses.contains(&0) => {}
            other => faults.push(format!("{other:?} is not one of {:?}", case.statuses)),
        }
        match case.fate {
            Fate::Closed if self.goes_on => faults.push("the connection went on".to_owned()),
            Fate::GoesOn if !self.goes_on => faults.push("the connection was closed".to_owned()),
            _ => {}
        }
        for (name, value) in case.present {
            if !self.behind.iter().any(|seen| seen.values(name) == [*value]) {
                faults.push(format!("no `{name}: {value}` behind: {:?}", self.behind));
            }
        }
        if let Some(line) = case.line
            && self.lines() != [line]
        {
            faults.push(format!("behind is {:?} and not {line:?}", self.lines()));
        }
        faults
    }

    fn lines(&self) -> Vec<&str> {
        self.behind.iter().map(|seen| seen.line.as_str()).collect()
    }
}

/// What reached the backend and should not have, of what was `front` requests in front.
pub(crate) fn leaks(behind: &[Seen], front: usize, absent: &[&str]) -> Vec<String> {
    let mut leaks = Vec::new();
    let requests = || behind.iter().filter(|seen| seen.line != "TUNNEL");
    if front < requests().count() {
        let lines: Vec<&str> = requests().map(|seen| seen.line.as_str()).collect();
        leaks.push(format!("{front} in front became {lines:?}"));
    }
    for seen in requests() {
        leaks.extend(seen.fault.clone());
        if seen.target().contains("smuggled") {
            leaks.push(seen.line.clone());
        }
        let forbidden = FORBIDDEN.iter().chain(absent);
        let named = |name: &&&str| !seen.values(name).is_empty();
        leaks.extend(
            forbidden
                .filter(named)
                .map(|name| format!("`{name}` behind: {seen:?}")),
        );
        let connection = seen.values("connection").join(",").to_ascii_lowercase();
        if !["", "keep-alive", "close", "upgrade"].contains(&connection.as_str()) {
            leaks.push(format!("`connection: {connection}` behind"));
        }
        let client = seen.values("x-forwarded-for").join(", ");
        if client != "127.0.0.1" {
            leaks.push(format!("the client is said to be {client:?}"));
        }
    }
    leaks
}
