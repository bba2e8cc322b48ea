use expect_test::{Expect, expect};
use serde::Deserialize;

use super::*;
use crate::{ConfErrors, Document, Environment, document};

#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct Raw {
    broker: Broker,
    pools: Vec<Pool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Broker {
    queues: Option<u64>,
    tls: Option<Tls>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    ca: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pool {
    pick: String,
}

const RENAMED: RenamedSettings = &[
    RenamedSetting {
        old: "broker.lanes",
        new: "queues",
    },
    RenamedSetting {
        old: "broker.cipher",
        new: "tls",
    },
    RenamedSetting {
        old: "pools[].policy",
        new: "pick",
    },
];

fn read(text: &str, variables: &[(&str, &str)]) -> Result<Document<Raw>, ConfErrors> {
    let variables = variables
        .iter()
        .map(|(name, value)| (name.into(), value.into()));
    let environment = Environment::new("APP", variables);
    document::parse_with("f.yaml", text, &environment, RENAMED)
}

/// The settings that were read, and the warnings.
fn warned(text: &str, variables: &[(&str, &str)], expected: Expect) -> Raw {
    let document = read(text, variables).unwrap_or_else(|errors| panic!("{errors}"));
    let warnings = document.positions.renamed().iter();
    let warnings: Vec<String> = warnings.map(ToString::to_string).collect();
    expected.assert_eq(&warnings.join("\n"));
    document.value
}

fn refused(text: &str, variables: &[(&str, &str)], expected: Expect) {
    let errors = read(text, variables).unwrap_err();
    expected.assert_eq(&errors.to_string());
}

#[test]
fn an_old_name_in_the_file_is_read_and_warned_of() {
    let raw = warned(
        "broker:\n  lanes: 3\n  cipher: { ca: /x }\npools:\n  - policy: a\n  - pick: b\n  - { policy: c }\n",
        &[],
        expect![[r#"
            f.yaml:2:3: broker.lanes: the setting is called "queues" now; the next version does not know the old name
            f.yaml:3:3: broker.cipher: the setting is called "tls" now; the next version does not know the old name
            f.yaml:5:5: pools[0].policy: the setting is called "pick" now; the next version does not know the old name
            f.yaml:7:7: pools[2].policy: the setting is called "pick" now; the next version does not know the old name"#]],
    );
    assert_eq!(raw.broker.queues, Some(3));
    assert_eq!(raw.broker.tls.unwrap().ca, "/x");
    let picks: Vec<&str> = raw.pools.iter().map(|pool| &*pool.pick).collect();
    assert_eq!(picks, ["a", "b", "c"]);
}

#[test]
fn new_names_and_the_same_names_elsewhere_are_not_warned_of() {
    warned(
        "broker: { queues: 1, tls: { ca: lanes } }\npools: [ { pick: policy } ]\n",
        &[("APP__BROKER__QUEUES", "2")],
        expect![""],
    );
    refused(
        "lanes: 1\n",
        &[],
        expect![[r#"f.yaml:1:1: lanes: unknown setting "lanes", expected "broker" or "pools""#]],
    );
}

#[test]
fn an_old_name_in_a_variable_is_read_and_warned_of() {
    let raw = warned(
        "pools: [ { pick: a } ]\n",
        &[
            ("APP__BROKER__LANES", "3"),
            ("APP__BROKER__CIPHER__CA", "/x"),
            ("APP__POOLS__0__POLICY", "b"),
            ("APP__POOLS__1", "{policy: c}"),
        ],
        expect![[r#"
            environment variable APP__BROKER__LANES: broker.lanes: the variable is called APP__BROKER__QUEUES now; the next version does not know the old name
            environment variable APP__BROKER__CIPHER__CA: broker.cipher: the variable is called APP__BROKER__TLS__CA now; the next version does not know the old name
            environment variable APP__POOLS__0__POLICY: pools[0].policy: the variable is called APP__POOLS__0__PICK now; the next version does not know the old name
            environment variable APP__POOLS__1: pools[1].policy: the setting is called "pick" now; the next version does not know the old name"#]],
    );
    assert_eq!(raw.broker.queues, Some(3));
    assert_eq!(raw.broker.tls.unwrap().ca, "/x");
    let picks: Vec<&str> = raw.pools.iter().map(|pool| &*pool.pick).collect();
    assert_eq!(picks, ["b", "c"]);
}

#[test]
fn a_variable_replaces_the_value_of_the_file_whichever_name_each_has() {
    for (key, variable) in [
        ("lanes", "APP__BROKER__QUEUES"),
        ("queues", "APP__BROKER__LANES"),
        ("lanes", "APP__BROKER__LANES"),
    ] {
        let document = read(&format!("broker: {{ {key}: 1 }}"), &[(variable, "2")]).unwrap();
        assert_eq!(document.value.broker.queues, Some(2), "{key} {variable}");
    }
}

#[test]
fn both_names_at_once_are_an_error() {
    refused(
        "broker:\n  lanes: 3\n  queues: 3\npools:\n  - policy: a\n    pick: a\n  - what: a\n",
        &[],
        expect![[r#"
            f.yaml:2:3: broker.lanes: the setting is called "queues" now, and f.yaml:3 gives that too
            f.yaml:5:5: pools[0].policy: the setting is called "pick" now, and f.yaml:6 gives that too
            f.yaml:7:5: pools[1].what: unknown setting "what", expected "pick"
            f.yaml:7:5: pools[1]: "pick" is missing"#]],
    );
    refused(
        "",
        &[("APP__BROKER__LANES", "3"), ("APP__BROKER__QUEUES", "3")],
        expect![
            "environment variable APP__BROKER__QUEUES: broker.queues: the variable APP__BROKER__LANES sets the same"
        ],
    );
    refused(
        "",
        &[("APP__BROKER", "{lanes: 3, queues: 3}")],
        expect![[
            r#"environment variable APP__BROKER: broker.lanes: the setting is called "queues" now, and APP__BROKER gives that too"#
        ]],
    );
}

#[test]
fn a_wrong_value_is_reported_under_the_new_name_and_says_that_it_has_the_old_one() {
    refused(
        "broker:\n  lanes: many\n  cipher: { cb: 1 }\n",
        &[],
        expect![[r#"
            f.yaml:2:3: broker.queues: expected a whole number, 0 or more, found "many" (given as "lanes", its old name)
            f.yaml:3:3: broker.tls: "ca" is missing (given as "cipher", its old name)
            f.yaml:3:13: broker.tls.cb: unknown setting "cb", did you mean "ca"?"#]],
    );
    refused(
        "",
        &[("APP__BROKER__LANES", "many")],
        expect![[
            r#"environment variable APP__BROKER__LANES: broker.queues: expected a whole number, 0 or more, found "many""#
        ]],
    );
}

#[test]
fn a_list_or_value_where_a_mapping_is_expected_has_no_old_names() {
    refused(
        "broker: [ lanes ]\npools: { policy: a }\n",
        &[],
        expect![[r#"
            f.yaml:1:1: broker: expected a mapping with "queues" or "tls", found a list
            f.yaml:2:1: pools: expected a list, found a mapping"#]],
    );
    refused(
        "broker: lanes\npools: policy\n",
        &[],
        expect![[r#"
        f.yaml:1:1: broker: expected a mapping with "queues" or "tls", found a single value
        f.yaml:2:1: pools: expected a list, found a single value"#]],
    );
}
