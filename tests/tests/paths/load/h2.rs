//! The h2 crate: several streams on each of several connections, of which some are reset, and some read slowly.

use std::{future::poll_fn, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use causeway_tests::harness::tls::{self, NAME};
use h2::{Reason, RecvStream, SendStream, client::SendRequest};
use http::Request;
use ring::digest::{SHA256, digest};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{Report, Target, WORKERS};

const CONNECTIONS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(40);
const KINDS: [&str; 6] = ["length", "stream", "no last frame", "abort", "slow", "left"];

/// A request, and what its response has to be.
pub(super) struct Plan {
    pub(super) id: String,
    pub(super) body: Vec<u8>,
    sum: String,
    response: usize,
    chunked: bool,
}

impl Plan {
    pub(super) fn new(id: &str) -> Self {
        let most = if fastrand::u8(..4) == 0 {
            300_000
        } else {
            3_000
        };
        let body: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..))
            .take(fastrand::usize(1..most))
            .collect();
        let sum = digest(&SHA256, &body);
        Self {
            id: id.to_owned(),
            sum: sum
                .as_ref()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            body,
            response: fastrand::usize(..2_000),
            chunked: fastrand::bool(),
        }
    }

    pub(super) fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            ("x-id", self.id.clone()),
            ("x-sum", self.sum.clone()),
            ("x-response", self.response.to_string()),
        ];
        if self.chunked {
            headers.push(("x-chunked", "1".to_owned()));
        }
        headers
    }

    /// The body in at most four pieces.
    pub(super) fn pieces(&self) -> Vec<&[u8]> {
        self.body.chunks(self.body.len() / 4 + 1).collect()
    }

    pub(super) fn check(&self, status: u16, id: &str, body: &[u8]) -> Result<()> {
        let text =
            |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        ensure!(status == 200, "status {status}: {}", text(body));
        ensure!(id == self.id, "the response of {id}");
        let first = format!("{} {} {}\n", self.id, self.body.len(), self.sum);
        ensure!(
            body.starts_with(first.as_bytes()),
            "the body {}",
            text(body)
        );
        let length = first.len() + self.response;
        ensure!(
            body.len() == length,
            "{} bytes and not {length}",
            body.len()
        );
        Ok(())
    }
}

pub(super) async fn load(target: &Target) -> Result<Report> {
    let mut report = Report::default();
    let mut connections = JoinSet::new();
    for number in 0..CONNECTIONS {
        let target = target.clone();
        connections.spawn(async move { connection(number, &target).await });
    }
    for one in connections.join_all().await {
        let one = one?;
        report.failures.extend(one.failures);
        for (kind, count) in one.kinds {
            *report.kinds.entry(kind).or_default() += count;
        }
    }
    Ok(report)
}

async fn connection(number: usize, target: &Target) -> Result<Report> {
    let stream = tls::handshake(&target.http2, TcpStream::connect(target.tls).await?).await?;
    let (client, connection) = h2::client::handshake(stream).await?;
    let mut driving = JoinSet::new();
    driving.spawn(async move { connection.await.err() });
    let client = Arc::new(client.ready().await?);
    let workers = (0..WORKERS).map(|worker| {
        let client = SendRequest::clone(&client);
        worker_of(format!("h2-{number}-{worker}"), client, target)
    });
    let mut all = Report::default();
    for one in futures_util::future::join_all(workers).await {
        all.failures.extend(one.failures);
        for (kind, count) in one.kinds {
            *all.kinds.entry(kind).or_default() += count;
        }
    }
    Ok(all)
}

async fn worker_of(name: String, mut client: SendRequest<Bytes>, target: &Target) -> Report {
    let mut report = Report::default();
    let mut number = 0;
    while Instant::now() < target.until && !report.is_busy() {
        number += 1;
        let kind = KINDS[fastrand::usize(..KINDS.len())];
        let mut plan = Plan::new(&format!("{name}-{number}"));
        if matches!(kind, "slow" | "left") {
            plan.response = 400_000;
        }
        let done = timeout(PATIENCE, one(&mut client, &plan, kind)).await;
        let done = done.unwrap_or_else(|_| Err(anyhow::anyhow!("no end")));
        if let Err(error) = done {
            let bytes = plan.body.len();
            report
                .failures
                .push(format!("{kind} of {bytes} bytes: {error:#}"));
        }
        report.sent(kind.to_owned());
        sleep(Duration::from_millis(fastrand::u64(..10))).await;
    }
    report
}

async fn one(client: &mut SendRequest<Bytes>, plan: &Plan, kind: &str) -> Result<()> {
    let mut request = Request::post(format!("https://{NAME}/load"));
    for (name, value) in plan.headers() {
        request = request.header(name, value);
    }
    if kind == "length" {
        request = request.header("content-length", plan.body.len());
    }
    poll_fn(|cx| client.poll_ready(cx)).await?;
    let (response, mut sending) = client.send_request(request.body(())?, false)?;
    let pieces = plan.pieces();
    let sent = if kind == "abort" {
        &pieces[..pieces.len() / 2]
    } else {
        &pieces[..]
    };
    let ends = matches!(kind, "length" | "no last frame");
    for (number, piece) in sent.iter().enumerate() {
        data(&mut sending, piece, ends && number + 1 == sent.len()).await?;
    }
    if kind == "abort" {
        sending.send_reset(Reason::CANCEL);
        return Ok(());
    }
    if !ends {
        sending.send_data(Bytes::new(), true)?;
    }
    let response = response.await.context("no response")?;
    let status = response.status().as_u16();
    let id = response.headers().get("x-id");
    let id = id
        .and_then(|id| id.to_str().ok())
        .unwrap_or_default()
        .to_owned();
    let Some(body) = read(response.into_body(), kind).await? else {
        sending.send_reset(Reason::CANCEL);
        return Ok(());
    };
    plan.check(status, &id, &body)
}

async fn data(sending: &mut SendStream<Bytes>, bytes: &[u8], end: bool) -> Result<()> {
    let mut rest = Bytes::copy_from_slice(bytes);
    while !rest.is_empty() {
        sending.reserve_capacity(rest.len());
        let capacity = poll_fn(|cx| sending.poll_capacity(cx)).await;
        let capacity = capacity.context("the stream is closed")??;
        let part = rest.split_to(capacity.min(rest.len()));
        sending.send_data(part, end && rest.is_empty())?;
    }
    Ok(())
}

/// Reads a body as its kind has it; `None` if it was given up.
async fn read(mut body: RecvStream, kind: &str) -> Result<Option<Vec<u8>>> {
    let mut all = Vec::new();
    let mut slow = 12;
    while let Some(piece) = body.data().await {
        let piece = piece?;
        all.extend_from_slice(&piece);
        if kind == "left" && 50_000 < all.len() {
            return Ok(None);
        }
        if kind == "slow" && 0 < slow {
            slow -= 1;
            sleep(Duration::from_millis(15)).await;
        }
        body.flow_control().release_capacity(piece.len())?;
    }
    Ok(Some(all))
}
