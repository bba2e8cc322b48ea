use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

const KEEPING: Keeping = Keeping {
    size: 10,
    bytes_max: 1 << 20,
    ttl: Duration::from_secs(60),
    recovery: Recovery {
        publications_max: 10,
        bytes_max: 1 << 20,
    },
};

fn publication(offset: u64) -> Arc<Publication> {
    Arc::new(Publication {
        data: offset.to_string().into(),
        offset,
        ..Publication::default()
    })
}

fn publications(offsets: impl IntoIterator<Item = u64>) -> Vec<Arc<Publication>> {
    offsets.into_iter().map(publication).collect()
}

fn at(offset: u64) -> Position {
    let epoch = "e".into();
    Position { epoch, offset }
}

/// A stream of which offsets up to `top` were heard.
fn heard_up_to(top: u64) -> Stream {
    let now = Instant::now();
    let first = top.saturating_sub(KEEPING.size as u64) + 1;
    Stream::new(KEEPING, read(first - 1, first, top), now)
}

fn arrive(stream: &mut Stream, offset: u64) -> Result<Arrival, Lost> {
    stream.arrive(&"e".into(), &publication(offset), Instant::now())
}

/// The broker's answer to a read since `since`, which has everything from `oldest` to `top`.
fn read(since: u64, oldest: u64, top: u64) -> Read {
    Read {
        origin: None,
        since,
        position: at(top),
        publications: publications(oldest.max(since + 1)..=top),
        is_cut: false,
    }
}

fn offsets(publications: &[Arc<Publication>]) -> Vec<u64> {
    publications.iter().map(|one| one.offset).collect()
}

#[test]
fn the_next_one_is_delivered_and_an_earlier_one_is_a_repeat() {
    let mut stream = heard_up_to(3);
    assert_eq!(arrive(&mut stream, 4), Ok(Arrival::Next));
    for repeated in 1..=4 {
        assert_eq!(arrive(&mut stream, repeated), Ok(Arrival::Repeat));
    }
    assert_eq!(arrive(&mut stream, 5), Ok(Arrival::Next));
    assert!(!stream.has_gap());
}

#[test]
fn what_comes_behind_a_gap_is_held_until_the_gap_is_filled() {
    let mut stream = heard_up_to(3);
    assert_eq!(arrive(&mut stream, 6), Ok(Arrival::BehindGap));
    assert_eq!(arrive(&mut stream, 7), Ok(Arrival::BehindGap));
    assert_eq!(stream.position(), &at(3));
    assert!(stream.has_gap());
    let found = stream.absorb(read(3, 1, 6), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [4, 5, 6, 7]);
    assert!(!stream.has_gap());
}

#[test]
fn what_fills_a_gap_by_itself_leaves_what_is_held_to_the_read() {
    let mut stream = heard_up_to(3);
    arrive(&mut stream, 5).unwrap();
    assert_eq!(arrive(&mut stream, 4), Ok(Arrival::Next));
    assert!(stream.has_gap());
    let found = stream.absorb(read(3, 1, 5), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [5]);
}

#[test]
fn a_read_that_is_overtaken_changes_nothing() {
    let mut stream = heard_up_to(3);
    for offset in 4..=8 {
        arrive(&mut stream, offset).unwrap();
    }
    let found = stream.absorb(read(3, 1, 6), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [0; 0]);
    assert_eq!(stream.position(), &at(8));
}

#[test]
fn more_than_can_be_held_is_read_again() {
    let mut stream = heard_up_to(3);
    stream.keeping.bytes_max = 2 * (ENTRY_BYTES + 10);
    for offset in 5..=9 {
        assert_eq!(arrive(&mut stream, offset), Ok(Arrival::BehindGap));
    }
    let found = stream.absorb(read(3, 1, 5), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [4, 5, 6]);
    assert!(stream.has_gap());
    let found = stream.absorb(read(6, 1, 9), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [7, 8, 9]);
    assert!(!stream.has_gap());
}

#[test]
fn what_cannot_be_had_is_told_with_the_reason() {
    let lost = |read: Read| heard_up_to(3).absorb(read, Instant::now()).unwrap_err();
    assert_eq!(lost(read(3, 5, 6)), Lost::Trimmed);
    assert_eq!(lost(read(3, 7, 6)), Lost::Trimmed, "nothing is left at all");
    assert_eq!(lost(read(3, 1, 2)), Lost::Rewound);
    let other = Position {
        epoch: "other".into(),
        offset: 4,
    };
    let restarted = Read {
        position: other.clone(),
        ..read(3, 1, 4)
    };
    assert_eq!(lost(restarted), Lost::Restarted);
    let mut stream = heard_up_to(3);
    let arrived = stream.arrive(&other.epoch, &publication(4), Instant::now());
    assert_eq!(arrived, Err(Lost::Restarted));
    let hole = Read {
        origin: None,
        since: 3,
        position: at(6),
        publications: publications([4, 6]),
        is_cut: false,
    };
    assert_eq!(lost(hole), Lost::Trimmed, "a hole in the middle");
}

