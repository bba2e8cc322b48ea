//! The entry points of the fuzz targets in `tests/fuzz`: parsers of untrusted bytes, with assertions that hold for all input.
//!
//! Compiled with `--cfg fuzzing`, which `cargo fuzz` sets, and for unit tests, which run the seeds.

use std::io::Cursor;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use bytes::BytesMut;
use futures_util::FutureExt;
use http::header::{COOKIE, FORWARDED, HOST, HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;

use crate::balancer::affinity::Affinity;
use crate::config::Config;
use crate::downstream::proxy_protocol;
use crate::downstream::proxy_protocol::Header;
use crate::http::forwarded::Forwarder;
use crate::http::http1::BodyLength;
use crate::http::http1::{Chunks, find_end};
use crate::http::scheme::Scheme;
use crate::request::proxy_http::has_no_body;
use crate::request::proxy_http::requested_upgrades;
use crate::server::app::parse_head;
use crate::tls::record::testing;
use crate::tls::record::{RecordError, Role};
use crate::tunnel::Frames;

const POOL: &str = "pools: [{name: a, backends: [{id: n1, address: 'a:1'}]}]\n";

static UNSIGNED: LazyLock<Affinity> = LazyLock::new(|| affinity(""));
static SIGNED: LazyLock<Affinity> =
    LazyLock::new(|| affinity("affinity: {keys: [0123456789abcdef0123456789abcdef]}"));

fn affinity(settings: &str) -> Affinity {
    let config = Config::parse("fuzz", &format!("{POOL}{settings}")).expect("it is valid");
    Affinity::new(
        &config.affinity,
        config.pools[0].cookie.clone(),
        vec!["causeway".into(), "causeway-b".into()],
    )
}

/// Reads and strips the cookies of a request with a Cookie header for each line of `data`.
pub fn cookies(data: &[u8]) {
    let mut request = request();
    for line in data.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            request.append_header(COOKIE, value).expect("there is room");
        }
    }
    let count = |claim: &crate::balancer::affinity::Claim| claim.bindings.len();
    assert!(count(&UNSIGNED.read(&request, "/")) <= 8);
    assert_eq!(
        count(&SIGNED.read(&request, "/")),
        0,
        "an unsigned cookie is never accepted"
    );
    UNSIGNED.strip(&mut request);
    let left = UNSIGNED.read(&request, "/");
    assert!(
        left.bindings.is_empty() && !left.forged,
        "the edge's cookies are removed"
    );
    let once: Vec<HeaderValue> = cookies_of(&request);
    UNSIGNED.strip(&mut request);
    assert_eq!(once, cookies_of(&request), "there is nothing left to strip");
}

fn cookies_of(request: &RequestHeader) -> Vec<HeaderValue> {
    request.headers.get_all(COOKIE).iter().cloned().collect()
}

/// The SockJS session in `path`, as parsed by the edge.
#[must_use]
pub fn sockjs_session(path: &str) -> Option<String> {
    let claim = UNSIGNED.read(&request(), path);
    let session = claim.session?.as_str().to_owned();
    assert!(!session.is_empty() && !session.contains(['/', '.', '?']));
    Some(session)
}

/// Reads and rewrites the forwarding headers of a request with a header for each line of `data`, whose first byte selects the name.
pub fn forwarded(data: &[u8]) {
    let names = [
        HeaderName::from_static("x-forwarded-for"),
        HeaderName::from_static("x-forwarded-host"),
        HeaderName::from_static("x-forwarded-port"),
        HeaderName::from_static("x-forwarded-proto"),
        HeaderName::from_static("x-real-ip"),
        HeaderName::from_static("x-request-id"),
        HeaderName::from_static("x_forwarded_for"),
        FORWARDED,
        HOST,
    ];
    let mut request = request();
    for line in data.split(|byte| *byte == b'\n') {
        let Some((choice, value)) = line.split_first() else {
            continue;
        };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            let name = names[usize::from(*choice) % names.len()].clone();
            request.append_header(name, value).expect("there is room");
        }
    }
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let all = ["0.0.0.0/0", "::/0"].map(|range| range.parse().expect("it is a range"));
    for trusted in [vec![], all.to_vec()] {
        let is_trusted = !trusted.is_empty();
        let forwarder = Forwarder::new(trusted);
        let mut request = request.clone();
        let before = forwarder.read(&request, loopback, Scheme::Http);
        assert!(is_trusted || before.client == loopback);
        forwarder.write(&before, &mut request);
        assert!(!request.headers.contains_key("x_forwarded_for"));
        assert_eq!(request.headers.get_all("x-forwarded-for").iter().count(), 1);
        // The next hop, which trusts the edge, sees the same client.
        let next = Forwarder::new(all.to_vec());
        let after = next.read(&request, loopback, Scheme::Https);
        assert_eq!(
            (before.client, before.scheme, before.request_id()),
            (after.client, after.scheme, after.request_id())
        );
    }
}

