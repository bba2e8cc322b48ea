//! Order, completeness and subscriptions, with members of every kind that join and leave.

use std::future::poll_fn;
use std::ops::Range;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::task;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::broker::NotReady;
use crate::broker::PublishError;
use crate::broker::TryPublishError;
use crate::hub::outbox::QueueFormat;
use crate::hub::outbox::QueueOutbox;
use crate::hub::outbox::SocketOutbox;
use crate::protocol;
use crate::protocol::Event;
use crate::protocol::Reply;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::frame::websocket::SocketFormat;
use crate::protocol::frame::websocket::testing::split;

const DEADLINE: Duration = Duration::from_secs(20);

/// A broker that records subscribe and unsubscribe calls.
#[derive(Default)]
struct RecordingBroker(Mutex<Vec<String>>);

#[async_trait]
impl Broker for RecordingBroker {
    fn try_publish(&self, _: &ChannelName, _: Bytes) -> Result<(), TryPublishError> {
        Ok(())
    }

    async fn publish(&self, _: &ChannelName, _: Bytes) -> Result<(), PublishError> {
        Ok(())
    }

    fn subscribe(&self, channel: &ChannelName) {
        self.0.lock().push(format!("+{channel}"));
    }

    fn unsubscribe(&self, channel: &ChannelName) {
        self.0.lock().push(format!("-{channel}"));
    }

    fn readiness(&self) -> Result<(), NotReady> {
        Ok(())
    }
}

struct Running {
    hub: Arc<Hub>,
    subscriptions: Arc<RecordingBroker>,
    metrics: Arc<Metrics>,
    _task: JoinSet<()>,
}

fn fanout() -> Fanout {
    Fanout {
        window: Duration::from_millis(2),
        factor: 2.7,
        batch_bytes_max: 256 << 10,
    }
}

fn stopped(fanout: Fanout, pinned: &[&str]) -> (Arc<Hub>, Arc<Metrics>) {
    let metrics = Metrics::new();
    let pinned = pinned.iter().map(|&channel| name(channel)).collect();
    (
        Hub::new(HubConfig { fanout, pinned }, Arc::clone(&metrics)),
        metrics,
    )
}

fn running(pinned: &[&str]) -> Running {
    let (hub, metrics) = stopped(fanout(), pinned);
    let subscriptions = Arc::new(RecordingBroker::default());
    let mut task = JoinSet::new();
    let broker: Arc<dyn Broker> = Arc::clone(&subscriptions) as _;
    task.spawn(Arc::clone(&hub).run(broker, CancellationToken::new()));
    Running {
        hub,
        subscriptions,
        metrics,
        _task: task,
    }
}

fn name(channel: &str) -> ChannelName {
    ChannelName::new(channel).unwrap()
}

fn publish(hub: &Hub, channel: &str, data: impl Into<Bytes>) {
    hub.deliver(vec![Publication {
        channel: name(channel),
        data: data.into(),
    }]);
}

fn queue() -> Arc<QueueOutbox> {
    Arc::new(QueueOutbox::new(64 << 20))
}

/// Waits until `outbox` contains `last`, and returns all that was in it.
async fn take_until(outbox: &QueueOutbox, last: &str) -> Vec<Bytes> {
    let mut taken = Vec::new();
    let read = async {
        while taken.last().is_none_or(|message| message != last) {
            outbox.wait().await;
            taken.extend(outbox.take(usize::MAX));
        }
    };
    timeout(DEADLINE, read).await.unwrap();
    taken
}

async fn until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            task::yield_now().await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap();
}

/// A WebSocket member whose task only writes, and its peer.
async fn socket(format: SocketFormat, tasks: &mut JoinSet<()>) -> (Arc<SocketOutbox>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    SockRef::from(&stream)
        .set_send_buffer_size(16 << 10)
        .unwrap();
    let outbox = Arc::new(SocketOutbox::new(stream, format, 256 << 10));
    let flushed = Arc::clone(&outbox);
    tasks.spawn(async move {
        poll_fn(|cx| {
            let _ = flushed.poll_flush(cx);
            Poll::<()>::Pending
        })
        .await;
    });
    (outbox, peer)
}

