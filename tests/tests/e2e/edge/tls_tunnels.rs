//! Tunnels over TLS, whose records the edge seals and opens itself: with OpenSSL and rustls as clients, key updates, closing and bad
//! records.

use std::{
    io::Read as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command as SyncCommand, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use causeway_tests::harness::{
    backend::{Backend, Request},
    edge::{self, Edge},
    process::Signal,
    programs,
    scratch::Scratch,
    tls::{self, Authority, NAME},
    wait, websocket,
};
use rustls::{ClientConfig, ClientConnection};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use tokio_rustls::client::TlsStream;

const DEADLINE: Duration = Duration::from_secs(60);

const PATH: &str = "/tunnel";

/// Suites of a certificate with an elliptic key, of one with an RSA key, and of TLS 1.3, as OpenSSL names them.
const ECDSA: [&str; 3] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
];
const RSA: [&str; 3] = [
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
];
const TLS13: [&str; 3] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
];

/// A masked message with a length of two bytes. The mask is zero.
fn frame(payload: &[u8]) -> Vec<u8> {
    let [high, low] = (payload.len() as u16).to_be_bytes();
    [&[0x82, 0x80 | 126, high, low, 0, 0, 0, 0], payload].concat()
}

/// A backend that sends every byte of a tunnel back, and says goodbye after the end of the client's direction.
async fn mirror() -> Result<Backend> {
    Backend::start(async |mut request: Request| {
        let accept = websocket::ACCEPT;
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        let _ = request.stream.write_all(head.as_bytes()).await;
        let _ = request.stream.write_all(&request.rest).await;
        let (mut from, mut to) = request.stream.split();
        if tokio::io::copy(&mut from, &mut to).await.is_ok() {
            let _ = to.write_all(b"goodbye").await;
            let _ = to.shutdown().await;
        }
    })
    .await
}

struct Scene {
    _scratch: Scratch,
    ca: PathBuf,
    clients: Arc<ClientConfig>,
    edge: Edge,
    _backend: Backend,
}

impl Scene {
    async fn start(name: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let authority = Authority::new(scratch.path())?;
        authority.renew(scratch.path())?;
        let clients = authority.clients("http/1.1")?;
        let ca = scratch.path().join("authority.ca");
        Self::with(scratch, ca, clients).await
    }

    /// With a certificate that has an RSA key.
    async fn start_rsa(name: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let (certificate, key) = (
            scratch.path().join("site.crt"),
            scratch.path().join("site.key"),
        );
        let text = format!(
            "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = extensions\n[name]\nCN = {NAME}\n\
             [extensions]\nbasicConstraints = CA:FALSE\nsubjectAltName = DNS:{NAME}\n"
        );
        let config = scratch.write("openssl.cnf", &text)?;
        let made = SyncCommand::new(programs::installed(&["openssl"])?)
            .args([
                "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            ])
            .arg("-config")
            .arg(config)
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()?;
        if !made.status.success() {
            bail!("openssl: {}", String::from_utf8_lossy(&made.stderr));
        }
        let clients = Authority::new(scratch.path())?.clients("http/1.1")?;
        Self::with(scratch, certificate, clients).await
    }

    async fn with(scratch: Scratch, ca: PathBuf, clients: Arc<ClientConfig>) -> Result<Self> {
        let backend = mirror().await?;
        let tls = json!({ "folder": scratch.path() });
        let settings = edge::settings(&[("b1", backend.address)]).with(
            "listeners",
            json!([{ "address": "127.0.0.1:0", "tls": tls }]),
        );
        let edge = Edge::start(&settings, scratch.path()).await?;
        edge.backend_in_state("b1", "up").await?;
        Ok(Self {
            _scratch: scratch,
            ca,
            clients,
            edge,
            _backend: backend,
        })
    }

    /// The line of the access log for the only tunnel.
    async fn line(&self) -> Result<Value> {
        let found = wait::until("the line of the tunnel", wait::SOON, async || {
            let lines = self.edge.process.output_lines();
            lines.into_iter().find(|line| line["kind"] == "tunnel")
        });
        found.await.with_context(|| self.edge.process.output())
    }

    /// A tunnel of rustls.
    async fn tunnel(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.edge.address).await?;
        let mut stream = tls::handshake(&self.clients, stream).await?;
        let request = websocket::handshake(self.edge.address, PATH, &[]);
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let head = head(&mut stream).await?;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Ok(stream)
    }
}

/// Reads up to an empty line.
async fn head(from: &mut (impl AsyncRead + Unpin)) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(DEADLINE, from.read_u8()).await;
        head.push(byte.context("no head in time")??);
    }
    Ok(String::from_utf8(head)?)
}

async fn read(from: &mut (impl AsyncRead + Unpin), length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let read = timeout(DEADLINE, from.read_exact(&mut bytes)).await;
    read.with_context(|| format!("not {length} bytes in time"))??;
    Ok(bytes)
}

/// `openssl s_client` with an open tunnel.
struct OpenSsl {
    process: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    stderr: ChildStderr,
}

