//! Tests of the session machine: what SockJS promises, the deadlines, and any order of events.

use proptest::prelude::*;

use super::*;

const DELAYS: Delays = Delays {
    heartbeat: Duration::from_secs(25),
    disconnect: Duration::from_secs(5),
};

/// A session whose open frame has gone out and whose receiver is attached.
fn open(now: Instant) -> State {
    let mut state = State::new(DELAYS, now);
    assert_eq!(state.next(false, now), Next::Open);
    state
}

#[test]
fn the_first_frame_is_always_open_even_when_messages_wait() {
    let now = Instant::now();
    let mut state = State::new(DELAYS, now);
    assert_eq!(state.next(true, now), Next::Open);
    assert_eq!(state.next(true, now), Next::Messages);
    assert_eq!(state.next(false, now), Next::Wait);
}

#[test]
fn a_second_receiver_is_refused_while_the_first_lives() {
    let now = Instant::now();
    let mut state = open(now);
    assert_eq!(state.attach(now), Attach::Busy);
    state.detach(Detach::Answered, now);
    assert_eq!(state.attach(now), Attach::Attached);
    assert_eq!(state.next(false, now), Next::Wait);
}

#[test]
fn a_session_without_a_receiver_expires_exactly_at_the_disconnect_delay() {
    let start = Instant::now();
    let mut state = open(start);
    state.detach(Detach::Answered, start);
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
fn a_quiet_receiver_gets_a_heartbeat_and_traffic_puts_it_off() {
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
        state.detach(Detach::Answered, now);
        assert_eq!(state.tick(now + Duration::from_secs(4)), Tick::Keep);
        assert_eq!(state.attach(now), Attach::Attached);
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

#[derive(Debug, Clone, Copy)]
enum Event {
    Attach,
    Detach(bool),
    Next(bool),
    Close,
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Attach),
        any::<bool>().prop_map(Event::Detach),
        any::<bool>().prop_map(Event::Next),
        Just(Event::Close),
        (0_u64..40).prop_map(Event::Pass),
    ]
}

proptest! {
    #[test]
    fn any_order_of_events_keeps_one_open_one_receiver_and_an_end(
        events in proptest::collection::vec(event(), 0..60),
    ) {
        let mut now = Instant::now();
        let mut state = State::new(DELAYS, now);
        let mut attached = true;
        let mut opens = 0;
        let mut frames = 0;
        let mut closed = None;
        for event in events {
            match event {
                Event::Attach => {
                    prop_assert_eq!(state.attach(now) == Attach::Busy, attached);
                    attached = true;
                }
                Event::Detach(aborted) if attached => {
                    attached = false;
                    state.detach(if aborted { Detach::Aborted } else { Detach::Answered }, now);
                }
                Event::Next(queued) if attached => {
                    let next = state.next(queued, now);
                    prop_assert!(next != Next::Open || frames == 0);
                    opens += usize::from(next == Next::Open);
                    frames += usize::from(next != Next::Wait);
                    if let Next::Close(disconnect) = next {
                        prop_assert_eq!(*closed.get_or_insert(disconnect), disconnect);
                    }
                    prop_assert!(!(queued && next == Next::Wait));
                }
                Event::Detach(_) | Event::Next(_) => {}
                Event::Close => state.close(Disconnect::RESTART),
                Event::Pass(seconds) => now += Duration::from_secs(seconds),
            }
            prop_assert_eq!(state.is_attached(), attached);
            prop_assert!(opens <= 1);
        }
    }
}
