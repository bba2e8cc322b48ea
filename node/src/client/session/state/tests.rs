//! Tests of the session's state machine: the guarantees of SockJS, the deadlines, every state with every event, and
//! any order of events.

use proptest::prelude::*;

use super::*;

const DELAYS: Delays = Delays {
    heartbeat: Duration::from_secs(25),
    disconnect: Duration::from_secs(5),
};

/// A session whose open frame is sent and whose receiver is attached.
fn open(now: Instant) -> State {
    let mut state = State::new(DELAYS, now);
    assert_eq!(state.next(false, now), Next::Open);
    state
}

#[test]
fn the_first_frame_is_always_open_even_if_messages_are_queued() {
    let now = Instant::now();
    let mut state = State::new(DELAYS, now);
    assert_eq!(state.next(true, now), Next::Open);
    assert_eq!(state.next(true, now), Next::Messages);
    assert_eq!(state.next(false, now), Next::Wait);
}

#[test]
fn a_second_receiver_is_rejected_while_the_first_is_attached() {
    let now = Instant::now();
    let mut state = open(now);
    assert_eq!(state.attach(now), Attach::Busy);
    state.detach(Detach::Finished, now);
    assert_eq!(state.attach(now), Attach::Attached);
    assert_eq!(state.next(false, now), Next::Wait);
}

#[test]
fn a_session_without_a_receiver_expires_exactly_at_the_disconnect_delay() {
    let start = Instant::now();
    let mut state = open(start);
    state.detach(Detach::Finished, start);
    let just_before = start + DELAYS.disconnect - Duration::from_millis(1);
    assert_eq!(state.tick(just_before), Tick::Keep);
    assert_eq!(state.tick(start + DELAYS.disconnect), Tick::Expired);
}

#[test]
fn a_session_with_a_receiver_never_expires() {
    let start = Instant::now();
    let state = open(start);
    assert_ne!(state.tick(start + DELAYS.disconnect * 100), Tick::Expired);
}

#[test]
fn a_quiet_receiver_gets_a_heartbeat_and_traffic_delays_it() {
    let start = Instant::now();
    let mut state = open(start);
    let later = start + Duration::from_secs(20);
    assert_eq!(state.next(true, later), Next::Messages);

    let just_before = later + DELAYS.heartbeat - Duration::from_millis(1);
    assert_eq!(state.tick(just_before), Tick::Keep);
    assert_eq!(state.next(false, just_before), Next::Wait);

    let due = later + DELAYS.heartbeat;
    assert_eq!(state.tick(due), Tick::Wake);
    assert_eq!(state.next(false, due), Next::Heartbeat);
    assert_eq!(state.tick(due), Tick::Keep);
}

#[test]
fn an_aborted_receiver_ends_the_session_at_once() {
    let now = Instant::now();
    let mut state = open(now);
    state.detach(Detach::Aborted, now);
    assert_eq!(state.inbound(), Inbound::Unknown);
    assert_eq!(state.attach(now), Attach::Attached);
    assert_eq!(state.next(true, now), Next::Close(Disconnect::INTERRUPTED));
}

#[test]
fn a_close_follows_what_is_queued_and_every_later_receiver_gets_it_again() {
    let start = Instant::now();
    let mut state = State::new(DELAYS, start);
    state.close(Disconnect::RESTART);
    assert_eq!(state.inbound(), Inbound::Dropped);
    assert_eq!(state.next(true, start), Next::Open);
    assert_eq!(state.next(true, start), Next::Messages);
    for count in 0..3 {
        let now = start + Duration::from_secs(4) * count;
        assert_eq!(state.next(false, now), Next::Close(Disconnect::RESTART));
        state.detach(Detach::Finished, now);
        assert_eq!(state.tick(now + Duration::from_secs(4)), Tick::Keep);
        assert_eq!(state.attach(now), Attach::Attached);
    }
}

#[test]
fn a_session_that_is_sent_away_ends_its_receivers_after_a_frame_or_soon() {
    let start = Instant::now();
    let mut state = open(start);
    state.send_away();
    assert_eq!(state.next(true, start), Next::Messages);
    assert_eq!(state.next(false, start), Next::Leave);
    state.detach(Detach::Finished, start);
    assert_eq!(state.attach(start), Attach::Attached);
    assert_eq!(state.tick(start), Tick::Keep);
    assert_eq!(state.next(false, start), Next::Wait);
    let due = start + QUIET_MAX;
    assert_eq!(state.tick(due), Tick::Wake);
    assert_eq!(state.next(false, due), Next::Leave);
}

