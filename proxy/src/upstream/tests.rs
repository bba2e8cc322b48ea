//! Dials over real sockets.

use tokio::net::{TcpListener, UnixListener};

use super::*;
use crate::config::Config;

const SOON: Duration = Duration::from_secs(10);

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
            .peer(
                address,
                None,
                &mut AddressCursor::default(),
                Repeatable::Yes,
            )
            .await
            .unwrap();
    }
    std::fs::remove_file(folder).unwrap();
    drop(listener);
}

#[tokio::test]
async fn a_failed_address_is_dialled_last_the_next_time() {
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
        .peer(&name, None, &mut AddressCursor::default(), Repeatable::Yes)
        .await
        .unwrap();
    assert_eq!(peer._address.as_inet(), Some(&address));
}

#[tokio::test]
async fn a_backend_that_does_not_listen_refuses_the_connection() {
    let (listener, address) = listener().await;
    drop(listener);
    let missing = Address::Unix("/nonexistent/app.sock".into());
    for address in [Address::Ip(address), missing] {
        let error = dialer().dial(&address, None).await.unwrap_err();
        assert!(matches!(error, DialError::Refused(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_an_error_of_its_own() {
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

#[test]
fn exhaustion_of_this_machine_is_distinguished_from_failures_of_a_backend() {
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
        // As Pingora wraps errors of its sockets.
        let wrapped = pingora::Error::because(ErrorType::InternalError, "wrapped", error);
        if code == libc::EMFILE || code == libc::EADDRNOTAVAIL {
            assert_eq!(found(&wrapped), expected);
        }
    }
}
