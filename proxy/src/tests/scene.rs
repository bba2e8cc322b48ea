//! An edge on a port chosen by the kernel, with clients and backends for tests.
//!
//! The same tests run on two kinds of edge: with its own listeners, and mounted in a Pingora service.

use std::fmt::Write as _;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pingora::apps::ServerApp;
use pingora::server::Fds;
use pingora::server::configuration::ServerConf;
use pingora::services::{Service, listening};
use pingora_proxy::HttpProxy;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::balancer::pool::ProbeResult;
use crate::balancer::pool::State;
use crate::config::Config;
use crate::config::ListenerConfig;
use crate::downstream::acceptor::{Acceptor, Acceptors};
use crate::net::accepted::Accepted;
use crate::request::proxy_http::Edge;
use crate::server::components;
use crate::server::components::Components;

/// Longer than anything takes here, even on a slow machine, unless it hangs.
pub(super) const SOON: Duration = Duration::from_secs(30);

/// How an edge accepts connections.
pub(super) trait Front {
    /// Serves what `listener` accepts until `shutdown`.
    fn serve(
        components: &Components,
        conf: &Arc<ServerConf>,
        listener: TcpListener,
        shutdown: watch::Receiver<bool>,
        tasks: &mut JoinSet<()>,
    );
}

/// The edge with listeners of its own.
pub(super) struct Own;

impl Front for Own {
    fn serve(
        components: &Components,
        _conf: &Arc<ServerConf>,
        listener: TcpListener,
        shutdown: watch::Receiver<bool>,
        tasks: &mut JoinSet<()>,
    ) {
        let acceptors = plain_acceptors(components);
        let app = Arc::new(components.app(acceptors));
        let address = listener.local_addr().unwrap();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, peer)) = listener.accept().await {
                let (app, shutdown) = (Arc::clone(&app), shutdown.clone());
                let stream = Box::new(Accepted::new(socket, peer, address));
                connections.spawn(async move {
                    app.process_new(stream, &shutdown).await;
                });
            }
        });
    }
}

/// Acceptors of a plain HTTP listener.
pub(super) fn plain_acceptors(components: &Components) -> Arc<Acceptors> {
    let listening = ListenerConfig::plain("127.0.0.1:0".parse().unwrap());
    let acceptor = Acceptor::new(&listening, SOON).unwrap();
    let metrics = Arc::clone(&components.proxy.metrics);
    Arc::new(Acceptors::new(
        vec![(listening.address, acceptor)],
        Arc::clone(&components.proxy.gate),
        metrics,
    ))
}

/// The edge in a Pingora service, which buffers reads by default.
pub(super) struct Mounted;

impl Front for Mounted {
    fn serve(
        components: &Components,
        conf: &Arc<ServerConf>,
        listener: TcpListener,
        shutdown: watch::Receiver<bool>,
        tasks: &mut JoinSet<()>,
    ) {
        let address = listener.local_addr().unwrap().to_string();
        let mut service = pingora_proxy::http_proxy_service(conf, components.mounted_edge());
        service.add_tcp(&address);
        start(service, address, listener, shutdown, tasks);
    }
}

/// As [`Mounted`], behind TLS.
pub(super) struct MountedTls;

impl Front for MountedTls {
    fn serve(
        components: &Components,
        conf: &Arc<ServerConf>,
        listener: TcpListener,
        shutdown: watch::Receiver<bool>,
        tasks: &mut JoinSet<()>,
    ) {
        // A key for tests only.
        let files = concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/localhost");
        let address = listener.local_addr().unwrap().to_string();
        let mut service = pingora_proxy::http_proxy_service(conf, components.mounted_edge());
        service
            .add_tls(&address, &format!("{files}.crt"), &format!("{files}.key"))
            .unwrap();
        start(service, address, listener, shutdown, tasks);
    }
}

/// Runs a Pingora service on a listening socket.
fn start(
    mut service: listening::Service<HttpProxy<Edge>>,
    address: String,
    listener: TcpListener,
    shutdown: watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) {
    let mut descriptors = Fds::new();
    descriptors.add(address, listener.into_std().unwrap().into_raw_fd());
    let descriptors = Arc::new(Mutex::new(descriptors));
    tasks.spawn(async move {
        Service::start_service(&mut service, Some(descriptors), shutdown, 1).await;
    });
}

/// A running edge.
pub(super) struct SceneOf<F> {
    pub(super) address: SocketAddr,
    pub(super) components: Components,
    _tasks: JoinSet<()>,
    _shutdown: watch::Sender<bool>,
    _front: PhantomData<F>,
}

/// The edge with listeners of its own.
pub(super) type Scene = SceneOf<Own>;

impl<F: Front> SceneOf<F> {
    /// An edge in front of `backends`, with the ids `b0`, `b1` and so on. It allows WebSockets on `/`, and the protocol `foo` on `/foo`.
    pub(super) async fn before(backends: &[SocketAddr]) -> Self {
        Self::configured(backends, "").await
    }