#[test]
fn one_receiver_ends_behind_what_is_queued_and_the_next_one_stays() {
    let start = Instant::now();
    let mut state = open(start);
    state.end_receiver();
    assert_eq!(state.next(true, start), Next::Messages);
    assert_eq!(state.next(false, start), Next::Leave);
    state.detach(Detach::Finished, start);
    // There is none that could end.
    state.end_receiver();
    assert_eq!(state.attach(start), Attach::Attached);
    assert_eq!(state.next(false, start), Next::Wait);
}

#[test]
fn a_session_of_another_node_continues_where_it_was() {
    let start = Instant::now();
    let mut state = State::continued(DELAYS, start);
    assert_eq!(state.tick(start + DELAYS.disconnect), Tick::Expired);
    assert_eq!(state.attach(start), Attach::Attached);
    assert_eq!(state.next(true, start), Next::Messages);
    assert_eq!(state.next(false, start), Next::Wait);
}

#[test]
fn a_session_that_was_handed_off_is_known_for_a_while() {
    let start = Instant::now();
    let mut state = open(start);
    state.detach(Detach::Finished, start);
    assert_eq!(state.begin_handoff(), Ok(()));
    assert_eq!(state.cut(), Ok(()));
    assert!(state.moved(start));
    let just_before = start + MOVED_KEPT - Duration::from_millis(1);
    assert_eq!(state.tick(just_before), Tick::Keep);
    assert_eq!(state.tick(start + MOVED_KEPT), Tick::Expired);
}

#[test]
fn a_receiver_that_keeps_coming_after_a_handoff_has_its_client_connect_again() {
    let start = Instant::now();
    let mut state = open(start);
    state.detach(Detach::Finished, start);
    assert_eq!(state.begin_handoff(), Ok(()));
    assert_eq!(state.cut(), Ok(()));
    assert!(state.moved(start));
    for (after, next) in [
        (Duration::ZERO, Next::Leave),
        (MOVED_LEAVES - Duration::from_millis(1), Next::Leave),
        (MOVED_LEAVES, Next::Close(Disconnect::RESTART)),
        (MOVED_KEPT, Next::Close(Disconnect::RESTART)),
    ] {
        let now = start + after;
        assert_eq!(state.attach(now), Attach::Attached);
        assert_eq!(state.next(false, now), next, "{after:?}");
        state.detach(Detach::Finished, now);
    }
}

#[test]
fn the_first_reason_of_a_close_stays() {
    let now = Instant::now();
    let mut state = open(now);
    state.close(Disconnect::SLOW);
    state.close(Disconnect::RESTART);
    state.detach(Detach::Aborted, now);
    assert_eq!(state.attach(now), Attach::Attached);
    assert_eq!(state.next(false, now), Next::Close(Disconnect::SLOW));
}

