//! Messages between clients, and the effect of a full publish queue or socket on their sender.

use super::*;

const LARGE: usize = 200_000;

#[tokio::test]
async fn a_message_reaches_each_client_in_its_own_format() {
    let mut node = Node::start();
    let (plain, sockjs) = (endpoint("/ws", |_| {}), endpoint("/sockjs", |_| {}));
    let mut one = node.connect(&plain, Transport::Websocket).await;
    let mut two = node.connect(&sockjs, Transport::SockjsWebsocket).await;
    let mut three = node.connect(&sockjs, Transport::SockjsRaw).await;
    one.send(&masked_text("first")).await;
    one.read_until("first").await;
    two.read_until("a[\"first\"]").await;
    three.read_until("first").await;
    two.send(&masked_text(r#"["second"]"#)).await;
    assert_eq!(one.read_until("second").await, [text("second")]);
    assert_eq!(two.read_until("]").await, [text(r#"a["second"]"#)]);
    assert_eq!(three.read_until("second").await, [text("second")]);
}

#[tokio::test]
async fn binary_that_is_not_text_stays_binary() {
    let mut node = Node::start();
    let endpoint = endpoint("/ws", |_| {});
    let mut peer = node.connect(&endpoint, Transport::Websocket).await;
    peer.send(&[masked(0x82, &[0xff]), masked_text("end")].concat())
        .await;
    let received = peer.read_until("end").await;
    assert_eq!(received, [(0x82, Bytes::from_static(&[0xff])), text("end")]);
}

#[tokio::test]
async fn a_full_publish_queue_pauses_its_sender_and_loses_and_reorders_nothing() {
    for (path, transport) in [
        ("/ws", Transport::Websocket),
        ("/sockjs", Transport::SockjsWebsocket),
    ] {
        let mut node = Node::start();
        let endpoint = endpoint(path, |_| {});
        let framed = |number: u32| match transport {
            Transport::SockjsWebsocket => masked_text(&format!("[\"{number} \",\"{number}\"]")),
            _ => masked_text(&number.to_string()),
        };
        let mut peer = node.connect(&endpoint, transport).await;
        *node.fake.open.lock() = false;
        // All in one write: one read returns many, and the reader has to stop between them.
        let frames: Vec<u8> = (0..5000).flat_map(framed).collect();
        let half_a_frame = frames.len() - 3;
        peer.send(&frames[..half_a_frame]).await;
        timeout(DEADLINE, node.fake.waited.notified())
            .await
            .unwrap();
        *node.fake.open.lock() = true;
        node.fake.opened.notify_waiters();
        peer.send(&frames[half_a_frame..]).await;

        let last = if transport == Transport::Websocket {
            "4999"
        } else {
            "[\"4999\"]"
        };
        let numbers: Vec<u32> = peer
            .read_until(last)
            .await
            .iter()
            .filter(|(_, payload)| payload != "o")
            .map(|(_, payload)| std::str::from_utf8(payload).unwrap())
            .map(|text| {
                text.trim_matches(|c: char| !c.is_ascii_digit())
                    .parse()
                    .unwrap()
            })
            .collect();
        let copies = if transport == Transport::Websocket {
            1
        } else {
            2
        };
        assert_eq!(
            numbers,
            (0..5000 * copies).map(|n| n / copies).collect::<Vec<u32>>()
        );
    }
}

#[tokio::test]
async fn a_client_that_waits_for_room_can_still_be_disconnected() {
    let mut node = Node::start();
    let endpoint = endpoint("/ws", |_| {});
    node.start_run(&endpoint);
    let mut peer = node.connect(&endpoint, Transport::Websocket).await;
    *node.fake.open.lock() = false;
    peer.send(&[masked_text("a"), masked_text("b"), masked_close(1001)].concat())
        .await;
    timeout(DEADLINE, node.fake.waited.notified())
        .await
        .unwrap();
    node.shutdown.cancel();
    let frames = peer.read_to_end().await;
    assert_eq!(
        frames,
        [close(crate::protocol::disconnect::Disconnect::RESTART)]
    );
    node.all_served().await;
}

#[tokio::test]
async fn a_client_that_waits_for_room_is_not_disconnected_as_silent() {
    let mut node = Node::start();
    let endpoint = endpoint("/ws", |it| {
        it.ping = Ping {
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(100),
        };
    });
    node.start_run(&endpoint);
    let mut peer = node.connect(&endpoint, Transport::Websocket).await;
    *node.fake.open.lock() = false;
    peer.send(&[masked_text("a"), masked_text("b")].concat())
        .await;
    timeout(DEADLINE, node.fake.waited.notified())
        .await
        .unwrap();
    // Several times as long as a client may be silent while reading is not paused.
    tokio::time::sleep(Duration::from_secs(1)).await;
    *node.fake.open.lock() = true;
    node.fake.opened.notify_waiters();
    assert_eq!(peer.read_until("b").await, [text("a"), text("b")]);
}

#[tokio::test]
async fn an_echo_client_that_reads_late_is_paused_and_gets_everything() {
    let mut node = Node::start();
    let endpoint = endpoint("/ws", |it| {
        it.mode = Mode::Echo;
        it.message_bytes_max = LARGE;
        it.outbox_bytes_max = 1024;
    });
    let mut peer = node.connect(&endpoint, Transport::Websocket).await;
    let (mut reading, mut writing) = peer.0.split();
    let message = vec![b'x'; LARGE];
    let frame = masked(0x81, &message);
    // More than all kernel buffers hold: the writer blocks before the reader begins.
    let mut written = 0;
    let write = async {
        for _ in 0..100 {
            writing.write_all(&frame).await.unwrap();
            written += 1;
        }
        writing.write_all(&masked_close(1000)).await.unwrap();
    };
    let mut received = Vec::new();
    let late = async {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        reading.read_to_end(&mut received).await.unwrap();
    };
    timeout(DEADLINE, async { tokio::join!(write, late) })
        .await
        .unwrap();
    let frames = split(received.into());
    assert_eq!(frames.len(), written + 1);
    assert!(
        frames[..written]
            .iter()
            .all(|(_, payload)| *payload == message)
    );
}

/// One read brings the end of the large message and all of the small one, which must not meet an outbox that is full.
#[tokio::test]
async fn a_small_message_after_a_large_one_is_echoed_too() {
    let mut node = Node::start();
    let endpoint = endpoint("/ws", |it| {
        it.mode = Mode::Echo;
        it.message_bytes_max = 16 << 20;
        it.outbox_bytes_max = 1024;
    });
    let mut peer = node.connect(&endpoint, Transport::Websocket).await;
    let (mut reading, mut writing) = peer.0.split();
    // More than the kernel buffers hold.
    let large = vec![b'x'; 16 << 20];
    let sent = [
        masked(0x82, &large),
        masked_text("small"),
        masked_close(1000),
    ]
    .concat();
    let mut received = Vec::new();
    let write = writing.write_all(&sent);
    let read = reading.read_to_end(&mut received);
    timeout(DEADLINE, async { tokio::try_join!(write, read) })
        .await
        .unwrap()
        .unwrap();
    let frames = split(received.into());
    assert_eq!(frames[0].1, large);
    let end = (0x88, Bytes::from_static(&[0x03, 0xe8]));
    assert_eq!(frames[1..], [text("small"), end]);
}