    /// As [`Scene::before`], with more top-level settings.
    pub(super) async fn configured(backends: &[SocketAddr], settings: &str) -> Self {
        let backends: Vec<String> = backends.iter().map(ToString::to_string).collect();
        Self::configured_at(&backends, settings).await
    }

    /// As [`Scene::configured`], with backends at any kind of address.
    pub(super) async fn configured_at(backends: &[String], settings: &str) -> Self {
        Self::with_pool(backends, "", settings).await
    }

    /// The same, with more settings of the pool.
    pub(super) async fn with_pool(backends: &[String], pool: &str, settings: &str) -> Self {
        let mut text = format!("pools:\n  - name: p\n    pick: round_robin\n{pool}    backends:\n");
        for (index, address) in backends.iter().enumerate() {
            writeln!(text, "      - {{ id: b{index}, address: \"{address}\" }}").unwrap();
        }
        text.push_str("routes: [{ path: /foo, pool: p, upgrades: [foo] }, { path: /, pool: p }]\nlog: { access: off }\n");
        text.push_str(settings);
        let config = Config::parse("test.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"));
        let components = Components::new(&config).unwrap();
        let conf = ServerConf {
            max_retries: components::attempts_max(),
            ..ServerConf::default()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, watching) = watch::channel(false);
        let mut tasks = JoinSet::new();
        F::serve(&components, &Arc::new(conf), listener, watching, &mut tasks);
        Self {
            address,
            components,
            _tasks: tasks,
            _shutdown: shutdown,
            _front: PhantomData,
        }
    }

    /// A connection on which `request` has been sent.
    pub(super) async fn send(&self, request: impl AsRef<[u8]>) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        client.write_all(request.as_ref()).await.unwrap();
        client
    }

    /// Sends `request`, and reads until the edge closes the connection.
    pub(super) async fn request(&self, request: impl AsRef<[u8]>) -> String {
        read_all(&mut self.send(request).await).await
    }
}

/// Reports failed probes of the backend `id` until it is down, and good ones of all others.
pub(super) fn mark_down<F: Front>(scene: &SceneOf<F>, id: &str) {
    let mut now = Instant::now();
    for pool in scene.components.proxy.pools().iter() {
        for backend in pool.backends() {
            if backend.id.as_str() != id {
                pool.probed(&backend, ProbeResult::Good, now);
                continue;
            }
            while backend.state() != State::Down {
                let failed = ProbeResult::NoResponse("its probe was not answered".to_owned());
                pool.probed(&backend, failed, now);
                now += Duration::from_secs(1);
            }
        }
    }
}

/// A backend that serves every connection with `script`.
pub(super) async fn backend<F>(
    script: impl Fn(TcpStream) -> F + Send + Sync + 'static,
) -> (SocketAddr, JoinSet<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), serve(listener, script))
}

/// As [`backend`], on a given listener.
pub(super) fn serve<F>(
    listener: TcpListener,
    script: impl Fn(TcpStream) -> F + Send + Sync + 'static,
) -> JoinSet<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            connections.spawn(script(socket));
        }
    });
    tasks
}

/// A backend that responds to every request with `response` and closes.
pub(super) async fn responding(response: &'static str) -> (SocketAddr, JoinSet<()>) {
    backend(move |mut socket| async move {
        read_head(&mut socket).await;
        socket.write_all(response.as_bytes()).await.unwrap();
    })
    .await
}

/// A backend that responds with the request's head as the body.
pub(super) async fn mirror() -> (SocketAddr, JoinSet<()>) {
    backend(|mut socket| async move {
        let head = read_head(&mut socket).await;
        let response = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{head}",
            head.len()
        );
        socket.write_all(response.as_bytes()).await.unwrap();
    })
    .await
}

/// An address on which nothing listens.
pub(super) async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
}

/// Reads a head byte by byte, so that no byte after it is consumed. Empty if the connection ends first.
pub(super) async fn read_head(socket: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    let reading = async {
        while !head.ends_with(b"\r\n\r\n") {
            match socket.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
    };
    tokio::time::timeout(SOON, reading)
        .await
        .expect("a head in time");
    String::from_utf8(head).unwrap()
}

pub(super) async fn read_all(socket: &mut (impl AsyncRead + Unpin)) -> String {
    let mut data = Vec::new();
    // A reset after the last byte counts as the end.
    let _ = tokio::time::timeout(SOON, socket.read_to_end(&mut data))
        .await
        .expect("an end in time");
    String::from_utf8_lossy(&data).into_owned()
}

pub(super) async fn read_exact(socket: &mut (impl AsyncRead + Unpin), length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    tokio::time::timeout(SOON, socket.read_exact(&mut data))
        .await
        .expect("the bytes in time")
        .unwrap();
    data
}

/// The value of a header in a head, by its lower-case name.
pub(super) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}
