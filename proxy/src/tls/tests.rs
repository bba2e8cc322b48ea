//! Handshakes and data with rustls' own client, over real sockets.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client;

use super::testing::{Authority, Folder, folder};
use super::*;
use crate::config::CertificateSource;
use crate::tunnel::Socket;

const VERSIONS: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

fn settings(folder: &Path) -> TlsConfig {
    TlsConfig {
        certificates: CertificateSource::Folder(folder.to_owned()),
        min_version: TlsVersion::V1_2,
        http2: true,
        handshake: Duration::from_secs(60),
        ticket_keys: None,
        client_ca: None,
    }
}

/// An authority, and a folder with a certificate of it for `a.example`.
struct Scene {
    authority: Authority,
    folder: Folder,
}

impl Scene {
    fn new(name: &str) -> Self {
        let (authority, folder) = (Authority::new(), folder(name));
        authority.issue(&["a.example"]).write(folder.path(), "a");
        Self { authority, folder }
    }

    fn terminator(&self, change: impl FnOnce(&mut TlsConfig)) -> Terminator {
        let mut settings = settings(self.folder.path());
        change(&mut settings);
        Terminator::new("test".to_owned(), &settings).unwrap()
    }

    fn client(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.authority.pem().as_bytes()).unwrap())
            .unwrap();
        ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }
}

type Client = client::TlsStream<TcpStream>;

/// Both ends of a handshake.
async fn handshake(
    terminator: &Terminator,
    config: &Arc<ClientConfig>,
) -> (io::Result<Client>, Result<ServerStream, HandshakeError>) {
    let (client, server) = sockets().await;
    let name = ServerName::try_from("a.example").unwrap();
    let connector = TlsConnector::from(Arc::clone(config));
    tokio::join!(
        connector.connect(name, client),
        terminator.accept(server, Vec::new())
    )
}

async fn sockets() -> (TcpStream, Accepted) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (server, peer) = server.unwrap();
    (client.unwrap(), Accepted::new(server, peer, address))
}

/// Bytes in which every position differs from its neighbours.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8)
        .collect()
}

#[tokio::test]
async fn data_of_every_size_passes_both_ways_and_leaves_no_buffer() {
    let scene = Scene::new("bytes");
    let terminator = scene.terminator(|_| {});
    for version in VERSIONS {
        let (client, server) = handshake(&terminator, &Arc::new(scene.client(&[version]))).await;
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        for length in [1, 2, 16_383, 16_384, 16_385, 300_000] {
            let sent = pattern(length);
            let mut up = vec![0; length];
            let (wrote, read) = tokio::join!(
                async {
                    client.write_all(&sent).await?;
                    client.flush().await
                },
                server.read_exact(&mut up),
            );
            wrote.unwrap();
            read.unwrap();
            let mut down = vec![0; length];
            let (wrote, read) = tokio::join!(
                async {
                    server.write_all(&up).await?;
                    server.flush().await
                },
                client.read_exact(&mut down),
            );
            wrote.unwrap();
            read.unwrap();
            assert!(down == sent, "{length} bytes");
            assert_eq!(server.buffered(), 0, "after {length} bytes");
        }
    }
}

#[tokio::test]
async fn for_a_client_that_reads_nothing_at_most_one_record_is_buffered() {
    let scene = Scene::new("stalled");
    let (client, server) = handshake(
        &scene.terminator(|_| {}),
        &Arc::new(scene.client(&VERSIONS)),
    )
    .await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    let all = pattern(32 << 20);
    let written = std::sync::atomic::AtomicUsize::new(0);
    let writing = async {
        for piece in all.chunks(16_384) {
            server.write_all(piece).await.unwrap();
            written.fetch_add(piece.len(), std::sync::atomic::Ordering::Relaxed);
        }
        server.shutdown().await.unwrap();
        server
    };
    tokio::pin!(writing);
    // The kernel buffers some; then the writer has to wait.
    while futures_util::poll!(&mut writing).is_pending() {
        let before = written.load(std::sync::atomic::Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(
            futures_util::poll!(&mut writing).is_pending(),
            "32 MiB do not fit into a socket"
        );
        if written.load(std::sync::atomic::Ordering::Relaxed) == before {
            break;
        }
    }
    let mut received = Vec::new();
    let (server, read) = tokio::join!(writing, client.read_to_end(&mut received));
    read.unwrap();
    assert!(received == all);
    assert_eq!(server.buffered(), 0);
}

#[tokio::test]
async fn one_direction_can_be_closed_while_the_other_stays_open() {
    let scene = Scene::new("half");
    let (client, server) = handshake(
        &scene.terminator(|_| {}),
        &Arc::new(scene.client(&VERSIONS)),
    )
    .await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    client.write_all(b"last words").await.unwrap();
    client.shutdown().await.unwrap();
    let mut received = Vec::new();
    server.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"last words");
    server.write_all(b"reply").await.unwrap();
    server.shutdown().await.unwrap();
    received.clear();
    client.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"reply");
}

