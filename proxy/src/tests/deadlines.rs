//! Each wait of the edge ends at its deadline and not before, over HTTP/1 and over HTTP/2.
//!
//! Time is paused: it advances only while all tasks wait. Backends listen on unix sockets, where sent bytes arrive at once. Each
//! test sets one deadline; all others are longer than the test. Other deadlines are tested in their modules: heads in
//! `app::head`, the preface and idle connections of HTTP/2 in `downstream::http2`, handshakes in `tls`, tunnels in `tunnel`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{Request, Version};
use pingora::apps::ServerApp;
use pingora::protocols::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::over_h2;
use super::scene::*;
use crate::balancer::pool::State;
use crate::config::Config;
use crate::downstream::acceptor::Acceptors;
use crate::net::accepted::Accepted;

/// The deadline that each test sets, and a shorter time.
const LIMIT: Duration = Duration::from_secs(7);
const BEFORE: Duration = Duration::from_secs(6);

/// An edge with one backend.
struct DeadlineScene {
    scene: Scene,
    socket: PathBuf,
    /// The number of backend connections that have ended.
    ended: watch::Receiver<usize>,
    tasks: JoinSet<()>,
}

impl Drop for DeadlineScene {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl DeadlineScene {
    async fn with(settings: &str) -> Self {
        let name = format!("causeway-deadline-{}", fastrand::u64(..));
        let socket = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&socket).unwrap();
        let (ends, ended) = watch::channel(0);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let ends = ends.clone();
                serving.spawn(async move {
                    backend(stream).await;
                    ends.send_modify(|ended| *ended += 1);
                });
            }
        });
        let address = format!("unix:{}", socket.display());
        let scene = Scene::configured_at(&[address], settings).await;
        Self {
            scene,
            socket,
            ended,
            tasks,
        }
    }

    /// An HTTP/1 connection, and the task that serves it.
    fn connect(&self) -> (DuplexStream, JoinSet<()>) {
        let (client, edge) = duplex(64 * 1024);
        let acceptors = plain_acceptors(&self.scene.components);
        (client, self.serve(Box::new(edge), acceptors))
    }

    fn serve(&self, stream: Stream, acceptors: Arc<Acceptors>) -> JoinSet<()> {
        let app = Arc::new(self.scene.components.app(acceptors));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (_shutdown, watching) = watch::channel(false);
            app.process_new(stream, &watching).await;
        });
        tasks
    }

    /// An HTTP/1 connection on which `request` has been sent.
    async fn send(&self, request: &str) -> (DuplexStream, JoinSet<()>) {
        let (mut client, served) = self.connect();
        client.write_all(request.as_bytes()).await.unwrap();
        (client, served)
    }

    /// An HTTP/2 connection.
    async fn connect_h2(&mut self) -> SendRequest<Bytes> {
        over_h2::client(&self.scene, &mut self.tasks).await
    }

    /// Returns when `count` backend connections have ended.
    async fn until_backend_closed(&mut self, count: usize) {
        self.ended
            .wait_for(|ended| *ended == count)
            .await
            .expect("the backend is running");
    }

    /// Checks that the behaviour of clients did not count against the backend.
    fn assert_backend_up(&self) {
        let pools = self.scene.components.proxy.pools();
        let backends = pools.iter().flat_map(|pool| pool.backends());
        for backend in backends {
            assert_eq!(backend.state(), State::Unknown);
        }
    }
}