impl OpenSsl {
    async fn open(address: SocketAddr, ca: &Path, flags: &[&str]) -> Result<Self> {
        let mut command = Command::new(programs::installed(&["openssl"])?);
        let address_text = address.to_string();
        command
            .args(["s_client", "-brief", "-connect", &address_text])
            .args(["-servername", NAME, "-verify_return_error", "-CAfile"])
            .arg(ca)
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut process = command.spawn()?;
        let mut client = Self {
            stdin: process.stdin.take().context("it is piped")?,
            stdout: process.stdout.take().context("it is piped")?,
            stderr: process.stderr.take().context("it is piped")?,
            process,
        };
        let request = websocket::handshake(address, PATH, &[]);
        client.stdin.write_all(request.as_bytes()).await?;
        let head = head(&mut client.stdout).await?;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        Ok(client)
    }

    async fn echo(&mut self, payload: &[u8]) -> Result<()> {
        let frame = frame(payload);
        self.stdin.write_all(&frame).await?;
        assert!(read(&mut self.stdout, frame.len()).await? == frame);
        Ok(())
    }

    /// Gives a command of one letter, and waits until it is said to be done.
    async fn command(&mut self, letter: &str, done: &str) -> Result<()> {
        self.stdin
            .write_all(format!("{letter}\n").as_bytes())
            .await?;
        let mut said = String::new();
        while !said.contains(done) {
            let byte = timeout(DEADLINE, self.stderr.read_u8()).await;
            let byte = byte.with_context(|| format!("only {said}"))?;
            said.push(byte.with_context(|| said.clone())?.into());
        }
        Ok(())
    }

    /// Ends it, and returns what it says besides the bytes of the tunnel.
    async fn close(self) -> Result<String> {
        let Self {
            mut process,
            stdin,
            mut stderr,
            stdout: _stdout,
        } = self;
        drop(stdin);
        let mut said = String::new();
        let ended = timeout(DEADLINE, async {
            stderr.read_to_string(&mut said).await?;
            process.wait().await
        });
        ended.await.context("openssl does not end")??;
        Ok(said)
    }
}

