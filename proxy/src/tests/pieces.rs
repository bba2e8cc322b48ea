//! Micro-benchmarks of the steps of a request and of a tunnel; `make micro` runs them in a release build.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use bytes::BytesMut;
use divan::{Bencher, Divan};

use super::cost::{components, read, request};
use crate::balancer::pool::{RequestKind, Tried};
use crate::http::scheme::Scheme;
use crate::server::app::parse_head;
use crate::tunnel::Frames;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));

#[divan::bench]
fn head_parse(bencher: Bencher<'_, '_>) {
    let request = request("/", "causeway=x");
    bencher
        .with_inputs(|| BytesMut::from(&*request))
        .bench_refs(|bytes| parse_head(bytes, 256).is_ok());
}

/// With a valid signature.
#[divan::bench]
fn cookie_verify(bencher: Bencher<'_, '_>) {
    let components = components();
    let pool = components.proxy.pools().iter().next().cloned().unwrap();
    let backend = pool.backends().into_iter().next().unwrap();
    let cookie = pool.set_cookie(&backend, Instant::now(), Scheme::Http);
    let cookie = cookie.unwrap();
    let cookie = cookie.to_str().unwrap().split(';').next().unwrap();
    let head = read(&request("/", cookie));
    assert_eq!(pool.affinity.read(&head, "/").bindings.len(), 1);
    bencher.bench_local(|| pool.affinity.read(&head, "/"));
}

/// Among eight backends.
#[divan::bench]
fn pick(bencher: Bencher<'_, '_>) {
    let components = components();
    let pool = components.proxy.pools().iter().next().cloned().unwrap();
    let head = read(&request("/", ""));
    let claim = pool.affinity.read(&head, "/");
    let now = Instant::now();
    bencher.bench_local(|| {
        let choice = pool.choose(&claim, RequestKind::Plain, &Tried::default(), now);
        choice.is_ok()
    });
}

/// Reading and writing the forwarding headers.
#[divan::bench]
fn forwarded_headers(bencher: Bencher<'_, '_>) {
    let components = components();
    let proxy = &components.proxy;
    let request = request("/", "");
    bencher
        .with_inputs(|| {
            let mut head = read(&request);
            let admitted = proxy.admit(&mut head, None, PEER, Scheme::Http);
            (admitted.unwrap(), head)
        })
        .bench_local_refs(|(exchange, head)| proxy.prepare(exchange, head));
}

/// Frames of 64 bytes each, parsed in one read.
#[divan::bench(args = [1, 100])]
fn tunnel_frames(bencher: Bencher<'_, '_>, frames: usize) {
    let frame = [&[0x81, 0x80 | 60, 0, 0, 0, 0][..], &[0; 60]].concat();
    let read = frame.repeat(frames);
    let mut parser = Frames::default();
    bencher.bench_local(|| parser.pass(&read));
}

#[test]
fn each_micro_benchmark_runs() {
    Divan::default().test_benches();
}

#[test]
#[ignore = "a measurement: make micro"]
fn pieces() {
    Divan::default().run_benches();
}
