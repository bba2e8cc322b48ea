//! What a peer receives that reads, reads late, or does not read.

use std::sync::Arc;
use std::time::Duration;

use std::future::poll_fn;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::protocol::frame::websocket::MessageKind;
use crate::protocol::frame::websocket::testing::split;

const LIMIT: usize = 64 << 10;
const SEND_BUFFER: usize = 16 << 10;
/// A smaller value than a loopback segment would make TCP slow.
const RECEIVE_BUFFER: usize = 128 << 10;

/// An outbox over a socket with small buffers, and its peer.
async fn outbox() -> (Arc<SocketOutbox>, TcpStream) {
    outbox_with(LIMIT).await
}

async fn outbox_with(limit: usize) -> (Arc<SocketOutbox>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    SockRef::from(&listener)
        .set_recv_buffer_size(RECEIVE_BUFFER)
        .unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    SockRef::from(&stream)
        .set_send_buffer_size(SEND_BUFFER)
        .unwrap();
    stream.set_nodelay(true).unwrap();
    (
        Arc::new(SocketOutbox::new(stream, SocketFormat::Raw, limit)),
        peer,
    )
}

fn batch(messages: &[&[u8]]) -> Bytes {
    let mut frames = BytesMut::new();
    for message in messages {
        websocket::append_message(&mut frames, MessageKind::Binary, message);
    }
    frames.freeze()
}

fn numbered(number: u32, len: usize) -> Vec<u8> {
    let mut message = vec![0xab; len.max(4)];
    message[..4].copy_from_slice(&number.to_be_bytes());
    message
}

/// Acts as the client's task: writes what is queued, then shuts down the sending direction.
async fn flush_and_end(outbox: Arc<SocketOutbox>) {
    poll_fn(|cx| outbox.poll_flush(cx)).await;
    outbox.shut_down_write();
}

async fn read_all(mut peer: TcpStream) -> Vec<(u8, Bytes)> {
    let mut received = Vec::new();
    let read = peer.read_to_end(&mut received);
    timeout(Duration::from_secs(20), read)
        .await
        .unwrap()
        .unwrap();
    split(received.into())
}

/// How many buffers are queued.
fn queued(outbox: &SocketOutbox) -> usize {
    let output = outbox.output.lock();
    output.waiting().map_or(0, |backlog| backlog.queue.len())
}

/// How many bytes of the first of them are written.
fn head_sent(outbox: &SocketOutbox) -> usize {
    let output = outbox.output.lock();
    output.waiting().map_or(0, |backlog| backlog.head_sent)
}

fn close_code(frame: &(u8, Bytes)) -> u16 {
    assert_eq!(frame.0, 0x88, "a close frame");
    u16::from_be_bytes([frame.1[0], frame.1[1]])
}

#[tokio::test]
async fn a_socket_that_accepts_everything_has_no_queue() {
    let (outbox, peer) = outbox().await;
    outbox.send(&batch(&[b"one", b"two"]));
    assert!(outbox.output.lock().backlog.is_none());
    let (_, frames) = tokio::join!(flush_and_end(outbox), read_all(peer));
    assert_eq!(
        frames,
        [(0x82, Bytes::from("one")), (0x82, Bytes::from("two"))]
    );
}

#[tokio::test]
async fn held_back_messages_follow_the_reply() {
    let (outbox, peer) = outbox().await;
    outbox.send(&batch(&[b"before"]));
    let hold = outbox.hold();
    outbox.send(&batch(&[b"held"]));
    outbox.send_latest(1, &batch(&[b"too"]), batch(&[b"too"]), || true);
    outbox.release(hold, &batch(&[b"first"]));
    outbox.send(&batch(&[b"after"]));
    assert_eq!(outbox.bytes_queued(), 0);
    let (_, frames) = tokio::join!(flush_and_end(outbox), read_all(peer));
    let texts: Vec<_> = frames.iter().map(|(_, text)| &text[..]).collect();
    assert_eq!(texts, [&b"before"[..], b"first", b"held", b"too", b"after"]);
}

#[tokio::test]
async fn held_back_messages_count_and_a_close_is_not_held_back() {
    let (outbox, peer) = outbox().await;
    let _hold = outbox.hold();
    for number in 0..10 {
        outbox.send(&batch(&[&numbered(number, LIMIT / 4)]));
    }
    assert_eq!(outbox.disconnect(), Some(Disconnect::SLOW));
    let (_, frames) = tokio::join!(flush_and_end(outbox), read_all(peer));
    assert_eq!(frames.iter().map(close_code).collect::<Vec<_>>(), [3008]);
}

