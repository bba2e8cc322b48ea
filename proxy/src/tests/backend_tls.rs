//! Backends with TLS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::scene::*;
use crate::balancer::pool::State;
use crate::config::Config;
use crate::net::resolver::Names;
use crate::tls::Connectors;
use crate::tls::testing::{Authority, Folder, folder};
use crate::upstream::Dialer;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// The certificate of a backend.
#[derive(Clone, Copy, Debug)]
enum CertificateKind {
    Valid,
    WrongName,
    Expired,
    UntrustedIssuer,
}

/// The files of an authority that the edge trusts, and of certificates that it has signed.
struct Files {
    folder: Folder,
    authority: Authority,
}

impl Files {
    fn new(name: &str) -> Self {
        let folder = folder(name);
        let authority = Authority::new();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        let edge = authority.issue(&["edge.example"]);
        edge.write(folder.path(), "edge");
        Self { folder, authority }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    /// The TLS configuration of a backend on 127.0.0.1. With `asks` it requires a client certificate of the authority.
    fn server(&self, kind: CertificateKind, asks: bool) -> Arc<ServerConfig> {
        let issued = match kind {
            CertificateKind::Valid => self.authority.issue(&["127.0.0.1", "app.example"]),
            CertificateKind::WrongName => self.authority.issue(&["127.0.0.2", "other.example"]),
            CertificateKind::Expired => self.authority.issue_expired(&["127.0.0.1", "app.example"]),
            CertificateKind::UntrustedIssuer => {
                Authority::new().issue(&["127.0.0.1", "app.example"])
            }
        };
        let folder: &Path = self.folder.path();
        let chain = vec![CertificateDer::from(issued.write(folder, "backend"))];
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem().as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if asks {
            let mut roots = rustls::RootCertStore::empty();
            let pem = self.authority.pem();
            roots
                .add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
                .unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.unwrap())
        } else {
            builder.with_no_client_auth()
        };
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }
}

/// A backend that echoes the heads of requests, and the bytes of tunnels after their end.
async fn backend_with(config: Arc<ServerConfig>) -> (SocketAddr, JoinSet<()>) {
    let acceptor = TlsAcceptor::from(config);
    backend(move |socket| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(socket).await {
                let _ = mirror_over(stream).await;
            }
        }
    })
    .await
}

async fn mirror_over(stream: TlsStream<TcpStream>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8(head).unwrap();
        if header(&head, "upgrade").is_none() {
            let length = head.len();
            let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{head}");
            stream.write_all(response.as_bytes()).await?;
            stream.flush().await?;
            continue;
        }
        let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nearly";
        stream.write_all(switch.as_bytes()).await?;
        stream.flush().await?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await?;
        stream.write_all(&all).await?;
        return stream.shutdown().await;
    }
}

/// An edge whose pool has these settings under `tls`.
async fn edge<F: Front>(backends: &[SocketAddr], tls: &str) -> SceneOf<F> {
    let backends: Vec<String> = backends.iter().map(ToString::to_string).collect();
    SceneOf::<F>::with_pool(&backends, &format!("    tls: {{ {tls} }}\n"), "").await
}

async fn requests_and_tunnels_pass<F: Front>(name: &str) {
    let files = Files::new(name);
    let (address, _backend) = backend_with(files.server(CertificateKind::Valid, false)).await;
    let scene = edge::<F>(&[address], &format!("ca: '{}'", files.path("ca.pem"))).await;
    for _ in 0..3 {
        let response = scene.request(GET).await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.contains("GET / HTTP/1.1\r\n"), "{response}");
    }
    let mut client = scene.send(UPGRADE).await;
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(read_exact(&mut client, 5).await, b"early");
    // More than any record or buffer, both ways, and the end is forwarded.
    let sent = b"0123456789abcdef".repeat(32 * 1024);
    let (mut reading, mut writing) = client.into_split();
    let mut received = Vec::new();
    let (sending, receiving) = tokio::join!(
        async {
            writing.write_all(&sent).await?;
            writing.shutdown().await
        },
        tokio::time::timeout(SOON, reading.read_to_end(&mut received)),
    );
    sending.unwrap();
    receiving.expect("an end in time").unwrap();
    assert!(
        received == sent,
        "{} of {} bytes",
        received.len(),
        sent.len()
    );
}