#[test]
fn who_comes_back_gets_what_was_missed_or_is_told_that_it_is_gone() {
    let now = Instant::now();
    let stream = heard_up_to(15);
    let these = |offsets: std::ops::RangeInclusive<u64>| Missed::These(publications(offsets));
    for (since, expected) in [
        (at(15), Missed::These(Vec::new())),
        (at(14), these(15..=15)),
        (at(5), these(6..=15)),
        (at(4), Missed::Unknown),
        (at(0), Missed::Unknown),
        (at(16), Missed::Unknown),
    ] {
        assert_eq!(
            stream.missed(&since, None, now),
            expected,
            "since {since:?}"
        );
    }
    let other = Position {
        epoch: "other".into(),
        offset: 15,
    };
    assert_eq!(stream.missed(&other, None, now), Missed::Unknown);
}

#[test]
fn publications_have_their_time_from_the_newest_on() {
    let mut stream = heard_up_to(3);
    let now = Instant::now();
    let arrived = stream.arrive(&"e".into(), &publication(4), now);
    assert_eq!(arrived, Ok(Arrival::Next));
    let missed = |at_offset, after| stream.missed(&at(at_offset), None, now + after);
    let last = Missed::These(publications([4]));
    assert_eq!(missed(3, 60 * SECOND - Duration::from_millis(1)), last);
    assert_eq!(missed(3, 60 * SECOND), Missed::Unknown);
    let nothing = Missed::These(Vec::new());
    assert_eq!(
        missed(4, 60 * SECOND),
        nothing,
        "who missed nothing is well"
    );
}

#[test]
fn what_the_ring_has_no_room_for_is_for_the_broker_to_tell() {
    let now = Instant::now();
    let keeping = Keeping {
        bytes_max: 3 * (ENTRY_BYTES + 5),
        ..KEEPING
    };
    let stream = Stream::new(keeping, read(0, 1, 8), now);
    assert_eq!(offsets(&Vec::from(stream.ring.clone())), [6, 7, 8]);
    let these = |offsets: std::ops::RangeInclusive<u64>| Missed::These(publications(offsets));
    assert_eq!(stream.missed(&at(5), None, now), these(6..=8));
    let read_back = Missed::Older { before: 8 };
    assert_eq!(stream.missed(&at(4), None, now), read_back);
    for (older, is_cut, expected) in [
        (1..=8, false, these(3..=8)),
        (3..=5, true, these(3..=8)),
        (1..=7, false, these(3..=8)),
        (4..=8, false, Missed::Unknown),
        (4..=8, true, Missed::TooMuch),
        (1..=4, false, read_back),
    ] {
        let older = Read {
            publications: publications(older),
            is_cut,
            ..read(0, 1, 8)
        };
        let missed = stream.missed(&at(2), Some(&older), now);
        assert_eq!(missed, expected, "{older:?}");
    }
    let trimmed = stream.missed(&at(2), Some(&read(8, 9, 8)), now);
    assert_eq!(trimmed, Missed::Unknown, "the broker has nothing either");
}

fn moment(at: u64) -> Unborn {
    Unborn {
        server: "a".to_owned(),
        evicted: 0,
        at,
        until: at + 100,
    }
}

/// A stream that was not there at `at`.
fn unborn_at(at: u64) -> Stream {
    let read = Read {
        origin: Some(moment(at)),
        since: 0,
        position: moment(at).position(),
        publications: Vec::new(),
        is_cut: false,
    };
    Stream::new(KEEPING, read, Instant::now())
}

#[test]
fn a_stream_that_was_not_there_begins_with_its_first_publication_and_no_other() {
    let mut stream = unborn_at(1000);
    assert!(stream.is_unborn());
    assert_eq!(arrive(&mut stream, 1), Ok(Arrival::Next));
    assert_eq!(stream.position(), &at(1));
    assert_eq!(arrive(&mut stream, 2), Ok(Arrival::Next));
}

