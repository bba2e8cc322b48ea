//! TLS at the edge: what is served over it, certificates that change, sessions that resume, the plain listener beside it, and
//! the PROXY protocol.

use std::{net::SocketAddr, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    backend::{Backend, Request},
    clients,
    edge::{self, Edge, Program},
    http::{self, Connection},
    node::{self, Node},
    programs,
    scratch::Scratch,
    settings::Settings,
    tls::{Authority, NAME},
    wait,
};
use causeway_tests::on_edge_and_plugin;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// For a client program to come to its end.
const DEADLINE: Duration = Duration::from_secs(60);

/// The settings of an edge that speaks TLS with the certificates in `folder`.
fn with_tls(backends: &[(&str, SocketAddr)], folder: &Path) -> Settings {
    let tls = json!({ "folder": folder });
    edge::settings(backends).with(
        "listeners",
        json!([{ "address": "127.0.0.1:0", "tls": tls }]),
    )
}

/// Runs the client program to its end.
async fn run(scratch: &Scratch, orders: Value) -> Result<Value> {
    let mut orders = orders;
    orders["ca"] = json!(scratch.path().join("authority.ca"));
    orders["name"] = json!(NAME);
    let mut command = clients::command("tls.mjs", &orders)?;
    let output = timeout(DEADLINE, command.kill_on_drop(true).output());
    let output = output.await.context("the client does not end")??;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).with_context(|| format!("the client says: {said}"))
}

/// A backend that responds with the head that it got.
async fn mirror() -> Result<Backend> {
    Backend::start(async |mut request: Request| {
        let head = request.head.clone();
        let answered = request.respond("200 OK", "", &head).await;
        // A close with an unread body would reset the connection, and the edge might lose the response.
        let mut rest = [0; 4096];
        while answered.is_ok() && matches!(request.stream.read(&mut rest).await, Ok(1..)) {}
    })
    .await
}

#[tokio::test]
async fn https_http2_and_websockets_are_served_over_tls() -> Result<()> {
    let scratch = Scratch::new("tls")?;
    Authority::new(scratch.path())?.renew(scratch.path())?;
    let backend = mirror().await?;
    let node = Node::start("n1", node::settings(), scratch.path()).await?;
    let backends = [("b1", backend.address), ("n1", node.address)];
    let settings = with_tls(&backends, scratch.path());
    let pool = |name, id, address: SocketAddr| json!({ "name": name, "backends": [{ "id": id, "address": address }] });
    let pools = json!([
        pool("mirror", "b1", backend.address),
        pool("nodes", "n1", node.address)
    ]);
    let routes = json!([{ "path": "/", "pool": "mirror" }, { "path": "/echo", "pool": "nodes" }]);
    let settings = settings.with("pools", pools).with("routes", routes);
    let edge = Edge::start(&settings, scratch.path()).await?;
    edge.backend_in_state("b1", "up").await?;
    edge.backend_in_state("n1", "up").await?;

    let port = edge.address.port();
    let seen = run(&scratch, json!({ "port": port, "websocket": true })).await?;
    let one = &seen["one"];
    assert_eq!(one["status"], 200);
    let head = one["body"].as_str().unwrap_or_default().to_lowercase();
    assert!(head.contains("x-forwarded-proto: https"), "{head}");
    let cookie = one["cookies"][0].as_str().unwrap_or_default();
    assert!(cookie.contains("Secure"), "{cookie}");
    for (response, path) in [(0, "/two"), (1, "/three"), (2, "/four")] {
        let response = &seen["two"][response];
        assert_eq!(response["status"], 200, "{path}");
        let head = response["body"].as_str().unwrap_or_default().to_lowercase();
        assert!(head.contains(&format!(" {path} http/1.1")), "{head}");
        assert!(head.contains(&format!("host: {NAME}:{port}")), "{head}");
        assert!(head.contains("cookie: a=1; b=2"), "{head}");
    }
    assert_eq!(seen["websocket"], json!({ "right": true, "code": 1000 }));
    Ok(())
}

#[tokio::test]
async fn a_session_resumes_on_another_edge_that_shares_the_keys() -> Result<()> {
    let scratch = Scratch::new("tls-resume")?;
    Authority::new(scratch.path())?.renew(scratch.path())?;
    let keys = scratch.path().join("tickets");
    std::fs::write(&keys, "5a".repeat(48))?;
    let tls = json!({ "folder": scratch.path(), "ticket_keys": keys });
    let settings = edge::settings(&[("b1", "127.0.0.1:1".parse()?)]).with(
        "listeners",
        json!([{ "address": "127.0.0.1:0", "tls": tls }]),
    );
    let (first, second) = (
        Edge::start(&settings, scratch.path()).await?,
        Edge::start(&settings, scratch.path()).await?,
    );
    let orders = json!({ "port": first.address.port(), "second": second.address.port() });
    assert_eq!(
        run(&scratch, orders).await?,
        json!({ "first": false, "second": true })
    );
    Ok(())
}