#[tokio::test]
async fn requests_and_tunnels_reach_a_backend_over_tls() {
    requests_and_tunnels_pass::<Own>("to-backend").await;
}

#[tokio::test]
async fn requests_and_tunnels_reach_a_backend_over_tls_from_a_pingora_service() {
    requests_and_tunnels_pass::<Mounted>("to-backend-mounted").await;
}

#[tokio::test]
async fn a_backend_that_is_not_trusted_gets_no_request_and_its_client_502() {
    let files = Files::new("distrust");
    let ca = format!("ca: '{}'", files.path("ca.pem"));
    for (kind, why) in [
        (
            CertificateKind::WrongName,
            "its certificate is not for \"127.0.0.1\"",
        ),
        (CertificateKind::Expired, "its certificate has expired"),
        (
            CertificateKind::UntrustedIssuer,
            "its certificate is not signed by a trusted authority",
        ),
    ] {
        let (address, _backend) = backend_with(files.server(kind, false)).await;
        let scene = edge::<Own>(&[address], &ca).await;
        for request in [GET, UPGRADE] {
            let response = scene.request(request).await;
            assert!(
                response.starts_with("HTTP/1.1 502 "),
                "{kind:?}: {response}"
            );
        }
        assert_eq!(dial(&ca, address).await, format!("TLS: {why}"));
        let probed = scene.components.proxy.metrics.encode();
        let failed = "causeway_proxy_connect_errors_total{backend=\"b0\",kind=\"tls\"} 2";
        assert!(probed.contains(failed), "{probed}");
        // Without verification any certificate is accepted.
        let trusting = edge::<Own>(&[address], "verify: false").await;
        assert!(trusting.request(GET).await.starts_with("HTTP/1.1 200 "));
        let mut client = trusting.send(UPGRADE).await;
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 101 "));
    }
}

