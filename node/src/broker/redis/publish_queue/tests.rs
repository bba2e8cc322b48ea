use std::time::Duration;

use super::*;
use crate::config::Config;

/// A publish queue of 1,000 bytes in which a publication may wait for 5 s.
fn queue() -> Arc<PublishQueue> {
    let text = "broker: {kind: redis, url: \"redis://cache\"}";
    let config::Broker::Redis(mut config) = Config::parse("test", text).unwrap().broker else {
        panic!("redis is configured");
    };
    config.publish_queue_bytes_max = 1000;
    let metrics = Metrics::new();
    let drop_counters = Arc::new(DropCounters::new(Arc::clone(&metrics)));
    Arc::new(PublishQueue::new(&config, drop_counters, metrics))
}

fn channel() -> ChannelName {
    ChannelName::new("a").unwrap()
}

fn data(bytes: usize) -> Bytes {
    vec![b'x'; bytes].into()
}

fn taken(batch: Vec<Entry>) -> impl Iterator<Item = (Entry, Outcome)> {
    let stored = || Stored { position: None };
    batch
        .into_iter()
        .map(move |entry| (entry, Outcome::Taken(stored())))
}

fn sizes(batch: &[Entry]) -> Vec<usize> {
    batch.iter().map(|entry| entry.data.len()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_queue_accepts_what_fits_and_not_a_byte_more() {
    let queue = queue();
    queue
        .try_publish(&channel(), Slot::default(), data(1000 - 2 * ENTRY_BYTES))
        .unwrap();
    queue
        .try_publish(&channel(), Slot::default(), data(0))
        .unwrap();
    let full = queue.try_publish(&channel(), Slot::default(), data(0));
    assert_eq!(full, Err(TryPublishError::Full(data(0))));
}

#[tokio::test(start_paused = true)]
async fn a_message_as_large_as_the_queue_fits_and_a_larger_one_never() {
    let queue = queue();
    queue
        .try_publish(&channel(), Slot::default(), data(1000))
        .unwrap();
    let batch = queue.take_batch(&HashSet::new());
    queue.settle(taken(batch));
    let too_large = queue.try_publish(&channel(), Slot::default(), data(1001));
    assert_eq!(too_large, Err(TryPublishError::Full(data(1001))));
    let too_large = queue.publish(&channel(), Slot::default(), data(1001)).await;
    assert_eq!(too_large, Err(PublishError::TooLarge));
}

#[tokio::test(start_paused = true)]
async fn room_comes_back_when_redis_has_answered_and_not_when_it_is_asked() {
    let queue = queue();
    queue
        .try_publish(&channel(), Slot::default(), data(1000))
        .unwrap();
    let batch = queue.take_batch(&HashSet::new());
    assert!(
        queue
            .try_publish(&channel(), Slot::default(), data(1))
            .is_err()
    );
    queue.settle(taken(batch));
    assert!(
        queue
            .try_publish(&channel(), Slot::default(), data(1))
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_in_before_who_comes_later() {
    let queue = queue();
    queue
        .try_publish(&channel(), Slot::default(), data(1000))
        .unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn({
        let queue = Arc::clone(&queue);
        async move { queue.publish(&channel(), Slot::default(), data(500)).await }
    });
    tokio::task::yield_now().await;
    queue.settle(taken(queue.take_batch(&HashSet::new())));
    queue
        .try_publish(&channel(), Slot::default(), data(1))
        .unwrap();
    waiting.join_next().await.unwrap().unwrap().unwrap();
    // The one that waited was given its room first, though its task ran later.
    let full = queue.try_publish(&channel(), Slot::default(), data(500));
    assert!(full.is_err());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_room_longer_than_a_publication_may() {
    let queue = queue();
    queue.push_probe(&channel(), Slot::default(), data(1));
    queue
        .try_publish(&channel(), Slot::default(), data(1000))
        .unwrap();
    let _under_way = queue.take_batch(&HashSet::new());
    let start = Instant::now();
    let expired = queue.publish(&channel(), Slot::default(), data(1)).await;
    assert_eq!(expired, Err(PublishError::Expired));
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    let metrics = queue.metrics.render();
    assert!(
        metrics.contains("dropped_total{reason=\"publish_queue_full\"} 1\n"),
        "{metrics}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_gives_up_waiting_is_counted_too() {
    let queue = queue();
    queue
        .try_publish(&channel(), Slot::default(), data(1000))
        .unwrap();
    let left = time::timeout(
        Duration::from_secs(1),
        queue.publish(&channel(), Slot::default(), data(1)),
    )
    .await;
    assert!(left.is_err());
    let metrics = queue.metrics.render();
    assert!(
        metrics.contains("dropped_total{reason=\"publish_queue_full\"} 1\n"),
        "{metrics}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_waits_too_long_is_dropped_and_what_came_later_stays() {
    let queue = queue();
    queue
        .try_publish(&channel(), Slot::default(), data(10))
        .unwrap();
    time::advance(Duration::from_secs(2)).await;
    queue
        .try_publish(&channel(), Slot::default(), data(20))
        .unwrap();
    time::advance(Duration::from_millis(2999)).await;
    queue.expire();
    assert_eq!(queue.metrics.publish_queue_publications.get(), 2);
    time::advance(Duration::from_millis(1)).await;
    let next = queue.expire().unwrap();
    assert_eq!(next - Instant::now(), Duration::from_secs(2));
    assert_eq!(sizes(&queue.take_batch(&HashSet::new())), [20]);
    assert_eq!(queue.metrics.publish_queue_bytes.get(), 20);
}

#[tokio::test(start_paused = true)]
async fn what_redis_did_not_take_goes_back_to_the_front_in_its_order() {
    let queue = queue();
    for bytes in [1, 2, 3] {
        queue
            .try_publish(&channel(), Slot::default(), data(bytes))
            .unwrap();
    }
    let batch = queue.take_batch(&HashSet::new());
    queue
        .try_publish(&channel(), Slot::default(), data(4))
        .unwrap();
    queue.put_back(batch);
    assert_eq!(sizes(&queue.take_batch(&HashSet::new())), [1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_bounded_in_number_and_a_probe_gets_into_a_full_queue() {
    let queue = queue();
    for _ in 0..600 {
        queue.push_probe(&channel(), Slot::default(), data(1));
    }
    assert_eq!(queue.take_batch(&HashSet::new()).len(), 512);
    assert_eq!(queue.take_batch(&HashSet::new()).len(), 88);
    assert!(queue.take_batch(&HashSet::new()).is_empty());
    queue
        .try_publish(&channel(), Slot::default(), data(1000))
        .unwrap();
    queue.push_probe(&channel(), Slot::default(), data(1));
    assert_eq!(sizes(&queue.take_batch(&HashSet::new())), [1000, 1]);
    assert_eq!(
        queue.metrics.publish_queue_publications.get(),
        1,
        "probes are no publications"
    );
}

#[tokio::test(start_paused = true)]
async fn a_closed_queue_rejects_waiting_and_new_callers() {
    let queue = queue();
    queue
        .try_publish(&channel(), Slot::default(), data(1000))
        .unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn({
        let queue = Arc::clone(&queue);
        async move { queue.publish(&channel(), Slot::default(), data(1)).await }
    });
    tokio::task::yield_now().await;
    queue.close();
    let ended = waiting.join_next().await.unwrap().unwrap();
    assert_eq!(ended, Err(PublishError::Stopped));
    let late = queue.publish(&channel(), Slot::default(), data(1)).await;
    assert_eq!(late, Err(PublishError::Stopped));
    assert!(
        queue
            .metrics
            .render()
            .contains("dropped_total{reason=\"stopping\"} 2\n")
    );
    assert_eq!(
        queue.take_batch(&HashSet::new()).len(),
        1,
        "what was accepted is still sent"
    );
}

fn store() -> Store {
    Store {
        channel: channel(),
        body: data(10),
        retention: None,
        idempotency: None,
        until: crate::broker::Until::Stored,
    }
}

#[tokio::test(start_paused = true)]
async fn who_stores_is_told_what_became_of_it() {
    for (outcome, expected) in [
        (
            Outcome::Taken(Stored { position: None }),
            Ok(Stored { position: None }),
        ),
        (Outcome::Unreplicated, Err(StoreError::NotReplicated)),
        (Outcome::Unanswered, Err(StoreError::MayBeStored)),
        (
            Outcome::Refused("OOM".to_owned()),
            Err(StoreError::Refused("OOM".to_owned())),
        ),
    ] {
        let queue = queue();
        let answered = async {
            queue.arrival().await;
            let batch = queue.take_batch(&HashSet::new());
            assert_eq!(batch[0].channel.as_str(), "causeway:ch:{a}");
            queue.settle(batch.into_iter().zip([outcome]));
        };
        let (stored, ()) = tokio::join!(queue.store(Slot::default(), store()), answered);
        assert_eq!(stored, expected);
        assert_eq!(queue.metrics.publish_queue_bytes.get(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_never_sent_is_certainly_not_stored() {
    let queue = queue();
    let expiring = async {
        time::sleep(Duration::from_secs(5)).await;
        queue.expire();
    };
    let (stored, ()) = tokio::join!(queue.store(Slot::default(), store()), expiring);
    assert_eq!(stored, Err(StoreError::Expired));
    let stopping = async {
        queue.arrival().await;
        queue.close();
        queue.lose_all();
    };
    let (stored, ()) = tokio::join!(queue.store(Slot::default(), store()), stopping);
    assert_eq!(stored, Err(StoreError::Stopped));
    let large = Store {
        body: data(1001),
        ..store()
    };
    assert_eq!(
        queue.store(Slot::default(), large).await,
        Err(StoreError::TooLarge)
    );
}
