//! The program itself: flags, exit codes, signals, and what it writes where.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

const SOON: Duration = Duration::from_secs(20);
const UPGRADE: &str =
    "GET /ws?token=secret HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// A file that is removed at the end.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        let name = format!(
            "causeway-proxy-{}-{}.yaml",
            std::process::id(),
            fastrand::u64(..)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::File::create(&path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn settings(listener: SocketAddr, backend: SocketAddr, more: &str) -> File {
    File::new(&format!(
        "listeners: [{{ address: \"{listener}\" }}]\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
         pools: [{{ name: p, health: {{ kind: tcp }}, backends: [{{ id: b, address: \"{backend}\" }}] }}]\n\
         routes: [{{ path: /, pool: p }}]\n{more}"
    ))
}

fn program(file: &File) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_causeway-proxy"));
    command
        .arg("--config")
        .arg(&file.0)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Exit status, standard output and standard error.
async fn run(mut command: Command) -> (ExitStatus, String, String) {
    let output = timeout(SOON, command.output())
        .await
        .expect("an end in time")
        .unwrap();
    (
        output.status,
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

/// A running edge.
struct Edge {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
    _file: File,
}

impl Edge {
    async fn start(backend: SocketAddr, more: &str) -> Self {
        let file = settings("127.0.0.1:0".parse().unwrap(), backend, more);
        let mut child = program(&file).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut address, mut admin) = (None, None);
        while address.is_none() || admin.is_none() {
            let line = timeout(SOON, lines.next_line())
                .await
                .expect("a log line in time")
                .unwrap()
                .expect("it runs");
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            let fields = &line["fields"];
            if fields["message"] == "listening" {
                let bound = fields["address"].as_str().unwrap().parse().unwrap();
                match fields["listener"].as_str() {
                    Some("edge") => address = Some(bound),
                    _ => admin = Some(bound),
                }
            }
        }
        // The rest is read away, so that the program never waits for us.
        let mut rest = JoinSet::new();
        rest.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        rest.detach_all();
        Self {
            child,
            address: address.unwrap(),
            admin: admin.unwrap(),
            _file: file,
        }
    }

    async fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .await
                .unwrap()
                .success()
        );
    }

    /// Status, and the access log.
    async fn end(mut self) -> (ExitStatus, Vec<serde_json::Value>) {
        let mut log = String::new();
        let status = timeout(SOON, async {
            self.child
                .stdout
                .take()
                .unwrap()
                .read_to_string(&mut log)
                .await
                .unwrap();
            self.child.wait().await.unwrap()
        });
        let status = status.await.expect("an end in time");
        (
            status,
            log.lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect(),
        )
    }

    async fn open_tunnel(&self) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        client.write_all(UPGRADE.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(
                timeout(SOON, client.read_u8())
                    .await
                    .expect("a head in time")
                    .unwrap(),
            );
        }
        assert!(
            head.starts_with(b"HTTP/1.1 101 "),
            "{}",
            String::from_utf8_lossy(&head)
        );
        client
    }
}

/// A backend that upgrades everyone and echoes.
async fn echo() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = socket.read_u8().await else { return };
                    head.push(byte);
                }
                let switch = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
                socket.write_all(switch).await.unwrap();
                let (mut reading, mut writing) = socket.split();
                let _ = tokio::io::copy(&mut reading, &mut writing).await;
            });
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn a_valid_file_is_said_to_be_valid() {
    let anywhere = "127.0.0.1:1".parse().unwrap();
    let file = settings(anywhere, anywhere, "");
    let mut command = program(&file);
    command.arg("--check");
    let (status, out, err) = run(command).await;
    assert_eq!(
        (status.code(), out.lines().count(), err.as_str()),
        (Some(0), 1, "")
    );
}

#[tokio::test]
async fn files_of_certificates_are_checked_as_at_the_start_and_named() {
    let missing = std::env::temp_dir().join(format!("causeway-absent-{}.pem", std::process::id()));
    let missing = missing.display();
    let listener =
        |tls: &str| format!("listeners: [{{ address: \"127.0.0.1:0\", tls: {{ {tls} }} }}]\n");
    // The key that the tests of the crate have: it protects nothing.
    let files = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/localhost");
    let right = format!("certificates: [{{ certificate: {files}.crt, key: {files}.key }}]");
    for (head, pool, expected) in [
        (
            listener(&format!(
                "certificates: [{{ certificate: {missing}, key: {files}.key }}]"
            )),
            "",
            format!("127.0.0.1:0: {missing}: "),
        ),
        (
            listener(&format!(
                "certificates: [{{ certificate: {files}.crt, key: {files}.crt }}]"
            )),
            "",
            format!("127.0.0.1:0: {files}.crt: no private key"),
        ),
        (
            listener(&format!("{right}, ticket_keys: {files}.crt")),
            "",
            format!("{files}.crt: line 1: "),
        ),
        (
            listener(&format!("{right}, client_ca: {files}.key")),
            "",
            format!("{files}.key: no certificate"),
        ),
        (
            String::new(),
            "tls: { ca: FILE }, ",
            format!("pool \"p\": {missing}: "),
        ),
        (listener(&right), "", String::new()),
    ] {
        let pool = pool.replace("FILE", &missing.to_string());
        let file = File::new(&format!(
            "{head}admin: {{ address: none }}\npools: [{{ name: p, {pool}backends: [{{ id: b, address: \"127.0.0.1:1\" }}] }}]\n"
        ));
        let mut command = program(&file);
        command.arg("--check");
        let (status, out, errors) = run(command).await;
        if expected.is_empty() {
            assert!(status.success(), "{errors}");
            continue;
        }
        assert_eq!((status.code(), out.as_str()), (Some(2), ""), "{errors}");
        assert!(errors.contains(&expected), "{errors}");
        let (status, _, errors) = run(program(&file)).await;
        assert_eq!(status.code(), Some(2));
        assert!(errors.contains(&expected), "{errors}");
    }
}

#[tokio::test]
async fn a_bad_file_is_refused_with_its_place_whether_checked_or_run() {
    let file = File::new("listeners: []\nroute: []\n");
    for check in [true, false] {
        let mut command = program(&file);
        if check {
            command.arg("--check");
        }
        let (status, out, err) = run(command).await;
        assert_eq!((status.code(), out.as_str()), (Some(2), ""));
        assert!(
            err.contains(&format!("{}:2:1: ", file.0.display())) && err.contains("route"),
            "{err}"
        );
    }
}

#[tokio::test]
async fn a_port_in_use_is_one_line_and_exit_code_2() {
    let taken = StdListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let file = settings(address, address, "log: { level: error }\n");
    let (status, out, err) = run(program(&file)).await;
    assert_eq!((status.code(), out.as_str()), (Some(2), ""));
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.contains(&address.to_string()), "{err}");
}

#[tokio::test]
async fn a_drain_closes_tunnels_with_1012_and_exits_0_when_the_last_has_gone() {
    let (backend, _backend) = echo().await;
    let edge = Edge::start(
        backend,
        "drain: { late: 100ms, spread: 500ms, timeout: 15s }\n",
    )
    .await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(edge.open_tunnel().await);
    }
    edge.signal("-TERM").await;
    for client in &mut clients {
        let mut frame = [0; 4];
        timeout(SOON, client.read_exact(&mut frame))
            .await
            .expect("a Close frame in time")
            .unwrap();
        assert_eq!(frame, [0x88, 2, 0x03, 0xf4]);
    }
    assert!(
        TcpStream::connect(edge.address).await.is_err(),
        "nobody new is let in"
    );
    let mut ready = TcpStream::connect(edge.admin).await.unwrap();
    ready
        .write_all(b"GET /ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut response = String::new();
    ready.read_to_string(&mut response).await.unwrap();
    assert!(
        response.starts_with("HTTP/1.1 503 ") && response.ends_with("draining\n"),
        "{response}"
    );
    drop(clients);
    let (status, log) = edge.end().await;
    assert_eq!(status.code(), Some(0));
    assert_eq!(log.len(), 20);
    for line in &log {
        assert_eq!(
            (line["kind"].as_str(), line["status"].as_u64()),
            (Some("tunnel"), Some(101))
        );
        assert_eq!(
            (line["close_reason"].as_str(), line["close_code"].as_u64()),
            (Some("drained"), Some(1012))
        );
        assert_eq!(
            (line["path"].as_str(), line["backend"].as_str()),
            (Some("/ws"), Some("b"))
        );
    }
}

#[tokio::test]
async fn a_drain_waits_for_a_request_in_flight_and_for_one_that_is_on_its_way() {
    let (backend, _backend) = echo().await;
    let edge = Edge::start(
        backend,
        "drain: { late: 2s, spread: 0s, timeout: 15s }\nno_route: { status: 404, body: \"x\" }\n",
    )
    .await;
    let mut idle = TcpStream::connect(edge.address).await.unwrap();
    // Accepted, since it is answered.
    idle.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut response = [0; 12];
    idle.read_exact(&mut response).await.unwrap();
    edge.signal("-TERM").await;
    timeout(SOON, async {
        while TcpStream::connect(edge.address).await.is_ok() {}
    })
    .await
    .expect("the listener closes");
    idle.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut rest = String::new();
    timeout(SOON, idle.read_to_string(&mut rest))
        .await
        .expect("an end in time")
        .unwrap();
    assert_eq!(rest.matches("HTTP/1.1 404 ").count(), 1, "{rest}");
    assert!(
        rest.to_ascii_lowercase().contains("connection: close"),
        "{rest}"
    );
    assert_eq!(edge.end().await.0.code(), Some(0));
}

#[tokio::test]
async fn an_interrupt_ends_it_quickly_and_cleanly() {
    let (backend, _backend) = echo().await;
    let edge = Edge::start(backend, "drain: { late: 10s, spread: 10s, timeout: 60s }\n").await;
    let mut client = edge.open_tunnel().await;
    let _idle = TcpStream::connect(edge.address).await.unwrap();
    let started = Instant::now();
    edge.signal("-INT").await;
    let mut frame = [0; 4];
    timeout(SOON, client.read_exact(&mut frame))
        .await
        .expect("a Close frame in time")
        .unwrap();
    assert_eq!(frame, [0x88, 2, 0x03, 0xf4]);
    let (status, _) = edge.end().await;
    assert_eq!(status.code(), Some(0));
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
}
