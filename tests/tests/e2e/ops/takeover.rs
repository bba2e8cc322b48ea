//! A new process takes the sockets of the running edge over, and no client notices.

use std::{
    collections::HashMap,
    fs,
    io::Read as _,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command as SyncCommand,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use causeway_tests::harness::{
    backend::{Backend, Request},
    edge::{self, Edge},
    http::{self, Connection},
    process::{Process, Signal},
    programs,
    scratch::Scratch,
    settings::Settings,
    tls::{Authority, NAME},
    wait, websocket,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    process::Command,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;

const DEADLINE: Duration = Duration::from_secs(60);

/// Kinds of messages between both processes.
const HELLO: u8 = 1;
const VERSION: u8 = 2;
const REFUSED: u8 = 3;
const LISTENERS: u8 = 4;
const READY: u8 = 5;
const GO: u8 = 6;
const ACCEPTING: u8 = 7;
const YOURS: u8 = 8;
const TUNNELS: u8 = 9;
const IDLE: u8 = 14;

/// Sends every byte of a tunnel back; other requests get a short response.
async fn echo_backend() -> Result<Backend> {
    Backend::start(async |mut request: Request| {
        if request.header("upgrade").is_none() {
            let _ = request.respond("200 OK", "", "hello").await;
            return;
        }
        let accept = websocket::ACCEPT;
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        let _ = request.stream.write_all(head.as_bytes()).await;
        let _ = request.stream.write_all(&request.rest).await;
        let (mut from, mut to) = request.stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    })
    .await
}

/// An edge that can be taken over, in front of a backend that echoes.
struct Scene {
    edge: Edge,
    settings: Settings,
    scratch: Scratch,
    _backend: Backend,
}

impl Scene {
    async fn start(name: &str, change: impl FnOnce(Settings, &Path) -> Settings) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let backend = echo_backend().await?;
        let settings = edge::settings(&[("b1", backend.address)])
            .with("threads", json!(2))
            .with("takeover.socket", json!(scratch.path().join("edge.sock")));
        let settings = change(settings, scratch.path());
        let edge = Edge::start(&settings, scratch.path()).await?;
        edge.backend_in_state("b1", "up").await?;
        let scene = Self {
            edge,
            settings,
            scratch,
            _backend: backend,
        };
        scene.listens().await?;
        Ok(scene)
    }

    /// With a listener over TLS beside the plain one: how clients connect, and the folder of its certificates.
    async fn over_tls(name: &str) -> Result<(Self, [Wire; 3], Scratch)> {
        let tls = Scratch::new(&format!("{name}-certificates"))?;
        let authority = Authority::new(tls.path())?;
        authority.renew(tls.path())?;
        let scene = Self::start(name, |settings, _| {
            let listeners = json!([
                { "address": "127.0.0.1:0" },
                { "address": "127.0.0.1:0", "tls": { "folder": tls.path() } },
            ]);
            settings.with("listeners", listeners)
        })
        .await?;
        let log = scene.edge.process.log();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let addresses: Vec<SocketAddr> = lines
            .filter(|line| line["fields"]["listener"] == "edge")
            .filter_map(|line| line["fields"]["address"].as_str()?.parse().ok())
            .collect();
        let &[plain, secure] = &addresses[..] else {
            bail!("two listeners: {addresses:?}");
        };
        let wires = [
            Wire::Plain(plain),
            Wire::tls(secure, tls.path(), &TLS12)?,
            Wire::tls(secure, tls.path(), &TLS13)?,
        ];
        Ok((scene, wires, tls))
    }

    /// Over TLS alone, with a drain that closes no tunnel within the test, and idle connections `late`; with its certificates.
    async fn drains_slowly(name: &str, late: &str) -> Result<(Self, Scratch)> {
        let tls = Scratch::new(&format!("{name}-certificates"))?;
        let authority = Authority::new(tls.path())?;
        authority.renew(tls.path())?;
        let scene = Self::start(name, |settings, _| {
            let listeners = json!([{ "address": "127.0.0.1:0", "tls": { "folder": tls.path() } }]);
            let drain = json!({ "late": late, "spread": "50m", "timeout": "1h" });
            settings.with("listeners", listeners).with("drain", drain)
        })
        .await?;
        Ok((scene, tls))
    }

    fn socket(&self) -> PathBuf {
        self.scratch.path().join("edge.sock")
    }

    async fn listens(&self) -> Result<()> {
        let log = async || {
            self.edge
                .process
                .log()
                .contains("takeover socket")
                .then_some(())
        };
        wait::until("the takeover socket", wait::SOON, log).await
    }

    /// Starts a successor with these settings.
    fn successor(&self, name: &str, settings: &Settings) -> Result<Process> {
        let mut command = Command::new(programs::ours("causeway-proxy")?);
        self.arguments(&mut command, name, settings)?;
        Process::spawn(name, command, self.scratch.path())
    }

    fn arguments(&self, command: &mut Command, name: &str, settings: &Settings) -> Result<()> {
        let file = self
            .scratch
            .write(&format!("{name}.yaml"), &settings.text())?;
        command.arg("--config").arg(file);
        command.arg("--takeover").arg(self.socket());
        Ok(())
    }

    /// The edge accepts, and serves requests.
    async fn serves(&self) -> Result<()> {
        let response = http::get(self.edge.address, "/").await?;
        ensure!(response.status == 200, "{response:?}");
        Ok(())
    }
}

/// Waits for a line of the log.
async fn logged(process: &Process, message: &str) -> Result<()> {
    let found = wait::until(message, DEADLINE, async || {
        process.log().contains(message).then_some(())
    });
    found.await.with_context(|| process.tail())
}

/// How a client connects.
#[derive(Clone)]
enum Wire {
    Plain(SocketAddr),
    Tls(SocketAddr, Arc<ClientConfig>),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Wire {
    fn tls(
        address: SocketAddr,
        folder: &Path,
        version: &'static SupportedProtocolVersion,
    ) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(folder.join("authority.ca"))?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut clients = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        clients.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self::Tls(address, Arc::new(clients)))
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::Plain(address) | Self::Tls(address, _) => *address,
        }
    }

    async fn connect(&self) -> Result<Box<dyn Stream>> {
        let stream = TcpStream::connect(self.address()).await?;
        stream.set_nodelay(true)?;
        match self {
            Self::Plain(_) => Ok(Box::new(stream)),
            Self::Tls(_, clients) => {
                let connector = TlsConnector::from(Arc::clone(clients));
                Ok(Box::new(
                    connector
                        .connect(ServerName::try_from(NAME)?, stream)
                        .await?,
                ))
            }
        }
    }

    async fn tunnel(&self) -> Result<Box<dyn Stream>> {
        let mut stream = timeout(DEADLINE, self.connect()).await??;
        let request = websocket::handshake(self.address(), "/tunnel", &[]);
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(DEADLINE, stream.read_u8()).await??);
        }
        ensure!(
            head.starts_with(b"HTTP/1.1 101 "),
            "{}",
            String::from_utf8_lossy(&head)
        );
        Ok(stream)
    }
}

