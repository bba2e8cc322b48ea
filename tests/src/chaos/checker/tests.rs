//! Hand-written histories: each of them with one thing that is wrong, and the ones that are right.

use super::*;

const EVERYBODY_AT: Duration = Duration::from_secs(1);

/// One channel, and as many clients that follow it as wanted. Time goes on by a millisecond with each step.
struct Story {
    checker: Checker,
    now: Duration,
}

fn position(epoch: &str, offset: u64) -> Position {
    let epoch = epoch.into();
    Position { epoch, offset }
}

impl Story {
    /// With all clients connected and subscribed at offset 0 of epoch `a`.
    fn of(clients: usize) -> Self {
        let follows = vec![vec![0]; clients];
        let mut story = Self {
            checker: Checker::new(&["deep:0".to_owned()], &follows),
            now: EVERYBODY_AT,
        };
        for client in 0..clients {
            story.checker.connected(client, 0, story.now);
            story.subscribed(client, None, false, position("a", 0), &[]);
        }
        story
    }

    fn tick(&mut self) -> Duration {
        self.now += Duration::from_millis(1);
        self.now
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.checker.look(self.now, Duration::ZERO);
    }

    fn acked(&mut self, id: u64, at: Position) {
        let now = self.tick();
        self.checker.sent(0, id, now);
        let now = self.tick();
        self.checker.acked(0, id, &at, now);
    }

    fn heard(&mut self, client: usize, offsets: &[u64]) {
        for offset in offsets {
            let now = self.tick();
            self.checker.heard(client, 0, *offset, *offset, now);
        }
    }

    fn subscribed(
        &mut self,
        client: usize,
        since: Option<Position>,
        recovered: bool,
        position: Position,
        offsets: &[u64],
    ) {
        let told = Subscribed {
            since,
            recovered,
            position,
            publications: offsets.iter().map(|offset| (*offset, *offset)).collect(),
        };
        let now = self.tick();
        self.checker.subscribed(client, 0, &told, now);
    }

    fn disconnected(&mut self, client: usize) {
        let now = self.tick();
        self.checker.disconnected(client, "so", now);
    }

    fn found(&self) -> Vec<Kind> {
        let violations = self.checker.violations().iter();
        violations.map(|violation| violation.kind).collect()
    }
}

/// Messages 1 to 4 were acknowledged at the offsets of the same numbers.
fn four_acked(clients: usize) -> Story {
    let mut story = Story::of(clients);
    for id in 1..=4 {
        story.acked(id, position("a", id));
    }
    story
}

#[test]
fn what_comes_once_and_in_order_is_right() {
    let mut story = four_acked(2);
    story.heard(0, &[1, 2, 3, 4]);
    story.heard(1, &[1, 2]);
    story.disconnected(1);
    story.subscribed(1, Some(position("a", 2)), true, position("a", 2), &[3, 4]);
    story.wait(60);
    story.checker.finish(&[position("a", 4)], story.now);
    assert_eq!(story.found(), []);
}

#[test]
fn a_dropped_publication_is_lost_once_it_can_no_longer_come() {
    let mut story = four_acked(1);
    story.heard(0, &[1, 2, 4]);
    assert_eq!(story.found(), []);
    story.wait(6);
    assert_eq!(story.found(), [Kind::Lost]);
    assert!(story.checker.violations()[0].detail.contains("offset 3"));
}

#[test]
fn a_dropped_last_publication_is_overdue() {
    let mut story = four_acked(1);
    story.heard(0, &[1, 2, 3]);
    story.wait(4);
    assert_eq!(story.found(), []);
    story.wait(2);
    assert_eq!(story.found(), [Kind::Overdue]);
    story.wait(10);
    assert_eq!(story.found(), [Kind::Overdue], "it is reported once");
    story.checker.finish(&[position("a", 4)], story.now);
    assert_eq!(story.found(), [Kind::Overdue, Kind::Unsettled]);
}

#[test]
fn a_repeated_publication_is_repeated() {
    let mut story = four_acked(1);
    story.heard(0, &[1, 2, 2, 3, 4]);
    assert_eq!(story.found(), [Kind::Repeated]);
}

#[test]
fn swapped_publications_are_reordered_and_not_lost() {
    let mut story = four_acked(1);
    story.heard(0, &[1, 3, 2, 4]);
    story.wait(60);
    story.checker.finish(&[position("a", 4)], story.now);
    assert_eq!(story.found(), [Kind::Reordered]);
}

#[test]
fn offsets_in_order_with_the_wrong_messages_are_muddled() {
    let mut story = four_acked(1);
    story.heard(0, &[1]);
    let now = story.tick();
    story.checker.heard(0, 0, 2, 3, now);
    assert_eq!(story.found(), [Kind::Muddled]);
}

#[test]
fn a_retry_that_was_stored_twice_is_muddled_also_if_nobody_hears_it() {
    let mut story = Story::of(1);
    story.acked(1, position("a", 1));
    let now = story.tick();
    story.checker.acked(0, 1, &position("a", 2), now);
    assert_eq!(story.found(), [Kind::Muddled]);
}

#[test]
fn a_disconnect_with_a_recovery_excuses_nothing() {
    let mut story = four_acked(1);
    story.heard(0, &[1]);
    story.disconnected(0);
    story.subscribed(0, Some(position("a", 1)), true, position("a", 1), &[2, 4]);
    story.wait(6);
    assert_eq!(story.found(), [Kind::Lost]);
    story.disconnected(0);
    story.subscribed(0, Some(position("a", 4)), true, position("a", 3), &[4]);
    assert_eq!(story.found(), [Kind::Lost, Kind::Rewound]);
}

