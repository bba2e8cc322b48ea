//! Every move of the machine, and that none of its states is a trap.

use proptest::prelude::*;

use super::*;

const THRESHOLDS: Thresholds = Thresholds { rise: 2, fall: 3 };

fn machine() -> Machine {
    Machine::new(State::Unknown, THRESHOLDS, Instant::now())
}

fn no_answer() -> ProbeResult {
    ProbeResult::NoAnswer("it refuses connections".to_owned())
}

fn probe(machine: &mut Machine, result: ProbeResult) -> State {
    machine.probe(result, Instant::now());
    machine.state()
}

#[test]
fn the_first_probe_decides_about_an_unknown_backend() {
    assert_eq!(probe(&mut machine(), ProbeResult::Good), State::Up);
    assert_eq!(probe(&mut machine(), no_answer()), State::Down);
    assert_eq!(
        probe(&mut machine(), ProbeResult::Draining),
        State::Draining
    );
}

#[test]
fn a_backend_falls_after_so_many_failed_probes_and_not_before() {
    let mut machine = machine();
    probe(&mut machine, ProbeResult::Good);
    assert_eq!(probe(&mut machine, no_answer()), State::Suspect);
    assert_eq!(probe(&mut machine, no_answer()), State::Suspect);
    assert_eq!(probe(&mut machine, no_answer()), State::Down);
}

#[test]
fn one_good_probe_clears_a_suspect_backend() {
    let mut machine = machine();
    probe(&mut machine, ProbeResult::Good);
    machine.suspect("it cannot be reached", Instant::now());
    assert_eq!(machine.state(), State::Suspect);
    assert_eq!(probe(&mut machine, no_answer()), State::Suspect);
    assert_eq!(probe(&mut machine, ProbeResult::Good), State::Up);
    assert_eq!(probe(&mut machine, no_answer()), State::Suspect);
    assert_eq!(probe(&mut machine, no_answer()), State::Suspect);
}

#[test]
fn a_backend_that_was_down_rises_after_so_many_good_probes_in_a_row() {
    let mut machine = machine();
    probe(&mut machine, no_answer());
    assert_eq!(probe(&mut machine, ProbeResult::Good), State::Down);
    assert_eq!(probe(&mut machine, no_answer()), State::Down);
    assert_eq!(probe(&mut machine, ProbeResult::Good), State::Down);
    assert_eq!(probe(&mut machine, ProbeResult::Good), State::Up);
}

#[test]
fn with_thresholds_of_one_each_probe_decides() {
    let once = Thresholds { rise: 1, fall: 1 };
    let mut machine = Machine::new(State::Unknown, once, Instant::now());
    assert_eq!(probe(&mut machine, ProbeResult::Good), State::Up);
    assert_eq!(probe(&mut machine, no_answer()), State::Down);
    assert_eq!(probe(&mut machine, ProbeResult::Good), State::Up);
}

#[test]
fn a_draining_backend_goes_down_when_it_is_gone_and_up_when_it_is_back() {
    let mut machine = machine();
    probe(&mut machine, ProbeResult::Good);
    assert_eq!(probe(&mut machine, ProbeResult::Draining), State::Draining);
    assert_eq!(probe(&mut machine, no_answer()), State::Draining);
    assert_eq!(probe(&mut machine, ProbeResult::Draining), State::Draining);
    assert_eq!(probe(&mut machine, no_answer()), State::Draining);
    assert_eq!(probe(&mut machine, no_answer()), State::Draining);
    assert_eq!(probe(&mut machine, no_answer()), State::Down);
    assert_eq!(probe(&mut machine, ProbeResult::Draining), State::Draining);
    assert_eq!(probe(&mut machine, ProbeResult::Good), State::Up);
}

#[test]
fn failing_requests_make_no_backend_down_and_do_not_disturb_a_drain() {
    let mut machine = machine();
    assert!(machine.suspect("why", Instant::now()).is_some());
    assert!(machine.suspect("why", Instant::now()).is_none());
    assert_eq!(machine.state(), State::Suspect);
    probe(&mut machine, ProbeResult::Draining);
    assert!(machine.suspect("why", Instant::now()).is_none());
    assert_eq!(machine.state(), State::Draining);
}

#[test]
fn maintenance_is_left_by_configuration_only() {
    let mut machine = Machine::new(State::Maintenance, THRESHOLDS, Instant::now());
    assert_eq!(probe(&mut machine, ProbeResult::Good), State::Maintenance);
    assert!(machine.suspect("why", Instant::now()).is_none());
}

#[test]
fn a_change_says_from_where_to_where_and_why() {
    let mut machine = machine();
    let start = Instant::now();
    let change = machine.probe(no_answer(), start).unwrap();
    assert_eq!((change.from, change.to), (State::Unknown, State::Down));
    assert_eq!(change.why, "it refuses connections");
    assert_eq!(
        (machine.since(), machine.why()),
        (start, "it refuses connections")
    );
}

#[test]
fn a_backend_that_answers_wrongly_is_told_from_one_that_does_not_answer() {
    let mut machine = machine();
    probe(
        &mut machine,
        ProbeResult::BadAnswer("status 404".to_owned()),
    );
    assert!(machine.state() == State::Down && machine.answers());
    probe(&mut machine, no_answer());
    assert!(machine.state() == State::Down && !machine.answers());
}

#[derive(Debug, Clone)]
enum Step {
    Probe(ProbeResult),
    Suspect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Suspect),
        Just(Step::Probe(ProbeResult::Good)),
        Just(Step::Probe(ProbeResult::Draining)),
        Just(Step::Probe(ProbeResult::BadAnswer(String::new()))),
        Just(Step::Probe(no_answer())),
    ]
}

proptest! {
    #[test]
    fn whatever_happened_good_probes_lead_up_and_failed_ones_down(
        steps in prop::collection::vec(step(), 0..40),
        rise in 1..5_u32,
        fall in 1..5_u32,
    ) {
        let build = || {
            let mut machine = Machine::new(State::Unknown, Thresholds { rise, fall }, Instant::now());
            for step in steps.clone() {
                let from = machine.state();
                let change = match step {
                    Step::Probe(result) => machine.probe(result, Instant::now()),
                    Step::Suspect => machine.suspect("why", Instant::now()),
                };
                match change {
                    Some(change) => assert_eq!((change.from, change.to), (from, machine.state())),
                    None => assert_eq!(from, machine.state()),
                }
            }
            machine
        };
        let mut risen = build();
        (0..rise).for_each(|_| drop(risen.probe(ProbeResult::Good, Instant::now())));
        prop_assert_eq!(risen.state(), State::Up);
        let mut fallen = build();
        (0..fall).for_each(|_| drop(fallen.probe(no_answer(), Instant::now())));
        prop_assert_eq!(fallen.state(), State::Down);
    }
}