/// A masked message; the mask is zero. Its content differs from that of all others.
fn frame(client: usize, number: u64, length: usize) -> Vec<u8> {
    let mut payload = format!("{client}:{number}:").into_bytes();
    let next = |at: usize| (number as usize + client + at * 7) as u8;
    payload.extend((payload.len()..length.max(payload.len())).map(next));
    let [high, low] = (payload.len() as u16).to_be_bytes();
    [&[0x82, 0x80 | 126, high, low, 0, 0, 0, 0], &payload[..]].concat()
}

/// Sends `bytes` and reads them again, both at the same time.
async fn echo(stream: &mut dyn Stream, bytes: &[u8]) -> Result<()> {
    let (mut from, mut to) = tokio::io::split(stream);
    let mut got = vec![0; bytes.len()];
    let sending = async {
        to.write_all(bytes).await?;
        to.flush().await
    };
    let both = async { tokio::try_join!(sending, from.read_exact(&mut got)) };
    timeout(DEADLINE, both).await.context("no echo in time")??;
    ensure!(got == bytes, "an echo is not what was sent");
    Ok(())
}

/// Clients that never stop, and what became of them.
struct Load {
    clients: JoinSet<Result<()>>,
    counts: Vec<Arc<AtomicUsize>>,
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn new() -> Self {
        Self {
            clients: JoinSet::new(),
            counts: Vec::new(),
            sent: Arc::default(),
            stop: Arc::default(),
        }
    }

    fn counter(&mut self) -> Arc<AtomicUsize> {
        let counter = Arc::<AtomicUsize>::default();
        self.counts.push(Arc::clone(&counter));
        counter
    }

