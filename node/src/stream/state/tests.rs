use super::*;

const KEEPING: Keeping = Keeping {
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
    let losses = state.open();
    let stream = Some((KEEPING, read(0, top)));
    assert_eq!(state.opened(losses, stream, Instant::now()), Ok(true));
    state
}

fn hear(state: &mut State, offset: u64) -> Result<Heard, Lost> {
    state.hear(Some(&at(offset)), &publication(offset), Instant::now())
}

fn join(state: &State, since: u64) -> Joining {
    state.join(Some(&at(since)), &Known::default(), Instant::now())
}

fn offsets(publications: &[Arc<Publication>]) -> Vec<u64> {
    publications.iter().map(|one| one.offset).collect()
}

fn nothing_missed() -> Joining {
    Joining::Now(Missed::These(Vec::new()))
}

#[test]
fn what_comes_before_the_stream_is_read_is_not_lost() {
    let mut state = State::new();
    let losses = state.open();
    assert_eq!(join(&state, 0), Joining::Later);
    for offset in 3..=5 {
        assert_eq!(hear(&mut state, offset), Ok(Heard::Held));
    }
    let stream = Some((KEEPING, read(0, 3)));
    assert_eq!(state.opened(losses, stream, Instant::now()), Ok(true));
    assert_eq!(join(&state, 5), nothing_missed());
    assert_eq!(hear(&mut state, 6), Ok(Heard::Deliver));
}

#[test]
fn more_than_can_be_held_before_the_stream_is_read_makes_one_more_read() {
    let mut state = State::new();
    let losses = state.open();
    let top = 10 + EARLY_MAX as u64;
    for offset in 1..=top {
        hear(&mut state, offset).unwrap();
    }
    let stream = Some((KEEPING, read(0, 3)));
    assert_eq!(state.opened(losses, stream, Instant::now()), Ok(true));
    assert!(state.wants_read());
    assert_eq!(join(&state, 3), Joining::Later);
    let reading = state.begin_read().unwrap();
    let since = reading.since.offset;
    let found = state
        .absorb(&reading, read(since, top), Instant::now())
        .unwrap();
    assert!(found.iter().map(|one| one.offset).eq(since + 1..=top));
    assert_eq!(join(&state, top), nothing_missed());
}

#[test]
fn a_connection_that_is_lost_while_the_feed_opens_makes_it_open_anew() {
    let mut state = State::new();
    let losses = state.open();
    state.interrupted();
    state.resumed();
    let stream = Some((KEEPING, read(0, 3)));
    assert_eq!(state.opened(losses, stream, Instant::now()), Ok(false));
    assert_eq!(join(&state, 0), Joining::Later);
    let losses = state.open();
    let stream = Some((KEEPING, read(0, 4)));
    assert_eq!(state.opened(losses, stream, Instant::now()), Ok(true));
    assert_eq!(join(&state, 4), nothing_missed());
}

#[test]
fn nobody_joins_while_something_is_missing() {
    let mut state = opened_at(3);
    assert_eq!(hear(&mut state, 5), Ok(Heard::Gap));
    assert_eq!(hear(&mut state, 6), Ok(Heard::Held));
    assert_eq!(join(&state, 3), Joining::Later);
    let reading = state.begin_read().unwrap();
    assert_eq!(state.begin_read(), None, "one at a time");
    let found = state.absorb(&reading, read(3, 5), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [4, 5, 6]);
    assert_eq!(join(&state, 6), nothing_missed());
    assert!(!state.wants_read());
}

#[test]
fn after_a_loss_nobody_joins_before_the_stream_was_read_again() {
    let mut state = opened_at(3);
    state.interrupted();
    assert_eq!(join(&state, 3), Joining::Later);
    assert_eq!(state.begin_read(), None, "nothing is heard yet");
    assert!(state.resumed());
    assert_eq!(join(&state, 3), Joining::Later);
    let reading = state.begin_read().unwrap();
    assert_eq!(
        hear(&mut state, 4),
        Ok(Heard::Deliver),
        "it proves that nothing was missed before"
    );
    let found = state.absorb(&reading, read(3, 4), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [0; 0]);
    assert_eq!(join(&state, 4), nothing_missed());
}

#[test]
fn a_read_from_before_a_loss_proves_nothing_after_it() {
    let mut state = opened_at(3);
    state.interrupted();
    state.resumed();
    let reading = state.begin_read().unwrap();
    state.interrupted();
    state.resumed();
    state.absorb(&reading, read(3, 3), Instant::now()).unwrap();
    assert_eq!(join(&state, 3), Joining::Later);
    assert!(state.wants_read());
    let reading = state.begin_read().unwrap();
    state.absorb(&reading, read(3, 5), Instant::now()).unwrap();
    assert_eq!(join(&state, 5), nothing_missed());
}

