use super::*;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn config(auth: &str) -> Config {
    let text = format!(
        "auth: {{ keys: [{{ id: k, algorithm: HS256, key: {SECRET} }}]{auth} }}\n\
         channels: {{ namespaces: [{{ name: chat }}, {{ name: closed, subscribe: nobody }}] }}\n\
         endpoints: [{{ path: /c, mode: channels }}]\n"
    );
    Config::parse("node.yaml", &text).unwrap()
}

fn request(user: &str, channel: Option<&str>) -> TokenRequest {
    TokenRequest {
        user: user.to_owned(),
        channel: channel.map(str::to_owned),
        expires: Some(Duration::from_secs(60)),
        ..TokenRequest::default()
    }
}

fn check(config: &Config, token: &str) -> Verdict {
    check_token(config, token, &TokenCheck::default(), now())
}

#[test]
fn a_token_that_is_made_is_valid() {
    let config = config(", audience: [a, b], issuer: i");
    let token = generate_token(&config, &request("ann", None), now()).unwrap();
    let verdict = check(&config, &format!(" {token}\n"));
    assert_eq!(
        verdict.text,
        "valid: connects the user \"ann\"\nexpires: 2027-01-15T08:01:00Z, in 1m\n\
         claims: {\"aud\":\"a\",\"exp\":1800000060,\"iat\":1800000000,\"iss\":\"i\",\"sub\":\"ann\"}"
    );
    assert!(verdict.is_valid);
    let with_more = TokenRequest {
        info: Some("{\"name\": \"Ann\"}".to_owned()),
        claims: Some("{\"channels\": [\"chat:a\", \"other:b\"], \"aud\": \"b\"}".to_owned()),
        expires: None,
        ..request("", None)
    };
    let token = generate_token(&config, &with_more, now()).unwrap();
    let verdict = check(&config, &token);
    for line in [
        "valid: connects an anonymous client",
        "expires: never, so the connection is not refreshed",
        "subscribes to: \"chat:a\"",
        "does not subscribe to: \"other:b\", no namespace of channels.namespaces has it",
    ] {
        assert!(
            verdict.text.lines().any(|other| other == line),
            "{line}\n{}",
            verdict.text
        );
    }
    let subscription = generate_token(&config, &request("ann", Some("chat:a")), now()).unwrap();
    let verdict = check(&config, &subscription);
    assert!(verdict.is_valid);
    assert!(
        verdict
            .text
            .starts_with("valid: subscribes the user \"ann\" to \"chat:a\"\n"),
        "{}",
        verdict.text
    );
}

/// The rule that refuses is named, and what would be right.
#[test]
fn a_token_that_the_node_refuses_is_refused_with_the_rule() {
    let made_by = config("");
    let token = |request: &TokenRequest| generate_token(&made_by, request, now()).unwrap();
    let claims = |text: &str| TokenRequest {
        claims: Some(text.to_owned()),
        ..request("ann", None)
    };
    let chat = token(&request("ann", Some("chat:a")));
    let connect = token(&request("ann", None));
    let expired = token(&TokenRequest {
        expires: Some(Duration::ZERO),
        ..request("ann", None)
    });
    let as_other = |channel: Option<&str>, user: Option<&str>, client: Option<&str>| TokenCheck {
        channel: channel.map(str::to_owned),
        user: user.map(str::to_owned),
        client: client.map(str::to_owned),
    };
    let plain = TokenCheck::default();
    let for_client = token(&TokenRequest {
        client: Some("c1".to_owned()),
        ..request("ann", Some("chat:a"))
    });
    let other_key = connect.replace('.', "x.");
    let unknown = token(&request("ann", Some("nowhere:a")));
    let closed = token(&request("ann", Some("closed:a")));
    for (auth, token, check, refused, expected) in [
        (
            "",
            &expired,
            &plain,
            "the token has expired",
            "`exp` in the future, found 2027-01-15T08:00:00Z, 0s ago (auth.leeway is 0s)",
        ),
        (
            "",
            &token(&claims("{\"nbf\": 1800000100}")),
            &plain,
            "not valid yet",
            "`nbf` in the past, found 2027-01-15T08:01:40Z, in 1m 40s",
        ),
        (
            ", audience: [a]",
            &connect,
            &plain,
            "`aud` does not match",
            "`aud` with one of [\"a\"], found none",
        ),
        (
            ", issuer: i",
            &token(&claims("{\"iss\": \"j\"}")),
            &plain,
            "`iss` does not match",
            "`iss` \"i\", found \"j\"",
        ),
        (
            "",
            &chat,
            &as_other(Some("chat:b"), None, None),
            "`channel` is not",
            "`channel` \"chat:b\", found \"chat:a\"",
        ),
        (
            "",
            &connect,
            &as_other(Some("chat:b"), None, None),
            "`channel` is not",
            "`channel` \"chat:b\", found none",
        ),
        (
            "",
            &chat,
            &as_other(None, Some("bob"), None),
            "`sub` is not",
            "`sub` \"bob\", found \"ann\"",
        ),
        (
            "",
            &for_client,
            &as_other(None, None, Some("c2")),
            "`client` is not",
            "`client` \"c2\" or none, found \"c1\"",
        ),
        (
            "",
            &unknown,
            &plain,
            "no namespace",
            "the name of a namespace",
        ),
        (
            "",
            &closed,
            &plain,
            "nobody may subscribe",
            "`subscribe` of the namespace \"closed\"",
        ),
        (
            "",
            &token(&claims("{\"channels\": 7}")),
            &plain,
            "the claim `channels` is not a list",
            "claims as in",
        ),
        ("", &other_key, &plain, "three parts", "a JSON Web Token"),
        (
            "",
            &"nonsense".to_owned(),
            &plain,
            "three parts",
            "a JSON Web Token",
        ),
    ] {
        let config = config(&format!(", leeway: 0s{auth}"));
        let verdict = check_token(&config, token, check, now());
        let lines: Vec<&str> = verdict.text.lines().collect();
        assert!(!verdict.is_valid, "{refused}");
        assert!(
            lines[0].starts_with("refused: ") && lines[0].contains(refused),
            "{refused}: {}",
            verdict.text
        );
        assert!(
            lines[1].starts_with("expected: ") && lines[1].contains(expected),
            "{expected}: {}",
            verdict.text
        );
        assert!(!verdict.text.contains(SECRET));
    }
}