    /// A tunnel whose messages are echoed: small ones, and now and then a burst in both directions.
    fn tunnel(&mut self, number: usize, wire: Wire) {
        let (count, stop, sent) = (
            self.counter(),
            Arc::clone(&self.stop),
            Arc::clone(&self.sent),
        );
        self.clients.spawn(async move {
            let mut stream = wire.tunnel().await?;
            for turn in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let (messages, length) = match (turn + number as u64) % 8 {
                    0 => (30, 9000),
                    1 => (1, 60_000),
                    _ => (3, 40),
                };
                let frames =
                    (0..messages).map(|message| frame(number, turn * 100 + message, length));
                let bytes = frames.collect::<Vec<_>>().concat();
                let echoed = echo(&mut *stream, &bytes).await;
                echoed.with_context(|| format!("client {number}, turn {turn}"))?;
                sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                count.fetch_add(1, Ordering::Relaxed);
            }
            // Its end is in the access log.
            stream.shutdown().await?;
            let mut rest = Vec::new();
            timeout(DEADLINE, stream.read_to_end(&mut rest)).await??;
            ensure!(rest.is_empty(), "bytes that were not sent");
            Ok(())
        });
    }

    /// New connections with one request each.
    fn connections(&mut self, address: SocketAddr) {
        let (count, stop) = (self.counter(), Arc::clone(&self.stop));
        self.clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let response = http::get(address, "/").await.context("a new connection")?;
                ensure!(response.status == 200, "a request: {response:?}");
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }

    /// Requests on connections that are kept as long as the edge wants.
    fn requests(&mut self, address: SocketAddr) {
        let (count, stop) = (self.counter(), Arc::clone(&self.stop));
        self.clients.spawn(async move {
            let mut connection = Connection::open(address).await?;
            while !stop.load(Ordering::Relaxed) {
                let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n");
                connection
                    .send(request)
                    .await
                    .context("a kept connection")?;
                let response = connection.response().await.context("a kept connection")?;
                ensure!(response.status == 200, "a request: {response:?}");
                if response.header("connection") == Some("close") {
                    connection = Connection::open(address).await?;
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }

    /// New tunnels, which are closed after some messages.
    fn short_tunnels(&mut self, number: usize, wire: Wire) {
        let (count, stop, sent) = (
            self.counter(),
            Arc::clone(&self.stop),
            Arc::clone(&self.sent),
        );
        self.clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let mut stream = wire.tunnel().await.context("a new tunnel")?;
                for turn in 0..3 {
                    let bytes = frame(number, turn, 500);
                    echo(&mut *stream, &bytes).await.context("a new tunnel")?;
                    sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
                stream.shutdown().await?;
                let mut rest = Vec::new();
                timeout(DEADLINE, stream.read_to_end(&mut rest)).await??;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }

    /// Waits until each client has been served several times more.
    async fn served(&mut self) -> Result<()> {
        let now = |counts: &[Arc<AtomicUsize>]| -> Vec<usize> {
            counts
                .iter()
                .map(|count| count.load(Ordering::Relaxed))
                .collect()
        };
        let before = now(&self.counts);
        let end = tokio::time::Instant::now() + DEADLINE;
        loop {
            if let Some(ended) = self.clients.try_join_next() {
                ended??;
                bail!("a client has ended");
            }
            let counts = now(&self.counts);
            if before
                .iter()
                .zip(&counts)
                .all(|(before, now)| before + 3 < *now)
            {
                return Ok(());
            }
            ensure!(
                tokio::time::Instant::now() < end,
                "not served: {before:?}, {counts:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends all clients. None of them has failed. Returns how many bytes were sent through tunnels.
    async fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended??;
        }
        Ok(self.sent.load(Ordering::Relaxed))
    }
}

/// A process that is not a child of this one, ended when this is dropped.
struct Stranger(u64);

impl Stranger {
    /// The successor that `process` has started.
    async fn of(process: &Process) -> Result<Self> {
        let found = wait::until("a successor that was started", wait::SOON, async || {
            fields(&process.log(), "successor started")?["process"].as_u64()
        });
        Ok(Self(found.await.with_context(|| process.tail())?))
    }

    fn signal(&self, name: &str) -> Result<()> {
        let sent = SyncCommand::new("kill")
            .args(["-s", name, &self.0.to_string()])
            .status()?;
        ensure!(sent.success(), "{sent}");
        Ok(())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = SyncCommand::new("kill")
            .args(["-KILL", &self.0.to_string()])
            .status();
    }
}

/// The fields of the last line of a log with this message.
fn fields(log: &str, message: &str) -> Option<Value> {
    let lines = log
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut fields = lines.map(|mut line| line["fields"].take());
    fields.find(|fields| fields["message"] == message)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_upgrades_under_load_cut_no_tunnel_and_refuse_no_connection() -> Result<()> {
    let (mut scene, wires, _certificates) = Scene::over_tls("takeover-load").await?;
    let plain = wires[0].address();
    let mut load = Load::new();
    for number in 0..24 {
        load.tunnel(number, wires[number % 3].clone());
    }
    for (number, wire) in wires.iter().enumerate() {
        load.short_tunnels(100 + number, wire.clone());
    }
    load.connections(plain);
    load.connections(plain);
    load.requests(plain);
    load.served().await?;

    let mut second = scene.successor("second", &scene.settings)?;
    logged(&second, "takeover complete").await?;
    let status = scene.edge.process.exit(DEADLINE).await?;
    ensure!(status.success(), "{status} {}", scene.edge.process.tail());
    let left = fields(&scene.edge.process.log(), "handed over").context("it hands over")?;
    ensure!(left["tunnels_left"] == 0, "{left}");
    load.served().await?;

    second.signal(Signal::User2);
    let _third = Stranger::of(&second).await?;
    let twice = wait::until("the second takeover", DEADLINE, async || {
        (second.log().matches("takeover complete").count() == 2).then_some(())
    });
    twice.await.with_context(|| second.tail())?;
    let status = second.exit(DEADLINE).await?;
    ensure!(status.success(), "{status} {}", second.tail());
    load.served().await?;
    let metrics = http::get(scene.edge.admin, "/metrics").await?.text();
    ensure!(
        metrics.contains("causeway_proxy_tunnels_taken_over_total 2"),
        "{metrics}"
    );
    let sent = load.finish().await?;

    // Each tunnel is in one line of one of the processes, with the bytes of all.
    let read = wait::until("the lines of all tunnels", wait::SOON, async || {
        let lines = [scene.edge.process.output_lines(), second.output_lines()].concat();
        let tunnels = lines.iter().filter(|line| line["kind"] == "tunnel");
        let mut reasons = HashMap::<String, usize>::new();
        let mut bytes = 0;
        for line in tunnels {
            bytes += line["bytes_in"].as_u64()?;
            *reasons.entry(line["close_reason"].to_string()).or_default() += 1;
        }
        (sent <= bytes).then_some((bytes, reasons))
    });
    let (bytes, reasons) = read.await?;
    ensure!(bytes == sent, "{bytes} bytes of {sent}");
    ensure!(
        reasons.len() == 1 && reasons.contains_key("\"client_closed\""),
        "{reasons:?}"
    );
    Ok(())
}

/// Sends a request over a connection that stays open, and reads its response.
async fn request(stream: &mut dyn Stream) -> Result<()> {
    const BODY: &str = "hello";
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n")
        .await?;
    stream.flush().await?;
    let mut response = Vec::new();
    let reading = async {
        while !response.ends_with(format!("\r\n\r\n{BODY}").as_bytes()) {
            response.push(stream.read_u8().await?);
        }
        anyhow::Ok(())
    };
    let read = timeout(DEADLINE, reading).await;
    let text = String::from_utf8_lossy(&response).to_ascii_lowercase();
    read?.with_context(|| text.clone())?;
    ensure!(text.starts_with("http/1.1 200"), "{text}");
    ensure!(!text.contains("connection: close"), "{text}");
    Ok(())
}

#[tokio::test]
async fn idle_connections_go_on_in_the_new_process() -> Result<()> {
    let (mut scene, wires, _certificates) = Scene::over_tls("takeover-idle").await?;
    let mut connections = Vec::new();
    for wire in &wires {
        let mut used = wire.connect().await?;
        request(&mut *used).await?;
        connections.push(used);
    }
    // Without a request yet; of TLS 1.3 it would stay.
    for wire in &wires[..2] {
        connections.push(wire.connect().await?);
    }
    // Within a head: it is served where it is, and goes over behind its response.
    let mut begun = wires[0].connect().await?;
    request(&mut *begun).await?;
    begun.write_all(b"GET / HTTP/1.1\r\nX-Slow:").await?;

    let mut second = scene.successor("second", &scene.settings)?;
    logged(&second, "taken over, accepting").await?;
    begun.write_all(b" yes\r\n").await?;
    begun.write_all(b"Host: edge\r\n\r\n").await?;
    let mut response = [0; 15];
    begun.read_exact(&mut response).await?;
    ensure!(response.starts_with(b"HTTP/1.1 200"), "{response:?}");
    while !response.ends_with(b"hello") {
        response.rotate_left(1);
        response[14] = timeout(DEADLINE, begun.read_u8()).await??;
    }
    connections.push(begun);
    logged(&second, "takeover complete").await?;
    let status = scene.edge.process.exit(DEADLINE).await?;
    ensure!(status.success(), "{status} {}", scene.edge.process.tail());
    let taken = fields(&second.log(), "takeover complete").context("it is complete")?;
    // Those without a request may have been accepted by the new process.
    ensure!(taken["idle_connections"].as_u64() >= Some(4), "{taken}");
    for (place, connection) in connections.iter_mut().enumerate() {
        let served = request(&mut **connection).await;
        served.with_context(|| format!("connection {place}: {}", second.tail()))?;
    }

    second.signal(Signal::User2);
    let _third = Stranger::of(&second).await?;
    let status = second.exit(DEADLINE).await?;
    ensure!(status.success(), "{status} {}", second.tail());
    for connection in &mut connections {
        request(&mut **connection).await?;
    }
    // One of them becomes a tunnel.
    let mut tunnel = connections.swap_remove(2);
    let upgrade = websocket::handshake(wires[2].address(), "/tunnel", &[]);
    tunnel.write_all(upgrade.as_bytes()).await?;
    tunnel.flush().await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(DEADLINE, tunnel.read_u8()).await??);
    }
    ensure!(head.starts_with(b"HTTP/1.1 101"), "{head:?}");
    echo(&mut *tunnel, &frame(1, 1, 100)).await
}

#[tokio::test]
async fn what_an_operator_has_set_holds_in_the_new_process() -> Result<()> {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let token = |settings: Settings, _: &Path| settings.with("admin.token", json!(TOKEN));
    let scene = Scene::start("takeover-operator", token).await?;
    let allowed = [("Authorization", &*format!("Bearer {TOKEN}"))];
    let body = br#"{ "force": true }"#;
    let path = "/backends/b1/maintenance";
    let done = http::request(scene.edge.admin, "POST", path, &allowed, body).await?;
    ensure!(done.status == 200, "{done:?}");

    let second = scene.successor("second", &scene.settings)?;
    logged(&second, "takeover complete").await?;
    let backends = scene.edge.backends().await?;
    ensure!(backends[0]["operator"] == "maintenance", "{backends}");
    let response = http::get(scene.edge.address, "/").await?;
    ensure!(response.status == 503, "{response:?}");
    Ok(())
}

/// An edge with a successor for each reload that needs one.
struct Reloads {
    scene: Scene,
    /// All that were started.
    successors: Vec<Stranger>,
}

impl Reloads {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    async fn start(name: &str) -> Result<Self> {
        let token = |settings: Settings, _: &Path| settings.with("admin.token", json!(Self::TOKEN));
        Ok(Self {
            scene: Scene::start(name, token).await?,
            successors: Vec::new(),
        })
    }

    fn write(&self, settings: &Settings) -> Result<()> {
        let file = self.scene.scratch.path().join("edge.yaml");
        Ok(fs::write(file, settings.text())?)
    }

    /// Sends a request of an operator, and returns the status and the JSON of the response.
    async fn act(&self, path: &str, body: Value) -> Result<(u16, Value)> {
        let bearer = format!("Bearer {}", Self::TOKEN);
        let headers = [("Authorization", &*bearer)];
        let (admin, body) = (self.scene.edge.admin, body.to_string());
        let response = http::request(admin, "POST", path, &headers, body.as_bytes()).await?;
        Ok((response.status, serde_json::from_slice(&response.body)?))
    }

    /// Waits for the next successor to take over.
    async fn taken_over(&mut self) -> Result<()> {
        let log = || self.scene.edge.process.log();
        let number = self.successors.len() + 1;
        wait::until("a takeover", DEADLINE, async || {
            (log().matches("takeover complete").count() == number).then_some(())
        })
        .await
        .with_context(|| self.scene.edge.process.tail())?;
        let successor = Stranger::of(&self.scene.edge.process).await?;
        self.successors.push(successor);
        Ok(())
    }

    /// The addresses on which the edge of this log has ever listened, the last one last.
    fn addresses(&self) -> Vec<SocketAddr> {
        let log = self.scene.edge.process.log();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let listening = lines.filter(|line| line["fields"]["listener"] == "edge");
        listening
            .filter_map(|line| line["fields"]["address"].as_str()?.parse().ok())
            .collect()
    }
}

#[tokio::test]
async fn a_reload_hands_over_for_what_a_running_process_cannot_change() -> Result<()> {
    let mut edge = Reloads::start("reload-successor").await?;
    let first = edge.scene.edge.address;
    let mut tunnel = Wire::Plain(first).tunnel().await?;
    echo(&mut *tunnel, &frame(0, 0, 100)).await?;
    let one = edge.scene.settings.clone();

    // What it would do.
    let both = json!([{ "address": "127.0.0.1:0" }, { "address": "127.0.0.2:0" }]);
    let two = one.clone().with("listeners", both);
    edge.write(&two)?;
    let (status, plan) = edge.act("/reload", json!({ "dry_run": true })).await?;
    ensure!(status == 200, "{plan}");
    ensure!(plan["hands_over"] == true, "{plan}");
    ensure!(plan["needs_restart"] == json!(["listeners"]), "{plan}");
    ensure!(!edge.scene.edge.process.log().contains("successor started"));

    // A listener more.
    let (status, done) = edge.act("/reload", json!({})).await?;
    ensure!(status == 200 && done["successor"] == "accepting", "{done}");
    edge.taken_over().await?;
    let second = *edge.addresses().last().context("it listens")?;
    ensure!(second != first, "{second}");
    ensure!(http::get(second, "/").await?.status == 200);
    echo(&mut *tunnel, &frame(0, 1, 100)).await?;

    // By the signal, and the listener is gone again.
    edge.write(&one)?;
    edge.successors[0].signal("HUP")?;
    edge.taken_over().await?;
    let refused = wait::until("the listener to close", DEADLINE, async || {
        TcpStream::connect(second).await.is_err().then_some(())
    });
    refused.await?;
    echo(&mut *tunnel, &frame(0, 2, 100)).await?;

    // Timeouts, threads and the log, beside a backend that a running process could have changed, all of it in the new one.
    let mut pools = one.get("pools").clone();
    pools[0]["backends"][0]["weight"] = json!(7);
    let all = one
        .with("pools", pools)
        .with("timeouts.keepalive", json!("1s"))
        .with("threads", json!(1))
        .with("log.access", json!("off"));
    edge.write(&all)?;
    let (status, done) = edge.act("/reload", json!({})).await?;
    ensure!(status == 200, "{done}");
    let needs = json!(["timeouts", "log", "threads"]);
    ensure!(done["needs_restart"] == needs, "{done}");
    edge.taken_over().await?;
    echo(&mut *tunnel, &frame(0, 3, 100)).await?;
    let backends = edge.scene.edge.backends().await?;
    ensure!(backends[0]["weight"] == 7, "{backends}");
    let mut idle = TcpStream::connect(first).await?;
    timeout(DEADLINE, idle.read_to_end(&mut Vec::new())).await??;

    // The same file once more changes nothing, and needs nobody.
    let (status, done) = edge.act("/reload", json!({})).await?;
    ensure!(status == 200 && done["hands_over"] == false, "{done}");
    ensure!(
        done["successor"].is_null() && done["sections"] == json!([]),
        "{done}"
    );
    let started = edge.scene.edge.process.log();
    ensure!(started.matches("successor started").count() == 3);
    echo(&mut *tunnel, &frame(0, 4, 100)).await?;
    tunnel.shutdown().await?;
    Ok(())
}

#[tokio::test]
async fn a_reload_for_which_no_successor_can_start_changes_nothing() -> Result<()> {
    let mut edge = Reloads::start("reload-no-successor").await?;
    let mut tunnel = Wire::Plain(edge.scene.edge.address).tunnel().await?;
    let occupied = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let mut pools = edge.scene.settings.get("pools").clone();
    pools[0]["backends"][0]["weight"] = json!(7);
    let heavier = edge.scene.settings.clone().with("pools", pools);
    let listeners = json!([{ "address": "127.0.0.1:0" }, { "address": occupied.local_addr()? }]);
    edge.write(&heavier.clone().with("listeners", listeners))?;

    let metric = async |value: &str| -> Result<bool> {
        let page = http::get(edge.scene.edge.admin, "/metrics").await?.text();
        Ok(page.contains(&format!("causeway_proxy_configuration_ok {value}\n")))
    };
    let (status, refused) = edge.act("/reload", json!({})).await?;
    let why = refused["error"].as_str().unwrap_or_default();
    ensure!(status == 503 && why.contains("listeners"), "{refused}");
    ensure!(why.contains("ended before it took over"), "{refused}");
    let log = edge.scene.edge.process.log();
    ensure!(log.contains("cannot listen on"), "{log}");
    ensure!(log.contains("configuration reload failed"), "{log}");
    ensure!(metric("0").await?);
    let backends = edge.scene.edge.backends().await?;
    ensure!(backends[0]["weight"] == 1, "{backends}");
    let (status, refused) = edge.act("/upgrade", json!({})).await?;
    ensure!(status == 503, "{refused}");
    echo(&mut *tunnel, &frame(0, 0, 100)).await?;
    edge.scene.serves().await?;

    // What this process can change needs no other one.
    edge.write(&heavier)?;
    let (status, done) = edge.act("/reload", json!({})).await?;
    ensure!(status == 200 && done["hands_over"] == false, "{done}");
    ensure!(metric("1").await?);
    let backends = edge.scene.edge.backends().await?;
    ensure!(backends[0]["weight"] == 7, "{backends}");

    let (status, done) = edge.act("/upgrade", json!({})).await?;
    ensure!(status == 200 && done["successor"] == "accepting", "{done}");
    edge.taken_over().await?;
    echo(&mut *tunnel, &frame(0, 1, 100)).await
}

/// A backend that responds to every request with its name.
async fn named_backend(name: &'static str) -> Result<Backend> {
    Backend::start(async move |mut request: Request| {
        let _ = request.respond("200 OK", "", name).await;
    })
    .await
}

#[tokio::test]
async fn sockjs_sessions_without_cookies_stay_at_their_backends() -> Result<()> {
    let scratch = Scratch::new("takeover-sessions")?;
    let (one, two) = (named_backend("b1").await?, named_backend("b2").await?);
    let alone = edge::settings(&[("b1", one.address)])
        .with("health", json!({ "kind": "tcp" }))
        .with("takeover.socket", json!(scratch.path().join("edge.sock")));
    let both = edge::settings(&[("b1", one.address), ("b2", two.address)]);
    let both = alone.clone().with("pools", both.get("pools").clone());
    let edge = Edge::start(&alone, scratch.path()).await?;
    edge.backend_in_state("b1", "up").await?;
    logged(&edge.process, "takeover socket").await?;
    let ask = async |number: usize| {
        let path = format!("/app/000/session{number}/xhr");
        anyhow::Ok(
            http::request(edge.address, "POST", &path, &[], b"")
                .await?
                .text(),
        )
    };
    for number in 0..50 {
        ensure!(ask(number).await? == "b1");
    }
    // The ring gives the second backend about half of the sessions, those of the successor too.
    let mut command = Command::new(programs::ours("causeway-proxy")?);
    command
        .arg("--config")
        .arg(scratch.write("both.yaml", &both.text())?);
    command
        .arg("--takeover")
        .arg(scratch.path().join("edge.sock"));
    let second = Process::spawn("second", command, scratch.path())?;
    logged(&second, "takeover complete").await?;
    edge.backend_in_state("b2", "up").await?;
    for number in 0..50 {
        ensure!(ask(number).await? == "b1", "session{number} has moved");
    }
    let mut new = HashMap::<String, usize>::new();
    for number in 50..100 {
        *new.entry(ask(number).await?).or_default() += 1;
    }
    ensure!(new.len() == 2, "{new:?}");
    Ok(())
}

#[tokio::test]
async fn a_successor_that_cannot_start_changes_nothing() -> Result<()> {
    let mut scene = Scene::start("takeover-bad", |settings, _| settings).await?;
    let mut tunnel = Wire::Plain(scene.edge.address).tunnel().await?;
    let occupied = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let taken = json!([{ "address": occupied.local_addr()? }]);
    let missing = json!({ "folder": scene.scratch.path().join("none") });
    let secure = json!([{ "address": "127.0.0.1:0", "tls": missing }]);
    for (number, (key, value, error)) in [
        ("no_such_setting", json!(1), "no_such_setting"),
        ("listeners", taken, "cannot listen on"),
        ("listeners", secure, "none"),
        (
            "admin.socket",
            json!("/nowhere/admin.sock"),
            "there is no folder",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let settings = scene.settings.clone().with(key, value);
        let mut successor = scene.successor(&format!("bad{number}"), &settings)?;
        let status = successor.exit(DEADLINE).await?;
        ensure!(status.code() == Some(2), "{key}: {status}");
        ensure!(
            successor.log().contains(error),
            "{key}: {}",
            successor.tail()
        );
        scene.serves().await?;
        echo(&mut *tunnel, &frame(0, number as u64, 100)).await?;
    }
    ensure!(
        scene.edge.process.is_running(),
        "{}",
        scene.edge.process.tail()
    );
    let files = fs::read_dir(scene.scratch.path())?.filter_map(|file| file.ok());
    let drafts = files.filter(|file| file.file_name().to_string_lossy().contains(".sock."));
    ensure!(drafts.count() == 0, "drafts of sockets are left");
    // A good one still can.
    let good = scene.successor("good", &scene.settings)?;
    logged(&good, "takeover complete").await?;
    echo(&mut *tunnel, &frame(0, 9, 100)).await
}

/// A successor that says what the test wants.
struct Fake(UnixStream);

impl Fake {
    async fn connect(socket: &Path) -> Result<Self> {
        Ok(Self(UnixStream::connect(socket).await?))
    }

    async fn say(&mut self, kind: u8, payload: &[u8]) -> Result<()> {
        let length = u32::try_from(payload.len())?.to_be_bytes();
        self.0
            .write_all(&[&[kind], &length[..], payload].concat())
            .await?;
        Ok(())
    }

    async fn hello(&mut self, version: u16) -> Result<()> {
        let [high, low] = version.to_be_bytes();
        let payload = [&b"causeway"[..], &[0, 0, 0, 1, high, low]].concat();
        self.say(HELLO, &payload).await
    }

    async fn hear(&mut self) -> Result<(u8, Vec<u8>)> {
        let hearing = async {
            let kind = self.0.read_u8().await?;
            let mut payload = vec![0; self.0.read_u32().await? as usize];
            self.0.read_exact(&mut payload).await?;
            Ok((kind, payload))
        };
        timeout(DEADLINE, hearing).await?
    }

    async fn expect(&mut self, kind: u8) -> Result<Vec<u8>> {
        let (heard, payload) = self.hear().await?;
        let text = String::from_utf8_lossy(&payload);
        ensure!(heard == kind, "expected {kind}, got {heard}: {text}");
        Ok(payload)
    }

    /// As a successor does, up to the message of this kind.
    async fn up_to(socket: &Path, last: u8) -> Result<Self> {
        let mut fake = Self::connect(socket).await?;
        // Of the first version, or of the one in which idle connections are sent.
        fake.hello(if last == IDLE { 2 } else { 1 }).await?;
        let batch = if last == IDLE { IDLE } else { TUNNELS };
        for kind in [VERSION, LISTENERS, READY, GO, ACCEPTING, YOURS, batch] {
            match kind {
                READY | ACCEPTING => fake.say(kind, &[]).await?,
                _ => drop(fake.expect(kind).await?),
            }
            if kind == last {
                break;
            }
        }
        Ok(fake)
    }
}

#[tokio::test]
async fn a_successor_that_dies_before_it_accepts_changes_nothing() -> Result<()> {
    let mut scene = Scene::start("takeover-dies", |settings, _| settings).await?;
    let mut tunnel = Wire::Plain(scene.edge.address).tunnel().await?;
    for (number, last) in [VERSION, LISTENERS, READY, GO].into_iter().enumerate() {
        let fake = Fake::up_to(&scene.socket(), last).await?;
        scene.serves().await?;
        drop(fake);
        let failed = wait::until("a takeover that failed", wait::SOON, async || {
            let log = scene.edge.process.log();
            (log.matches("has not taken over").count() == number + 1).then_some(())
        });
        failed.await?;
        scene.serves().await?;
        echo(&mut *tunnel, &frame(0, number as u64, 100)).await?;
    }
    ensure!(
        scene.edge.process.is_running(),
        "{}",
        scene.edge.process.tail()
    );
    let good = scene.successor("good", &scene.settings)?;
    logged(&good, "takeover complete").await?;
    echo(&mut *tunnel, &frame(0, 9, 100)).await
}

#[tokio::test]
async fn a_successor_that_dies_with_tunnels_before_the_commit_loses_none() -> Result<()> {
    let (mut scene, tls) = Scene::drains_slowly("takeover-commit", "0s").await?;
    let address = scene.edge.address;
    let mut tunnels = Vec::new();
    for version in [&TLS12, &TLS13, &TLS12, &TLS13] {
        tunnels.push(Wire::tls(address, tls.path(), version)?.tunnel().await?);
    }
    // What a client sends while its tunnel is on the way is there afterwards.
    let fake = Fake::up_to(&scene.socket(), TUNNELS).await?;
    for tunnel in &mut tunnels {
        tunnel.write_all(&frame(1, 1, 50)).await?;
        tunnel.flush().await?;
    }
    drop(fake);
    logged(&scene.edge.process, "the successor has failed").await?;
    for tunnel in tunnels.iter_mut().skip(1) {
        let expected = frame(1, 1, 50);
        let mut got = vec![0; expected.len()];
        timeout(DEADLINE, tunnel.read_exact(&mut got)).await??;
        ensure!(got == expected, "an echo is not what was sent");
        echo(&mut **tunnel, &frame(1, 2, 9000)).await?;
    }
    scene.edge.process.signal(Signal::Kill);
    Ok(())
}

#[tokio::test]
async fn a_successor_that_dies_with_idle_connections_before_the_commit_loses_none() -> Result<()> {
    let (mut scene, tls) = Scene::drains_slowly("takeover-idle-commit", "1m").await?;
    let mut connections = Vec::new();
    for version in [&TLS12, &TLS13, &TLS12, &TLS13] {
        let wire = Wire::tls(scene.edge.address, tls.path(), version)?;
        let mut connection = wire.connect().await?;
        request(&mut *connection).await?;
        connections.push(connection);
    }
    let fake = Fake::up_to(&scene.socket(), IDLE).await?;
    for connection in &mut connections {
        connection
            .write_all(b"GET / HTTP/1.1\r\nHost: edge\r\n\r\n")
            .await?;
        connection.flush().await?;
    }
    drop(fake);
    logged(&scene.edge.process, "the successor has failed").await?;
    for mut connection in connections {
        let mut response = Vec::new();
        timeout(DEADLINE, connection.read_to_end(&mut response)).await??;
        let text = String::from_utf8_lossy(&response);
        ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
        ensure!(text.ends_with("hello"), "{text}");
    }
    scene.edge.process.signal(Signal::Kill);
    Ok(())
}

#[tokio::test]
async fn another_version_another_user_and_what_is_no_successor_are_refused() -> Result<()> {
    let scene = Scene::start("takeover-refused", |settings, _| settings).await?;
    let socket = scene.socket();
    let mode = fs::metadata(&socket)?.permissions().mode();
    ensure!(mode & 0o777 == 0o600, "{mode:o}");

    let mut other = Fake::connect(&socket).await?;
    other.hello(999).await?;
    let why = String::from_utf8_lossy(&other.expect(REFUSED).await?).into_owned();
    ensure!(why.contains("999") && why.contains("versions"), "{why}");
    scene.serves().await?;

    let mut noise = Fake::connect(&socket).await?;
    noise.0.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    noise.expect(REFUSED).await?;
    scene.serves().await?;

    // One at a time.
    let first = Fake::up_to(&socket, LISTENERS).await?;
    let mut second = Fake::connect(&socket).await?;
    let why = String::from_utf8_lossy(&second.expect(REFUSED).await?).into_owned();
    ensure!(why.contains("already"), "{why}");
    drop((first, second));
    logged(&scene.edge.process, "closed the connection").await?;

    let mut nowhere = Command::new(programs::ours("causeway-proxy")?);
    let file = scene.scratch.write("other.yaml", &scene.settings.text())?;
    nowhere.arg("--config").arg(file);
    nowhere
        .arg("--takeover")
        .arg(scene.scratch.path().join("none.sock"));
    let mut nowhere = Process::spawn("nowhere", nowhere, scene.scratch.path())?;
    ensure!(
        nowhere.exit(DEADLINE).await?.code() == Some(2),
        "{}",
        nowhere.tail()
    );
    ensure!(nowhere.log().contains("none.sock"), "{}", nowhere.tail());

    // Only root can be somebody else. The mode of the file would keep everybody out.
    if is_root() {
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
        let why = std::thread::spawn(move || refused_as_nobody(&socket)).join();
        let why = why.map_err(|_| anyhow::anyhow!("the thread has panicked"))??;
        ensure!(why.contains("same user"), "{why}");
    }
    scene.serves().await
}

/// Connects as another user, and returns what the edge says. The thread is that user from then on.
#[expect(
    unsafe_code,
    reason = "the standard library changes no users of threads"
)]
fn refused_as_nobody(socket: &Path) -> Result<String> {
    const NOBODY: libc::uid_t = 65_534;
    const SAME: libc::uid_t = libc::uid_t::MAX;
    // SAFETY: the system call takes three numbers. Unlike the function of the C library it changes this thread alone.
    let changed = unsafe { libc::syscall(libc::SYS_setresuid, SAME, NOBODY, SAME) };
    ensure!(changed == 0, "{}", std::io::Error::last_os_error());
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut said = Vec::new();
    stream.read_to_end(&mut said)?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

fn is_root() -> bool {
    let id = SyncCommand::new("id").arg("-u").output();
    id.is_ok_and(|id| id.stdout == b"0\n")
}

#[tokio::test]
async fn a_successor_that_may_open_too_few_descriptors_leaves_the_tunnels_where_they_are()
-> Result<()> {
    let scene = Scene::start("takeover-files", |settings, _| {
        let drain = json!({ "late": "0s", "spread": "50m", "timeout": "1h" });
        settings.with("drain", drain).with("threads", json!(1))
    })
    .await?;
    let wire = Wire::Plain(scene.edge.address);
    let mut tunnels = Vec::new();
    for _ in 0..110 {
        tunnels.push(wire.tunnel().await?);
    }
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 200; exec \"$0\" \"$@\""]);
    command.arg(programs::ours("causeway-proxy")?);
    // More than that many descriptors allow, so that they run out first.
    let settings = scene
        .settings
        .clone()
        .with("limits.connections", json!(500));
    scene.arguments(&mut command, "few", &settings)?;
    let few = Process::spawn("few", command, scene.scratch.path())?;
    logged(&few, "takeover complete").await?;
    ensure!(
        few.log().contains("the limit of open files is reached"),
        "{}",
        few.tail()
    );
    logged(&scene.edge.process, "can take no more connections").await?;
    // New clients are the successor's.
    scene.serves().await?;
    // Two batches of 32 fit. Of the others the drain ends the first ones soon.
    let (moved, stayed) = tunnels.split_at_mut(64);
    for (number, tunnel) in moved.iter_mut().chain(&mut stayed[20..]).enumerate() {
        echo(&mut **tunnel, &frame(number, 1, 100)).await?;
    }
    Ok(())
}
