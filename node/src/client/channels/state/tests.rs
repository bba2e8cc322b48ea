use std::cell::Cell;
use std::rc::Rc;

use super::*;

/// An attachment that a test can end; counts those that exist.
struct Attachment {
    ended: Rc<Cell<bool>>,
    over: Rc<Cell<bool>>,
}

impl Ending for Attachment {
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

fn subscription(expire_at: Option<u64>, auth_source: AuthSource) -> Subscription<Attachment> {
    Subscription {
        attachment: Attachment {
            ended: Rc::default(),
            over: Rc::default(),
        },
        source: Source::Client,
        overrides: Overrides::default(),
        info: OptionalBytes::default(),
        expire_at,
        auth_source,
    }
}

fn identity(expire_at: Option<u64>, auth_source: AuthSource) -> Identity {
    Identity {
        user: "ann".into(),
        info: OptionalBytes::default(),
        for_hooks: ForHooks::default(),
        expire_at,
        auth_source,
        listed: None,
    }
}

fn connected() -> State<Attachment> {
    let mut state = State::new();
    state.begin_connect().unwrap();
    assert!(state.set_connected(identity(None, AuthSource::Token)));
    state
}

/// Subscribes a client to `channel`; the flag ends the subscription.
fn subscribe(state: &mut State<Attachment>, channel: &str) -> Rc<Cell<bool>> {
    subscribe_with_flags(state, channel).0
}

/// The same, with a flag that says whether the unsubscribe is written.
fn subscribe_with_flags(
    state: &mut State<Attachment>,
    channel: &str,
) -> (Rc<Cell<bool>>, Rc<Cell<bool>>) {
    let channel = name(channel);
    let ticket = state.reserve(&channel, MAX).unwrap();
    let subscription = subscription(None, AuthSource::Token);
    let ended = Rc::clone(&subscription.attachment.ended);
    let over = Rc::clone(&subscription.attachment.over);
    assert!(state.activate(&channel, ticket, subscription).is_ok());
    (ended, over)
}

#[test]
fn a_client_connects_once() {
    let mut state = State::<Attachment>::new();
    assert!(state.identity().is_err() && state.is_connect_pending());
    state.begin_connect().unwrap();
    assert_eq!(state.begin_connect(), Err(OutOfOrder));
    assert!(state.identity().is_err() && state.is_connect_pending());
    assert!(state.set_connected(identity(None, AuthSource::Token)));
    assert_eq!(&*state.identity().unwrap().user, "ann");
    assert!(!state.is_connect_pending());
    assert_eq!(state.begin_connect(), Err(OutOfOrder));
}

#[test]
fn a_client_whose_connect_was_rejected_may_retry() {
    let mut state = State::<Attachment>::new();
    state.begin_connect().unwrap();
    state.reject_connect();
    assert_eq!(state.begin_connect(), Ok(()));
}

#[test]
fn a_closed_client_cannot_connect() {
    let mut state = State::<Attachment>::new();
    state.begin_connect().unwrap();
    drop(state.close());
    assert!(!state.set_connected(identity(None, AuthSource::Token)));
    assert_eq!(state.begin_connect(), Err(OutOfOrder));
    assert_eq!(state.reserve(&name("a"), MAX), Err(ErrorCode::Internal));
    assert!(!state.is_connect_pending());
}

#[test]
fn a_channel_is_subscribed_once_and_within_the_limit() {
    let mut state = connected();
    subscribe(&mut state, "a");
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
fn a_late_subscribe_does_not_undo_an_unsubscribe() {
    let mut state = connected();
    let channel = name("a");
    let late = state.reserve(&channel, MAX).unwrap();
    assert!(matches!(state.unsubscribe(&channel), Removed::Reservation));
    assert!(matches!(state.unsubscribe(&channel), Removed::Reservation));
    // The unsubscribe of the first one is not written yet.
    let too_early = state.reserve(&channel, MAX);
    assert_eq!(too_early, Err(ErrorCode::AlreadySubscribed));
    let one = subscription(None, AuthSource::Token);
    assert!(state.activate(&channel, late, one).is_err());
    state.cancel(&channel, late);
    let newer = state.reserve(&channel, MAX).unwrap();
    state.cancel(&channel, late);
    let one = subscription(None, AuthSource::Token);
    assert!(state.activate(&channel, newer, one).is_ok());
    state.cancel(&channel, newer);
    assert!(state.subscription(&channel).is_some());
    assert!(matches!(
        state.unsubscribe(&channel),
        Removed::Subscription(_)
    ));
    assert!(matches!(state.unsubscribe(&channel), Removed::Nothing));
}

#[test]
fn a_client_may_subscribe_again_after_the_end() {
    let mut state = connected();
    let ended = subscribe(&mut state, "a");
    assert!(state.subscription(&name("a")).is_some());
    ended.set(true);
    assert!(state.subscription(&name("a")).is_none());
    assert!(state.reserve(&name("a"), MAX).is_ok());
}

#[test]
fn only_ended_subscriptions_are_removed_and_only_once_the_unsubscribe_is_written() {
    let mut state = connected();
    let (ended, told) = subscribe_with_flags(&mut state, "a");
    let (goes_on, told_too) = subscribe_with_flags(&mut state, "b");
    assert!(state.remove_ended().is_empty());
    ended.set(true);
    assert!(state.remove_ended().is_empty());
    told.set(true);
    let left = state.remove_ended();
    assert_eq!(left.len(), 1);
    assert!(Rc::ptr_eq(&left[0].attachment.ended, &ended));
    assert!(state.remove_ended().is_empty());
    assert!(state.subscription(&name("b")).is_some());
    goes_on.set(true);
    told_too.set(true);
    assert_eq!(state.remove_ended().len(), 1);
    assert_eq!(state.subscriptions.len(), 0);
}

#[test]
fn the_end_of_a_client_ends_its_subscriptions() {
    let mut state = connected();
    let ended = subscribe(&mut state, "a");
    assert_eq!(Rc::strong_count(&ended), 2);
    drop(state.close());
    assert_eq!(Rc::strong_count(&ended), 1);
}

#[test]
fn a_client_that_has_to_send_a_token_has_a_grace_period() {
    for (auth_source, over) in [(AuthSource::Token, 125), (AuthSource::Hook, 100)] {
        let mut state = State::<Attachment>::new();
        state.begin_connect().unwrap();
        state.set_connected(identity(Some(100), auth_source));
        assert_eq!(state.next_expiry(), Some(over));
        assert!(!state.has_expired(over - 1), "{auth_source:?}");
        assert!(state.has_expired(over), "{auth_source:?}");
    }
}

#[test]
fn each_subscription_expires_by_itself() {
    let mut state = connected();
    assert_eq!(state.next_expiry(), None);
    for (channel, expire_at, auth_source) in [
        ("a", Some(200), AuthSource::Token),
        ("b", Some(210), AuthSource::Hook),
        ("c", None, AuthSource::Hook),
    ] {
        let channel = name(channel);
        let ticket = state.reserve(&channel, 3).unwrap();
        assert!(
            state
                .activate(&channel, ticket, subscription(expire_at, auth_source))
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
