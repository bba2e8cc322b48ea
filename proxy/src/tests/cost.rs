//! The cost of the decisions about one request; `make micro` measures it in a release build.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use crate::balancer::pool::ProbeResult;
use crate::config::Config;
use crate::http::fields::Fields;
use crate::http::http1::{RequestHead, ResponseHead};
use crate::http::scheme::Scheme;
use crate::request::exchange::ProxyState;
use crate::server::app::parse_head;
use crate::server::components::Components;

/// The most that affinity, pick and headers may take together.
const COST_MAX: Duration = Duration::from_micros(3);

/// Requests per round: few, so that they stay in the CPU's caches, as in an edge.
const COUNT: usize = 50;

/// The number of rounds.
const ROUNDS: usize = match cfg!(debug_assertions) {
    true => 11,
    false => 1001,
};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

/// An edge with signed cookies and eight backends that are up.
pub(super) fn components() -> Components {
    let backends: Vec<String> = (1..=8)
        .map(|n| format!("{{ id: n{n}, address: '127.0.0.1:{n}' }}"))
        .collect();
    let backends = backends.join(", ");
    let text = format!(
        "pools: [{{ name: p, backends: [{backends}] }}]\nlog: {{ access: off }}\naffinity: {{ keys: ['0123456789abcdef'] }}\n"
    );
    let config = Config::parse("cost.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"));
    let components = Components::new(&config).unwrap();
    for pool in components.proxy.pools().iter() {
        for backend in pool.backends() {
            pool.probed(&backend, ProbeResult::Good, Instant::now());
        }
    }
    components
}

/// A request as a browser sends it, with `cookie` besides one of the application.
pub(super) fn request(path: &str, cookie: &str) -> String {
    let cookies = format!("theme=dark; {cookie}");
    let headers = [
        ("Host", "www.example.com"),
        ("Connection", "keep-alive"),
        ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0)"),
        ("Accept", "text/html,application/xhtml+xml"),
        ("Accept-Language", "en-GB,en;q=0.5"),
        ("Accept-Encoding", "gzip, deflate, br"),
        ("Referer", "https://www.example.com/"),
        ("Cookie", cookies.trim_end_matches("; ")),
        ("Sec-Fetch-Dest", "document"),
        ("Sec-Fetch-Mode", "navigate"),
        ("Sec-Fetch-Site", "same-origin"),
        ("Cache-Control", "max-age=0"),
    ];
    let headers = headers.map(|(name, value)| format!("{name}: {value}\r\n"));
    format!("GET {path} HTTP/1.1\r\n{}\r\n", headers.concat())
}

/// The parsed head of `request`.
pub(super) fn read(request: &str) -> RequestHead {
    let mut bytes = BytesMut::from(request);
    let head_info = parse_head(&mut bytes, 256).unwrap();
    head_info.head.with(bytes)
}

fn response() -> ResponseHead {
    ResponseHead::parse(
        BytesMut::from("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        256,
    )
    .unwrap()
}

/// Makes all decisions for `request`. Returns whether its response sets the cookie.
fn decide(proxy: &ProxyState, request: &mut RequestHead, response: &mut ResponseHead) -> bool {
    let mut exchange = proxy.admit(request, None, PEER, Scheme::Http).unwrap();
    black_box(proxy.choose(&mut exchange).unwrap());
    proxy.prepare(&mut exchange, request);
    proxy.finalize(&exchange, response).unwrap();
    response.has("set-cookie")
}

/// The cost of one request in the fastest tenth of all rounds, and the median. Slower rounds measure the load of the machine.
fn cost(proxy: &ProxyState, request: &str, binds: bool) -> (Duration, Duration) {
    let mut rounds = [Duration::ZERO; ROUNDS];
    for round in &mut rounds {
        let mut requests: Vec<RequestHead> = (0..COUNT).map(|_| read(request)).collect();
        let mut responses: Vec<ResponseHead> = (0..COUNT).map(|_| response()).collect();
        let started = Instant::now();
        let bound = requests
            .iter_mut()
            .zip(&mut responses)
            .filter_map(|(request, response)| decide(proxy, request, response).then_some(()))
            .count();
        *round = started.elapsed().div_f64(COUNT as f64);
        assert_eq!(bound, if binds { COUNT } else { 0 });
    }
    rounds.sort_unstable();
    (rounds[ROUNDS / 10], rounds[ROUNDS / 2])
}

#[test]
fn the_decisions_about_a_request_are_cheap() {
    let components = components();
    let proxy = &*components.proxy;
    let mut binding = response();
    assert!(decide(proxy, &mut read(&request("/", "")), &mut binding));
    let cookie = binding.text("set-cookie").unwrap();
    let cookie = cookie.split(';').next().unwrap();
    for (name, request, binds) in [
        ("signed cookie", request("/", cookie), false),
        ("no cookie", request("/", ""), true),
        (
            "SockJS session, no cookie",
            request("/chat/000/abcdefgh/xhr", ""),
            false,
        ),
        (
            "SockJS session, signed cookie",
            request("/chat/000/abcdefgh/xhr", cookie),
            false,
        ),
    ] {
        // The first request of a session binds it, and warms up the caches.
        decide(proxy, &mut read(&request), &mut response());
        let (cost, median) = cost(proxy, &request, binds);
        eprintln!(
            "{name}: {} ns, median {} ns",
            cost.as_nanos(),
            median.as_nanos()
        );
        // Debug builds are not representative.
        assert!(
            cfg!(debug_assertions) || cost <= COST_MAX,
            "{name}: {cost:?}"
        );
    }
}
