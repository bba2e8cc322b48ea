//! The edge mounted in a Pingora service: the same tests, and some that are specific to it.

#[path = "plain.rs"]
#[expect(clippy::duplicate_mod, reason = "the same tests run on another edge")]
mod plain;
#[path = "upgrade.rs"]
#[expect(clippy::duplicate_mod, reason = "the same tests run on another edge")]
mod upgrade;
#[path = "waiting.rs"]
#[expect(clippy::duplicate_mod, reason = "the same tests run on another edge")]
mod waiting;

mod scene {
    pub(super) use crate::tests::scene::*;

    /// The edge in a Pingora service.
    pub(super) type Scene = SceneOf<Mounted>;
}

use pingora::connectors::TransportConnector;
use pingora::http::RequestHeader;
use pingora::prelude::HttpPeer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::scene::*;
use crate::http::http1::BodyLength;
use crate::request::proxy_http::has_no_body;
use crate::request::proxy_http::requested_upgrades;
use crate::server::app::parse_head;

const UPGRADE: &str =
    "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

type Scene = SceneOf<Mounted>;

#[tokio::test]
async fn invalid_heads_get_the_status_of_their_rfc() {
    let (address, _backend) = mirror().await;
    let scene = Scene::before(&[address]).await;
    for (request, status) in [
        ("garbage\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", "405"),
    ] {
        let response = scene.request(request).await;
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:?}: {response}"
        );
    }
}

#[tokio::test]
async fn the_limit_of_connections_applies_to_tunnels() {
    let (address, _backend) = backend(|mut socket| async move {
        if read_head(&mut socket).await.contains("pgrade") {
            socket.write_all(SWITCH.as_bytes()).await.unwrap();
            read_all(&mut socket).await;
        } else {
            let response = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            socket.write_all(response).await.unwrap();
        }
    })
    .await;
    let scene = Scene::configured(&[address], "limits: { connections: 1 }\n").await;
    let mut first = scene.send(UPGRADE).await;
    assert!(read_head(&mut first).await.starts_with("HTTP/1.1 101 "));
    let refused = scene.request(UPGRADE).await;
    assert!(
        refused.starts_with("HTTP/1.1 503 ") && refused.ends_with("too many connections\n"),
        "{refused}"
    );
    let plain = scene
        .request("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .await;
    assert!(plain.starts_with("HTTP/1.1 200 "), "{plain}");
    drop(first);
    let again = async {
        while !read_head(&mut scene.send(UPGRADE).await)
            .await
            .starts_with("HTTP/1.1 101 ")
        {}
    };
    tokio::time::timeout(SOON, again)
        .await
        .expect("the permit of the first is released");
}

#[tokio::test]
async fn an_upgrade_over_tls_becomes_a_tunnel() {
    let (seen, mut heads) = mpsc::channel(1);
    let (address, _backend) = backend(move |mut socket| {
        let seen = seen.clone();
        async move {
            seen.send(read_head(&mut socket).await).await.unwrap();
            socket.write_all(SWITCH.as_bytes()).await.unwrap();
            let (mut reading, mut writing) = socket.split();
            let _ = tokio::io::copy(&mut reading, &mut writing).await;
        }
    })
    .await;
    let scene = SceneOf::<MountedTls>::before(&[address]).await;
    let mut peer = HttpPeer::new(scene.address, true, "localhost".to_owned());
    peer.options.verify_cert = false;
    peer.options.verify_hostname = false;
    let talk = async {
        let mut client = TransportConnector::new(None)
            .new_stream(&peer)
            .await
            .unwrap();
        // More than a TLS record holds.
        let early = "early".repeat(10_000);
        client
            .write_all(format!("{UPGRADE}{early}").as_bytes())
            .await
            .unwrap();
        client.flush().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let cookie = header(&head, "set-cookie").unwrap();
        assert!(cookie.contains("; Secure"), "{cookie}");
        let mut echoed = vec![0; early.len()];
        client.read_exact(&mut echoed).await.unwrap();
        assert!(echoed == early.as_bytes());
    };
    tokio::time::timeout(SOON, talk).await.expect("in time");
    let head = heads.recv().await.unwrap();
    assert_eq!(header(&head, "x-forwarded-proto"), Some("https"));
    scene.components.tunnels.drain();
    tokio::time::timeout(SOON, scene.components.tunnels.wait_closed())
        .await
        .expect("the tunnel ends with its client");
}

#[test]
fn pingora_and_the_edge_read_heads_the_same_way() {
    for (method, headers) in [
        "",
        "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: foo, websocket\r\n",
        "Connection: keep-alive, UPGRADE\r\nUpgrade: WebSocket, foo\r\nUpgrade: bar\r\n",
        "Connection: keep-alive\r\nUpgrade: websocket\r\n",
        "Connection: Upgrade\r\n",
        "Connection: Upgrade\r\nUpgrade: ,\r\n",
        "Content-Length: 0\r\n",
        "Content-Length: 00\r\n",
        "Content-Length: +0\r\n",
        "Content-Length: \r\n",
        "Content-Length: 0\r\nContent-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: identity\r\nContent-Length: 0\r\n",
    ]
    .into_iter()
    .flat_map(|headers| ["GET", "POST"].map(|method| (method, headers)))
    {
        let mut request = RequestHeader::build(method, b"/ws", None).unwrap();
        request.set_version(http::Version::HTTP_11);
        for line in headers.lines() {
            let (name, value) = line.split_once(": ").unwrap();
            request
                .append_header(name.to_owned(), value.to_owned())
                .unwrap();
        }
        let head = format!("{method} /ws HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
        let Ok(head_info) = parse_head(&mut head.into_bytes(), 256) else {
            assert!(!has_no_body(&request), "{headers:?}");
            continue;
        };
        let protocols = head_info.upgrade.map(|upgrade| upgrade.protocols);
        assert_eq!(
            requested_upgrades(&request),
            protocols,
            "{method} {headers:?}"
        );
        let empty = head_info.body == BodyLength::Bytes(0);
        assert_eq!(has_no_body(&request), empty, "{headers:?}");
    }
}
