//! Control commands that arrive while others are executed.

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
async fn each_command_is_executed_once_and_then_the_queue_is_dropped() {
    let input = ControlCommand::Input(Bytes::from_static(br#"{"id":1}"#));
    assert_eq!(give(input).await.messages_received.get(), ORDERS);
    give(ControlCommand::Refresh(Lifetime::Endless)).await;
}

/// Gives a client `command` again and again, each time at the moment in which the one before it is off the queue.
async fn give(command: ControlCommand) -> Arc<Metrics> {
    let (admitted, metrics) = testing::client();
    let client = Arc::clone(admitted.client());
    // On its own thread, because it polls.
    let giving = task::spawn_blocking(move || {
        let is_busy = || {
            let control = client.control.lock();
            control.as_deref().is_some_and(|control| !control.is_idle())
        };
        let deadline = Instant::now() + DEADLINE;
        for _ in 0..ORDERS {
            client.command(&command).unwrap();
            while is_busy() {
                assert!(Instant::now() < deadline, "a command is not executed");
                thread::yield_now();
            }
        }
        assert!(client.control.lock().is_none(), "the queue stays");
    });
    giving.await.unwrap();
    metrics
}
