//! Connections without rustls, with rustls as the peer.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use proptest::prelude::*;
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::{
    AlertDescription, CipherSuite, ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite,
};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream as TokioStream};

use super::testing::{Peer, SUITES, ends, read_in_pieces};
use super::*;
use crate::tls::stream::TlsStream;
use crate::tls::testing::Authority;

const NAME: &str = "a.example";

/// Sizes around those of records and of one write.
const SIZES: [usize; 9] = [1, 2, 300, 16_383, 16_384, 16_385, 65_536, 65_537, 300_000];

const ROLES: [Role; 2] = [Role::Server, Role::Client];

const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
const KEY_UPDATE_REQUESTED: [u8; 5] = [24, 0, 0, 1, 1];

type Stream = RecordStream<Trickle>;
type Other = TokioStream<DuplexStream>;

/// A connection that still has rustls, of either side.
enum Kept {
    Server(Box<TlsStream<UnbufferedServerConnection, DuplexStream>>),
    Client(Box<TlsStream<UnbufferedClientConnection, DuplexStream>>),
}

impl Kept {
    fn into_records(self) -> Result<Stream, Self> {
        let records = match self {
            Self::Server(tls) => tls.into_records().map_err(Self::Server),
            Self::Client(tls) => tls.into_records().map_err(Self::Client),
        };
        records.map(|records| records.map_transport(|pipe| Trickle::new(pipe, usize::MAX)))
    }

    fn io(&mut self) -> &mut dyn Both {
        match self {
            Self::Server(tls) => tls,
            Self::Client(tls) => tls,
        }
    }
}

/// A transport that passes at most so many bytes at once. If that is one byte, it is not ready every other time.
struct Trickle {
    pipe: DuplexStream,
    bytes_max: usize,
    is_ready: bool,
}

impl Trickle {
    fn new(pipe: DuplexStream, bytes_max: usize) -> Self {
        Self {
            pipe,
            bytes_max,
            is_ready: false,
        }
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.is_ready = !self.is_ready || self.bytes_max > 1;
        if self.is_ready {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncRead for Trickle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_ready(cx));
        let room = buffer.remaining().min(self.bytes_max);
        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(room));
        ready!(Pin::new(&mut self.pipe).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Trickle {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_ready(cx));
        let data = &data[..data.len().min(self.bytes_max)];
        Pin::new(&mut self.pipe).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

trait Both: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

fn suites() -> Vec<SupportedCipherSuite> {
    let all = rustls::crypto::ring::default_provider().cipher_suites;
    let ours = |suite: &SupportedCipherSuite| SUITES.contains(&suite.suite());
    all.into_iter().filter(ours).collect()
}

fn suite(name: CipherSuite) -> SupportedCipherSuite {
    let found = suites().into_iter().find(|suite| suite.suite() == name);
    found.unwrap()
}

/// The settings of both sides for one suite.
fn configs(suite: SupportedCipherSuite) -> (ServerConfig, ClientConfig) {
    let provider = Arc::new(CryptoProvider {
        cipher_suites: vec![suite],
        ..rustls::crypto::ring::default_provider()
    });
    let authority = Authority::new();
    let issued = authority.issue(&[NAME]);
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem().as_bytes()).unwrap();
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[suite.version()])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.der().into()], key)
        .unwrap();
    server.ticketer = rustls::crypto::ring::Ticketer::new().unwrap();
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
    roots.add(root).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[suite.version()])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    server.enable_secret_extraction = true;
    client.enable_secret_extraction = true;
    server.key_log = Arc::new(SecretLog);
    client.key_log = Arc::new(SecretLog);
    (server, client)
}

/// Both ends after the handshake, over a pipe that holds `pipe` bytes; the first still has rustls.
async fn shake_hands(suite: SupportedCipherSuite, role: Role, pipe: usize) -> (Kept, Other) {
    let (server, client) = configs(suite);
    let (server, client) = (Arc::new(server), Arc::new(client));
    let (near, far) = duplex(pipe);
    let name = ServerName::try_from(NAME).unwrap();
    match role {
        Role::Server => {
            let tls = Box::new(UnbufferedServerConnection::new(server).unwrap());
            let connector = TlsConnector::from(client);
            let (ours, theirs) = tokio::join!(
                TlsStream::handshake(tls, near, Vec::new()),
                connector.connect(name, far)
            );
            (
                Kept::Server(Box::new(ours.unwrap())),
                TokioStream::Client(theirs.unwrap()),
            )
        }
        Role::Client => {
            let tls = Box::new(UnbufferedClientConnection::new(client, name).unwrap());
            let acceptor = TlsAcceptor::from(server);
            let (ours, theirs) = tokio::join!(
                TlsStream::handshake(tls, near, Vec::new()),
                acceptor.accept(far)
            );
            (
                Kept::Client(Box::new(ours.unwrap())),
                TokioStream::Server(theirs.unwrap()),
            )
        }
    }
}

/// Sends some bytes both ways, as the head of an upgrade and its response.
async fn exchange_heads(kept: &mut Kept, other: &mut Other) {
    exchange(kept.io(), other, b"head").await;
}