#[tokio::test]
async fn openssl_has_tunnels_with_every_suite_and_updates_its_keys() -> Result<()> {
    for (rsa, names) in [(false, ECDSA), (true, RSA), (false, TLS13)] {
        for name in names {
            let scene = match rsa {
                true => Scene::start_rsa("tls-tunnel-rsa").await?,
                false => Scene::start("tls-tunnel").await?,
            };
            let is_tls13 = TLS13.contains(&name);
            let flags = match is_tls13 {
                true => ["-tls1_3", "-ciphersuites", name],
                false => ["-tls1_2", "-cipher", name],
            };
            let mut client = OpenSsl::open(scene.edge.address, &scene.ca, &flags).await?;
            let mut bytes = 0;
            for length in [1, 200, 16_384, 60_000] {
                client.echo(&vec![b'w'; length]).await?;
                bytes += 8 + length;
            }
            if is_tls13 {
                // With a request to the edge to do the same, and without.
                for letter in ["K", "k", "k", "K"] {
                    client.command(letter, "KEYUPDATE").await?;
                    client.echo(letter.as_bytes()).await?;
                    client.echo(&[b'x'; 20_000]).await?;
                    bytes += 9 + 20_008;
                }
            }
            client.close().await?;
            let line = scene.line().await?;
            assert_eq!(line["close_reason"], "client_closed", "{name}: {line}");
            assert_eq!(line["bytes_in"], bytes, "{name}: {line}");
            let log = scene.edge.process.log();
            assert!(!log.contains("panicked"), "{name}: {log}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_renegotiation_is_declined() -> Result<()> {
    let scene = Scene::start("tls-renegotiation").await?;
    let flags = ["-tls1_2", "-cipher", ECDSA[1]];
    let mut client = OpenSsl::open(scene.edge.address, &scene.ca, &flags).await?;
    client.echo(b"before").await?;
    // OpenSSL gives up then; the warning itself leaves the connection open.
    client.command("R", "no renegotiation").await?;
    client.close().await?;
    let line = scene.line().await?;
    let reason = line["close_reason"].as_str().unwrap_or_default();
    assert!(reason.starts_with("client_"), "{line}");
    Ok(())
}

#[tokio::test]
async fn a_client_that_ends_its_direction_gets_the_rest() -> Result<()> {
    let scene = Scene::start("tls-half").await?;
    let mut tunnel = scene.tunnel().await?;
    tunnel.write_all(&frame(b"last words")).await?;
    // A close_notify; the TCP connection stays open in both directions.
    tunnel.get_mut().1.send_close_notify();
    tunnel.flush().await?;
    let mut all = Vec::new();
    // An end without close_notify would be an error.
    timeout(DEADLINE, tunnel.read_to_end(&mut all)).await??;
    assert_eq!(all, [&frame(b"last words")[..], b"goodbye"].concat());
    drop(tunnel);
    assert_eq!(scene.line().await?["close_reason"], "client_closed");
    Ok(())
}

#[tokio::test]
async fn a_drain_ends_tunnels_with_a_close_frame_and_a_close_notify() -> Result<()> {
    let mut scene = Scene::start("tls-drain").await?;
    let mut tunnel = scene.tunnel().await?;
    tunnel.write_all(&frame(b"hello")).await?;
    read(&mut tunnel, 8 + 5).await?;
    scene.edge.process.signal(Signal::Terminate);
    assert_eq!(read(&mut tunnel, 4).await?, [0x88, 2, 0x03, 0xf4]);
    tunnel
        .write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xf4])
        .await?;
    tunnel.shutdown().await?;
    let mut rest = Vec::new();
    timeout(DEADLINE, tunnel.read_to_end(&mut rest)).await??;
    let line = scene.line().await?;
    assert_eq!(
        (
            &line["close_reason"],
            &line["close_code"],
            &line["client_code"]
        ),
        (&json!("drained"), &json!(1012), &json!(1012)),
        "{line}"
    );
    assert!(scene.edge.process.ended().await?.success());
    Ok(())
}

/// Reads the alert that ends the connection, and the end of it.
async fn alert(mut socket: TcpStream, mut tls: ClientConnection) -> Result<String> {
    let mut bytes = Vec::new();
    timeout(DEADLINE, socket.read_to_end(&mut bytes)).await??;
    let mut bytes = &bytes[..];
    while !bytes.is_empty() {
        tls.read_tls(&mut bytes)?;
        if let Err(error) = tls.process_new_packets() {
            return Ok(error.to_string());
        }
        let mut plain = Vec::new();
        let _ = tls.reader().read_to_end(&mut plain);
    }
    bail!("no alert")
}

#[tokio::test]
async fn bad_records_end_their_tunnel_with_an_alert_and_no_other() -> Result<()> {
    let forged = [&[23, 3, 3, 0, 40][..], &[7; 40]].concat();
    for (bytes, expected) in [
        (forged, "BadRecordMac"),
        (vec![23, 3, 3, 0xff, 0xff], "RecordOverflow"),
        (vec![22, 3, 3, 0, 1, 0], "UnexpectedMessage"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "UnexpectedMessage"),
    ] {
        let scene = Scene::start("tls-bad").await?;
        let mut other = scene.tunnel().await?;
        let mut tunnel = scene.tunnel().await?;
        tunnel.write_all(&frame(b"hello")).await?;
        read(&mut tunnel, 8 + 5).await?;
        let (mut socket, tls) = tunnel.into_inner();
        socket.write_all(&bytes).await?;
        let got = alert(socket, tls).await?;
        assert!(got.contains(expected), "{got}, expected {expected}");
        assert_eq!(scene.line().await?["close_reason"], "client_lost");
        other.write_all(&frame(b"hello")).await?;
        assert_eq!(read(&mut other, 8 + 5).await?, frame(b"hello"));
        let log = scene.edge.process.log();
        assert!(!log.contains("panicked"), "{log}");
    }
    Ok(())
}

/// However the records of client and edge are cut, and with the client's first message right behind its request.
#[tokio::test]
async fn records_in_pieces_and_early_messages_lose_no_byte() -> Result<()> {
    let scene = Scene::start("tls-pieces").await?;
    for piece in [1, 2, 7, 100] {
        let stream = TcpStream::connect(scene.edge.address).await?;
        let stream = tls::handshake(&scene.clients, stream).await?;
        let (mut socket, mut tls) = stream.into_inner();
        let mut plain = websocket::handshake(scene.edge.address, PATH, &[]).into_bytes();
        let first = frame(b"early");
        plain.extend_from_slice(&first);
        let mut wire = Vec::new();
        // The request and half of the message are one record, the rest is another.
        let (one, two) = plain.split_at(plain.len() - 5);
        for part in [one, two] {
            std::io::Write::write_all(&mut tls.writer(), part)?;
            while tls.wants_write() {
                tls.write_tls(&mut wire)?;
            }
        }
        for part in wire.chunks(piece) {
            socket.write_all(part).await?;
            tokio::task::yield_now().await;
        }
        let mut read = Vec::new();
        let mut bytes = [0; 1000];
        let is_complete = |read: &[u8]| {
            let end = read.windows(4).position(|it| it == b"\r\n\r\n");
            end.is_some_and(|end| read[end + 4..] == first)
        };
        while !is_complete(&read) {
            let count = timeout(DEADLINE, socket.read(&mut bytes)).await;
            let count = count.with_context(|| String::from_utf8_lossy(&read).into_owned())??;
            assert!(0 < count, "the tunnel has ended");
            let mut got = &bytes[..count];
            while !got.is_empty() {
                tls.read_tls(&mut got)?;
                tls.process_new_packets()?;
                let _ = tls.reader().read_to_end(&mut read);
            }
        }
    }
    Ok(())
}
