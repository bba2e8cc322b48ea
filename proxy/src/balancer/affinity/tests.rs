//! Cookies in several headers, repeated, forged, over-long; and SockJS paths.

use proptest::prelude::*;

use pingora::http::RequestHeader;

use super::*;
use crate::config::Config;

const NOW: u64 = 1_800_000_000;
const KEY: &str = "0123456789abcdef0123456789abcdef";
const OTHER: &str = "fedcba9876543210fedcba9876543210";

fn affinity(settings: &str) -> Affinity {
    let file = format!(
        "pools: [{{name: a, backends: [{{id: n1, address: 'a:1'}}]}}]\naffinity: {{{settings}}}\n"
    );
    let config = Config::parse("f", &file).unwrap();
    let ours = vec!["causeway".to_owned(), "causeway-b".to_owned()];
    Affinity::new(&config.affinity, config.pools[0].cookie.clone(), ours)
}

fn id(name: &str) -> BackendId {
    name.parse().unwrap()
}

/// What a browser sends back after `set_cookie`.
fn cookie(affinity: &Affinity, backend: &str) -> String {
    let set = affinity
        .set_cookie(&id(backend), NOW, Scheme::Http)
        .unwrap();
    let set = set.to_str().unwrap();
    set.split(';').next().unwrap().to_owned()
}

fn request(cookies: &[&[u8]]) -> RequestHeader {
    let mut request = RequestHeader::build("GET", b"/", None).unwrap();
    for cookie in cookies {
        let value = HeaderValue::from_bytes(cookie).unwrap();
        request.append_header(COOKIE, value).unwrap();
    }
    request
}

fn read(affinity: &Affinity, cookies: &[&str]) -> Claim {
    let cookies: Vec<&[u8]> = cookies.iter().map(|cookie| cookie.as_bytes()).collect();
    affinity.read(&request(&cookies), "/")
}

fn ids(claim: &Claim) -> Vec<&str> {
    claim
        .bindings
        .iter()
        .map(|binding| binding.id.as_str())
        .collect()
}

#[test]
fn a_cookie_is_read_as_it_was_set() {
    for settings in ["", &format!("keys: [{KEY}]")] {
        let affinity = affinity(settings);
        for name in ["n1", "node-1.example.com", &"x".repeat(64)] {
            let cookie = cookie(&affinity, name);
            assert!(cookie.len() < VALUE_BYTES_MAX, "{cookie}");
            let claim = read(&affinity, &[&cookie]);
            let expected = Binding {
                id: id(name),
                bound_at: NOW,
                freshness: Freshness::Current,
            };
            assert_eq!(claim.bindings, [expected]);
            assert!(!claim.forged);
        }
    }
}

#[test]
fn cookies_are_found_in_any_header_at_any_position() {
    let affinity = affinity("");
    let (one, two) = (cookie(&affinity, "n1"), cookie(&affinity, "n2"));
    let cases: [(&[&str], &[&str]); 5] = [
        (&["a=b; ", &one], &["n1"]),
        (&[&format!("a=b;{one}"), "c=d"], &["n1"]),
        (&["a=b", &format!(" c=d ;  {one} ; e")], &["n1"]),
        (&[&format!("{one}; {two}")], &["n1", "n2"]),
        (
            &[&two, "causeway2=u1.n3.1; xcauseway=u1.n3.1", &one],
            &["n2", "n1"],
        ),
    ];
    for (cookies, expected) in cases {
        assert_eq!(ids(&read(&affinity, cookies)), expected, "{cookies:?}");
    }
}

#[test]
fn a_cookie_that_does_not_verify_is_ignored() {
    let unsigned = affinity("");
    let signed = affinity(&format!("keys: [{KEY}]"));
    let good = cookie(&signed, "n1");
    let value = good.strip_prefix("causeway=").unwrap();
    let mut forgeries = vec![
        String::new(),
        "x".to_owned(),
        "u1.n1.1800000000".to_owned(),
        "s1.n1.1800000000".to_owned(),
        value.replace("n1", "n2"),
        value.replace("1800000000", "1800000001"),
        value[..value.len() - 1].to_owned(),
        format!("{value}A"),
        format!("{value}="),
        format!("\"{value}\""),
        value.to_uppercase(),
        "x".repeat(10_000),
        cookie(&affinity(&format!("keys: [{OTHER}]")), "n1").replace("causeway=", ""),
        cookie(&affinity(&format!("keys: [{KEY}], cookie: other")), "n1").replace("other=", ""),
    ];
    // Each changed character of the value breaks it (the last holds two bits that do not count).
    for at in 0..value.len() - 1 {
        let mut forged = value.as_bytes().to_vec();
        forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
        forgeries.push(String::from_utf8(forged).unwrap());
    }
    for forged in &forgeries {
        let claim = read(&signed, &[&format!("causeway={forged}")]);
        assert!(claim.bindings.is_empty() && claim.forged, "{forged}");
    }
    for malformed in [
        "u1.",
        "u1.n1",
        "u1.n1.",
        "u1.n1.x",
        "u1.n1.-1",
        "u1.n1.+1",
        "u1..1",
        "u1.a b.1",
        "u1.n1.9999999999999",
        "s1.n1.1",
        "s1.n1.1.k",
        "s1.n1.x.k.m",
    ] {
        let claim = read(&unsigned, &[&format!("causeway={malformed}")]);
        assert!(claim.bindings.is_empty() && claim.forged, "{malformed}");
    }
}

