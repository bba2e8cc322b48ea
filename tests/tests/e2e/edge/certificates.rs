//! Certificates that change, rightly and wrongly, under live tunnels and constant handshakes; and sessions that OpenSSL's own
//! client resumes on another edge.
//!
//! `make swaps` runs it with 100 exchanges under 2,000 tunnels.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::symlink,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use causeway_tests::harness::{
    descriptors,
    edge::{self, Edge},
    environment, http, memory,
    node::{self, Node},
    programs,
    scratch::Scratch,
    settings::Settings,
    tls::{self, Authority, Fault, NAME},
    wait,
    websocket::KEY,
};
use futures_util::{SinkExt as _, StreamExt as _};
use rustls::ClientConfig;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};
use tokio_util::sync::CancellationToken;

/// For one response.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the edge may have grown by at the end: nothing for each exchange, and some for what the allocator keeps.
const GROWTH_MAX: u64 = 8 * 1024 * 1024;

type Tunnel = WebSocketStream<TlsStream<TcpStream>>;

async fn open(clients: &Arc<ClientConfig>, address: SocketAddr) -> Result<Tunnel> {
    let stream = tls::connect_from(Ipv4Addr::LOCALHOST, address).await?;
    let mut stream = tls::handshake(clients, stream).await?;
    let head = format!(
        "GET /echo/websocket HTTP/1.1\r\nHost: {NAME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        response.push(stream.read_u8().await?);
    }
    if !response.starts_with(b"HTTP/1.1 101 ") {
        bail!("no WebSocket: {}", response.escape_ascii());
    }
    Ok(WebSocketStream::from_raw_socket(stream, Role::Client, None).await)
}

async fn echo(tunnel: &mut Tunnel, text: &str) -> Result<()> {
    tunnel.send(Message::text(text)).await?;
    // The node asks idle tunnels whether they live.
    let echo = loop {
        let message = timeout(PATIENCE, tunnel.next()).await;
        let message = message
            .context("no echo in time")?
            .context("the tunnel has ended")??;
        if !message.is_ping() {
            break message;
        }
    };
    if echo.to_text()? != text {
        bail!("{text} came back as {echo:?}");
    }
    Ok(())
}

/// Makes new connections until it is told to stop: how many, and how many certificates they saw.
async fn connect_on(
    clients: Arc<ClientConfig>,
    address: SocketAddr,
    stop: CancellationToken,
) -> Result<(usize, usize)> {
    let (mut handshakes, mut seen) = (0, HashSet::new());
    while !stop.is_cancelled() {
        let stream = tls::connect_from(Ipv4Addr::LOCALHOST, address).await?;
        let stream = tls::handshake(&clients, stream).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let certificate = certificates.and_then(<[_]>::first);
        seen.insert(certificate.context("there is one")?.to_vec());
        handshakes += 1;
    }
    Ok((handshakes, seen.len()))
}

