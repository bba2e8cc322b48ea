use super::*;

/// A health of `queues` publish queues and its clock.
struct Bench {
    health: Health,
    start: Instant,
}

impl Bench {
    fn new(queues: usize) -> Self {
        let start = Instant::now();
        let intervals = ProbeIntervals {
            interval: Duration::from_millis(2000),
            timeout: Duration::from_millis(1000),
        };
        let health = Health::new(intervals, queues, start);
        Self { health, start }
    }

    /// All ways up at time 0.
    fn up(queues: usize) -> Self {
        let mut bench = Self::new(queues);
        let now = bench.start;
        bench.health.subscriber(Ok(()), now);
        for queue in 0..queues {
            bench.health.queue(queue, Ok(()), now);
        }
        bench
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn due(&mut self, ms: u64) -> Vec<Task> {
        let now = self.at(ms);
        self.health.due(now)
    }

    fn seen(&mut self, number: u64, ms: u64) -> Option<u64> {
        let now = self.at(ms);
        let round_trip = self.health.seen(0, number, now)?;
        u64::try_from(round_trip.as_millis()).ok()
    }

    fn next_ms(&self) -> Option<u64> {
        let next_at = self.health.next_at()?;
        u64::try_from(next_at.duration_since(self.start).as_millis()).ok()
    }
}

fn probe(number: u64) -> Task {
    Task::Probe { queue: 0, number }
}

const MISS: Task = Task::Miss { queue: 0 };
const RECONNECT: Task = Task::Reconnect {
    queue: 0,
    ends: Ends::All,
};

#[test]
fn a_way_that_is_up_is_probed_at_once_and_ready_when_the_probe_is_back() {
    let mut bench = Bench::up(1);
    assert!(bench.health.readiness().is_err());
    assert_eq!(bench.due(0), [probe(0)]);
    assert_eq!(bench.due(5), []);
    assert!(bench.health.readiness().is_err());
    assert_eq!(bench.seen(0, 7), Some(7));
    assert_eq!(bench.health.readiness(), Ok(()));
    assert_eq!(bench.next_ms(), Some(2000));
    assert_eq!(bench.due(1999), []);
    assert_eq!(bench.due(2000), [probe(1)]);
}

#[test]
fn nothing_is_probed_before_both_ends_are_connected() {
    let mut bench = Bench::new(1);
    let now = bench.start;
    assert_eq!((bench.due(0), bench.next_ms()), (vec![], None));
    bench.health.queue(0, Ok(()), now);
    assert_eq!((bench.due(0), bench.next_ms()), (vec![], None));
    bench.health.subscriber(Ok(()), now);
    assert_eq!(bench.next_ms(), Some(0));
    assert_eq!(bench.due(0), [probe(0)]);
}

#[test]
fn one_missed_probe_is_forgiven_and_two_end_readiness() {
    let mut bench = Bench::up(1);
    bench.due(0);
    bench.seen(0, 1);
    assert_eq!(bench.due(2000), [probe(1)]);
    assert_eq!(bench.next_ms(), Some(3000));
    assert_eq!(bench.due(2999), []);
    assert_eq!(bench.due(3000), [MISS, probe(2)]);
    assert_eq!(bench.health.readiness(), Ok(()));
    assert_eq!(bench.due(3999), []);
    assert_eq!(bench.due(4000), [MISS, RECONNECT, probe(3)]);
    let reason = bench.health.readiness().unwrap_err();
    assert_eq!(reason, "no probe was received through publish queue 0");
}

#[test]
fn two_misses_with_a_probe_seen_between_them_are_forgiven() {
    let mut bench = Bench::up(1);
    bench.due(0);
    assert_eq!(bench.due(1000), [MISS, probe(1)]);
    assert_eq!(bench.seen(1, 1500), Some(500));
    assert_eq!(bench.due(3000), [probe(2)]);
    assert_eq!(bench.due(4000), [MISS, probe(3)]);
    assert_eq!(bench.health.readiness(), Ok(()));
}

#[test]
fn a_late_probe_proves_the_way_and_is_no_measurement() {
    let mut bench = Bench::up(1);
    bench.due(0);
    bench.due(1000);
    bench.due(2000);
    assert!(bench.health.readiness().is_err());
    assert_eq!(bench.seen(0, 2100), None);
    assert_eq!(bench.health.readiness(), Ok(()));
}

#[test]
fn a_lost_connection_ends_readiness_at_once_with_its_reason() {
    let mut bench = Bench::up(1);
    bench.due(0);
    bench.seen(0, 1);
    let now = bench.at(10);
    bench.health.subscriber(Err("it broke".to_owned()), now);
    assert_eq!(bench.health.readiness(), Err("it broke".to_owned()));
    assert_eq!(
        bench.seen(0, 11),
        None,
        "what was under way before proves nothing"
    );
    bench.health.subscriber(Ok(()), now);
    assert!(bench.health.readiness().is_err(), "connected is not proven");
    assert_eq!(bench.due(20), [probe(1)]);
    bench.seen(1, 21);
    assert_eq!(bench.health.readiness(), Ok(()));

    bench.health.queue(0, Err(Lost::closed("no way")), now);
    assert_eq!(bench.health.readiness(), Err("no way".to_owned()));
    assert_eq!(bench.next_ms(), None);
}

#[test]
fn a_queue_that_is_lost_after_a_miss_shows_that_the_subscriber_may_be_dead_too() {
    let mut bench = Bench::up(1);
    bench.due(0);
    assert_eq!(bench.due(1000), [MISS, probe(1)]);
    let now = bench.at(1500);
    bench
        .health
        .queue(0, Err(Lost::silent("lost".to_owned())), now);
    assert_eq!(bench.due(1500), [RECONNECT]);
    assert_eq!(bench.due(1501), []);
    // Its misses do not count for another connection of the subscriber.
    bench.health.subscriber(Err("stalled".to_owned()), now);
    bench.health.queue(0, Ok(()), now);
    bench.health.subscriber(Ok(()), now);
    assert_eq!(bench.due(1600), [probe(2)]);
    assert_eq!(bench.due(2600), [MISS, probe(3)]);
    assert_eq!(bench.due(3600), [MISS, RECONNECT, probe(4)]);
}

#[test]
fn a_probe_that_was_under_way_when_its_queue_was_lost_counts_as_missed_until_another_is_received() {
    let mut bench = Bench::up(1);
    bench.due(0);
    bench.seen(0, 1);
    assert_eq!(bench.due(2000), [probe(1)]);
    let now = bench.at(2900);
    bench
        .health
        .queue(0, Err(Lost::silent("lost".to_owned())), now);
    assert_eq!(bench.due(2900), []);
    bench.health.queue(0, Ok(()), now);
    assert_eq!(bench.due(2900), [probe(2)]);
    assert_eq!(bench.due(3900), [MISS, RECONNECT, probe(3)]);

    bench
        .health
        .queue(0, Err(Lost::silent("lost again".to_owned())), bench.start);
    bench.health.queue(0, Ok(()), bench.start);
    bench.due(4000);
    bench.seen(4, 4001);
    assert_eq!(bench.due(6000), [probe(5)]);
    assert_eq!(bench.due(7000), [MISS, probe(6)], "one is forgiven");
}

#[test]
fn a_queue_on_which_redis_refuses_publications_suspects_nothing_else() {
    let mut bench = Bench::up(1);
    bench.due(0);
    for millis in (500..5000).step_by(500) {
        let now = bench.at(millis);
        bench
            .health
            .queue(0, Err(Lost::closed("it is a replica")), now);
        bench.health.queue(0, Ok(()), now);
        let tasks = bench.due(millis);
        assert!(matches!(tasks[..], [Task::Probe { .. }]), "{tasks:?}");
    }
}

#[test]
fn a_queue_that_is_lost_alone_suspects_nothing_else() {
    let mut bench = Bench::up(2);
    bench.due(0);
    let now = bench.at(500);
    bench.health.seen(1, 0, now);
    bench.due(1000);
    let now = bench.at(1500);
    bench
        .health
        .queue(0, Err(Lost::silent("lost".to_owned())), now);
    let tasks = bench.due(1500);
    assert!(
        !tasks
            .iter()
            .any(|task| matches!(task, Task::Reconnect { .. })),
        "{tasks:?}"
    );
}

#[test]
fn a_late_probe_does_not_count_as_the_probe_of_another_queue() {
    let mut bench = Bench::up(1);
    bench.due(0);
    assert_eq!(bench.due(1000), [MISS, probe(1)]);
    assert_eq!(bench.seen(0, 1500), None);
    assert_eq!(bench.due(2000), [MISS, probe(2)]);
    assert_eq!(bench.due(3000), [MISS, RECONNECT, probe(3)]);
}

#[test]
fn a_queue_whose_probes_alone_are_missing_is_reconnected_alone() {
    let mut bench = Bench::up(2);
    let of_queue_1 = |queue_1_replies_at: Option<u64>| {
        let mut bench = Bench::up(2);
        let see = |bench: &mut Bench, number, ms| {
            let now = bench.at(ms);
            bench.health.seen(1, number, now);
        };
        bench.due(0);
        see(&mut bench, 0, 10);
        bench.seen(0, 20);
        bench.due(2000);
        if let Some(ms) = queue_1_replies_at {
            see(&mut bench, 1, ms);
        }
        bench.due(3000);
        bench.due(4000)
    };
    let given_up = |tasks: Vec<Task>| {
        let reconnects = tasks.into_iter().filter_map(|task| match task {
            Task::Reconnect { queue, ends } => Some((queue, ends)),
            _ => None,
        });
        reconnects.collect::<Vec<_>>()
    };
    assert_eq!(given_up(of_queue_1(Some(2010))), [(0, Ends::Queue)]);
    let all = [(0, Ends::All), (1, Ends::All)];
    assert_eq!(given_up(of_queue_1(None)), all, "both are silent");
    // The one that works stays proven, the other ends readiness.
    bench.due(0);
    let now = bench.at(1);
    bench.health.seen(1, 0, now);
    let reason = bench.health.readiness().unwrap_err();
    assert_eq!(reason, "no probe was received through publish queue 0");
}

#[test]
fn every_queue_has_to_be_proven() {
    let mut bench = Bench::up(2);
    assert_eq!(bench.due(0).len(), 2);
    let now = bench.at(1);
    bench.health.seen(0, 0, now);
    let reason = bench.health.readiness().unwrap_err();
    assert_eq!(reason, "no probe was received through publish queue 1");
    bench.health.seen(1, 0, now);
    assert_eq!(bench.health.readiness(), Ok(()));
    bench.health.seen(7, 0, now); // No such publish queue.
}

#[test]
fn the_age_of_the_last_proof_is_that_of_the_way_proven_longest_ago() {
    let mut bench = Bench::up(2);
    let age = |bench: &Bench, ms| bench.health.probe_age(bench.at(ms)).as_millis();
    assert_eq!(age(&bench, 50), 50, "never yet");
    bench.due(0);
    for (queue, ms) in [(0, 100), (1, 300)] {
        let now = bench.at(ms);
        bench.health.seen(queue, 0, now);
    }
    assert_eq!(age(&bench, 1000), 900);
}

#[test]
fn what_redis_replies_to_a_probe_counts_only_for_the_connections_it_was_sent_over() {
    let mut bench = Bench::up(1);
    let unheard = |bench: &mut Bench, number| {
        let reply = ProbeReply {
            receivers: 0,
            server: None,
        };
        let now = bench.start;
        bench.health.answered(0, number, reply, now)
    };
    assert_eq!(bench.due(0), [probe(0)]);
    let now = bench.at(10);
    bench.health.subscriber(Err("it broke".to_owned()), now);
    assert_eq!(unheard(&mut bench, 0), None);
    bench.health.subscriber(Ok(()), now);
    assert_eq!(unheard(&mut bench, 0), None, "it was sent before");
    bench
        .health
        .queue(0, Err(Lost::silent("lost".to_owned())), now);
    bench.health.queue(0, Ok(()), now);
    assert_eq!(bench.due(10), [probe(1)]);
    assert_eq!(unheard(&mut bench, 0), None);
    assert_eq!(unheard(&mut bench, 1), Some(Finding::Elsewhere));
}
