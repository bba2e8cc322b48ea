use std::cell::Cell;
use std::rc::Rc;

use super::*;

/// Keeps a client in a channel until it is told to end; counts those that are there.
struct Seat {
    ended: Rc<Cell<bool>>,
    over: Rc<Cell<bool>>,
}

impl Ending for Seat {
    fn has_ended(&self) -> bool {
        self.ended.get()
    }

    fn is_over(&self) -> bool {
        self.over.get()
    }
}

const MAX: usize = 2;

fn name(channel: &str) -> ChannelName {
    ChannelName::new(channel).unwrap()
}

fn subscription(expire_at: Option<u64>, word: Word) -> Subscription<Seat> {
    Subscription {
        seat: Seat {
            ended: Rc::default(),
            over: Rc::default(),
        },
        source: Source::Client,
        overrides: Overrides::default(),
        info: Seldom::default(),
        expire_at,
        word,
    }
}

fn identity(expire_at: Option<u64>, word: Word) -> Identity {
    Identity {
        user: "ann".into(),
        info: Seldom::default(),
        for_hooks: ForHooks::default(),
        expire_at,
        word,
        _listed: None,
    }
}

fn connected() -> State<Seat> {
    let mut state = State::new();
    state.begin_connect().unwrap();
    assert!(state.welcome(identity(None, Word::Token)));
    state
}

/// A client that hears `channel`, and what ends that.
fn hears(state: &mut State<Seat>, channel: &str) -> Rc<Cell<bool>> {
    hears_and_is_told(state, channel).0
}

/// The same, with what says whether the client was told of the end.
fn hears_and_is_told(state: &mut State<Seat>, channel: &str) -> (Rc<Cell<bool>>, Rc<Cell<bool>>) {
    let channel = name(channel);
    let ticket = state.reserve(&channel, MAX).unwrap();
    let subscription = subscription(None, Word::Token);
    let ended = Rc::clone(&subscription.seat.ended);
    let over = Rc::clone(&subscription.seat.over);
    assert!(state.sit(&channel, ticket, subscription).is_ok());
    (ended, over)
}

#[test]
fn a_client_connects_once() {
    let mut state = State::<Seat>::new();
    assert!(state.identity().is_err() && state.is_outside());
    state.begin_connect().unwrap();
    assert_eq!(state.begin_connect(), Err(OutOfOrder));
    assert!(state.identity().is_err() && state.is_outside());
    assert!(state.welcome(identity(None, Word::Token)));
    assert_eq!(&*state.identity().unwrap().user, "ann");
    assert!(!state.is_outside());
    assert_eq!(state.begin_connect(), Err(OutOfOrder));
}

#[test]
fn one_that_was_refused_may_try_again() {
    let mut state = State::<Seat>::new();
    state.begin_connect().unwrap();
    state.refuse_connect();
    assert_eq!(state.begin_connect(), Ok(()));
}

#[test]
fn one_that_has_gone_stays_away() {
    let mut state = State::<Seat>::new();
    state.begin_connect().unwrap();
    drop(state.close());
    assert!(!state.welcome(identity(None, Word::Token)));
    assert_eq!(state.begin_connect(), Err(OutOfOrder));
    assert_eq!(state.reserve(&name("a"), MAX), Err(ErrorCode::Internal));
    assert!(!state.is_outside());
}

#[test]
fn a_channel_is_heard_once_and_no_more_than_the_limit() {
    let mut state = connected();
    hears(&mut state, "a");
    let reserved = state.reserve(&name("b"), MAX).unwrap();
    for channel in ["a", "b"] {
        let again = state.reserve(&name(channel), MAX);
        assert_eq!(again, Err(ErrorCode::AlreadySubscribed), "{channel}");
    }
    let third = state.reserve(&name("c"), MAX);
    assert_eq!(third, Err(ErrorCode::LimitExceeded));
    state.cancel(&name("b"), reserved);
    assert!(state.reserve(&name("c"), MAX).is_ok());
}