/// The result of dialling `address` with these settings.
async fn dial(tls: &str, address: SocketAddr) -> String {
    let text = format!(
        "pools: [{{ name: p, tls: {{ {tls} }}, backends: [{{ id: a, address: '{address}' }}] }}]\nroutes: [{{ pool: p }}]\n"
    );
    let config = Config::parse("test.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"));
    let connector = Connectors::load(&config).unwrap().of("p").unwrap();
    let dialer = Dialer::new(config.timeouts, Arc::new(Names::new()), 0);
    let backend = &config.pools[0].backends[0].address;
    match dialer.dial(backend, Some(&connector)).await {
        Ok(_) => "connected".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn the_configured_server_name_is_verified_instead_of_the_address() {
    let files = Files::new("server-name");
    let (address, _backend) = backend_with(files.server(CertificateKind::Valid, false)).await;
    let with = |name: &str| format!("ca: '{}', server_name: {name}", files.path("ca.pem"));
    assert_eq!(dial(&with("app.example"), address).await, "connected");
    assert_eq!(
        dial(&with("other.example"), address).await,
        "TLS: its certificate is not for \"other.example\""
    );
    let right = edge::<Own>(&[address], &with("app.example")).await;
    assert!(right.request(GET).await.starts_with("HTTP/1.1 200 "));
    let wrong = edge::<Own>(&[address], &with("other.example")).await;
    assert!(wrong.request(GET).await.starts_with("HTTP/1.1 502 "));
}

#[tokio::test]
async fn a_backend_that_requires_a_client_certificate_gets_it() {
    let files = Files::new("identity");
    let (address, _backend) = backend_with(files.server(CertificateKind::Valid, true)).await;
    let ca = format!("ca: '{}'", files.path("ca.pem"));
    let anonymous = edge::<Own>(&[address], &ca).await;
    assert!(anonymous.request(GET).await.starts_with("HTTP/1.1 502 "));
    let (certificate, key) = (files.path("edge.crt"), files.path("edge.key"));
    let known = edge::<Own>(
        &[address],
        &format!("{ca}, certificate: '{certificate}', key: '{key}'"),
    )
    .await;
    assert!(known.request(GET).await.starts_with("HTTP/1.1 200 "));
    let mut client = known.send(UPGRADE).await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 101 "));
}

#[tokio::test]
async fn a_backend_without_tls_is_502_and_one_that_disconnects_503() {
    let (plain, _plain) = backend(|mut socket| async move {
        let _ = socket.read(&mut [0; 1024]).await;
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    })
    .await;
    let (silent, _silent) = backend(|socket| async move { drop(socket) }).await;
    let settings = "verify: false";
    for request in [GET, UPGRADE] {
        let scene = edge::<Own>(&[plain], settings).await;
        let response = scene.request(request).await;
        assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
        let scene = edge::<Own>(&[silent], settings).await;
        let response = scene.request(request).await;
        assert!(response.starts_with("HTTP/1.1 50"), "{response}");
    }
}

/// The state of the backend at `address` after health checks of `kind`, and its reason.
async fn health_of(kind: &str, tls: &str, address: SocketAddr) -> (State, String) {
    let settings =
        format!("    tls: {{ {tls} }}\n    health: {{ kind: {kind}, fall: 1, timeout: 20s }}\n");
    let scene = SceneOf::<Own>::with_pool(&[address.to_string()], &settings, "").await;
    let stop = CancellationToken::new();
    let pools = scene.components.reloader.pools();
    let names = Arc::new(Names::new());
    let mut checking = JoinSet::new();
    checking.spawn(crate::balancer::health::run(pools, names, stop.clone()));
    let pools = scene.components.proxy.pools();
    let backend = pools
        .iter()
        .flat_map(|pool| pool.backends())
        .next()
        .unwrap();
    let judging = async {
        let mut health_status = backend.health_status();
        while !matches!(backend.state(), State::Up | State::Down) {
            health_status.changed().await.unwrap();
        }
        let status = backend.status(Instant::now());
        (status.state, status.why)
    };
    let judged = tokio::time::timeout(SOON, judging).await.expect("in time");
    stop.cancel();
    checking.join_all().await;
    judged
}

#[tokio::test]
async fn health_checks_of_each_kind_verify_the_certificate() {
    let files = Files::new("health");
    let ca = format!("ca: '{}'", files.path("ca.pem"));
    for kind in ["node", "tcp", "websocket"] {
        let serve = |certificate| {
            let acceptor = TlsAcceptor::from(files.server(certificate, false));
            backend(move |socket| {
                let acceptor = acceptor.clone();
                async move {
                    let Ok(stream) = acceptor.accept(socket).await else {
                        return;
                    };
                    if kind == "websocket" {
                        if let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await {
                            while let Some(Ok(_)) = socket.next().await {}
                        }
                    } else {
                        let _ = mirror_over(stream).await;
                    }
                }
            })
        };
        let (address, _backend) = serve(CertificateKind::Valid).await;
        assert_eq!(health_of(kind, &ca, address).await.0, State::Up, "{kind}");
        let (address, _backend) = serve(CertificateKind::Expired).await;
        let (state, why) = health_of(kind, &ca, address).await;
        assert_eq!(state, State::Down, "{kind}");
        assert!(
            why.contains("TLS: its certificate has expired"),
            "{kind}: {why}"
        );
        let (state, why) = health_of(kind, "verify: false", address).await;
        assert_eq!(state, State::Up, "{kind}: {why}");
    }
}

#[tokio::test]
async fn a_reload_applies_new_authorities_or_nothing() {
    let files = Files::new("reload");
    let ca = files.path("ca.pem");
    let (address, _backend) = backend_with(files.server(CertificateKind::Valid, false)).await;
    let scene = edge::<Own>(&[address], &format!("ca: '{ca}'")).await;
    assert!(scene.request(GET).await.starts_with("HTTP/1.1 200 "));
    let text = format!(
        "pools: [{{ name: p, tls: {{ ca: '{ca}' }}, backends: [{{ id: b0, address: '{address}' }}] }}]\nroutes: [{{ pool: p }}]\n"
    );
    let config = Config::parse("test.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"));
    std::fs::write(&ca, "nothing").unwrap();
    let error = scene
        .components
        .reloader
        .apply(&config, Instant::now())
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("pool \"p\": {ca}: no certificate")),
        "{error}"
    );
    assert!(scene.request(GET).await.starts_with("HTTP/1.1 200 "));
    std::fs::write(&ca, Authority::new().pem()).unwrap();
    scene
        .components
        .reloader
        .apply(&config, Instant::now())
        .unwrap();
    assert!(
        scene.request(GET).await.starts_with("HTTP/1.1 502 "),
        "a connection that was kept"
    );
}