#[test]
fn a_forged_cookie_does_not_hide_a_good_one() {
    let affinity = affinity(&format!("keys: [{KEY}]"));
    let good = cookie(&affinity, "n2");
    let claim = read(&affinity, &["causeway=u1.n1.1", &good]);
    assert_eq!(ids(&claim), ["n2"]);
    assert!(claim.forged);
}

#[test]
fn the_number_of_cookies_that_are_verified_is_bounded() {
    let affinity = affinity("");
    let many = vec!["causeway=u1.n1.1"; 1000].join("; ");
    assert_eq!(read(&affinity, &[&many]).bindings.len(), COOKIES_MAX);
}

#[test]
fn keys_rotate_without_rebinding_clients() {
    let old = affinity(&format!("keys: [{OTHER}]"));
    let both = affinity(&format!("keys: [{KEY}, {OTHER}]"));
    let new = affinity(&format!("keys: [{KEY}]"));
    let before = cookie(&old, "n1");
    let claim = read(&both, &[&before]);
    assert_eq!(ids(&claim), ["n1"]);
    assert_eq!(claim.bindings[0].freshness, Freshness::OldKey);
    let after = cookie(&both, "n1");
    assert_eq!(ids(&read(&new, &[&after])), ["n1"]);
    assert!(read(&new, &[&before]).bindings.is_empty());
}

#[test]
fn attributes_are_as_set() {
    let set = |settings: &str, scheme| {
        let set = affinity(settings).set_cookie(&id("n1"), 7, scheme).unwrap();
        set.to_str().unwrap().to_owned()
    };
    assert_eq!(
        set("", Scheme::Http),
        "causeway=u1.n1.7; Path=/; HttpOnly; SameSite=Lax"
    );
    assert_eq!(
        set("", Scheme::Https),
        "causeway=u1.n1.7; Path=/; Secure; HttpOnly; SameSite=Lax"
    );
    assert_eq!(
        set(
            "cookie: c, path: /a, domain: example.com, same_site: none, secure: always, http_only: false, max_age: 1h",
            Scheme::Http
        ),
        "c=u1.n1.7; Path=/a; Domain=example.com; Max-Age=3600; Secure; SameSite=None"
    );
    let partitioned = "same_site: None, partitioned: true";
    assert_eq!(
        set(partitioned, Scheme::Https),
        "causeway=u1.n1.7; Path=/; Secure; HttpOnly; SameSite=None; Partitioned"
    );
    assert_eq!(
        set(partitioned, Scheme::Http),
        "causeway=u1.n1.7; Path=/; HttpOnly; SameSite=None"
    );
    assert_eq!(
        set("secure: never, same_site: strict", Scheme::Https),
        "causeway=u1.n1.7; Path=/; HttpOnly; SameSite=Strict"
    );
}

#[test]
fn keys_can_be_introduced_without_rebinding_clients_and_removed_again() {
    let before = cookie(&affinity(""), "n1");
    let on = |more: &str| affinity(&format!("keys: [{KEY}]{more}"));
    let year = SystemTime::now() + std::time::Duration::from_secs(360 * 24 * 3600);
    let year = causeway_conf::Timestamp(year);
    let turning = on(&format!(", accept_unsigned_until: '{year}'"));
    let claim = read(&turning, &[&before]);
    assert_eq!(ids(&claim), ["n1"]);
    assert_eq!(
        claim.bindings[0].freshness,
        Freshness::OldKey,
        "is signed now"
    );
    assert!(!claim.forged);
    let after = cookie(&turning, "n1");
    assert!(after.starts_with("causeway=s1."), "{after}");
    assert_eq!(ids(&read(&on(""), &[&after])), ["n1"]);
    for over in ["", ", accept_unsigned_until: 2026-01-01"] {
        let claim = read(&on(over), &[&before]);
        assert!(claim.bindings.is_empty() && claim.forged, "{over}");
    }
    // A forged signature is not accepted in place of an unsigned cookie.
    let forged = format!("{}A", &after[..after.len() - 1]);
    assert!(read(&turning, &[&forged]).bindings.is_empty() || forged == after);
    // An edge without keys, which verifies nothing, accepts it too.
    let claim = read(&affinity(""), &[&after]);
    assert_eq!((ids(&claim), claim.forged), (vec!["n1"], false));
}

