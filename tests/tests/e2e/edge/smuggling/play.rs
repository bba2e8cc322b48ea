//! One case against one proxy.

use std::time::Duration;

use anyhow::{Result, bail};
use causeway_tests::harness::{http, segments::Ends, tls};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::edge::smuggling::{
    corpus::{Case, Fate},
    proxies::Proxy,
    recorder::Seen,
};

/// For a proxy to say something: its own deadlines are of a second.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Sent behind a case on the same connection, to see what becomes of it.
const SENTINEL: &str = "GET /sentinel HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// What never reaches a backend: it belongs to the client's connection, or is the edge's to say.
const FORBIDDEN: [&str; 11] = [
    "keep-alive",
    "proxy-connection",
    "proxy",
    "te",
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
    way: Way,
    /// Whether the connection came to an end.
    ends: bool,
    /// The statuses that came back, interim ones left out.
    statuses: Vec<u16>,
    /// The requests behind, but for the sentinel and the witness.
    behind: Vec<Seen>,
    /// Whether the sentinel was served as a request of its own.
    goes_on: bool,
    /// What a client on another connection got afterwards, if it was not its own response.
    mixed_up: Option<String>,
}

/// How the bytes of a case come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// In one segment.
    One,
    /// The rest comes when the head has been read; of a head alone its second half.
    Two,
    /// In two records of TLS.
    Tls,
}

pub(crate) async fn play(proxy: &mut Proxy, case: &Case, way: Way) -> Result<Played> {
    let said = timeout(PATIENCE, converse(proxy, case, way)).await;
    let ends = said.is_ok();
    let said = said.unwrap_or_else(|_| Ok(Vec::new()))?;
    let mixed_up = witness(proxy).await.err().map(|error| format!("{error:#}"));
    let mut behind = proxy.recorder.take();
    behind.retain(|seen| seen.line != "GET /witness HTTP/1.1");
    let before = behind.len();
    behind.retain(|seen| seen.line != "GET /sentinel HTTP/1.1" || !seen.body.is_empty());
    Ok(Played {
        way,
        ends,
        statuses: statuses(&said),
        goes_on: behind.len() + 1 == before,
        behind,
        mixed_up,
    })
}

/// A client on another connection, who must get its own response.
pub(crate) async fn witness(proxy: &Proxy) -> Result<()> {
    let response = http::get(proxy.address, "/witness").await?;
    if response.text() != "behind: /witness\n" {
        bail!("another client got {:?}", response.text());
    }
    Ok(())
}

/// Everything that came back.
async fn converse(proxy: &Proxy, case: &Case, way: Way) -> Result<Vec<u8>> {
    let address = match way {
        Way::One | Way::Two => proxy.address,
        Way::Tls => proxy.tls,
    };
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let ends = Ends::of(&stream)?;
    match way {
        Way::One => talk(stream, case, None).await,
        Way::Two => talk(stream, case, Some(ends)).await,
        Way::Tls => {
            let stream = tls::handshake(&proxy.clients, stream).await?;
            talk(stream, case, Some(ends)).await
        }
    }
}

/// In two segments if the ends of the connection are given.
async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    case: &Case,
    split: Option<Ends>,
) -> Result<Vec<u8>> {
    let mut said = Vec::new();
    let mut rest = &case.bytes[..];
    if let Some(ends) = split {
        let (first, second) = case.bytes.split_at(head_bytes(&case.bytes));
        stream.write_all(first).await.ok();
        stream.flush().await.ok();
        ends.drained().await;
        rest = second;
    }
    // A proxy may respond and close before it has read all of it.
    stream.write_all(rest).await.ok();
    stream.flush().await.ok();
    while statuses(&said).is_empty() {
        if !matches!(stream.read_buf(&mut said).await, Ok(1..)) {
            return Ok(said);
        }
    }
    if statuses(&said) == [101] {
        stream.shutdown().await.ok();
    } else {
        stream.write_all(SENTINEL.as_bytes()).await.ok();
        stream.flush().await.ok();
    }
    while matches!(stream.read_buf(&mut said).await, Ok(1..)) {}
    Ok(said)
}

/// Where the first head ends; of a head that is alone, or has no end, where its half does.
fn head_bytes(bytes: &[u8]) -> usize {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
    let end = end.map(|end| end + 4).filter(|end| *end < bytes.len());
    end.unwrap_or(bytes.len() / 2)
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

    /// What another parser could read otherwise, or became the response of somebody else: all that the edge can see to where
    /// another program has read the request.
    pub(crate) fn dangers(&self) -> Vec<String> {
        let smuggled = |seen: &&Seen| seen.target().contains("smuggled");
        let requests = || self.behind.iter().filter(|seen| seen.line != "TUNNEL");
        let mut dangers: Vec<String> = requests().filter_map(|seen| seen.fault.clone()).collect();
        dangers.extend(requests().filter(smuggled).map(|seen| seen.line.clone()));
        dangers.extend(self.mixed_up.clone());
        dangers
    }

    /// What is not as it should be.
    pub(crate) fn faults(&self, case: &Case) -> Vec<String> {
        let mut faults = self.leaks(case);
        if !self.ends {
            faults.push("no end".to_owned());
        }
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
            let value = self.over(value);
            if !self
                .behind
                .iter()
                .any(|seen| seen.values(name) == [&*value])
            {
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

    /// A value that says how the client came, as it is on this way.
    fn over(&self, value: &str) -> String {
        match (self.way, value) {
            (Way::Tls, "http") => "https".to_owned(),
            (Way::Tls, "80") => "443".to_owned(),
            (Way::Tls, _) => value.replace("proto=http", "proto=https"),
            (Way::One | Way::Two, _) => value.to_owned(),
        }
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