/// How often the edge has taken or refused new files.
async fn exchanges(edge: &Edge, result: &str) -> Option<usize> {
    let page = http::get(edge.admin, "/metrics").await.ok()?.text();
    let name = format!("causeway_proxy_certificate_exchanges_total{{result=\"{result}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&name))?;
    line.parse().ok()
}

fn with_tls(backend: SocketAddr, folder: &Path) -> Settings {
    let listener = json!({ "address": "127.0.0.1:0", "tls": { "folder": folder } });
    edge::settings(&[("n1", backend)]).with("listeners", json!([listener]))
}

#[tokio::test]
async fn exchanges_drop_no_tunnel_fail_no_handshake_and_keep_no_memory() -> Result<()> {
    descriptors::raise_limit()?;
    let (rounds, number) = (
        environment::number("CAUSEWAY_SWAPS").unwrap_or(6_usize),
        environment::number("CAUSEWAY_TUNNELS").unwrap_or(100_usize),
    );
    // A tenth of many, and each kind once in few.
    let every = if rounds < 30 { 2 } else { 10 };
    let scratch = Scratch::new("certificates")?;
    let folder = scratch.path().join("certificates");
    std::fs::create_dir(&folder)?;
    let authority = Authority::new(scratch.path())?;
    authority.renew(&folder)?;
    // It takes no client for gone that replies to its pings once in an exchange.
    let endpoints = json!([{
        "path": "/echo", "protocol": "sockjs", "mode": "echo", "ping": { "interval": "25s", "timeout": "10m" },
    }]);
    let node = node::settings().with("endpoints", endpoints);
    let node = Node::start("n1", node, scratch.path()).await?;
    let settings = with_tls(node.address, &folder).with("log.access", json!("off"));
    let mut edge = Edge::start(&settings, scratch.path()).await?;
    edge.backend_in_state("n1", "up").await?;

    let clients = authority.clients("http/1.1")?;
    let mut tunnels = Vec::new();
    for _ in 0..number {
        tunnels.push(open(&clients, edge.address).await?);
    }
    let stop = CancellationToken::new();
    let mut newcomers = JoinSet::new();
    newcomers.spawn(connect_on(Arc::clone(&clients), edge.address, stop.clone()));
    let pid = edge.process.pid();
    let (mut before, mut taken, mut refused) = (0, 0, 0);
    for round in 1..=rounds {
        let faults = [Fault::OtherKey, Fault::Truncated, Fault::Expired];
        let result = if round.is_multiple_of(every) {
            authority.renew_wrongly(&folder, faults[round / every % faults.len()])?;
            refused += 1;
            ("refused", refused)
        } else {
            authority.renew(&folder)?;
            taken += 1;
            ("taken", taken)
        };
        wait::until("the new files to be looked at", wait::SOON, async || {
            (result.1 <= exchanges(&edge, result.0).await?).then_some(())
        })
        .await
        .with_context(|| format!("round {round}, {}", result.0))?;
        if let Some(failed) = newcomers.try_join_next() {
            failed?.context("a handshake")?;
        }
        // A client that reads nothing sends no pong, and the node takes it for gone.
        for (at, tunnel) in tunnels.iter_mut().enumerate() {
            let told = echo(tunnel, "still here").await;
            told.with_context(|| format!("tunnel {at} of {number}, round {round}"))?;
        }
        if round == 1 {
            before = memory::anonymous(pid)?;
        }
    }
    let after = memory::anonymous(pid)?;
    stop.cancel();
    let newcomers = newcomers.join_next().await.context("they go on")?;
    let (handshakes, certificates) = newcomers?.context("a handshake")?;
    println!(
        "{rounds} exchanges, {refused} of them refused, under {number} tunnels: none dropped; {handshakes} handshakes with \
         {certificates} certificates: none failed; {} KiB allocated after the first exchange, {} KiB after the last",
        before / 1_024,
        after / 1_024,
    );
    assert!(edge.process.is_running());
    assert!(1 < certificates, "new certificates are served");
    assert!(after < before + GROWTH_MAX, "{before} grew to {after}");
    Ok(())
}

/// Puts `files` where a volume of Kubernetes has them, all at once: links to links that are exchanged.
fn mount(folder: &Path, version: &str, files: &[(&str, &str)]) -> Result<()> {
    let real = folder.join(format!("..{version}"));
    std::fs::create_dir(&real)?;
    for (name, content) in files {
        std::fs::write(real.join(name), content)?;
        let link = folder.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(name), link)?;
        }
    }
    symlink(format!("..{version}"), folder.join("..data_tmp"))?;
    Ok(std::fs::rename(
        folder.join("..data_tmp"),
        folder.join("..data"),
    )?)
}

