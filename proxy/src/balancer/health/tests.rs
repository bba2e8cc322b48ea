//! Probes over real sockets, and the pace of the loop that sends them.

use std::net::SocketAddr;

use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use super::*;
use crate::balancer::pool::Evidence;
use crate::config::backend::Address;
use crate::config::{Config, PoolId};
use crate::metrics::Metrics;
use crate::tls::Connectors;

/// What the backend of a test does with a connection once it has read something.
#[derive(Clone, Copy)]
enum Reply {
    Bytes(&'static str),
    /// These bytes, to a head that begins like that, in lower case.
    Path(&'static str, &'static str),
    Silence,
    Endless,
}

const READY: Reply = Reply::Bytes("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nready\n");

async fn serve<S: AsyncReadExt + AsyncWriteExt + Unpin>(mut stream: S, reply: Reply) {
    let mut head = [0; 1024];
    let Ok(read) = stream.read(&mut head).await else {
        return;
    };
    let head = String::from_utf8_lossy(&head[..read]).to_ascii_lowercase();
    assert!(
        head.is_empty() || head.contains(" http/1.1\r\nhost: localhost\r\n"),
        "{head}"
    );
    match reply {
        Reply::Path(path, bytes) => {
            assert!(head.starts_with(path), "{head}");
            drop(stream.write_all(bytes.as_bytes()).await);
        }
        Reply::Bytes(bytes) => drop(stream.write_all(bytes.as_bytes()).await),
        Reply::Silence => drop(stream.read(&mut [0; 1]).await),
        Reply::Endless => {
            let head = b"HTTP/1.1 200 OK\r\n\r\n";
            if stream.write_all(head).await.is_ok() {
                while stream.write_all(&[b'x'; 1024]).await.is_ok() {}
            }
        }
    }
}

/// A backend that sends `reply` on every connection, until its task is aborted.
async fn backend(reply: Reply) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream, reply));
        }
    });
    (address, tasks)
}

fn config(health: &str, backends: &str) -> Config {
    let file = format!(
        "pools: [{{name: a, backends: [{backends}]}}]
health: {{{health}}}
affinity: {{hold: 1s, hold_timeout: 500ms}}"
    );
    Config::parse("f", &file).unwrap_or_else(|errors| panic!("{errors}"))
}

async fn probe(health: &str, address: &str) -> ProbeResult {
    probed(health, address).await.result
}

async fn probed(health: &str, address: &str) -> Probed {
    let backend = format!("{{id: n, address: '{address}'}}");
    let health = match health {
        "" => "timeout: 20s".to_owned(),
        health if health.contains("timeout") => health.to_owned(),
        health => format!("{health}, timeout: 20s"),
    };
    let health = health.as_str();
    let config = config(health, &backend);
    let prober = Prober::new(
        &config.pools[0].health,
        Connectors::load(&config).unwrap().of("p"),
        Arc::new(Names::new()),
    );
    let address = address.parse::<Address>().unwrap();
    prober.probe(&address, State::Up).await.unwrap()
}

/// The result of a probe as text.
async fn found(health: &str, address: &str) -> String {
    match probe(health, address).await {
        ProbeResult::Good => "good".to_owned(),
        ProbeResult::Draining => "draining".to_owned(),
        ProbeResult::UnexpectedResponse(why) => why,
        ProbeResult::Unreachable(why) => format!("unreachable: {why}"),
        ProbeResult::NoResponse(why) => format!("no response: {why}"),
    }
}

