use expect_test::{Expect, expect};
use serde::Deserialize;

use super::*;
use crate::{AddressRange, ByteSize, Secret, Span};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only the errors are looked at")]
struct Raw {
    #[serde(default)]
    pools: Vec<Pool>,
    hold: Option<Span>,
    size: Option<ByteSize>,
    trusted: Option<Vec<AddressRange>>,
    key: Option<Secret>,
    kind: Option<Kind>,
    is_on: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Fast,
    Slow,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pool {
    name: String,
    #[serde(default)]
    weight: u32,
}

fn check(text: &str, expected: Expect) {
    let errors = parse::<Raw>("f.yaml", text).unwrap_err();
    expected.assert_eq(&errors.to_string());
}

#[test]
fn a_text_with_nothing_but_comments_is_an_empty_mapping() {
    assert!(parse::<Raw>("f.yaml", "# nothing\n\n---\n").is_ok());
    assert!(parse::<Raw>("f.yaml", "").is_ok());
}

#[test]
fn an_unknown_key_is_named_where_it_stands() {
    check(
        "pools:\n  - name: a\n    wieght: 1\n",
        expect![[
            r#"f.yaml:3:5: pools[0].wieght: unknown setting "wieght", did you mean "weight"?"#
        ]],
    );
}

#[test]
fn a_wrong_type_is_named_where_it_stands() {
    check(
        "pools:\n  - name: a\n    weight: much\n",
        expect![
            r#"f.yaml:3:5: pools[0].weight: expected a whole number from 0 to 4294967295, found "much""#
        ],
    );
    check(
        "pools: 3\n",
        expect!["f.yaml:1:1: pools: expected a list, found a single value"],
    );
}

#[test]
fn a_missing_key_is_reported_at_the_item_that_lacks_it() {
    check(
        "pools:\n  - name: a\n  - weight: 1\n",
        expect![[r#"f.yaml:3:5: pools[1]: "name" is missing"#]],
    );
}

#[test]
fn a_key_given_twice_is_refused() {
    check(
        "hold: 1s\nhold: 2s\n",
        expect!["f.yaml:2:1: hold: the key stands on line 1 already"],
    );
}

#[test]
fn a_number_without_its_unit_says_which_units_there_are() {
    check(
        "hold: 10\n",
        expect![
            "f.yaml:1:1: hold: expected a duration with its unit, such as \"250ms\", \"10s\", \"5m\" or \"1h\", found 10"
        ],
    );
    check(
        "size: 64k\n",
        expect![
            "f.yaml:1:1: size: expected a size with its unit, such as \"512B\", \"64KiB\" or \"1MiB\", found \"64k\""
        ],
    );
}

#[test]
fn a_bad_address_range_is_named_by_its_index() {
    check(
        "trusted:\n  - 10.0.0.0/8\n  - 10.0.0.0/40\n",
        expect![
            "f.yaml:3:5: trusted[1]: expected an address or a range, such as \"10.0.0.0/8\", \"192.168.1.7\" or \"fd00::/8\", found \"10.0.0.0/40\""
        ],
    );
}

#[test]
fn a_text_that_is_not_yaml_names_the_place() {
    check("pools: [\n", expect!["f.yaml:1:8: unclosed bracket '['"]);
}

#[test]
fn a_secret_that_cannot_be_had_names_where_it_was_looked_for() {
    check(
        "key: { env: CAUSEWAY_NO_SUCH_VARIABLE }\n",
        expect!["f.yaml:1:1: key: the environment has no variable `CAUSEWAY_NO_SUCH_VARIABLE`"],
    );
    check(
        "key: { file: /no/such/file }\n",
        expect![
            "f.yaml:1:1: key: cannot read the secret from `/no/such/file`: No such file or directory (os error 2)"
        ],
    );
    check(
        "key: { path: x }\n",
        expect![[r#"f.yaml:1:1: key: unknown setting "path", expected "env" or "file""#]],
    );
}

#[test]
fn deep_nesting_and_repeated_aliases_are_refused_and_not_followed() {
    let deep = "[".repeat(10_000);
    assert!(parse::<Raw>("f.yaml", &deep).is_err());
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for level in 1..12 {
        let items = vec![format!("*a{}", level - 1); 9].join(",");
        bomb.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    assert!(parse::<Raw>("f.yaml", &bomb).is_err());
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = load_with::<Raw>(
        Some(Path::new("/no/such/file.yaml")),
        &Environment::default(),
        &[],
    )
    .unwrap_err();
    expect!["/no/such/file.yaml: cannot read the file: No such file or directory (os error 2)"]
        .assert_eq(&error.to_string());
}

/// A text of each kind at the wrong place, and what is said of it.
#[test]
fn each_wrong_kind_of_value_is_said_in_the_words_of_yaml() {
    for (text, expected) in [
        (
            "[]",
            "1:1: : expected a mapping with settings such as \"pools\", \"hold\", \"size\", found a list",
        ),
        (
            "text",
            "1:1: : expected a mapping with settings such as \"pools\", \"hold\", \"size\", found a single value",
        ),
        (
            "pools: [a]",
            "1:9: pools[0]: expected a mapping with \"name\", found a single value",
        ),
        (
            "pools: [[]]",
            "1:9: pools[0]: expected a mapping with \"name\", found a list",
        ),
        (
            "pools: [null]",
            "1:9: pools[0]: expected a mapping with \"name\", found nothing",
        ),
        (
            "pools: { name: a }",
            "1:1: pools: expected a list, found a mapping",
        ),
        (
            "pools: [{ name: [] }]",
            "1:11: pools[0].name: expected a text, found a list",
        ),
        (
            "pools: [{ name: null }]",
            "1:11: pools[0].name: expected a text, found nothing",
        ),
        (
            "pools: [{ name: a, weight: -1 }]",
            "1:20: pools[0].weight: expected a whole number from 0 to 4294967295, found -1",
        ),
        (
            "pools: [{ name: a, weight: {} }]",
            "1:20: pools[0].weight: expected a whole number from 0 to 4294967295, found a mapping",
        ),
        (
            "trusted: 10.0.0.0/8",
            "1:1: trusted: expected a list, found a single value",
        ),
        (
            "kind: fats",
            "1:1: kind: unknown value \"fats\", did you mean \"fast\"?",
        ),
        (
            "kind: [fast]",
            "1:1: kind: expected \"fast\" or \"slow\", found a list",
        ),
        (
            "kind: maybe",
            "1:1: kind: unknown value \"maybe\", expected \"fast\" or \"slow\"",
        ),
        (
            "is_on: yes",
            "1:1: is_on: expected true or false, found \"yes\"",
        ),
        (
            "key: []",
            "1:1: key: expected a secret: {env: NAME}, {file: PATH} or a text, found a list",
        ),
        (
            "{ [a]: b }",
            "1:3: expected a text as key, found a list or a mapping",
        ),
        (
            "hold: 1s\n---\nhold: 2s\n",
            "2:1: expected one YAML document, found another one",
        ),
    ] {
        let errors = parse::<Raw>("f.yaml", text).unwrap_err().to_string();
        let expected = expected.replace(": : ", ": ");
        assert_eq!(errors, format!("f.yaml:{expected}"), "{text}");
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    check(
        "hodl: 1s\nsize: big\npools:\n  - weight: much\n  - name: b\n    wieght: 1\n  - nmae: c\n",
        expect![[r#"
            f.yaml:1:1: hodl: unknown setting "hodl", did you mean "hold"?
            f.yaml:2:1: size: expected a size with its unit, such as "512B", "64KiB" or "1MiB", found "big"
            f.yaml:4:5: pools[0].weight: expected a whole number from 0 to 4294967295, found "much"
            f.yaml:4:5: pools[0]: "name" is missing
            f.yaml:6:5: pools[1].wieght: unknown setting "wieght", did you mean "weight"?
            f.yaml:7:5: pools[2].nmae: unknown setting "nmae", did you mean "name"?
            f.yaml:7:5: pools[2]: "name" is missing"#]],
    );
}

#[test]
fn a_secret_at_the_wrong_place_is_not_repeated() {
    for text in [
        "pools: hunter2",
        "pools: [hunter2]",
        "trusted: hunter2",
        "hunter2",
        "key: { env: [hunter2] }",
    ] {
        let errors = parse::<Raw>("f.yaml", text).unwrap_err().to_string();
        assert!(!errors.contains("hunter2"), "{errors}");
    }
    let digits = parse::<Raw>("f.yaml", "key: 123456\n").unwrap();
    assert_eq!(digits.value.key.unwrap().expose(), "123456");
}

#[test]
fn aliases_and_merge_keys_are_what_they_stand_for() {
    let text = "x: &x { name: a, weight: 7 }\npools:\n  - *x\n  - <<: *x\n    name: b\n";
    let errors = parse::<Raw>("f.yaml", text).unwrap_err().to_string();
    assert_eq!(
        errors,
        "f.yaml:1:1: x: unknown setting \"x\", expected one of \"pools\", \"hold\", \"size\", \"trusted\", \"key\", \"kind\", \"is_on\""
    );
    let pools = parse::<Raw>(
        "f.yaml",
        "pools:\n  - &x { name: a, weight: 7 }\n  - <<: *x\n    name: b\n",
    );
    let pools = pools.unwrap().value.pools;
    let pools: Vec<(&str, u32)> = pools
        .iter()
        .map(|pool| (&*pool.name, pool.weight))
        .collect();
    assert_eq!(pools, [("a", 7), ("b", 7)]);
    let itself = parse::<Raw>("f.yaml", "pools: &x [*x]\n")
        .unwrap_err()
        .to_string();
    assert!(itself.contains("contains it"), "{itself}");
}

#[test]
fn an_empty_section_is_as_if_it_were_left_out() {
    assert!(parse::<Raw>("f.yaml", "pools:\nhold:\ntrusted: null\n").is_ok());
}
