//! Which forwarding headers are trusted, and which ones the backend gets.

use http::HeaderName;
use pingora::http::RequestHeader;

use super::*;

const PROXY: &str = "10.0.0.1";
const UNTRUSTED: &str = "198.51.100.9";

fn forwarder() -> Forwarder {
    Forwarder::new(vec![
        "10.0.0.0/8".parse().unwrap(),
        "fd00::/8".parse().unwrap(),
    ])
}

fn request(headers: &[(&str, &str)]) -> RequestHeader {
    let mut request = RequestHeader::build("GET", b"/", None).unwrap();
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        request.append_header(name, *value).unwrap();
    }
    request
}

/// The request as the backend gets it, and what was read from it.
fn apply(peer: &str, headers: &[(&str, &str)]) -> (RequestHeader, Forwarded) {
    let mut request = request(headers);
    let peer = peer.parse().unwrap();
    let forwarder = forwarder();
    let forwarded = forwarder.read(&request, peer, Scheme::Http);
    forwarder.write(&forwarded, &mut request);
    (request, forwarded)
}

/// All values of a header.
fn values<'a>(request: &'a RequestHeader, name: &str) -> Vec<&'a str> {
    let values = request.headers.get_all(name).iter();
    values.map(|value| value.to_str().unwrap()).collect()
}

#[test]
fn forwarding_headers_of_an_untrusted_peer_are_replaced() {
    let (request, forwarded) = apply(
        UNTRUSTED,
        &[
            ("Host", "example.com:8080"),
            ("X-Forwarded-For", "1.1.1.1"),
            ("X-Forwarded-For", "2.2.2.2"),
            ("X_Forwarded_For", "1.1.1.1"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "evil"),
            ("X-Forwarded-Port", "1"),
            ("X-Forwarded-Prefix", "/evil"),
            ("X-Forwarded_Server", "evil"),
            ("X-Real-IP", "1.1.1.1"),
            ("X_Real_IP", "1.1.1.1"),
            ("Forwarded", "for=1.1.1.1"),
            ("X-Request-Id", "mine"),
            ("Other", "stays"),
        ],
    );
    assert_eq!(forwarded.client.to_string(), UNTRUSTED);
    let expected = [
        ("x-forwarded-for", UNTRUSTED),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "example.com:8080"),
        ("x-forwarded-port", "8080"),
        ("x-real-ip", UNTRUSTED),
        (
            "forwarded",
            "for=198.51.100.9;host=\"example.com:8080\";proto=http",
        ),
        ("x-request-id", forwarded.request_id()),
        ("other", "stays"),
    ];
    for (name, value) in expected {
        assert_eq!(values(&request, name), [value], "{name}");
    }
    for name in [
        "x_forwarded_for",
        "x-forwarded-prefix",
        "x-forwarded_server",
        "x_real_ip",
    ] {
        assert!(values(&request, name).is_empty(), "{name}");
    }
    assert_eq!(forwarded.request_id().len(), 32);
}

#[test]
fn a_trusted_proxy_is_believed() {
    let (request, forwarded) = apply(
        PROXY,
        &[
            ("Host", "internal"),
            ("X-Forwarded-For", UNTRUSTED),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "example.com"),
            ("X-Forwarded-Prefix", "/app"),
            ("X_Forwarded_Host", "evil"),
            ("X-Request-Id", "req-1.a_B"),
        ],
    );
    assert_eq!(forwarded.scheme, Scheme::Https);
    let expected = [
        ("x-forwarded-for", "198.51.100.9, 10.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "example.com"),
        ("x-forwarded-port", "443"),
        ("x-forwarded-prefix", "/app"),
        ("x-real-ip", UNTRUSTED),
        (
            "forwarded",
            "for=198.51.100.9;host=\"example.com\";proto=https, for=10.0.0.1",
        ),
        ("x-request-id", "req-1.a_B"),
    ];
    for (name, value) in expected {
        assert_eq!(values(&request, name), [value], "{name}");
    }
    assert!(values(&request, "x_forwarded_host").is_empty());
}

