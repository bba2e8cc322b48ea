//! Disconnects by the node, and clients that do not complete the close handshake.

use super::*;
use crate::config::PublishRate;
use crate::protocol::disconnect::Disconnect;

/// Replies to our close frame as RFC 6455 requires, and expects the end of TCP.
async fn completes_the_close_handshake(mut peer: Peer, expected: &[(u8, Bytes)]) {
    let (_, last) = expected.last().unwrap();
    let reason = std::str::from_utf8(&last[2..]).unwrap().to_owned();
    assert_eq!(peer.read_until(&reason).await, expected);
    peer.send(&masked(0x88, last)).await;
    assert_eq!(peer.read_to_end().await, []);
}

#[tokio::test]
async fn a_client_that_violates_a_limit_gets_the_reason() {
    let rate = PublishRate {
        per_second: 1,
        burst: 1,
    };
    for (endpoint, before, disconnect) in [
        (
            endpoint("/ws", |it| it.read_only = true),
            vec![],
            Disconnect::READ_ONLY,
        ),
        (
            endpoint("/ws", |it| {
                it.mode = Mode::Echo;
                it.publish_rate = Some(rate);
            }),
            vec![text("a")],
            Disconnect::RATE,
        ),
    ] {
        let mut node = Node::start();
        let mut peer = node.connect(&endpoint, Transport::Websocket).await;
        peer.send(&[masked_text("a"), masked_text("b"), masked_text("c")].concat())
            .await;
        let expected = [before, vec![close(disconnect)]].concat();
        completes_the_close_handshake(peer, &expected).await;
        node.all_served().await;
        let (code, reason) = (disconnect.code, disconnect.name);
        let counted = format!("disconnects_total{{code=\"{code}\",reason=\"{reason}\"}} 1");
        assert!(node.metrics.render().contains(&counted), "{counted}");
    }
}

#[tokio::test]
async fn a_draining_node_disconnects_all_clients_and_new_ones_too() {
    let mut node = Node::start();
    let (plain, sockjs) = (echo(), endpoint("/sockjs", |_| {}));
    node.start_run(&plain);
    let mut peer = node.connect(&plain, Transport::Websocket).await;
    let mut framed = node.connect(&sockjs, Transport::SockjsWebsocket).await;
    peer.send(&masked_text("here")).await;
    peer.read_until("here").await;
    framed.read_until("o").await;

    node.shutdown.cancel();
    completes_the_close_handshake(peer, &[close(Disconnect::RESTART)]).await;
    let disconnect_message = [
        text("c[1012,\"service restart\"]"),
        close(Disconnect::RESTART),
    ];
    completes_the_close_handshake(framed, &disconnect_message).await;
    let late = node.connect(&plain, Transport::Websocket).await;
    completes_the_close_handshake(late, &[close(Disconnect::RESTART)]).await;
    node.all_served().await;
}

#[tokio::test]
async fn messages_of_a_client_that_is_being_disconnected_are_ignored() {
    let mut node = Node::start();
    let endpoint = echo();
    node.start_run(&endpoint);
    let mut peer = node.connect(&endpoint, Transport::Websocket).await;
    peer.send(&masked_text("here")).await;
    peer.read_until("here").await;
    node.shutdown.cancel();
    peer.read_until(Disconnect::RESTART.reason).await;
    peer.send(
        &[
            masked_text("late"),
            masked(0x89, b"ping"),
            masked_close(1012),
        ]
        .concat(),
    )
    .await;
    assert_eq!(peer.read_to_end().await, []);
    node.all_served().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_reply_to_the_close_frame_is_disconnected() {
    let mut node = Node::start();
    let endpoint = endpoint("/ws", |it| it.read_only = true);
    let mut peer = node.connect(&endpoint, Transport::Websocket).await;
    peer.send(&masked_text("a")).await;
    assert_eq!(peer.read_to_end().await, [close(Disconnect::READ_ONLY)]);
    node.all_served().await;
}

#[tokio::test]
async fn a_client_that_responds_to_pings_stays_and_a_silent_one_is_disconnected() {
    let mut node = Node::start();
    let endpoint = endpoint("/ws", |it| {
        it.mode = Mode::Echo;
        it.ping = Ping {
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(400),
        };
    });
    node.start_run(&endpoint);
    let mut silent = node.connect(&endpoint, Transport::Websocket).await;
    let mut alive = node.connect(&endpoint, Transport::Websocket).await;
    let pongs = async {
        for _ in 0..8 {
            let mut ping = [0; 2];
            alive.0.read_exact(&mut ping).await.unwrap();
            assert_eq!(ping, [0x89, 0]);
            alive.send(&masked(0x8a, b"")).await;
        }
    };
    let silence = async {
        let frames = silent.read_until(Disconnect::NO_PONG.reason).await;
        assert_eq!(frames, [(0x89, Bytes::new()), close(Disconnect::NO_PONG)]);
    };
    timeout(DEADLINE, async { tokio::join!(pongs, silence) })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_no_state() {
    let mut node = Node::start();
    let endpoint = endpoint("/ws", |_| {});
    let mut peer = node.connect(&endpoint, Transport::Websocket).await;
    peer.send(&masked_text("here")).await;
    peer.read_until("here").await;
    assert!(
        node.metrics
            .render()
            .contains("clients{transport=\"websocket\"} 1")
    );
    socket2::SockRef::from(&peer.0)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(peer);
    node.all_served().await;
    assert!(
        node.metrics
            .render()
            .contains("clients{transport=\"websocket\"} 0")
    );
}