async fn exchange(ours: &mut (impl Both + ?Sized), other: &mut Other, word: &[u8]) {
    for _ in 0..2 {
        let mut read = vec![0; word.len()];
        let (wrote, got) = tokio::join!(
            async {
                ours.write_all(word).await?;
                ours.flush().await
            },
            other.read_exact(&mut read)
        );
        wrote.unwrap();
        got.unwrap();
        assert_eq!(read, word);
        let (wrote, got) = tokio::join!(
            async {
                other.write_all(word).await?;
                other.flush().await
            },
            ours.read_exact(&mut read)
        );
        wrote.unwrap();
        got.unwrap();
        assert_eq!(read, word);
    }
}

/// Both ends, the first without rustls.
async fn connect(suite: SupportedCipherSuite, role: Role, pipe: usize) -> (Stream, Other) {
    let (mut kept, mut other) = shake_hands(suite, role, pipe).await;
    exchange_heads(&mut kept, &mut other).await;
    let Ok(stream) = kept.into_records() else {
        panic!("rustls is between two messages");
    };
    (stream, other)
}

/// The same, and the keys of the other end, without rustls too.
async fn connect_raw(name: CipherSuite, role: Role) -> (Stream, DuplexStream, Peer) {
    let (stream, other) = connect(suite(name), role, 1 << 20).await;
    let (far, secrets) = match other {
        TokioStream::Client(client) => {
            let (far, tls) = client.into_inner();
            (far, tls.dangerous_extract_secrets().unwrap())
        }
        TokioStream::Server(server) => {
            let (far, tls) = server.into_inner();
            (far, tls.dangerous_extract_secrets().unwrap())
        }
    };
    (stream, far, Peer::extracted(name, &secrets))
}

/// Bytes in which every position differs from its neighbours.
fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8)
        .collect()
}

async fn echo(stream: &mut Stream, other: &mut Other, length: usize) {
    let sent = pattern(length);
    let (mut up, mut down) = (vec![0; length], vec![0; length]);
    let (wrote, read) = tokio::join!(
        async {
            other.write_all(&sent).await?;
            other.flush().await
        },
        stream.read_exact(&mut up)
    );
    wrote.unwrap();
    read.unwrap();
    let (wrote, read) = tokio::join!(
        async {
            stream.write_all(&up).await?;
            stream.flush().await
        },
        other.read_exact(&mut down)
    );
    wrote.unwrap();
    read.unwrap();
    assert!(down == sent, "{length} bytes");
    assert_eq!(stream.buffered(), 0, "after {length} bytes");
}

async fn pending_read(stream: &mut Stream) {
    let is_pending = poll_fn(|cx| {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        Poll::Ready(
            Pin::new(&mut *stream)
                .poll_read(cx, &mut buffer)
                .is_pending(),
        )
    });
    assert!(is_pending.await);
}

#[test]
fn every_suite_of_the_edge_is_known_with_its_limit() {
    for suite in rustls::crypto::ring::default_provider().cipher_suites {
        let cipher = Cipher::of(suite.suite()).unwrap();
        let limit = match suite {
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
            SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
        };
        assert_eq!(
            cipher.records_max,
            limit.min(u64::MAX - 0xffff),
            "{suite:?}"
        );
        if let SupportedCipherSuite::Tls13(suite) = suite {
            let hash = suite.common.hash_provider.output_len();
            assert_eq!(ring::hkdf::KeyType::len(cipher.hash), hash);
        }
    }
    assert!(Cipher::of(CipherSuite::TLS13_AES_128_CCM_SHA256).is_none());
}

#[tokio::test]
async fn data_of_every_size_passes_both_ways_with_every_suite_and_leaves_no_buffer() {
    for suite in suites() {
        for role in ROLES {
            let (mut stream, mut other) = connect(suite, role, 64 * 1024).await;
            let is_tls13 = suite.tls13().is_some();
            assert_eq!(stream.records().has_secrets(), is_tls13, "{suite:?}");
            for length in SIZES {
                echo(&mut stream, &mut other, length).await;
            }
        }
    }
}

#[tokio::test]
async fn records_can_be_read_and_written_byte_by_byte() {
    for suite in suites() {
        for role in ROLES {
            let (stream, mut other) = connect(suite, role, 64 * 1024).await;
            let mut stream = stream.map_transport(|it| Trickle::new(it.pipe, 1));
            for length in [1, 500, 17_000] {
                echo(&mut stream, &mut other, length).await;
            }
        }
    }
}

#[tokio::test]
async fn a_reader_with_little_room_gets_every_byte() {
    let (mut stream, mut other) = connect(suites()[0], Role::Server, 64 * 1024).await;
    let sent = pattern(20_000);
    other.write_all(&sent).await.unwrap();
    other.flush().await.unwrap();
    for (at, byte) in sent.iter().enumerate() {
        assert_eq!(stream.read_u8().await.unwrap(), *byte, "byte {at}");
    }
    assert_eq!(stream.buffered(), 0);
}