#[test]
fn who_is_told_that_it_cannot_recover_has_lost_nothing_in_silence() {
    let mut story = four_acked(1);
    story.heard(0, &[1]);
    story.disconnected(0);
    story.subscribed(0, Some(position("a", 1)), false, position("b", 2), &[]);
    story.acked(5, position("b", 3));
    let now = story.tick();
    story.checker.heard(0, 0, 3, 5, now);
    story.wait(60);
    story.checker.finish(&[position("b", 3)], story.now);
    assert_eq!(story.found(), []);
    assert_eq!(story.checker.counts.excused, 3);
}

#[test]
fn what_was_passed_over_before_the_notice_was_lost_in_silence() {
    let mut story = four_acked(1);
    story.heard(0, &[1, 3]);
    story.disconnected(0);
    story.subscribed(0, Some(position("a", 3)), false, position("a", 4), &[]);
    assert_eq!(story.found(), [Kind::Lost]);
}

#[test]
fn an_unsubscribe_is_a_notice_and_what_comes_after_it_is_uninvited() {
    let mut story = four_acked(1);
    story.heard(0, &[1, 2, 3]);
    let now = story.tick();
    story.checker.unsubscribed(0, 0, 2500, now);
    story.wait(60);
    assert_eq!(story.found(), []);
    story.heard(0, &[4]);
    assert_eq!(story.found(), [Kind::Uninvited]);
}

#[test]
fn who_stays_in_an_epoch_that_is_over_is_to_be_told() {
    let mut story = four_acked(2);
    story.heard(0, &[1, 2, 3, 4]);
    story.heard(1, &[1, 2, 3, 4]);
    story.acked(5, position("b", 3));
    story.disconnected(1);
    story.wait(6);
    assert_eq!(story.found(), [Kind::Overdue]);
    assert_eq!(story.checker.violations()[0].client, Some(0));
}

#[test]
fn an_old_acknowledgement_that_is_late_concerns_nobody_who_came_after_it() {
    let mut story = Story::of(1);
    let now = story.tick();
    story.checker.sent(0, 1, now);
    story.disconnected(0);
    story.subscribed(0, Some(position("a", 0)), false, position("b", 0), &[]);
    let now = story.tick();
    story.checker.acked(0, 1, &position("a", 1), now);
    story.wait(60);
    assert_eq!(story.found(), []);
}

#[test]
fn who_is_told_a_position_behind_which_its_message_is_not_has_lost_it() {
    let mut story = four_acked(1);
    story.heard(0, &[1, 2, 3, 4]);
    story.disconnected(0);
    story.subscribed(0, Some(position("a", 4)), false, position("a", 9), &[]);
    story.acked(5, position("a", 5));
    assert_eq!(story.found(), [Kind::Lost]);
}

#[test]
fn a_position_that_goes_back_in_its_epoch_is_rewound_and_in_another_it_is_not() {
    for (epoch, found) in [("a", vec![Kind::Rewound]), ("b", vec![])] {
        let mut story = four_acked(1);
        story.heard(0, &[1, 2, 3, 4]);
        story.disconnected(0);
        let begins_at = position(epoch, 2);
        story.subscribed(0, Some(position("a", 4)), false, begins_at, &[]);
        assert_eq!(story.found(), found);
    }
}

#[test]
fn who_was_there_before_the_stream_follows_it_and_no_other() {
    let mut story = Story::of(1);
    let before = position("u.0.1.2", 0);
    story.disconnected(0);
    story.subscribed(0, None, false, before.clone(), &[]);
    story.acked(1, position("a", 1));
    story.heard(0, &[1]);
    story.disconnected(0);
    let since = Position {
        offset: 1,
        ..before
    };
    story.subscribed(0, Some(since), true, position("a", 1), &[]);
    story.wait(60);
    assert_eq!(story.found(), []);
    story.acked(2, position("b", 1));
    story.wait(60);
    assert_eq!(story.found(), [Kind::Overdue]);
}

#[test]
fn the_time_begins_when_nothing_stands_in_the_way_any_more() {
    for (scope, concerns) in [
        (Scope::Everyone, true),
        (Scope::Node(0), true),
        (Scope::Node(1), false),
        (Scope::Client(0), true),
        (Scope::Client(1), false),
    ] {
        let mut story = Story::of(1);
        let now = story.tick();
        let fault = story.checker.fault_began("so".to_owned(), vec![scope], now);
        story.acked(1, position("a", 1));
        story.wait(10);
        assert_eq!(story.found().is_empty(), concerns, "{scope:?}");
        story.checker.fault_ended(fault, story.now);
        story.wait(5);
        assert_eq!(story.found().is_empty(), concerns, "{scope:?}");
        story.wait(1);
        assert_eq!(story.found(), [Kind::Overdue], "{scope:?}");
    }
}

#[test]
fn a_message_that_nobody_has_sent_is_muddled() {
    let mut story = Story::of(1);
    story.heard(0, &[1]);
    assert_eq!(story.found(), [Kind::Muddled]);
}

#[test]
fn a_publisher_whose_messages_change_places_is_noticed() {
    let mut story = Story::of(0);
    story.acked(1, position("a", 2));
    story.acked(2, position("a", 1));
    assert_eq!(story.found(), [Kind::Muddled]);
}

#[test]
fn a_report_says_what_the_client_saw_and_what_was_going_on() {
    let mut story = four_acked(1);
    let now = story.tick();
    story
        .checker
        .fault_began("wire cut".to_owned(), vec![Scope::Node(0)], now);
    story.heard(0, &[1, 1]);
    let text = story.checker.violations()[0].to_string();
    for part in [
        "Repeated in deep:0, client 0 on node 1",
        "offset 1, message 1, after 1@a",
        "during wire cut (from",
        "saw     1.001s subscribed at 0@a",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}
