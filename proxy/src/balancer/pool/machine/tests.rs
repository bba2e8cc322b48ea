//! Every transition of the state machine, and that no state is final.

use proptest::prelude::*;

use super::*;
use Event::*;
use State::{Down, Draining, Maintenance, Suspect, Unknown, Up};

const CONFIG: MachineConfig = MachineConfig {
    rise: 2,
    fall: 3,
    hold: Duration::from_secs(10),
    hold_timeout: Duration::from_secs(2),
};

/// No grace period.
const AT_ONCE: MachineConfig = MachineConfig {
    hold: Duration::ZERO,
    hold_timeout: Duration::ZERO,
    ..CONFIG
};

/// All inputs of the machine.
#[derive(Debug, Clone, Copy)]
enum Event {
    Good,
    Drains,
    Bad,
    Unreachable,
    Silent,
    DialRefused,
    DialTimedOut,
    /// It announces that it is stopping.
    Stops,
    /// This many seconds pass.
    Wait(u64),
}

/// A machine and its clock.
struct Bench {
    machine: Machine,
    now: Instant,
}

impl Bench {
    fn new(config: MachineConfig) -> Self {
        let now = Instant::now();
        Self {
            machine: Machine::new(Unknown, config, now),
            now,
        }
    }

    /// A machine that has just entered `state`.
    fn reaching(state: State, config: MachineConfig) -> Self {
        let mut bench = Self::new(config);
        let way: &[Event] = match state {
            Unknown => &[],
            Up => &[Good],
            Suspect => &[Good, DialRefused],
            Down => &[Bad, Bad, Bad],
            Draining => &[Drains],
            Maintenance => {
                bench.machine = Machine::new(Maintenance, config, bench.now);
                &[]
            }
        };
        bench.all(way);
        assert_eq!(bench.machine.state(), state);
        bench
    }

    fn on(&mut self, event: Event) -> Option<Change> {
        let why = || "why".to_owned();
        let (machine, now) = (&mut self.machine, self.now);
        match event {
            Good => machine.probe(ProbeResult::Good, now),
            Drains => machine.probe(ProbeResult::Draining, now),
            Bad => machine.probe(ProbeResult::UnexpectedResponse(why()), now),
            Unreachable => machine.probe(ProbeResult::Unreachable(why()), now),
            Silent => machine.probe(ProbeResult::NoResponse(why()), now),
            DialRefused => machine.dial_failed(DialFailure::Refused, now),
            DialTimedOut => machine.dial_failed(DialFailure::TimedOut, now),
            Stops => machine.announced_stop(now),
            Wait(seconds) => {
                self.now += Duration::from_secs(seconds);
                machine.tick(self.now)
            }
        }
    }

    fn all(&mut self, events: &[Event]) -> State {
        for event in events {
            self.on(*event);
        }
        self.machine.state()
    }
}

#[test]
fn each_event_in_each_state_leads_to_the_state_in_the_table() {
    // One event: good, draining, unexpected response, unreachable, no response, dial refused, dial timed out, a minute.
    let table = [
        (
            Unknown,
            [
                Up, Draining, Suspect, Suspect, Suspect, Suspect, Suspect, Unknown,
            ],
        ),
        (
            Up,
            [
                Up, Draining, Suspect, Suspect, Suspect, Suspect, Suspect, Up,
            ],
        ),
        (
            Suspect,
            [
                Up, Draining, Suspect, Suspect, Suspect, Suspect, Suspect, Down,
            ],
        ),
        (Down, [Down, Draining, Down, Down, Down, Down, Down, Down]),
        (
            Draining,
            [
                Up, Draining, Draining, Draining, Draining, Draining, Draining, Draining,
            ],
        ),
        (Maintenance, [Maintenance; 8]),
    ];
    let events = [
        Good,
        Drains,
        Bad,
        Unreachable,
        Silent,
        DialRefused,
        DialTimedOut,
        Wait(60),
    ];
    for (from, expected) in table {
        for (event, to) in events.into_iter().zip(expected) {
            let mut bench = Bench::reaching(from, CONFIG);
            let change = bench.on(event);
            assert_eq!(bench.machine.state(), to, "{from:?} {event:?}");
            let moved = change.map(|change| (change.from, change.to));
            assert_eq!(
                moved,
                (from != to).then_some((from, to)),
                "{from:?} {event:?}"
            );
        }
    }
}

#[test]
fn unexpected_responses_take_a_backend_down_after_fall_in_a_row() {
    for from in [Unknown, Up, Draining] {
        let mut bench = Bench::reaching(from, CONFIG);
        assert_ne!(bench.all(&[Bad, Bad]), Down, "{from:?}");
        assert_eq!(bench.all(&[Bad]), Down, "{from:?}");
    }
    let mut bench = Bench::reaching(Up, CONFIG);
    assert_eq!(bench.all(&[Bad, Bad, Good, Bad, Bad]), Suspect);
}