#[tokio::test]
async fn one_wrong_certificate_keeps_neither_the_edge_from_starting_nor_others_from_being_renewed()
-> Result<()> {
    let scratch = Scratch::new("wrong-certificates")?;
    let folder = scratch.path().join("certificates");
    std::fs::create_dir(&folder)?;
    let authority = Authority::new(scratch.path())?;
    let ca = std::fs::read_to_string(scratch.path().join("authority.ca"))?;
    // For the same name as the good one, and before it in the order of the names.
    authority.renew_wrongly(&folder, Fault::Expired)?;
    std::fs::write(folder.join("broken.crt"), "no certificate")?;
    let (certificate, key) = authority.certify(NAME)?;
    let secret = [
        ("tls.crt", certificate.as_str()),
        ("tls.key", &key),
        ("ca.crt", &ca),
    ];
    mount(&folder, "2026_01", &secret)?;
    let settings = with_tls("127.0.0.1:1".parse()?, &folder);

    let file = scratch.write("checked.yaml", &settings.text())?;
    let mut check = Command::new(programs::ours("causeway-proxy")?);
    check.arg("--check").arg("--config").arg(&file);
    let checked = check.kill_on_drop(true).output().await?;
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success(), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
    for (path, why) in [("broken.crt", "no certificate"), ("site.crt", "expired on")] {
        let line = said.lines().find(|line| line.contains(path));
        let line = line.context(path)?;
        assert!(line.contains("warning") && line.contains(why), "{line}");
    }

    let mut edge = Edge::start(&settings, scratch.path()).await?;
    let clients = authority.clients("http/1.1")?;
    let shown = async || -> Result<Vec<u8>> {
        let stream = tls::connect_from(Ipv4Addr::LOCALHOST, edge.address).await?;
        let stream = tls::handshake(&clients, stream).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        Ok(certificates
            .and_then(<[_]>::first)
            .context("there is one")?
            .to_vec())
    };
    let first = shown().await?;
    let states = async || -> Result<Vec<(String, String)>> {
        let page = http::get(edge.admin, "/certificates").await?;
        let list: Vec<serde_json::Value> = serde_json::from_slice(&page.body)?;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let entry = |it: &serde_json::Value| {
            let file = text(&it["file"]);
            let name = file.rsplit('/').next().unwrap_or_default().to_owned();
            assert_eq!(it["why"] == "", it["state"] == "good", "{it}");
            (name, text(&it["state"]))
        };
        Ok(list.iter().map(entry).collect())
    };
    let expected = [
        ("broken.crt", "unusable"),
        ("site.crt", "out_of_date"),
        ("tls.crt", "good"),
    ]
    .map(|(name, state)| (name.to_owned(), state.to_owned()));
    assert_eq!(states().await?, expected);

    let (certificate, key) = authority.certify(NAME)?;
    let secret = [
        ("tls.crt", certificate.as_str()),
        ("tls.key", &key),
        ("ca.crt", &ca),
    ];
    mount(&folder, "2026_02", &secret)?;
    wait::until("the renewed certificate", wait::SOON, async || {
        (shown().await.ok()? != first).then_some(())
    })
    .await?;
    assert_eq!(states().await?, expected);
    let page = http::get(edge.admin, "/metrics").await?.text();
    for (state, number) in [
        ("good", 1),
        ("previous", 0),
        ("out_of_date", 1),
        ("unusable", 1),
    ] {
        let line = format!("state=\"{state}\"}} {number}");
        let is_line = |line_of: &str| {
            line_of.starts_with("causeway_proxy_certificates{") && line_of.ends_with(&line)
        };
        assert!(page.lines().any(is_line), "{line}\n{page}");
    }
    let log = edge.process.log();
    for path in ["broken.crt", "site.crt"] {
        let times = log.lines().filter(|line| line.contains(path)).count();
        assert_eq!(times, 1, "{path} is named once: {log}");
    }
    assert!(edge.process.is_running());
    Ok(())
}

/// What `openssl s_client` says of one connection with one request on it.
async fn s_client(address: SocketAddr, ca: &Path, flags: &[&str]) -> Result<String> {
    let mut command = Command::new(programs::installed(&["openssl"])?);
    command
        .args([
            "s_client",
            "-connect",
            &address.to_string(),
            "-servername",
            NAME,
            "-verify_return_error",
        ])
        .args(["-ign_eof", "-CAfile"])
        .arg(ca)
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut client = command.spawn()?;
    let mut stdin = client.stdin.take().context("it is piped")?;
    let request = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
    stdin.write_all(request.as_bytes()).await?;
    // It reads on until the edge closes, so that it sees the ticket of TLS 1.3, which comes behind the handshake.
    let output = timeout(PATIENCE, client.wait_with_output()).await;
    let output = output.context("openssl does not end")??;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("openssl: {said}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}

#[tokio::test]
async fn openssl_resumes_a_session_on_another_edge_with_the_same_keys_and_on_no_other() -> Result<()>
{
    let scratch = Scratch::new("openssl")?;
    let folder = scratch.path().join("certificates");
    std::fs::create_dir(&folder)?;
    let authority = Authority::new(scratch.path())?;
    authority.renew(&folder)?;
    let ca = scratch.path().join("authority.ca");
    let start = async |keys: &str| {
        let file = scratch.write(&format!("keys-{keys}"), &keys.repeat(48))?;
        let tls = json!({ "folder": folder, "ticket_keys": file });
        let settings = edge::settings(&[("b1", "127.0.0.1:1".parse()?)]).with(
            "listeners",
            json!([{ "address": "127.0.0.1:0", "tls": tls }]),
        );
        Edge::start(&settings, scratch.path()).await
    };
    let (one, other, stranger) = (start("5a").await?, start("5a").await?, start("a5").await?);
    for version in ["-tls1_2", "-tls1_3"] {
        let session = scratch.path().join(format!("session{version}"));
        let session = session.to_str().context("it is UTF-8")?;
        let said = s_client(one.address, &ca, &[version, "-sess_out", session]).await?;
        assert!(said.contains("New, TLSv1."), "{version}: {said}");
        let said = s_client(other.address, &ca, &[version, "-sess_in", session]).await?;
        assert!(said.contains("Reused, TLSv1."), "{version}: {said}");
        let said = s_client(stranger.address, &ca, &[version, "-sess_in", session]).await?;
        assert!(said.contains("New, TLSv1."), "{version}: {said}");
    }
    Ok(())
}
