use super::*;

const LIMITS: CacheLimits = CacheLimits {
    size: 10,
    bytes_max: 1 << 20,
    ttl: std::time::Duration::from_secs(60),
    recovery: crate::stream::sequence::Recovery {
        publications_max: 10,
        bytes_max: 1 << 20,
    },
};

fn at(offset: u64) -> Position {
    let epoch = "e".into();
    Position { epoch, offset }
}

fn publication(offset: u64) -> Arc<Publication> {
    Arc::new(Publication {
        offset,
        ..Publication::default()
    })
}

fn read(since: u64, top: u64) -> Read {
    Read {
        origin: None,
        since,
        position: at(top),
        publications: (since + 1..=top).map(publication).collect(),
        is_cut: false,
    }
}

fn opened_at(top: u64) -> State {
    let mut state = State::new();
    let interruptions = state.open();
    let stream = Some((LIMITS, read(0, top)));
    assert_eq!(
        state.opened(interruptions, stream, Instant::now()),
        Ok(true)
    );
    state
}

fn receive(state: &mut State, offset: u64) -> Result<Received, Lost> {
    state.receive(Some(&at(offset)), &publication(offset), Instant::now())
}

fn join(state: &State, since: u64) -> JoinDecision {
    state.join(Some(&at(since)), &Known::default(), Instant::now())
}

fn offsets(publications: &[Arc<Publication>]) -> Vec<u64> {
    publications.iter().map(|one| one.offset).collect()
}

fn nothing_missed() -> JoinDecision {
    JoinDecision::Now(Missed::These(Vec::new()))
}

#[test]
fn publications_received_before_the_first_read_are_not_lost() {
    let mut state = State::new();
    let interruptions = state.open();
    assert_eq!(join(&state, 0), JoinDecision::Later);
    for offset in 3..=5 {
        assert_eq!(receive(&mut state, offset), Ok(Received::Held));
    }
    let stream = Some((LIMITS, read(0, 3)));
    assert_eq!(
        state.opened(interruptions, stream, Instant::now()),
        Ok(true)
    );
    assert_eq!(join(&state, 5), nothing_missed());
    assert_eq!(receive(&mut state, 6), Ok(Received::Deliver));
}

#[test]
fn more_publications_than_can_be_held_before_the_first_read_cause_another_read() {
    let mut state = State::new();
    let interruptions = state.open();
    let top = 10 + EARLY_MAX as u64;
    for offset in 1..=top {
        receive(&mut state, offset).unwrap();
    }
    let stream = Some((LIMITS, read(0, 3)));
    assert_eq!(
        state.opened(interruptions, stream, Instant::now()),
        Ok(true)
    );
    assert!(state.wants_read());
    assert_eq!(join(&state, 3), JoinDecision::Later);
    let reading = state.begin_read().unwrap();
    let since = reading.since.offset;
    let found = state
        .absorb(&reading, read(since, top), Instant::now())
        .unwrap();
    assert!(found.iter().map(|one| one.offset).eq(since + 1..=top));
    assert_eq!(join(&state, top), nothing_missed());
}

#[test]
fn a_stream_opens_again_if_the_connection_is_lost_meanwhile() {
    let mut state = State::new();
    let interruptions = state.open();
    state.interrupted();
    state.resumed();
    let stream = Some((LIMITS, read(0, 3)));
    assert_eq!(
        state.opened(interruptions, stream, Instant::now()),
        Ok(false)
    );
    assert_eq!(join(&state, 0), JoinDecision::Later);
    let interruptions = state.open();
    let stream = Some((LIMITS, read(0, 4)));
    assert_eq!(
        state.opened(interruptions, stream, Instant::now()),
        Ok(true)
    );
    assert_eq!(join(&state, 4), nothing_missed());
}

#[test]
fn joins_wait_while_publications_are_missing() {
    let mut state = opened_at(3);
    assert_eq!(receive(&mut state, 5), Ok(Received::Gap));
    assert_eq!(receive(&mut state, 6), Ok(Received::Held));
    assert_eq!(join(&state, 3), JoinDecision::Later);
    let reading = state.begin_read().unwrap();
    assert_eq!(state.begin_read(), None, "one at a time");
    let found = state.absorb(&reading, read(3, 5), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [4, 5, 6]);
    assert_eq!(join(&state, 6), nothing_missed());
    assert!(!state.wants_read());
}