#[test]
fn a_backend_that_refuses_connections_is_suspect_until_hold_is_over() {
    for sign in [Unreachable, DialRefused] {
        let mut bench = Bench::reaching(Up, CONFIG);
        bench.on(sign);
        assert_eq!(bench.machine.grace_end(), Some(bench.now + CONFIG.hold));
        for _ in 0..9 {
            assert_eq!(bench.all(&[Wait(1), Unreachable, DialRefused]), Suspect);
        }
        let change = bench.on(Wait(1)).unwrap();
        assert_eq!((change.from, change.to), (Suspect, Down));
        assert_eq!(change.lasted, CONFIG.hold);
        assert!(
            change.why.ends_with("and no probe passed within 10s"),
            "{}",
            change.why
        );
    }
}

#[test]
fn a_backend_that_does_not_respond_has_the_shorter_grace_period() {
    for sign in [Silent, DialTimedOut] {
        let mut bench = Bench::reaching(Up, CONFIG);
        assert_eq!(bench.all(&[sign, Wait(1), Silent, Silent, Silent]), Suspect);
        assert_eq!(bench.all(&[Wait(1)]), Down);
    }
}

#[test]
fn a_failed_probe_after_the_grace_period_ends_it_without_a_tick() {
    let mut bench = Bench::reaching(Up, CONFIG);
    bench.on(Silent);
    bench.now += CONFIG.hold_timeout;
    assert_eq!(bench.all(&[Silent]), Down);
}

#[test]
fn a_program_that_hangs_and_is_then_restarted_gets_the_longer_grace_period() {
    let mut bench = Bench::reaching(Up, CONFIG);
    assert_eq!(bench.all(&[Silent, Wait(1), Unreachable, Wait(8)]), Suspect);
    assert_eq!(bench.all(&[Wait(1)]), Down);
}

#[test]
fn unexpected_responses_during_a_grace_period_do_not_end_it() {
    let mut bench = Bench::reaching(Up, CONFIG);
    assert_eq!(
        bench.all(&[Unreachable, Bad, Bad, Bad, Bad, Wait(9)]),
        Suspect
    );
    assert_eq!(bench.all(&[Good]), Up);
}

#[test]
fn a_grace_period_starts_with_the_first_failure_to_reach_the_backend() {
    let mut bench = Bench::reaching(Up, CONFIG);
    assert_eq!(bench.all(&[Bad, Wait(5), Bad]), Suspect);
    assert_eq!(bench.machine.grace_end(), None);
    bench.on(Unreachable);
    assert_eq!(bench.machine.grace_end(), Some(bench.now + CONFIG.hold));
}

#[test]
fn without_a_grace_period_failed_probes_count_and_failed_dials_do_not() {
    for sign in [Unreachable, Silent, Bad] {
        let mut bench = Bench::reaching(Up, AT_ONCE);
        assert_eq!(bench.all(&[sign, sign, Wait(3600)]), Suspect);
        assert_eq!(bench.all(&[sign]), Down);
    }
    let mut bench = Bench::reaching(Up, AT_ONCE);
    assert_eq!(bench.all(&[DialRefused; 100]), Suspect);
    assert_eq!(bench.all(&[Unreachable; 2]), Suspect);
    assert_eq!(bench.all(&[Unreachable]), Down);
}

#[test]
fn with_thresholds_of_one_and_no_grace_period_each_probe_decides() {
    let config = MachineConfig {
        rise: 1,
        fall: 1,
        ..AT_ONCE
    };
    let mut bench = Bench::new(config);
    assert_eq!(bench.all(&[Good]), Up);
    let change = bench.on(Unreachable).unwrap();
    assert_eq!((change.from, change.to), (Up, Down));
    assert_eq!(bench.all(&[Good]), Up);
}

#[test]
fn a_backend_that_was_down_comes_up_after_rise_good_probes_in_a_row() {
    let mut bench = Bench::reaching(Down, CONFIG);
    assert_eq!(bench.all(&[Good, Bad, Good]), Down);
    assert_eq!(bench.all(&[Good]), Up);
}

#[test]
fn a_flapping_backend_needs_more_good_probes_until_it_is_steady() {
    let mut bench = Bench::reaching(Down, CONFIG);
    let fall = [Unreachable, Wait(10)];
    // Each time that it goes down soon after it came up doubles `rise`.
    for probes in [2, 4, 8, 16, 16, 16] {
        assert_eq!(bench.all(&vec![Good; probes - 1]), Down, "{probes}");
        assert_eq!(bench.all(&[Good]), Up, "{probes}");
        assert_eq!(bench.all(&fall), Down, "{probes}");
    }
    assert_eq!(bench.all(&[Good; 16]), Up);
    bench.on(Wait(60));
    assert_eq!(bench.all(&fall), Down);
    assert_eq!(bench.all(&[Good; 2]), Up);
    // An announced stop is not flapping.
    assert_eq!(
        bench.all(&[Drains, Unreachable, Unreachable, Unreachable]),
        Down
    );
    assert_eq!(bench.all(&[Good; 2]), Up);
}