#[test]
fn a_token_of_another_key_is_refused_and_not_shown() {
    let other = format!(
        "auth: {{ keys: [{{ algorithm: HS256, key: {} }}] }}",
        "z".repeat(32)
    );
    let other = Config::parse("other", &other).unwrap();
    let token = generate_token(&other, &request("ann", None), now()).unwrap();
    let verdict = check(&config(""), &token);
    assert_eq!(
        verdict.text,
        "refused: the signature does not match\nexpected: a signature by one of the keys: HS256 with the id \"k\""
    );
    let none = Config::parse("none", "").unwrap();
    let verdict = check(&none, &token);
    assert_eq!(
        verdict.text,
        "refused: there is no HS256 key\nexpected: a signature by one of the keys: there is none: auth.keys and auth.key_set are empty"
    );
}

#[test]
fn a_claim_cannot_control_a_terminal() {
    let config = config("");
    let request = TokenRequest {
        claims: Some("{\"meta\": \"\u{9b}31m\"}".to_owned()),
        ..request("a\u{1b}b", None)
    };
    let token = generate_token(&config, &request, now()).unwrap();
    let text = check(&config, &token).text;
    assert!(
        text.chars().all(|c| c == '\n' || !c.is_control()),
        "{text:?}"
    );
}

#[test]
fn a_request_that_is_wrong_says_what_would_be_right() {
    let config = config("");
    let none = Config::parse("none", "").unwrap();
    let wrong = |change: &dyn Fn(&mut TokenRequest)| {
        let mut request = request("ann", None);
        change(&mut request);
        generate_token(&config, &request, now())
            .unwrap_err()
            .to_string()
    };
    for (error, expected) in [
        (
            wrong(&|it| it.info = Some("{".to_owned())),
            "--info: expected JSON",
        ),
        (
            wrong(&|it| it.claims = Some("[]".to_owned())),
            "--claims: expected an object",
        ),
        (
            wrong(&|it| it.client = Some("c".to_owned())),
            "--client: expected --channel",
        ),
        (
            wrong(&|it| it.algorithm = Some("none".to_owned())),
            "--algorithm: expected HS256",
        ),
        (
            wrong(&|it| it.key_id = Some("other".to_owned())),
            "no key of the configuration fits: HS256 with the id \"k\"",
        ),
        (
            wrong(&|it| it.key = Some("/no/such/file".into())),
            "--key: cannot read the secret",
        ),
        (
            generate_token(&none, &request("ann", None), now())
                .unwrap_err()
                .to_string(),
            "no key of the configuration fits: there is none",
        ),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}
