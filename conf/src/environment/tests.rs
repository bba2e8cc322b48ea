use std::collections::BTreeMap;

use expect_test::Expect;
use expect_test::expect;
use serde::Deserialize;

use super::*;
use crate::ConfErrors;
use crate::Secret;
use crate::document;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Raw {
    listen: Option<String>,
    threads: Option<u64>,
    page: Option<bool>,
    broker: Option<Broker>,
    endpoints: Vec<Endpoint>,
    trusted: Vec<String>,
    headers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Broker {
    kind: Option<String>,
    url: Option<Secret>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Endpoint {
    path: String,
    #[serde(default)]
    mode: String,
}

const FILE: &str = "
listen: a
trusted: [x, y]
endpoints:
  - path: /a
  - { path: /b, mode: echo }
";

fn environment(variables: &[(&str, &str)]) -> Environment {
    let variables = variables
        .iter()
        .map(|(name, value)| (name.into(), value.into()));
    Environment::new("APP", variables)
}

fn read(text: &str, variables: &[(&str, &str)]) -> Result<Raw, ConfErrors> {
    let document = document::parse_with("f.yaml", text, &environment(variables), &[])?;
    Ok(document.value)
}

fn refused(text: &str, variables: &[(&str, &str)], expected: Expect) {
    let errors = read(text, variables).unwrap_err();
    expected.assert_eq(&errors.to_string());
}

#[test]
fn a_variable_takes_the_place_of_what_the_file_says() {
    let raw = read(
        FILE,
        &[
            ("APP__LISTEN", "0.0.0.0:80"),
            ("APP__THREADS", "4"),
            ("APP__PAGE", "false"),
            ("APP__BROKER__KIND", "redis"),
            ("APP__BROKER__URL", "redis://:p#a ss@{h}: 1"),
            ("APP__ENDPOINTS__1__PATH", "/c"),
            ("APP__ENDPOINTS__2__PATH", "/d"),
            ("APP__TRUSTED", "[z, \"w\"]"),
            ("APP_LISTEN", "one underscore is somebody else's"),
            ("OTHER__LISTEN", "and so is another program"),
        ],
    )
    .unwrap();
    assert_eq!(raw.listen.as_deref(), Some("0.0.0.0:80"));
    assert_eq!((raw.threads, raw.page), (Some(4), Some(false)));
    let broker = raw.broker.unwrap();
    assert_eq!(broker.kind.as_deref(), Some("redis"));
    assert_eq!(broker.url.unwrap().expose(), "redis://:p#a ss@{h}: 1");
    let endpoints: Vec<(&str, &str)> = raw
        .endpoints
        .iter()
        .map(|it| (&*it.path, &*it.mode))
        .collect();
    assert_eq!(endpoints, [("/a", ""), ("/c", "echo"), ("/d", "")]);
    assert_eq!(raw.trusted, ["z", "w"]);
}

#[test]
fn values_are_read_as_yaml_reads_them() {
    let listen = |value: &str| {
        let raw = read("", &[("APP__LISTEN", value)]).unwrap();
        raw.listen
    };
    for (value, expected) in [
        ("a b", Some("a b")),
        (" a ", Some("a")),
        ("\"a\\n\"", Some("a\n")),
        ("'it''s'", Some("it's")),
        ("a: b # c", Some("a: b # c")),
        ("*a", Some("*a")),
        ("!a", Some("!a")),
        ("- a", Some("- a")),
        ("---", Some("---")),
        ("-----BEGIN\nx\n-----END", Some("-----BEGIN\nx\n-----END")),
        ("123", Some("123")),
        ("null", None),
        ("~", None),
        ("", None),
    ] {
        assert_eq!(listen(value).as_deref(), expected, "{value}");
    }
    let raw = read("", &[("APP__HEADERS", "{X-A: b, c: '1'}")]).unwrap();
    assert_eq!(raw.headers["X-A"], "b");
    let raw = read(
        "",
        &[("APP__BROKER", "{kind: a}"), ("APP__BROKER__URL", "b")],
    )
    .unwrap();
    let broker = raw.broker.unwrap();
    assert_eq!(
        (broker.kind.as_deref(), broker.url.unwrap().expose()),
        (Some("a"), "b")
    );
    let items: Vec<(String, String)> = (0..12)
        .map(|index| (format!("APP__TRUSTED__{index}"), index.to_string()))
        .collect();
    let items: Vec<(&str, &str)> = items
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    assert_eq!(read("", &items).unwrap().trusted.len(), 12);
}

#[test]
fn an_unknown_variable_is_named_with_the_nearest_one() {
    refused(
        FILE,
        &[
            ("APP__LISTN", "a"),
            ("APP__BROKR__URL", "a"),
            ("APP__BROKER__ULR", "a"),
            ("APP__ENDPOINTS__0__PTAH", "a"),
            ("APP__NONSENSE", "a"),
            ("APP__TRUSTED__0__X", "a"),
        ],
        expect![[r#"
            environment variable APP__TRUSTED__0__X: trusted[0]: f.yaml:3 gives it a single value, which has no settings inside: set APP__TRUSTED__0 instead"#]],
    );
    refused(
        FILE,
        &[
            ("APP__LISTN", "a"),
            ("APP__BROKR__URL", "a"),
            ("APP__BROKER__ULR", "a"),
            ("APP__ENDPOINTS__0__PTAH", "a"),
            ("APP__NONSENSE", "a"),
        ],
        expect![[r#"
            environment variable APP__BROKER__ULR: broker.ulr: unknown setting "ulr", did you mean APP__BROKER__URL?
            environment variable APP__BROKR__URL: brokr: unknown setting "brokr", did you mean APP__BROKER__URL?
            environment variable APP__ENDPOINTS__0__PTAH: endpoints[0].ptah: unknown setting "ptah", did you mean APP__ENDPOINTS__0__PATH?
            environment variable APP__LISTN: listn: unknown setting "listn", did you mean APP__LISTEN?
            environment variable APP__NONSENSE: nonsense: unknown setting "nonsense", expected one of "listen", "threads", "page", "broker", "endpoints", "trusted", "headers""#]],
    );
}

#[test]
fn a_wrong_value_is_named_with_its_variable() {
    refused(
        FILE,
        &[
            ("APP__THREADS", "many"),
            ("APP__PAGE", "yes"),
            ("APP__BROKER", "redis://:hunter2@a"),
            ("APP__ENDPOINTS", "[{path: /a}, {mode: echo}]"),
        ],
        expect![[r#"
            environment variable APP__BROKER: broker: expected a mapping with "kind" or "url", found a single value
            environment variable APP__ENDPOINTS: endpoints[1]: "path" is missing
            environment variable APP__PAGE: page: expected true or false, found "yes"
            environment variable APP__THREADS: threads: expected a whole number, 0 or more, found "many""#]],
    );
    refused(
        FILE,
        &[
            ("APP__", "a"),
            ("APP__A____B", "a"),
            ("APP__TRUSTED", "[hunter2"),
            ("APP__ENDPOINTS__3__PATH", "a"),
            ("APP__ENDPOINTS__FIRST", "a"),
            ("APP__LISTEN__PORT", "a"),
            ("APP__LISTEN", "a"),
            ("APP__listen", "b"),
        ],
        expect![[r#"
            environment variable APP__: expected names of settings with two underscores between them, such as BROKER__URL behind the prefix
            environment variable APP__A____B: expected names of settings with two underscores between them, such as BROKER__URL behind the prefix
            environment variable APP__listen: listen: the variable APP__LISTEN sets the same
            environment variable APP__ENDPOINTS__3__PATH: endpoints: the list has 2 items: expected an index from 0 to 1, or 2 for a new one, found 3
            environment variable APP__ENDPOINTS__FIRST: endpoints: it is a list: expected the index of an item, such as APP__ENDPOINTS__0
            environment variable APP__LISTEN__PORT: listen: APP__listen gives it a single value, which has no settings inside: set APP__LISTEN instead
            environment variable APP__TRUSTED: trusted: expected a list, a mapping or a text in quotes, as the value begins like one: unclosed bracket '['"#]],
    );
}

#[test]
fn nothing_of_a_value_is_in_an_error_about_its_form() {
    for value in [
        "[hunter2",
        "{hunter2",
        "\"hunter2",
        "'hunter2",
        "[a] hunter2",
        "{a: 1, a: hunter2}",
    ] {
        let errors = read("", &[("APP__TRUSTED", value)])
            .unwrap_err()
            .to_string();
        assert!(!errors.contains("hunter2"), "{errors}");
    }
}