#[test]
fn a_backend_that_announced_its_stop_drains_as_soon_as_it_is_unreachable() {
    for sign in [Unreachable, Silent, DialRefused, DialTimedOut] {
        for from in [Unknown, Up] {
            let mut bench = Bench::reaching(from, CONFIG);
            assert_eq!(
                bench.all(&[Stops, Wait(14)]),
                from,
                "an announcement changes no state"
            );
            let change = bench.on(sign).unwrap();
            assert_eq!((change.from, change.to), (from, Draining), "{sign:?}");
            assert!(
                change
                    .why
                    .starts_with("it announced that it is stopping, then: ")
            );
            assert_eq!(bench.machine.grace_end(), None);
            assert_eq!(bench.all(&[Good]), Up, "it was a restart");
            assert_eq!(bench.all(&[sign]), Suspect, "the announcement counts once");
        }
    }
}

#[test]
fn an_unreachable_backend_drains_as_soon_as_its_stop_is_announced() {
    let mut bench = Bench::reaching(Up, CONFIG);
    assert_eq!(bench.all(&[DialRefused]), Suspect);
    assert_eq!(bench.all(&[Stops]), Draining);
}

#[test]
fn an_expired_announcement_or_an_unexpected_response_is_no_stop() {
    let mut bench = Bench::reaching(Up, CONFIG);
    assert_eq!(bench.all(&[Stops, Wait(15), Unreachable]), Suspect);
    let mut bench = Bench::reaching(Up, CONFIG);
    assert_eq!(bench.all(&[Stops, Bad]), Suspect);
    for from in [Down, Draining, Maintenance] {
        let mut bench = Bench::reaching(from, CONFIG);
        assert_eq!(bench.all(&[Stops, DialRefused]), from);
    }
}

#[test]
fn a_change_has_both_states_the_reason_and_the_duration() {
    let mut bench = Bench::reaching(Up, CONFIG);
    bench.on(Wait(3));
    let change = bench.on(Bad).unwrap();
    let expected = Change {
        from: Up,
        to: Suspect,
        why: "why".into(),
        lasted: Duration::from_secs(3),
    };
    assert_eq!(change, expected);
    let (machine, now) = (&bench.machine, bench.now);
    assert_eq!((machine.since(), machine.why()), (now, "why"));
}

#[test]
fn an_unexpected_response_is_distinguished_from_no_response() {
    let mut bench = Bench::reaching(Down, CONFIG);
    assert!(bench.machine.responds());
    bench.on(Unreachable);
    assert!(!bench.machine.responds());
    bench.on(Good);
    assert!(bench.machine.responds(), "it is still down");
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Good),
        1 => Just(Drains),
        2 => Just(Bad),
        2 => Just(Unreachable),
        2 => Just(Silent),
        2 => Just(DialRefused),
        2 => Just(DialTimedOut),
        1 => Just(Stops),
        3 => (0..20_u64).prop_map(Wait),
    ]
}

proptest! {
    /// After any events: a change has the right states, a grace period exists only while it may and ends in time, and every state
    /// can be left, up and down.
    #[test]
    fn no_state_is_final_and_no_grace_period_is_exceeded(
        events in prop::collection::vec(event(), 0..60),
        rise in 1..5_u32,
        fall in 1..5_u32,
        hold in 0..12_u64,
        hold_timeout in 0..12_u64,
    ) {
        let config = MachineConfig {
            rise,
            fall,
            hold: Duration::from_secs(hold),
            hold_timeout: Duration::from_secs(hold_timeout),
        };
        let longest = config.hold.max(config.hold_timeout);
        let build = || {
            let mut bench = Bench::new(config);
            let mut no_sign_of_life: Option<Instant> = None;
            for event in &events {
                let from = bench.machine.state();
                let (began, grace) = (bench.now, bench.machine.grace_end());
                let change = bench.on(*event);
                let (machine, now) = (&bench.machine, bench.now);
                match change {
                    Some(change) => {
                        assert_eq!((change.from, change.to), (from, machine.state()));
                        assert_ne!(change.from, change.to);
                        assert_eq!(machine.since(), now);
                    }
                    None => assert_eq!(from, machine.state()),
                }
                // A grace period that has expired has ended.
                if let (Wait(_), Some(end)) = (event, grace) {
                    assert_eq!(machine.state() == Down, end <= now, "{began:?} {end:?}");
                }
                if let Some(end) = machine.grace_end() {
                    assert_eq!(machine.state(), Suspect);
                    let began = *no_sign_of_life.get_or_insert(now);
                    assert!(end <= began + longest);
                } else {
                    no_sign_of_life = None;
                }
            }
            bench
        };
        let mut up = build();
        prop_assert_eq!(up.all(&vec![Good; (rise << DOUBLED_MAX) as usize]), Up);
        for sign in [Bad, Unreachable, Silent] {
            let mut down = build();
            // One more, which ends an announced stop.
            down.all(&vec![sign; fall as usize + 1]);
            prop_assert_eq!(down.all(&[Wait(12)]), Down);
        }
    }
}

