use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

const LIMITS: CacheLimits = CacheLimits {
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

/// A sequence that has received offsets up to `top`.
fn received_up_to(top: u64) -> Sequence {
    let now = Instant::now();
    let first = top.saturating_sub(LIMITS.size as u64) + 1;
    Sequence::new(LIMITS, read(first - 1, first, top), now)
}

fn arrive(stream: &mut Sequence, offset: u64) -> Result<Arrival, Lost> {
    stream.arrive(&"e".into(), &publication(offset), Instant::now())
}

/// The broker's reply to a read since `since`, if its history is `oldest` to `top`.
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
    let mut stream = received_up_to(3);
    assert_eq!(arrive(&mut stream, 4), Ok(Arrival::Next));
    for repeated in 1..=4 {
        assert_eq!(arrive(&mut stream, repeated), Ok(Arrival::Repeat));
    }
    assert_eq!(arrive(&mut stream, 5), Ok(Arrival::Next));
    assert!(!stream.has_gap());
}

#[test]
fn publications_after_a_gap_are_held_until_it_is_filled() {
    let mut stream = received_up_to(3);
    assert_eq!(arrive(&mut stream, 6), Ok(Arrival::AfterGap));
    assert_eq!(arrive(&mut stream, 7), Ok(Arrival::AfterGap));
    assert_eq!(stream.position(), &at(3));
    assert!(stream.has_gap());
    let found = stream.absorb(read(3, 1, 6), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [4, 5, 6, 7]);
    assert!(!stream.has_gap());
}

#[test]
fn held_publications_wait_for_the_read_even_if_the_missing_one_arrives() {
    let mut stream = received_up_to(3);
    arrive(&mut stream, 5).unwrap();
    assert_eq!(arrive(&mut stream, 4), Ok(Arrival::Next));
    assert!(stream.has_gap());
    let found = stream.absorb(read(3, 1, 5), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [5]);
}

#[test]
fn an_outdated_read_changes_nothing() {
    let mut stream = received_up_to(3);
    for offset in 4..=8 {
        arrive(&mut stream, offset).unwrap();
    }
    let found = stream.absorb(read(3, 1, 6), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [0; 0]);
    assert_eq!(stream.position(), &at(8));
}

#[test]
fn more_than_can_be_held_is_read_again() {
    let mut stream = received_up_to(3);
    stream.limits.bytes_max = 2 * (ENTRY_BYTES + 10);
    for offset in 5..=9 {
        assert_eq!(arrive(&mut stream, offset), Ok(Arrival::AfterGap));
    }
    let found = stream.absorb(read(3, 1, 5), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [4, 5, 6]);
    assert!(stream.has_gap());
    let found = stream.absorb(read(6, 1, 9), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [7, 8, 9]);
    assert!(!stream.has_gap());
}

#[test]
fn missing_publications_that_are_gone_are_an_error_with_the_reason() {
    let lost = |read: Read| received_up_to(3).absorb(read, Instant::now()).unwrap_err();
    assert_eq!(lost(read(3, 5, 6)), Lost::Trimmed);
    assert_eq!(lost(read(3, 7, 6)), Lost::Trimmed, "the history is empty");
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
    let mut stream = received_up_to(3);
    let arrived = stream.arrive(&other.epoch, &publication(4), Instant::now());
    assert_eq!(arrived, Err(Lost::Restarted));
    let hole = Read {
        origin: None,
        since: 3,
        position: at(6),
        publications: publications([4, 6]),
        is_cut: false,
    };
    assert_eq!(lost(hole), Lost::Trimmed, "a gap in the middle");
}

