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

/// Carries out everything, as a Redis in which each write is a change or not; the news.
fn carry_out(ledger: &mut Ledger, is_change: bool) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        let batch = ledger.next_batch(3);
        if batch.is_empty() {
            assert!(ledger.is_idle());
            return events;
        }
        for write in batch {
            events.extend(ledger.answered(write, is_change));
        }
    }
}

fn lose(ledger: &mut Ledger) -> Vec<Option<Value>> {
    let batch = ledger.next_batch(100);
    let puts = batch.iter().map(|write| write.put.clone()).collect();
    batch.into_iter().for_each(|write| ledger.unanswered(write));
    puts
}

#[test]
fn a_member_is_written_told_and_taken_out_once() {
    let mut ledger = Ledger::default();
    let slot = member("a");
    ledger.enter(slot.clone(), value("ann"));
    let came = Event::Came(slot.clone(), value("ann"));
    assert_eq!(carry_out(&mut ledger, true), [came]);
    ledger.change(&slot, value("ann"));
    assert!(ledger.is_idle(), "it stands there already");
    ledger.leave(&slot);
    let left = Event::Left(slot.clone(), value("ann"));
    assert_eq!(carry_out(&mut ledger, true), [left]);
    ledger.leave(&slot);
    assert!(ledger.is_idle() && ledger.entries.is_empty());
}

#[test]
fn who_comes_again_before_its_going_is_noticed_stays() {
    let mut ledger = Ledger::default();
    let slot = member("a");
    ledger.enter(slot.clone(), value("ann"));
    carry_out(&mut ledger, true);
    ledger.enter(slot.clone(), value("ann, again"));
    ledger.leave(&slot);
    assert_eq!(carry_out(&mut ledger, false), []);
    let members = ledger.members(&channel("a"));
    assert_eq!(members[0].1, value("ann, again").info);
    ledger.leave(&slot);
    let left = Event::Left(slot, value("ann, again"));
    assert_eq!(carry_out(&mut ledger, true), [left]);
}

#[test]
fn who_leaves_before_anything_was_written_never_came() {
    let mut ledger = Ledger::default();
    let slot = member("a");
    ledger.enter(slot.clone(), value("ann"));
    ledger.leave(&slot);
    assert!(ledger.is_idle() && ledger.entries.is_empty());
}

#[test]
fn a_wish_that_changes_while_a_write_is_under_way_goes_out_next() {
    let mut ledger = Ledger::default();
    let slot = member("a");
    ledger.enter(slot.clone(), value("ann"));
    let mut batch = ledger.next_batch(10);
    ledger.leave(&slot);
    assert!(ledger.next_batch(10).is_empty(), "one batch at a time");
    let came = ledger.answered(batch.remove(0), true);
    assert_eq!(came, Some(Event::Came(slot.clone(), value("ann"))));
    let left = Event::Left(slot, value("ann"));
    assert_eq!(carry_out(&mut ledger, true), [left]);
}

#[test]
fn new_information_is_written_without_news() {
    let mut ledger = Ledger::default();
    let slot = member("a");
    ledger.enter(slot.clone(), value("ann"));
    carry_out(&mut ledger, true);
    ledger.change(&slot, value("ann, tired"));
    let batch = ledger.next_batch(10);
    assert_eq!(batch[0].put, Some(value("ann, tired")));
    assert_eq!(ledger.answered(batch[0].clone(), false), None);
    assert!(ledger.is_idle());
}

#[test]
fn an_unanswered_write_is_tried_again_and_its_news_is_not_lost() {
    let mut ledger = Ledger::default();
    let slot = member("a");
    ledger.enter(slot.clone(), value("ann"));
    assert_eq!(lose(&mut ledger), [Some(value("ann"))]);
    // It had arrived all the same, so nothing changes now.
    let came = Event::Came(slot.clone(), value("ann"));
    assert_eq!(carry_out(&mut ledger, false), [came]);
    ledger.leave(&slot);
    assert_eq!(lose(&mut ledger), [None]);
    let left = Event::Left(slot, value("ann"));
    assert_eq!(carry_out(&mut ledger, false), [left]);
}

#[test]
fn who_leaves_after_an_unanswered_write_is_taken_out() {
    let mut ledger = Ledger::default();
    let slot = member("a");
    ledger.enter(slot.clone(), value("ann"));
    lose(&mut ledger);
    ledger.leave(&slot);
    let batch = ledger.next_batch(10);
    assert_eq!(batch[0].put, None);
    // Nobody was told that it came.
    assert_eq!(ledger.answered(batch[0].clone(), true), None);
    assert!(ledger.entries.is_empty());
}

