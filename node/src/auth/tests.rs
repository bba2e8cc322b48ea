//! Claims and the grants that follow from them.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;
use serde_json::json;

use super::*;
use crate::auth::grant::Overrides;
use crate::jwt::testing;

const NOW: u64 = 1_800_000_000;

fn rules() -> Auth {
    Auth {
        key_files: Vec::new(),
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
fn a_connection_gets_the_grant_of_its_token() {
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
fn a_token_without_a_user_is_anonymous() {
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
        assert_eq!(error, "invalid claims: expected `info` in base64");
    }
    let deep = (0..61).fold(json!(1), |inner, _| json!([inner]));
    let error = connect(&json!({ "info": deep })).unwrap_err().to_string();
    let expected = "invalid claims: expected `info` of at most 60 levels of arrays and objects";
    assert_eq!(error, expected);
}

#[test]
fn a_token_is_valid_until_its_expiry_and_the_leeway() {
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
        // `iat` is not checked: the issuer's clock may be wrong.
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
fn audience_and_issuer_have_to_match() {
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
        // The expiry of a token for another application is irrelevant.
        (json!({"aud": "mail", "exp": 1}), other(Invalid::Audience)),
    ] {
        let connected = connect_at(rules.clone(), &claims, at(NOW)).map(|_| ());
        assert_eq!(connected, expected, "{claims}");
    }
}

#[test]
fn claims_of_another_type_are_rejected_with_their_name() {
    for (claims, wrong) in [
        (json!([]), "the claims are not a JSON object"),
        (json!("x"), "the claims are not a JSON object"),
        (json!({"sub": 42}), "the claim `sub` is not a string"),
        (
            json!({"exp": "tomorrow"}),
            "the claim `exp` is not a number of seconds",
        ),
        (
            json!({"exp": ""}),
            "the claim `exp` is not a number of seconds",
        ),
        (
            json!({"exp": "inf"}),
            "the claim `exp` is not a number of seconds",
        ),
        (
            json!({"iat": {}}),
            "the claim `iat` is not a number of seconds",
        ),
        (
            json!({"nbf": true}),
            "the claim `nbf` is not a number of seconds",
        ),
        (
            json!({"aud": 1}),
            "the claim `aud` is not a string or a list of strings",
        ),
        (
            json!({"channels": "news"}),
            "the claim `channels` is not a list of channels",
        ),
        (
            json!({"channels": [1]}),
            "the claim `channels` is not a list of channels",
        ),
        (
            json!({"subs": ["news"]}),
            "the claim `subs` is not an object with the options of each channel",
        ),
        (
            json!({"subs": {"news": 1}}),
            "the claim `subs` is not an object with the options of each channel",
        ),
    ] {
        let error = connect(&claims).unwrap_err();
        assert_eq!(error.to_string(), wrong, "{claims}");
        assert!(matches!(error, AuthError::Invalid(Invalid::Claims(_))));
    }
    for (claims, wrong) in [
        (&b""[..], BadClaims::NotAnObject),
        (b"\xff", BadClaims::NotAnObject),
        (b"{", BadClaims::NotAnObject),
        (b"{} x", BadClaims::NotAnObject),
        (
            br#"["a",1,1,1,"a","a",1,"a",1,[],{},1,"a","a",{}]"#,
            BadClaims::NotAnObject,
        ),
        (br#"{"sub":"a","sub":"b"}"#, BadClaims::Repeated),
    ] {
        let token = testing::token(r#"{"alg":"HS256"}"#, claims, |message| {
            testing::hmac_of(&testing::secret(1), message)
        });
        let connected = Verifier::new(rules()).connect(&token, at(NOW));
        assert_eq!(connected, Err(Invalid::from(wrong).into()));
    }
}

#[test]
fn null_and_empty_claims_count_as_missing() {
    let nothing = Ok(ConnectGrant::default());
    for claims in [
        json!({"sub": null, "exp": null, "nbf": null, "iat": null, "iss": null, "aud": null}),
        json!({"iss": "", "aud": "", "info": null, "b64info": "", "meta": null}),
        json!({"aud": [], "expire_at": null, "channels": null, "subs": null}),
        json!({"channels": [], "subs": {}, "channel": "", "client": "", "override": null}),
        // As PHP writes an empty map.
        json!({"subs": [], "override": []}),
        json!({"channels": [null, ""], "subs": {"": {}}}),
        json!({"nbf": 0, "iat": 0, "expire_at": 0}),
        json!({"iat": NOW as f64 + 0.25, "nbf": NOW as f64 - 0.75}),
        json!({"iat": NOW.to_string(), "nbf": format!("{}.5", NOW - 1)}),
    ] {
        assert_eq!(connect(&claims), nothing, "{claims}");
    }
    for (claims, expected) in [
        (json!({"expire_at": NOW as f64 + 7.9}), Some(NOW + 7)),
        (json!({"exp": (NOW + 7).to_string()}), Some(NOW + 7)),
        (json!({"exp": NOW + 7, "expire_at": "0"}), None),
    ] {
        assert_eq!(connect(&claims).unwrap().expire_at, expected, "{claims}");
    }
    let subs =
        json!({"subs": {"a": null, "b": [], "c": {"override": {"presence": {"value": null}}}}});
    let subs = connect(&subs).unwrap().subs;
    assert_eq!(subs.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    // An empty `exp` does not extend a token: one without expiry has no claim.
    for claims in [json!({"exp": 0}), json!({"exp": "0"}), json!({"exp": -0.5})] {
        assert_eq!(connect(&claims), Err(AuthError::Expired), "{claims}");
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
fn a_subscription_gets_the_grant_of_its_token() {
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
fn a_subscription_token_is_rejected_for_a_connection() {
    let claims = json!({"sub": "42", "channel": "a"});
    let expected = AuthError::Invalid(Invalid::ForSubscription);
    assert_eq!(connect(&claims), Err(expected));
}

#[test]
fn a_client_without_a_token_is_authenticated_by_the_settings() {
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
fn no_error_text_contains_the_token() {
    let token = testing::hs256(2, r#"{"sub":"42"}"#);
    let error = Verifier::new(rules()).connect(&token, at(NOW)).unwrap_err();
    assert_eq!(error.to_string(), "the signature does not match");
    for part in token.split('.') {
        assert!(!format!("{error:?} {error}").contains(part));
    }
}

proptest! {
    /// Any signed text leads to a result, and a user is only taken from the claims.
    #[test]
    fn no_signed_claims_cause_a_panic(claims in "[{}\\[\\]\":,a-z0-9.-]{0,80}") {
        let token = testing::hs256(1, &claims);
        if let Ok(grant) = Verifier::new(rules()).connect(&token, at(NOW)) {
            prop_assert!(claims.contains(&grant.user));
        }
    }
}
