use std::collections::HashSet;
use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn name(channel: &str) -> ChannelName {
    ChannelName::new(channel).unwrap()
}

fn names(channels: &[ChannelName]) -> Vec<&str> {
    channels.iter().map(ChannelName::as_str).collect()
}

#[test]
fn a_wanted_change_becomes_one_command_and_is_settled_by_its_confirmation() {
    let mut subscriptions = Subscriptions::default();
    assert!(subscriptions.want(&name("a"), true));
    assert!(!subscriptions.want(&name("a"), true));
    let batch = subscriptions.next_batch().unwrap();
    assert_eq!(names(&batch.subscribe), ["a"]);
    assert_eq!(subscriptions.next_batch(), None);
    assert_eq!(subscriptions.confirmed(), 0);
    subscriptions.confirm("a", true).unwrap();
    assert_eq!(subscriptions.confirmed(), 1);
    assert_eq!(subscriptions.next_batch(), None);
}

#[test]
fn a_wanted_change_that_is_replaced_while_its_command_is_under_way_is_followed_afterwards() {
    let mut subscriptions = Subscriptions::default();
    subscriptions.want(&name("a"), true);
    subscriptions.next_batch().unwrap();
    subscriptions.want(&name("a"), false);
    assert_eq!(subscriptions.next_batch(), None);
    subscriptions.confirm("a", true).unwrap();
    let batch = subscriptions.next_batch().unwrap();
    assert_eq!(names(&batch.unsubscribe), ["a"]);
    subscriptions.confirm("a", false).unwrap();
    assert_eq!(subscriptions.find("a"), None);
}

#[test]
fn a_wanted_change_taken_back_before_its_command_costs_none() {
    let mut subscriptions = Subscriptions::default();
    subscriptions.want(&name("a"), true);
    subscriptions.want(&name("a"), false);
    subscriptions.want(&name("never"), false);
    assert_eq!(subscriptions.next_batch(), None);
    assert!(subscriptions.channels.is_empty());
}

#[test]
fn clients_that_come_and_go_while_redis_is_away_leave_nothing_behind() {
    let mut subscriptions = Subscriptions::default();
    for number in 0..1000 {
        let channel = name(&number.to_string());
        subscriptions.want(&channel, true);
        subscriptions.want(&channel, false);
    }
    assert!(subscriptions.channels.is_empty());
    assert!(subscriptions.unsettled.is_empty());
}

#[test]
fn commands_hold_at_most_512_channels() {
    let mut subscriptions = Subscriptions::default();
    for number in 0..1025 {
        subscriptions.want(&name(&number.to_string()), true);
    }
    let mut sizes = Vec::new();
    while let Some(batch) = subscriptions.next_batch() {
        sizes.push(batch.subscribe.len());
        for channel in &batch.subscribe {
            subscriptions.confirm(channel.as_str(), true).unwrap();
        }
    }
    assert_eq!(sizes, [512, 512, 1]);
}

#[test]
fn what_was_not_asked_for_is_refused() {
    let mut subscriptions = Subscriptions::default();
    assert_eq!(
        subscriptions.confirm("a", true),
        Err(UnexpectedConfirmation)
    );
    subscriptions.want(&name("a"), true);
    assert_eq!(
        subscriptions.confirm("a", true),
        Err(UnexpectedConfirmation)
    );
    subscriptions.next_batch().unwrap();
    assert_eq!(
        subscriptions.confirm("a", false),
        Err(UnexpectedConfirmation)
    );
    subscriptions.confirm("a", true).unwrap();
    assert_eq!(
        subscriptions.confirm("a", true),
        Err(UnexpectedConfirmation)
    );
}

#[test]
fn after_a_loss_everything_wanted_is_asked_anew_and_then_it_is_resumed() {
    let mut subscriptions = Subscriptions::default();
    for channel in ["a", "b", "gone"] {
        subscriptions.want(&name(channel), true);
    }
    subscriptions.next_batch().unwrap();
    for channel in ["a", "b", "gone"] {
        subscriptions.confirm(channel, true).unwrap();
    }
    subscriptions.want(&name("gone"), false);
    subscriptions.lose_all();
    assert!(!subscriptions.is_resumed());
    assert_eq!(subscriptions.confirmed(), 0);

    let batch = subscriptions.next_batch().unwrap();
    let asked: HashSet<_> = names(&batch.subscribe).into_iter().collect();
    assert_eq!(
        (asked, batch.unsubscribe.len()),
        (HashSet::from(["a", "b"]), 0)
    );
    subscriptions.confirm("a", true).unwrap();
    assert!(!subscriptions.is_resumed());
    subscriptions.confirm("b", true).unwrap();
    subscriptions.want(&name("new"), true);
    assert!(subscriptions.is_resumed(), "newcomers do not hold it up");
}

