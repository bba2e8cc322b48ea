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
            Arc::clone(&client).command(&command).unwrap();
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

/// Records commands that are passed on.
#[derive(Default)]
struct Elsewhere(parking_lot::Mutex<Vec<ControlCommand>>);

impl ClientControl for Elsewhere {
    fn command(self: Arc<Self>, command: &ControlCommand) -> Result<(), CommandRejected> {
        self.0.lock().push(command.clone());
        Ok(())
    }
}

#[tokio::test]
async fn commands_wait_during_a_handoff_and_are_passed_on_in_order_or_executed() {
    let (admitted, _) = testing::client();
    let client = admitted.client();
    let command = |at| ControlCommand::Refresh(Lifetime::Until(at));
    assert!(client.hold_commands().is_none());
    Arc::clone(client).command(&command(1)).unwrap();
    Arc::clone(client).command(&command(2)).unwrap();
    task::yield_now().await;
    client.continue_commands();
    while client.control.lock().is_some() {
        task::yield_now().await;
    }

    client.hold_commands();
    Arc::clone(client).command(&command(3)).unwrap();
    let elsewhere = Arc::new(Elsewhere::default());
    let controls = Arc::clone(&elsewhere) as Arc<dyn ClientControl>;
    client.pass_commands_on(&controls);
    Arc::clone(client).command(&command(4)).unwrap();
    let handle = Arc::clone(client);
    drop(admitted);
    Arc::clone(&handle).command(&command(5)).unwrap();
    assert_eq!(*elsewhere.0.lock(), [3, 4, 5].map(command));
}

#[tokio::test]
async fn a_handoff_waits_for_the_command_that_is_executed_and_no_other() {
    let (admitted, _) = testing::client();
    let client = admitted.client();
    let command = ControlCommand::Refresh(Lifetime::Endless);
    Arc::clone(client).command(&command).unwrap();
    Arc::clone(client).command(&command).unwrap();
    let running = client.hold_commands().expect("the first one runs");
    running.await.unwrap();
    let waiting = client
        .control
        .lock()
        .as_ref()
        .map(|queue| queue.waiting.len());
    assert_eq!(waiting, Some(1));
    client.continue_commands();
    while client.control.lock().is_some() {
        task::yield_now().await;
    }
}