#[tokio::test]
async fn for_a_peer_that_reads_nothing_one_write_is_buffered() {
    let (mut stream, mut other) = connect(suites()[0], Role::Server, 1024).await;
    let all = pattern(1 << 20);
    let mut written = 0;
    poll_fn(|cx| {
        while let Poll::Ready(count) =
            AsyncWrite::poll_write(Pin::new(&mut stream), cx, &all[written..])
        {
            written += count.unwrap();
        }
        Poll::Ready(())
    })
    .await;
    assert!(written <= 64 * 1024, "{written} bytes were accepted");
    assert!(stream.buffered() < 70_000);
    let mut received = vec![0; all.len()];
    let (wrote, read) = tokio::join!(
        async {
            stream.write_all(&all[written..]).await?;
            stream.flush().await
        },
        other.read_exact(&mut received)
    );
    wrote.unwrap();
    read.unwrap();
    assert!(received == all);
    assert_eq!(stream.buffered(), 0);
}

#[tokio::test]
async fn either_direction_can_be_closed_while_the_other_stays_open() {
    for suite in suites() {
        for role in ROLES {
            for peer_first in [true, false] {
                let (mut stream, mut other) = connect(suite, role, 64 * 1024).await;
                let (mut up, mut down) = (Vec::new(), Vec::new());
                if peer_first {
                    other.write_all(b"last words").await.unwrap();
                    other.shutdown().await.unwrap();
                    stream.read_to_end(&mut up).await.unwrap();
                    stream.write_all(b"reply").await.unwrap();
                    stream.shutdown().await.unwrap();
                    other.read_to_end(&mut down).await.unwrap();
                } else {
                    stream.write_all(b"reply").await.unwrap();
                    stream.shutdown().await.unwrap();
                    // An end without close_notify would be an error here.
                    other.read_to_end(&mut down).await.unwrap();
                    other.write_all(b"last words").await.unwrap();
                    other.shutdown().await.unwrap();
                    stream.read_to_end(&mut up).await.unwrap();
                }
                assert_eq!((&up[..], &down[..]), (&b"last words"[..], &b"reply"[..]));
                let error = stream.write_all(b"more").await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            }
        }
    }
}

#[tokio::test]
async fn an_end_without_close_notify_is_an_end() {
    let name = CipherSuite::TLS13_AES_128_GCM_SHA256;
    for cut in [0, 3, 20] {
        let (mut stream, mut far, mut peer) = connect_raw(name, Role::Server).await;
        let record = peer.seal(APPLICATION_DATA, b"never complete");
        far.write_all(&record[..cut]).await.unwrap();
        drop(far);
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"");
    }
}

#[tokio::test]
async fn the_peer_can_update_its_keys_and_ask_for_ours() {
    for suite in suites().into_iter().filter(|suite| suite.tls13().is_some()) {
        for role in ROLES {
            for bytes_max in [1, usize::MAX] {
                let (stream, mut other) = connect(suite, role, 64 * 1024).await;
                let mut stream = stream.map_transport(|it| Trickle::new(it.pipe, bytes_max));
                for updates in [1, 1, 3] {
                    for _ in 0..updates {
                        refresh(&mut other);
                    }
                    exchange(&mut stream, &mut other, b"after an update").await;
                }
                assert_eq!(stream.buffered(), 0);
            }
        }
    }
}

fn refresh(other: &mut Other) {
    match other {
        TokioStream::Client(client) => client.get_mut().1.refresh_traffic_keys().unwrap(),
        TokioStream::Server(server) => server.get_mut().1.refresh_traffic_keys().unwrap(),
    }
}

#[tokio::test]
async fn keys_that_were_updated_before_are_followed_by_the_next_ones() {
    for suite in suites().into_iter().filter(|suite| suite.tls13().is_some()) {
        let (mut kept, mut other) = shake_hands(suite, Role::Server, 64 * 1024).await;
        refresh(&mut other);
        exchange_heads(&mut kept, &mut other).await;
        let mut stream = kept.into_records().ok().unwrap();
        // They are not those of the captured secrets.
        assert!(!stream.records().has_secrets());
        exchange(&mut stream, &mut other, b"before").await;
        refresh(&mut other);
        exchange(&mut stream, &mut other, b"after").await;
    }
}

/// However often the peer asks before something is written, it gets one key update, and only before the next data.
#[test]
fn requests_for_a_key_update_are_answered_once_before_the_next_data() {
    for suite in &SUITES[..3] {
        let (mut records, mut peer) = ends(*suite, Role::Server);
        let mut wire = peer.seal(HANDSHAKE, &KEY_UPDATE_REQUESTED);
        wire.extend(peer.seal(HANDSHAKE, &KEY_UPDATE_REQUESTED));
        wire.extend(peer.seal(HANDSHAKE, &KEY_UPDATE));
        wire.extend(peer.seal(APPLICATION_DATA, b"data"));
        let read = read_in_pieces(&mut records, &wire, 7);
        assert_eq!((&read.data[..], read.result), (&b"data"[..], Ok(false)));
        assert_eq!(
            read.sent, b"",
            "nothing is sent until there is something to send"
        );
        let mut out = Vec::new();
        records.write(b"reply", &mut out).unwrap();
        let (update, data) = out.split_at(HEADER + 5 + 1 + 16);
        assert_eq!(peer.open(update), [(HANDSHAKE, KEY_UPDATE.to_vec())]);
        peer.follow_update(1);
        assert_eq!(peer.open(data), [(APPLICATION_DATA, b"reply".to_vec())]);
        out.clear();
        records.write(b"more", &mut out).unwrap();
        assert_eq!(peer.open(&out), [(APPLICATION_DATA, b"more".to_vec())]);
    }
}

