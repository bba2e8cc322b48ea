//! Orders that come while others are carried out.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use tokio::task;

use super::*;
use crate::client::channels::testing;
use crate::cluster::directory::Lifetime;
use crate::metrics::Metrics;

const DEADLINE: Duration = Duration::from_secs(20);

const ORDERS: u64 = 5_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_is_carried_out_once_and_then_there_is_no_queue() {
    let input = Order::Input(Bytes::from_static(br#"{"id":1}"#));
    assert_eq!(give(input).await.messages_received.get(), ORDERS);
    give(Order::Refresh(Lifetime::Endless)).await;
}

/// Gives a client `order` again and again, each time at the moment in which the one before it is off the queue.
async fn give(order: Order) -> Arc<Metrics> {
    let (admitted, metrics) = testing::client();
    let client = Arc::clone(admitted.client());
    // On a thread of its own: it waits by looking.
    let giving = task::spawn_blocking(move || {
        let is_busy = || {
            let orders = client.orders.lock();
            orders.as_deref().is_some_and(|orders| !orders.is_idle())
        };
        let deadline = Instant::now() + DEADLINE;
        for _ in 0..ORDERS {
            client.order(&order).unwrap();
            while is_busy() {
                assert!(Instant::now() < deadline, "an order is not carried out");
                thread::yield_now();
            }
        }
        assert!(client.orders.lock().is_none(), "the queue stays");
    });
    giving.await.unwrap();
    metrics
}
