use std::time::Duration;

use super::*;
use crate::config::Config;

/// A lane of 1,000 bytes in which a publication may wait for 5 s.
fn lane() -> Arc<Lane> {
    let text = "broker: {kind: redis, url: \"redis://cache\"}";
    let config::Broker::Redis(mut config) = Config::parse("test", text).unwrap().broker else {
        panic!("redis is configured");
    };
    config.lane_bytes_max = 1000;
    let metrics = Metrics::new();
    let drops = Arc::new(Drops::new(Arc::clone(&metrics)));
    Arc::new(Lane::new(&config, drops, metrics))
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
async fn a_lane_takes_what_fits_and_not_a_byte_more() {
    let lane = lane();
    lane.try_publish(&channel(), data(1000 - 2 * ENTRY_BYTES))
        .unwrap();
    lane.try_publish(&channel(), data(0)).unwrap();
    let full = lane.try_publish(&channel(), data(0));
    assert_eq!(full, Err(TryPublishError::Full(data(0))));
}

#[tokio::test(start_paused = true)]
async fn a_message_as_large_as_the_lane_fits_and_a_larger_one_never() {
    let lane = lane();
    lane.try_publish(&channel(), data(1000)).unwrap();
    let batch = lane.take_batch();
    lane.settle(taken(batch));
    let too_large = lane.try_publish(&channel(), data(1001));
    assert_eq!(too_large, Err(TryPublishError::Full(data(1001))));
    let too_large = lane.publish(&channel(), data(1001)).await;
    assert_eq!(too_large, Err(PublishError::TooLarge));
}

#[tokio::test(start_paused = true)]
async fn room_comes_back_when_redis_has_answered_and_not_when_it_is_asked() {
    let lane = lane();
    lane.try_publish(&channel(), data(1000)).unwrap();
    let batch = lane.take_batch();
    assert!(lane.try_publish(&channel(), data(1)).is_err());
    lane.settle(taken(batch));
    assert!(lane.try_publish(&channel(), data(1)).is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_waits_gets_in_before_who_comes_later() {
    let lane = lane();
    lane.try_publish(&channel(), data(1000)).unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn({
        let lane = Arc::clone(&lane);
        async move { lane.publish(&channel(), data(500)).await }
    });
    tokio::task::yield_now().await;
    lane.settle(taken(lane.take_batch()));
    lane.try_publish(&channel(), data(1)).unwrap();
    waiting.join_next().await.unwrap().unwrap().unwrap();
    // The one that waited was given its room first, though its task ran later.
    let full = lane.try_publish(&channel(), data(500));
    assert!(full.is_err());
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_room_longer_than_a_publication_may() {
    let lane = lane();
    lane.push_probe(&channel(), data(1));
    lane.try_publish(&channel(), data(1000)).unwrap();
    let _under_way = lane.take_batch();
    let start = Instant::now();
    let expired = lane.publish(&channel(), data(1)).await;
    assert_eq!(expired, Err(PublishError::Expired));
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    let metrics = lane.metrics.render();
    assert!(
        metrics.contains("dropped_total{reason=\"lane_full\"} 1\n"),
        "{metrics}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_gives_up_waiting_is_counted_too() {
    let lane = lane();
    lane.try_publish(&channel(), data(1000)).unwrap();
    let left = time::timeout(Duration::from_secs(1), lane.publish(&channel(), data(1))).await;
    assert!(left.is_err());
    let metrics = lane.metrics.render();
    assert!(
        metrics.contains("dropped_total{reason=\"lane_full\"} 1\n"),
        "{metrics}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_waits_too_long_is_dropped_and_what_came_later_stays() {
    let lane = lane();
    lane.try_publish(&channel(), data(10)).unwrap();
    time::advance(Duration::from_secs(2)).await;
    lane.try_publish(&channel(), data(20)).unwrap();
    time::advance(Duration::from_millis(2999)).await;
    lane.expire();
    assert_eq!(lane.metrics.lane_publications.get(), 2);
    time::advance(Duration::from_millis(1)).await;
    let next = lane.expire().unwrap();
    assert_eq!(next - Instant::now(), Duration::from_secs(2));
    assert_eq!(sizes(&lane.take_batch()), [20]);
    assert_eq!(lane.metrics.lane_bytes.get(), 20);
}

#[tokio::test(start_paused = true)]
async fn what_redis_did_not_take_goes_back_to_the_front_in_its_order() {
    let lane = lane();
    for bytes in [1, 2, 3] {
        lane.try_publish(&channel(), data(bytes)).unwrap();
    }
    let batch = lane.take_batch();
    lane.try_publish(&channel(), data(4)).unwrap();
    lane.put_back(batch);
    assert_eq!(sizes(&lane.take_batch()), [1, 2, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_bounded_in_number_and_a_probe_gets_into_a_full_lane() {
    let lane = lane();
    for _ in 0..600 {
        lane.push_probe(&channel(), data(1));
    }
    assert_eq!(lane.take_batch().len(), 512);
    assert_eq!(lane.take_batch().len(), 88);
    assert!(lane.take_batch().is_empty());
    lane.try_publish(&channel(), data(1000)).unwrap();
    lane.push_probe(&channel(), data(1));
    assert_eq!(sizes(&lane.take_batch()), [1000, 1]);
    assert_eq!(
        lane.metrics.lane_publications.get(),
        1,
        "probes are no publications"
    );
}

#[tokio::test(start_paused = true)]
async fn a_closed_lane_turns_away_who_waits_and_who_comes() {
    let lane = lane();
    lane.try_publish(&channel(), data(1000)).unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn({
        let lane = Arc::clone(&lane);
        async move { lane.publish(&channel(), data(1)).await }
    });
    tokio::task::yield_now().await;
    lane.close();
    let ended = waiting.join_next().await.unwrap().unwrap();
    assert_eq!(ended, Err(PublishError::Stopped));
    let late = lane.publish(&channel(), data(1)).await;
    assert_eq!(late, Err(PublishError::Stopped));
    assert!(
        lane.metrics
            .render()
            .contains("dropped_total{reason=\"stopping\"} 2\n")
    );
    assert_eq!(
        lane.take_batch().len(),
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
        let lane = lane();
        let answered = async {
            lane.arrival().await;
            let batch = lane.take_batch();
            assert_eq!(batch[0].channel.as_str(), "causeway:ch:{a}");
            lane.settle(batch.into_iter().zip([outcome]));
        };
        let (stored, ()) = tokio::join!(lane.store(store()), answered);
        assert_eq!(stored, expected);
        assert_eq!(lane.metrics.lane_bytes.get(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_never_sent_is_certainly_not_stored() {
    let lane = lane();
    let expiring = async {
        time::sleep(Duration::from_secs(5)).await;
        lane.expire();
    };
    let (stored, ()) = tokio::join!(lane.store(store()), expiring);
    assert_eq!(stored, Err(StoreError::Expired));
    let stopping = async {
        lane.arrival().await;
        lane.close();
        lane.lose_all();
    };
    let (stored, ()) = tokio::join!(lane.store(store()), stopping);
    assert_eq!(stored, Err(StoreError::Stopped));
    let large = Store {
        body: data(1001),
        ..store()
    };
    assert_eq!(lane.store(large).await, Err(StoreError::TooLarge));
}
