use proptest::prelude::*;

use super::*;
use crate::protocol::instance::Instance;

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

fn member(name: &str) -> Slot {
    Slot::Member(channel(name), ClientId::random(Instance::random()))
}

fn value(info: &'static str) -> Value {
    Value {
        info: Bytes::from_static(info.as_bytes()),
        announce: Announce::Yes,
    }
}

/// Carries out all writes, as a Redis in which each write is a change or not; returns the events.
fn carry_out(desired: &mut DesiredState, is_change: bool) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let batch = desired.next_batch(3);
        if batch.is_empty() {
            assert!(desired.is_idle());
            return events;
        }
        for write in batch {
            events.extend(desired.answered(write, is_change));
        }
    }
}

fn lose(desired: &mut DesiredState) -> Vec<Option<Value>> {
    let batch = desired.next_batch(100);
    let puts = batch.iter().map(|write| write.put.clone()).collect();
    batch
        .into_iter()
        .for_each(|write| desired.unanswered(write));
    puts
}

#[test]
fn a_member_is_written_announced_and_removed_once() {
    let mut desired = DesiredState::default();
    let slot = member("a");
    desired.enter(slot.clone(), value("ann"));
    let came = Event::Joined(slot.clone(), value("ann"));
    assert_eq!(carry_out(&mut desired, true), [came]);
    desired.change(&slot, value("ann"));
    assert!(desired.is_idle(), "it stands there already");
    desired.leave(&slot);
    let left = Event::Left(slot.clone(), value("ann"));
    assert_eq!(carry_out(&mut desired, true), [left]);
    desired.leave(&slot);
    assert!(desired.is_idle() && desired.entries.is_empty());
}

#[test]
fn a_client_that_returns_before_its_leave_is_processed_stays() {
    let mut desired = DesiredState::default();
    let slot = member("a");
    desired.enter(slot.clone(), value("ann"));
    carry_out(&mut desired, true);
    desired.enter(slot.clone(), value("ann, again"));
    desired.leave(&slot);
    assert_eq!(carry_out(&mut desired, false), []);
    let members = desired.members(&channel("a"));
    assert_eq!(members[0].1, value("ann, again").info);
    desired.leave(&slot);
    let left = Event::Left(slot, value("ann, again"));
    assert_eq!(carry_out(&mut desired, true), [left]);
}

#[test]
fn a_client_that_leaves_before_it_was_written_causes_no_write() {
    let mut desired = DesiredState::default();
    let slot = member("a");
    desired.enter(slot.clone(), value("ann"));
    desired.leave(&slot);
    assert!(desired.is_idle() && desired.entries.is_empty());
}

#[test]
fn a_value_that_changes_while_a_write_is_in_flight_is_written_next() {
    let mut desired = DesiredState::default();
    let slot = member("a");
    desired.enter(slot.clone(), value("ann"));
    let mut batch = desired.next_batch(10);
    desired.leave(&slot);
    assert!(desired.next_batch(10).is_empty(), "one batch at a time");
    let came = desired.answered(batch.remove(0), true);
    assert_eq!(came, Some(Event::Joined(slot.clone(), value("ann"))));
    let left = Event::Left(slot, value("ann"));
    assert_eq!(carry_out(&mut desired, true), [left]);
}

#[test]
fn changed_info_is_written_without_an_event() {
    let mut desired = DesiredState::default();
    let slot = member("a");
    desired.enter(slot.clone(), value("ann"));
    carry_out(&mut desired, true);
    desired.change(&slot, value("ann, tired"));
    let batch = desired.next_batch(10);
    assert_eq!(batch[0].put, Some(value("ann, tired")));
    assert_eq!(desired.answered(batch[0].clone(), false), None);
    assert!(desired.is_idle());
}

#[test]
fn a_write_without_a_reply_is_retried_and_its_event_is_not_lost() {
    let mut desired = DesiredState::default();
    let slot = member("a");
    desired.enter(slot.clone(), value("ann"));
    assert_eq!(lose(&mut desired), [Some(value("ann"))]);
    // The first write had arrived, so this one changes nothing.
    let came = Event::Joined(slot.clone(), value("ann"));
    assert_eq!(carry_out(&mut desired, false), [came]);
    desired.leave(&slot);
    assert_eq!(lose(&mut desired), [None]);
    let left = Event::Left(slot, value("ann"));
    assert_eq!(carry_out(&mut desired, false), [left]);
}

