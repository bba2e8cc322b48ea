use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{FutureExt, poll};
use tokio::sync::{mpsc, oneshot};
use tokio::time::advance;

use super::*;

type Answer = io::Result<Vec<SocketAddr>>;

/// A name server in the hands of the test: each lookup waits until the test answers it.
struct Scripted(mpsc::Sender<oneshot::Sender<Answer>>);

#[async_trait]
impl Resolve for Scripted {
    async fn look_up(&self, _host: &str, _port: u16) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(answer).unwrap();
        answered.await.expect("the test answers, or panics it")
    }
}

struct Scene {
    names: Arc<Names>,
    lookups: mpsc::Receiver<oneshot::Sender<Answer>>,
    unanswered: VecDeque<oneshot::Sender<Answer>>,
}

impl Scene {
    fn new() -> Self {
        let (asked, lookups) = mpsc::channel(16);
        Self {
            names: Arc::new(Names::by(Arc::new(Scripted(asked)))),
            lookups,
            unanswered: VecDeque::new(),
        }
    }

    /// Lets all tasks do what they can, and counts the lookups that wait for an answer.
    async fn under_way(&mut self) -> usize {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        while let Ok(lookup) = self.lookups.try_recv() {
            self.unanswered.push_back(lookup);
        }
        self.unanswered.len()
    }

    /// Answers the oldest lookup.
    async fn answer(&mut self, answer: Answer) {
        self.under_way().await;
        let lookup = self.unanswered.pop_front().expect("a lookup is under way");
        lookup.send(answer).unwrap();
        self.under_way().await;
    }

    /// What is known without waiting.
    fn now(&self) -> Vec<SocketAddr> {
        let resolved = self.names.resolve("app", 80).now_or_never();
        resolved.expect("nobody waits").unwrap().to_vec()
    }

    /// A scene in which `app` has been found at these places.
    async fn knowing(places: &[u8]) -> Self {
        let mut scene = Self::new();
        let names = Arc::clone(&scene.names);
        let first = names.resolve("app", 80);
        tokio::pin!(first);
        assert!(poll!(&mut first).is_pending());
        scene.answer(Ok(at(places))).await;
        assert_eq!(first.await.unwrap().to_vec(), at(places));
        scene
    }
}

fn at(places: &[u8]) -> Vec<SocketAddr> {
    let address = |place: &u8| SocketAddr::from(([10, 0, 0, *place], 80));
    places.iter().map(address).collect()
}

fn away() -> Answer {
    Err(io::Error::other("the name server is away"))
}

#[tokio::test(start_paused = true)]
async fn all_who_ask_first_wait_for_one_lookup() {
    let mut scene = Scene::new();
    let names = Arc::clone(&scene.names);
    let (one, other) = (names.resolve("app", 80), names.resolve("app", 80));
    tokio::pin!(one, other);
    assert!(poll!(&mut one).is_pending() && poll!(&mut other).is_pending());
    assert_eq!(scene.under_way().await, 1);
    scene.answer(Ok(at(&[1, 2]))).await;
    assert_eq!(one.await.unwrap().to_vec(), at(&[1, 2]));
    assert_eq!(other.await.unwrap().to_vec(), at(&[1, 2]));
}

