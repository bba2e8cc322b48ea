//! How evenly new clients are spread.

mod simulation;

use proptest::prelude::*;

use super::*;

#[test]
fn a_burst_of_new_clients_spreads_before_any_tunnel_is_open() {
    let bench = Bench::new("least", &[1, 1, 1]);
    assert!(bench.spread(300).values().all(|count| *count == 100));
}

#[test]
fn the_first_clients_go_to_different_backends() {
    let bench = Bench::new("least", &[1, 1, 1]);
    assert_eq!(bench.spread(3).len(), 3);
}

#[test]
fn new_clients_go_to_the_backend_with_the_fewest_tunnels_for_its_weight() {
    let bench = Bench::new("least", &[1, 2]);
    let (one, other) = (bench.backend("n1"), bench.backend("n2"));
    let _light: Vec<_> = (0..10).map(|_| one.open_tunnel()).collect();
    let heavy: Vec<_> = (0..10).map(|_| other.open_tunnel()).collect();
    // Ten more would make it 20 tunnels on a backend of weight 2. It gets four fifths, which is twice as many for its weight, and
    // may be one ahead.
    assert!((8..=9).contains(&bench.spread(10)["n2"]));
    drop(heavy);
    assert_eq!(other.status(bench.start).tunnels, 0);
}

#[test]
fn requests_in_flight_are_counted_until_they_end() {
    let bench = Bench::new("least", &[1]);
    let backend = bench.backend("n1");
    let requests =
        [RequestKind::Plain, RequestKind::Upgrade].map(|kind| backend.start_request(kind));
    let tunnel = backend.open_tunnel();
    assert!(tunnel.backend().id == backend.id);
    let status = || {
        let status = backend.status(bench.start);
        (status.tunnels, status.requests)
    };
    assert_eq!(status(), (1, 2));
    drop((requests, tunnel));
    assert_eq!(status(), (0, 0));
}

#[test]
fn new_clients_spread_over_more_backends_than_are_compared_exactly() {
    let bench = Bench::new("least", &[1; 20]);
    let spread = bench.spread(2000);
    assert_eq!(spread.len(), 20);
    assert!(
        spread.values().all(|count| (85..=115).contains(count)),
        "{spread:?}"
    );
}

#[test]
fn round_robin_follows_weights_and_spreads_the_turns_of_a_backend_that_is_down() {
    let bench = Bench::new("round_robin", &[1, 1, 1]);
    let turns: Vec<String> = (0..6).map(|_| bench.new_client()).collect();
    assert_eq!(turns, ["n1", "n2", "n3", "n1", "n2", "n3"]);
    bench.down("n3");
    assert_eq!(bench.spread(100)["n1"], 50);
    let weighted = Bench::new("round_robin", &[5, 1, 1]);
    let turns: Vec<String> = (0..7).map(|_| weighted.new_client()).collect();
    assert_eq!(turns, ["n1", "n1", "n2", "n1", "n3", "n1", "n1"]);
}

#[test]
fn random_follows_weights() {
    let bench = Bench::new("random", &[1, 3]);
    let light = bench.spread(4000)["n1"];
    assert!((800..1200).contains(&light), "{light}");
}

proptest! {
    #[test]
    fn a_schedule_has_the_proportions_of_its_weights(weights in prop::collection::vec(1..=1000_u32, 1..12)) {
        let schedule = schedule::schedule(&weights);
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        prop_assert!(schedule.len() <= 4096 + weights.len());
        for (index, weight) in weights.iter().enumerate() {
            let turns = schedule.iter().filter(|turn| usize::from(**turn) == index).count();
            let share = f64::from(*weight) / total as f64;
            let had = turns as f64 / schedule.len() as f64;
            prop_assert!(0 < turns && (share - had).abs() < 0.01, "{} {}", share, had);
        }
    }
}