#[test]
fn a_member_that_leaves_after_a_write_without_a_reply_is_removed() {
    let mut desired = DesiredState::default();
    let slot = member("a");
    desired.enter(slot.clone(), value("ann"));
    lose(&mut desired);
    desired.leave(&slot);
    let batch = desired.next_batch(10);
    assert_eq!(batch[0].put, None);
    // No join event was published.
    assert_eq!(desired.answered(batch[0].clone(), true), None);
    assert!(desired.entries.is_empty());
}

#[test]
fn changes_are_settled_in_order() {
    let mut desired = DesiredState::default();
    let first = desired.enter(member("a"), value("ann"));
    let second = desired.enter(member("b"), value("bob"));
    assert!(!desired.is_settled(first));
    let mut batch = desired.next_batch(1);
    assert!(!desired.is_settled(first));
    desired.unanswered(batch.remove(0));
    assert!(!desired.is_settled(first));
    let mut batch = desired.next_batch(1);
    desired.answered(batch.remove(0), true);
    assert!(desired.is_settled(first));
    assert!(!desired.is_settled(second));
    carry_out(&mut desired, true);
    assert!(desired.is_settled(second));
}

#[test]
fn under_a_new_lease_everything_is_written_again() {
    let mut desired = DesiredState::default();
    let user = Slot::User("ann".into());
    let slot = member("a");
    desired.enter(user.clone(), Value::default());
    desired.enter(slot.clone(), value("ann"));
    carry_out(&mut desired, true);
    desired.renew_all(Swept::No);
    let batch = desired.next_batch(10);
    let slots: Vec<&Slot> = batch.iter().map(|write| &write.slot).collect();
    assert_eq!(slots, [&user, &slot]);
    // All of Redis's data was gone: no leave events were published, so no join events are.
    for write in batch {
        assert_eq!(desired.answered(write, true), None);
    }
    assert!(desired.is_idle());
}

#[test]
fn a_member_that_was_swept_joins_again() {
    let mut desired = DesiredState::default();
    let (swept, spared) = (member("a"), member("b"));
    desired.enter(swept.clone(), value("ann"));
    desired.enter(spared, value("bob"));
    carry_out(&mut desired, true);
    desired.renew_all(Swept::Yes);
    let mut batch = desired.next_batch(10);
    assert_eq!(desired.answered(batch.remove(1), false), None);
    let came = Event::Joined(swept, value("ann"));
    assert_eq!(desired.answered(batch.remove(0), true), Some(came));
    desired.renew_all(Swept::No);
    assert_eq!(carry_out(&mut desired, true), []);
}

#[test]
fn what_was_written_under_the_lease_before_is_written_again() {
    let mut desired = DesiredState::default();
    desired.enter(member("a"), value("ann"));
    let batch = desired.next_batch(10);
    desired.renew_all(Swept::No);
    for write in batch {
        desired.answered(write, true);
    }
    assert_eq!(desired.next_batch(10)[0].put, Some(value("ann")));
}

#[test]
fn a_member_that_leaves_while_the_lease_changes_is_removed() {
    let mut desired = DesiredState::default();
    let (user, slot) = (Slot::User("ann".into()), member("a"));
    desired.enter(user.clone(), Value::default());
    desired.enter(slot.clone(), value("ann"));
    carry_out(&mut desired, true);
    desired.leave(&user);
    desired.leave(&slot);
    desired.renew_all(Swept::No);
    let left = Event::Left(slot, value("ann"));
    assert_eq!(carry_out(&mut desired, true), [left]);
    assert!(desired.entries.is_empty());
}

#[test]
fn a_member_that_another_node_takes_over_is_told_to_nobody() {
    let (mut before, mut after) = (DesiredState::default(), DesiredState::default());
    let slot = member("a");
    before.enter(slot.clone(), value("ann"));
    carry_out(&mut before, true);
    // It is there already, so writing it again is no change.
    after.take_over(slot.clone(), value("ann"));
    assert_eq!(carry_out(&mut after, false), []);
    before.release(&slot);
    let batch = before.next_batch(10);
    assert!(batch[0].is_release && batch[0].put.is_none());
    for write in batch {
        assert_eq!(before.answered(write, true), None);
    }
    assert!(before.is_idle() && before.entries.is_empty());
    after.leave(&slot);
    let left = Event::Left(slot, value("ann"));
    assert_eq!(carry_out(&mut after, true), [left]);
}

