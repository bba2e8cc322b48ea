//! Tunnels that are handed off: to the byte, with everything in pieces of one byte too.

use std::future::{poll_fn, ready};
use std::pin::pin;

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;

use super::*;

/// The place of the only successor.
const PLACE: u8 = 7;
const LEAVING: &[u8] = b"\x8b\x07leaving";
const DONE: &[u8] = b"\x8b\x04done";
const KEPT: &[u8] = b"\x8b\x0ckept reason.";
const ORDER: &[u8] = b"\x8b\x8d\0\0\0\0handoff ab cd";
const RESTART: &[u8] = b"\x88\x02\x03\xf4";

struct Handing {
    client: DuplexStream,
    first: DuplexStream,
    second: DuplexStream,
    events: mpsc::Receiver<Event<u8>>,
    registry: Arc<Tunnels>,
    /// Of the first backend, and of the second.
    groups: [Arc<TunnelGroup>; 2],
    _task: JoinSet<()>,
}

/// A tunnel that is handed off whenever its backend drains; with `early` bytes of its backend.
fn open(early: &[u8]) -> Handing {
    let (client, client_inner) = duplex(1024);
    let (first, first_inner) = duplex(1024);
    let (second, second_inner) = duplex(1024);
    let tunnels = Tunnels::new(LIMITS);
    let group = TunnelGroup::new("p", "n1".parse().unwrap());
    let other = TunnelGroup::new("p", "n2".parse().unwrap());
    let mut tunnel = Tunnel::new(TunnelParts {
        client: client_inner,
        backend: first_inner,
        client_early: Vec::new(),
        backend_early: early.to_vec(),
        protocol: Protocol::WebSocketWithHandoff,
        entry: tunnels.register(TunnelInfo::of(&group), std::time::Instant::now()),
    });
    let mut successor = Some(Successor {
        socket: second_inner,
        early: Vec::new(),
        target: "ab cd".to_owned(),
        place: PLACE,
    });
    let (told, events) = mpsc::channel(16);
    let mut task = JoinSet::new();
    let registry = Arc::clone(&tunnels);
    let moves_to = Arc::clone(&other);
    task.spawn(async move {
        loop {
            let event = poll_fn(|cx| tunnel.poll_event(cx)).await;
            if matches!(event, Event::Leaving | Event::MoveRequested) {
                tunnel.hand_off(Box::pin(ready(successor.take())));
            }
            if matches!(event, Event::Moved(_)) {
                tunnel.set_group(&moves_to);
            }
            let is_last = matches!(event, Event::Ended(_));
            if told.send(event).await.is_err() || is_last {
                return;
            }
        }
    });
    Handing {
        client,
        first,
        second,
        events,
        registry,
        groups: [group, other],
        _task: task,
    }
}

impl Handing {
    async fn event(&mut self) -> Event<u8> {
        self.events.recv().await.unwrap()
    }

    /// Has it handed off, and reads the order.
    async fn order(&mut self) {
        self.first.write_all(LEAVING).await.unwrap();
        assert!(matches!(self.event().await, Event::Leaving));
        assert_eq!(read(&mut self.first, ORDER.len()).await, ORDER);
    }
}

/// Whether nothing can be read now, however often everything else has run.
async fn is_silent(stream: &mut DuplexStream) -> bool {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let mut byte = [0];
    let mut reading = pin!(stream.read(&mut byte));
    reading.as_mut().now_or_never().is_none()
}