#[tokio::test]
async fn traffic_keys_can_be_updated() {
    let scene = Scene::new("key-update");
    let (client, server) = handshake(
        &scene.terminator(|_| {}),
        &Arc::new(scene.client(&VERSIONS)),
    )
    .await;
    let (mut client, mut server) = (client.unwrap(), server.unwrap());
    for _ in 0..3 {
        client.get_mut().1.refresh_traffic_keys().unwrap();
        client.write_all(b"ping").await.unwrap();
        client.flush().await.unwrap();
        let mut word = [0; 4];
        server.read_exact(&mut word).await.unwrap();
        server.write_all(&word).await.unwrap();
        server.flush().await.unwrap();
        client.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"ping");
    }
}

/// Creates records of a TLS 1.3 client with AES-256-GCM, with any content (RFC 8446, 5.2).
struct Forger {
    socket: TcpStream,
    key: ring::aead::LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Forger {
    async fn new(terminator: &Terminator, scene: &Scene) -> (Self, ServerStream) {
        let mut config = scene.client(&[&rustls::version::TLS13]);
        config.enable_secret_extraction = true;
        let (client, server) = handshake(terminator, &Arc::new(config)).await;
        let (socket, tls) = client.unwrap().into_inner();
        let (sequence, secrets) = tls.dangerous_extract_secrets().unwrap().tx;
        let rustls::ConnectionTrafficSecrets::Aes256Gcm { key, iv } = secrets else {
            panic!("another cipher");
        };
        let key = ring::aead::UnboundKey::new(&ring::aead::AES_256_GCM, key.as_ref()).unwrap();
        let forger = Self {
            socket,
            key: ring::aead::LessSafeKey::new(key),
            iv: iv.as_ref().try_into().unwrap(),
            sequence,
        };
        (forger, server.unwrap())
    }

    async fn send(&mut self, content_type: u8, content: &[u8]) -> io::Result<()> {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence += 1;
        let mut sealed = [content, &[content_type]].concat();
        let [high, low] = u16::try_from(sealed.len() + 16).unwrap().to_be_bytes();
        let head = [23, 3, 3, high, low];
        let nonce = ring::aead::Nonce::assume_unique_for_key(nonce);
        self.key
            .seal_in_place_append_tag(nonce, ring::aead::Aad::from(head), &mut sealed)
            .unwrap();
        self.socket.write_all(&[&head[..], &sealed].concat()).await
    }
}

const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

#[tokio::test]
async fn the_server_can_write_while_half_a_handshake_message_is_buffered() {
    let scene = Scene::new("halves");
    let terminator = scene.terminator(|_| {});
    let (mut forger, mut server) = Forger::new(&terminator, &scene).await;
    // A key update, which requires a reply; the server writes between its halves.
    forger.send(HANDSHAKE, &[24, 0]).await.unwrap();
    assert!(futures_util::poll!(std::pin::pin!(server.read_u8())).is_pending());
    while server.buffered() == 0 {
        tokio::task::yield_now().await;
        assert!(futures_util::poll!(std::pin::pin!(server.read_u8())).is_pending());
    }
    server.write_all(b"between").await.unwrap();
    forger.send(HANDSHAKE, &[0, 1, 0]).await.unwrap();
    forger.send(HANDSHAKE, &[24, 0]).await.unwrap();
    forger.send(APPLICATION_DATA, b"x").await.unwrap();
    // After the update the key has changed: a record with the old key is an error, and nothing panics.
    let error = server.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    let error = server.write_all(b"after").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn an_endless_handshake_message_is_rejected() {
    let scene = Scene::new("endless");
    let terminator = scene.terminator(|_| {});
    let (mut forger, mut server) = Forger::new(&terminator, &scene).await;
    let endless = async {
        // A message of 65,535 bytes, piece by piece.
        let mut sent = forger.send(HANDSHAKE, &[24, 0, 0xff, 0xff]).await;
        while sent.is_ok() {
            sent = forger.send(HANDSHAKE, &[0; 1000]).await;
        }
    };
    let reading = async {
        let error = server.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(server);
    };
    tokio::join!(endless, reading);
}

#[tokio::test]
async fn a_tunnel_goes_on_without_rustls() {
    let scene = Scene::new("tunnel");
    let terminator = scene.terminator(|_| {});
    for version in VERSIONS {
        let (client, server) = handshake(&terminator, &Arc::new(scene.client(&[version]))).await;
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        // The response to the upgrade; the client's first bytes may be there before it.
        client.write_all(b"early").await.unwrap();
        client.flush().await.unwrap();
        server.write_all(b"101").await.unwrap();
        server.flush().await.unwrap();
        let mut early = Vec::new();
        let mut socket = Socket::from_pingora(Box::new(server), &mut early);
        assert!(matches!(socket, Socket::Tls(_)), "{version:?}");
        assert_eq!(early, b"");
        let mut word = [0; 5];
        socket.read_exact(&mut word).await.unwrap();
        socket.write_all(&word).await.unwrap();
        socket.flush().await.unwrap();
        let mut received = [0; 8];
        client.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"101early");
    }
    // Tunnels without TLS are not larger for it.
    assert!(size_of::<Socket>() <= 48, "{}", size_of::<Socket>());
}

#[tokio::test]
async fn only_connections_that_can_become_tunnels_keep_their_secrets() {
    let scene = Scene::new("secrets");
    let terminator = scene.terminator(|_| {});
    for (version, protocol, keeps) in [
        (VERSIONS[0], "http/1.1", true),
        (VERSIONS[0], "h2", false),
        (VERSIONS[1], "http/1.1", false),
    ] {
        let mut config = scene.client(&[version]);
        config.alpn_protocols = vec![protocol.into()];
        let (_client, server) = handshake(&terminator, &Arc::new(config)).await;
        assert_eq!(
            server.unwrap().has_secrets(),
            keeps,
            "{version:?} {protocol}"
        );
    }
}

#[tokio::test]
async fn a_session_resumes_on_another_edge_with_the_same_keys() {
    let scene = Scene::new("resume");
    let keys = scene.folder.path().join("tickets");
    std::fs::write(&keys, format!("{}\n", "5a".repeat(48))).unwrap();
    let edge = || scene.terminator(|settings| settings.ticket_keys = Some(keys.clone()));
    for version in VERSIONS {
        let mut config = scene.client(&[version]);
        config.resumption = Resumption::in_memory_sessions(8);
        let config = Arc::new(config);
        for (edge, expected) in [
            (edge(), HandshakeKind::Full),
            (edge(), HandshakeKind::Resumed),
        ] {
            let (client, server) = handshake(&edge, &config).await;
            let (mut client, mut server) = (client.unwrap(), server.unwrap());
            // A TLS 1.3 ticket follows the handshake: the client processes it when it reads.
            server.write_all(b"!").await.unwrap();
            server.flush().await.unwrap();
            client.read_u8().await.unwrap();
            assert_eq!(
                client.get_ref().1.handshake_kind(),
                Some(expected),
                "{version:?}"
            );
            assert_eq!(server.is_resumed(), expected == HandshakeKind::Resumed);
        }
        let alone = scene.terminator(|_| {});
        let (client, _server) = handshake(&alone, &config).await;
        assert_eq!(
            client.unwrap().get_ref().1.handshake_kind(),
            Some(HandshakeKind::Full)
        );
    }
}

#[tokio::test]
async fn a_version_below_the_minimum_is_rejected_with_an_alert() {
    let scene = Scene::new("versions");
    let strict = scene.terminator(|settings| settings.min_version = TlsVersion::V1_3);
    let old = Arc::new(scene.client(&[&rustls::version::TLS12]));
    let (client, server) = handshake(&strict, &old).await;
    assert!(server.is_err());
    let error = client.unwrap_err().to_string();
    assert!(error.contains("ProtocolVersion"), "{error}");
}

#[tokio::test]
async fn bytes_that_are_not_tls_get_an_alert_and_a_silent_client_times_out() {
    let scene = Scene::new("garbage");
    let (mut client, server) = sockets().await;
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let failed = scene.terminator(|_| {}).accept(server, Vec::new()).await;
    assert!(matches!(failed, Err(HandshakeError::Failed(_))));
    let mut alert = Vec::new();
    client.read_to_end(&mut alert).await.unwrap();
    assert_eq!(alert.first(), Some(&21), "an alert record");
    let (_silent, server) = sockets().await;
    let brief = scene.terminator(|settings| settings.handshake = Duration::from_millis(100));
    assert!(matches!(
        brief.accept(server, Vec::new()).await,
        Err(HandshakeError::Timeout(_))
    ));
}

#[tokio::test]
async fn clients_without_a_certificate_of_the_authority_are_rejected() {
    let scene = Scene::new("mutual");
    let client_authority = Authority::new();
    let ca = scene.folder.path().join("clients");
    std::fs::write(&ca, client_authority.pem()).unwrap();
    let strict = scene.terminator(|settings| settings.client_ca = Some(ca.clone()));
    let with = |authority: &Authority| {
        let issued = authority.issue(&["someone"]);
        let (certificate, key) = (issued.der(), issued.key_pem());
        let mut config = scene.client(&VERSIONS);
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let provider = rustls::crypto::ring::default_provider();
        let key = provider.key_provider.load_private_key(key).unwrap();
        let pair = rustls::sign::CertifiedKey::new(vec![certificate.into()], key);
        config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(pair));
        Arc::new(config)
    };
    let (_, server) = handshake(&strict, &with(&client_authority)).await;
    server.unwrap();
    let (_, server) = handshake(&strict, &with(&scene.authority)).await;
    assert!(server.is_err(), "a certificate of another authority");
    let (_, server) = handshake(&strict, &Arc::new(scene.client(&VERSIONS))).await;
    assert!(server.is_err(), "no certificate");
}