#[test]
fn after_a_lost_connection_joins_wait_for_a_read() {
    let mut state = opened_at(3);
    state.interrupted();
    assert_eq!(join(&state, 3), JoinDecision::Later);
    assert_eq!(state.begin_read(), None, "the connection is not back yet");
    assert!(state.resumed());
    assert_eq!(join(&state, 3), JoinDecision::Later);
    let reading = state.begin_read().unwrap();
    assert_eq!(
        receive(&mut state, 4),
        Ok(Received::Deliver),
        "the read verifies that nothing was missed"
    );
    let found = state.absorb(&reading, read(3, 4), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [0; 0]);
    assert_eq!(join(&state, 4), nothing_missed());
}

#[test]
fn a_read_that_began_before_a_lost_connection_verifies_nothing_after_it() {
    let mut state = opened_at(3);
    state.interrupted();
    state.resumed();
    let reading = state.begin_read().unwrap();
    state.interrupted();
    state.resumed();
    state.absorb(&reading, read(3, 3), Instant::now()).unwrap();
    assert_eq!(join(&state, 3), JoinDecision::Later);
    assert!(state.wants_read());
    let reading = state.begin_read().unwrap();
    state.absorb(&reading, read(3, 5), Instant::now()).unwrap();
    assert_eq!(join(&state, 5), nothing_missed());
}

#[test]
fn a_read_that_fails_is_repeated() {
    let mut state = opened_at(3);
    receive(&mut state, 5).unwrap();
    state.begin_read().unwrap();
    state.read_failed();
    assert!(state.wants_read());
    state.interrupted();
    assert!(!state.wants_read(), "not while the connection is lost");
    state.resumed();
    assert!(state.begin_read().is_some());
}

#[test]
fn a_channel_without_history_delivers_everything_and_recovers_nothing() {
    let mut state = State::new();
    let interruptions = state.open();
    assert_eq!(state.opened(interruptions, None, Instant::now()), Ok(true));
    let received = state.receive(None, &publication(0), Instant::now());
    assert_eq!(received, Ok(Received::Deliver));
    assert_eq!(join(&state, 3), JoinDecision::Now(Missed::Unknown));
    assert_eq!(state.position(), None);
    state.interrupted();
    assert_eq!(join(&state, 3), JoinDecision::Later);
    assert!(!state.resumed());
    assert_eq!(join(&state, 3), JoinDecision::Now(Missed::Unknown));
}

#[test]
fn publications_that_are_not_stored_are_delivered_among_stored_ones() {
    let mut state = opened_at(3);
    let received = state.receive(None, &publication(0), Instant::now());
    assert_eq!(received, Ok(Received::Deliver));
    assert_eq!(receive(&mut state, 4), Ok(Received::Deliver));
}

#[test]
fn nothing_is_delivered_after_the_end() {
    let mut state = opened_at(3);
    assert!(state.end());
    assert!(!state.end(), "once");
    assert_eq!(receive(&mut state, 4), Ok(Received::Ended));
    assert_eq!(join(&state, 3), JoinDecision::Never);
    assert!(!state.resumed());
    assert_eq!(state.begin_read(), None);
}

#[test]
fn a_new_epoch_ends_the_stream_at_once() {
    let mut state = opened_at(3);
    let other = Position {
        epoch: "other".into(),
        offset: 4,
    };
    let received = state.receive(Some(&other), &publication(4), Instant::now());
    assert_eq!(received, Err(Lost::Restarted));
}

#[test]
fn a_position_ahead_of_this_node_is_accepted_once_a_read_confirms_it() {
    let mut state = opened_at(3);
    assert_eq!(join(&state, 5), JoinDecision::Ahead);
    let verified_by = Some(state.request_verification());
    let known = Known {
        verified_by,
        older: None,
    };
    let join = |state: &State| state.join(Some(&at(5)), &known, Instant::now());
    assert_eq!(join(&state), JoinDecision::Later);
    let reading = state.begin_read().unwrap();
    state.absorb(&reading, read(3, 5), Instant::now()).unwrap();
    assert_eq!(join(&state), nothing_missed());
}