#[tokio::test]
async fn a_response_is_good_bad_or_draining() {
    let cases = [
        (READY, "good"),
        (Reply::Bytes("HTTP/1.1 200 OK\r\n\r\nuntil the end"), "good"),
        (
            Reply::Bytes(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            ),
            "good",
        ),
        (
            Reply::Bytes("HTTP/1.1 200 OK\r\nCauseway-Drain: 1\r\nContent-Length: 0\r\n\r\n"),
            "good",
        ),
        (
            Reply::Bytes(
                "HTTP/1.1 503 Service Unavailable\r\nCauseway-Drain: 1\r\nContent-Length: 0\r\n\r\n",
            ),
            "draining",
        ),
        (
            Reply::Bytes(
                "HTTP/1.1 503 Service Unavailable\r\nCauseway-Drain: 0\r\nContent-Length: 0\r\n\r\n",
            ),
            "the probe got status 503",
        ),
        (
            Reply::Bytes("HTTP/1.1 204 No Content\r\n\r\n"),
            "the probe got status 204",
        ),
        (
            Reply::Bytes("hello, who is this?\r\n\r\n"),
            "the response to the probe is not HTTP",
        ),
    ];
    for (reply, expected) in cases {
        let (address, _tasks) = backend(reply).await;
        assert_eq!(found("", &address.to_string()).await, expected);
    }
}

#[tokio::test]
async fn each_kind_has_its_defaults_and_settings_override_them() {
    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    const FOUND: &str = "HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n";
    const GONE: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    let cases = [
        ("kind: node", "get /ready ", OK, "good"),
        (
            "",
            "get /ready ",
            GONE,
            "the probe got status 404 (health.kind: http suits apps that are not Causeway nodes)",
        ),
        ("path: /up", "get /up ", OK, "good"),
        (
            "kind: http",
            "head / ",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
            "good",
        ),
        ("kind: http", "head / ", FOUND, "good"),
        (
            "kind: http",
            "head / ",
            "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n",
            "the probe got status 405 (health.method: GET may suit it)",
        ),
        ("kind: http", "head / ", GONE, "the probe got status 404"),
        (
            "kind: http, method: OPTIONS, path: '/x?y', expect: ['400-499', 200]",
            "options /x?y ",
            GONE,
            "good",
        ),
        (
            "kind: http, expect: ['200-299']",
            "head / ",
            FOUND,
            "the probe got status 302",
        ),
    ];
    for (health, head, response, expected) in cases {
        let (address, _tasks) = backend(Reply::Path(head, response)).await;
        assert_eq!(
            found(health, &address.to_string()).await,
            expected,
            "{health}"
        );
    }
}

#[tokio::test]
async fn a_probe_has_the_configured_headers() {
    let responses = [
        ("", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "good"),
        (
            "kind: websocket, ",
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            "the probe got status 403 instead of 101",
        ),
    ];
    for (kind, response, expected) in responses {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(response.as_bytes()).await.unwrap();
            String::from_utf8(head).unwrap().to_ascii_lowercase()
        };
        let health = format!("{kind}headers: {{Host: app.example, X-Token: abc, User-Agent: me}}");
        let (head, found) = tokio::join!(serving, found(&health, &address));
        assert_eq!(found, expected);
        for line in ["host: app.example", "x-token: abc", "user-agent: me"] {
            let times = head.lines().filter(|found| *found == line).count();
            assert_eq!(times, 1, "{line}: {head}");
        }
    }
}

#[tokio::test]
async fn another_port_can_be_probed() {
    let (address, _tasks) = backend(READY).await;
    let health = format!("port: {}", address.port());
    assert_eq!(found(&health, "127.0.0.1:1").await, "good");
    assert_eq!(found(&health, "localhost:1").await, "good");
}

#[tokio::test]
async fn a_backend_whose_own_port_is_closed_does_not_come_up_by_a_probe_of_another() {
    let (probed, _tasks) = backend(READY).await;
    let own = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = own.local_addr().unwrap();
    let backends = format!("{{id: n1, address: '{address}'}}");
    let pace = "timeout: 20s, interval: 100ms, fast_interval: 100ms, down_interval: 100ms";
    let pace = format!("port: {}, {pace}", probed.port());
    let running = Running::start(&config(&pace, &backends));
    let backend = running.pool.backends().remove(0);
    until(&backend, State::Up).await;
    drop(own);
    running
        .pool
        .report(&backend, Evidence::ConnectRefused, Instant::now());
    // Its probes pass meanwhile, and no more dials are made.
    until(&backend, State::Down).await;
    let why = backend.status(Instant::now()).why;
    assert!(
        why.contains("but not on the own port of the backend: connection refused"),
        "{why}"
    );
    let _own = TcpListener::bind(address).await.unwrap();
    until(&backend, State::Up).await;
    running.stop().await;
}

