//! PROXY headers that are wrong, with TLS behind them and without: the connection is closed, counted, and nobody else notices.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use causeway_tests::harness::{
    backend::{Backend, Request},
    edge::{self, Edge},
    http::{self, Connection},
    scratch::Scratch,
    tls::{self, Authority, NAME},
    wait,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// For a response.
const PATIENCE: Duration = Duration::from_secs(20);

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// 192.0.2.7, port 4321, to 198.51.100.1, port 443.
const ENDS: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 16, 225, 1, 187];

fn v2(command: u8, family: u8, length: u16, rest: &[u8]) -> Vec<u8> {
    [SIGNATURE, &[command, family], &length.to_be_bytes(), rest].concat()
}

fn wrong_headers() -> Vec<(&'static str, Vec<u8>)> {
    let line = |text: &str| text.as_bytes().to_vec();
    vec![
        ("none", line("GET / HTTP/1.1\r\nHost: a\r\n\r\n")),
        (
            "TLS instead",
            vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0, 0, 0, 0],
        ),
        (
            "v1 in lower case",
            line("proxy TCP4 192.0.2.7 198.51.100.1 4321 443\r\n"),
        ),
        ("v1 without anything", line("PROXY \r\n")),
        (
            "v1 of an unknown family",
            line("PROXY TCP5 192.0.2.7 198.51.100.1 4321 443\r\n"),
        ),
        (
            "v1 of UDP",
            line("PROXY UDP4 192.0.2.7 198.51.100.1 4321 443\r\n"),
        ),
        (
            "v1 with a name",
            line("PROXY TCP4 localhost 198.51.100.1 4321 443\r\n"),
        ),
        (
            "v1 with half an address",
            line("PROXY TCP4 192.0.2 198.51.100.1 4321 443\r\n"),
        ),
        (
            "v1 with an octet of 256",
            line("PROXY TCP4 192.0.2.256 198.51.100.1 4321 443\r\n"),
        ),
        (
            "v1 with an address of the other family",
            line("PROXY TCP4 2001:db8::7 198.51.100.1 4321 443\r\n"),
        ),
        (
            "v1 with a family of the other addresses",
            line("PROXY TCP6 192.0.2.7 198.51.100.1 4321 443\r\n"),
        ),
        (
            "v1 with a port of 65536",
            line("PROXY TCP4 192.0.2.7 198.51.100.1 65536 443\r\n"),
        ),
        (
            "v1 with a negative port",
            line("PROXY TCP4 192.0.2.7 198.51.100.1 -1 443\r\n"),
        ),
        (
            "v1 with a port with a zero before it",
            line("PROXY TCP4 192.0.2.7 198.51.100.1 04321 443\r\n"),
        ),
        (
            "v1 without a port",
            line("PROXY TCP4 192.0.2.7 198.51.100.1 4321\r\n"),
        ),
        (
            "v1 with more than it has",
            line("PROXY TCP4 192.0.2.7 198.51.100.1 4321 443 x\r\n"),
        ),
        (
            "v1 with two spaces",
            line("PROXY  TCP4 192.0.2.7 198.51.100.1 4321 443\r\n"),
        ),
        (
            "v1 with a tab",
            line("PROXY TCP4\t192.0.2.7 198.51.100.1 4321 443\r\n"),
        ),
        (
            "v1 with a NUL",
            line("PROXY TCP4 192.0.2.7\0 198.51.100.1 4321 443\r\n"),
        ),
        (
            "v1 that is no UTF-8",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 4321 443\xff\r\n".to_vec(),
        ),
        (
            "v1 of 108 bytes",
            line(&format!("PROXY UNKNOWN {}\r\n", "x".repeat(92))),
        ),
        (
            "v1 without an end",
            line(&format!("PROXY TCP4 {}", "1".repeat(200))),
        ),
        (
            "v1 that ends with a line feed",
            line(&format!(
                "PROXY TCP4 192.0.2.7 198.51.100.1 4321 443\n{}",
                "x".repeat(100)
            )),
        ),
        ("v2 of version 1", v2(0x11, 0x11, 12, &ENDS)),
        ("v2 of version 3", v2(0x31, 0x11, 12, &ENDS)),
        ("v2 with an unknown command", v2(0x22, 0x11, 12, &ENDS)),
        ("v2 with an unknown family", v2(0x21, 0x41, 12, &ENDS)),
        ("v2 with an unknown transport", v2(0x21, 0x13, 12, &ENDS)),
        ("v2 too short for its addresses", v2(0x21, 0x11, 11, &ENDS)),
        ("v2 without addresses", v2(0x21, 0x11, 0, &ENDS)),
        ("v2 too short for its family", v2(0x21, 0x21, 12, &ENDS)),
        ("v2 longer than anything", v2(0x21, 0x11, u16::MAX, &ENDS)),
        (
            "v2 with half an addition",
            v2(0x21, 0x11, 14, &[&ENDS[..], &[4, 0]].concat()),
        ),
        (
            "v2 with an addition longer than itself",
            v2(0x21, 0x11, 16, &[&ENDS[..], &[4, 0, 9, 0]].concat()),
        ),
        (
            "v2 that does not come to its end",
            v2(0x21, 0x11, 12, &ENDS[..5]),
        ),
        ("half a signature", SIGNATURE[..7].to_vec()),
    ]
}