#[tokio::test(start_paused = true)]
async fn an_old_answer_is_used_at_once_while_a_new_one_is_fetched() {
    let mut scene = Scene::knowing(&[1]).await;
    advance(Duration::from_millis(4999)).await;
    assert_eq!(scene.now(), at(&[1]));
    assert_eq!(scene.under_way().await, 0, "it is new enough");
    advance(Duration::from_millis(1)).await;
    assert_eq!(scene.now(), at(&[1]));
    assert_eq!(scene.under_way().await, 1);
    scene.answer(Ok(at(&[2]))).await;
    assert_eq!(scene.now(), at(&[2]));
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_hangs_holds_up_nobody_and_is_not_repeated() {
    let mut scene = Scene::knowing(&[1]).await;
    for _ in 0..10 {
        advance(Duration::from_secs(3600)).await;
        assert_eq!(scene.now(), at(&[1]));
        assert_eq!(scene.under_way().await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_fails_leaves_what_is_known_and_is_repeated_soon() {
    let mut scene = Scene::knowing(&[1]).await;
    advance(Duration::from_secs(5)).await;
    for failure in [away(), Ok(Vec::new()), away()] {
        assert_eq!(scene.now(), at(&[1]));
        scene.answer(failure).await;
        assert_eq!(scene.now(), at(&[1]));
        assert_eq!(scene.under_way().await, 0, "not at once");
        advance(Duration::from_secs(1)).await;
    }
    assert_eq!(scene.now(), at(&[1]));
    scene.answer(Ok(at(&[2]))).await;
    assert_eq!(scene.now(), at(&[2]));
    advance(Duration::from_secs(1)).await;
    assert_eq!(scene.now(), at(&[2]));
    assert_eq!(scene.under_way().await, 0, "all is well again");
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_never_found_is_an_error_that_says_why() {
    let mut scene = Scene::new();
    let names = Arc::clone(&scene.names);
    let first = names.resolve("app", 80);
    tokio::pin!(first);
    assert!(poll!(&mut first).is_pending());
    scene.answer(away()).await;
    let error = first.await.unwrap_err();
    assert_eq!(error.to_string(), "the name server is away");
    // A crowd that asks meanwhile gets the same answer, not a lookup each.
    for _ in 0..100 {
        let error = names.resolve("app", 80).now_or_never().unwrap();
        assert!(error.is_err());
    }
    assert_eq!(scene.under_way().await, 0);
    advance(Duration::from_secs(1)).await;
    let again = names.resolve("app", 80);
    tokio::pin!(again);
    assert!(poll!(&mut again).is_pending());
    scene.answer(Ok(at(&[1]))).await;
    assert_eq!(again.await.unwrap().to_vec(), at(&[1]));
}

#[tokio::test(start_paused = true)]
async fn whoever_gives_up_waiting_does_not_end_the_lookup() {
    let mut scene = Scene::new();
    let names = Arc::clone(&scene.names);
    let waiting = tokio::time::timeout(Duration::from_secs(2), names.resolve("app", 80));
    assert!(waiting.await.is_err());
    scene.answer(Ok(at(&[1]))).await;
    assert_eq!(scene.now(), at(&[1]));
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_panics_is_one_that_failed() {
    let mut scene = Scene::knowing(&[1]).await;
    advance(Duration::from_secs(5)).await;
    assert_eq!(scene.now(), at(&[1]));
    assert_eq!(scene.under_way().await, 1);
    scene.unanswered.clear();
    assert_eq!(scene.under_way().await, 0);
    advance(Duration::from_secs(1)).await;
    assert_eq!(scene.now(), at(&[1]));
    scene.answer(Ok(at(&[2]))).await;
    assert_eq!(scene.now(), at(&[2]));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_fails_comes_last_and_has_the_name_looked_up_soon() {
    let mut scene = Scene::knowing(&[1, 2, 3]).await;
    scene.names.failed("app", 80, at(&[1])[0]);
    assert_eq!(scene.now(), at(&[2, 3, 1]));
    assert_eq!(scene.under_way().await, 0, "not at once");
    advance(Duration::from_secs(1)).await;
    assert_eq!(scene.now(), at(&[2, 3, 1]));
    // The server gives them in an order of its own; the one that answers stays the first.
    scene.answer(Ok(at(&[1, 2, 3]))).await;
    assert_eq!(scene.now(), at(&[2, 3, 1]));
    scene.names.failed("app", 80, at(&[9])[0]);
    assert_eq!(scene.now(), at(&[2, 3, 1]), "that one is not the first");
}

#[tokio::test(start_paused = true)]
async fn names_and_ports_are_known_apart_and_addresses_are_bounded() {
    let mut scene = Scene::knowing(&[1]).await;
    let names = Arc::clone(&scene.names);
    let (host, port) = (names.resolve("other", 80), names.resolve("app", 81));
    tokio::pin!(host, port);
    assert!(poll!(&mut host).is_pending() && poll!(&mut port).is_pending());
    assert_eq!(scene.under_way().await, 2);
    let many: Vec<u8> = (1..=100).collect();
    scene.answer(Ok(at(&many))).await;
    scene.answer(Ok(at(&many))).await;
    assert_eq!(host.await.unwrap().len(), ADDRESSES_MAX);
    assert_eq!(port.await.unwrap().len(), ADDRESSES_MAX);
}

#[tokio::test(start_paused = true)]
async fn lookups_end_with_their_owner() {
    let mut scene = Scene::new();
    let waiting = tokio::time::timeout(Duration::from_secs(1), scene.names.resolve("app", 80));
    assert!(waiting.await.is_err());
    assert_eq!(scene.under_way().await, 1);
    let lookup = scene.unanswered.pop_front().unwrap();
    scene.names = Scene::new().names;
    scene.under_way().await;
    assert!(lookup.is_closed());
}

#[tokio::test]
async fn a_name_may_have_no_other_addresses_than_those_that_are_allowed() {
    let names = Names::new();
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    let (inside, outside) = (address("10.0.0.1:80"), address("127.0.0.1:80"));
    names.pin("both", 80, &[outside, inside]);
    names.pin("outside", 80, &[outside]);
    let usual: Allowed = Some(Arc::new(AllowedAddresses::Routable { loopback: false }));
    let both = |allowed: Allowed| {
        HashMap::from([
            (("both".to_owned(), 80), allowed.clone()),
            (("outside".to_owned(), 80), allowed),
        ])
    };
    names.keep(&both(usual));
    assert_eq!(*names.resolve("both", 80).await.unwrap(), [inside]);
    let error = names.resolve("outside", 80).await.unwrap_err();
    assert!(error.to_string().contains("discover.allow"), "{error}");
    names.keep(&both(None));
    assert_eq!(*names.resolve("both", 80).await.unwrap(), [outside, inside]);
    names.keep(&HashMap::new());
    assert!(!names.knows(&("both".to_owned(), 80)));
}