/// Reads messages until the last one is `last`.
async fn read_until(peer: &mut TcpStream, last: &str) -> Vec<(u8, Bytes)> {
    read_frames_until(peer, last.as_bytes()).await
}

/// Reads messages until they end in `last`.
async fn read_frames_until(peer: &mut TcpStream, last: &[u8]) -> Vec<(u8, Bytes)> {
    let mut received = Vec::new();
    let read = async {
        while !received.ends_with(last) {
            assert_ne!(
                peer.read_buf(&mut received).await.unwrap(),
                0,
                "the connection ended first"
            );
        }
    };
    timeout(DEADLINE, read).await.unwrap();
    split(received.into())
}

fn lines() -> Arc<QueueOutbox> {
    queue_of(QueueFormat::JsonLine)
}

fn queue_of(format: QueueFormat) -> Arc<QueueOutbox> {
    Arc::new(QueueOutbox::with_format(format, 64 << 20))
}

fn pushed(channel: &str, data: &str) -> Push {
    let publication = protocol::Publication {
        data: Bytes::copy_from_slice(data.as_bytes()),
        ..protocol::Publication::default()
    };
    Push::new(channel, Event::Publication(publication))
}

#[tokio::test]
async fn each_member_gets_a_push_once_in_its_own_codec() {
    let running = running(&[]);
    let mut tasks = JoinSet::new();
    let (json, mut json_peer) = socket(SocketFormat::Json, &mut tasks).await;
    let (protobuf, mut protobuf_peer) = socket(SocketFormat::Protobuf, &mut tasks).await;
    let (queue, delimited) = (lines(), queue_of(QueueFormat::Delimited));
    let channel = name("a");
    let members = [
        Member::Socket(json),
        Member::Socket(protobuf),
        Member::Queue(Arc::clone(&queue)),
        Member::Queue(Arc::clone(&delimited)),
    ];
    let join = |member| {
        running
            .hub
            .join_stream(&channel, member, SlowReader::Disconnect)
    };
    let _members = members.map(join);
    let pushes = [pushed("news", "1"), pushed("news", "\"end\"")];
    for push in &pushes {
        running.hub.deliver_push(&channel, push);
        running.hub.deliver_push(&name("other"), push);
    }
    let text = [
        r#"{"push":{"channel":"news","pub":{"data":1}}}"#,
        r#"{"push":{"channel":"news","pub":{"data":"end"}}}"#,
    ];
    assert_eq!(take_until(&queue, text[1]).await, text);
    let expected = text.map(|text| (0x81, Bytes::from(text)));
    assert_eq!(read_until(&mut json_peer, text[1]).await, expected);
    let expected = pushes.map(|push| {
        let mut body = BytesMut::new();
        protocol::protobuf::append_reply(&mut body, &Reply::push(push));
        (0x82, body.freeze())
    });
    let last = [&expected[1].1[..]].concat();
    assert_eq!(read_frames_until(&mut protobuf_peer, &last).await, expected);
    let mut taken = Vec::new();
    while taken.len() < expected.len() {
        timeout(DEADLINE, delimited.wait()).await.unwrap();
        taken.append(&mut delimited.take(usize::MAX));
    }
    assert_eq!(taken, expected.map(|(_, body)| body));
    assert!(
        running.subscriptions.0.lock().is_empty(),
        "the hub does not subscribe channels of streams"
    );
}

#[tokio::test]
async fn a_push_that_is_not_json_reaches_only_protobuf_members() {
    let running = running(&[]);
    let mut tasks = JoinSet::new();
    let (protobuf, mut peer) = socket(SocketFormat::Protobuf, &mut tasks).await;
    let queue = lines();
    let channel = name("a");
    let members = [Member::Socket(protobuf), Member::Queue(Arc::clone(&queue))];
    let join = |member| {
        running
            .hub
            .join_stream(&channel, member, SlowReader::Disconnect)
    };
    let _members = members.map(join);
    running.hub.deliver_push(&channel, &pushed("a", "no json"));
    running.hub.deliver_push(&channel, &pushed("a", "2"));
    assert_eq!(read_frames_until(&mut peer, b"\x22\x012").await.len(), 2);
    let line = r#"{"push":{"channel":"a","pub":{"data":2}}}"#;
    assert_eq!(take_until(&queue, line).await, [line]);
    let dropped = "dropped_total{reason=\"not_json\"} 1";
    assert!(running.metrics.render().contains(dropped));
}