/// The whole state machine. A state is written as its name (`new` before the open frame), then `+` with a
/// receiver or `-` without. Below each event is the result, and after `>` the next state if it
/// is another one; `.` for neither. `*`: the event needs an attached receiver. `next`
/// is called with messages queued, without, and without after the heartbeat's delay; `tick` at once and
/// after both delays.
const TABLE: &str = "
state        attach                answered       aborted        next_queued    next_empty     next_quiet     close          inbound  tick  late     begin        take      stay    moved
new+         busy                  >new-          >cut_new-      open>open+     open>open+     open>open+     >closing_new+  taken    keep  wake     notopen      notopen   .       false
new-         attached>new+         *              *              *              *              *              >closing_new-  taken    keep  expired  notopen      notopen   .       false
open+        busy                  >open-         >cut-          messages       wait           heartbeat      >closing+      taken    keep  wake     ok>leaving+  notopen   .       false
open-        attached>open+        *              *              *              *              *              >closing-      taken    keep  expired  ok>leaving-  notopen   .       false
leaving+     busy                  >leaving-      >cut-          messages       leave          leave          >closing+      taken    keep  wake     busy         attached  >open+  false
leaving-     attached>leaving+     *              *              *              *              *              >closing-      taken    keep  expired  busy         ok>left-  >open-  false
left+        busy                  >left-         >cut-          leave          leave          leave          >closing+      taken    keep  wake     busy         busy      >open+  true>moved+
left-        attached>left+        *              *              *              *              *              >closing-      taken    keep  expired  busy         busy      >open-  true>moved-
moved+       busy                  >moved-        >moved-        leave          leave          c1012          .              late     keep  wake     notopen      notopen   .       false
moved-       attached>moved+       *              *              *              *              *              .              late     keep  keep     notopen      notopen   .       false
closing_new+ busy                  >closing_new-  >closing_new-  open>closing+  open>closing+  open>closing+  .              dropped  keep  wake     notopen      notopen   .       false
closing_new- attached>closing_new+ *              *              *              *              *              .              dropped  keep  expired  notopen      notopen   .       false
closing+     busy                  >closing-      >closing-      messages       c1012          c1012          .              dropped  keep  wake     notopen      notopen   .       false
closing-     attached>closing+     *              *              *              *              *              .              dropped  keep  expired  notopen      notopen   .       false
cut_new+     busy                  >cut_new-      >cut_new-      c1002          c1002          c1002          .              unknown  keep  wake     notopen      notopen   .       false
cut_new-     attached>cut_new+     *              *              *              *              *              .              unknown  keep  expired  notopen      notopen   .       false
cut+         busy                  >cut-          >cut-          c1002          c1002          c1002          .              unknown  keep  wake     notopen      notopen   .       false
cut-         attached>cut+         *              *              *              *              *              .              unknown  keep  expired  notopen      notopen   .       false
";

fn state_named(name: &str, now: Instant) -> State {
    let (name, receiver) = match name.strip_suffix('+') {
        Some(name) => (name, Receiver::Attached { quiet_since: now }),
        None => (
            name.strip_suffix('-').unwrap(),
            Receiver::Absent { since: now },
        ),
    };
    let (opened, phase) = match name {
        "new" => (false, Phase::Open),
        "open" => (true, Phase::Open),
        "closing_new" => (false, Phase::Closing(Disconnect::RESTART)),
        "closing" => (true, Phase::Closing(Disconnect::RESTART)),
        "cut_new" => (false, Phase::Interrupted),
        "cut" => (true, Phase::Interrupted),
        "leaving" | "left" => (true, Phase::Open),
        "moved" => (true, Phase::Moved { since: now }),
        _ => panic!("no state is called {name}"),
    };
    State {
        delays: DELAYS,
        is_sent_away: false,
        has_sent: false,
        receiver_ends: false,
        handoff: match name {
            "leaving" => Handoff::Begun,
            "left" => Handoff::Cut,
            _ => Handoff::None,
        },
        opened,
        close_sent: false,
        phase,
        receiver,
    }
}

fn name_of(state: &State) -> String {
    let phase = match (state.phase, state.opened) {
        (Phase::Open, false) => "new",
        (Phase::Open, true) => match state.handoff {
            Handoff::None => "open",
            Handoff::Begun => "leaving",
            Handoff::Cut => "left",
        },
        (Phase::Moved { .. }, _) => "moved",
        (Phase::Closing(_), false) => "closing_new",
        (Phase::Closing(_), true) => "closing",
        (Phase::Interrupted, false) => "cut_new",
        (Phase::Interrupted, true) => "cut",
    };
    let receiver = if state.is_attached() { '+' } else { '-' };
    format!("{phase}{receiver}")
}

fn result(result: Result<(), NotNow>) -> String {
    match result {
        Ok(()) => "ok".to_owned(),
        Err(not_now) => format!("{not_now:?}").to_lowercase(),
    }
}

