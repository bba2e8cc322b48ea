//! One table of cases over all paths: whatever way a request takes through the edge, the backend sees the same request and the
//! client the same response.
//!
//! A row ([`case::case`]) says what a client sends, what the backend does with it byte by byte, and what both must see. It is played
//! on every path ([`path::Path`]) against the real programs: head and body in one segment, in two, byte by byte, behind
//! `Expect: 100-continue`, in HTTP/1.0, over TLS, over HTTP/2, and through the edge in a Pingora server; upgrades in HTTP/1.1 and as
//! extended CONNECT over HTTP/2. "In two segments" is no pause: the second is sent when the kernel says that the edge has read
//! the first. What holds for every row is in [`check`], what follows from the version of HTTP in [`case::Case::on`], and a path
//! that rightly differs says so in the row (`differs`, `skips`), with the reason. Behind every response the same connection is
//! asked for another one, which must get its own response; behind every request nothing may reach the backend.
//!
//! Behind the table, [`load`] is the same promise under load: four client libraries at once, for 20 seconds or as long as
//! `make mixed-load` says. [`stuck`] has clients that read nothing, or whose backends do not, and [`permits`] the limits of
//! WebSockets over HTTP/2.
//!
//! The table is printed with `--nocapture`; `CAUSEWAY_CASE=text` plays the rows with this in their names alone, and
//! `CAUSEWAY_PATH=h2` one path.

#[path = "paths/backend.rs"]
mod backend;
#[path = "paths/case.rs"]
mod case;
#[path = "paths/check.rs"]
mod check;
#[path = "paths/exchange.rs"]
mod exchange;
#[path = "paths/got.rs"]
mod got;
#[path = "paths/http1.rs"]
mod http1;
#[path = "paths/http2.rs"]
mod http2;
#[path = "paths/load.rs"]
mod load;
#[path = "paths/path.rs"]
mod path;
#[path = "paths/permits.rs"]
mod permits;
#[path = "paths/rows.rs"]
mod rows;
#[path = "paths/run.rs"]
mod run;
#[path = "paths/site.rs"]
mod site;
#[path = "paths/stuck.rs"]
mod stuck;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use causeway_tests::harness::{http, wait};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::{
    case::{Behind, BodyEnd, Case, HELLO, Step, case, does, get, post, send, sends},
    path::ALL,
    site::Site,
    stuck::{Kind, Wire},
};

/// One at a time: each of them has the machine to itself.
static TURN: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_says_the_same() -> Result<()> {
    let _turn = TURN.lock().await;
    let report = run::all(Site::start().await?, rows::all()).await?;
    println!("{}", report.table);
    assert!(report.failures.is_empty(), "\n{}", report.failures);
    Ok(())
}

/// A kept connection on which something comes while no request is under way is out of step.
#[tokio::test]
async fn a_connection_on_which_a_backend_speaks_first_is_not_used_again() -> Result<()> {
    let _turn = TURN.lock().await;
    let site = Site::start().await?;
    let unexpected = case(
        "a response to no request",
        get("/plain").then(Behind::Nothing),
    )
    .attempted(vec![
        sends(&[HELLO])
            .then(send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"))
            .spent("a response came to no request"),
    ])
    .connection(case::Connection::Either);
    let rows = [
        unexpected.clone(),
        case("a GET behind it", get("/plain")),
        unexpected,
        case("a POST behind it", post("/plain", &[b"hello"])),
    ];
    let mut faults = Vec::new();
    for path in ALL {
        faults.extend(run::in_turn(&site, path, &rows).await);
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    Ok(())
}

/// An alert on what attackers do must not fire because of people who close a page.
#[tokio::test]
async fn a_client_that_leaves_is_one_line_and_no_refusal_on_every_path() -> Result<()> {
    let _turn = TURN.lock().await;
    let site = Site::start().await?;
    let waits = does(vec![Step::ReadAll, Step::Silent]);
    let rows: [Case; 3] = [
        case("leaves while it waits", get("/left").then(Behind::Leave)),
        case(
            "leaves behind its body",
            post("/left", &[b"hello"]).then(Behind::Leave),
        ),
        case(
            "leaves within its body",
            post("/left", &[b"hello"])
                .declares(1000)
                .then(Behind::Leave),
        )
        .sees_body(BodyEnd::Cut),
    ]
    .map(|case| case.attempted(vec![waits.clone()]));
    let (mut faults, mut left) = (Vec::new(), BTreeMap::new());
    for path in ALL {
        faults.extend(run::in_turn(&site, path, &rows).await);
        *left.entry(path.program().name()).or_default() +=
            rows.iter().filter(|row| row.on(path).is_some()).count();
    }
    for (name, edge) in site.programs() {
        let wanted: usize = left
            .get(name)
            .copied()
            .context("a program without a path")?;
        let lines = || {
            let lines = edge.process.output_lines();
            let left = lines.into_iter().filter(|line| line["path"] == "/left");
            left.map(|line| line["status"].clone())
                .collect::<Vec<Value>>()
        };
        let logged = wait::until("a line for each", wait::SOON, async || {
            (wanted <= lines().len()).then_some(())
        });
        logged
            .await
            .with_context(|| format!("{name}: {:?}", lines()))?;
        let statuses = lines();
        if statuses != vec![Value::from(499); wanted] {
            faults.push(format!(
                "{name}: the access log has {statuses:?} for {wanted}"
            ));
        }
        let page = http::get(edge.admin, "/metrics").await?.text();
        let refused = page
            .lines()
            .filter(|line| line.starts_with("causeway_proxy_refusals"));
        faults.extend(refused.map(|line| format!("{name}: {line}")));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    Ok(())
}

/// `make mixed-load` runs it for minutes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_aborts_and_slow_readers_at_once_mix_nothing_up_and_leave_nothing() -> Result<()> {
    let _turn = TURN.lock().await;
    println!("{}", load::run().await?);
    Ok(())
}

/// Runs clients that are stuck with `kind` over each of `wires`, one after the other; what each came to.
async fn stuck_over(kind: Kind, wires: &[Wire]) -> Result<String> {
    let _turn = TURN.lock().await;
    let mut lines = Vec::new();
    for wire in wires {
        lines.push(stuck::run(kind, *wire).await?);
    }
    Ok(lines.join("\n"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_that_nobody_reads_take_little_memory() -> Result<()> {
    let wires = [Wire::Http2, Wire::Http2WideOpen, Wire::Plain, Wire::Tls];
    println!("{}", stuck_over(Kind::Response, &wires).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_that_no_backend_reads_take_little_memory() -> Result<()> {
    let wires = [Wire::Http2, Wire::Plain, Wire::Tls];
    println!("{}", stuck_over(Kind::Upload, &wires).await?);
    Ok(())
}

#[tokio::test]
async fn a_websocket_over_http2_cannot_exist_without_its_permits() -> Result<()> {
    let _turn = TURN.lock().await;
    permits::run().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_that_nobody_reads_take_little_memory() -> Result<()> {
    let wires = [Wire::Http2, Wire::Http2WideOpen, Wire::Plain, Wire::Tls];
    println!("{}", stuck_over(Kind::Tunnel, &wires).await?);
    Ok(())
}
