//! The limits of an endpoint, and a broker whose queue is full.

use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use super::*;
use crate::broker::NotReady;
use crate::config::Config;
use crate::config::PublishRate;
use crate::hub::HubConfig;
use crate::hub::outbox::QueueOutbox;
use crate::protocol::channel::ChannelName;

/// A broker that accepts publications while there is room, and returns `response` to those that wait.
#[derive(Default)]
struct FakeBroker {
    room: Mutex<usize>,
    published: Mutex<Vec<Bytes>>,
    response: Option<PublishError>,
}

#[async_trait]
impl Broker for FakeBroker {
    fn try_publish(&self, _: &ChannelName, data: Bytes) -> Result<(), TryPublishError> {
        let mut room = self.room.lock();
        if *room == 0 {
            return Err(TryPublishError::Full(data));
        }
        *room -= 1;
        self.published.lock().push(data);
        Ok(())
    }

    async fn publish(&self, _: &ChannelName, data: Bytes) -> Result<(), PublishError> {
        match self.response {
            Some(PublishError::TooLarge) => Err(PublishError::TooLarge),
            Some(_) => Err(PublishError::Expired),
            None => {
                self.published.lock().push(data);
                Ok(())
            }
        }
    }

    fn subscribe(&self, _: &ChannelName) {}

    fn unsubscribe(&self, _: &ChannelName) {}

    fn readiness(&self) -> Result<(), NotReady> {
        Ok(())
    }
}

#[test]
fn amplify_returns_the_requested_size_within_bounds() {
    for (power, length) in [
        ("1", 2),
        ("15", 1 << 15),
        (" 18 ", 1 << 18),
        ("19", 2),
        ("0", 2),
        ("-1", 2),
        ("64", 2),
        ("x", 2),
        ("", 2),
    ] {
        assert_eq!(amplified(power.as_bytes()), vec![b'x'; length], "{power}");
    }
    assert_eq!(amplified(b"\xff"), b"xx");
}

const PUBLISH_QUEUE_WAIT: Duration = Duration::from_secs(5);

/// A broker that never has room.
#[derive(Default)]
struct FullBroker {
    asked: Mutex<Vec<Bytes>>,
}

#[async_trait]
impl Broker for FullBroker {
    fn try_publish(&self, _: &ChannelName, data: Bytes) -> Result<(), TryPublishError> {
        Err(TryPublishError::Full(data))
    }

    async fn publish(&self, _: &ChannelName, data: Bytes) -> Result<(), PublishError> {
        self.asked.lock().push(data);
        tokio::time::sleep(PUBLISH_QUEUE_WAIT).await;
        Err(PublishError::Expired)
    }

    fn subscribe(&self, _: &ChannelName) {}

    fn unsubscribe(&self, _: &ChannelName) {}

    fn readiness(&self) -> Result<(), NotReady> {
        Ok(())
    }
}

/// The endpoint at `path` of a node without a file, changed by `change`.
fn endpoint(path: &str, change: impl FnOnce(&mut Endpoint)) -> Arc<Endpoint> {
    let config = Config::default_without_file();
    let found = config
        .endpoints
        .iter()
        .find(|endpoint| endpoint.path == path);
    let mut endpoint = Endpoint::clone(found.unwrap());
    change(&mut endpoint);
    Arc::new(endpoint)
}

fn connect(fake: &Arc<FakeBroker>, endpoint: Arc<Endpoint>) -> (Client, Arc<QueueOutbox>) {
    connect_to(Arc::clone(fake) as _, endpoint)
}

fn connect_to(broker: Arc<dyn Broker>, endpoint: Arc<Endpoint>) -> (Client, Arc<QueueOutbox>) {
    let metrics = Metrics::new();
    let fanout = Config::default_without_file().fanout;
    let hub = Hub::new(
        HubConfig {
            fanout,
            pinned: Vec::new(),
        },
        Arc::clone(&metrics),
    );
    let outbox = Arc::new(QueueOutbox::new(1 << 20));
    let clients = Clients::new(hub, broker, metrics);
    let member = Member::Queue(Arc::clone(&outbox));
    (
        clients.connect(endpoint, Transport::SockjsHttp, member),
        outbox,
    )
}

fn fake(room: usize, response: Option<PublishError>) -> Arc<FakeBroker> {
    let room = Mutex::new(room);
    Arc::new(FakeBroker {
        room,
        response,
        published: Mutex::default(),
    })
}

