//! Claims: what they grant, when, and to whom.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;
use serde_json::json;

use super::*;
use crate::grant::Overrides;
use crate::jwt::testing;

const NOW: u64 = 1_800_000_000;

fn rules() -> Auth {
    Auth {
        keys: vec![testing::secret_key(None, 1)],
        key_set: None,
        audience: Vec::new(),
        issuer: None,
        leeway: Duration::from_secs(5),
        anonymous: false,
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn connect_at(rules: Auth, claims: &Value, now: SystemTime) -> Result<ConnectGrant, AuthError> {
    Verifier::new(rules).connect(&testing::hs256(1, &claims.to_string()), now)
}

fn connect(claims: &Value) -> Result<ConnectGrant, AuthError> {
    connect_at(rules(), claims, at(NOW))
}

fn subscribe(claims: &Value, channel: &str) -> Result<SubscribeGrant, AuthError> {
    let asking = Asking {
        user: "42",
        client: "c-1",
    };
    let token = testing::hs256(1, &claims.to_string());
    Verifier::new(rules()).subscribe(&token, channel, asking, at(NOW))
}

#[test]
fn a_connection_is_granted_what_its_token_says() {
    let grant = connect(&json!({
        "sub": "42",
        "exp": NOW + 60,
        "iat": NOW,
        "info": {"name": "Ann"},
        "meta": {"plan": "pro"},
        "channels": ["news", "chat:1"],
        "subs": {"chat:1": {
            "info": {"role": "admin"},
            "b64data": "AAEC",
            "override": {"presence": {"value": true}, "join_leave": {"value": false}},
        }},
        "unknown": [1, 2],
    }))
    .unwrap();
    assert_eq!(grant.user, "42");
    assert_eq!(grant.expire_at, Some(NOW + 60));
    assert_eq!(grant.info, r#"{"name":"Ann"}"#);
    assert_eq!(grant.meta, r#"{"plan":"pro"}"#);
    let channels: Vec<_> = grant.subs.keys().collect();
    assert_eq!(channels, ["chat:1", "news"]);
    assert_eq!(grant.subs["news"], SubscribeGrant::default());
    let chat = &grant.subs["chat:1"];
    assert_eq!(chat.info, r#"{"role":"admin"}"#);
    assert_eq!(chat.data, Bytes::from_static(&[0, 1, 2]));
    let overrides = Overrides {
        presence: Some(true),
        join_leave: Some(false),
        ..Overrides::default()
    };
    assert_eq!(chat.overrides, overrides);
}

#[test]
fn a_token_without_a_user_is_for_nobody() {
    assert_eq!(connect(&json!({})), Ok(ConnectGrant::default()));
    assert_eq!(connect(&json!({"sub": ""})), Ok(ConnectGrant::default()));
}

#[test]
fn bytes_in_base64_go_before_json() {
    let grant = connect(&json!({"info": {"a": 1}, "b64info": "//8="})).unwrap();
    assert_eq!(grant.info, Bytes::from_static(&[0xff, 0xff]));
    let grant = connect(&json!({"info": {"a": 1}, "b64info": ""})).unwrap();
    assert_eq!(grant.info, r#"{"a":1}"#);
    for claims in [
        json!({"b64info": "?"}),
        json!({"subs": {"a": {"b64info": "_w=="}}}),
    ] {
        let error = connect(&claims).unwrap_err().to_string();
        assert_eq!(error, "its claims are wrong: expected `b64info` in base64");
    }
}

#[test]
fn a_token_holds_to_its_second_and_the_leeway() {
    let expired = Err(AuthError::Expired);
    let early = Err(AuthError::Invalid(Invalid::TooEarly));
    for (claims, leeway, expected) in [
        (json!({"exp": NOW + 1}), 0, Ok(())),
        (json!({"exp": NOW}), 0, expired.clone()),
        (json!({"exp": NOW}), 5, Ok(())),
        (json!({"exp": NOW - 4}), 5, Ok(())),
        (json!({"exp": NOW - 5}), 5, expired.clone()),
        (json!({"exp": NOW as f64 + 0.5}), 0, Ok(())),
        (json!({"exp": 0}), 0, expired.clone()),
        (json!({"exp": -1}), 0, expired.clone()),
        (json!({"exp": 1e300}), 0, Ok(())),
        (json!({"nbf": NOW}), 0, Ok(())),
        (json!({"nbf": NOW + 1}), 0, early.clone()),
        (json!({"nbf": NOW + 5}), 5, Ok(())),
        (json!({"nbf": NOW + 6}), 5, early),
        // When it was made decides nothing: the clock that wrote it may be wrong.
        (json!({"iat": NOW + 3600}), 0, Ok(())),
    ] {
        let rules = Auth {
            leeway: Duration::from_secs(leeway),
            ..rules()
        };
        let connected = connect_at(rules, &claims, at(NOW)).map(|_| ());
        assert_eq!(connected, expected, "{claims} {leeway}");
    }
}

#[test]
fn a_connection_ends_with_its_token_unless_it_says_another_time() {
    for (claims, expected) in [
        (json!({}), None),
        (json!({"exp": NOW + 9}), Some(NOW + 9)),
        (json!({"exp": NOW as f64 + 9.9}), Some(NOW + 9)),
        (json!({"exp": 1e300}), Some(u64::MAX)),
        (
            json!({"exp": NOW + 9, "expire_at": NOW + 99}),
            Some(NOW + 99),
        ),
        (json!({"exp": NOW + 9, "expire_at": 0}), None),
        (json!({"exp": NOW + 9, "expire_at": -7}), None),
        (json!({"expire_at": NOW + 99}), Some(NOW + 99)),
    ] {
        assert_eq!(connect(&claims).unwrap().expire_at, expected, "{claims}");
    }
}

#[test]
fn a_token_is_for_us_and_from_whom_we_know() {
    let (audience, issuer) = (
        vec!["chat".to_owned(), "push".to_owned()],
        "shop".to_owned(),
    );
    let rules = Auth {
        audience,
        issuer: Some(issuer),
        ..rules()
    };
    let other = |invalid| Err(AuthError::Invalid(invalid));
    for (claims, expected) in [
        (json!({"aud": "chat", "iss": "shop"}), Ok(())),
        (json!({"aud": ["mail", "push"], "iss": "shop"}), Ok(())),
        (
            json!({"aud": ["mail"], "iss": "shop"}),
            other(Invalid::Audience),
        ),
        (json!({"aud": [], "iss": "shop"}), other(Invalid::Audience)),
        (
            json!({"aud": "Chat", "iss": "shop"}),
            other(Invalid::Audience),
        ),
        (json!({"iss": "shop"}), other(Invalid::Audience)),
        (
            json!({"aud": "chat", "iss": "shop2"}),
            other(Invalid::Issuer),
        ),
        (json!({"aud": "chat"}), other(Invalid::Issuer)),
        // It is no business of ours when a token for others ends.
        (json!({"aud": "mail", "exp": 1}), other(Invalid::Audience)),
    ] {
        let connected = connect_at(rules.clone(), &claims, at(NOW)).map(|_| ());
        assert_eq!(connected, expected, "{claims}");
    }
}

#[test]
fn claims_of_another_kind_are_refused() {
    let wrong = Err(AuthError::Invalid(Invalid::Claims));
    for claims in [
        json!([]),
        json!("x"),
        json!({"sub": 42}),
        json!({"exp": "tomorrow"}),
        json!({"iat": {}}),
        json!({"aud": 1}),
        json!({"channels": "news"}),
        json!({"channels": [1]}),
        json!({"subs": ["news"]}),
        json!({"subs": {"news": 1}}),
        json!({"expire_at": 1.5}),
    ] {
        assert_eq!(connect(&claims), wrong, "{claims}");
    }
    for claims in [
        &b""[..],
        b"\xff",
        b"{",
        b"{} x",
        br#"{"sub":"a","sub":"b"}"#,
    ] {
        let token = testing::token(r#"{"alg":"HS256"}"#, claims, |message| {
            testing::hmac_of(&testing::secret(1), message)
        });
        assert_eq!(Verifier::new(rules()).connect(&token, at(NOW)), wrong);
    }
}

#[test]
fn a_subscription_is_for_one_channel_and_one_user() {
    let invalid = |invalid| Err(AuthError::Invalid(invalid));
    for (claims, expected) in [
        (json!({"sub": "42", "channel": "a"}), Ok(())),
        (
            json!({"sub": "42", "channel": "a", "client": "c-1"}),
            Ok(()),
        ),
        (json!({"sub": "42", "channel": "a", "client": ""}), Ok(())),
        (
            json!({"sub": "42", "channel": "a", "client": "c-2"}),
            invalid(Invalid::OtherClient),
        ),
        (
            json!({"sub": "42", "channel": "b"}),
            invalid(Invalid::OtherChannel),
        ),
        // This one connects.
        (json!({"sub": "42"}), invalid(Invalid::OtherChannel)),
        (
            json!({"sub": "43", "channel": "a"}),
            invalid(Invalid::OtherUser),
        ),
        (json!({"channel": "a"}), invalid(Invalid::OtherUser)),
        (
            json!({"sub": "42", "channel": "a", "exp": NOW - 60}),
            Err(AuthError::Expired),
        ),
    ] {
        assert_eq!(subscribe(&claims, "a").map(|_| ()), expected, "{claims}");
    }
}

#[test]
fn a_subscription_is_granted_what_its_token_says() {
    let claims = json!({
        "sub": "42", "channel": "a", "exp": NOW + 5, "expire_at": NOW + 50,
        "info": {"role": "admin"}, "override": {"force_recovery": {"value": true}},
    });
    let grant = subscribe(&claims, "a").unwrap();
    assert_eq!(grant.expire_at, Some(NOW + 50));
    assert_eq!(grant.info, r#"{"role":"admin"}"#);
    assert_eq!(grant.overrides.force_recovery, Some(true));
}

#[test]
fn a_token_for_a_subscription_connects_nobody() {
    let claims = json!({"sub": "42", "channel": "a"});
    let expected = AuthError::Invalid(Invalid::ForSubscription);
    assert_eq!(connect(&claims), Err(expected));
}

#[test]
fn who_has_no_token_is_judged_by_the_settings() {
    let open = Auth {
        anonymous: true,
        ..rules()
    };
    for (rules, token, has_hook, expected) in [
        (rules(), "", false, Entry::Refused),
        (rules(), "", true, Entry::Hook),
        (rules(), "t", true, Entry::Token("t")),
        (open.clone(), "", false, Entry::Anonymous),
        (open.clone(), "", true, Entry::Hook),
        (open, "t", false, Entry::Token("t")),
    ] {
        let entry = Verifier::new(rules).entry(token, has_hook);
        assert_eq!(entry, expected, "{token} {has_hook}");
    }
}

#[test]
fn no_reason_holds_the_token() {
    let token = testing::hs256(2, r#"{"sub":"42"}"#);
    let error = Verifier::new(rules()).connect(&token, at(NOW)).unwrap_err();
    assert_eq!(error.to_string(), "its signature does not match");
    for part in token.split('.') {
        assert!(!format!("{error:?} {error}").contains(part));
    }
}

proptest! {
    /// Whatever is signed, there is an answer, and a user is never made up.
    #[test]
    fn nothing_that_is_signed_makes_it_panic(claims in "[{}\\[\\]\":,a-z0-9.-]{0,80}") {
        let token = testing::hs256(1, &claims);
        if let Ok(grant) = Verifier::new(rules()).connect(&token, at(NOW)) {
            prop_assert!(claims.contains(&grant.user));
        }
    }
}
