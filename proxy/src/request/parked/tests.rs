use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

const CONFIG: HoldConfig = HoldConfig {
    refused: Duration::from_secs(10),
    timed_out: Duration::from_secs(2),
    most: 2,
};

#[test]
fn a_request_waits_and_dials_about_every_second_until_its_time_is_up() {
    let room = WaitingRoom::new(CONFIG);
    let start = Instant::now();
    let mut hold = room.enter(FailedDial::Refused, start).unwrap();
    let mut now = start;
    let mut dials = 0;
    loop {
        match hold.step(true, now) {
            Step::Wait(until) => {
                assert!(now < until && until <= now + 2 * SECOND);
                now = until;
            }
            Step::Dial => {
                dials += 1;
                hold.failed(FailedDial::Refused, now);
            }
            Step::Leave => break,
        }
    }
    assert_eq!(now, start + CONFIG.refused);
    assert!((8..=12).contains(&dials), "{dials}");
}

#[test]
fn however_often_the_backend_answers_probes_the_dials_are_bounded() {
    let room = WaitingRoom::new(CONFIG);
    let mut now = Instant::now();
    let mut hold = room.enter(FailedDial::Refused, now).unwrap();
    let mut dials = 0;
    loop {
        hold.answered(now);
        match hold.step(true, now) {
            Step::Wait(_) => now += MS,
            Step::Dial => {
                dials += 1;
                hold.failed(FailedDial::Refused, now);
            }
            Step::Leave => break,
        }
    }
    assert!(dials <= CONFIG.dials_max(), "{dials}");
}

#[test]
fn the_time_ends_just_when_it_should() {
    let room = WaitingRoom::new(CONFIG);
    let now = Instant::now();
    for (dial, patience) in [
        (FailedDial::Refused, CONFIG.refused),
        (FailedDial::TimedOut, CONFIG.timed_out),
    ] {
        let hold = room.enter(dial, now).unwrap();
        assert_ne!(hold.step(true, now + patience - MS), Step::Leave);
        assert_eq!(hold.step(true, now + patience), Step::Leave);
    }
}

#[test]
fn nobody_waits_for_a_backend_that_is_given_up() {
    let room = WaitingRoom::new(CONFIG);
    let now = Instant::now();
    let hold = room.enter(FailedDial::Refused, now).unwrap();
    assert_eq!(hold.step(false, now), Step::Leave);
}

#[test]
fn an_answered_probe_brings_the_dial_forward_and_failures_space_it_out() {
    let room = WaitingRoom::new(CONFIG);
    let mut now = Instant::now();
    let mut hold = room.enter(FailedDial::Refused, now).unwrap();
    let mut pauses = Vec::new();
    for _ in 0..5 {
        hold.answered(now);
        let Step::Wait(until) = hold.step(true, now) else {
            panic!("a dial has just failed");
        };
        pauses.push(until - now);
        now = until;
        assert_eq!(hold.step(true, now), Step::Dial);
        hold.failed(FailedDial::Refused, now);
    }
    let least = [125, 250, 500].map(|ms| ms * MS);
    for (pause, least) in pauses.iter().zip(least) {
        assert!(least <= *pause && *pause <= least + SPREAD, "{pauses:?}");
    }
    assert!(pauses[3] >= SECOND.mul_f64(0.8), "{pauses:?}");
}

#[test]
fn a_refusal_gives_more_time_than_silence_and_silence_never_more_than_there_was() {
    let room = WaitingRoom::new(CONFIG);
    let start = Instant::now();
    let mut hold = room.enter(FailedDial::TimedOut, start).unwrap();
    assert_eq!(hold.until, start + CONFIG.timed_out);
    hold.failed(FailedDial::TimedOut, start + SECOND);
    assert_eq!(hold.until, start + CONFIG.timed_out);
    hold.failed(FailedDial::Refused, start + SECOND);
    assert_eq!(hold.until, start + CONFIG.refused);
    hold.failed(FailedDial::TimedOut, start + 3 * SECOND);
    assert_eq!(hold.until, start + 5 * SECOND);
    hold.failed(FailedDial::TimedOut, start + 4 * SECOND);
    assert_eq!(hold.until, start + 5 * SECOND);
}

