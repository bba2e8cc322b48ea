//! A WebSocket over HTTP/2 cannot exist without its permits: it has a descriptor to its backend, as one over HTTP/1.1 has.

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{http, wait};
use futures_util::future::{join_all, try_join_all};
use h2::client::Builder;
use serde_json::json;

use crate::stuck::{
    Http2Client, Site,
    backend::{ECHO, REFUSED},
    http2::Stream,
    value,
};

/// How many connections, or tunnels, a limit allows.
const MOST: usize = 20;

/// Each limit that a tunnel counts for, how many tunnels of one connection fit in it, and what those above it get.
const LIMITS: [(&str, usize, u16); 4] = [
    // One is taken by the connection itself.
    ("connections", MOST - 1, 503),
    ("tunnels", MOST, 503),
    ("tunnels_per_address", MOST, 429),
    ("tunnels_per_backend", MOST, 503),
];

/// Opens as many tunnels as each limit allows, and no more, as often as some of them end.
pub(crate) async fn run() -> Result<()> {
    for (limit, fit, status) in LIMITS {
        let checked = under_limit(limit, fit, status).await;
        checked.with_context(|| format!("limits.{limit}"))?;
    }
    Ok(())
}

async fn under_limit(limit: &str, fit: usize, status: u16) -> Result<()> {
    let site = start(limit).await?;
    let client = Http2Client::connect(&site, Builder::new()).await?;
    // One after the other, so that it is the last ones that are too many.
    let mut open = Vec::new();
    for _ in 0..fit {
        let (status, tunnel) = client.tunnel(ECHO).await?;
        ensure!(status == 200, "tunnel {} was answered {status}", open.len());
        open.extend(tunnel);
    }
    for _ in 0..3 {
        let (answered, _) = client.tunnel(ECHO).await?;
        ensure!(answered == status, "one too many was answered {answered}");
    }
    until_open(&site, fit).await?;
    // A stream that is no tunnel needs none of it; and the connections are those of all clients.
    client.get("/").await?;
    let other = http::get(site.edge.address, "/").await?.status;
    let wanted = if limit == "connections" { 503 } else { 200 };
    ensure!(other == wanted, "another client was answered {other}");

    let ended = end_some(&mut open).await?;
    until_open(&site, fit - ended).await?;
    for _ in 0..2 * MOST {
        let (answered, _) = client.tunnel(REFUSED).await?;
        ensure!(answered == 403, "the refusal was answered {answered}");
    }
    until_open(&site, fit - ended).await?;
    let again = at_once(&client, ended + 3, status).await?;
    ensure!(again.len() == ended, "{} and not {ended}", again.len());

    drop((client, open, again));
    site.nothing_left().await?;
    // With as many connections, so that two of them go for the last permit.
    let clients =
        [Builder::new(), Builder::new()].map(|builder| Http2Client::connect(&site, builder));
    let clients = try_join_all(clients).await?;
    let racing = clients
        .iter()
        .map(|client| at_once(client, 2 * MOST, status));
    let open: Vec<Stream> = try_join_all(racing).await?.into_iter().flatten().collect();
    let fit = if limit == "connections" { fit - 1 } else { fit };
    ensure!(
        open.len() == fit,
        "{} of two clients, not {fit}",
        open.len()
    );
    drop((clients, open));
    site.nothing_left().await
}

/// An edge with this limit alone.
async fn start(limit: &str) -> Result<Site> {
    let key = format!("limits.{limit}");
    let site = Site::start(|settings| settings.with(&key, json!(MOST))).await?;
    // What has asked whether it listens holds a permit until the edge sees it gone.
    site.nothing_left().await?;
    Ok(site)
}

/// Ends some tunnels in each way that a client has, and says how many.
async fn end_some(open: &mut Vec<Stream>) -> Result<usize> {
    const EACH: usize = 3;
    open.drain(..EACH).for_each(Stream::reset);
    for stream in open.iter_mut().take(EACH) {
        stream.finish().await?;
    }
    open.truncate(open.len() - EACH);
    Ok(3 * EACH)
}

/// Asks for so many tunnels at the same time; those that were opened. The others must be answered `status`.
async fn at_once(client: &Http2Client, count: usize, status: u16) -> Result<Vec<Stream>> {
    let asked = join_all((0..count).map(|_| client.tunnel(ECHO))).await;
    let mut open = Vec::new();
    for answered in asked {
        match answered? {
            (200, stream) => open.extend(stream),
            (other, _) => ensure!(other == status, "one too many was answered {other}"),
        }
    }
    Ok(open)
}

/// Waits until so many tunnels are open, and have given back what is not theirs.
async fn until_open(site: &Site, wanted: usize) -> Result<()> {
    let what = format!("{wanted} open tunnels");
    let found = wait::until(&what, wait::SOON, async || {
        let page = http::get(site.edge.admin, "/metrics").await.ok()?.text();
        let tunnels = value(&page, "causeway_proxy_tunnels_open{backend=\"b1\"}")?;
        // The permits, with that of the connection that they come over.
        let connections = value(&page, "causeway_proxy_connections_open")?;
        (tunnels == wanted && connections == wanted + 1).then_some(())
    });
    found.await
}