/// The offsets in `data` at which a WebSocket frame ends, as parsed by the edge.
#[must_use]
pub fn frame_ends(data: &[u8]) -> Vec<usize> {
    let mut frames = Frames::default();
    let mut ends = Vec::new();
    for (at, byte) in data.iter().enumerate() {
        frames.pass(&[*byte]);
        if frames.at_boundary() {
            ends.push(at + 1);
        }
    }
    let mut whole = Frames::default();
    whole.pass(data);
    assert_eq!(whole.at_boundary(), frames.at_boundary());
    assert_eq!(whole.close_code(), frames.close_code());
    let (mut stepping, mut at) = (Frames::default(), 0);
    while at < data.len() {
        at += stepping.pass_to_boundary(&data[at..]);
        assert!(ends.contains(&at) || at == data.len());
    }
    ends
}

/// Parses a PROXY header byte by byte: once the result is final, more bytes do not change it.
pub fn proxy_header(data: &[u8]) {
    for length in 0..=data.len() {
        match proxy_protocol::parse(&data[..length]) {
            Ok(Header::Partial) => assert!(length < proxy_protocol::BYTES_MAX),
            result => {
                assert_eq!(proxy_protocol::parse(data), result);
                return;
            }
        }
    }
}

/// Reads TLS records at once and in pieces, with the same result. The first two bytes select the suite, the side and the size of the
/// pieces; then come records (type, length, content), some of them not encrypted.
pub fn tls_records(data: &[u8]) {
    let Some((&[choice, piece], mut rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let suite = testing::SUITES[usize::from(choice) % testing::SUITES.len()];
    let role = match choice < 128 {
        true => Role::Server,
        false => Role::Client,
    };
    let (mut whole, mut peer) = testing::ends(suite, role);
    let mut wire = Vec::new();
    while let Some((&[kind, length], behind)) = rest.split_first_chunk::<2>() {
        let content = &behind[..behind.len().min(usize::from(length))];
        rest = &behind[content.len()..];
        match kind {
            0..=127 => wire.extend(peer.seal(kind, content)),
            _ => wire.extend_from_slice(content),
        }
    }
    let whole = testing::read_in_pieces(&mut whole, &wire, wire.len().max(1));
    let (mut pieces, _) = testing::ends(suite, role);
    let piece = usize::from(piece).max(1);
    let pieces = testing::read_in_pieces(&mut pieces, &wire, piece);
    assert_eq!(whole, pieces);
    // An alert follows each violation, and nothing but alerts is sent without being asked for.
    let sent = peer.open(&whole.sent);
    assert!(sent.iter().all(|(kind, _)| *kind == 21));
    let is_violation = matches!(whole.result, Err(RecordError::Violation(_)));
    let is_fatal = sent.last().is_some_and(|(_, alert)| alert[0] == 2);
    assert_eq!(is_violation, is_fatal);
}

/// Parses a chunked body at once and in two pieces: it ends at the same byte.
pub fn chunks(data: &[u8]) {
    let Some((cut, data)) = data.split_first() else {
        return;
    };
    let (start, rest) = data.split_at(usize::from(*cut).min(data.len()));
    let mut whole = Chunks::default();
    let end = whole.parse(data);
    let mut pieces = Chunks::default();
    let both = pieces
        .parse(start)
        .and_then(|length| match pieces.is_over() {
            true => Ok(length),
            false => Ok(length + pieces.parse(rest)?),
        });
    assert_eq!(end, both);
    assert!(end.is_err() || end == Ok(data.len()) || whole.is_over());
}

/// Parses a request head, and compares the result with Pingora's.
pub fn head(data: &[u8]) {
    let Some(end) = find_end(data, 0) else { return };
    let mut head = BytesMut::from(&data[..end]);
    let Ok(head_info) = parse_head(&mut head, 256) else {
        return;
    };
    let mut session = ServerSession::new_http1(Box::new(Cursor::new(Vec::new())));
    session.set_pipelined_prefix(head);
    let read = session.read_request().now_or_never();
    if !matches!(read, Some(Ok(true))) {
        // Pingora may reject it, but must not wait for more bytes.
        assert!(read.is_some());
        return;
    }
    let request = session.req_header();
    let hosts = request.headers.get_all(HOST).iter().count();
    assert!(hosts == 1 || (hosts == 0 && request.version == http::Version::HTTP_10));
    let nothing = BodyLength::Bytes(0);
    assert_eq!(head_info.body == nothing, has_no_body(request));
    let protocols = head_info.upgrade.map(|upgrade| upgrade.protocols);
    assert_eq!(protocols, requested_upgrades(request));
}

fn request() -> RequestHeader {
    RequestHeader::build("GET", b"/", None).expect("it is valid")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds");
        let entries = fs::read_dir(seeds.join(target)).unwrap();
        let seeds: Vec<Vec<u8>> = entries
            .map(|entry| fs::read(entry.unwrap().path()).unwrap())
            .collect();
        assert!(!seeds.is_empty());
        seeds
    }

    #[test]
    fn every_seed_passes() {
        for seed in seeds("cookies") {
            cookies(&seed);
        }
        for seed in seeds("forwarded") {
            forwarded(&seed);
        }
        for seed in seeds("frames") {
            let _ = frame_ends(&seed);
        }
        for seed in seeds("proxy_header") {
            proxy_header(&seed);
        }
        for seed in seeds("tls_records") {
            tls_records(&seed);
        }
        for seed in seeds("chunks") {
            chunks(&seed);
        }
        for seed in seeds("head") {
            head(&seed);
        }
        for seed in seeds("paths") {
            let _ = sockjs_session(&String::from_utf8_lossy(&seed));
        }
    }
}