#[tokio::test]
async fn one_latest_message_is_queued_for_each_channel_and_none_is_cut() {
    let (outbox, peer) = outbox().await;
    let large = batch(&[&numbered(0, 1 << 20)]);
    outbox.send_latest(1, &large, large.clone(), || true);
    assert_ne!(
        head_sent(&outbox),
        0,
        "the test needs a partially written buffer"
    );
    for number in 1..1000 {
        for channel in [1, 2] {
            let newest = batch(&[&numbered(10 * number + channel, 5000)]);
            outbox.send_latest(channel.into(), &newest, newest.clone(), || true);
        }
        // The partially written one, and one of each channel.
        assert_eq!(queued(&outbox), 3);
    }
    let (_, frames) = tokio::join!(flush_and_end(outbox), read_all(peer));
    let number = |(_, data): &(u8, Bytes)| u32::from_be_bytes(data[..4].try_into().unwrap());
    assert_eq!(
        frames.iter().map(number).collect::<Vec<_>>(),
        [0, 9991, 9992]
    );
}

#[tokio::test]
async fn messages_not_meant_for_it_are_not_sent_and_the_newest_follows_what_was_kept() {
    let (outbox, peer) = outbox_with(usize::MAX).await;
    outbox.send_if(&batch(&[b"left"]), || false);
    let large = batch(&[&numbered(0, 1 << 20)]);
    outbox.send(&large);
    assert_ne!(
        head_sent(&outbox),
        0,
        "the test needs a partially written buffer"
    );
    let latest = |text: &[u8], is_meant: bool| {
        outbox.send_latest(7, &large, batch(&[text]), || is_meant);
    };
    latest(b"old", true);
    latest(b"left", false);
    outbox.keep_latest(7);
    outbox.send(&batch(&[b"reply"]));
    latest(b"skipped", true);
    latest(b"new", true);
    let (_, frames) = tokio::join!(flush_and_end(outbox), read_all(peer));
    let texts: Vec<_> = frames[1..].iter().map(|(_, text)| &text[..]).collect();
    assert_eq!(texts, [&b"old"[..], b"reply", b"new"]);
}

#[tokio::test]
async fn a_close_may_have_its_own_reason() {
    let (outbox, peer) = outbox().await;
    outbox.close_with_reason(Disconnect::GO_AWAY, &"ä".repeat(100));
    let (_, frames) = tokio::join!(flush_and_end(outbox), read_all(peer));
    assert_eq!(close_code(&frames[0]), 3000);
    assert_eq!(frames[0].1[2..], *"ä".repeat(61).as_bytes());
}

#[tokio::test]
async fn a_partially_written_frame_is_continued() {
    let (outbox, peer) = outbox_with(usize::MAX).await;
    // Larger than kernel buffers, so that it is partially written on every machine.
    outbox.send(&batch(&[&numbered(0, 1 << 20)]));
    let mut sent = 1;
    while queued(&outbox) < 200 {
        outbox.send(&batch(&[&numbered(sent, 5000), &numbered(sent + 1, 7)]));
        sent += 2;
    }
    assert_ne!(
        head_sent(&outbox),
        0,
        "the test needs a partially written buffer"
    );
    let (_, frames) = tokio::join!(flush_and_end(Arc::clone(&outbox)), read_all(peer));
    let numbers: Vec<u32> = frames
        .iter()
        .map(|(_, payload)| u32::from_be_bytes(payload[..4].try_into().unwrap()))
        .collect();
    assert_eq!(numbers, (0..sent).collect::<Vec<_>>());
    assert!(outbox.output.lock().backlog.is_none());
}

#[tokio::test]
async fn a_peer_that_does_not_read_gets_the_rest_of_a_frame_and_a_code_to_reconnect() {
    let (outbox, peer) = outbox().await;
    let mut sent = 0;
    while outbox.state() == SocketState::Open {
        outbox.send(&batch(&[&numbered(sent, 3000), &numbered(sent + 1, 3000)]));
        sent += 2;
        assert!(sent < 1000, "the limit must disconnect it");
    }
    assert_eq!(outbox.disconnect(), Some(Disconnect::SLOW));
    assert!(outbox.bytes_queued() < 4000, "the queue is freed at once");
    outbox.send(&batch(&[b"too late"]));

    let (_, frames) = tokio::join!(flush_and_end(outbox), read_all(peer));
    let (last, data) = frames.split_last().unwrap();
    assert_eq!(close_code(last), 3008);
    assert!(!data.is_empty() && data.len() < sent as usize);
    for (number, (first, payload)) in data.iter().enumerate() {
        assert_eq!(
            (*first, payload),
            (0x82, &Bytes::from(numbered(number as u32, 3000)))
        );
    }
}

