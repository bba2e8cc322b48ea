//! The words of errors: a value of each wrong kind, and what is said of it.

use super::*;

#[test]
fn each_wrong_value_says_what_would_be_right() {
    for (text, expected) in [
        (
            "[]",
            "node.yaml:1:1: expected a mapping with settings such as \"node\", \"listen\", \"admin\", found a list",
        ),
        (
            "listen: [a]",
            "node.yaml:1:1: listen: expected a text, found a list",
        ),
        (
            "listen:\n  address: a",
            "node.yaml:1:1: listen: expected a text, found a mapping",
        ),
        (
            "admin: 127.0.0.1:1",
            "node.yaml:1:1: admin: expected settings such as {address: \"127.0.0.1:10000\"}, or \"none\", found \"127.0.0.1:1\"",
        ),
        (
            "admin: { port: 1 }",
            "node.yaml:1:10: admin.port: unknown setting \"port\", expected \"address\"",
        ),
        (
            "admin: []",
            "node.yaml:1:1: admin: expected settings such as {address: \"127.0.0.1:10000\"}, or \"none\", found a list",
        ),
        (
            "node: n1",
            "node.yaml:1:1: node: expected a mapping with settings such as \"id\", \"advertise\", \"zone\", found a single value",
        ),
        (
            "broker: redis",
            "node.yaml:1:1: broker: expected a mapping with settings such as \"kind\", \"url\", \"urls\", found a single value",
        ),
        (
            "broker: { kind: kafka }",
            "node.yaml:1:11: broker.kind: unknown value \"kafka\", expected \"memory\" or \"redis\"",
        ),
        (
            "auth: { keys: { id: a } }",
            "node.yaml:1:9: auth.keys: expected a list, found a mapping",
        ),
        (
            "auth: { keys: [hunter2] }",
            "node.yaml:1:16: auth.keys[0]: expected a mapping with \"algorithm\", found a single value",
        ),
        (
            "auth: { keys: [{ algorithm: HS256 }] }",
            "node.yaml:1:16: auth.keys[0]: \"key\" is missing",
        ),
        (
            "auth: { keys: [{ algorithm: HS265, key: hunter2 }] }",
            "node.yaml:1:18: auth.keys[0].algorithm: unknown value \"HS265\", did you mean \"HS256\"?",
        ),
        (
            "hooks: { connect: 7 }",
            "node.yaml:1:10: hooks.connect: expected an address, or {address: ..., timeout: ..., open: ...}, found 7",
        ),
        (
            "hooks: { connect: { adress: a } }",
            "node.yaml:1:10: hooks.connect: \"address\" is missing\nnode.yaml:1:21: hooks.connect.adress: unknown setting \"adress\", did you mean \"address\"?",
        ),
        (
            "hooks: { connect: { timeout: 1s } }",
            "node.yaml:1:10: hooks.connect: \"address\" is missing",
        ),
        (
            "hooks: { headers: [a] }",
            "node.yaml:1:10: hooks.headers: expected a mapping of names to values, found a list",
        ),
        (
            "api: { keys: hunter2 }",
            "node.yaml:1:8: api.keys: expected a list, found a single value",
        ),
        (
            "endpoints: /a",
            "node.yaml:1:1: endpoints: expected a list, found a single value",
        ),
        (
            "endpoints: [/a]",
            "node.yaml:1:13: endpoints[0]: expected a mapping with settings such as \"path\", \"protocol\", \"mode\", found a single value",
        ),
        (
            "endpoints: [{ path: /a, protocol: sockjs, allowed_origins: 7 }]",
            "node.yaml:1:43: endpoints[0].allowed_origins: expected `same`, [\"*\"] or a list of origins, found 7",
        ),
        (
            "endpoints: [{ path: /a, protocol: sockjs, allowed_origins: [[]] }]",
            "node.yaml:1:61: endpoints[0].allowed_origins[0]: expected a text, found a list",
        ),
        (
            "channels: { namespaces: [{ name: a, history: 7 }] }",
            "node.yaml:1:37: channels.namespaces[0].history: expected a mapping with \"size\", found a single value",
        ),
        (
            "channels: { namespaces: [{ name: a, history: { size: 7 } }] }",
            "node.yaml:1:37: channels.namespaces[0].history: \"lifetime\" is missing",
        ),
        (
            "page: yes",
            "node.yaml:1:1: page: expected true or false, found \"yes\"",
        ),
        (
            "threads: two",
            "node.yaml:1:1: threads: expected a whole number, 0 or more, found \"two\"",
        ),
        (
            "threads: 1.5",
            "node.yaml:1:1: threads: expected a whole number, 0 or more, found 1.5",
        ),
        (
            "fanout: { factor: much }",
            "node.yaml:1:11: fanout.factor: expected a number, found \"much\"",
        ),
        (
            "limits: { body_size: 1000 }",
            "node.yaml:1:11: limits.body_size: expected a size with its unit, such as \"512B\", \"64KiB\" or \"1MiB\", found 1000",
        ),
        (
            "limits: { body_timout: 1s }",
            "node.yaml:1:11: limits.body_timout: unknown setting \"body_timout\", did you mean \"body_timeout\"?",
        ),
        (
            "log: { format: xml }",
            "node.yaml:1:8: log.format: unknown value \"xml\", expected \"json\" or \"text\"",
        ),
        (
            "trusted_proxies: 10.0.0.1",
            "node.yaml:1:1: trusted_proxies: expected a list, found a single value",
        ),
    ] {
        let errors = Config::parse("node.yaml", text).unwrap_err().to_string();
        assert_eq!(errors, expected, "{text}");
        assert!(
            !errors.contains("hunter2") && !errors.contains("struct "),
            "{errors}"
        );
    }
}