/// A backend that misbehaves as the request target says.
async fn backend(mut stream: UnixStream) {
    loop {
        let head = read_head(&mut stream).await;
        let Some(target) = head.split(' ').nth(1) else {
            return;
        };
        let response = match target {
            // The body is complete at its first dot.
            "/reads" => {
                while stream.read_u8().await.is_ok_and(|byte| byte != b'.') {}
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            }
            "/silent" | "/unread" => "",
            "/half" => "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf",
            "/endless" => "HTTP/1.1 200 OK\r\nContent-Length: 9000000000\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        };
        if stream.write_all(response.as_bytes()).await.is_err() {
            return;
        }
        match target {
            "/unread" => std::future::pending().await,
            "/silent" | "/half" => {
                let _ = stream.read_to_end(&mut Vec::new()).await;
                return;
            }
            "/endless" => {
                while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
                return;
            }
            "/reads" => return,
            _ => {}
        }
    }
}

/// Checks that `limit` has passed since `since`; timers have a resolution of a millisecond.
fn assert_after(since: Instant, limit: Duration, what: &str) {
    assert_between(since, Instant::now(), limit, what);
}

fn assert_between(since: Instant, at: Instant, limit: Duration, what: &str) {
    let took = at - since;
    let most = limit + Duration::from_millis(10);
    assert!(limit <= took && took <= most, "{what}: {took:?}");
}

/// A head, and when it was complete.
async fn read_head_at(reading: &mut (impl AsyncRead + Unpin)) -> (String, Instant) {
    (read_head(reading).await, Instant::now())
}

fn status(response: &str) -> &str {
    response.split(' ').nth(1).unwrap_or(response)
}

fn request_h2(method: &str, target: &str) -> Request<()> {
    let request = Request::builder().method(method).version(Version::HTTP_2);
    let request = request.uri(format!("https://a{target}"));
    request.body(()).unwrap()
}

async fn send_h2(
    client: &SendRequest<Bytes>,
    method: &str,
    target: &str,
) -> (ResponseFuture, SendStream<Bytes>) {
    let mut client = client.clone().ready().await.unwrap();
    let is_over = method == "GET";
    client
        .send_request(request_h2(method, target), is_over)
        .unwrap()
}

/// Checks that the connection can still carry streams.
async fn check_usable(client: &SendRequest<Bytes>) {
    let (response, _) = send_h2(client, "GET", "/").await;
    assert_eq!(response.await.unwrap().status(), 200);
}

/// Reads a response body until its stream is reset.
async fn read_until_reset(body: &mut RecvStream) -> (usize, Option<Reason>) {
    let mut length = 0;
    loop {
        match body.data().await {
            Some(Ok(data)) => length += data.len(),
            Some(Err(error)) => return (length, error.reason()),
            None => panic!("the response ends as if it were complete"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_before_its_first_request_and_after_each() {
    let scene = DeadlineScene::with("timeouts: { keepalive: 7s }\n").await;
    let (mut client, mut served) = scene.connect();
    let started = Instant::now();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_after(started, LIMIT, "the first request");
    served.join_next().await.unwrap().unwrap();

    let (mut client, _served) = scene.connect();
    for _ in 0..3 {
        sleep(BEFORE).await;
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(status(&read_head(&mut client).await), "200");
    }
    let started = Instant::now();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_after(started, LIMIT, "the next request");
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_complete_proxy_header_is_closed() {
    let scene = DeadlineScene::with("").await;
    let settings = "listeners: [{ address: '127.0.0.1:0', proxy_protocol: [127.0.0.0/8] }]\n\
                    pools: [{ name: p, backends: [{ id: b, address: '127.0.0.1:1' }] }]\n\
                    routes: [{ path: /, pool: p }]\ntimeouts: { head: 7s }\n";
    let config = Config::parse("test.yaml", settings).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    for sent in ["", "PROXY TCP4 192.0.2.1 "] {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(sent.as_bytes()).await.unwrap();
        let (socket, peer) = listener.accept().await.unwrap();
        let acceptor = crate::acceptor(&config, &config.listeners[0]).unwrap();
        let proxy = &scene.scene.components.proxy;
        let acceptors = Acceptors::new(
            vec![(address, acceptor)],
            Arc::clone(&proxy.gate),
            Arc::clone(&proxy.metrics),
        );
        let started = Instant::now();
        let stream = Box::new(Accepted::new(socket, peer, address));
        let mut served = scene.serve(stream, Arc::new(acceptors));
        served.join_next().await.unwrap().unwrap();
        assert_after(started, LIMIT, sent);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_body_that_stalls_is_408_and_its_backend_connection_is_closed() {
    let mut scene = DeadlineScene::with("timeouts: { downstream_read: 7s }\n").await;
    for (number, (framing, piece)) in (1..).zip([
        ("Content-Length: 100", "xxxxx"),
        ("Transfer-Encoding: chunked", "5\r\nxxxxx\r\n"),
    ]) {
        let request = format!("POST /reads HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
        let (mut client, _served) = scene.send(&request).await;
        for _ in 0..3 {
            sleep(BEFORE).await;
            client.write_all(piece.as_bytes()).await.unwrap();
        }
        let started = Instant::now();
        let head = read_head(&mut client).await;
        assert_after(started, LIMIT, framing);
        assert_eq!(status(&head), "408", "{head}");
        assert_eq!(header(&head, "connection"), Some("close"));
        scene.until_backend_closed(number).await;
    }
    let client = scene.connect_h2().await;
    let (response, mut body) = send_h2(&client, "POST", "/reads").await;
    for _ in 0..3 {
        sleep(BEFORE).await;
        body.send_data(Bytes::from_static(b"xxxxx"), false).unwrap();
    }
    let started = Instant::now();
    assert_eq!(response.await.unwrap().status(), 408);
    assert_after(started, LIMIT, "HTTP/2");
    scene.until_backend_closed(3).await;
    check_usable(&client).await;
    scene.assert_backend_up();
}

/// The minimum rate is five bytes per second, in windows of seven seconds.
const RATE: &str = "timeouts: { request_body_rate: { per_second: 5B, window: 7s } }\n";

#[tokio::test(start_paused = true)]
async fn a_request_body_below_the_minimum_rate_is_408_at_the_end_of_the_window() {
    let second = Duration::from_secs(1);
    for (bytes, wanted) in [("xxxx", 408), ("xxxxx", 200)] {
        let mut scene = DeadlineScene::with(RATE).await;
        let request = "POST /reads HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n";
        let (client, _served) = scene.send(request).await;
        let (mut reading, mut writing) = tokio::io::split(client);
        let started = Instant::now();
        let drip = async {
            for _ in 0..20 {
                sleep(second).await;
                if writing.write_all(bytes.as_bytes()).await.is_err() {
                    return;
                }
            }
            writing.write_all(b".").await.unwrap();
        };
        let (head, ()) = tokio::join!(read_head_at(&mut reading), drip);
        let (head, at) = head;
        assert_eq!(status(&head), wanted.to_string(), "{head}");
        let limit = if wanted == 408 { LIMIT } else { 20 * second };
        assert_between(started, at, limit, bytes);

        let client = scene.connect_h2().await;
        let (response, mut body) = send_h2(&client, "POST", "/reads").await;
        let started = Instant::now();
        let drip = async {
            for _ in 0..20 {
                sleep(second).await;
                let data = Bytes::copy_from_slice(bytes.as_bytes());
                if body.send_data(data, false).is_err() {
                    return;
                }
            }
            body.send_data(Bytes::from_static(b"."), true).unwrap();
        };
        let responded = async { (response.await.unwrap().status(), Instant::now()) };
        let ((status, at), ()) = tokio::join!(responded, drip);
        assert_eq!(status, wanted);
        assert_between(started, at, limit, "HTTP/2");
        check_usable(&client).await;
        scene.assert_backend_up();
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_does_not_read_the_request_is_a_504() {
    let mut scene = DeadlineScene::with("timeouts: { upstream_write: 7s }\n").await;
    // More than the sockets buffer.
    let length = 4 << 20;
    let request = format!("POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
    let (client, _served) = scene.send(&request).await;
    let (mut reading, mut writing) = tokio::io::split(client);
    let started = Instant::now();
    let sending = async {
        let _ = writing.write_all(&vec![b'x'; length]).await;
    };
    let ((head, at), ()) = tokio::join!(read_head_at(&mut reading), sending);
    assert_eq!(status(&head), "504", "{head}");
    assert_between(started, at, LIMIT, "HTTP/1");

    let client = scene.connect_h2().await;
    let (response, mut body) = send_h2(&client, "POST", "/unread").await;
    let started = Instant::now();
    body.send_data(vec![b'x'; length].into(), true).unwrap();
    assert_eq!(response.await.unwrap().status(), 504);
    assert_after(started, LIMIT, "HTTP/2");
    check_usable(&client).await;
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_does_not_respond_is_a_504_and_a_response_that_stalls_is_aborted() {
    let mut scene = DeadlineScene::with("timeouts: { upstream_read: 7s }\n").await;
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let (mut client, _served) = scene.send(&get("/silent")).await;
    let started = Instant::now();
    let head = read_head(&mut client).await;
    assert_eq!(status(&head), "504", "{head}");
    assert_after(started, LIMIT, "no response");
    scene.until_backend_closed(1).await;

    let (mut client, _served) = scene.send(&get("/half")).await;
    let head = read_head(&mut client).await;
    assert_eq!(status(&head), "200", "{head}");
    let started = Instant::now();
    assert_eq!(read_all(&mut client).await, "half");
    assert_after(started, LIMIT, "half a response");
    scene.until_backend_closed(2).await;

    let client = scene.connect_h2().await;
    let (response, _) = send_h2(&client, "GET", "/silent").await;
    let started = Instant::now();
    assert_eq!(response.await.unwrap().status(), 504);
    assert_after(started, LIMIT, "no response over HTTP/2");
    let (response, _) = send_h2(&client, "GET", "/half").await;
    let mut body = response.await.unwrap().into_body();
    let started = Instant::now();
    let reset = read_until_reset(&mut body).await;
    assert_eq!(reset, (4, Some(Reason::INTERNAL_ERROR)));
    assert_after(started, LIMIT, "half a response over HTTP/2");
    scene.until_backend_closed(4).await;
    check_usable(&client).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stops_reading_is_disconnected_and_its_stream_is_reset() {
    let mut scene = DeadlineScene::with("timeouts: { downstream_write: 7s }\n").await;
    let (mut client, mut served) = scene.send("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").await;
    // It reads a little before each deadline.
    assert_eq!(status(&read_head(&mut client).await), "200");
    for _ in 0..3 {
        sleep(BEFORE).await;
        // Everything that is buffered, so that the edge writes again.
        read_exact(&mut client, 64 * 1024).await;
    }
    let started = Instant::now();
    served.join_next().await.unwrap().unwrap();
    assert_after(started, LIMIT, "HTTP/1");
    scene.until_backend_closed(1).await;

    let client = scene.connect_h2().await;
    let (response, _) = send_h2(&client, "GET", "/endless").await;
    let mut body = response.await.unwrap().into_body();
    let started = Instant::now();
    // It is read, but its flow-control window is not opened again.
    let (length, _) = read_until_reset(&mut body).await;
    assert_after(started, LIMIT, "HTTP/2");
    assert_eq!(length, 65_535);
    scene.until_backend_closed(2).await;
    check_usable(&client).await;
    scene.assert_backend_up();
}

#[tokio::test(start_paused = true)]
async fn the_edge_sends_100_continue_if_the_backend_does_not() {
    let scene = DeadlineScene::with("").await;
    let request =
        "POST /reads HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n";
    let (mut client, _served) = scene.send(request).await;
    let started = Instant::now();
    assert_eq!(status(&read_head(&mut client).await), "100");
    assert_after(started, Duration::from_secs(1), "the 100");
    client.write_all(b".").await.unwrap();
    assert_eq!(status(&read_head(&mut client).await), "200");
}

/// An address that neither accepts nor refuses connections: the backlog of its listener is full.
struct FullBacklog {
    address: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<std::net::TcpStream>,
}

impl FullBacklog {
    fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let moment = Duration::from_millis(100);
        let queue = || std::net::TcpStream::connect_timeout(&address, moment).ok();
        let queued = std::iter::from_fn(queue).collect();
        Self {
            address,
            _listener: listener,
            _queued: queued,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_times_out_is_retried_at_another_backend_or_a_504() {
    let full = FullBacklog::new();
    let mut scene = DeadlineScene::with("").await;
    let here = format!("unix:{}", scene.socket.display());
    let settings = "timeouts: { connect: 7s }\n";
    for (backends, wanted) in [
        (vec![full.address.to_string()], 504),
        (vec![full.address.to_string(), here], 200),
    ] {
        scene.scene = Scene::configured_at(&backends, settings).await;
        let (mut client, _served) = scene.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let started = Instant::now();
        let head = read_head(&mut client).await;
        assert_eq!(status(&head), wanted.to_string(), "{head}");
        assert_after(started, LIMIT, "a dial");
    }
}

/// In real time, which parked requests are measured in.
#[tokio::test]
async fn a_client_whose_backend_does_not_accept_connections_is_bound_to_another_after_a_while() {
    let full = FullBacklog::new();
    let (other, _other) = mirror().await;
    let settings = "timeouts: { connect: 100ms }\naffinity: { hold: 1m, hold_timeout: 1s }\n";
    let scene = Scene::configured(&[full.address, other], settings).await;
    let started = Instant::now();
    let request =
        "GET / HTTP/1.1\r\nHost: a\r\nCookie: causeway=u1.b0.1\r\nConnection: close\r\n\r\n";
    let response = scene.request(request).await;
    let cookie = header(&response, "set-cookie").expect("it is bound anew");
    assert!(cookie.starts_with("causeway=u1.b1."), "{response}");
    assert!(Duration::from_secs(1) <= started.elapsed());
}
