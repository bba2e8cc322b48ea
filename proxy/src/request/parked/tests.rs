use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

const CONFIG: ParkConfig = ParkConfig {
    refused: Duration::from_secs(10),
    timed_out: Duration::from_secs(2),
    requests_max: 2,
};

#[test]
fn a_parked_request_dials_about_every_second_until_its_deadline() {
    let parked = ParkedRequests::new(CONFIG);
    let start = Instant::now();
    let mut request = parked.park(ParkReason::Refused, start).unwrap();
    let mut now = start;
    let mut dials = 0;
    loop {
        match request.step(true, now) {
            Step::Wait(until) => {
                assert!(now < until && until <= now + 2 * SECOND);
                now = until;
            }
            Step::Dial => {
                dials += 1;
                request.failed(ParkReason::Refused, now);
            }
            Step::GiveUp => break,
        }
    }
    assert_eq!(now, start + CONFIG.refused);
    assert!((8..=12).contains(&dials), "{dials}");
}

#[test]
fn dials_are_bounded_even_if_each_probe_is_answered() {
    let parked = ParkedRequests::new(CONFIG);
    let mut now = Instant::now();
    let mut request = parked.park(ParkReason::Refused, now).unwrap();
    let mut dials = 0;
    loop {
        request.probe_answered(now);
        match request.step(true, now) {
            Step::Wait(_) => now += MS,
            Step::Dial => {
                dials += 1;
                request.failed(ParkReason::Refused, now);
            }
            Step::GiveUp => break,
        }
    }
    assert!(dials <= CONFIG.dials_max(), "{dials}");
}

#[test]
fn a_request_gives_up_exactly_at_its_deadline() {
    let parked = ParkedRequests::new(CONFIG);
    let now = Instant::now();
    for (dial, max_wait) in [
        (ParkReason::Refused, CONFIG.refused),
        (ParkReason::TimedOut, CONFIG.timed_out),
    ] {
        let request = parked.park(dial, now).unwrap();
        assert_ne!(request.step(true, now + max_wait - MS), Step::GiveUp);
        assert_eq!(request.step(true, now + max_wait), Step::GiveUp);
    }
}

#[test]
fn a_request_gives_up_at_once_if_its_backend_does_not_keep_clients() {
    let parked = ParkedRequests::new(CONFIG);
    let now = Instant::now();
    let request = parked.park(ParkReason::Refused, now).unwrap();
    assert_eq!(request.step(false, now), Step::GiveUp);
}

#[test]
fn an_answered_probe_brings_the_dial_forward_and_failures_space_it_out() {
    let parked = ParkedRequests::new(CONFIG);
    let mut now = Instant::now();
    let mut request = parked.park(ParkReason::Refused, now).unwrap();
    let mut pauses = Vec::new();
    for _ in 0..5 {
        request.probe_answered(now);
        let Step::Wait(until) = request.step(true, now) else {
            panic!("a dial has just failed");
        };
        pauses.push(until - now);
        now = until;
        assert_eq!(request.step(true, now), Step::Dial);
        request.failed(ParkReason::Refused, now);
    }
    let least = [125, 250, 500].map(|ms| ms * MS);
    for (pause, least) in pauses.iter().zip(least) {
        assert!(least <= *pause && *pause <= least + SPREAD, "{pauses:?}");
    }
    assert!(pauses[3] >= SECOND.mul_f64(0.8), "{pauses:?}");
}

#[test]
fn a_refused_dial_extends_the_deadline_and_a_timeout_never_does() {
    let parked = ParkedRequests::new(CONFIG);
    let start = Instant::now();
    let mut request = parked.park(ParkReason::TimedOut, start).unwrap();
    assert_eq!(request.until, start + CONFIG.timed_out);
    request.failed(ParkReason::TimedOut, start + SECOND);
    assert_eq!(request.until, start + CONFIG.timed_out);
    request.failed(ParkReason::Refused, start + SECOND);
    assert_eq!(request.until, start + CONFIG.refused);
    request.failed(ParkReason::TimedOut, start + 3 * SECOND);
    assert_eq!(request.until, start + 5 * SECOND);
    request.failed(ParkReason::TimedOut, start + 4 * SECOND);
    assert_eq!(request.until, start + 5 * SECOND);
}

