//! A simulation of minutes of traffic in virtual time: how the tunnels are spread in the end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

/// A scheduled event.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A request ends.
    Answered(usize),
    /// A client with a new cookie opens its tunnel.
    Returns(String),
    TunnelEnds(usize),
}

/// A pool with traffic.
struct Traffic {
    bench: Bench,
    random: fastrand::Rng,
    millis: u64,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    requests: Vec<Option<RequestCount>>,
    tunnels: Vec<Option<TunnelCount>>,
    /// The backends of new clients, in order.
    new_clients: Vec<String>,
}

impl Traffic {
    fn new(bench: Bench) -> Self {
        Self {
            bench,
            random: fastrand::Rng::with_seed(7),
            millis: 0,
            events: BinaryHeap::new(),
            requests: Vec::new(),
            tunnels: Vec::new(),
            new_clients: Vec::new(),
        }
    }

    fn now(&self) -> Instant {
        self.bench.start + Duration::from_millis(self.millis)
    }

    fn after(&mut self, millis: u64, event: Event) {
        self.events.push(Reverse((self.millis + millis, event)));
    }

    /// A request with `claim`: the backend that is chosen.
    fn request(&mut self, claim: &Claim, kind: RequestKind) -> Arc<Backend> {
        let choice = self
            .bench
            .pool
            .choose(claim, kind, &Tried::default(), self.now())
            .unwrap();
        if choice.affinity != Hit {
            self.new_clients.push(choice.backend.id.to_string());
        }
        choice.backend
    }

    /// A plain request that lasts `millis`.
    fn plain(&mut self, claim: &Claim, millis: u64) -> Arc<Backend> {
        let backend = self.request(claim, RequestKind::Plain);
        let request = backend.start_request(RequestKind::Plain);
        self.requests.push(Some(request));
        self.after(millis, Event::Answered(self.requests.len() - 1));
        backend
    }

    /// A client that opens its tunnel at once and keeps it for `millis`.
    fn tunnel(&mut self, claim: &Claim, millis: u64) {
        let backend = self.request(claim, RequestKind::Upgrade);
        let _upgrade = backend.start_request(RequestKind::Upgrade);
        self.tunnels.push(Some(backend.open_tunnel()));
        self.after(millis, Event::TunnelEnds(self.tunnels.len() - 1));
    }

    /// Advances by a millisecond.
    fn step(&mut self, tunnel_millis: u64) {
        self.millis += 1;
        while self
            .events
            .peek()
            .is_some_and(|Reverse((at, _))| *at <= self.millis)
        {
            match self.events.pop().unwrap().0.1 {
                Event::Answered(request) => self.requests[request] = None,
                Event::Returns(id) => self.tunnel(&bound_to(&id), tunnel_millis),
                Event::TunnelEnds(tunnel) => self.tunnels[tunnel] = None,
            }
        }
    }

    /// The largest number of tunnels of a backend, divided by the mean.
    fn imbalance(&self) -> f64 {
        let backends = self.bench.pool.backends();
        let open = |backend: &Arc<Backend>| backend.status(self.now()).tunnels as f64;
        let (sum, most) = backends
            .iter()
            .map(open)
            .fold((0.0, 0.0_f64), |(sum, most), open| {
                (sum + open, most.max(open))
            });
        most * backends.len() as f64 / sum
    }

    fn tunnels_of(&self, id: &str) -> usize {
        self.bench.backend(id).status(self.now()).tunnels
    }
}

const FOR_EVER: u64 = 1 << 40;

/// 3,000 tunnels in 30 s, beside 500 plain requests a second and 200 long polls, on three backends of which one is slow.
///
/// `by_cookie` of 100 tunnels are of clients that send a plain request first, as SockJS clients do.
fn three_thousand_tunnels(by_cookie: u64) -> f64 {
    let mut traffic = Traffic::new(Bench::new("least", &[1, 1, 1]));
    let polls: Vec<Claim> = (0..200).map(|n| session(&format!("s{n}"))).collect();
    for millis in 0..30_000_u64 {
        traffic.step(FOR_EVER);
        if millis % 2 == 0 {
            // One in ten has a cookie of the first backend, which responds slowly.
            let claim = match traffic.random.u8(..10) {
                0 => bound_to("n1"),
                _ => Claim::default(),
            };
            let pause = traffic.random.u64(1..40);
            let backend = traffic.plain(&claim, pause);
            if backend.id.as_str() == "n1" {
                traffic.plain(&bound_to("n1"), 2000);
            }
        }
        if millis % 125 == 0 {
            let poll = traffic.random.usize(..polls.len());
            traffic.plain(&polls[poll], 25_000);
        }
        if millis % 10 == 0 {
            if traffic.random.u64(..100) < by_cookie {
                let pause = traffic.random.u64(1..300);
                let backend = traffic.plain(&Claim::default(), 5);
                traffic.after(pause, Event::Returns(backend.id.to_string()));
            } else {
                traffic.tunnel(&Claim::default(), FOR_EVER);
            }
        }
    }
    (0..300).for_each(|_| traffic.step(FOR_EVER));
    let open = traffic.tunnels.iter().flatten().count();
    assert_eq!(open, 3000);
    traffic.imbalance()
}