/// What may happen to the two sets.
#[derive(Debug, Clone)]
enum Step {
    Want(u8, bool),
    /// Send the next batch, if there is one.
    Send,
    /// Redis confirms this many commands.
    Confirm(usize),
    Lose,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u8..6, any::<bool>()).prop_map(|(channel, wanted)| Step::Want(channel, wanted)),
        3 => Just(Step::Send),
        3 => (1_usize..4).prop_map(Step::Confirm),
        1 => Just(Step::Lose),
    ]
}

/// Redis, which does what it is told in order.
#[derive(Default)]
struct Redis {
    subscribed: HashSet<String>,
    to_confirm: VecDeque<(String, bool)>,
}

impl Redis {
    fn take(&mut self, batch: Batch) {
        for (channels, is_subscribed) in [(batch.subscribe, true), (batch.unsubscribe, false)] {
            for channel in channels {
                let channel = channel.as_str().to_owned();
                if is_subscribed {
                    assert!(self.subscribed.insert(channel.clone()), "subscribed twice");
                } else {
                    assert!(self.subscribed.remove(&channel), "unsubscribed twice");
                }
                self.to_confirm.push_back((channel, is_subscribed));
            }
        }
    }

    fn confirm(&mut self, subscriptions: &mut Subscriptions, count: usize) {
        for _ in 0..count.min(self.to_confirm.len()) {
            let (channel, is_subscribed) = self.to_confirm.pop_front().unwrap();
            subscriptions.confirm(&channel, is_subscribed).unwrap();
        }
    }
}

proptest! {
    #[test]
    fn redis_ends_up_with_exactly_what_is_wanted(steps in prop::collection::vec(any_step(), 0..80)) {
        let mut subscriptions = Subscriptions::default();
        let mut redis = Redis::default();
        let mut wanted = HashSet::new();
        for step in steps {
            match step {
                Step::Want(channel, is_wanted) => {
                    let channel = name(&channel.to_string());
                    subscriptions.want(&channel, is_wanted);
                    if is_wanted {
                        wanted.insert(channel.as_str().to_owned());
                    } else {
                        wanted.remove(channel.as_str());
                    }
                }
                Step::Send => redis.take(subscriptions.next_batch().unwrap_or_default()),
                Step::Confirm(count) => redis.confirm(&mut subscriptions, count),
                Step::Lose => {
                    redis = Redis::default();
                    subscriptions.lose_all();
                }
            }
        }
        for _ in 0..3 {
            redis.confirm(&mut subscriptions, usize::MAX);
            redis.take(subscriptions.next_batch().unwrap_or_default());
        }
        prop_assert_eq!(&redis.subscribed, &wanted);
        prop_assert_eq!(subscriptions.confirmed(), wanted.len());
        prop_assert_eq!(subscriptions.channels.len(), wanted.len());
        prop_assert!(subscriptions.unsettled.is_empty());
        prop_assert!(subscriptions.is_resumed());
        prop_assert!(!subscriptions.is_waiting());
    }
}

fn slot_of(channel: &ChannelName) -> Slot {
    Slot::of(channel.as_str().as_bytes())
}

/// Sends the next commands, as in a cluster: one for each slot.
fn send_sharded(subscriptions: &mut Subscriptions) -> Batch {
    let batch = subscriptions.next_batch().unwrap();
    for (is_subscribe, channels) in [(true, &batch.subscribe), (false, &batch.unsubscribe)] {
        for channel in channels {
            subscriptions.note_sent(slot_of(channel), is_subscribe, vec![channel.clone()]);
        }
    }
    batch
}

fn confirmed_sharded(names: &[&str]) -> Subscriptions {
    let mut subscriptions = Subscriptions::default();
    for name in names {
        subscriptions.want(&ChannelName::new(name).unwrap(), true);
    }
    send_sharded(&mut subscriptions);
    for name in names {
        let confirmed = subscriptions.confirm_sharded(name, true, slot_of).unwrap();
        assert_eq!(confirmed, Confirmed::AsWanted);
    }
    subscriptions
}

