use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{FutureExt, poll};
use tokio::sync::{mpsc, oneshot};
use tokio::time::advance;

use super::*;

type LookupResult = io::Result<Vec<SocketAddr>>;

/// A resolver that the test controls: each lookup waits until the test provides its result.
struct Scripted(mpsc::Sender<oneshot::Sender<LookupResult>>);

#[async_trait]
impl Resolve for Scripted {
    async fn look_up(&self, _host: &str, _port: u16) -> LookupResult {
        let (result, received) = oneshot::channel();
        self.0.try_send(result).unwrap();
        received
            .await
            .expect("the test provides a result, or makes the lookup panic")
    }
}

struct Scene {
    names: Arc<Names>,
    lookups: mpsc::Receiver<oneshot::Sender<LookupResult>>,
    running: VecDeque<oneshot::Sender<LookupResult>>,
}

impl Scene {
    fn new() -> Self {
        let (sender, lookups) = mpsc::channel(16);
        Self {
            names: Arc::new(Names::by(Arc::new(Scripted(sender)))),
            lookups,
            running: VecDeque::new(),
        }
    }

    /// Lets all tasks run until they wait, and counts the running lookups.
    async fn running_lookups(&mut self) -> usize {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        while let Ok(lookup) = self.lookups.try_recv() {
            self.running.push_back(lookup);
        }
        self.running.len()
    }

    /// Provides the result of the oldest lookup.
    async fn finish(&mut self, result: LookupResult) {
        self.running_lookups().await;
        let lookup = self.running.pop_front().expect("a lookup is running");
        lookup.send(result).unwrap();
        self.running_lookups().await;
    }

    /// The addresses that are available without waiting.
    fn now(&self) -> Vec<SocketAddr> {
        let resolved = self.names.resolve("app", 80).now_or_never();
        resolved.expect("the result is cached").unwrap().to_vec()
    }

    /// A scene in which `app` has been resolved to these addresses.
    async fn resolved_to(hosts: &[u8]) -> Self {
        let mut scene = Self::new();
        let names = Arc::clone(&scene.names);
        let first = names.resolve("app", 80);
        tokio::pin!(first);
        assert!(poll!(&mut first).is_pending());
        scene.finish(Ok(at(hosts))).await;
        assert_eq!(first.await.unwrap().to_vec(), at(hosts));
        scene
    }
}

fn at(hosts: &[u8]) -> Vec<SocketAddr> {
    let address = |host: &u8| SocketAddr::from(([10, 0, 0, *host], 80));
    hosts.iter().map(address).collect()
}

fn failure() -> LookupResult {
    Err(io::Error::other("the name server failed"))
}

#[tokio::test(start_paused = true)]
async fn concurrent_first_calls_share_one_lookup() {
    let mut scene = Scene::new();
    let names = Arc::clone(&scene.names);
    let (one, other) = (names.resolve("app", 80), names.resolve("app", 80));
    tokio::pin!(one, other);
    assert!(poll!(&mut one).is_pending() && poll!(&mut other).is_pending());
    assert_eq!(scene.running_lookups().await, 1);
    scene.finish(Ok(at(&[1, 2]))).await;
    assert_eq!(one.await.unwrap().to_vec(), at(&[1, 2]));
    assert_eq!(other.await.unwrap().to_vec(), at(&[1, 2]));
}