#[test]
fn what_comes_behind_the_beginning_waits_for_it() {
    let born = |began: u64, top| Read {
        origin: Some(moment(began)),
        ..read(0, 1, top)
    };
    let now = Instant::now();
    let mut stream = unborn_at(1000);
    assert_eq!(arrive(&mut stream, 3), Ok(Arrival::BehindGap));
    assert!(stream.has_gap());
    let found = stream.absorb(born(1050, 2), now).unwrap();
    assert_eq!(offsets(&found), [1, 2, 3]);
    assert_eq!(arrive(&mut stream, 4), Ok(Arrival::Next));

    let mut stream = unborn_at(1000);
    assert_eq!(arrive(&mut stream, 2), Ok(Arrival::BehindGap));
    let other = stream.arrive(&"other".into(), &publication(1), now);
    assert_eq!(other, Err(Lost::Restarted));
    let other = Read {
        position: Position {
            epoch: "other".into(),
            offset: 2,
        },
        ..born(1050, 2)
    };
    assert_eq!(stream.absorb(other, now), Err(Lost::Restarted));
}

#[test]
fn who_subscribed_before_the_first_publication_counts_on_from_there() {
    let mut stream = unborn_at(1000);
    for offset in 1..=3 {
        arrive(&mut stream, offset).unwrap();
    }
    let before = |at: u64, offset| Position {
        offset,
        ..moment(at).position()
    };
    let now = Instant::now();
    let missed = |since: &Position| stream.missed(since, None, now);
    for at in [950, 1000, 1050] {
        for heard in 0..=3 {
            let Missed::These(these) = missed(&before(at, heard)) else {
                panic!("{at} {heard}")
            };
            assert!(
                offsets(&these).into_iter().eq(heard + 1..=3),
                "{at} {heard}"
            );
        }
        assert_eq!(missed(&before(at, 4)), Missed::Unknown);
    }
    // Another stream may have come and gone between them.
    assert_eq!(missed(&before(900, 0)), Missed::Unknown);
}

#[test]
fn what_was_missed_of_the_beginning_is_read_if_it_is_the_first() {
    let born = |began: u64, top| Read {
        origin: Some(moment(began)),
        ..read(0, 1, top)
    };
    let now = Instant::now();
    let found = unborn_at(1000).absorb(born(1050, 3), now);
    assert_eq!(offsets(&found.unwrap()), [1, 2, 3]);
    let lost = unborn_at(1000).absorb(born(1100, 3), now);
    assert_eq!(lost, Err(Lost::Restarted));
    let mut still = unborn_at(1000);
    let unborn = Read {
        origin: Some(moment(1050)),
        since: 0,
        position: moment(1050).position(),
        publications: Vec::new(),
        is_cut: false,
    };
    assert_eq!(still.absorb(unborn, now), Ok(Vec::new()));
    assert_eq!(arrive(&mut still, 1), Ok(Arrival::Next));
}

#[test]
fn nobody_gets_more_than_a_recovery_brings() {
    let now = Instant::now();
    let these = |offsets: std::ops::RangeInclusive<u64>| Missed::These(publications(offsets));
    let stream = |ring: usize, publications_max: usize, bytes: usize| {
        let keeping = Keeping {
            bytes_max: ring * (ENTRY_BYTES + 5),
            recovery: Recovery {
                publications_max,
                bytes_max: bytes * (ENTRY_BYTES + 1),
            },
            ..KEEPING
        };
        Stream::new(keeping, read(0, 1, 8), now)
    };
    let older = read(0, 1, 8);
    for ring in [3, 8] {
        let missed = |publications_max, bytes, since| {
            let stream = stream(ring, publications_max, bytes);
            stream.missed(&at(since), Some(&older), now)
        };
        assert_eq!(missed(5, 10, 3), these(4..=8), "ring {ring}");
        assert_eq!(missed(5, 10, 2), Missed::TooMuch, "ring {ring}");
        assert_eq!(missed(10, 5, 3), these(4..=8), "ring {ring}");
        assert_eq!(missed(10, 5, 2), Missed::TooMuch, "ring {ring}");
        assert_eq!(missed(10, 0, 7), these(8..=8), "one whatever its size");
        assert_eq!(missed(10, 0, 6), Missed::TooMuch);
    }
    let too_much = stream(3, 10, 2).missed(&at(2), None, now);
    assert_eq!(too_much, Missed::TooMuch, "nobody is asked in vain");
}