/// A WebSocket server that records the messages of its clients.
async fn websocket_backend() -> (SocketAddr, Arc<Mutex<Vec<String>>>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = JoinSet::new();
    let shared = Arc::clone(&seen);
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                shared.lock().push(format!("{message:?}"));
            }
            shared.lock().push("end".to_owned());
        }
    });
    (address, seen, tasks)
}

#[tokio::test]
async fn a_websocket_probe_opens_a_websocket_and_closes_it() {
    let (address, seen, _tasks) = websocket_backend().await;
    assert_eq!(found("kind: websocket", &address.to_string()).await, "good");
    let ended = async {
        while seen.lock().len() < 2 {
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    time::timeout(Duration::from_secs(20), ended).await.unwrap();
    assert_eq!(*seen.lock(), ["Close(None)", "end"]);
}

#[tokio::test]
async fn a_response_may_say_which_deploy_it_is_of() {
    let cases = [
        ("7", Some(7)),
        ("9007199254740991", Some(9_007_199_254_740_991)),
        ("0", None),
        ("9007199254740992", None),
        ("-1", None),
        ("1.5", None),
        ("seven", None),
        ("\u{e9}", None),
        ("", None),
    ];
    for (value, expected) in cases {
        let response =
            format!("HTTP/1.1 200 OK\r\nCauseway-Generation: {value}\r\nContent-Length: 0\r\n\r\n");
        let (address, _tasks) = backend(Reply::Bytes(response.leak())).await;
        let probed = probed("", &address.to_string()).await;
        assert_eq!(probed.result, ProbeResult::Good, "{value}");
        assert_eq!(probed.generation, expected, "{value}");
    }
}

#[tokio::test]
async fn a_websocket_probe_accepts_only_a_websocket_handshake() {
    let head = "get /ws http/1.1\r\n";
    let cases = [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "the probe got status 200 instead of 101",
        ),
        (
            "HTTP/1.1 503 Service Unavailable\r\nCauseway-Drain: 1\r\nContent-Length: 0\r\n\r\n",
            "draining",
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n\r\n",
            "the response to the probe has a wrong Sec-WebSocket-Accept",
        ),
        (
            "",
            "no response: the backend closed the connection of the probe",
        ),
    ];
    for (response, expected) in cases {
        let (address, _tasks) = backend(Reply::Path(head, response)).await;
        let health = "kind: websocket, path: /ws";
        assert_eq!(found(health, &address.to_string()).await, expected);
    }
    let (address, _tasks) = backend(Reply::Bytes("hello, who is this?\r\n\r\n")).await;
    let found = found("kind: websocket", &address.to_string()).await;
    assert!(
        found.starts_with("the response to the probe is not a WebSocket handshake"),
        "{found}"
    );
}

#[tokio::test]
async fn the_expected_statuses_are_a_setting() {
    let (address, _tasks) = backend(Reply::Bytes("HTTP/1.1 204 No Content\r\n\r\n")).await;
    let found = probe("expect: [200, '203-205']", &address.to_string()).await;
    assert_eq!(found, ProbeResult::Good);
}

#[tokio::test]
async fn a_missing_or_endless_response_ends_at_the_timeout() {
    let cases = [
        ("", Reply::Silence),
        ("", Reply::Endless),
        ("kind: websocket,", Reply::Silence),
    ];
    for (kind, reply) in cases {
        let (address, _tasks) = backend(reply).await;
        let started = Instant::now();
        let health = format!("{kind} timeout: 200ms");
        let found = probe(&health, &address.to_string()).await;
        assert!(matches!(found, ProbeResult::NoResponse(_)), "{found:?}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}

#[tokio::test]
async fn a_closed_port_a_missing_socket_and_an_unknown_name_are_unreachable() {
    let (address, tasks) = backend(READY).await;
    stop(tasks).await;
    for health in ["kind: http", "kind: tcp", "kind: websocket"] {
        let found = probe(health, &address.to_string()).await;
        assert_eq!(
            found,
            ProbeResult::Unreachable("connection refused".to_owned())
        );
        for address in ["unix:/nowhere/to/be/found", "no-such-host.invalid:80"] {
            let found = probe(health, address).await;
            assert!(matches!(found, ProbeResult::Unreachable(_)), "{found:?}");
        }
    }
}

#[tokio::test]
async fn a_tcp_probe_needs_only_a_connection() {
    let (address, _tasks) = backend(Reply::Silence).await;
    let found = probe("kind: tcp", &address.to_string()).await;
    assert_eq!(found, ProbeResult::Good);
}

#[tokio::test]
async fn host_names_and_unix_sockets_are_probed_too() {
    let (address, _tasks) = backend(READY).await;
    let found = probe("", &format!("localhost:{}", address.port())).await;
    assert_eq!(found, ProbeResult::Good);

    let path = std::env::temp_dir().join(format!("causeway-probe-{}", fastrand::u64(..)));
    let listener = UnixListener::bind(&path).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            serve(stream, READY).await;
        }
    });
    let found = probe("", &format!("unix:{}", path.display())).await;
    std::fs::remove_file(&path).unwrap();
    assert_eq!(found, ProbeResult::Good);
}

/// Ends a backend: its listener and connections are closed when this returns.
async fn stop(mut tasks: JoinSet<()>) {
    tasks.shutdown().await;
}

async fn until(backend: &Backend, state: State) {
    let reached = async {
        while backend.state() != state {
            time::sleep(Duration::from_millis(5)).await;
        }
    };
    let found = time::timeout(Duration::from_secs(20), reached).await;
    assert!(found.is_ok(), "is {:?}, not {state:?}", backend.state());
}

/// The loop, running for one pool.
struct Running {
    pool: Arc<Pool>,
    shutdown: CancellationToken,
    task: JoinSet<()>,
}

impl Running {
    fn start(config: &Config) -> Self {
        let metrics = Arc::new(Metrics::new());
        let now = Instant::now();
        let pools = Arc::new(Pools::new(
            config,
            &Connectors::load(config).unwrap(),
            &metrics,
            now,
            Duration::ZERO,
        ));
        let pool = Arc::clone(pools.get(PoolId(0)));
        let shutdown = CancellationToken::new();
        let mut task = JoinSet::new();
        let pools = watch::Sender::new(pools).subscribe();
        task.spawn(run(pools, Arc::new(Names::new()), shutdown.clone()));
        Self {
            pool,
            shutdown,
            task,
        }
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        let ended = time::timeout(Duration::from_secs(5), self.task.join_next()).await;
        assert!(matches!(ended, Ok(Some(Ok(())))), "{ended:?}");
    }
}

#[tokio::test]
async fn the_first_probe_is_sent_at_once_and_a_dead_backend_goes_down() {
    let (address, tasks) = backend(READY).await;
    let backends = format!("{{id: n1, address: '{address}'}}");
    let pace = "timeout: 20s, interval: 100ms, fast_interval: 100ms, down_interval: 100ms";
    let running = Running::start(&config(pace, &backends));
    let backend = running.pool.backends().remove(0);
    until(&backend, State::Up).await;
    stop(tasks).await;
    until(&backend, State::Down).await;
    let listener = TcpListener::bind(address).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            serve(stream, READY).await;
        }
    });
    until(&backend, State::Up).await;
    running.stop().await;
}