async fn write(stream: &mut DuplexStream, bytes: &[u8], piece: usize) {
    for piece in bytes.chunks(piece) {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_tunnel_continues_behind_the_last_frame_of_its_backend() {
    for piece in [1, 2, 3, 7, 1000] {
        let mut scene = open(b"");
        // Within a fragmented message, with a control frame between its fragments.
        write(
            &mut scene.client,
            b"\x01\x82\0\0\0\0he\x89\x80\0\0\0\0",
            piece,
        )
        .await;
        let mut sent = read(&mut scene.first, 14).await;
        write(
            &mut scene.first,
            &[FROM_BACKEND, LEAVING, FROM_BACKEND].concat(),
            piece,
        )
        .await;
        assert_eq!(
            read(&mut scene.client, 14).await,
            [FROM_BACKEND, FROM_BACKEND].concat()
        );
        assert!(matches!(scene.event().await, Event::Leaving));
        assert!(
            is_silent(&mut scene.first).await,
            "the message is not complete"
        );
        write(&mut scene.client, b"\x80\x83\0\0\0\0llo", piece).await;
        let behind = [FROM_CLIENT, FROM_CLIENT].concat();
        write(&mut scene.client, &behind, piece).await;
        sent.extend(read(&mut scene.first, 9 + ORDER.len()).await);
        assert_eq!(&sent[sent.len() - ORDER.len()..], ORDER);
        assert!(is_silent(&mut scene.first).await, "the order is the last");

        scene.second.write_all(b"\x81\x02ok").await.unwrap();
        write(&mut scene.first, &[FROM_BACKEND, DONE].concat(), piece).await;
        let Event::Moved(place) = scene.event().await else {
            panic!("it did not move");
        };
        assert_eq!(place, PLACE);
        let expected = [FROM_BACKEND, b"\x81\x02ok"].concat();
        assert_eq!(read(&mut scene.client, expected.len()).await, expected);
        assert_eq!(read(&mut scene.second, behind.len()).await, behind);
        assert_eq!(
            read_all(&mut scene.first).await,
            b"",
            "the old connection is closed"
        );
        write(&mut scene.second, &[FROM_BACKEND, RESTART].concat(), piece).await;
        assert_eq!(
            read(&mut scene.client, 11).await,
            [FROM_BACKEND, RESTART].concat()
        );
    }
}

#[tokio::test]
async fn a_tunnel_that_is_kept_continues_as_before() {
    let mut scene = open(b"");
    scene.client.write_all(&FROM_CLIENT[..4]).await.unwrap();
    assert_eq!(read(&mut scene.first, 4).await, &FROM_CLIENT[..4]);
    scene.first.write_all(LEAVING).await.unwrap();
    assert!(matches!(scene.event().await, Event::Leaving));
    let rest = [&FROM_CLIENT[4..], FROM_CLIENT].concat();
    scene.client.write_all(&rest).await.unwrap();
    let sent = read(&mut scene.first, FROM_CLIENT.len() - 4 + ORDER.len()).await;
    assert_eq!(sent, [&FROM_CLIENT[4..], ORDER].concat());
    scene
        .first
        .write_all(&[KEPT, FROM_BACKEND].concat())
        .await
        .unwrap();
    assert!(matches!(scene.event().await, Event::Stayed));
    assert_eq!(read(&mut scene.client, 7).await, FROM_BACKEND);
    assert_eq!(read(&mut scene.first, 11).await, FROM_CLIENT);
    // Without another backend it stays too.
    scene.first.write_all(LEAVING).await.unwrap();
    assert!(matches!(scene.event().await, Event::Leaving));
    assert!(matches!(scene.event().await, Event::Stayed));
    scene.client.write_all(FROM_CLIENT).await.unwrap();
    assert_eq!(read(&mut scene.first, 11).await, FROM_CLIENT);
}

#[tokio::test]
async fn a_notice_that_comes_with_the_101_is_not_forwarded() {
    let mut scene = open(&[FROM_BACKEND, LEAVING, FROM_BACKEND].concat());
    assert!(matches!(scene.event().await, Event::Leaving));
    assert_eq!(
        read(&mut scene.client, 14).await,
        [FROM_BACKEND, FROM_BACKEND].concat()
    );
    assert_eq!(read(&mut scene.first, ORDER.len()).await, ORDER);
}

#[tokio::test]
async fn a_backend_that_ends_after_the_order_leaves_the_client_a_close_frame() {
    let mut scene = open(b"");
    scene.order().await;
    scene.first.write_all(FROM_BACKEND).await.unwrap();
    scene.first.shutdown().await.unwrap();
    assert_eq!(
        read_all(&mut scene.client).await,
        [FROM_BACKEND, RESTART].concat()
    );
    assert_eq!(read_all(&mut scene.second).await, b"");
}

#[tokio::test]
async fn a_backend_that_ends_without_a_close_frame_leaves_the_client_one() {
    let mut scene = open(b"");
    scene.first.write_all(FROM_BACKEND).await.unwrap();
    scene.first.shutdown().await.unwrap();
    let received = read(&mut scene.client, 11).await;
    assert_eq!(received, [FROM_BACKEND, RESTART].concat());
    scene.client.shutdown().await.unwrap();
    let Event::Ended(end) = scene.event().await else {
        panic!("it goes on");
    };
    assert_eq!(
        (end.reason, end.close_code, end.backend_code),
        (EndReason::BackendClosed, Some(1012), None)
    );
}

#[tokio::test]
async fn nothing_is_inserted_into_a_frame_behind_a_close_frame_or_for_a_client_that_has_left() {
    let close = &b"\x88\x02\x03\xe8"[..];
    for last in [&FROM_BACKEND[..4], close] {
        let mut scene = open(b"");
        scene.first.write_all(last).await.unwrap();
        scene.first.shutdown().await.unwrap();
        assert_eq!(read_all(&mut scene.client).await, last);
    }
    let client_closes = &b"\x88\x82\0\0\0\0\x03\xe8"[..];
    for last in [client_closes, b""] {
        let mut scene = open(b"");
        scene.client.write_all(last).await.unwrap();
        if last.is_empty() {
            scene.client.shutdown().await.unwrap();
            assert_eq!(read_all(&mut scene.first).await, b"");
        } else {
            assert_eq!(read(&mut scene.first, last.len()).await, last);
        }
        scene.first.shutdown().await.unwrap();
        assert_eq!(read_all(&mut scene.client).await, b"");
    }
}

#[tokio::test]
async fn a_backend_that_closes_after_the_order_is_received() {
    let mut scene = open(b"");
    scene.order().await;
    scene.first.write_all(RESTART).await.unwrap();
    assert_eq!(read(&mut scene.client, 4).await, RESTART);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_does_not_respond_to_the_order_costs_the_client_its_connection() {
    let mut scene = open(b"");
    scene.order().await;
    assert_eq!(read(&mut scene.client, 4).await, RESTART);
    let Event::Ended(end) = scene.event().await else {
        panic!("it goes on");
    };
    assert_eq!(
        (end.reason, end.close_code),
        (EndReason::BackendLost, Some(1012))
    );
}

#[tokio::test]
async fn a_done_that_nobody_has_asked_for_ends_the_tunnel() {
    let mut scene = open(b"");
    scene.first.write_all(DONE).await.unwrap();
    assert_eq!(read(&mut scene.client, 4).await, RESTART);
}

#[tokio::test]
async fn a_client_cannot_send_frames_of_a_handoff() {
    for piece in [1, 1000] {
        let mut scene = open(b"");
        write(
            &mut scene.client,
            &[FROM_CLIENT, ORDER, FROM_CLIENT].concat(),
            piece,
        )
        .await;
        assert_eq!(read(&mut scene.first, 11).await, FROM_CLIENT);
        assert_eq!(read(&mut scene.client, 4).await, b"\x88\x02\x03\xea");
        assert!(is_silent(&mut scene.first).await);
    }
    // Within a payload it is data.
    let mut scene = open(b"");
    let data = b"\x82\x83\0\0\0\0\x8b\x8b\x8b";
    scene.client.write_all(data).await.unwrap();
    assert_eq!(read(&mut scene.first, data.len()).await, data);
    scene.first.write_all(b"\x82\x03\x8b\x04d").await.unwrap();
    assert_eq!(read(&mut scene.client, 5).await, b"\x82\x03\x8b\x04d");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_order_ends_the_tunnel_as_ever() {
    let mut scene = open(b"");
    scene.client.write_all(&FROM_CLIENT[..4]).await.unwrap();
    assert_eq!(read(&mut scene.first, 4).await, &FROM_CLIENT[..4]);
    scene.first.write_all(LEAVING).await.unwrap();
    assert!(matches!(scene.event().await, Event::Leaving));
    scene.client.shutdown().await.unwrap();
    assert_eq!(read_all(&mut scene.first).await, b"");
    assert_eq!(read_all(&mut scene.second).await, b"");
    scene.first.write_all(FROM_BACKEND).await.unwrap();
    assert_eq!(read(&mut scene.client, 7).await, FROM_BACKEND);
}

#[tokio::test]
async fn a_drain_of_the_backend_moves_the_tunnel_and_closes_it_only_if_that_fails() {
    let mut scene = open(b"");
    let [first, second] = scene.groups.clone();
    let now = std::time::Instant::now();
    let close = |scene: &Handing, group: &TunnelGroup| {
        let tunnels = scene.registry.begin_drain(group, now);
        assert_eq!(tunnels.len(), 1);
        tunnels[0].request_close(CloseRequest::BackendDrain);
    };
    close(&scene, &first);
    assert!(matches!(scene.event().await, Event::MoveRequested));
    assert_eq!(read(&mut scene.first, ORDER.len()).await, ORDER);
    scene.first.write_all(DONE).await.unwrap();
    assert!(matches!(scene.event().await, Event::Moved(PLACE)));
    scene.second.write_all(FROM_BACKEND).await.unwrap();
    assert_eq!(read(&mut scene.client, 7).await, FROM_BACKEND);
    assert!(scene.registry.of(&first).is_empty(), "it has left");

    // There is no third backend.
    close(&scene, &second);
    assert!(matches!(scene.event().await, Event::MoveRequested));
    assert!(matches!(scene.event().await, Event::Stayed));
    assert_eq!(read(&mut scene.client, 4).await, RESTART);
}
