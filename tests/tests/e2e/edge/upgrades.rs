//! No upgrade is lost, however the bytes around the 101 fall.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use causeway_tests::harness::{
    backend::{Backend, Request},
    edge::{self, Edge, Program},
    http::Connection,
    scratch::Scratch,
    websocket,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

/// As many as the stock path of Pingora loses some ten of.
const UPGRADES: usize = 10_000;
const AT_ONCE: usize = 64;
const DEADLINE: Duration = Duration::from_secs(240);

/// The bytes of a message: every one has this length, so that frames are easily told apart.
const MESSAGE_BYTES: usize = 8;
const MASK: [u8; 4] = [7, 77, 177, 27];

fn message(kind: char, number: usize) -> [u8; MESSAGE_BYTES] {
    format!("{kind}{number:07}")
        .into_bytes()
        .try_into()
        .expect("one letter and seven digits")
}

fn client_frame(message: [u8; MESSAGE_BYTES]) -> Vec<u8> {
    let masked = message
        .iter()
        .zip(MASK.iter().cycle())
        .map(|(byte, mask)| byte ^ mask);
    [0x81, 0x80 | MESSAGE_BYTES as u8]
        .into_iter()
        .chain(MASK)
        .chain(masked)
        .collect()
}

fn server_frame(message: &[u8]) -> Vec<u8> {
    [&[0x81, MESSAGE_BYTES as u8], message].concat()
}

/// Sends a message together with the 101, then every message back.
async fn greet_and_echo(mut request: Request) {
    let accept = websocket::ACCEPT;
    let mut out = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    )
    .into_bytes();
    out.extend(server_frame(&message('g', 0)));
    loop {
        if request.stream.write_all(&out).await.is_err() {
            return;
        }
        out.clear();
        while request.rest.len() < 6 + MESSAGE_BYTES {
            if !matches!(request.stream.read_buf(&mut request.rest).await, Ok(1..)) {
                return;
            }
        }
        while 6 + MESSAGE_BYTES <= request.rest.len() {
            let frame = request.rest.split_to(6 + MESSAGE_BYTES);
            let bytes: Vec<u8> = frame[6..]
                .iter()
                .zip(frame[2..6].iter().cycle())
                .map(|(byte, mask)| byte ^ mask)
                .collect();
            out.extend(server_frame(&bytes));
        }
    }
}

async fn one_tunnel(edge: SocketAddr, number: usize) -> Result<()> {
    let mut connection = Connection::open(edge).await?;
    let mut first = websocket::handshake(edge, "/tunnel", &[]).into_bytes();
    first.extend(client_frame(message('a', number)));
    connection.send(first).await?;

    let response = connection.head().await?;
    ensure!(response.status == 101, "{response:?}");
    let expected = [
        server_frame(&message('g', 0)),
        server_frame(&message('a', number)),
    ]
    .concat();
    ensure!(
        connection.bytes(expected.len()).await? == expected,
        "the bytes around the 101 came out wrong"
    );

    connection.send(client_frame(message('b', number))).await?;
    let expected = server_frame(&message('b', number));
    ensure!(
        connection.bytes(expected.len()).await? == expected,
        "the tunnel echoes wrongly"
    );
    connection.finish().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_upgrades_lose_no_byte_and_no_tunnel() -> Result<()> {
    none_is_lost_in(Program::Edge, UPGRADES).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_upgrades_of_a_mounted_edge_lose_no_byte_and_no_tunnel() -> Result<()> {
    none_is_lost_in(Program::Plugin, UPGRADES / 10).await
}

async fn none_is_lost_in(program: Program, upgrades: usize) -> Result<()> {
    let scratch = Scratch::new("upgrades")?;
    let backend = Backend::start(greet_and_echo).await?;
    let settings = edge::settings(&[("b1", backend.address)]);
    let edge = Edge::start_in(program, &settings, scratch.path()).await?;
    edge.backend_in_state("b1", "up").await?;

    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut tunnels = JoinSet::new();
    for number in 0..upgrades {
        let (slots, address) = (slots.clone(), edge.address);
        tunnels.spawn(async move {
            let _slot = slots.acquire().await?;
            one_tunnel(address, number)
                .await
                .with_context(|| format!("tunnel {number}"))
        });
    }
    let lost: Vec<String> = timeout(DEADLINE, tunnels.join_all())
        .await
        .context("the tunnels take too long")?
        .into_iter()
        .filter_map(|tunnel| tunnel.err().map(|error| format!("{error:#}")))
        .collect();
    assert!(
        lost.is_empty(),
        "{} lost, such as {:?}",
        lost.len(),
        lost.first()
    );
    Ok(())
}