/// The connections that were turned away for their header.
async fn turned_away(edge: &Edge) -> Result<u64> {
    let page = http::get(edge.admin, "/metrics").await?.text();
    let name = "causeway_proxy_handshakes_total{result=\"proxy_header\"} ";
    let line = page.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(Ok(0), |count| Ok(count.parse()?))
}

/// An edge that takes PROXY headers from this machine, before a backend that responds with the head that it got.
struct Scene {
    scratch: Scratch,
    backend: Backend,
    authority: Authority,
}

impl Scene {
    async fn set() -> Result<Self> {
        let scratch = Scratch::new("proxy-headers")?;
        std::fs::create_dir(scratch.path().join("certificates"))?;
        let authority = Authority::new(scratch.path())?;
        authority.renew(&scratch.path().join("certificates"))?;
        let backend = Backend::start(async |mut request: Request| {
            let head = request.head.clone();
            request
                .respond("200 OK", "", &head)
                .await
                .unwrap_or_default();
        })
        .await?;
        Ok(Self {
            scratch,
            backend,
            authority,
        })
    }

    async fn start(&self, with_tls: bool, announcing: &str) -> Result<Edge> {
        let mut listener = json!({ "address": "127.0.0.1:0", "proxy_protocol": [announcing] });
        if with_tls {
            listener["tls"] = json!({ "folder": self.scratch.path().join("certificates") });
        }
        let settings = edge::settings(&[("b1", self.backend.address)])
            .with("listeners", json!([listener]))
            .with("timeouts.head", json!("1s"));
        let edge = Edge::start(&settings, self.scratch.path()).await?;
        edge.backend_in_state("b1", "up").await?;
        Ok(edge)
    }

    /// What the backend is told of a client with a right header.
    async fn head(&self, address: SocketAddr, header: &[u8], with_tls: bool) -> Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(header).await?;
        let request = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n");
        let mut response = Vec::new();
        if with_tls {
            let mut stream = tls::handshake(&self.authority.clients("http/1.1")?, stream).await?;
            stream.write_all(request.as_bytes()).await?;
            timeout(PATIENCE, stream.read_to_end(&mut response)).await??;
        } else {
            stream.write_all(request.as_bytes()).await?;
            timeout(PATIENCE, stream.read_to_end(&mut response)).await??;
        }
        Ok(String::from_utf8_lossy(&response).to_lowercase())
    }
}

#[tokio::test]
async fn a_wrong_header_closes_its_connection_and_is_counted() -> Result<()> {
    let scene = Scene::set().await?;
    for with_tls in [false, true] {
        let mut edge = scene.start(with_tls, "127.0.0.0/8").await?;
        for (number, (name, header)) in wrong_headers().into_iter().enumerate() {
            let mut connection = Connection::open(edge.address).await?;
            connection.send(&header).await.ok();
            let response = connection.head().await;
            let error = response
                .err()
                .with_context(|| format!("{name}: there is a response"))?;
            assert!(
                !format!("{error:#}").contains("in time"),
                "{name}: {error:#}"
            );
            let what = format!("{name} to be counted, TLS {with_tls}");
            wait::until(&what, wait::SOON, async || {
                (turned_away(&edge).await.ok()? == number as u64 + 1).then_some(())
            })
            .await?;
        }
        assert!(edge.process.is_running());
        let rights = [
            (
                b"PROXY TCP4 192.0.2.7 198.51.100.1 4321 443\r\n".to_vec(),
                "192.0.2.7",
            ),
            (v2(0x21, 0x11, 12, &ENDS), "192.0.2.7"),
            (
                v2(0x21, 0x11, 16, &[&ENDS[..], &[4, 0, 1, 7]].concat()),
                "192.0.2.7",
            ),
            (
                b"PROXY TCP6 2001:db8::7 2001:db8::1 4321 443\r\n".to_vec(),
                "2001:db8::7",
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
            (v2(0x20, 0x00, 0, &[]), "127.0.0.1"),
        ];
        for (header, client) in rights {
            let head = scene.head(edge.address, &header, with_tls).await?;
            let expected = format!("x-forwarded-for: {client}\r\n");
            assert!(head.contains(&expected), "TLS {with_tls}, {head}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_header_from_anybody_else_is_no_header() -> Result<()> {
    let scene = Scene::set().await?;
    let header = b"PROXY TCP4 192.0.2.7 198.51.100.1 4321 443\r\n";
    for with_tls in [false, true] {
        let edge = scene.start(with_tls, "192.0.2.0/24").await?;
        let forged = scene.head(edge.address, header, with_tls).await;
        match forged {
            Ok(response) => assert!(response.starts_with("http/1.1 400 "), "{response}"),
            Err(_) => assert!(with_tls, "it is no handshake"),
        }
        let head = scene.head(edge.address, b"", with_tls).await?;
        assert!(head.contains("x-forwarded-for: 127.0.0.1\r\n"), "{head}");
    }
    Ok(())
}