fn strip(cookies: &[&[u8]]) -> Vec<Vec<u8>> {
    let mut request = request(cookies);
    affinity("").strip(&mut request);
    let values = request.headers.get_all(COOKIE).iter();
    values.map(|value| value.as_bytes().to_vec()).collect()
}

#[test]
fn stripping_leaves_other_cookies_unchanged() {
    type Cookies<'a> = &'a [&'a [u8]];
    let cases: [(Cookies<'_>, Cookies<'_>); 9] = [
        (&[], &[]),
        (&[b"a=b;  c = d ;;e"], &[b"a=b;  c = d ;;e"]),
        (&[b"causeway=x"], &[]),
        (&[b" causeway=x ; "], &[]),
        (&[b"causeway=x; a=b"], &[b"a=b"]),
        (&[b"a=b; causeway=x"], &[b"a=b"]),
        (
            &[b"a=b; causeway=x; c=\"d e\"; causeway-b=y;  f=\xff"],
            &[b"a=b; c=\"d e\";  f=\xff"],
        ),
        (&[b"a=b", b"causeway=x", b"c=d; causeway=y"], &[b"a=b; c=d"]),
        (
            &[b"Causeway=x; causeway2=y; causeway"],
            &[b"Causeway=x; causeway2=y; causeway"],
        ),
    ];
    for (cookies, expected) in cases {
        assert_eq!(strip(cookies), expected, "{cookies:?}");
    }
}

#[test]
fn a_session_is_found_in_paths_of_sockjs_and_no_others() {
    let found = [
        "/sockjs/000/abc/xhr",
        "/sockjs/000/abc/xhr/",
        "/a/b/c/000/abc/xhr_send?t=1/2",
        "/000/abc/xhr_streaming",
        "/sockjs/000/abc/eventsource",
        "/sockjs/999/abc/jsonp_send?i=1",
    ];
    let not = [
        "/",
        "",
        "*",
        "/sockjs/info",
        "/sockjs/websocket",
        "/sockjs/000/abc/websocket",
        "/abc/xhr",
        "/sockjs/000/a.bc/xhr",
        "/sockjs/0.0/abc/xhr",
        "/sockjs/000//xhr",
        "/sockjs//abc/xhr",
        "/sockjs/000/abc/xhr2",
        "//000/abc/xhr",
        "/sockjs/000/abc/xhr//",
        "sockjs/000/abc",
    ];
    let affinity = affinity("");
    let session = |path: &str| affinity.read(&request(&[]), path).session;
    for path in found {
        assert_eq!(session(path), Some(SessionKey::new("abc")), "{path}");
    }
    for path in not {
        assert_eq!(session(path), None, "{path}");
    }
    let long = format!("/s/0/{}/xhr", "x".repeat(SESSION_BYTES_MAX + 1));
    assert_eq!(session(&long), None);
}

#[test]
fn paths_are_ignored_when_sockjs_path_is_disabled() {
    let affinity = affinity("sockjs_path: false");
    let claim = affinity.read(&request(&[]), "/sockjs/000/abc/xhr");
    assert_eq!(claim, Claim::default());
}

fn other_cookie() -> impl Strategy<Value = String> {
    "[a-b ]{0,3}(=[a-z=\" ]{0,5})?"
}

proptest! {
    #[test]
    fn no_header_makes_reading_or_stripping_panic(
        header in prop::collection::vec(prop_oneof![Just(b';'), Just(b'='), Just(b'.'), 0x20..0x7f_u8, 0x80..=0xff_u8], 0..200),
        path in "[/a-z.?%]{0,40}",
    ) {
        let affinity = affinity("");
        let mut request = request(&[&header]);
        affinity.read(&request, &path);
        affinity.strip(&mut request);
    }

    #[test]
    fn no_value_but_a_signed_one_verifies(value in "s1\\.n[0-9]\\.[0-9]{10}\\.[A-Za-z0-9_-]{4}\\.[A-Za-z0-9_-]{22}") {
        let affinity = affinity(&format!("keys: [{KEY}]"));
        let cookie = format!("causeway={value}");
        let claim = read(&affinity, &[&cookie]);
        prop_assert!(claim.bindings.is_empty());
    }

    #[test]
    fn stripping_removes_exactly_the_affinity_cookie(
        before in prop::collection::vec(other_cookie(), 0..4),
        after in prop::collection::vec(other_cookie(), 0..4),
    ) {
        let all: Vec<&str> = before.iter().chain(&after).map(String::as_str).collect();
        prop_assume!(all.iter().any(|cookie| !cookie.trim().is_empty()));
        let mut with = before.clone();
        with.push(" causeway=u1.n1.1".to_owned());
        with.extend(after.clone());
        let stripped = strip(&[with.join(";").as_bytes()]);
        let expected = all.join(";");
        prop_assert_eq!(stripped, vec![expected.trim_start().as_bytes().to_vec()]);
    }
}