#[test]
fn three_thousand_tunnels_spread_evenly_beside_plain_requests() {
    for by_cookie in [0, 50, 100] {
        let imbalance = three_thousand_tunnels(by_cookie);
        assert!(imbalance <= 1.05, "{by_cookie}: {imbalance}");
    }
}

/// The most new clients that `id` got of any `in_a_row` consecutive ones, and how many each other backend got of them on average.
fn worst_burst(new_clients: &[String], id: &str, in_a_row: usize, others: usize) -> (usize, f64) {
    let got = |window: &[String]| window.iter().filter(|other| *other == id).count();
    let most = new_clients.windows(in_a_row).map(got).max().unwrap();
    (most, (in_a_row - most) as f64 / others as f64)
}

/// Backends with tunnels, one of which goes down and comes up again: the new clients after that.
fn come_back(kind: RequestKind) -> (Traffic, usize) {
    let bench = Bench::new("least", &[1, 1, 1]);
    let mut traffic = Traffic::new(bench);
    let minute = 60_000;
    let mut returned_at = 0;
    for millis in 0..4 * minute {
        traffic.step(minute);
        if millis == minute {
            traffic.bench.down("n3");
            let gone = |tunnel: &Option<TunnelCount>| {
                tunnel
                    .as_ref()
                    .is_some_and(|tunnel| tunnel.backend().id.as_str() == "n3")
            };
            let gone: Vec<usize> = (0..traffic.tunnels.len())
                .filter(|at| gone(&traffic.tunnels[*at]))
                .collect();
            for tunnel in gone {
                traffic.tunnels[tunnel] = None;
                traffic.tunnel(&bound_to("n3"), minute);
            }
        }
        if millis == minute + minute / 2 {
            let backend = traffic.bench.backend("n3");
            (0..2).for_each(|_| {
                traffic
                    .bench
                    .pool
                    .probed(&backend, ProbeResult::Good, traffic.now())
            });
            assert_eq!(backend.state(), State::Up);
            returned_at = traffic.new_clients.len();
        }
        if millis % 20 == 0 {
            match kind {
                RequestKind::Upgrade => traffic.tunnel(&Claim::default(), minute),
                RequestKind::Plain => {
                    let backend = traffic.plain(&Claim::default(), 10);
                    traffic.after(100, Event::Returns(backend.id.to_string()));
                }
            }
        }
    }
    (traffic, returned_at)
}

#[test]
fn a_backend_that_is_up_again_gets_its_share_and_never_more_than_twice_that_of_the_others() {
    for kind in [RequestKind::Upgrade, RequestKind::Plain] {
        let (traffic, returned_at) = come_back(kind);
        let after = &traffic.new_clients[returned_at..];
        // The new clients of a second, of five, and of a minute, from each one on.
        for in_a_row in [50, 250, 3000] {
            let (most, others) = worst_burst(after, "n3", in_a_row, 2);
            assert!(
                most as f64 <= 2.0 * others + 3.0,
                "{kind:?} {in_a_row}: {most} beside {others}"
            );
        }
        // Slow start: a tenth of the weight, and at most twice as many for that.
        let first = after[..50].iter().filter(|id| *id == "n3").count();
        assert!((1..=8).contains(&first), "{kind:?}: {first}");
        assert!(
            traffic.imbalance() <= 1.05,
            "{kind:?}: {}",
            traffic.imbalance()
        );
        assert!(0 < traffic.tunnels_of("n3"));
    }
}

#[test]
fn slow_start_applies_to_round_robin_and_random_too() {
    for pick in ["random", "round_robin"] {
        let bench = Bench::new(pick, &[1, 1]);
        bench.down("n2");
        let (pool, backend) = (&bench.pool, bench.backend("n2"));
        (0..2).for_each(|_| pool.probed(&backend, ProbeResult::Good, bench.at(20)));
        assert_eq!(backend.state(), State::Up);
        let share = |at: Instant| {
            let choose =
                |_| pool.choose(&Claim::default(), RequestKind::Plain, &Tried::default(), at);
            let is_back = |choice: &Result<Choice, NoBackend>| {
                choice.as_ref().unwrap().backend.id == backend.id
            };
            (0..4000).map(choose).filter(is_back).count()
        };
        // A tenth beside a full weight is an eleventh.
        let (first, later) = (share(bench.at(20)), share(bench.at(30)));
        assert!((250..500).contains(&first), "{pick}: {first}");
        assert!((1800..2200).contains(&later), "{pick}: {later}");
    }
}

#[test]
fn the_weight_grows_gradually_during_slow_start() {
    let bench = Bench::new("least", &[3]);
    let backend = bench.backend("n1");
    let weight = |seconds| backend.weight_at(Duration::from_secs(seconds));
    assert_eq!(weight(0), 3000);
    bench.down("n1");
    (0..2).for_each(|_| bench.pool.probed(&backend, ProbeResult::Good, bench.at(20)));
    assert_eq!(
        [weight(20), weight(25), weight(29), weight(30)],
        [300, 1650, 2730, 3000]
    );
}