#[tokio::test]
async fn keys_are_updated_before_their_limit_and_used_up_keys_of_tls_1_2_end_the_connection() {
    for suite in suites() {
        for role in ROLES {
            let (mut stream, mut other) = connect(suite, role, 64 * 1024).await;
            let records = stream.records();
            records.records_max = records.sequence() + 5;
            let mut read = Vec::new();
            if suite.tls13().is_some() {
                // In one write and in many.
                stream.records().records_max = 20;
                let sent = pattern(40 * 16_384);
                let mut received = vec![0; sent.len()];
                let (wrote, got) = tokio::join!(
                    async {
                        stream.write_all(&sent).await?;
                        stream.flush().await
                    },
                    other.read_exact(&mut received)
                );
                wrote.unwrap();
                got.unwrap();
                assert!(received == sent);
                for _ in 0..50 {
                    exchange(&mut stream, &mut other, b"small").await;
                    assert!(stream.records().sequence() < 20);
                }
                continue;
            }
            // Four records, and the fifth is the close_notify.
            for _ in 0..4 {
                stream.write_all(b"data").await.unwrap();
            }
            let error = stream.write_all(b"data").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe, "{error}");
            assert!(stream.write_all(b"data").await.is_err());
            let _ = stream.shutdown().await;
            other.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, b"data".repeat(4), "{suite:?}");
        }
    }
}

#[test]
fn no_sequence_number_from_the_limit_on_is_used() {
    for suite in SUITES {
        let (mut records, _) = ends(suite, Role::Server);
        let max = records.records_max;
        records.set_sequence(max);
        let mut out = Vec::new();
        records.close_notify(&mut out);
        assert_eq!(out, b"");
        let (mut records, _) = ends(suite, Role::Server);
        records.set_sequence(max - 2);
        records.write(b"last but one", &mut out).unwrap();
        let before = out.len();
        let is_tls13 = Cipher::of(suite).unwrap().version == cipher::Version::Tls13;
        assert_eq!(records.write(b"more", &mut out).is_ok(), is_tls13);
        // A key update or a close_notify took the last one.
        let last = if is_tls13 { 1 } else { max };
        assert_eq!(records.sequence(), last, "{suite:?}");
        assert!(before < out.len());
    }
}

/// What the peer may not send, and the alert for it.
#[test]
fn violations_get_their_alert() {
    use AlertDescription as A;
    let unexpected = A::UnexpectedMessage;
    let sealed: [(u8, Vec<u8>, [Option<A>; 4]); 16] = [
        // The results are for TLS 1.3 and 1.2 as a server, and for both as a client.
        (APPLICATION_DATA, b"data".to_vec(), [None; 4]),
        (APPLICATION_DATA, vec![7; 16_384], [None; 4]),
        (
            APPLICATION_DATA,
            vec![7; 16_385],
            [Some(A::RecordOverflow); 4],
        ),
        (20, vec![1], [Some(unexpected); 4]),
        (24, b"heartbeat".to_vec(), [Some(unexpected); 4]),
        (ALERT, vec![], [Some(A::DecodeError); 4]),
        (ALERT, vec![1], [Some(A::DecodeError); 4]),
        (ALERT, vec![1, 0, 1], [Some(A::DecodeError); 4]),
        (ALERT, vec![3, 90], [Some(A::IllegalParameter); 4]),
        (HANDSHAKE, vec![], [Some(unexpected); 4]),
        // Finished, a certificate request, a key update of two bytes, one with another value, and one with something behind it.
        (HANDSHAKE, vec![20, 0, 0, 0], [Some(unexpected); 4]),
        (HANDSHAKE, vec![13, 0, 0, 0], [Some(unexpected); 4]),
        (
            HANDSHAKE,
            vec![24, 0, 0, 2, 0, 0],
            [
                Some(A::DecodeError),
                Some(unexpected),
                Some(A::DecodeError),
                Some(unexpected),
            ],
        ),
        (
            HANDSHAKE,
            vec![24, 0, 0, 1, 2],
            [
                Some(A::IllegalParameter),
                Some(unexpected),
                Some(A::IllegalParameter),
                Some(unexpected),
            ],
        ),
        (
            HANDSHAKE,
            [KEY_UPDATE, KEY_UPDATE].concat(),
            [Some(unexpected); 4],
        ),
        (
            HANDSHAKE,
            vec![4, 0, 0, 2, 1, 2],
            [Some(unexpected), Some(unexpected), None, Some(unexpected)],
        ),
    ];
    for (kind, content, expected) in sealed {
        for suite in SUITES {
            for role in ROLES {
                let (mut records, mut peer) = ends(suite, role);
                let is_tls13 = Cipher::of(suite).unwrap().version == cipher::Version::Tls13;
                let expected =
                    expected[usize::from(!is_tls13) + if role == Role::Server { 0 } else { 2 }];
                let read = read_in_pieces(&mut records, &peer.seal(kind, &content), 100);
                let found = match read.result {
                    Ok(_) => None,
                    Err(RecordError::Violation(violation)) => Some(violation.alert),
                    Err(error) => panic!("{error}"),
                };
                let case = format!(
                    "{suite:?}, {role:?}, {kind}, {:?}",
                    &content[..content.len().min(8)]
                );
                assert_eq!(found, expected, "{case}");
                let alert = expected.map(|alert| (ALERT, vec![2, alert.into()]));
                assert_eq!(peer.open(&read.sent), Vec::from_iter(alert), "{case}");
            }
        }
    }
}

