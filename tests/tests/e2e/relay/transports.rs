//! Every transport of sockjs-client in a browser, through the edge, from a page of the same origin and from one of another.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    backend::{Backend, Request},
    clients,
    edge::{self, Edge},
    node::{self, Node},
    process::Process,
    programs,
    scratch::Scratch,
};
use serde_json::{Value, json};

const MESSAGES: usize = 1_000;
/// How many of them may be on their way.
const IN_FLIGHT: usize = 100;
const DEADLINE: Duration = Duration::from_secs(600);

const TRANSPORTS: [&str; 9] = [
    "websocket",
    "xhr-streaming",
    "eventsource",
    "iframe-eventsource",
    "htmlfile",
    "iframe-htmlfile",
    "xhr-polling",
    "iframe-xhr-polling",
    "jsonp-polling",
];

const PAGE: &str = "<!doctype html><meta charset=\"utf-8\"><title>sockjs-client</title>\
                    <script src=\"/sockjs.js\"></script><body></body>";

/// A server with a page and the client's script.
async fn pages() -> Result<Backend> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("clients/node_modules/sockjs-client/dist/sockjs.min.js");
    let script = fs::read_to_string(&script)
        .with_context(|| format!("{}: run `npm ci --prefix tests/clients`", script.display()))?;
    Backend::start(move |mut request: Request| {
        let script = script.clone();
        async move {
            let path = request.head.split(' ').nth(1).unwrap_or_default();
            let (status, content_type, body) = match path {
                "/page.html" => ("200 OK", "text/html", PAGE),
                "/sockjs.js" => ("200 OK", "text/javascript", script.as_str()),
                _ => ("404 Not Found", "text/plain", ""),
            };
            let headers = format!("Content-Type: {content_type}; charset=utf-8\r\n");
            // A browser that has gone needs no page.
            request.respond(status, &headers, body).await.ok();
        }
    })
    .await
}

/// Two nodes at `/echo` and the pages everywhere else.
async fn edge_before(nodes: &[Node], pages: SocketAddr, directory: &Path) -> Result<Edge> {
    let backends: Vec<Value> = nodes
        .iter()
        .map(|node| json!({ "id": node.id, "address": node.address.to_string() }))
        .collect();
    let page = json!([{ "id": "page", "address": pages.to_string() }]);
    let settings = edge::settings(&[])
        .with(
            "pools",
            json!([{ "name": "nodes", "backends": backends }, { "name": "pages", "backends": page }]),
        )
        .with(
            "routes",
            json!([{ "path": "/echo", "pool": "nodes" }, { "path": "/", "pool": "pages" }]),
        );
    let edge = Edge::start(&settings, directory).await?;
    for id in nodes.iter().map(|node| &*node.id).chain(["page"]) {
        edge.backend_in_state(id, "up").await?;
    }
    Ok(edge)
}

#[tokio::test]
async fn a_thousand_messages_of_every_plane_come_back_in_order_over_every_transport() -> Result<()>
{
    let scratch = Scratch::new("transports")?;
    let echo = json!([{
        "path": "/echo", "protocol": "sockjs", "mode": "echo", "allowed_origins": ["*"], "client_script": "/sockjs.js",
        "disconnect_delay": "1m",
    }]);
    let mut nodes = Vec::new();
    for id in ["n1", "n2"] {
        let settings = node::settings().with("endpoints", echo.clone());
        nodes.push(Node::start(id, settings, scratch.path()).await?);
    }
    let pages = pages().await?;
    let edge = edge_before(&nodes, pages.address, scratch.path()).await?;

    // The port alone makes it another origin.
    let origins = [("same", edge.address), ("other", pages.address)];
    let page = |address: SocketAddr| format!("http://{address}/page.html");
    let runs: Vec<Value> = origins
        .iter()
        .flat_map(|(_, address)| TRANSPORTS.map(|transport| (page(*address), transport)))
        .map(|(page, transport)| json!({ "page": page, "transport": transport }))
        .collect();
    let orders = json!({
        "chromium": programs::installed(&["chromium", "chromium-browser", "google-chrome"])?,
        "sockjs": format!("http://{}/echo", edge.address),
        "messages": MESSAGES,
        "inFlight": IN_FLIGHT,
        "runs": runs,
    });
    let command = clients::command("transports.mjs", &orders)?;
    let mut browser = Process::spawn("transports", command, scratch.path())?;
    let status = browser.exit(DEADLINE).await?;
    assert!(status.success(), "{}", browser.tail());

    let outcomes = browser.output_lines();
    println!(
        "{:20} {:8} {:>8} {:>8}",
        "transport", "origin", "echoed", "ms"
    );
    for (origin, address) in origins {
        for transport in TRANSPORTS {
            let of_run = |outcome: &&Value| {
                outcome["page"] == page(address) && outcome["transport"] == transport
            };
            let outcome = outcomes.iter().find(of_run);
            let outcome = outcome.with_context(|| format!("nothing of {transport}"))?;
            let what = format!("{transport} from the {origin} origin: {outcome}");
            // The client itself keeps htmlfile to pages of the same origin.
            let refused = (transport, origin) == ("htmlfile", "other");
            let (echoed, ms) = (&outcome["received"], &outcome["milliseconds"]);
            let note = if refused {
                "disabled by the client"
            } else {
                ""
            };
            println!("{transport:20} {origin:8} {echoed:>8} {ms:>8} {note}");
            if refused {
                assert_eq!(
                    outcome["closed"],
                    json!([2000, "All transports failed"]),
                    "{what}"
                );
                continue;
            }
            assert_eq!(outcome["used"], transport, "{what}");
            assert_eq!(outcome["received"], MESSAGES, "{what}");
            assert_eq!(outcome["wrong"], json!([]), "{what}");
            assert_eq!(outcome["closed"], Value::Null, "{what}");
            assert_eq!(outcome["errors"], json!([]), "{what}");
        }
    }
    Ok(())
}