#[test]
fn the_client_is_the_last_address_that_is_not_trusted() {
    type Headers<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Headers<'_>, &str, &str); 12] = [
        (&[], "10.0.0.1", "10.0.0.1"),
        // Addresses before the client were sent by the client.
        (
            &[("x-forwarded-for", "6.6.6.6, 198.51.100.9")],
            UNTRUSTED,
            "198.51.100.9, 10.0.0.1",
        ),
        (
            &[("x-forwarded-for", "6.6.6.6, 198.51.100.9, 10.0.0.2")],
            UNTRUSTED,
            "198.51.100.9, 10.0.0.2, 10.0.0.1",
        ),
        // Several headers are one list.
        (
            &[
                ("x-forwarded-for", "198.51.100.9"),
                ("x-forwarded-for", "10.0.0.2"),
            ],
            UNTRUSTED,
            "198.51.100.9, 10.0.0.2, 10.0.0.1",
        ),
        // All hops are trusted: the farthest one counts as the client.
        (
            &[("x-forwarded-for", "10.0.0.3,10.0.0.2")],
            "10.0.0.3",
            "10.0.0.3, 10.0.0.2, 10.0.0.1",
        ),
        (
            &[("x-forwarded-for", "198.51.100.9:1234")],
            UNTRUSTED,
            "198.51.100.9, 10.0.0.1",
        ),
        (
            &[("x-forwarded-for", "[2001:db8::1]:80")],
            "2001:db8::1",
            "2001:db8::1, 10.0.0.1",
        ),
        (
            &[("x-forwarded-for", "::ffff:198.51.100.9")],
            UNTRUSTED,
            "198.51.100.9, 10.0.0.1",
        ),
        // A hop that is not an address ends the chain.
        (
            &[("x-forwarded-for", "198.51.100.9, unknown")],
            "10.0.0.1",
            "10.0.0.1",
        ),
        (
            &[(
                "forwarded",
                "for=6.6.6.6, For=\"[2001:db8::1]:4711\";proto=https, for=10.0.0.2",
            )],
            "2001:db8::1",
            "2001:db8::1, 10.0.0.2, 10.0.0.1",
        ),
        (&[("forwarded", "for=_hidden")], "10.0.0.1", "10.0.0.1"),
        (
            &[
                ("forwarded", "for=6.6.6.6"),
                ("x-forwarded-for", "198.51.100.9"),
            ],
            UNTRUSTED,
            "198.51.100.9, 10.0.0.1",
        ),
    ];
    for (headers, client, chain) in cases {
        let (request, forwarded) = apply(PROXY, headers);
        assert_eq!(forwarded.client.to_string(), client, "{headers:?}");
        assert_eq!(values(&request, "x-forwarded-for"), [chain], "{headers:?}");
        assert_eq!(values(&request, "x-real-ip"), [client], "{headers:?}");
    }
}

#[test]
fn an_ipv4_peer_of_a_dual_stack_listener_is_the_same_peer() {
    let (request, forwarded) = apply("::ffff:10.0.0.1", &[("x-forwarded-for", UNTRUSTED)]);
    assert_eq!(forwarded.client.to_string(), UNTRUSTED);
    assert_eq!(
        values(&request, "x-forwarded-for"),
        ["198.51.100.9, 10.0.0.1"]
    );
}

#[test]
fn an_ipv6_client_is_quoted_where_rfc_7239_says_so() {
    let (request, _) = apply("2001:db8::1", &[("Host", "[2001:db8::2]")]);
    assert_eq!(
        values(&request, "forwarded"),
        ["for=\"[2001:db8::1]\";host=\"[2001:db8::2]\";proto=http"]
    );
    assert_eq!(values(&request, "x-forwarded-for"), ["2001:db8::1"]);
    assert_eq!(values(&request, "x-forwarded-port"), ["80"]);
}

#[test]
fn forwarded_of_a_trusted_proxy_is_used_without_x_forwarded_for() {
    let header = "for=198.51.100.9;host=\"a.example:8443\";proto=https";
    let (request, forwarded) = apply(PROXY, &[("Host", "b"), ("Forwarded", header)]);
    assert_eq!(forwarded.scheme, Scheme::Https);
    assert_eq!(values(&request, "x-forwarded-host"), ["a.example:8443"]);
    assert_eq!(values(&request, "x-forwarded-port"), ["8443"]);
}

#[test]
fn malformed_headers_of_a_trusted_proxy_are_ignored() {
    let (request, forwarded) = apply(
        PROXY,
        &[
            ("Host", "example.com"),
            ("X-Forwarded-For", ", ,"),
            ("X-Forwarded-Proto", "gopher"),
            ("X-Forwarded-Host", "a\"b"),
            ("X-Forwarded-Port", "0"),
            ("Forwarded", "for=\"unfinished;proto"),
            ("X-Request-Id", "has space"),
        ],
    );
    assert_eq!(forwarded.client.to_string(), PROXY);
    assert_eq!(forwarded.scheme, Scheme::Http);
    assert_eq!(values(&request, "x-forwarded-host"), ["example.com"]);
    assert_eq!(values(&request, "x-forwarded-port"), ["80"]);
    assert_eq!(forwarded.request_id().len(), 32);
}

#[test]
fn request_ids_are_bounded() {
    let longest = "x".repeat(REQUEST_ID_BYTES_MAX);
    let (_, kept) = apply(PROXY, &[("X-Request-Id", &longest)]);
    assert_eq!(kept.request_id(), longest);
    let (_, made) = apply(PROXY, &[("X-Request-Id", &format!("{longest}x"))]);
    assert_eq!(made.request_id().len(), 32);
}

#[test]
fn the_length_of_a_chain_is_bounded() {
    let long = vec!["10.0.0.2"; 1000].join(",");
    let (request, _) = apply(PROXY, &[("X-Forwarded-For", &long)]);
    assert!(values(&request, "x-forwarded-for")[0].len() < 400);
}

#[test]
fn addresses_are_written_as_by_the_standard_library() {
    for octet in 0..=u8::MAX {
        let address = IpAddr::from([octet, 0, 255 - octet, octet]);
        assert_eq!(text_of(address), address.to_string());
    }
    let v6 = "2001:db8::1".parse().unwrap();
    assert_eq!(text_of(v6), "2001:db8::1");
}