fn send(client: &Client, text: &str) -> Result<Taken, Disconnect> {
    client.try_message(text.as_bytes(), MessageKind::Text, Instant::now())
}

#[test]
fn a_relayed_message_is_published_and_an_echo_is_not() {
    let fake = fake(9, None);
    let (relay, received) = connect(&fake, endpoint("/ws", |_| {}));
    assert_eq!(send(&relay, "to all"), Ok(Taken::Done));
    assert_eq!(*fake.published.lock(), ["to all"]);
    assert!(
        received.is_empty(),
        "it comes back through the broker or not at all"
    );

    let (echo, received) = connect(&fake, endpoint("/echo", |_| {}));
    assert_eq!(send(&echo, "to me"), Ok(Taken::Done));
    assert_eq!(received.take(usize::MAX), ["\"to me\""]);
    assert_eq!(fake.published.lock().len(), 1);
}

#[test]
fn a_message_may_be_as_large_as_the_limit_and_no_larger() {
    let fake = fake(9, None);
    let (client, _) = connect(&fake, endpoint("/ws", |it| it.message_bytes_max = 4));
    assert_eq!(send(&client, "123"), Ok(Taken::Done));
    assert_eq!(send(&client, "1234"), Ok(Taken::Done));
    assert_eq!(send(&client, "12345"), Err(Disconnect::TOO_LARGE));
}

#[test]
fn a_client_that_sends_on_a_read_only_endpoint_is_disconnected() {
    let fake = fake(9, None);
    let (client, _) = connect(&fake, endpoint("/ws", |it| it.read_only = true));
    assert_eq!(send(&client, "a"), Err(Disconnect::READ_ONLY));
    assert!(fake.published.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_too_fast_is_disconnected() {
    let fake = fake(9, None);
    let rate = PublishRate {
        per_second: 10,
        burst: 2,
    };
    let (client, _) = connect(&fake, endpoint("/ws", |it| it.publish_rate = Some(rate)));
    assert_eq!(send(&client, "a"), Ok(Taken::Done));
    assert_eq!(send(&client, "b"), Ok(Taken::Done));
    tokio::time::advance(Duration::from_millis(100)).await;
    assert_eq!(send(&client, "c"), Ok(Taken::Done));
    assert_eq!(send(&client, "d"), Err(Disconnect::RATE));
}

#[tokio::test]
async fn without_room_a_message_is_returned_and_waits() {
    let fake = fake(1, None);
    let (client, _) = connect(&fake, endpoint("/ws", |_| {}));
    assert_eq!(send(&client, "a"), Ok(Taken::Done));
    let Ok(Taken::NoRoom(data)) = send(&client, "b") else {
        panic!("there is no room")
    };
    let mut wait_budget = WaitBudget::Full;
    assert_eq!(client.wait_for_room(data, &mut wait_budget).await, Ok(()));
    assert_eq!(
        client
            .on_message("c".into(), MessageKind::Text, &mut wait_budget)
            .await,
        Ok(())
    );
    assert_eq!(*fake.published.lock(), ["a", "b", "c"]);
}

#[tokio::test]
async fn a_client_stays_when_the_broker_drops_a_message_unless_it_can_never_be_published() {
    for (response, expected) in [
        (PublishError::Expired, Ok(())),
        (PublishError::TooLarge, Err(Disconnect::TOO_LARGE)),
    ] {
        let (client, _) = connect(&fake(0, Some(response)), endpoint("/ws", |_| {}));
        let mut wait_budget = WaitBudget::Full;
        assert_eq!(
            client
                .on_message("a".into(), MessageKind::Text, &mut wait_budget)
                .await,
            expected
        );
    }
}

#[tokio::test(start_paused = true)]
async fn messages_of_one_read_share_one_wait() {
    let began = Instant::now();
    let fake = Arc::new(FullBroker::default());
    let (client, _) = connect_to(Arc::clone(&fake) as _, endpoint("/ws", |_| {}));
    let mut wait_budget = WaitBudget::Full;
    for message in ["a", "b", "c"] {
        let taken = client.on_message(message.into(), MessageKind::Text, &mut wait_budget);
        assert_eq!(taken.await, Ok(()));
    }
    assert_eq!(wait_budget, WaitBudget::Spent);
    assert_eq!(began.elapsed(), PUBLISH_QUEUE_WAIT);
    assert_eq!(
        *fake.asked.lock(),
        ["a", "b", "c"],
        "the broker counts each"
    );
}
