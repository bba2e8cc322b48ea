//! Commands that wait for nothing: how many are begun at a time, and what ends them. What waits is tested end to end, with
//! hooks and a Redis that take their time.

use super::*;
use crate::client::channels::testing;
use crate::cluster::directory::OrderRefused;

/// A command that is answered with an error, whoever sends it.
const UNKNOWN: &str = r#"{"id":1}"#;

#[test]
fn many_small_commands_let_other_tasks_have_their_turn() {
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
fn nothing_that_a_client_sent_behind_its_mistake_is_carried_out() {
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
async fn more_than_two_of_the_largest_messages_wait_for_nobody() {
    let (admitted, metrics) = testing::client();
    let client = admitted.client();
    let bytes_max = client.endpoint().received_bytes_max();
    let large = Bytes::from(" ".repeat(bytes_max - UNKNOWN.len()) + UNKNOWN);
    for _ in 0..2 {
        client.take_input(large.clone()).unwrap();
    }
    let one_more = client.take_input(Bytes::from_static(b"{}"));
    assert_eq!(one_more, Err(OrderRefused::Busy));
    while metrics.messages_received.get() < 2 {
        tokio::task::yield_now().await;
    }
}