#[test]
fn wishes_are_settled_in_their_order() {
    let mut ledger = Ledger::default();
    let first = ledger.enter(member("a"), value("ann"));
    let second = ledger.enter(member("b"), value("bob"));
    assert!(!ledger.is_settled(first));
    let mut batch = ledger.next_batch(1);
    assert!(!ledger.is_settled(first));
    ledger.unanswered(batch.remove(0));
    assert!(!ledger.is_settled(first));
    let mut batch = ledger.next_batch(1);
    ledger.answered(batch.remove(0), true);
    assert!(ledger.is_settled(first));
    assert!(!ledger.is_settled(second));
    carry_out(&mut ledger, true);
    assert!(ledger.is_settled(second));
}

#[test]
fn under_a_new_lease_everything_is_written_again() {
    let mut ledger = Ledger::default();
    let user = Slot::User("ann".into());
    let slot = member("a");
    ledger.enter(user.clone(), Value::default());
    ledger.enter(slot.clone(), value("ann"));
    carry_out(&mut ledger, true);
    ledger.renew_all(Swept::No);
    let batch = ledger.next_batch(10);
    let slots: Vec<&Slot> = batch.iter().map(|write| &write.slot).collect();
    assert_eq!(slots, [&user, &slot]);
    // All of Redis's data was gone: nobody was told that they left, so nobody is told that they came.
    for write in batch {
        assert_eq!(ledger.answered(write, true), None);
    }
    assert!(ledger.is_idle());
}

#[test]
fn who_was_swept_comes_again() {
    let mut ledger = Ledger::default();
    let (swept, spared) = (member("a"), member("b"));
    ledger.enter(swept.clone(), value("ann"));
    ledger.enter(spared, value("bob"));
    carry_out(&mut ledger, true);
    ledger.renew_all(Swept::Yes);
    let mut batch = ledger.next_batch(10);
    assert_eq!(ledger.answered(batch.remove(1), false), None);
    let came = Event::Came(swept, value("ann"));
    assert_eq!(ledger.answered(batch.remove(0), true), Some(came));
    ledger.renew_all(Swept::No);
    assert_eq!(carry_out(&mut ledger, true), []);
}

#[test]
fn what_was_written_under_the_lease_before_is_written_again() {
    let mut ledger = Ledger::default();
    ledger.enter(member("a"), value("ann"));
    let batch = ledger.next_batch(10);
    ledger.renew_all(Swept::No);
    for write in batch {
        ledger.answered(write, true);
    }
    assert_eq!(ledger.next_batch(10)[0].put, Some(value("ann")));
}

#[test]
fn who_leaves_while_the_lease_changes_is_taken_out_all_the_same() {
    let mut ledger = Ledger::default();
    let (user, slot) = (Slot::User("ann".into()), member("a"));
    ledger.enter(user.clone(), Value::default());
    ledger.enter(slot.clone(), value("ann"));
    carry_out(&mut ledger, true);
    ledger.leave(&user);
    ledger.leave(&slot);
    ledger.renew_all(Swept::No);
    let left = Event::Left(slot, value("ann"));
    assert_eq!(carry_out(&mut ledger, true), [left]);
    assert!(ledger.entries.is_empty());
}

#[test]
fn what_stands_is_claimed_in_order_and_written_again_without_news_when_it_is_lost() {
    let mut ledger = Ledger::default();
    let slots = [member("a"), member("b"), member("c")];
    for slot in &slots {
        ledger.enter(slot.clone(), value("x"));
    }
    assert_eq!(
        ledger.standing_behind(None, 9),
        [],
        "nothing stands there yet"
    );
    carry_out(&mut ledger, true);
    let claims = ledger.standing_behind(None, 2);
    let claimed = |claims: &[Claim]| claims.iter().map(|claim| claim.slot.clone()).collect();
    let first: Vec<Slot> = claimed(&claims);
    assert_eq!(first, slots[..2]);
    let rest: Vec<Slot> = claimed(&ledger.standing_behind(first.last(), 2));
    assert_eq!(rest, slots[2..]);

    assert!(ledger.lost(&claims[0]));
    let mut batch = ledger.next_batch(9);
    assert_eq!(batch[0].put, Some(value("x")));
    assert!(!ledger.lost(&claims[0]), "it is being written");
    assert_eq!(ledger.answered(batch.remove(0), true), None);
    ledger.leave(&slots[1]);
    carry_out(&mut ledger, true);
    assert!(!ledger.lost(&claims[1]), "it has left meanwhile");
}