#[tokio::test]
async fn one_large_message_does_not_disconnect_a_client_that_reads() {
    let (outbox, peer) = outbox().await;
    outbox.send(&batch(&[&numbered(0, 16 * LIMIT)]));
    assert_eq!(outbox.state(), SocketState::Open);
    outbox.send(&batch(&[b"another"]));
    assert_eq!(
        outbox.disconnect(),
        Some(Disconnect::SLOW),
        "the queue is over its limit now"
    );
    let (_, frames) = tokio::join!(flush_and_end(outbox), read_all(peer));
    assert_eq!(frames[0].1.len(), 16 * LIMIT);
    assert_eq!(close_code(&frames[1]), 3008);
}

#[tokio::test]
async fn nothing_is_sent_after_a_close_frame() {
    let (outbox, peer) = outbox().await;
    outbox.send(&batch(&[b"data"]));
    outbox.close(Disconnect::RESTART);
    outbox.close(Disconnect::NO_PONG);
    outbox.send(&batch(&[b"late"]));
    outbox.send_last(&batch(&[b"late"]));
    assert_eq!(
        outbox.disconnect(),
        Some(Disconnect::RESTART),
        "the first reason stays"
    );
    let (_, frames) = tokio::join!(flush_and_end(outbox), read_all(peer));
    assert_eq!(frames.len(), 2);
    assert_eq!(close_code(&frames[1]), 1012);
}

#[tokio::test]
async fn a_close_frame_follows_what_was_queued_before_it() {
    let (outbox, peer) = outbox().await;
    let mut sent = 0;
    while queued(&outbox) < 2 {
        outbox.send(&batch(&[&numbered(sent, 3000)]));
        sent += 1;
    }
    outbox.close(Disconnect::RESTART);
    let (_, frames) = tokio::join!(flush_and_end(outbox), read_all(peer));
    assert_eq!(frames.len(), sent as usize + 1);
    assert_eq!(close_code(frames.last().unwrap()), 1012);
}

#[tokio::test]
async fn a_failed_socket_wakes_its_task_and_accepts_nothing_more() {
    let (outbox, peer) = outbox().await;
    SockRef::from(&peer)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(peer); // A reset.
    while outbox.state() == SocketState::Open {
        outbox.send(&batch(&[&[0; 4000]]));
        tokio::task::yield_now().await;
    }
    assert_eq!(outbox.state(), SocketState::Dead);
    timeout(Duration::from_secs(5), poll_fn(|cx| outbox.poll_flush(cx)))
        .await
        .unwrap();
    assert_eq!(outbox.bytes_queued(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn frames_of_many_senders_never_interleave() {
    const SENDERS: u32 = 4;
    const FRAMES: u32 = 300;
    let (outbox, peer) = outbox().await;
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        let outbox = Arc::clone(&outbox);
        senders.spawn(async move {
            for number in 0..FRAMES {
                while LIMIT / 2 < outbox.bytes_queued() {
                    tokio::task::yield_now().await;
                }
                let message = numbered(sender << 16 | number, 1 + (number as usize * 37) % 3000);
                outbox.send(&batch(&[&message]));
            }
        });
    }
    let task = async {
        let mut ended = false;
        poll_fn(|cx| {
            while !ended
                && senders
                    .poll_join_next(cx)
                    .map(|next| ended = next.is_none())
                    .is_ready()
            {}
            let flushed = outbox.poll_flush(cx);
            if ended { flushed } else { Poll::Pending }
        })
        .await;
        outbox.shut_down_write();
    };
    let (_, frames) = tokio::join!(task, read_all(peer));
    assert_eq!(frames.len(), (SENDERS * FRAMES) as usize);
    let mut next = [0; SENDERS as usize];
    for (_, payload) in frames {
        let number = u32::from_be_bytes(payload[..4].try_into().unwrap());
        let sender = (number >> 16) as usize;
        assert_eq!(
            number & 0xffff,
            next[sender],
            "the order of one sender is kept"
        );
        next[sender] += 1;
    }
}
