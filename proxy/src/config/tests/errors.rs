//! The words of errors: a value of each wrong kind, and what is said of it.

use super::*;

#[test]
fn each_wrong_value_says_what_would_be_right() {
    for (text, expected) in [
        (
            "[]",
            "1:1: expected a mapping with settings such as \"listeners\", \"admin\", \"websockets_over_http2\", found a list",
        ),
        (
            "listeners: { address: a }",
            "1:1: listeners: expected a list, found a mapping",
        ),
        (
            "listeners: [127.0.0.1:80]",
            "1:13: listeners[0]: expected a mapping with \"address\", found a single value",
        ),
        (
            "listeners: [{ tls: {} }]",
            "1:13: listeners[0]: \"address\" is missing",
        ),
        (
            "listeners: [{ address: a, tls: on }]",
            "1:27: listeners[0].tls: expected a mapping with settings such as \"certificates\", \"folder\", \"min_version\", found a single value",
        ),
        (
            "listeners: [{ address: a, tls: { certificates: [/a.crt] } }]",
            "1:49: listeners[0].tls.certificates[0]: expected a mapping with \"certificate\", found a single value",
        ),
        (
            "listeners: [{ address: a, tls: { min_version: 1.1 } }]",
            "1:34: listeners[0].tls.min_version: unknown value \"1.1\", did you mean \"1.2\"?",
        ),
        (
            "admin: off",
            "1:1: admin: expected settings such as {address: \"127.0.0.1:8081\"}, or \"none\", found \"off\"",
        ),
        (
            "pools: nodes",
            "1:1: pools: expected a list, found a single value",
        ),
        (
            "pools: [nodes]",
            "1:9: pools[0]: expected a mapping with \"name\", found a single value",
        ),
        (
            "pools: [{ name: a, backends: ['10.0.0.1:80'] }]",
            "1:31: pools[0].backends[0]: expected a mapping with \"id\", found a single value",
        ),
        (
            "pools: [{ name: a, backends: [{ id: a }] }]",
            "1:31: pools[0].backends[0]: \"address\" is missing",
        ),
        (
            "pools: [{ name: a, backends: [{ id: a, address: b, weight: heavy }] }]",
            "1:52: pools[0].backends[0].weight: expected a whole number, 0 or more, found \"heavy\"",
        ),
        (
            "pools: [{ name: a, pick: first }]",
            "1:20: pools[0].pick: unknown value \"first\", expected one of \"least\", \"random\", \"round_robin\"",
        ),
        (
            "pools: [{ name: a, discover: 'redis://:hunter2@a' }]",
            "1:20: pools[0].discover: expected a mapping with settings such as \"redis\", \"redis_urls\", \"sentinel\", found a single value",
        ),
        (
            "pools: [{ name: a, health: http }]",
            "1:20: pools[0].health: expected a mapping with settings such as \"kind\", \"method\", \"path\", found a single value",
        ),
        (
            "pools: [{ name: a, health: { expect: [[]] } }]",
            "1:39: pools[0].health.expect[0]: expected a status such as 200, or a range such as \"200-399\", found a list",
        ),
        (
            "routes: [/]",
            "1:10: routes[0]: expected a mapping with \"pool\", found a single value",
        ),
        (
            "routes: [{ pool: a, request_headers: { set: [a] } }]",
            "1:40: routes[0].request_headers.set: expected a mapping of names to values, found a list",
        ),
        (
            "affinity: { keys: hunter2 }",
            "1:13: affinity.keys: expected a list, found a single value",
        ),
        (
            "affinity: { same_site: loose }",
            "1:13: affinity.same_site: unknown value \"loose\", expected one of \"lax\", \"strict\", \"none\"",
        ),
        (
            "affinity: { accept_unsigned_until: soon }",
            "1:13: affinity.accept_unsigned_until: expected a date, such as \"2026-12-31\", or a time in UTC, such as \"2026-12-31T18:00:00Z\", found \"soon\"",
        ),
        (
            "timeouts: { request_body_rate: { per_second: 500 } }",
            "1:34: timeouts.request_body_rate.per_second: expected a size with its unit, such as \"512B\", \"64KiB\" or \"1MiB\", found 500",
        ),
        (
            "limits: { connection_rate_per_address: 7 }",
            "1:11: limits.connection_rate_per_address: expected a mapping with \"per_second\", found a single value",
        ),
        (
            "limits: { connection_per_address: 7 }",
            "1:11: limits.connection_per_address: unknown setting \"connection_per_address\", did you mean \"connections_per_address\"?",
        ),
        (
            "log: { level: loud }",
            "1:8: log.level: unknown value \"loud\", expected one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"",
        ),
        (
            "threads: many",
            "1:1: threads: expected a whole number, 0 or more, found \"many\"",
        ),
    ] {
        let errors = Config::parse("proxy.yaml", text).unwrap_err().to_string();
        assert_eq!(errors, format!("proxy.yaml:{expected}"), "{text}");
        assert!(
            !errors.contains("hunter2") && !errors.contains("struct "),
            "{errors}"
        );
    }
}