#[test]
fn a_full_room_takes_nobody_until_one_leaves() {
    let room = WaitingRoom::new(CONFIG);
    let now = Instant::now();
    let first = room.enter(FailedDial::Refused, now).unwrap();
    let _second = room.enter(FailedDial::TimedOut, now).unwrap();
    assert_eq!(
        room.enter(FailedDial::Refused, now).map(|_| ()),
        Err(NoPlace::Full)
    );
    drop(first);
    assert!(room.enter(FailedDial::Refused, now).is_ok());
}

#[test]
fn waiting_can_be_switched_off() {
    let enter = |config, dial| {
        let room = WaitingRoom::new(config);
        room.enter(dial, Instant::now()).map(|_| ())
    };
    let never = HoldConfig {
        refused: Duration::ZERO,
        ..CONFIG
    };
    assert_eq!(enter(never, FailedDial::Refused), Err(NoPlace::Off));
    assert_eq!(enter(never, FailedDial::TimedOut), Ok(()));
    let nobody = HoldConfig { most: 0, ..CONFIG };
    assert_eq!(enter(nobody, FailedDial::Refused), Err(NoPlace::Full));
}

/// What may happen while requests wait.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A dial of another request fails.
    Enter(FailedDial),
    /// The client of the request at this index leaves.
    Left(usize),
    /// Its backend answers a probe.
    Answered(usize),
    /// Its backend is given up, or kept again.
    Keeps(usize, bool),
    /// Time passes, in milliseconds.
    Passes(u64),
    /// The dial that is due for it, if any, fails.
    Fails(usize, FailedDial),
}

/// A request that waits, as the model sees it.
struct Waiter {
    hold: Hold,
    began: Instant,
    keeps_clients: bool,
}

fn event() -> impl Strategy<Value = Event> {
    let dial = || prop_oneof![Just(FailedDial::Refused), Just(FailedDial::TimedOut)];
    let index = 0..8_usize;
    prop_oneof![
        3 => dial().prop_map(Event::Enter),
        1 => index.clone().prop_map(Event::Left),
        2 => index.clone().prop_map(Event::Answered),
        1 => (index.clone(), any::<bool>()).prop_map(|(index, keeps)| Event::Keeps(index, keeps)),
        3 => (0..4000_u64).prop_map(Event::Passes),
        2 => (index, dial()).prop_map(|(index, dial)| Event::Fails(index, dial)),
    ]
}

proptest! {
    #[test]
    fn no_more_wait_than_may_and_none_for_too_long_or_in_vain(
        most in 0..5_usize,
        events in proptest::collection::vec(event(), 0..200),
    ) {
        let room = WaitingRoom::new(HoldConfig { most, ..CONFIG });
        let mut now = Instant::now();
        let mut waiters: Vec<Waiter> = Vec::new();
        for event in events {
            match event {
                Event::Enter(dial) => match room.enter(dial, now) {
                    Ok(hold) => waiters.push(Waiter { hold, began: now, keeps_clients: true }),
                    Err(full) => {
                        prop_assert_eq!(full, NoPlace::Full);
                        prop_assert_eq!(waiters.len(), most);
                    }
                },
                Event::Left(index) if index < waiters.len() => drop(waiters.swap_remove(index)),
                Event::Passes(ms) => now += MS * u32::try_from(ms).unwrap(),
                Event::Answered(index) => {
                    if let Some(waiter) = waiters.get_mut(index) {
                        waiter.hold.answered(now);
                    }
                }
                Event::Keeps(index, keeps) => {
                    if let Some(waiter) = waiters.get_mut(index) {
                        waiter.keeps_clients = keeps;
                    }
                }
                Event::Fails(index, dial) => {
                    if let Some(waiter) = waiters.get_mut(index)
                        && waiter.hold.step(waiter.keeps_clients, now) == Step::Dial
                    {
                        waiter.hold.failed(dial, now);
                    }
                }
                Event::Left(_) => {}
            }
            // As the loop around it does: whoever is told to leave does.
            waiters.retain(|waiter| waiter.hold.step(waiter.keeps_clients, now) != Step::Leave);
            prop_assert!(waiters.len() <= most);
            prop_assert_eq!(room.taken.load(Ordering::Relaxed), waiters.len());
            for waiter in &waiters {
                prop_assert!(waiter.keeps_clients);
                prop_assert!(now < waiter.began + CONFIG.refused);
                if let Step::Wait(until) = waiter.hold.step(true, now) {
                    prop_assert!(now < until && until <= waiter.began + CONFIG.refused);
                }
            }
        }
    }
}
