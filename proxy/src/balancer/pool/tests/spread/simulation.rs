//! Minutes of traffic in virtual time: what every request does, and how the tunnels are spread in the end.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

/// What happens next, by the millisecond.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A request ends.
    Answered(usize),
    /// A client that was given a cookie comes back with it for its tunnel.
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
    /// Which newcomers went where, in their order.
    newcomers: Vec<String>,
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
            newcomers: Vec::new(),
        }
    }

    fn now(&self) -> Instant {
        self.bench.start + Duration::from_millis(self.millis)
    }

    fn after(&mut self, millis: u64, event: Event) {
        self.events.push(Reverse((self.millis + millis, event)));
    }

    /// A request of a client that shows `claim`: the backend that it goes to.
    fn ask(&mut self, claim: &Claim, kind: RequestKind) -> Arc<Backend> {
        let choice = self
            .bench
            .pool
            .choose(claim, kind, &Tried::default(), self.now())
            .unwrap();
        if choice.affinity != Hit {
            self.newcomers.push(choice.backend.id.to_string());
        }
        choice.backend
    }

    /// A plain request that is answered after so many milliseconds.
    fn plain(&mut self, claim: &Claim, millis: u64) -> Arc<Backend> {
        let backend = self.ask(claim, RequestKind::Plain);
        let request = backend.start_request(RequestKind::Plain);
        self.requests.push(Some(request));
        self.after(millis, Event::Answered(self.requests.len() - 1));
        backend
    }

    /// A client that opens its tunnel at once and keeps it for so many milliseconds.
    fn tunnel(&mut self, claim: &Claim, millis: u64) {
        let backend = self.ask(claim, RequestKind::Upgrade);
        let _upgrade = backend.start_request(RequestKind::Upgrade);
        self.tunnels.push(Some(backend.open_tunnel()));
        self.after(millis, Event::TunnelEnds(self.tunnels.len() - 1));
    }

    /// Lets a millisecond pass.
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

    /// The backend with the most tunnels, by their mean.
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

/// 3,000 tunnels in 30 s, beside 500 plain requests a second and 200 parked polls, on three backends of which one is slow.
///
/// `by_cookie` of 100 tunnels are of clients that ask for something plain first, as SockJS clients do.
fn three_thousand_tunnels(by_cookie: u64) -> f64 {
    let mut traffic = Traffic::new(Bench::new("least", &[1, 1, 1]));
    let polls: Vec<Claim> = (0..200).map(|n| session(&format!("s{n}"))).collect();
    for millis in 0..30_000_u64 {
        traffic.step(FOR_EVER);
        if millis % 2 == 0 {
            // One in ten shows a cookie of the first backend, which answers slowly.
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

/// The most newcomers that `id` got of any so many in a row, and how many each other one got of them on average.
fn worst_burst(newcomers: &[String], id: &str, in_a_row: usize, others: usize) -> (usize, f64) {
    let got = |window: &[String]| window.iter().filter(|other| *other == id).count();
    let most = newcomers.windows(in_a_row).map(got).max().unwrap();
    (most, (in_a_row - most) as f64 / others as f64)
}

/// Backends with tunnels, one of which goes away and comes back: the newcomers from its return on.
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
            returned_at = traffic.newcomers.len();
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
fn a_backend_that_is_back_gets_its_share_and_never_more_than_twice_its_neighbours() {
    for kind in [RequestKind::Upgrade, RequestKind::Plain] {
        let (traffic, returned_at) = come_back(kind);
        let after = &traffic.newcomers[returned_at..];
        // A second, five, and a minute of newcomers, from every one on.
        for in_a_row in [50, 250, 3000] {
            let (most, others) = worst_burst(after, "n3", in_a_row, 2);
            assert!(
                most as f64 <= 2.0 * others + 3.0,
                "{kind:?} {in_a_row}: {most} beside {others}"
            );
        }
        // It starts slowly: a tenth of the weight, and at most twice as many for that.
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
fn slow_start_holds_for_turns_and_dice_too() {
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
        // A tenth beside one whole is an eleventh.
        let (first, later) = (share(bench.at(20)), share(bench.at(30)));
        assert!((250..500).contains(&first), "{pick}: {first}");
        assert!((1800..2200).contains(&later), "{pick}: {later}");
    }
}

#[test]
fn a_backend_comes_back_to_its_full_weight_step_by_step() {
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