#[test]
fn records_that_are_altered_too_large_or_not_encrypted_get_their_alert() {
    use AlertDescription as A;
    for suite in SUITES {
        let is_tls13 = Cipher::of(suite).unwrap().version == cipher::Version::Tls13;
        let outcome = |change: &dyn Fn(&mut Vec<u8>)| {
            let (mut records, mut peer) = ends(suite, Role::Server);
            let mut record = peer.seal(APPLICATION_DATA, b"data");
            change(&mut record);
            let read = read_in_pieces(&mut records, &record, 3);
            assert_eq!(read.data, b"", "{suite:?}");
            let sent = peer.open(&read.sent);
            match (read.result, &sent[..]) {
                (Err(RecordError::Violation(violation)), [(ALERT, alert)]) => {
                    assert_eq!(alert[..], [2, violation.alert.into()]);
                    violation.alert
                }
                other => panic!("{suite:?}: {other:?}"),
            }
        };
        let length = outcome_length(suite);
        for at in HEADER..length {
            for bit in 0..8 {
                assert_eq!(outcome(&|record| record[at] ^= 1 << bit), A::BadRecordMac);
            }
        }
        // As long as it says, but too short for a seal.
        for short in 0..16 {
            let empty = |record: &mut Vec<u8>| {
                *record = [&[23, 3, 3, 0, short][..], &vec![0; short.into()]].concat()
            };
            assert_eq!(outcome(&empty), A::BadRecordMac);
        }
        let max = 16_384 + if is_tls13 { 256 } else { 2048 };
        let head = |length: u16| {
            let [high, low] = length.to_be_bytes();
            move |record: &mut Vec<u8>| *record = vec![23, 3, 3, high, low]
        };
        assert_eq!(outcome(&head(max + 1)), A::RecordOverflow);
        assert_eq!(outcome(&head(u16::MAX)), A::RecordOverflow);
        assert_eq!(outcome(&|record| record[1] = 2), A::DecodeError);
        for kind in [0, 20, 24, 128, 255] {
            assert_eq!(outcome(&|record| record[0] = kind), A::UnexpectedMessage);
        }
        // Another type is a part of what is authenticated in TLS 1.2, and not possible in 1.3.
        let other_type = if is_tls13 {
            A::UnexpectedMessage
        } else {
            A::BadRecordMac
        };
        for kind in [ALERT, HANDSHAKE] {
            assert_eq!(outcome(&|record| record[0] = kind), other_type);
        }
        // A record again, and a record before its time.
        let (mut records, mut peer) = ends(suite, Role::Server);
        let (first, second) = (peer.seal(23, b"1"), peer.seal(23, b"2"));
        let read = read_in_pieces(&mut records, &[&first[..], &first].concat(), 100);
        assert_eq!(read.data, b"1");
        assert!(
            matches!(read.result, Err(RecordError::Violation(it)) if it.alert == A::BadRecordMac)
        );
        let (mut records, _) = ends(suite, Role::Server);
        let read = read_in_pieces(&mut records, &second, 100);
        assert!(
            matches!(read.result, Err(RecordError::Violation(it)) if it.alert == A::BadRecordMac)
        );
    }
}

fn outcome_length(suite: CipherSuite) -> usize {
    ends(suite, Role::Server)
        .1
        .seal(APPLICATION_DATA, b"data")
        .len()
}