#[test]
fn a_subscription_that_the_server_ends_waits_until_the_cluster_was_asked_and_is_then_repeated() {
    let a = ChannelName::new("a").unwrap();
    let mut subscriptions = confirmed_sharded(&["a", "b"]);
    let ended = subscriptions.confirm_sharded("a", false, slot_of);
    assert_eq!(ended, Ok(Confirmed::Ended));
    assert_eq!(subscriptions.next_batch(), None);
    assert!(subscriptions.returned(slot_of).is_empty(), "it is parked");
    assert!(subscriptions.unpark());
    let batch = send_sharded(&mut subscriptions);
    assert_eq!(batch.subscribe, std::slice::from_ref(&a));
    assert!(
        subscriptions.returned(slot_of).is_empty(),
        "it is in flight"
    );
    subscriptions.confirm_sharded("a", true, slot_of).unwrap();
    assert_eq!(
        subscriptions.returned(slot_of),
        HashSet::from([slot_of(&a)])
    );
    assert!(
        subscriptions.returned(slot_of).is_empty(),
        "it has returned"
    );
    assert!(!subscriptions.unpark());
}

#[test]
fn a_slot_returns_once_all_of_its_channels_are_confirmed_where_it_is_now() {
    let (one, two) = (
        ChannelName::new("{x}1").unwrap(),
        ChannelName::new("{x}2").unwrap(),
    );
    let slot = slot_of(&one);
    let mut subscriptions = confirmed_sharded(&["b"]);
    subscriptions.move_in(&one, slot);
    subscriptions.move_in(&two, slot);
    send_sharded(&mut subscriptions);
    subscriptions
        .confirm_sharded("{x}1", true, slot_of)
        .unwrap();
    assert!(subscriptions.returned(slot_of).is_empty());
    subscriptions
        .confirm_sharded("{x}2", true, slot_of)
        .unwrap();
    assert_eq!(subscriptions.returned(slot_of), HashSet::from([slot]));
}

#[test]
fn a_rejected_command_parks_its_channels_and_no_others() {
    let mut subscriptions = Subscriptions::default();
    for name in ["a", "b"] {
        subscriptions.want(&ChannelName::new(name).unwrap(), true);
    }
    send_sharded(&mut subscriptions);
    assert_eq!(subscriptions.oldest_sent().unwrap().slot, Slot::of(b"a"));
    subscriptions.rejected();
    assert!(!subscriptions.is_resumed(), "one is in flight");
    subscriptions.confirm_sharded("b", true, slot_of).unwrap();
    assert!(subscriptions.is_resumed());
    assert_eq!(
        subscriptions.resumed_slots(slot_of),
        HashSet::from([Slot::of(b"b")])
    );
    assert!(subscriptions.unpark());
    send_sharded(&mut subscriptions);
    subscriptions.confirm_sharded("a", true, slot_of).unwrap();
    assert_eq!(
        subscriptions.returned(slot_of),
        HashSet::from([Slot::of(b"a")])
    );
}

#[test]
fn an_abandoned_channel_ends_with_the_message_of_the_server_and_sends_nothing() {
    let a = ChannelName::new("a").unwrap();
    let mut subscriptions = confirmed_sharded(&["a"]);
    subscriptions.abandon(&a, slot_of(&a));
    assert_eq!(subscriptions.next_batch(), None);
    // What this server still sends would come after publications of the other one.
    assert_eq!(subscriptions.find("a"), None);
    let ended = subscriptions.confirm_sharded("a", false, slot_of);
    assert_eq!(ended, Ok(Confirmed::AsWanted));
    assert_eq!(subscriptions.find("a"), None);
    assert_eq!(
        subscriptions.counts(),
        Counts {
            wanted: 0,
            confirmed: 0
        }
    );
}

#[test]
fn what_no_command_explains_is_unexpected_in_a_cluster_too() {
    let mut subscriptions = confirmed_sharded(&["a"]);
    for (name, is_subscribed) in [("a", true), ("x", true), ("x", false)] {
        let unexpected = subscriptions.confirm_sharded(name, is_subscribed, slot_of);
        assert!(unexpected.is_err(), "{name} {is_subscribed}");
    }
}