#[test]
fn a_position_ahead_of_the_history_is_not_recovered() {
    let mut state = opened_at(3);
    receive(&mut state, 5).unwrap();
    let reading = state.begin_read().unwrap();
    let verified_by = Some(state.request_verification());
    let known = Known {
        verified_by,
        older: None,
    };
    let join = |state: &State| state.join(Some(&at(9)), &known, Instant::now());
    state.absorb(&reading, read(3, 5), Instant::now()).unwrap();
    assert_eq!(
        join(&state),
        JoinDecision::Later,
        "that read began too early"
    );
    let reading = state.begin_read().unwrap();
    state.absorb(&reading, read(5, 5), Instant::now()).unwrap();
    assert_eq!(join(&state), JoinDecision::Now(Missed::Unknown));
}

#[test]
fn a_position_in_an_epoch_unknown_to_this_node_is_accepted_once_a_read_confirms_it() {
    let moment = |at: u64| Unstarted {
        server: "a".to_owned(),
        evicted: 0,
        at,
        until: at + 100,
    };
    let unborn = || Read {
        origin: Some(moment(1000)),
        position: moment(1000).position(),
        ..read(0, 0)
    };
    let born = Read {
        origin: Some(moment(1050)),
        ..read(0, 2)
    };
    for (found, expected) in [
        (
            born,
            JoinDecision::Now(Missed::These((1..=2).map(publication).collect())),
        ),
        (unborn(), JoinDecision::Now(Missed::Unknown)),
    ] {
        let mut state = State::new();
        let interruptions = state.open();
        let stream = Some((LIMITS, unborn()));
        assert_eq!(
            state.opened(interruptions, stream, Instant::now()),
            Ok(true)
        );
        // This node has not seen the first publication yet, although the client knows the epoch.
        assert_eq!(join(&state, 0), JoinDecision::Ahead);
        let known = Known {
            verified_by: Some(state.request_verification()),
            ..Known::default()
        };
        let since = at(0);
        let joining = state.join(Some(&since), &known, Instant::now());
        assert_eq!(joining, JoinDecision::Later);
        let reading = state.begin_read().unwrap();
        state.absorb(&reading, found, Instant::now()).unwrap();
        let joining = state.join(Some(&since), &known, Instant::now());
        assert_eq!(joining, expected);
    }
}

#[test]
fn a_doubt_makes_the_history_be_read_and_an_opening_stream_open_again() {
    let mut state = opened_at(3);
    assert!(state.begin_read().is_none());
    assert!(state.doubt());
    let reading = state.begin_read().unwrap();
    assert!(!state.doubt(), "another read follows the one under way");
    state.absorb(&reading, read(3, 3), Instant::now()).unwrap();
    assert!(state.wants_read(), "what was read may be older");

    let mut state = State::new();
    let interruptions = state.open();
    assert!(!state.doubt());
    let opened = state.opened(interruptions, None, Instant::now());
    assert_eq!(opened, Ok(false));
    let opened = state.opened(state.open(), None, Instant::now());
    assert_eq!(opened, Ok(true));
    assert!(!state.doubt(), "there is no history");
}

#[test]
fn a_history_that_lacks_a_publication_received_before_ends_the_stream_and_is_not_read_without_end()
{
    let mut state = opened_at(3);
    assert_eq!(receive(&mut state, 9), Ok(Received::Gap));
    let reading = state.begin_read().unwrap();
    let found = state.absorb(&reading, read(3, 5), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [4, 5], "what is there is delivered");
    let reading = state.begin_read().unwrap();
    let lost = state.absorb(&reading, read(5, 5), Instant::now());
    assert_eq!(lost, Err(Lost::Rewound));
}

#[test]
fn a_publication_received_during_a_read_may_be_missing_in_it() {
    let mut state = opened_at(3);
    state.request_read();
    let reading = state.begin_read().unwrap();
    assert_eq!(receive(&mut state, 5), Ok(Received::Gap));
    let found = state.absorb(&reading, read(3, 3), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [0_u64; 0]);
    let reading = state.begin_read().unwrap();
    let found = state.absorb(&reading, read(3, 5), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [4, 5]);
}
