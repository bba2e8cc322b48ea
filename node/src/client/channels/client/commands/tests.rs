//! Commands that do not wait: how many are started at a time, and what ends them. Those that wait are tested end to end, with
//! slow hooks and a slow Redis.

use super::*;
use crate::client::channels::testing;
use crate::cluster::directory::CommandRejected;

/// A command whose reply is always an error.
const UNKNOWN: &str = r#"{"id":1}"#;

#[test]
fn many_small_commands_yield_to_other_tasks() {
    let (admitted, metrics) = testing::client();
    let mut commands = Commands::new(admitted.client());
    commands.push(Bytes::from(UNKNOWN.repeat(3 * STARTS_MAX)));
    let mut cx = Context::from_waker(noop_waker_ref());
    for turn in 1..=3 {
        let begun = metrics.messages_received.get();
        assert_eq!(begun, turn * STARTS_MAX as u64);
        assert_eq!(commands.is_done(), turn == 3);
        assert_eq!(commands.takes_more(), turn == 3);
        assert_eq!(commands.poll(&mut cx).is_ready(), 2 <= turn, "{turn}");
    }
}

#[test]
fn commands_after_an_undecodable_one_are_not_executed() {
    for mistake in ["[]", r#"{"id":2,"ping":{}}"#] {
        let (admitted, metrics) = testing::client();
        let mut commands = Commands::new(admitted.client());
        commands.push(Bytes::from(format!("{UNKNOWN}{mistake}{UNKNOWN}")));
        assert!(commands.is_closed() && commands.is_done(), "{mistake}");
        let is_command = u64::from(mistake != "[]");
        assert_eq!(metrics.messages_received.get(), 1 + is_command);
    }
}

#[tokio::test]
async fn no_more_than_two_of_the_largest_messages_are_queued() {
    let (admitted, metrics) = testing::client();
    let client = admitted.client();
    let bytes_max = client.endpoint().received_bytes_max();
    let large = Bytes::from(" ".repeat(bytes_max - UNKNOWN.len()) + UNKNOWN);
    for _ in 0..2 {
        client.take_input(large.clone()).unwrap();
    }
    let one_more = client.take_input(Bytes::from_static(b"{}"));
    assert_eq!(one_more, Err(CommandRejected::Busy));
    while metrics.messages_received.get() < 2 {
        tokio::task::yield_now().await;
    }
}