#[test]
fn an_unsubscribe_is_not_undone_by_a_subscribe_that_is_late() {
    let mut state = connected();
    let channel = name("a");
    let late = state.reserve(&channel, MAX).unwrap();
    assert!(matches!(state.leave(&channel), Left::Reservation));
    assert!(matches!(state.leave(&channel), Left::Reservation));
    // The client is yet to be told of the end of the first.
    let too_early = state.reserve(&channel, MAX);
    assert_eq!(too_early, Err(ErrorCode::AlreadySubscribed));
    let one = subscription(None, Word::Token);
    assert!(state.sit(&channel, late, one).is_err());
    state.cancel(&channel, late);
    let newer = state.reserve(&channel, MAX).unwrap();
    state.cancel(&channel, late);
    let one = subscription(None, Word::Token);
    assert!(state.sit(&channel, newer, one).is_ok());
    state.cancel(&channel, newer);
    assert!(state.subscription(&channel).is_some());
    assert!(matches!(state.leave(&channel), Left::Subscription(_)));
    assert!(matches!(state.leave(&channel), Left::Nothing));
}

#[test]
fn one_that_was_told_the_end_may_subscribe_again() {
    let mut state = connected();
    let ended = hears(&mut state, "a");
    assert!(state.subscription(&name("a")).is_some());
    ended.set(true);
    assert!(state.subscription(&name("a")).is_none());
    assert!(state.reserve(&name("a"), MAX).is_ok());
}

#[test]
fn only_what_has_ended_by_itself_is_given_up_and_only_once_the_client_was_told() {
    let mut state = connected();
    let (ended, told) = hears_and_is_told(&mut state, "a");
    let (goes_on, told_too) = hears_and_is_told(&mut state, "b");
    assert!(state.leave_ended().is_empty());
    ended.set(true);
    assert!(state.leave_ended().is_empty());
    told.set(true);
    let left = state.leave_ended();
    assert_eq!(left.len(), 1);
    assert!(Rc::ptr_eq(&left[0].seat.ended, &ended));
    assert!(state.leave_ended().is_empty());
    assert!(state.subscription(&name("b")).is_some());
    goes_on.set(true);
    told_too.set(true);
    assert_eq!(state.leave_ended().len(), 1);
    assert_eq!(state.places.len(), 0);
}

#[test]
fn the_end_of_a_client_ends_its_subscriptions() {
    let mut state = connected();
    let ended = hears(&mut state, "a");
    assert_eq!(Rc::strong_count(&ended), 2);
    drop(state.close());
    assert_eq!(Rc::strong_count(&ended), 1);
}

#[test]
fn who_has_to_bring_a_token_has_time_for_it() {
    for (word, over) in [(Word::Token, 125), (Word::Hook, 100)] {
        let mut state = State::<Seat>::new();
        state.begin_connect().unwrap();
        state.welcome(identity(Some(100), word));
        assert_eq!(state.next_expiry(), Some(over));
        assert!(!state.has_expired(over - 1), "{word:?}");
        assert!(state.has_expired(over), "{word:?}");
    }
}

#[test]
fn each_subscription_has_an_end_of_its_own() {
    let mut state = connected();
    assert_eq!(state.next_expiry(), None);
    for (channel, expire_at, word) in [
        ("a", Some(200), Word::Token),
        ("b", Some(210), Word::Hook),
        ("c", None, Word::Hook),
    ] {
        let channel = name(channel);
        let ticket = state.reserve(&channel, 3).unwrap();
        assert!(
            state
                .sit(&channel, ticket, subscription(expire_at, word))
                .is_ok()
        );
    }
    assert_eq!(state.next_expiry(), Some(210));
    assert_eq!(state.expired(209), []);
    assert_eq!(state.expired(210), [name("b")]);
    let mut expired = state.expired(225);
    expired.sort();
    assert_eq!(expired, [name("a"), name("b")]);
}