#[tokio::test]
async fn a_backend_that_failed_a_request_is_probed_at_once() {
    let (address, _tasks) = backend(READY).await;
    let backends = format!("{{id: n1, address: '{address}'}}");
    let pace = "timeout: 20s, interval: 1h, fast_interval: 100ms";
    let running = Running::start(&config(pace, &backends));
    let backend = running.pool.backends().remove(0);
    until(&backend, State::Up).await;
    running
        .pool
        .report(&backend, Evidence::ConnectRefused, Instant::now());
    until(&backend, State::Up).await;
    running.stop().await;
}

#[tokio::test]
async fn maintenance_is_not_probed() {
    let (probed, _tasks) = backend(READY).await;
    let spared = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    spared.set_nonblocking(true).unwrap();
    let backends = format!(
        "{{id: n1, address: '{}', maintenance: true}}, {{id: n2, address: '{probed}'}}",
        spared.local_addr().unwrap()
    );
    let pace = "interval: 100ms, fast_interval: 100ms";
    let running = Running::start(&config(pace, &backends));
    let mut health_status = running.pool.backends().remove(1).health_status();
    let thrice = health_status.wait_for(|health_status| 3 <= health_status.responses);
    let probed = time::timeout(Duration::from_secs(20), thrice).await;
    assert!(probed.is_ok_and(|responses| responses.is_ok()));
    running.stop().await;
    let nobody = spared.accept().unwrap_err();
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn the_interval_follows_the_state() {
    let config = config(
        "interval: 3s, fast_interval: 1s, down_interval: 2s",
        "{id: n, address: 'a:1'}",
    );
    let health = &config.pools[0].health;
    let seconds = |state| pause(health, state).as_secs();
    assert_eq!(seconds(State::Up), 3);
    assert_eq!(seconds(State::Draining), 3);
    assert_eq!(seconds(State::Unknown), 1);
    assert_eq!(seconds(State::Suspect), 1);
    assert_eq!(seconds(State::Down), 2);
    for _ in 0..1000 {
        let pause = jittered(Duration::from_secs(10)).as_secs_f64();
        assert!((8.0..=12.0).contains(&pause), "{pause}");
    }
}

/// A backend that counts its connections, and publishes the count.
async fn counting() -> (SocketAddr, watch::Receiver<usize>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (counted, count) = watch::channel(0);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.send_modify(|count| *count += 1);
            serve(stream, READY).await;
        }
    });
    (address, count, tasks)
}