#[test]
fn padding_is_removed_and_a_record_of_nothing_else_is_rejected() {
    for suite in &SUITES[..3] {
        // A zero is no content type: it ends up as padding.
        let (mut records, mut peer) = ends(*suite, Role::Server);
        let padded = [b"data".as_slice(), &[APPLICATION_DATA], &[0; 100]].concat();
        let read = read_in_pieces(&mut records, &peer.seal(0, &padded), 10);
        assert_eq!((&read.data[..], read.result), (&b"data"[..], Ok(false)));
        let read = read_in_pieces(&mut records, &peer.seal(0, &[0; 100]), 10);
        let Err(RecordError::Violation(violation)) = read.result else {
            panic!("{read:?}");
        };
        assert_eq!(violation.alert, AlertDescription::UnexpectedMessage);
        // 2^14 bytes of content may have one byte of type, and no more (RFC 8446, 5.4).
        for (padding, is_right) in [(0, true), (1, false)] {
            let (mut records, mut peer) = ends(*suite, Role::Server);
            let mut padded = vec![7; 16_384 - 1];
            padded.push(APPLICATION_DATA);
            padded.extend(vec![0; padding]);
            let read = read_in_pieces(&mut records, &peer.seal(0, &padded), 20_000);
            assert_eq!(read.result.is_ok(), is_right);
        }
    }
}

#[test]
fn fruitless_records_are_counted() {
    let many = |suite, role, kind, content: &[u8], number| {
        let (mut records, mut peer) = ends(suite, role);
        let wire: Vec<u8> = (0..number).flat_map(|_| peer.seal(kind, content)).collect();
        read_in_pieces(&mut records, &wire, 1000).result.is_ok()
    };
    let (tls13, tls12) = (SUITES[0], SUITES[3]);
    for (suite, role, kind, content, max) in [
        (tls13, Role::Server, APPLICATION_DATA, &b""[..], 32),
        (tls12, Role::Server, APPLICATION_DATA, &b""[..], 32),
        (tls13, Role::Server, HANDSHAKE, &KEY_UPDATE[..], 32),
        (tls13, Role::Client, HANDSHAKE, &[4, 0, 0, 1, 9][..], 32),
        (tls13, Role::Server, ALERT, &[1, 90][..], 4),
        (tls12, Role::Server, ALERT, &[1, 41][..], 4),
        (tls12, Role::Server, HANDSHAKE, &[1, 0, 0, 2, 3, 3][..], 1),
        (tls12, Role::Client, HANDSHAKE, &[0, 0, 0, 0][..], 1),
    ] {
        assert!(many(suite, role, kind, content, max), "{suite:?} {kind}");
        assert!(
            !many(suite, role, kind, content, max + 1),
            "{suite:?} {kind}"
        );
    }
    // Data makes key updates and empty records harmless.
    let (mut records, mut peer) = ends(tls13, Role::Server);
    for _ in 0..100 {
        let mut wire = peer.seal(HANDSHAKE, &KEY_UPDATE);
        wire.extend(peer.seal(APPLICATION_DATA, b""));
        wire.extend(peer.seal(APPLICATION_DATA, b"x"));
        assert_eq!(read_in_pieces(&mut records, &wire, 9).result, Ok(false));
    }
}

#[test]
fn a_renegotiation_is_declined_and_the_connection_goes_on() {
    for (role, request) in [
        (Role::Server, &[1, 0, 0, 4, 3, 3, 0, 0][..]),
        (Role::Client, &[0, 0, 0, 0][..]),
    ] {
        for piece in [1, 2, 100] {
            let (mut records, mut peer) = ends(SUITES[4], role);
            // In as many records as it has pieces.
            let mut wire = Vec::new();
            request
                .chunks(piece)
                .for_each(|part| wire.extend(peer.seal(HANDSHAKE, part)));
            wire.extend(peer.seal(APPLICATION_DATA, b"data"));
            let read = read_in_pieces(&mut records, &wire, 11);
            assert_eq!((&read.data[..], read.result), (&b"data"[..], Ok(false)));
            let warning = (ALERT, vec![1, AlertDescription::NoRenegotiation.into()]);
            assert_eq!(peer.open(&read.sent), [warning]);
        }
    }
}

#[test]
fn alerts_end_the_connection_and_are_not_answered() {
    for suite in SUITES {
        let (mut records, mut peer) = ends(suite, Role::Server);
        let read = read_in_pieces(&mut records, &peer.seal(ALERT, &[2, 20]), 100);
        let expected = Err(RecordError::Alert(AlertDescription::BadRecordMac));
        assert_eq!((read.result, &read.sent[..]), (expected, &b""[..]));
        let (mut records, mut peer) = ends(suite, Role::Server);
        let mut wire = peer.seal(APPLICATION_DATA, b"last");
        wire.extend(peer.seal(ALERT, &[1, 0]));
        wire.extend(peer.seal(APPLICATION_DATA, b"ignored"));
        let read = read_in_pieces(&mut records, &wire, 1000);
        assert_eq!((&read.data[..], read.result), (&b"last"[..], Ok(true)));
    }
}