#[test]
fn a_new_lease_does_not_write_a_member_that_another_node_may_take_over() {
    for is_taken_over in [true, false] {
        let mut desired = DesiredState::default();
        let slot = member("a");
        desired.enter(slot.clone(), value("ann"));
        carry_out(&mut desired, true);
        desired.set_offered(&slot, true);
        desired.renew_all(Swept::Yes);
        assert_eq!(desired.next_batch(10), [], "it may be the other node's");
        if is_taken_over {
            desired.release(&slot);
            let batch = desired.next_batch(10);
            assert!(batch[0].is_release && batch[0].put.is_none());
            for write in batch {
                assert_eq!(desired.answered(write, false), None);
            }
            assert!(desired.is_idle() && desired.entries.is_empty());
        } else {
            // It was swept with the lease, so it joins again.
            desired.set_offered(&slot, false);
            let joined = Event::Joined(slot, value("ann"));
            assert_eq!(carry_out(&mut desired, true), [joined]);
        }
    }
}

#[test]
fn a_member_that_is_taken_over_and_was_swept_joins_again() {
    let mut desired = DesiredState::default();
    let slot = member("a");
    desired.take_over(slot.clone(), value("ann"));
    assert_eq!(
        carry_out(&mut desired, true),
        [Event::Joined(slot, value("ann"))]
    );
}

#[test]
fn a_member_that_comes_back_before_its_release_is_written_stays() {
    let mut desired = DesiredState::default();
    let slot = member("a");
    desired.enter(slot.clone(), value("ann"));
    carry_out(&mut desired, true);
    desired.release(&slot);
    let batch = desired.next_batch(10);
    desired.take_over(slot.clone(), value("ann"));
    for write in batch {
        assert!(write.is_release);
        assert_eq!(desired.answered(write, false), None);
    }
    let batch = desired.next_batch(10);
    assert_eq!(batch[0].put, Some(value("ann")));
    for write in batch {
        assert_eq!(desired.answered(write, false), None);
    }
    assert!(desired.is_idle());
    desired.leave(&slot);
    assert_eq!(carry_out(&mut desired, true).len(), 1);

    // Nor is a release repeated that got no reply.
    desired.take_over(slot.clone(), value("ann"));
    carry_out(&mut desired, false);
    desired.release(&slot);
    lose(&mut desired);
    assert!(desired.next_batch(10)[0].is_release);
}

#[test]
fn stored_entries_are_listed_in_order_and_written_again_without_events_when_lost() {
    let mut desired = DesiredState::default();
    let slots = [member("a"), member("b"), member("c")];
    for slot in &slots {
        desired.enter(slot.clone(), value("x"));
    }
    assert_eq!(
        desired.stored_after(None, 9),
        [],
        "nothing stands there yet"
    );
    carry_out(&mut desired, true);
    let stored_entries = desired.stored_after(None, 2);
    let claimed = |stored_entries: &[StoredEntry]| {
        stored_entries
            .iter()
            .map(|stored_entry| stored_entry.slot.clone())
            .collect()
    };
    let first: Vec<Slot> = claimed(&stored_entries);
    assert_eq!(first, slots[..2]);
    let rest: Vec<Slot> = claimed(&desired.stored_after(first.last(), 2));
    assert_eq!(rest, slots[2..]);

    assert!(desired.lost(&stored_entries[0]));
    let mut batch = desired.next_batch(9);
    assert_eq!(batch[0].put, Some(value("x")));
    assert!(!desired.lost(&stored_entries[0]), "it is being written");
    assert_eq!(desired.answered(batch.remove(0), true), None);
    desired.leave(&slots[1]);
    carry_out(&mut desired, true);
    assert!(!desired.lost(&stored_entries[1]), "it has left meanwhile");
}

#[test]
fn a_stored_entry_from_before_a_new_lease_is_ignored() {
    let mut desired = DesiredState::default();
    desired.enter(member("a"), value("x"));
    carry_out(&mut desired, true);
    let stored_entries = desired.stored_after(None, 1);
    desired.renew_all(Swept::No);
    carry_out(&mut desired, true);
    assert!(!desired.lost(&stored_entries[0]));
}

