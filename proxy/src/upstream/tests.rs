//! Dials and handshakes over real sockets.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

use super::*;
use crate::config::Config;
use crate::fields::Answer;

const SOON: Duration = Duration::from_secs(10);

const REQUEST: &[u8] =
    b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

fn timeouts() -> Timeouts {
    let text = "pools: [{name: p, backends: [{id: a, address: 127.0.0.1:1}]}]\nroutes: [{path: /, pool: p}]\n";
    Config::parse("test.yaml", text).unwrap().timeouts
}

fn dialer() -> Dialer {
    Dialer::new(timeouts(), Arc::new(Names::new()), 0)
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Asks a backend that answers with `answer` and then waits for the end.
async fn ask_for(answer: &'static [u8]) -> Result<Asked, HandshakeError> {
    let (listener, address) = listener().await;
    let backend = async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        socket.write_all(answer).await.unwrap();
        socket
    };
    let socket = dialer().dial(&Address::Ip(address), None).await.unwrap();
    let (asked, _socket) = tokio::join!(ask(socket, REQUEST, "websocket", SOON), backend);
    asked
}

#[tokio::test]
async fn a_name_an_address_and_a_unix_socket_can_all_be_dialled() {
    let (listener, address) = listener().await;
    let folder = std::env::temp_dir().join(format!("causeway-dial-{}", std::process::id()));
    let _unix = UnixListener::bind(&folder).unwrap();
    let addresses = [
        Address::Ip(address),
        Address::Name {
            host: "localhost".into(),
            port: address.port(),
        },
        Address::Unix(folder.clone()),
    ];
    for address in &addresses {
        dialer().dial(address, None).await.unwrap();
        dialer()
            .peer(address, None, &mut Way::default(), Repeatable::Yes)
            .await
            .unwrap();
    }
    std::fs::remove_file(folder).unwrap();
    drop(listener);
}

#[tokio::test]
async fn the_address_that_failed_is_the_last_to_be_dialled_next_time() {
    let (_listener, address) = listener().await;
    let dead = {
        let (listener, dead) = listener().await;
        drop(listener);
        dead
    };
    let name = Address::Name {
        host: "two.test".into(),
        port: 80,
    };
    let dialer = dialer();
    dialer.names.pin("two.test", 80, &[dead, address]);
    dialer.dial(&name, None).await.unwrap();
    let peer = dialer
        .peer(&name, None, &mut Way::default(), Repeatable::Yes)
        .await
        .unwrap();
    assert_eq!(peer._address.as_inet(), Some(&address));
}

#[tokio::test]
async fn a_backend_that_does_not_listen_refuses() {
    let (listener, address) = listener().await;
    drop(listener);
    let missing = Address::Unix("/nonexistent/app.sock".into());
    for address in [Address::Ip(address), missing] {
        let error = dialer().dial(&address, None).await.unwrap_err();
        assert!(matches!(error, DialError::Refused(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_told_apart() {
    let address = Address::Name {
        host: "no-such-host.invalid".into(),
        port: 80,
    };
    let error = dialer().dial(&address, None).await.unwrap_err();
    assert!(
        matches!(error, DialError::Name(_) | DialError::Timeout(_)),
        "{error:?}"
    );
}

#[tokio::test]
async fn bytes_behind_the_101_are_given_back_with_the_socket() {
    let asked = ask_for(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n\x81\x02hi").await;
    let asked = asked.unwrap();
    assert!(asked.has_switched());
    assert_eq!(asked.early, b"\x81\x02hi");
    assert!(matches!(asked.socket, Socket::Tcp(_)));
}

#[tokio::test]
async fn a_101_without_anything_behind_it_does_not_wait() {
    let asked = ask_for(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    )
    .await;
    let asked = asked.unwrap();
    assert!(asked.has_switched() && asked.early.is_empty());
}

#[tokio::test]
async fn an_interim_answer_before_the_101_is_skipped() {
    let asked = ask_for(
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nx",
    )
    .await;
    let asked = asked.unwrap();
    assert!(asked.has_switched());
    assert_eq!(asked.early, b"x");
}

#[tokio::test]
async fn a_switch_to_something_else_is_an_error() {
    for answer in [
        &b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"[..],
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        assert!(matches!(
            ask_for(answer).await,
            Err(HandshakeError::OtherProtocol(_))
        ));
    }
}

#[tokio::test]
async fn an_ordinary_answer_keeps_its_connection_and_what_has_come_of_its_body() {
    let refused = ask_for(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nno").await;
    let refused = refused.unwrap();
    assert!(!refused.has_switched());
    assert_eq!(refused.answer.status(), 403);
    assert_eq!(refused.early, b"no");
}

#[tokio::test]
async fn a_backend_that_hangs_up_or_speaks_no_http_is_broken() {
    for answer in [&b"garbage\r\n\r\n"[..], b"HTTP/1.1 101"] {
        let (listener, address) = listener().await;
        let backend = async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let _ = socket.read(&mut [0; 1024]).await.unwrap();
            socket.write_all(answer).await.unwrap();
        };
        let socket = dialer().dial(&Address::Ip(address), None).await.unwrap();
        let (asked, ()) = tokio::join!(ask(socket, REQUEST, "websocket", SOON), backend);
        assert!(matches!(asked, Err(HandshakeError::NoHead(_))));
    }
}

#[test]
fn what_this_machine_runs_out_of_is_told_from_what_a_backend_does() {
    let connecting = |etype: ErrorType, code: i32| {
        let cause = io::Error::from_raw_os_error(code);
        pingora::Error::because(etype, "connecting", cause)
    };
    let found = |error: &pingora::Error| match DialError::from_pingora(error, SOON) {
        DialError::Exhausted(_) => "exhausted",
        DialError::NoPort(_) => "no port",
        DialError::Refused(_) => "refused",
        DialError::Timeout(_) => "timeout",
        DialError::Tls(_) => "tls",
        DialError::Unreachable(_) | DialError::Name(_) => "unreachable",
    };
    for (etype, code, expected) in [
        (ErrorType::SocketError, libc::EMFILE, "exhausted"),
        (ErrorType::ConnectError, libc::ENOBUFS, "exhausted"),
        (ErrorType::BindError, libc::EADDRNOTAVAIL, "no port"),
        (ErrorType::ConnectRefused, libc::ECONNREFUSED, "refused"),
        (ErrorType::ConnectTimedout, libc::ETIMEDOUT, "timeout"),
        (ErrorType::TLSHandshakeFailure, libc::EPROTO, "tls"),
        (ErrorType::ConnectNoRoute, libc::EHOSTUNREACH, "unreachable"),
    ] {
        let error = connecting(etype.clone(), code);
        assert_eq!(found(&error), expected, "{etype:?}");
        // As Pingora hands errors of its sockets on.
        let wrapped = pingora::Error::because(ErrorType::InternalError, "wrapped", error);
        if code == libc::EMFILE || code == libc::EADDRNOTAVAIL {
            assert_eq!(found(&wrapped), expected);
        }
    }
}