#[test]
fn no_request_is_parked_beyond_the_limit_until_another_ends() {
    let parked = ParkedRequests::new(CONFIG);
    let now = Instant::now();
    let first = parked.park(ParkReason::Refused, now).unwrap();
    let _second = parked.park(ParkReason::TimedOut, now).unwrap();
    assert_eq!(
        parked.park(ParkReason::Refused, now).map(|_| ()),
        Err(NotParked::Full)
    );
    drop(first);
    assert!(parked.park(ParkReason::Refused, now).is_ok());
}

#[test]
fn parking_can_be_disabled() {
    let park = |config, dial| {
        let parked = ParkedRequests::new(config);
        parked.park(dial, Instant::now()).map(|_| ())
    };
    let never = ParkConfig {
        refused: Duration::ZERO,
        ..CONFIG
    };
    assert_eq!(park(never, ParkReason::Refused), Err(NotParked::Disabled));
    assert_eq!(park(never, ParkReason::TimedOut), Ok(()));
    let none = ParkConfig {
        requests_max: 0,
        ..CONFIG
    };
    assert_eq!(park(none, ParkReason::Refused), Err(NotParked::Full));
}

/// What may happen while requests are parked.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A dial of another request fails.
    Park(ParkReason),
    /// The client of the request at this index disconnects.
    Left(usize),
    /// Its backend responds to a probe.
    Answered(usize),
    /// Its backend stops or starts to keep its clients.
    Keeps(usize, bool),
    /// Time passes, in milliseconds.
    Passes(u64),
    /// The dial that is due for it, if any, fails.
    Fails(usize, ParkReason),
}

/// A parked request in the model.
struct Waiting {
    request: ParkedRequest,
    began: Instant,
    keeps_clients: bool,
}

fn event() -> impl Strategy<Value = Event> {
    let dial = || prop_oneof![Just(ParkReason::Refused), Just(ParkReason::TimedOut)];
    let index = 0..8_usize;
    prop_oneof![
        3 => dial().prop_map(Event::Park),
        1 => index.clone().prop_map(Event::Left),
        2 => index.clone().prop_map(Event::Answered),
        1 => (index.clone(), any::<bool>()).prop_map(|(index, keeps)| Event::Keeps(index, keeps)),
        3 => (0..4000_u64).prop_map(Event::Passes),
        2 => (index, dial()).prop_map(|(index, dial)| Event::Fails(index, dial)),
    ]
}

proptest! {
    #[test]
    fn parked_requests_never_exceed_their_limit_or_their_deadline(
        requests_max in 0..5_usize,
        events in proptest::collection::vec(event(), 0..200),
    ) {
        let parked = ParkedRequests::new(ParkConfig { requests_max, ..CONFIG });
        let mut now = Instant::now();
        let mut waiting: Vec<Waiting> = Vec::new();
        for event in events {
            match event {
                Event::Park(dial) => match parked.park(dial, now) {
                    Ok(request) => waiting.push(Waiting { request, began: now, keeps_clients: true }),
                    Err(full) => {
                        prop_assert_eq!(full, NotParked::Full);
                        prop_assert_eq!(waiting.len(), requests_max);
                    }
                },
                Event::Left(index) if index < waiting.len() => drop(waiting.swap_remove(index)),
                Event::Passes(ms) => now += MS * u32::try_from(ms).unwrap(),
                Event::Answered(index) => {
                    if let Some(waiter) = waiting.get_mut(index) {
                        waiter.request.probe_answered(now);
                    }
                }
                Event::Keeps(index, keeps) => {
                    if let Some(waiter) = waiting.get_mut(index) {
                        waiter.keeps_clients = keeps;
                    }
                }
                Event::Fails(index, dial) => {
                    if let Some(waiter) = waiting.get_mut(index)
                        && waiter.request.step(waiter.keeps_clients, now) == Step::Dial
                    {
                        waiter.request.failed(dial, now);
                    }
                }
                Event::Left(_) => {}
            }
            // As the loop around it does.
            waiting.retain(|waiter| waiter.request.step(waiter.keeps_clients, now) != Step::GiveUp);
            prop_assert!(waiting.len() <= requests_max);
            prop_assert_eq!(parked.count.load(Ordering::Relaxed), waiting.len());
            for waiter in &waiting {
                prop_assert!(waiter.keeps_clients);
                prop_assert!(now < waiter.began + CONFIG.refused);
                if let Step::Wait(until) = waiter.request.step(true, now) {
                    prop_assert!(now < until && until <= waiter.began + CONFIG.refused);
                }
            }
        }
    }
}