#[tokio::test]
async fn changed_files_are_reloaded_and_unusable_ones_leave_the_previous_certificate() {
    let scene = Scene::new("exchange");
    let terminator = Arc::new(scene.terminator(|_| {}));
    let metrics = Metrics::new();
    let mut watched = WatchedListener::new(Arc::clone(&terminator));
    let config = Arc::new(scene.client(&VERSIONS));
    let key = scene.folder.path().join("a.key");
    std::fs::write(&key, "broken").unwrap();
    watched.check(&metrics, SystemTime::now());
    handshake(&terminator, &config).await.0.unwrap();
    let renewed = scene
        .authority
        .issue(&["a.example"])
        .write(scene.folder.path(), "a");
    watched.check(&metrics, SystemTime::now());
    let (client, _server) = handshake(&terminator, &config).await;
    let client = client.unwrap();
    let shown = client.get_ref().1.peer_certificates().unwrap();
    assert_eq!(shown[0].as_ref(), renewed);
    let page = metrics.encode();
    for line in [
        "causeway_proxy_certificate_exchanges_total{result=\"refused\"} 1",
        "causeway_proxy_certificate_exchanges_total{result=\"taken\"} 1",
        "causeway_proxy_certificate_ends_timestamp_seconds{listener=\"test\"} ",
        "causeway_proxy_certificates{listener=\"test\",state=\"good\"} 1",
        "causeway_proxy_certificates{listener=\"test\",state=\"unusable\"} 0",
    ] {
        assert!(page.contains(line), "{line}\n{page}");
    }
}

#[tokio::test]
async fn files_that_change_before_they_are_watched_are_reloaded() {
    let scene = Scene::new("before");
    let terminator = Arc::new(scene.terminator(|_| {}));
    let renewed = scene
        .authority
        .issue(&["a.example"])
        .write(scene.folder.path(), "a");
    let mut watched = WatchedListener::new(Arc::clone(&terminator));
    watched.check(&Metrics::new(), SystemTime::now());
    let config = Arc::new(scene.client(&VERSIONS));
    let (client, _server) = handshake(&terminator, &config).await;
    let client = client.unwrap();
    let shown = client.get_ref().1.peer_certificates().unwrap();
    assert_eq!(shown[0].as_ref(), renewed);
}