#[tokio::test]
async fn a_slow_reader_of_the_latest_gets_the_newest_and_stays() {
    let running = running(&[]);
    let mut tasks = JoinSet::new();
    let (json, mut peer) = socket(SocketFormat::Json, &mut tasks).await;
    let channel = name("a");
    let member = Member::Socket(Arc::clone(&json));
    let _member = running
        .hub
        .join_stream(&channel, member, SlowReader::Latest);
    let large = format!("\"{}\"", "x".repeat(10_000));
    // Many times the limit of the outbox, and far more than the kernel buffers.
    for _ in 0..2000 {
        running.hub.deliver_push(&channel, &pushed("a", &large));
        task::yield_now().await;
    }
    until(|| !json.is_idle()).await;
    running.hub.deliver_push(&channel, &pushed("a", "\"end\""));
    let last = r#"{"push":{"channel":"a","pub":{"data":"end"}}}"#;
    let read = read_until(&mut peer, last).await;
    assert!(read.len() < 2000, "{} came", read.len());
    assert_eq!(json.disconnect(), None);
}

#[tokio::test]
async fn each_member_gets_a_publication_once_in_its_own_format() {
    let running = running(&[]);
    let mut tasks = JoinSet::new();
    let (raw, mut raw_peer) = socket(SocketFormat::Raw, &mut tasks).await;
    let (sockjs, mut sockjs_peer) = socket(SocketFormat::Sockjs, &mut tasks).await;
    let quoted = queue();
    let channel = name("a");
    let _members = [
        running.hub.join(&channel, Member::Socket(raw)),
        running.hub.join(&channel, Member::Socket(sockjs)),
        running
            .hub
            .join(&channel, Member::Queue(Arc::clone(&quoted))),
    ];
    publish(&running.hub, "a", "say \"hi\"");
    publish(&running.hub, "other", "not for them");
    publish(&running.hub, "a", "end");
    assert_eq!(
        take_until(&quoted, "\"end\"").await,
        [r#""say \"hi\"""#, r#""end""#]
    );
    assert_eq!(
        read_until(&mut raw_peer, "end").await,
        [
            (0x81, Bytes::from(r#"say "hi""#)),
            (0x81, Bytes::from("end"))
        ],
    );
    assert_eq!(
        read_until(&mut sockjs_peer, "a[\"end\"]").await,
        [
            (0x81, Bytes::from(r#"a["say \"hi\""]"#)),
            (0x81, Bytes::from(r#"a["end"]"#))
        ],
    );
}

#[tokio::test]
async fn bytes_that_are_not_utf8_are_binary_on_websockets_and_dropped_and_counted_on_sockjs() {
    let running = running(&[]);
    let mut tasks = JoinSet::new();
    let (raw, mut raw_peer) = socket(SocketFormat::Raw, &mut tasks).await;
    let quoted = queue();
    let channel = name("a");
    let _members = [
        running.hub.join(&channel, Member::Socket(raw)),
        running
            .hub
            .join(&channel, Member::Queue(Arc::clone(&quoted))),
    ];
    publish(&running.hub, "a", Bytes::from_static(&[0xff, 0xfe]));
    publish(&running.hub, "a", "end");
    assert_eq!(take_until(&quoted, "\"end\"").await, ["\"end\""]);
    let received = read_until(&mut raw_peer, "end").await;
    assert_eq!(received[0], (0x82, Bytes::from_static(&[0xff, 0xfe])));
    let dropped = "dropped_total{reason=\"not_utf8\"} 1";
    until(|| running.metrics.render().contains(dropped)).await;
}

/// What a member of the test below received, and what it must have received at least.
struct Witness {
    outbox: Arc<QueueOutbox>,
    expected: Range<u32>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_receives_everything_between_its_join_and_its_leave_and_nothing_earlier() {
    let running = running(&[]);
    let channel = name("a");
    let mut random = fastrand::Rng::with_seed(7);
    let mut members: Vec<(Subscriber, Witness)> = Vec::new();
    let mut left = Vec::new();
    let mut next = 0;
    for step in 0..20_000 {
        match random.u32(..10) {
            0 if members.len() < 700 => {
                let outbox = queue();
                let membership = running
                    .hub
                    .join(&channel, Member::Queue(Arc::clone(&outbox)));
                members.push((
                    membership,
                    Witness {
                        outbox,
                        expected: next..u32::MAX,
                    },
                ));
            }
            1 if !members.is_empty() => {
                let (membership, mut witness) = members.swap_remove(random.usize(..members.len()));
                witness.expected.end = next;
                membership.flushed(DEADLINE).await;
                drop(membership);
                left.push(witness);
            }
            _ => {
                publish(&running.hub, "a", next.to_string());
                next += 1;
            }
        }
        if step % 50 == 0 {
            task::yield_now().await;
        }
    }
    let outbox = queue();
    let last = running
        .hub
        .join(&channel, Member::Queue(Arc::clone(&outbox)));
    publish(&running.hub, "a", next.to_string());
    take_until(&outbox, &format!("\"{next}\"")).await;
    // Members get a batch in the order of their ids; once the next one arrives, this one is complete.
    publish(&running.hub, "a", (next + 1).to_string());
    take_until(&outbox, &format!("\"{}\"", next + 1)).await;
    drop(last);
    for (_, witness) in &mut members {
        witness.expected.end = next + 1;
    }
    let stayed = members.into_iter().map(|(_, witness)| witness);
    let mut seen = 0;
    for witness in stayed.chain(left) {
        let received: Vec<u32> = witness
            .outbox
            .take(usize::MAX)
            .iter()
            .map(|message| {
                std::str::from_utf8(message)
                    .unwrap()
                    .trim_matches('"')
                    .parse()
                    .unwrap()
            })
            .collect();
        let Range { start, end } = witness.expected;
        let count = (end - start) as usize;
        assert!(
            count <= received.len(),
            "{start}..{end}: received {}",
            received.len()
        );
        assert!(
            received[..count].iter().copied().eq(start..end),
            "{start}..{end}"
        );
        // Members that have stayed may not have received the last one yet.
        let most = if end <= next { count } else { count + 1 };
        assert!(
            received.len() <= most,
            "{start}..{end}: received {}",
            received.len()
        );
        seen += 1;
    }
    assert!(
        1000 < seen,
        "the test needs members that join and leave, not {seen}"
    );
}

#[tokio::test]
async fn readers_that_do_not_read_delay_nobody_and_are_disconnected() {
    let running = running(&[]);
    let mut tasks = JoinSet::new();
    let channel = name("a");
    let (mut memberships, mut good, mut bad) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..12 {
        let (outbox, peer) = socket(SocketFormat::Raw, &mut tasks).await;
        memberships.push(
            running
                .hub
                .join(&channel, Member::Socket(Arc::clone(&outbox))),
        );
        if index % 3 == 0 {
            bad.push((outbox, peer));
        } else {
            good.push((outbox, peer));
        }
    }
    let mut readers = JoinSet::new();
    let good: Vec<_> = good
        .into_iter()
        .map(|(outbox, mut peer)| {
            readers.spawn(async move { read_until(&mut peer, "end").await });
            outbox
        })
        .collect();
    until(|| running.hub.listed.lock().is_empty()).await; // All of them have sat down.
    let mut sent = Vec::new();
    while bad.iter().any(|(outbox, _)| outbox.disconnect().is_none()) {
        assert!(
            sent.len() < 20_000,
            "the limit must disconnect clients that do not read"
        );
        let message = Bytes::from(format!("{}{}", sent.len(), "x".repeat(10_000)));
        publish(&running.hub, "a", message.clone());
        sent.push((0x81, message));
        // Publish no faster than the clients that read can follow.
        let due = 12 * sent.len() as u64;
        until(|| {
            due <= running.metrics.deliveries.get() && good.iter().all(|outbox| outbox.is_idle())
        })
        .await;
    }
    publish(&running.hub, "a", "end");
    sent.push((0x81, Bytes::from("end")));
    while let Some(received) = readers.join_next().await {
        assert!(
            received.unwrap() == sent,
            "a client that reads gets everything in order"
        );
    }
    assert!(good.iter().all(|outbox| outbox.disconnect().is_none()));
    assert!(
        bad.iter()
            .all(|(outbox, _)| outbox.disconnect() == Some(Disconnect::SLOW))
    );
}

#[tokio::test]
async fn the_first_member_subscribes_and_the_last_unsubscribes() {
    let running = running(&[]);
    let subscriptions = || running.subscriptions.0.lock().join(" ");
    let first = running.hub.join(&name("a"), Member::Queue(queue()));
    let second = running.hub.join(&name("a"), Member::Queue(queue()));
    until(|| subscriptions() == "+a").await;
    drop(first);
    let other = running.hub.join(&name("b"), Member::Queue(queue()));
    until(|| subscriptions() == "+a +b").await;
    drop(second);
    until(|| subscriptions() == "+a +b -a").await;
    let _again = running.hub.join(&name("a"), Member::Queue(queue()));
    until(|| subscriptions() == "+a +b -a +a").await;
    drop(other);
    until(|| subscriptions() == "+a +b -a +a -b").await;
    assert_eq!(running.hub.channels.read().len(), 1);
}

#[tokio::test]
async fn a_pinned_channel_is_subscribed_before_and_after_its_members() {
    let running = running(&["a"]);
    until(|| *running.subscriptions.0.lock() == ["+a"]).await;
    let outbox = queue();
    let member = running
        .hub
        .join(&name("a"), Member::Queue(Arc::clone(&outbox)));
    publish(&running.hub, "a", "end");
    take_until(&outbox, "\"end\"").await;
    drop(member);
    let other = running.hub.join(&name("b"), Member::Queue(queue()));
    drop(other);
    until(|| {
        running
            .subscriptions
            .0
            .lock()
            .last()
            .is_some_and(|last| last == "-b")
    })
    .await;
    assert!(!running.subscriptions.0.lock().contains(&"-a".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_quiet_channel_is_not_delayed_by_a_long_window_of_another() {
    let (hub, _) = stopped(
        Fanout {
            window: Duration::from_secs(1),
            ..fanout()
        },
        &[],
    );
    let mut tasks = JoinSet::new();
    let broker: Arc<dyn Broker> = Arc::new(RecordingBroker::default());
    tasks.spawn(Arc::clone(&hub).run(broker, CancellationToken::new()));
    let (loud, quiet) = (queue(), queue());
    let _members = [
        hub.join(&name("loud"), Member::Queue(Arc::clone(&loud))),
        hub.join(&name("quiet"), Member::Queue(Arc::clone(&quiet))),
    ];
    publish(&hub, "loud", "first");
    take_until(&loud, "\"first\"").await;
    let began = tokio::time::Instant::now();
    publish(&hub, "loud", "end");
    publish(&hub, "quiet", "end");
    take_until(&quiet, "\"end\"").await;
    assert!(began.elapsed() <= Duration::from_millis(1));
    take_until(&loud, "\"end\"").await;
}

#[tokio::test]
async fn the_batch_of_a_stalled_hub_is_bounded_and_drops_are_counted() {
    let fanout = Fanout {
        batch_bytes_max: 100,
        ..fanout()
    };
    let (hub, metrics) = stopped(fanout, &[]);
    let outbox = queue();
    let _member = hub.join(&name("a"), Member::Queue(Arc::clone(&outbox)));
    for number in 100..200 {
        publish(&hub, "a", format!("{number}{}", "x".repeat(95)));
    }
    let listed = hub.listed.lock().len();
    assert_eq!(listed, 2, "once, and once more because it is full");
    let mut task = JoinSet::new();
    task.spawn(Arc::clone(&hub).run(
        Arc::new(RecordingBroker::default()),
        CancellationToken::new(),
    ));
    let dropped = "dropped_total{reason=\"hub_full\"} 83";
    until(|| metrics.render().contains(dropped)).await;
    assert_eq!(outbox.take(usize::MAX).len(), 17);
}

#[tokio::test]
async fn nothing_is_batched_for_a_channel_without_members() {
    let (hub, _) = stopped(fanout(), &["a"]);
    drop(hub.join(&name("a"), Member::Queue(queue())));
    publish(&hub, "a", "x");
    assert!(hub.channels.read()["a"].take().0.batch.is_empty());
}

/// What the client of the test below was sent, in order.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    Joined,
    Publication(u32),
    Left,
}

impl Sent {
    fn parse(message: &[u8]) -> Self {
        match std::str::from_utf8(message).unwrap().trim_matches('"') {
            "joined" => Self::Joined,
            "left" => Self::Left,
            number => Self::Publication(number.parse().unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_sent_after_the_end_of_a_membership() {
    const ROUNDS: usize = 300;
    let running = running(&[]);
    let channel = name("a");
    // Other members, so that a flush takes a while and members leave in the middle of it. They do not read.
    let closed = || {
        let outbox = Arc::new(QueueOutbox::new(1));
        outbox.close();
        Member::Queue(outbox)
    };
    let crowd = || running.hub.join(&channel, closed());
    let _crowd: Vec<Subscriber> = (0..10_000).map(|_| crowd()).collect();
    let stop = CancellationToken::new();
    let mut publisher = JoinSet::new();
    publisher.spawn({
        let (hub, stop) = (Arc::clone(&running.hub), stop.clone());
        async move {
            for number in 0_u32.. {
                if stop.is_cancelled() {
                    break;
                }
                publish(&hub, "a", number.to_string());
                if number % 10 == 0 {
                    time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
    });
    let mut clients = JoinSet::new();
    let mut tasks = JoinSet::new();
    for number in 0..4 {
        let hub = Arc::clone(&running.hub);
        let channel = channel.clone();
        let (queue, (socket, peer)) = (queue(), socket(SocketFormat::Sockjs, &mut tasks).await);
        let member = if number % 2 == 0 {
            Member::Queue(Arc::clone(&queue))
        } else {
            Member::Socket(socket)
        };
        let reader = read_all_of(queue, peer, member.clone());
        clients.spawn(async move {
            let say = |text: &str| match &member {
                Member::Queue(outbox) => outbox.push(Bytes::from(format!("\"{text}\""))),
                Member::Socket(outbox) => outbox.send(&sockjs_frame(text)),
            };
            let write = async {
                for _ in 0..ROUNDS {
                    say("joined");
                    let membership = hub.join(&channel, member.clone());
                    if fastrand::bool() {
                        membership.flushed(DEADLINE).await; // So that it receives something.
                    }
                    time::sleep(Duration::from_micros(fastrand::u64(..3000))).await;
                    drop(membership);
                    say("left");
                    task::yield_now().await;
                }
                say("end");
            };
            tokio::join!(write, reader).1
        });
    }
    let mut publications = 0;
    while let Some(sent) = clients.join_next().await {
        let mut is_member = false;
        let mut last = None;
        for sent in sent.unwrap() {
            match sent {
                Sent::Joined => is_member = true,
                Sent::Left => is_member = false,
                Sent::Publication(number) => {
                    assert!(is_member, "{number} was sent after the end");
                    assert!(
                        last < Some(number),
                        "{number} was sent again, after {last:?}"
                    );
                    last = Some(number);
                    publications += 1;
                }
            }
        }
    }
    stop.cancel();
    assert!(100 < publications, "only {publications} were sent");
}

/// A SockJS frame with one message.
fn sockjs_frame(text: &str) -> Bytes {
    let mut frame = BytesMut::new();
    crate::protocol::frame::websocket::append_sockjs_message(
        &mut frame,
        format!("\"{text}\"").as_bytes(),
    );
    frame.freeze()
}

/// What the client of `member` is sent up to "end".
async fn read_all_of(queue: Arc<QueueOutbox>, mut peer: TcpStream, member: Member) -> Vec<Sent> {
    let messages: Vec<Bytes> = match member {
        Member::Queue(_) => take_until(&queue, "\"end\"").await,
        Member::Socket(_) => {
            let frames = read_frames_until(&mut peer, b"a[\"end\"]").await;
            let text = |(_, frame): (u8, Bytes)| frame.slice(2..frame.len() - 1);
            frames.into_iter().map(text).collect()
        }
    };
    let sent = messages.iter().take(messages.len() - 1);
    sent.map(|message| Sent::parse(message)).collect()
}

#[tokio::test]
async fn a_member_that_rejoins_a_channel_of_the_latest_gets_the_newest_after_what_was_queued() {
    let running = running(&[]);
    let channel = name("a");
    let outbox = lines();
    let join = || {
        let member = Member::Queue(Arc::clone(&outbox));
        running
            .hub
            .join_stream(&channel, member, SlowReader::Latest)
    };
    let deliver = async |membership: &Subscriber, data: &str| {
        running.hub.deliver_push(&channel, &pushed("a", data));
        membership.flushed(DEADLINE).await;
    };
    let first = join();
    let _other = running
        .hub
        .join_stream(&channel, Member::Queue(lines()), SlowReader::Latest);
    outbox.push(Bytes::from_static(b"waits"));
    first.flushed(DEADLINE).await; // What comes with the join takes nothing's place.
    deliver(&first, "1").await;
    deliver(&first, "2").await;
    drop(first);
    outbox.push(Bytes::from_static(b"joined again"));
    let second = join();
    second.flushed(DEADLINE).await;
    deliver(&second, "3").await;
    deliver(&second, "4").await;
    let line = |data: u8| format!(r#"{{"push":{{"channel":"a","pub":{{"data":{data}}}}}}}"#);
    let taken = outbox.take(usize::MAX);
    assert_eq!(
        taken,
        [
            "waits".to_owned(),
            line(2),
            "joined again".to_owned(),
            line(4)
        ]
    );
}

#[tokio::test]
async fn nothing_follows_the_last_push_of_a_channel_and_members_that_left_do_not_get_it() {
    let (hub, metrics) = stopped(fanout(), &[]);
    let channel = name("a");
    let (stays, leaves) = (lines(), lines());
    let join = |outbox: &Arc<QueueOutbox>| {
        hub.join_stream(
            &channel,
            Member::Queue(Arc::clone(outbox)),
            SlowReader::Disconnect,
        )
    };
    let memberships = [join(&stays), join(&leaves)];
    hub.deliver_push(&channel, &pushed("a", "1"));
    hub.deliver_last(&channel, &pushed("a", "2"));
    hub.deliver_push(&channel, &pushed("a", "3"));
    let [stayed, left] = memberships;
    drop(left);
    assert!(!stayed.is_over() && hub.channels_ended() == 0);
    let mut task = JoinSet::new();
    task.spawn(Arc::clone(&hub).run(
        Arc::new(RecordingBroker::default()),
        CancellationToken::new(),
    ));
    until(|| hub.channels_ended() == 1).await;
    assert!(stayed.is_over());
    hub.deliver_push(&channel, &pushed("a", "4"));
    stayed.flushed(DEADLINE).await;
    let line = |data: u8| format!(r#"{{"push":{{"channel":"a","pub":{{"data":{data}}}}}}}"#);
    assert_eq!(stays.take(usize::MAX), [line(1), line(2)]);
    assert!(leaves.is_empty());
    drop(stayed);
    until(|| hub.channels.read().is_empty()).await;
    drop(metrics);
}

#[tokio::test]
async fn a_channel_that_ends_at_once_drops_what_is_not_written() {
    let running = running(&[]);
    let channel = name("a");
    let outbox = lines();
    let member = Member::Queue(Arc::clone(&outbox));
    let membership = running
        .hub
        .join_stream(&channel, member, SlowReader::Disconnect);
    membership.flushed(DEADLINE).await;
    running.hub.deliver_push(&channel, &pushed("a", "1"));
    running.hub.end_at_once(&channel);
    running.hub.deliver_push(&channel, &pushed("a", "2"));
    membership.flushed(DEADLINE).await;
    assert!(outbox.is_empty());
    drop(membership);
    until(|| running.hub.channels.read().is_empty()).await;
}