#[test]
fn a_read_that_fails_is_made_again() {
    let mut state = opened_at(3);
    hear(&mut state, 5).unwrap();
    state.begin_read().unwrap();
    state.read_failed();
    assert!(state.wants_read());
    state.interrupted();
    assert!(!state.wants_read(), "not while the connection is away");
    state.resumed();
    assert!(state.begin_read().is_some());
}

#[test]
fn a_channel_without_history_delivers_what_comes_and_recovers_nothing() {
    let mut state = State::new();
    let losses = state.open();
    assert_eq!(state.opened(losses, None, Instant::now()), Ok(true));
    let heard = state.hear(None, &publication(0), Instant::now());
    assert_eq!(heard, Ok(Heard::Deliver));
    assert_eq!(join(&state, 3), Joining::Now(Missed::Unknown));
    assert_eq!(state.position(), None);
    state.interrupted();
    assert_eq!(join(&state, 3), Joining::Later);
    assert!(!state.resumed());
    assert_eq!(join(&state, 3), Joining::Now(Missed::Unknown));
}

#[test]
fn what_is_not_kept_is_delivered_among_what_is() {
    let mut state = opened_at(3);
    let heard = state.hear(None, &publication(0), Instant::now());
    assert_eq!(heard, Ok(Heard::Deliver));
    assert_eq!(hear(&mut state, 4), Ok(Heard::Deliver));
}

#[test]
fn nothing_follows_the_end() {
    let mut state = opened_at(3);
    assert!(state.end());
    assert!(!state.end(), "once");
    assert_eq!(hear(&mut state, 4), Ok(Heard::Nobody));
    assert_eq!(join(&state, 3), Joining::Never);
    assert!(!state.resumed());
    assert_eq!(state.begin_read(), None);
}

#[test]
fn another_epoch_is_told_at_once() {
    let mut state = opened_at(3);
    let other = Position {
        epoch: "other".into(),
        offset: 4,
    };
    let heard = state.hear(Some(&other), &publication(4), Instant::now());
    assert_eq!(heard, Err(Lost::Restarted));
}

#[test]
fn a_position_ahead_of_this_node_is_believed_once_the_stream_has_it() {
    let mut state = opened_at(3);
    assert_eq!(join(&state, 5), Joining::Ahead);
    let proof = Some(state.prove());
    let known = Known { proof, older: None };
    let join = |state: &State| state.join(Some(&at(5)), &known, Instant::now());
    assert_eq!(join(&state), Joining::Later);
    let reading = state.begin_read().unwrap();
    state.absorb(&reading, read(3, 5), Instant::now()).unwrap();
    assert_eq!(join(&state), nothing_missed());
}

#[test]
fn a_position_ahead_of_the_stream_is_nobodys() {
    let mut state = opened_at(3);
    hear(&mut state, 5).unwrap();
    let reading = state.begin_read().unwrap();
    let proof = Some(state.prove());
    let known = Known { proof, older: None };
    let join = |state: &State| state.join(Some(&at(9)), &known, Instant::now());
    state.absorb(&reading, read(3, 5), Instant::now()).unwrap();
    assert_eq!(join(&state), Joining::Later, "that read began too early");
    let reading = state.begin_read().unwrap();
    state.absorb(&reading, read(5, 5), Instant::now()).unwrap();
    assert_eq!(join(&state), Joining::Now(Missed::Unknown));
}

#[test]
fn a_position_in_a_stream_that_this_node_has_not_seen_begin_is_believed_once_it_was_read() {
    let moment = |at: u64| Unborn {
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
            Joining::Now(Missed::These((1..=2).map(publication).collect())),
        ),
        (unborn(), Joining::Now(Missed::Unknown)),
    ] {
        let mut state = State::new();
        let losses = state.open();
        let stream = Some((KEEPING, unborn()));
        assert_eq!(state.opened(losses, stream, Instant::now()), Ok(true));
        // Where nothing was published yet for this node, although the client knows the epoch.
        assert_eq!(join(&state, 0), Joining::Ahead);
        let known = Known {
            proof: Some(state.prove()),
            ..Known::default()
        };
        let since = at(0);
        let joining = state.join(Some(&since), &known, Instant::now());
        assert_eq!(joining, Joining::Later);
        let reading = state.begin_read().unwrap();
        state.absorb(&reading, found, Instant::now()).unwrap();
        let joining = state.join(Some(&since), &known, Instant::now());
        assert_eq!(joining, expected);
    }
}