#[test]
fn a_claim_from_before_a_new_lease_is_none() {
    let mut ledger = Ledger::default();
    ledger.enter(member("a"), value("x"));
    carry_out(&mut ledger, true);
    let claims = ledger.standing_behind(None, 1);
    ledger.renew_all(Swept::No);
    carry_out(&mut ledger, true);
    assert!(!ledger.lost(&claims[0]));
}

#[test]
fn members_are_those_of_one_channel() {
    let mut ledger = Ledger::default();
    let here = [member("b"), member("b")];
    for slot in [&member("a"), &here[0], &here[1], &member("ba")] {
        ledger.enter(slot.clone(), value("x"));
    }
    ledger.enter(Slot::User("ann".into()), Value::default());
    assert_eq!(ledger.members(&channel("b")).len(), 2);
    ledger.leave(&here[0]);
    assert_eq!(ledger.members(&channel("b")).len(), 1);
    assert_eq!(ledger.members(&channel("c")).len(), 0);
    assert!(ledger.holds("ann") && !ledger.holds("bob"));
}

/// What a Redis would hold, and what somebody who hears all news believes.
#[derive(Default)]
struct World {
    stands: BTreeSet<Slot>,
    believed: BTreeSet<Slot>,
    /// A write was not answered: whether it or a sweeper was first, nobody can tell, and who came or left may
    /// be told of twice.
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

    fn hear(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Came(slot, _)) => {
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
    fn whatever_happens_redis_and_listeners_agree_with_the_wishes_in_the_end(
        steps in proptest::collection::vec((0..8u8, 0..4usize), 0..60),
    ) {
        let slots: Vec<Slot> = (0..4).map(|_| member("a")).collect();
        let mut wanted = Vec::new();
        let mut ledger = Ledger::default();
        let mut world = World::default();
        let mut under_way = Vec::new();
        for (step, index) in steps {
            let slot = &slots[index];
            match step {
                0 => {
                    wanted.push(slot.clone());
                    ledger.enter(slot.clone(), value("x"));
                }
                1 => {
                    if let Some(at) = wanted.iter().position(|one| one == slot) {
                        wanted.swap_remove(at);
                    }
                    ledger.leave(slot);
                }
                2 => under_way.extend(ledger.next_batch(index)),
                3 => for write in under_way.drain(..) {
                    let is_change = world.carry_out(&write);
                    let event = ledger.answered(write, is_change);
                    world.hear(event);
                },
                4 => for write in under_way.drain(..) {
                    if index % 2 == 0 {
                        world.carry_out(&write);
                    }
                    world.is_unsure = true;
                    ledger.unanswered(write);
                },
                5 => {
                    // One entry is evicted, and that is found.
                    let claims = ledger.standing_behind(None, slots.len());
                    if let Some(claim) = claims.iter().find(|claim| claim.slot == *slot) {
                        prop_assert!(world.stands.remove(slot));
                        prop_assert!(ledger.lost(claim) && !ledger.lost(claim));
                    }
                }
                6 => {
                    // All of Redis's data is gone.
                    world.stands.clear();
                    ledger.renew_all(Swept::No);
                }
                _ => {
                    // Whoever sweeps tells of those that it found, if it was told of them.
                    if under_way.is_empty() && ledger.is_idle() {
                        let stands = mem::take(&mut world.stands);
                        for slot in &stands {
                            let was_known = world.believed.remove(slot);
                            assert!(was_known || world.is_unsure, "nobody knew of it");
                        }
                        ledger.renew_all(Swept::Yes);
                    }
                }
            }
        }
        for write in under_way.drain(..) {
            world.is_unsure = true;
            ledger.unanswered(write);
        }
        loop {
            let batch = ledger.next_batch(2);
            if batch.is_empty() {
                break;
            }
            for write in batch {
                let is_change = world.carry_out(&write);
                let event = ledger.answered(write, is_change);
                world.hear(event);
            }
        }
        let wanted: BTreeSet<Slot> = wanted.into_iter().collect();
        prop_assert!(ledger.is_idle());
        prop_assert_eq!(&world.stands, &wanted);
        prop_assert_eq!(&world.believed, &wanted);
    }
}