#[tokio::test]
async fn after_a_violation_the_peer_gets_the_alert_and_nothing_more_is_read_or_written() {
    for name in SUITES {
        let (mut stream, mut far, mut peer) = connect_raw(name, Role::Server).await;
        far.write_all(&peer.seal(APPLICATION_DATA, b"good"))
            .await
            .unwrap();
        let mut bad = peer.seal(APPLICATION_DATA, b"bad");
        bad[10] ^= 1;
        far.write_all(&bad).await.unwrap();
        // What came before it is not lost.
        let mut read = [0; 4];
        stream.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"good");
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        assert!(error.to_string().contains("BadRecordMac"), "{error}");
        let error = stream.write_all(b"more").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        stream.shutdown().await.unwrap();
        assert_eq!(stream.buffered(), 0);
        drop(stream);
        let mut sent = Vec::new();
        far.read_to_end(&mut sent).await.unwrap();
        assert_eq!(peer.open(&sent), [(ALERT, vec![2, 20])]);
    }
}

#[tokio::test]
async fn half_a_record_before_the_change_is_completed_after_it() {
    let words = pattern(300);
    for name in [SUITES[1], SUITES[4]] {
        for role in ROLES {
            // Within the header and the body of the first record, behind it, within the second, and within the last.
            for cut in [1, 4, 5, 6, 50, 122, 129, 130, 140, 250, 300] {
                let (mut kept, mut other) = shake_hands(suite(name), role, 1 << 16).await;
                exchange_heads(&mut kept, &mut other).await;
                let mut wire = Vec::new();
                let far = capture(&mut other, &words, &mut wire);
                far.write_all(&wire[..cut]).await.unwrap();
                let mut read = Vec::new();
                if complete_records(&wire[..cut]).1 == 0 {
                    kept = poll_once(kept).await;
                } else {
                    read.push(kept.io().read_u8().await.unwrap());
                }
                let mut stream = kept.into_records().ok().unwrap();
                far.write_all(&wire[cut..]).await.unwrap();
                let mut rest = vec![0; words.len() - read.len()];
                stream.read_exact(&mut rest).await.unwrap();
                read.extend(rest);
                assert!(read == words, "{name:?}, {role:?}, cut at {cut}");
                assert_eq!(stream.buffered(), 0);
            }
        }
    }
}

/// Seals `words` in three records with the keys of `other`, without sending them. Returns its end of the pipe.
fn capture<'a>(other: &'a mut Other, words: &[u8], wire: &mut Vec<u8>) -> &'a mut DuplexStream {
    let third = words.len().div_ceil(3);
    match other {
        TokioStream::Client(client) => {
            let (far, tls) = client.get_mut();
            for part in words.chunks(third) {
                io::Write::write_all(&mut tls.writer(), part).unwrap();
                while tls.wants_write() {
                    tls.write_tls(wire).unwrap();
                }
            }
            far
        }
        TokioStream::Server(server) => {
            let (far, tls) = server.get_mut();
            for part in words.chunks(third) {
                io::Write::write_all(&mut tls.writer(), part).unwrap();
                while tls.wants_write() {
                    tls.write_tls(wire).unwrap();
                }
            }
            far
        }
    }
}

#[tokio::test]
async fn a_connection_stays_with_rustls_within_a_message_and_before_a_reply_that_is_due() {
    let suite = suite(CipherSuite::TLS13_AES_256_GCM_SHA384);
    // Half a key update.
    let (mut kept, mut other) = shake_hands(suite, Role::Server, 1 << 16).await;
    exchange_heads(&mut kept, &mut other).await;
    let TokioStream::Client(client) = other else {
        unreachable!("the other end is a client");
    };
    let (mut far, tls) = client.into_inner();
    let secrets = tls.dangerous_extract_secrets().unwrap();
    let mut peer = Peer::extracted(suite.suite(), &secrets);
    far.write_all(&peer.seal(HANDSHAKE, &[24, 0]))
        .await
        .unwrap();
    kept = poll_once(kept).await;
    let Err(mut kept) = kept.into_records() else {
        panic!("rustls holds a fragment");
    };
    kept.io().write_all(b"still there").await.unwrap();
    let mut sent = vec![0; HEADER + 11 + 1 + 16];
    far.read_exact(&mut sent).await.unwrap();
    assert_eq!(
        peer.open(&sent),
        [(APPLICATION_DATA, b"still there".to_vec())]
    );

    // A whole one whose reply rustls would send with the next data.
    let (mut kept, mut other) = shake_hands(suite, Role::Server, 1 << 16).await;
    exchange_heads(&mut kept, &mut other).await;
    refresh(&mut other);
    other.flush().await.unwrap();
    let (kept, mut other) = (poll_once(kept).await, other);
    let Err(mut kept) = kept.into_records() else {
        panic!("rustls owes a key update");
    };
    exchange_heads(&mut kept, &mut other).await;
    let mut stream = kept.into_records().ok().unwrap();
    exchange(&mut stream, &mut other, b"later").await;

    // One that this side has closed.
    let (mut kept, mut other) = shake_hands(suite, Role::Server, 1 << 16).await;
    exchange_heads(&mut kept, &mut other).await;
    kept.io().shutdown().await.unwrap();
    assert!(kept.into_records().is_err());
}

/// Reads what is there, which is no data.
async fn poll_once(mut kept: Kept) -> Kept {
    let is_pending = poll_fn(|cx| {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let io = Pin::new(kept.io());
        Poll::Ready(AsyncRead::poll_read(io, cx, &mut buffer).is_pending())
    });
    assert!(is_pending.await);
    kept
}