#[test]
fn what_is_missing_may_be_read_in_parts() {
    let mut stream = heard_up_to(3);
    arrive(&mut stream, 9).unwrap();
    let part = |since: u64, last: u64| Read {
        publications: publications(since + 1..=last),
        is_cut: true,
        ..read(since, 1, 9)
    };
    let found = stream.absorb(part(3, 5), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [4, 5]);
    assert!(stream.has_gap());
    let overtaken = stream.absorb(part(3, 5), Instant::now()).unwrap();
    assert!(overtaken.is_empty() && stream.has_gap());
    let nothing = stream.absorb(part(5, 5), Instant::now());
    assert_eq!(nothing, Err(Lost::Trimmed), "it would go on for ever");
    let found = stream.absorb(part(5, 8), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [6, 7, 8, 9], "with what was held");
    assert!(!stream.has_gap());
}

#[test]
fn a_part_of_what_is_missing_shows_that_there_is_more() {
    let mut stream = heard_up_to(3);
    let part = Read {
        publications: publications([4]),
        is_cut: true,
        ..read(3, 1, 6)
    };
    let found = stream.absorb(part, Instant::now()).unwrap();
    assert_eq!(offsets(&found), [4]);
    assert!(stream.has_gap());
}

#[test]
fn a_hole_in_what_the_broker_keeps_ends_what_can_be_recovered() {
    let now = Instant::now();
    let holed = Read {
        origin: None,
        since: 0,
        position: at(6),
        publications: publications([1, 2, 3, 5, 6]),
        is_cut: false,
    };
    let stream = Stream::new(KEEPING, holed, now);
    assert_eq!(stream.position(), &at(6));
    assert_eq!(offsets(&Vec::from(stream.ring.clone())), [5, 6]);
    let torn = Read {
        origin: None,
        since: 0,
        position: at(6),
        publications: publications([1, 2, 3, 4, 5]),
        is_cut: false,
    };
    let stream = Stream::new(KEEPING, torn, now);
    assert_eq!((stream.position(), stream.ring.len()), (&at(6), 0));
}

/// What may happen to a node and the stream that it follows.
#[derive(Debug, Clone)]
enum Step {
    /// Somebody publishes, and the node hears it or not.
    Publish { heard: bool },
    /// The node hears the last publication once more.
    Repeat,
    /// A read begins, if none is under way.
    Ask,
    /// The read comes back.
    Answer,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::bool::weighted(0.8).prop_map(|heard| Step::Publish { heard }),
        1 => Just(Step::Repeat),
        2 => Just(Step::Ask),
        2 => Just(Step::Answer),
    ]
}

proptest! {
    #[test]
    fn members_hear_everything_once_and_in_order_or_are_told(
        steps in prop::collection::vec(any_step(), 0..200),
        held_max in 1_usize..6,
        page in 1_usize..12,
    ) {
        let now = Instant::now();
        let keeping = Keeping { bytes_max: held_max * (ENTRY_BYTES + 4), ..KEEPING };
        let mut stream = Stream::new(keeping, read(0, 1, 0), now);
        let mut top = 0;
        let mut delivered = Vec::new();
        let mut answer = None;
        let read_now = |since: u64, top: u64| {
            let mut read = read(since, top.saturating_sub(9), top);
            read.is_cut = page < read.publications.len();
            read.publications.truncate(page);
            read
        };
        for step in steps {
            match step {
                Step::Publish { heard } => {
                    top += 1;
                    if heard && arrive(&mut stream, top) == Ok(Arrival::Next) {
                        delivered.push(top);
                    }
                }
                Step::Repeat => {
                    if 0 < top && arrive(&mut stream, top) == Ok(Arrival::Next) {
                        delivered.push(top);
                    }
                }
                Step::Ask if answer.is_none() => {
                    answer = Some(read_now(stream.position().offset, top));
                }
                Step::Ask => {}
                Step::Answer => {
                    let Some(read) = answer.take() else { continue };
                    match stream.absorb(read, now) {
                        Ok(found) => delivered.extend(offsets(&found)),
                        Err(lost) => {
                            prop_assert_eq!(lost, Lost::Trimmed);
                            return Ok(());
                        }
                    }
                }
            }
            prop_assert!(delivered.iter().copied().eq(1..=delivered.len() as u64));
            prop_assert_eq!(stream.position().offset, delivered.len() as u64);
            prop_assert!(stream.ring_bytes <= keeping.bytes_max);
            prop_assert!(stream.held_bytes <= keeping.bytes_max);
        }
        while let Ok(found) = stream.absorb(read_now(stream.position().offset, top), now) {
            delivered.extend(offsets(&found));
            if !stream.has_gap() {
                prop_assert_eq!(delivered.len() as u64, top);
                break;
            }
            prop_assert!(!found.is_empty(), "it makes no progress");
        }
    }
}