#[tokio::test]
async fn a_change_of_one_backend_restarts_the_probes_of_no_other() {
    let (first, first_probed, _first) = counting().await;
    let (second, mut second_probed, _second) = counting().await;
    let (third, mut third_probed, _third) = counting().await;
    let backend = |id: &str, address: SocketAddr| format!("{{id: {id}, address: '{address}'}}");
    let pace = "timeout: 20s, interval: 1h, fast_interval: 1h";
    let metrics = Arc::new(Metrics::new());
    let mut old = None::<Arc<Pools>>;
    let mut next = |health: &str, backends: &[String]| {
        let config = config(health, &backends.join(", "));
        let (tls, now) = (Connectors::load(&config).unwrap(), Instant::now());
        let pools = Arc::new(match &old {
            None => Pools::new(&config, &tls, &metrics, now, Duration::ZERO),
            Some(old) => {
                let weights = crate::balancer::pool::Weights::OfConfiguration;
                old.renewed(&config, &tls, &metrics, weights, now)
            }
        });
        old = Some(Arc::clone(&pools));
        pools
    };
    let (n1, n2, n3) = (
        backend("n1", first),
        backend("n2", second),
        backend("n3", third),
    );
    let pools = watch::Sender::new(next(pace, &[n1.clone(), n2.clone()]));
    let shutdown = CancellationToken::new();
    let mut task = JoinSet::new();
    task.spawn(run(
        pools.subscribe(),
        Arc::new(Names::new()),
        shutdown.clone(),
    ));
    let up = |index: usize| {
        let backend = pools.borrow().get(PoolId(0)).backends().remove(index);
        async move { until(&backend, State::Up).await }
    };
    up(0).await;
    up(1).await;
    // One is added, one is removed, one changes.
    pools.send_replace(next(pace, &[n1.clone(), n2.clone(), n3.clone()]));
    third_probed.wait_for(|count| *count == 1).await.unwrap();
    up(2).await;
    pools.send_replace(next(pace, &[n1.clone(), n3.clone()]));
    let moved = backend("n3", second);
    pools.send_replace(next(pace, &[n1.clone(), moved]));
    second_probed.wait_for(|count| *count == 2).await.unwrap();
    up(1).await;
    assert_eq!(*first_probed.borrow(), 1);
    // Changed settings apply at once.
    let other = format!("{pace}, rise: 7");
    pools.send_replace(next(&other, &[n1, n3]));
    let mut again = first_probed.clone();
    again.wait_for(|count| *count == 2).await.unwrap();
    shutdown.cancel();
    task.join_next().await.unwrap().unwrap();
}