#[test]
fn a_recovery_returns_missed_publications_or_that_they_are_gone() {
    let now = Instant::now();
    let stream = received_up_to(15);
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
fn publications_expire_after_the_newest_one() {
    let mut stream = received_up_to(3);
    let now = Instant::now();
    let arrived = stream.arrive(&"e".into(), &publication(4), now);
    assert_eq!(arrived, Ok(Arrival::Next));
    let missed = |at_offset, after| stream.missed(&at(at_offset), None, now + after);
    let last = Missed::These(publications([4]));
    assert_eq!(missed(3, 60 * SECOND - Duration::from_millis(1)), last);
    assert_eq!(missed(3, 60 * SECOND), Missed::Unknown);
    let nothing = Missed::These(Vec::new());
    assert_eq!(missed(4, 60 * SECOND), nothing, "nothing was missed");
}

#[test]
fn publications_that_left_the_ring_are_read_from_the_broker() {
    let now = Instant::now();
    let limits = CacheLimits {
        bytes_max: 3 * (ENTRY_BYTES + 5),
        ..LIMITS
    };
    let stream = Sequence::new(limits, read(0, 1, 8), now);
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
    assert_eq!(trimmed, Missed::Unknown, "the broker has none either");
}

fn moment(at: u64) -> Unstarted {
    Unstarted {
        server: "a".to_owned(),
        evicted: 0,
        at,
        until: at + 100,
    }
}

/// A sequence whose history did not exist at `at`.
fn empty_at(at: u64) -> Sequence {
    let read = Read {
        origin: Some(moment(at)),
        since: 0,
        position: moment(at).position(),
        publications: Vec::new(),
        is_cut: false,
    };
    Sequence::new(LIMITS, read, Instant::now())
}

#[test]
fn an_empty_history_begins_with_its_first_publication() {
    let mut stream = empty_at(1000);
    assert!(stream.is_empty_history());
    assert_eq!(arrive(&mut stream, 1), Ok(Arrival::Next));
    assert_eq!(stream.position(), &at(1));
    assert_eq!(arrive(&mut stream, 2), Ok(Arrival::Next));
}

#[test]
fn publications_after_a_missing_first_one_are_held() {
    let born = |began: u64, top| Read {
        origin: Some(moment(began)),
        ..read(0, 1, top)
    };
    let now = Instant::now();
    let mut stream = empty_at(1000);
    assert_eq!(arrive(&mut stream, 3), Ok(Arrival::AfterGap));
    assert!(stream.has_gap());
    let found = stream.absorb(born(1050, 2), now).unwrap();
    assert_eq!(offsets(&found), [1, 2, 3]);
    assert_eq!(arrive(&mut stream, 4), Ok(Arrival::Next));

    let mut stream = empty_at(1000);
    assert_eq!(arrive(&mut stream, 2), Ok(Arrival::AfterGap));
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
fn a_member_that_subscribed_before_the_first_publication_keeps_its_position() {
    let mut stream = empty_at(1000);
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
        for received in 0..=3 {
            let Missed::These(these) = missed(&before(at, received)) else {
                panic!("{at} {received}")
            };
            assert!(
                offsets(&these).into_iter().eq(received + 1..=3),
                "{at} {received}"
            );
        }
        assert_eq!(missed(&before(at, 4)), Missed::Unknown);
    }
    // Another history may have existed between them.
    assert_eq!(missed(&before(900, 0)), Missed::Unknown);
}

#[test]
fn a_missed_beginning_is_read_if_the_history_is_the_first_one() {
    let born = |began: u64, top| Read {
        origin: Some(moment(began)),
        ..read(0, 1, top)
    };
    let now = Instant::now();
    let found = empty_at(1000).absorb(born(1050, 3), now);
    assert_eq!(offsets(&found.unwrap()), [1, 2, 3]);
    let lost = empty_at(1000).absorb(born(1100, 3), now);
    assert_eq!(lost, Err(Lost::Restarted));
    let mut still = empty_at(1000);
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
fn a_recovery_stays_within_its_limits() {
    let now = Instant::now();
    let these = |offsets: std::ops::RangeInclusive<u64>| Missed::These(publications(offsets));
    let stream = |ring: usize, publications_max: usize, bytes: usize| {
        let limits = CacheLimits {
            bytes_max: ring * (ENTRY_BYTES + 5),
            recovery: Recovery {
                publications_max,
                bytes_max: bytes * (ENTRY_BYTES + 1),
            },
            ..LIMITS
        };
        Sequence::new(limits, read(0, 1, 8), now)
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
        assert_eq!(missed(10, 0, 7), these(8..=8), "a single one may be larger");
        assert_eq!(missed(10, 0, 6), Missed::TooMuch);
    }
    let too_much = stream(3, 10, 2).missed(&at(2), None, now);
    assert_eq!(
        too_much,
        Missed::TooMuch,
        "the broker is not read for nothing"
    );
}

#[test]
fn missing_publications_may_be_read_in_parts() {
    let mut stream = received_up_to(3);
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
    assert_eq!(
        nothing,
        Err(Lost::Trimmed),
        "otherwise it would repeat for ever"
    );
    let found = stream.absorb(part(5, 8), Instant::now()).unwrap();
    assert_eq!(offsets(&found), [6, 7, 8, 9], "with the held ones");
    assert!(!stream.has_gap());
}

#[test]
fn a_partial_read_leaves_a_gap() {
    let mut stream = received_up_to(3);
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
fn a_gap_in_the_history_limits_what_can_be_recovered() {
    let now = Instant::now();
    let holed = Read {
        origin: None,
        since: 0,
        position: at(6),
        publications: publications([1, 2, 3, 5, 6]),
        is_cut: false,
    };
    let stream = Sequence::new(LIMITS, holed, now);
    assert_eq!(stream.position(), &at(6));
    assert_eq!(offsets(&Vec::from(stream.ring.clone())), [5, 6]);
    let torn = Read {
        origin: None,
        since: 0,
        position: at(6),
        publications: publications([1, 2, 3, 4, 5]),
        is_cut: false,
    };
    let stream = Sequence::new(LIMITS, torn, now);
    assert_eq!((stream.position(), stream.ring.len()), (&at(6), 0));
}

/// An event in the life of a node's stream.
#[derive(Debug, Clone)]
enum Step {
    /// A publication is stored, and the node receives it or not.
    Publish { received: bool },
    /// The node receives the last publication again.
    Repeat,
    /// A read begins, if none is under way.
    Ask,
    /// The read completes.
    Response,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::bool::weighted(0.8).prop_map(|received| Step::Publish { received }),
        1 => Just(Step::Repeat),
        2 => Just(Step::Ask),
        2 => Just(Step::Response),
    ]
}

proptest! {
    #[test]
    fn members_receive_everything_once_and_in_order_or_the_stream_ends(
        steps in prop::collection::vec(any_step(), 0..200),
        held_max in 1_usize..6,
        page in 1_usize..12,
    ) {
        let now = Instant::now();
        let limits = CacheLimits { bytes_max: held_max * (ENTRY_BYTES + 4), ..LIMITS };
        let mut stream = Sequence::new(limits, read(0, 1, 0), now);
        let mut top = 0;
        let mut delivered = Vec::new();
        let mut response = None;
        let read_now = |since: u64, top: u64| {
            let mut read = read(since, top.saturating_sub(9), top);
            read.is_cut = page < read.publications.len();
            read.publications.truncate(page);
            read
        };
        for step in steps {
            match step {
                Step::Publish { received } => {
                    top += 1;
                    if received && arrive(&mut stream, top) == Ok(Arrival::Next) {
                        delivered.push(top);
                    }
                }
                Step::Repeat => {
                    if 0 < top && arrive(&mut stream, top) == Ok(Arrival::Next) {
                        delivered.push(top);
                    }
                }
                Step::Ask if response.is_none() => {
                    response = Some(read_now(stream.position().offset, top));
                }
                Step::Ask => {}
                Step::Response => {
                    let Some(read) = response.take() else { continue };
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
            prop_assert!(stream.ring_bytes <= limits.bytes_max);
            prop_assert!(stream.held_bytes <= limits.bytes_max);
        }
        while let Ok(found) = stream.absorb(read_now(stream.position().offset, top), now) {
            delivered.extend(offsets(&found));
            if !stream.has_gap() {
                prop_assert_eq!(delivered.len() as u64, top);
                break;
            }
            prop_assert!(!found.is_empty(), "the read made no progress");
        }
    }
}