/// A client program that goes on until it is told to stop.
struct Holder {
    process: Child,
    lines: tokio::io::Lines<BufReader<ChildStdout>>,
}

impl Holder {
    async fn start(scratch: &Scratch, port: u16, tunnels: usize) -> Result<Self> {
        let ca = scratch.path().join("authority.ca");
        let orders = json!({ "port": port, "hold": tunnels, "ca": ca, "name": NAME });
        let mut command = clients::command("tls.mjs", &orders)?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut process = command.spawn()?;
        let stdout = process.stdout.take().context("it is piped")?;
        let lines = BufReader::new(stdout).lines();
        let mut holder = Self { process, lines };
        assert_eq!(holder.line().await?, json!({ "open": tunnels }));
        Ok(holder)
    }

    async fn line(&mut self) -> Result<Value> {
        let line = timeout(DEADLINE, self.lines.next_line())
            .await
            .context("it says nothing")??;
        Ok(serde_json::from_str(&line.context("it has ended")?)?)
    }

    async fn stop(mut self) -> Result<Value> {
        let mut stdin = self.process.stdin.take().context("it is piped")?;
        stdin.write_all(b"stop\n").await?;
        self.line().await
    }
}

/// How often the edge has taken or refused new files.
async fn exchanges(edge: &Edge, result: &str) -> Option<u64> {
    let page = causeway_tests::harness::http::get(edge.admin, "/metrics")
        .await
        .ok()?
        .text();
    let name = format!("causeway_proxy_certificate_exchanges_total{{result=\"{result}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&name))?;
    line.parse().ok()
}

#[tokio::test]
async fn certificates_change_under_tunnels_and_handshakes_and_nobody_notices() -> Result<()> {
    let scratch = Scratch::new("tls-swap")?;
    let folder = scratch.path().join("certificates");
    std::fs::create_dir(&folder)?;
    let authority = Authority::new(scratch.path())?;
    authority.renew(&folder)?;
    let node = Node::start("n1", node::settings(), scratch.path()).await?;
    let settings = with_tls(&[("n1", node.address)], &folder);
    let edge = Edge::start(&settings, scratch.path()).await?;
    edge.backend_in_state("n1", "up").await?;
    let holder = Holder::start(&scratch, edge.address.port(), 50).await?;

    let rounds = 3;
    for round in 1..=rounds {
        std::fs::write(folder.join("site.crt"), "broken")?;
        wait::until("the broken file to be refused", wait::SOON, async || {
            (round <= exchanges(&edge, "refused").await?).then_some(())
        })
        .await?;
        authority.renew(&folder)?;
        wait::until("the new certificate to be taken", wait::SOON, async || {
            (round <= exchanges(&edge, "taken").await?).then_some(())
        })
        .await?;
    }
    let seen = holder.stop().await?;
    assert_eq!(
        (&seen["closed"], &seen["echoed"], &seen["failed"]),
        (&json!(0), &json!(50), &json!(0)),
        "{seen}"
    );
    assert!(
        1 < seen["certificates"].as_u64().unwrap_or_default(),
        "{seen}"
    );
    Ok(())
}

#[tokio::test]
async fn a_plain_listener_sends_everyone_to_https_but_challenges() -> Result<()> {
    let scratch = Scratch::new("tls-redirect")?;
    let backend = mirror().await?;
    let settings = edge::settings(&[("b1", backend.address)]).with(
        "listeners",
        json!([{ "address": "127.0.0.1:0", "redirect_to_https": 8443 }]),
    );
    let edge = Edge::start(&settings, scratch.path()).await?;
    edge.backend_in_state("b1", "up").await?;
    let ask = async |target: &str, host: &str, more: &str| {
        let mut connection = Connection::open(edge.address).await?;
        connection
            .send(format!(
                "GET {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n"
            ))
            .await?;
        connection.response().await
    };
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    for more in ["", upgrade] {
        let response = ask("/a?b=c", "chat.example:80", more).await?;
        assert_eq!(response.status, 308);
        assert_eq!(
            response.header("location"),
            Some("https://chat.example:8443/a?b=c")
        );
    }
    assert_eq!(ask("/a", "evil.example/x", "").await?.status, 400);
    let challenge = ask("/.well-known/acme-challenge/token", "chat.example", "").await?;
    assert_eq!(challenge.status, 200);
    Ok(())
}

#[tokio::test]
async fn a_balancer_in_front_says_who_the_client_is_and_nobody_else_may() -> Result<()> {
    let scratch = Scratch::new("proxy-protocol")?;
    let backend = mirror().await?;
    let start = async |announcing: &str| {
        let listener = json!({ "address": "127.0.0.1:0", "proxy_protocol": [announcing] });
        let settings =
            edge::settings(&[("b1", backend.address)]).with("listeners", json!([listener]));
        let edge = Edge::start(&settings, scratch.path()).await?;
        edge.backend_in_state("b1", "up").await?;
        anyhow::Ok(edge)
    };
    let v1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 4321 443\r\n".to_vec();
    let v2 = [
        &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..],
        &[192, 0, 2, 7, 198, 51, 100, 1, 16, 225, 1, 187],
    ]
    .concat();
    let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let trusting = start("127.0.0.0/8").await?;
    for header in [v1.clone(), v2] {
        let mut connection = Connection::open(trusting.address).await?;
        // Piece by piece, as a network may bring it.
        let (start, rest) = header.split_at(9);
        connection.send(start).await?;
        connection.send([rest, request].concat()).await?;
        let head = connection.response().await?.text().to_lowercase();
        assert!(head.contains("x-forwarded-for: 192.0.2.7\r\n"), "{head}");
    }
    let mut without = Connection::open(trusting.address).await?;
    without.send(request).await?;
    assert!(
        without.response().await.is_err(),
        "a trusted peer without a header is closed"
    );
    let distrusting = start("192.0.2.0/24").await?;
    let mut forger = Connection::open(distrusting.address).await?;
    forger.send([&v1[..], request].concat()).await?;
    assert_eq!(forger.response().await?.status, 400);
    let mut direct = Connection::open(distrusting.address).await?;
    direct.send(request).await?;
    let head = direct.response().await?.text().to_lowercase();
    assert!(head.contains("x-forwarded-for: 127."), "{head}");
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_with_the_files_is_said_at_the_start() -> Result<()> {
    let scratch = Scratch::new("tls-wrong")?;
    let settings = with_tls(&[("b1", "127.0.0.1:1".parse()?)], scratch.path());
    let error = Edge::start(&settings, scratch.path()).await.unwrap_err();
    let said = format!("{error:#}");
    assert!(said.contains("no certificate"), "{said}");
    Ok(())
}

on_edge_and_plugin!(a_missing_file_of_authorities_stops_nobody_who_does_not_need_it);

async fn a_missing_file_of_authorities_stops_nobody_who_does_not_need_it(
    program: Program,
) -> Result<()> {
    const MISSING: &str = "/nowhere/authorities.pem";
    let scratch = Scratch::new("no-authorities")?;
    let backend = mirror().await?;
    let settings = edge::settings(&[("b1", backend.address)]);
    // A directory may be named in the environment of this test, and be there.
    let environment = [("SSL_CERT_FILE", MISSING), ("SSL_CERT_DIR", "/nowhere")];
    for kind in ["node", "tcp"] {
        let settings = settings.clone().with("health.kind", json!(kind));
        let edge = Edge::start_with(program, &environment, &settings, scratch.path()).await?;
        edge.backend_in_state("b1", "up").await?;
        assert_eq!(http::get(edge.address, "/").await?.status, 200, "{kind}");
    }
    // Who needs them is told which file it is; with others there is no need.
    let authority = Authority::new(scratch.path())?;
    drop(authority);
    let ca = scratch.path().join("authority.ca");
    for (tls, is_right) in [
        (json!({}), false),
        (json!({ "ca": ca }), true),
        (json!({ "verify": false }), true),
    ] {
        let pools = json!([{
            "name": "nodes",
            "tls": tls,
            "backends": [{ "id": "b1", "address": backend.address }],
        }]);
        let file = scratch.write(
            "checked.yaml",
            &settings.clone().with("pools", pools).text(),
        )?;
        let mut check = Command::new(programs::ours("causeway-proxy")?);
        check.arg("--check").arg("--config").arg(file);
        check.envs(environment).kill_on_drop(true);
        let checked = check.output().await?;
        let said = String::from_utf8_lossy(&checked.stderr).into_owned();
        assert_eq!(checked.status.success(), is_right, "{tls}: {said}");
        assert_eq!(said.contains(MISSING), !is_right, "{tls}: {said}");
    }
    Ok(())
}
