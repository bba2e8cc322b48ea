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
#[path = "paths/path.rs"]
mod path;
#[path = "paths/rows.rs"]
mod rows;
#[path = "paths/run.rs"]
mod run;
#[path = "paths/site.rs"]
mod site;

use anyhow::Result;

use crate::site::Site;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_path_says_the_same() -> Result<()> {
    let report = run::all(Site::start().await?, rows::all()).await?;
    println!("{}", report.table);
    assert!(report.failures.is_empty(), "\n{}", report.failures);
    Ok(())
}