/// An operator sets or lifts an override.
fn set(bench: &mut Bench, operator: Option<Override>) -> Option<State> {
    let change = bench.machine.set_override(operator, bench.now);
    change.map(|change| change.to)
}

#[test]
fn an_override_holds_over_probes_dials_and_announcements() {
    for state in [Unknown, Up, Suspect, Down, Draining] {
        for (operator, forced) in [
            (Override::Drain, Draining),
            (Override::Maintenance, Maintenance),
        ] {
            let mut bench = Bench::reaching(state, CONFIG);
            let expected = (state != forced).then_some(forced);
            assert_eq!(set(&mut bench, Some(operator)), expected);
            assert_eq!(bench.machine.why(), BY_OPERATOR);
            for event in [
                Good,
                Drains,
                Bad,
                Unreachable,
                Silent,
                DialRefused,
                Stops,
                Wait(100),
            ] {
                assert_eq!(bench.on(event), None, "{event:?} in {state:?}");
            }
            assert_eq!(bench.machine.state(), forced);
        }
    }
}

#[test]
fn the_state_after_an_override_follows_from_the_last_probes() {
    for (before, probes, after) in [
        (Up, &[][..], Up),
        (Down, &[], Down),
        (Unknown, &[], Unknown),
        (Down, &[Good], Up),
        (Up, &[Drains], Draining),
        (Up, &[Bad, Bad], Unknown),
        (Up, &[Bad, Bad, Bad], Down),
        (Up, &[Unreachable, Silent, Unreachable], Down),
        (Up, &[Bad, Bad, Bad, Good], Up),
    ] {
        let mut bench = Bench::reaching(before, CONFIG);
        set(&mut bench, Some(Override::Maintenance));
        bench.all(probes);
        assert_eq!(set(&mut bench, None), Some(after), "{before:?} {probes:?}");
        assert_eq!(set(&mut bench, None), None);
    }
}

#[test]
fn one_override_takes_the_place_of_the_other_and_the_probes_are_remembered() {
    let mut bench = Bench::reaching(Up, CONFIG);
    set(&mut bench, Some(Override::Drain));
    bench.all(&[Bad, Bad, Bad]);
    assert_eq!(
        set(&mut bench, Some(Override::Maintenance)),
        Some(Maintenance)
    );
    assert_eq!(set(&mut bench, None), Some(Down));
}

#[test]
fn a_drained_backend_is_lost_when_it_no_longer_responds() {
    let mut bench = Bench::reaching(Up, CONFIG);
    set(&mut bench, Some(Override::Drain));
    bench.all(&[Bad, Bad, Bad, Bad]);
    assert!(!bench.machine.is_lost(), "it responds");
    bench.all(&[Good, Unreachable, Unreachable]);
    assert!(!bench.machine.is_lost());
    bench.all(&[Unreachable]);
    assert!(bench.machine.is_lost());
    bench.all(&[Good]);
    assert!(!bench.machine.is_lost());
    let mut down = Bench::reaching(Down, CONFIG);
    down.all(&[Silent]);
    set(&mut down, Some(Override::Drain));
    assert!(down.machine.is_lost(), "it was down before");
}

#[test]
fn a_reload_keeps_an_override_and_its_own_maintenance_is_stronger() {
    let mut bench = Bench::reaching(Up, CONFIG);
    set(&mut bench, Some(Override::Drain));
    let mut configure = |maintenance| {
        let change = bench.machine.configure(CONFIG, maintenance, bench.now);
        (change.map(|change| change.to), bench.machine.is_probed())
    };
    assert_eq!(configure(false), (None, true));
    assert_eq!(configure(true), (Some(Maintenance), false));
    assert_eq!(configure(false), (Some(Draining), true));
    bench.machine.remove(bench.now);
    assert!(!bench.machine.is_probed());
    assert_eq!(set(&mut bench, None), None, "it is removed");
    assert_eq!(bench.machine.state(), Draining);
}