#[tokio::test]
async fn what_the_client_closed_before_the_change_stays_closed() {
    let (mut kept, mut other) = shake_hands(suites()[0], Role::Server, 1 << 16).await;
    exchange_heads(&mut kept, &mut other).await;
    other.write_all(b"last words").await.unwrap();
    other.shutdown().await.unwrap();
    let mut first = [0];
    kept.io().read_exact(&mut first).await.unwrap();
    // Reading the close_notify leaves nothing to respond in TLS, but rustls is in a state of its own then.
    kept.io().write_all(b"x").await.unwrap();
    let mut stream = kept.into_records().ok().unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"ast words");
    stream.write_all(b"reply").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut down = Vec::new();
    other.read_to_end(&mut down).await.unwrap();
    assert_eq!(down, b"xreply");
}

#[tokio::test]
async fn nothing_is_shown_of_a_connection_and_an_idle_one_is_small() {
    let (mut stream, _other) = connect(suites()[0], Role::Server, 1 << 16).await;
    pending_read(&mut stream).await;
    assert_eq!(format!("{stream:?}"), "RecordStream { .. }");
    assert_eq!(stream.buffered(), 0);
    // With a socket of 48 bytes it fits into the allocator's size class of 384 bytes.
    let besides = size_of::<Stream>() - size_of::<Trickle>();
    assert!(besides <= 336, "{besides} bytes");
}

proptest! {
    #[test]
    fn any_script_has_the_same_result_however_it_is_cut(
        head in any::<[u8; 2]>(),
        script in proptest::collection::vec((0..8_usize, proptest::collection::vec(any::<u8>(), 0..6)), 0..12),
    ) {
        let mut data = head.to_vec();
        for (kind, content) in script {
            let content = match kind {
                0 => KEY_UPDATE.to_vec(),
                1 => KEY_UPDATE_REQUESTED.to_vec(),
                _ => content,
            };
            data.push([22, 22, 22, 23, 23, 21, 20, 200][kind]);
            data.push(content.len() as u8);
            data.extend(content);
        }
        crate::fuzz::tls_records(&data);
    }
}

/// What another process would continue with.
fn continued(stream: Stream) -> Stream {
    let (transport, state) = Box::new(stream).into_state().expect("it has a state");
    Stream::from_state(transport, state).expect("it is possible")
}

/// Continued between any two reads and writes, with records in pieces and, in TLS 1.3, key updates.
#[tokio::test]
async fn a_connection_continues_from_its_state_at_any_moment() {
    for role in ROLES {
        for suite in suites() {
            let (stream, other) = connect(suite, role, 4096).await;
            let echoing = async move {
                let (mut from, mut to) = tokio::io::split(other);
                tokio::io::copy(&mut from, &mut to).await
            };
            tokio::select! {
                () = echo_with_pauses(stream, suite.tls13().is_some()) => {}
                ended = echoing => panic!("{role:?} {suite:?}: {ended:?}"),
            }
        }
    }
}

async fn echo_with_pauses(mut stream: Stream, updates_keys: bool) {
    let sent: Vec<u8> = (0..100_000_u32).map(|at| (at / 7) as u8).collect();
    let (mut written, mut read) = (0, Vec::new());
    let mut turn = 0;
    while read.len() < sent.len() {
        turn += 1;
        stream = continued(stream);
        if updates_keys {
            stream.records().records_max = 50;
        }
        stream.transport.bytes_max = [1, 5, 100, 5000][turn % 4];
        let mut piece = [0; 3000];
        let mut got = ReadBuf::new(&mut piece);
        poll_fn(|cx| {
            let rest = &sent[written..];
            let rest = &rest[..rest.len().min(700)];
            if !rest.is_empty()
                && let Poll::Ready(count) = Pin::new(&mut stream).poll_write(cx, rest)
            {
                written += count.unwrap();
            }
            let is_flushed = Pin::new(&mut stream).poll_flush(cx).is_ready();
            let is_read = Pin::new(&mut stream).poll_read(cx, &mut got).is_ready();
            let can_write = is_flushed && written < sent.len();
            match is_read || can_write {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
        read.extend_from_slice(got.filled());
    }
    assert!(read == sent);
}

#[tokio::test]
async fn a_state_that_is_not_possible_is_no_connection() {
    let changes: [fn(&mut StreamState); 5] = [
        |state| state.records.cipher = 200,
        |state| state.records.tx.secret = None,
        |state| state.records.tx.sequence = u64::MAX,
        |state| state.records.message = ([0; 4], 9, 0),
        |state| state.partial = vec![0; RECORD_MAX],
    ];
    for change in changes {
        let (stream, _other) = connect(suites()[0], Role::Server, 4096).await;
        let (transport, mut state) = Box::new(stream).into_state().expect("it has a state");
        assert!(suites()[0].tls13().is_some());
        change(&mut state);
        assert!(Stream::from_state(transport, state).is_none());
    }
}
