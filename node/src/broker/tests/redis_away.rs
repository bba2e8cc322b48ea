//! Redis late, dead, silent, full, or not Redis at all.

use std::time::Instant;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::*;

mod network;

use network::Network;

/// What the promise of the project says: after Redis is back, messages flow within this time.
const BACK_WITHIN: Duration = Duration::from_secs(3);

fn reason(setup: &Setup) -> String {
    let readiness = setup.broker.readiness();
    readiness.map_or_else(|reason| reason.to_string(), |()| "ready".to_owned())
}

/// Waits for the broker and for a message that goes round.
async fn flows_again(setup: &Setup, since: Instant) {
    setup.until_ready().await;
    let before = setup.recorder.on("a").len();
    setup.publish("a", "after").await.unwrap();
    setup.recorder.wait_for("a", before + 1).await;
    assert!(since.elapsed() < BACK_WITHIN, "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_redis_that_comes_late_is_waited_for() {
    let mut server = RedisServer::absent();
    let setup = set_up(&settings(&server, ""));
    setup.broker.subscribe(&name("a"));
    setup
        .until(|| reason(&setup).contains("No such file"))
        .await;
    setup.publish("a", "early").await.unwrap();
    server.launch(&[]).await;
    flows_again(&setup, Instant::now()).await;
    assert_eq!(setup.metrics.broker_gaps.get(), 0);
    setup.stop().await;
}

#[tokio::test]
async fn a_killed_redis_is_noticed_at_once_and_used_again_when_it_is_back() {
    let mut server = RedisServer::start().await;
    // No probe is missed for a minute: the loss itself is noticed.
    let text = format!(
        "broker: {{kind: redis, url: \"{}\", probe_interval: 60s, probe_timeout: 60s, \
         response_timeout: 800ms, backoff_max: 200ms, publish_queue_wait: 30s}}",
        server.url()
    );
    let setup = set_up(&Config::parse("test", &text).unwrap().broker);
    setup.subscribe(&["a"]).await;
    setup.until_ready().await;

    server.kill();
    setup.until(|| setup.broker.readiness().is_err()).await;
    assert_eq!(setup.metrics.broker_ready.get(), 0);
    time::sleep(Duration::from_secs(2)).await; // The outage: backoff has reached its maximum.
    for number in 0..100 {
        setup.publish("a", number.to_string()).await.unwrap();
    }
    assert_eq!(
        setup.recorder.on("a"),
        [""; 0],
        "no client gets what others do not"
    );

    server.launch(&[]).await;
    flows_again(&setup, Instant::now()).await;
    // What waited goes out once the subscription stands again: nothing of it is missed here.
    let numbers = numbers(&setup.recorder);
    assert!(numbers.iter().copied().eq(0..100), "{numbers:?}");
    assert_eq!(setup.metrics.publications_published.get(), 101);
    assert_eq!(setup.metrics.broker_gaps.get(), 1);
    setup.stop().await;
}

/// The numbers at the front of messages that have one, in the order in which they came.
fn numbers(recorder: &Recorder) -> Vec<u32> {
    let number = |data: &Bytes| {
        let text = std::str::from_utf8(data).ok()?;
        text.split(' ').next()?.parse().ok()
    };
    recorder.on("a").iter().filter_map(number).collect()
}

#[tokio::test]
async fn a_silent_redis_is_noticed_by_the_probe_and_nothing_comes_twice_or_out_of_order() {
    let server = RedisServer::start().await;
    let setup = set_up(&settings(
        &server,
        ", publish_queue_wait: 30s, publish_queue_size: 4MiB",
    ));
    // Another node that never notices: it receives all that Redis ever gets to see.
    let text = format!(
        "broker: {{kind: redis, url: \"{}\", probe_interval: 60s, probe_timeout: 60s}}",
        server.url()
    );
    let witness = set_up(&Config::parse("test", &text).unwrap().broker);
    for node in [&setup, &witness] {
        node.subscribe(&["a"]).await;
        node.until_ready().await;
    }

    server.freeze();
    let padding = "x".repeat(2000); // So that a batch takes Redis several reads.
    for number in 0..400 {
        let message = format!("{number} {padding}");
        setup.publish("a", message).await.unwrap();
        if number % 100 == 99 {
            time::sleep(Duration::from_millis(300)).await;
        }
    }
    setup.until(|| setup.broker.readiness().is_err()).await;
    time::sleep(Duration::from_secs(3)).await;
    assert!(setup.broker.readiness().is_err());
    server.thaw();
    flows_again(&setup, Instant::now()).await;
    setup
        .until(|| setup.metrics.publish_queue_publications.get() == 0)
        .await;
    let published = setup.metrics.publications_published.get();
    let unacknowledged = setup.dropped("unacknowledged");
    assert_eq!(published + unacknowledged, 401, "each one has an end");
    let recorder = Arc::clone(&setup.recorder);
    setup.stop().await;

    let received_by_all = usize::try_from(published).unwrap();
    witness.recorder.wait_for("a", received_by_all).await;
    for node in [&recorder, &witness.recorder] {
        let numbers = numbers(node);
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    }
    witness.stop().await;
}

#[tokio::test]
async fn what_a_queue_wrote_before_the_network_broke_never_comes_after_what_it_wrote_since() {
    let server = RedisServer::start().await;
    let witness = set_up(&settings(&server, ""));
    witness.subscribe(&["a"]).await;
    witness.until_ready().await;
    let network = Network::before(&server).await;
    let text = format!(
        "broker: {{kind: redis, url: \"redis://127.0.0.1:{}\", publish_queues: 1, response_timeout: 200ms}}",
        network.port
    );
    let setup = set_up(&Config::parse("test", &text).unwrap().broker);
    setup.until_ready().await;

    setup.publish("a", "1").await.unwrap();
    witness.recorder.wait_for("a", 1).await;
    network.hold();
    setup.publish("a", "2").await.unwrap();
    setup.until(|| setup.dropped("unacknowledged") == 1).await;
    setup.publish("a", "3").await.unwrap();
    witness.recorder.wait_for("a", 2).await;
    network.release();
    let publisher_connections = || {
        server
            .cli(&["CLIENT", "LIST"])
            .matches(":publish-0:")
            .count()
    };
    // One of each node: Redis has come to the end of the one that was held.
    setup.until(|| publisher_connections() == 2).await;
    setup.publish("a", "4").await.unwrap();
    witness.recorder.wait_for("a", 3).await;
    assert_eq!(numbers(&witness.recorder), [1, 3, 4]);
    setup.stop().await;
    witness.stop().await;
}

#[tokio::test]
async fn what_waited_for_redis_goes_out_only_once_the_node_receives_it() {
    let mut server = RedisServer::start().await;
    let network = Network::before(&server).await;
    // However long the subscription is kept back, nobody gives it up.
    let text = format!(
        "broker: {{kind: redis, url: \"redis://127.0.0.1:{}\", publish_queues: 1, publish_queue_wait: 5m, \
         connect_timeout: 60s, response_timeout: 60s, probe_interval: 60s, probe_timeout: 60s}}",
        network.port
    );
    let setup = set_up(&Config::parse("test", &text).unwrap().broker);
    setup.subscribe(&["a"]).await;
    setup.until_ready().await;
    server.kill();
    setup.until(|| setup.broker.readiness().is_err()).await;
    setup.publish("a", "waited").await.unwrap();

    network.hold_subscribing();
    server.launch(&[]).await;
    // The publish queue is connected and named, and all that it needs now is somebody who listens.
    setup
        .until(|| server.cli(&["CLIENT", "LIST"]).contains(":publish-0:"))
        .await;
    time::sleep(Duration::from_millis(200)).await;
    assert_eq!(setup.metrics.publications_published.get(), 0);
    network.release_subscribing();
    setup.recorder.wait_for("a", 1).await;
    setup.until_ready().await;
    setup.stop().await;
}

#[tokio::test]
async fn streams_are_read_anew_once_the_node_receives_again_and_not_over_a_dead_connection() {
    let server = RedisServer::start().await;
    let network = Network::before(&server).await;
    // Who waits for a reply over a dead connection waits for longer than this test.
    let text = format!(
        "broker: {{kind: redis, url: \"redis://127.0.0.1:{}\", publish_queues: 1, response_timeout: 60s, \
         probe_interval: 200ms, probe_timeout: 400ms, backoff_max: 200ms}}",
        network.port
    );
    let setup = set_up(&Config::parse("test", &text).unwrap().broker);
    setup.until_ready().await;
    let ask = || Ask {
        channel: name("a"),
        retention: Retention {
            size: NonZeroUsize::new(10).unwrap(),
            ttl: Duration::from_secs(60),
            meta_ttl: Duration::from_secs(60),
        },
        query: everything(),
    };
    setup.broker.history(ask()).await.unwrap();
    network.hold();
    setup.until(|| setup.connects("subscribe") == 2).await;
    let read = time::timeout(DEADLINE, setup.broker.history(ask())).await;
    read.expect("a reply").expect("a page");
    network.release();
    setup.stop().await;
}

#[tokio::test]
async fn a_queue_is_bounded_in_bytes_and_in_time() {
    let server = RedisServer::absent();
    let config::Broker::Redis(mut redis) = settings(&server, ", publish_queue_wait: 300ms") else {
        panic!("these are settings for redis");
    };
    redis.publish_queue_bytes_max = 4096; // The file may not set less than a message.
    let setup = set_up(&config::Broker::Redis(redis));
    let data = Bytes::from(vec![b'x'; 1000]);
    for _ in 0..3 {
        setup.broker.try_publish(&name("a"), data.clone()).unwrap();
    }
    let full = setup.broker.try_publish(&name("a"), data.clone());
    assert_eq!(full, Err(TryPublishError::Full(data.clone())));
    assert_eq!(setup.metrics.publish_queue_bytes.get(), 3000);

    time::sleep(Duration::from_millis(50)).await;
    // The first three expire and make room before this one's time is over.
    let waited = setup.broker.publish(&name("a"), data.clone()).await;
    assert_eq!(waited, Ok(()));
    assert_eq!(setup.dropped("publish_queue_expired"), 3);
    let too_large = setup.broker.publish(&name("a"), vec![0; 4097].into()).await;
    assert_eq!(too_large, Err(PublishError::TooLarge));
    setup
        .until(|| setup.dropped("publish_queue_expired") == 4)
        .await;
    assert_eq!(setup.metrics.publish_queue_bytes.get(), 0);

    setup.publish("a", "left").await.unwrap();
    let (broker, metrics) = (Arc::clone(&setup.broker), Arc::clone(&setup.metrics));
    setup.stop().await;
    assert!(
        metrics
            .render()
            .contains("dropped_total{reason=\"stopping\"} 1\n")
    );
    let stopped = broker.publish(&name("a"), data).await;
    assert_eq!(stopped, Err(PublishError::Stopped));
}

#[tokio::test]
async fn a_queue_whose_connection_is_killed_goes_on_over_another() {
    let server = RedisServer::start().await;
    let setup = set_up(&settings(&server, ""));
    setup.subscribe(&["a"]).await;
    setup.until_ready().await;
    for round in 1..=5 {
        let connects = setup.connects("publish");
        server.cli(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        setup
            .until(|| connects + 2 == setup.connects("publish"))
            .await;
        flows_again(&setup, Instant::now()).await;
        assert_eq!(setup.recorder.on("a").len(), round);
    }
    assert_eq!(setup.metrics.broker_gaps.get(), 0);
    setup.stop().await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_passed_over_and_counted() {
    let server = RedisServer::start().await;
    let setup = set_up(&settings(&server, ", message_size: 64KiB"));
    setup.subscribe(&["a"]).await;
    setup.until_ready().await;
    setup.publish("a", vec![b'x'; 64 << 10]).await.unwrap();
    setup
        .publish("a", vec![b'x'; (64 << 10) + 1])
        .await
        .unwrap();
    setup.publish("a", "after").await.unwrap();
    let received = setup.recorder.wait_for("a", 2).await;
    assert_eq!(
        (received[0].len(), &received[1][..]),
        (64 << 10, &b"after"[..])
    );
    assert_eq!(setup.dropped("oversized"), 1);
    setup.stop().await;
}

#[tokio::test]
async fn a_wrong_password_is_named_and_never_shown() {
    let server = RedisServer::start().await;
    server.cli(&["CONFIG", "SET", "requirepass", "correct horse"]);
    let with = |query: &str| {
        let text = format!("broker: {{kind: redis, url: \"{}{query}\"}}", server.url());
        Config::parse("test", &text).unwrap().broker
    };
    for (query, expected) in [("", "NOAUTH"), ("?pass=hunter2", "WRONGPASS")] {
        let setup = set_up(&with(query));
        setup.until(|| reason(&setup).contains(expected)).await;
        assert!(!reason(&setup).contains("hunter2"));
        setup.stop().await;
    }
    let setup = set_up(&with("?pass=correct%20horse&db=3"));
    setup.until_ready().await;
    setup.stop().await;
}

#[tokio::test]
async fn a_user_who_may_not_do_it_all_is_told_what_redis_says() {
    let server = RedisServer::start().await;
    server.cli(&[
        "ACL",
        "SETUSER",
        "half",
        "on",
        ">pw",
        "~*",
        "+@all",
        "-subscribe",
        "allchannels",
    ]);
    let url = format!("{}?user=half&pass=pw", server.url());
    let text = format!("broker: {{kind: redis, url: \"{url}\"}}");
    let setup = set_up(&Config::parse("test", &text).unwrap().broker);
    setup.until(|| reason(&setup).contains("NOPERM")).await;
    setup.stop().await;
}

#[tokio::test]
async fn a_publication_that_redis_refuses_is_counted_and_the_next_one_goes_through() {
    let server = RedisServer::start().await;
    server.cli(&[
        "ACL",
        "SETUSER",
        "most",
        "on",
        ">pw",
        "~*",
        "+@all",
        "resetchannels",
        "&a",
        "&causeway:*",
    ]);
    let url = format!("{}?user=most&pass=pw", server.url());
    let text = format!("broker: {{kind: redis, url: \"{url}\"}}");
    let setup = set_up(&Config::parse("test", &text).unwrap().broker);
    setup.subscribe(&["a"]).await;
    setup.until_ready().await;
    setup.publish("forbidden", "no").await.unwrap();
    setup.until(|| setup.dropped("refused") == 1).await;
    setup.publish("a", "yes").await.unwrap();
    setup.recorder.wait_for("a", 1).await;
    assert_eq!(setup.metrics.publications_published.get(), 1);
    setup.stop().await;
}

/// Something that is not Redis, and says `reply` to whatever it is told.
async fn impostor(reply: &'static [u8]) -> (u16, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut input = [0; 4096];
                while 0 < stream.read(&mut input).await.unwrap_or(0) {
                    if stream.write_all(reply).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (port, tasks)
}

#[tokio::test]
async fn what_is_not_redis_makes_the_node_not_ready_and_nothing_worse() {
    let endless = b"*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n"
        .repeat(100)
        .leak();
    let impostors: [(&[u8], &str); 4] = [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not a Pub/Sub reply"),
        (
            b"+OK\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nx\r\n:1\r\n",
            "unexpected confirmation",
        ),
        (endless, "redis"),
        (b"", "did not respond within"),
    ];
    for (reply, expected) in impostors {
        let (port, _tasks) = impostor(reply).await;
        let text = format!(
            "broker: {{kind: redis, url: \"redis://127.0.0.1:{port}\", connect_timeout: 200ms}}"
        );
        let setup = set_up(&Config::parse("test", &text).unwrap().broker);
        setup.until(|| reason(&setup).contains(expected)).await;
        setup.stop().await;
    }
}