#[tokio::test(start_paused = true)]
async fn a_stale_result_is_used_at_once_while_a_new_one_is_fetched() {
    let mut scene = Scene::resolved_to(&[1]).await;
    advance(Duration::from_millis(4999)).await;
    assert_eq!(scene.now(), at(&[1]));
    assert_eq!(scene.running_lookups().await, 0, "the result is fresh");
    advance(Duration::from_millis(1)).await;
    assert_eq!(scene.now(), at(&[1]));
    assert_eq!(scene.running_lookups().await, 1);
    scene.finish(Ok(at(&[2]))).await;
    assert_eq!(scene.now(), at(&[2]));
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_hangs_delays_no_call_and_is_not_repeated() {
    let mut scene = Scene::resolved_to(&[1]).await;
    for _ in 0..10 {
        advance(Duration::from_secs(3600)).await;
        assert_eq!(scene.now(), at(&[1]));
        assert_eq!(scene.running_lookups().await, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_lookup_leaves_the_cached_addresses_and_is_retried_soon() {
    let mut scene = Scene::resolved_to(&[1]).await;
    advance(Duration::from_secs(5)).await;
    for error in [failure(), Ok(Vec::new()), failure()] {
        assert_eq!(scene.now(), at(&[1]));
        scene.finish(error).await;
        assert_eq!(scene.now(), at(&[1]));
        assert_eq!(scene.running_lookups().await, 0, "not at once");
        advance(Duration::from_secs(1)).await;
    }
    assert_eq!(scene.now(), at(&[1]));
    scene.finish(Ok(at(&[2]))).await;
    assert_eq!(scene.now(), at(&[2]));
    advance(Duration::from_secs(1)).await;
    assert_eq!(scene.now(), at(&[2]));
    assert_eq!(
        scene.running_lookups().await,
        0,
        "the result is fresh again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_never_resolved_is_an_error_with_its_reason() {
    let mut scene = Scene::new();
    let names = Arc::clone(&scene.names);
    let first = names.resolve("app", 80);
    tokio::pin!(first);
    assert!(poll!(&mut first).is_pending());
    scene.finish(failure()).await;
    let error = first.await.unwrap_err();
    assert_eq!(error.to_string(), "the name server failed");
    // Calls meanwhile get the same error, without a lookup each.
    for _ in 0..100 {
        let error = names.resolve("app", 80).now_or_never().unwrap();
        assert!(error.is_err());
    }
    assert_eq!(scene.running_lookups().await, 0);
    advance(Duration::from_secs(1)).await;
    let again = names.resolve("app", 80);
    tokio::pin!(again);
    assert!(poll!(&mut again).is_pending());
    scene.finish(Ok(at(&[1]))).await;
    assert_eq!(again.await.unwrap().to_vec(), at(&[1]));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_does_not_end_the_lookup() {
    let mut scene = Scene::new();
    let names = Arc::clone(&scene.names);
    let waiting = tokio::time::timeout(Duration::from_secs(2), names.resolve("app", 80));
    assert!(waiting.await.is_err());
    scene.finish(Ok(at(&[1]))).await;
    assert_eq!(scene.now(), at(&[1]));
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_panics_counts_as_failed() {
    let mut scene = Scene::resolved_to(&[1]).await;
    advance(Duration::from_secs(5)).await;
    assert_eq!(scene.now(), at(&[1]));
    assert_eq!(scene.running_lookups().await, 1);
    scene.running.clear();
    assert_eq!(scene.running_lookups().await, 0);
    advance(Duration::from_secs(1)).await;
    assert_eq!(scene.now(), at(&[1]));
    scene.finish(Ok(at(&[2]))).await;
    assert_eq!(scene.now(), at(&[2]));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_fails_comes_last_and_the_name_is_looked_up_soon() {
    let mut scene = Scene::resolved_to(&[1, 2, 3]).await;
    scene.names.failed("app", 80, at(&[1])[0]);
    assert_eq!(scene.now(), at(&[2, 3, 1]));
    assert_eq!(scene.running_lookups().await, 0, "not at once");
    advance(Duration::from_secs(1)).await;
    assert_eq!(scene.now(), at(&[2, 3, 1]));
    // The resolver has its own order; the address that works stays first.
    scene.finish(Ok(at(&[1, 2, 3]))).await;
    assert_eq!(scene.now(), at(&[2, 3, 1]));
    scene.names.failed("app", 80, at(&[9])[0]);
    assert_eq!(scene.now(), at(&[2, 3, 1]), "that one is not the first");
}

#[tokio::test(start_paused = true)]
async fn names_and_ports_are_cached_separately_and_addresses_are_bounded() {
    let mut scene = Scene::resolved_to(&[1]).await;
    let names = Arc::clone(&scene.names);
    let (host, port) = (names.resolve("other", 80), names.resolve("app", 81));
    tokio::pin!(host, port);
    assert!(poll!(&mut host).is_pending() && poll!(&mut port).is_pending());
    assert_eq!(scene.running_lookups().await, 2);
    let many: Vec<u8> = (1..=100).collect();
    scene.finish(Ok(at(&many))).await;
    scene.finish(Ok(at(&many))).await;
    assert_eq!(host.await.unwrap().len(), ADDRESSES_MAX);
    assert_eq!(port.await.unwrap().len(), ADDRESSES_MAX);
}

#[tokio::test(start_paused = true)]
async fn lookups_are_aborted_when_their_cache_is_dropped() {
    let mut scene = Scene::new();
    let waiting = tokio::time::timeout(Duration::from_secs(1), scene.names.resolve("app", 80));
    assert!(waiting.await.is_err());
    assert_eq!(scene.running_lookups().await, 1);
    let lookup = scene.running.pop_front().unwrap();
    scene.names = Scene::new().names;
    scene.running_lookups().await;
    assert!(lookup.is_closed());
}

#[tokio::test]
async fn a_name_resolves_only_to_allowed_addresses() {
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