#[test]
fn members_are_listed_by_channel() {
    let mut desired = DesiredState::default();
    let here = [member("b"), member("b")];
    for slot in [&member("a"), &here[0], &here[1], &member("ba")] {
        desired.enter(slot.clone(), value("x"));
    }
    desired.enter(Slot::User("ann".into()), Value::default());
    assert_eq!(desired.members(&channel("b")).len(), 2);
    desired.leave(&here[0]);
    assert_eq!(desired.members(&channel("b")).len(), 1);
    assert_eq!(desired.members(&channel("c")).len(), 0);
    assert!(desired.holds("ann") && !desired.holds("bob"));
}

/// What a Redis would store, and what a listener to all events believes.
#[derive(Default)]
struct World {
    stands: BTreeSet<Slot>,
    believed: BTreeSet<Slot>,
    /// A write got no reply: whether it or a sweeper was first is unknown, and an event may be published
    /// twice.
    is_unsure: bool,
}

impl World {
    fn carry_out(&mut self, write: &Write) -> bool {
        if write.put.is_some() {
            self.stands.insert(write.slot.clone())
        } else {
            self.stands.remove(&write.slot)
        }
    }

    fn apply(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Joined(slot, _)) => {
                let is_new = self.believed.insert(slot);
                assert!(is_new || self.is_unsure, "came twice");
            }
            Some(Event::Left(slot, _)) => {
                let was_believed = self.believed.remove(&slot);
                assert!(was_believed || self.is_unsure, "left twice");
            }
            None => {}
        }
    }
}

proptest! {
    #[test]
    fn redis_and_listeners_agree_with_the_desired_state_in_the_end(
        steps in proptest::collection::vec((0..8u8, 0..4usize), 0..60),
    ) {
        let slots: Vec<Slot> = (0..4).map(|_| member("a")).collect();
        let mut wanted = Vec::new();
        let mut desired = DesiredState::default();
        let mut world = World::default();
        let mut in_flight = Vec::new();
        for (step, index) in steps {
            let slot = &slots[index];
            match step {
                0 => {
                    wanted.push(slot.clone());
                    desired.enter(slot.clone(), value("x"));
                }
                1 => {
                    if let Some(at) = wanted.iter().position(|one| one == slot) {
                        wanted.swap_remove(at);
                    }
                    desired.leave(slot);
                }
                2 => in_flight.extend(desired.next_batch(index)),
                3 => for write in in_flight.drain(..) {
                    let is_change = world.carry_out(&write);
                    let event = desired.answered(write, is_change);
                    world.apply(event);
                },
                4 => for write in in_flight.drain(..) {
                    if index % 2 == 0 {
                        world.carry_out(&write);
                    }
                    world.is_unsure = true;
                    desired.unanswered(write);
                },
                5 => {
                    // One entry is evicted, and found missing.
                    let stored_entries = desired.stored_after(None, slots.len());
                    if let Some(stored_entry) = stored_entries.iter().find(|stored_entry| stored_entry.slot == *slot) {
                        prop_assert!(world.stands.remove(slot));
                        prop_assert!(desired.lost(stored_entry) && !desired.lost(stored_entry));
                    }
                }
                6 => {
                    // All of Redis's data is gone.
                    world.stands.clear();
                    desired.renew_all(Swept::No);
                }
                _ => {
                    // A sweeper publishes leave events for the entries it found, if they were announced.
                    if in_flight.is_empty() && desired.is_idle() {
                        let stands = mem::take(&mut world.stands);
                        for slot in &stands {
                            let was_known = world.believed.remove(slot);
                            assert!(was_known || world.is_unsure, "nobody knew of it");
                        }
                        desired.renew_all(Swept::Yes);
                    }
                }
            }
        }
        for write in in_flight.drain(..) {
            world.is_unsure = true;
            desired.unanswered(write);
        }
        loop {
            let batch = desired.next_batch(2);
            if batch.is_empty() {
                break;
            }
            for write in batch {
                let is_change = world.carry_out(&write);
                let event = desired.answered(write, is_change);
                world.apply(event);
            }
        }
        let wanted: BTreeSet<Slot> = wanted.into_iter().collect();
        prop_assert!(desired.is_idle());
        prop_assert_eq!(&world.stands, &wanted);
        prop_assert_eq!(&world.believed, &wanted);
    }
}