/// Applies `event` and returns the result.
fn happen(state: &mut State, event: &str, now: Instant) -> String {
    let quiet = now + DELAYS.heartbeat;
    let next = |next: Next| match next {
        Next::Open => "open".to_owned(),
        Next::Messages => "messages".to_owned(),
        Next::Heartbeat => "heartbeat".to_owned(),
        Next::Leave => "leave".to_owned(),
        Next::Close(disconnect) => format!("c{}", disconnect.code),
        Next::Wait => "wait".to_owned(),
    };
    match event {
        "attach" => format!("{:?}", state.attach(now)).to_lowercase(),
        "answered" => {
            state.detach(Detach::Finished, now);
            String::new()
        }
        "aborted" => {
            state.detach(Detach::Aborted, now);
            String::new()
        }
        "next_queued" => next(state.next(true, now)),
        "next_empty" => next(state.next(false, now)),
        "next_quiet" => next(state.next(false, quiet)),
        "close" => {
            state.close(Disconnect::RESTART);
            String::new()
        }
        "inbound" => format!("{:?}", state.inbound()).to_lowercase(),
        "tick" => format!("{:?}", state.tick(now)).to_lowercase(),
        "begin" => result(state.begin_handoff()),
        "take" => result(state.cut()),
        "stay" => {
            state.stay();
            String::new()
        }
        "moved" => state.moved(now).to_string(),
        "late" => format!("{:?}", state.tick(quiet.max(now + DELAYS.disconnect))).to_lowercase(),
        _ => panic!("no event is called {event}"),
    }
}

#[test]
fn every_state_handles_every_event_as_in_the_table() {
    let now = Instant::now();
    let mut lines = TABLE.trim().lines().map(str::split_whitespace);
    let events: Vec<_> = lines.next().unwrap().skip(1).collect();
    let mut states = 0;
    for mut cells in lines {
        let name = cells.next().unwrap();
        let cells: Vec<_> = cells.collect();
        assert_eq!(cells.len(), events.len(), "{name}");
        states += 1;
        for (event, cell) in events.iter().zip(cells) {
            let mut state = state_named(name, now);
            assert_eq!(name_of(&state), name);
            let needs_receiver = needs_receiver(event);
            assert_eq!(
                cell == "*",
                needs_receiver && !state.is_attached(),
                "{event} in {name}"
            );
            if cell == "*" {
                continue;
            }
            let response = happen(&mut state, event, now);
            let (expected, follows) = cell.split_once('>').unwrap_or((cell, name));
            let expected = expected.trim_matches('.');
            assert_eq!(
                (&*response, &*name_of(&state)),
                (expected, follows),
                "{event} in {name}"
            );
        }
    }
    assert_eq!(
        states, 18,
        "three phases, opened or not, and those of a handoff, with a receiver or without"
    );
}

fn needs_receiver(event: &str) -> bool {
    event.starts_with("next") || matches!(event, "answered" | "aborted")
}

proptest! {
    /// Properties of any sequence of events, beyond single transitions.
    #[test]
    fn any_order_of_events_keeps_one_open_frame_one_reason_and_an_end(
        events in proptest::collection::vec((0_usize..11, 0_u64..30), 0..80),
    ) {
        const EVENTS: [&str; 11] = [
            "attach", "answered", "aborted", "next_queued", "next_empty", "close", "inbound", "tick",
            "begin", "take", "stay",
        ];
        let mut now = Instant::now();
        let mut state = State::new(DELAYS, now);
        let mut frames: Vec<String> = Vec::new();
        let mut absent_since = now;
        for (event, seconds) in events {
            let event = EVENTS[event];
            if needs_receiver(event) && !state.is_attached() {
                continue;
            }
            now += Duration::from_secs(seconds);
            let response = happen(&mut state, event, now);
            if event.starts_with("next") && response != "wait" {
                frames.push(response.clone());
            }
            if event == "tick" && !state.is_attached() {
                let is_over = DELAYS.disconnect <= now - absent_since;
                prop_assert_eq!(response == "expired", is_over);
            }
            if matches!(event, "answered" | "aborted") {
                absent_since = now;
            }
        }
        let opens = frames.iter().filter(|frame| *frame == "open").count();
        prop_assert!(opens <= 1);
        let is_open_first = frames.first().is_none_or(|first| first == "open");
        prop_assert!(is_open_first || state.is_interrupted(), "{frames:?}");
        if let Some(first_close) = frames.iter().position(|frame| frame.starts_with('c')) {
            let reason = &frames[first_close];
            let later = &frames[first_close..];
            // Queued messages are sent before the reason.
            prop_assert!(later.iter().all(|frame| frame == reason || frame == "messages"));
        }
    }
}
