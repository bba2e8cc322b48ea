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
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only the errors are looked at")]
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
        expect!["f.yaml:3:5: pools[0].wieght: unknown field `wieght`, expected `name` or `weight`"],
    );
}

#[test]
fn a_wrong_type_is_named_where_it_stands() {
    check(
        "pools:\n  - name: a\n    weight: much\n",
        expect![
            "f.yaml:3:5: pools[0].weight: invalid value, expected a whole number from 0 to 4294967295"
        ],
    );
    check("pools: 3\n", expect!["f.yaml:1:1: pools: expected a list"]);
}

#[test]
fn a_missing_key_is_reported_at_the_item_that_lacks_it() {
    check(
        "pools:\n  - name: a\n  - weight: 1\n",
        expect!["f.yaml:3:5: pools[1]: missing field `name`"],
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
            "f.yaml:1:1: hold: invalid type: integer `10`, expected a duration with its unit, such as \"250ms\", \"10s\", \"5m\" or \"1h\""
        ],
    );
    check(
        "size: 64k\n",
        expect![
            "f.yaml:1:1: size: invalid value: string \"64k\", expected a size with its unit, such as \"512B\", \"64KiB\" or \"1MiB\""
        ],
    );
}

#[test]
fn a_bad_address_range_is_named_by_its_index() {
    check(
        "trusted:\n  - 10.0.0.0/8\n  - 10.0.0.0/40\n",
        expect![
            "f.yaml:3:5: trusted[1]: invalid value: string \"10.0.0.0/40\", expected an address or a range, such as \"10.0.0.0/8\", \"192.168.1.7\" or \"fd00::/8\""
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
        expect!["f.yaml:1:1: key: unknown field `path`, expected `env` or `file`"],
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
    let error = load::<Raw>(Path::new("/no/such/file.yaml")).unwrap_err();
    expect!["/no/such/file.yaml: cannot read the file: No such file or directory (os error 2)"]
        .assert_eq(&error.to_string());
}
