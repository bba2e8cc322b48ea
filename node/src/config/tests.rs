use expect_test::Expect;
use expect_test::expect;

use super::*;

mod channels;
mod effective;
mod errors;

/// The file that documents every setting.
const COMMENTED: &str = include_str!("../../../conf/node.yaml");

fn refused(text: &str, expected: &Expect) {
    let errors = Config::parse("node.yaml", text).unwrap_err();
    expected.assert_eq(&errors.to_string());
}

fn redis(text: &str) -> Redis {
    match Config::parse("node.yaml", text).unwrap().broker {
        Broker::Redis(redis) => *redis,
        Broker::Memory => panic!("redis is expected"),
    }
}

#[test]
fn the_commented_file_says_what_applies_without_one() {
    let config = Config::parse("node.yaml", COMMENTED).unwrap();
    assert_eq!(config, Config::default_without_file());
    let empty = Config::parse("node.yaml", "# nothing\n").unwrap();
    assert_eq!(config, empty);
}

#[test]
fn the_commented_file_says_what_applies_to_redis_too() {
    let with_url = COMMENTED
        .replace("kind: memory", "kind: redis")
        .replace("\n  url: null", "\n  url: redis://127.0.0.1:6379");
    let short = "broker: {kind: redis, url: \"redis://127.0.0.1:6379\"}";
    assert_eq!(redis(&with_url), redis(short));
}

#[test]
fn the_commented_file_names_every_setting() {
    // What serde lists as known, mapping by mapping, must stand in the file.
    for mapping in [
        "",
        "admin",
        "node",
        "broker",
        "broker.sentinel",
        "broker.cluster",
        "auth",
        "hooks",
        "registry",
        "api",
        "values",
        "endpoints",
        "channels",
        "channels.namespaces",
        "channels.limits",
        "limits",
        "tcp",
        "fanout",
        "drain",
        "log",
    ] {
        let text = match mapping {
            "" => "nonsense: 1".to_owned(),
            "endpoints" => "endpoints: [{nonsense: 1}]".to_owned(),
            "channels.namespaces" => "channels: {namespaces: [{nonsense: 1}]}".to_owned(),
            "broker.sentinel" => "broker: {sentinel: {nonsense: 1}}".to_owned(),
            "broker.cluster" => "broker: {cluster: {nonsense: 1}}".to_owned(),
            "channels.limits" => "channels: {limits: {nonsense: 1}}".to_owned(),
            _ => format!("{mapping}: {{nonsense: 1}}"),
        };
        let error = Config::parse("node.yaml", &text).unwrap_err().to_string();
        let (_, known) = error.split_once("expected ").unwrap();
        for key in known.split('"').skip(1).step_by(2) {
            assert!(
                COMMENTED.contains(&format!("{key}: ")) || COMMENTED.contains(&format!("{key}:\n")),
                "{mapping}.{key}"
            );
        }
    }
}

#[test]
fn a_node_is_named_after_host_and_port_unless_told() {
    let bound = SocketAddr::from(([127, 0, 0, 1], 9017));
    let unnamed = Config::default_without_file().node_id(bound);
    assert!(
        unnamed.ends_with("-9017") && unnamed.len() <= check::NODE_ID_BYTES_MAX,
        "{unnamed}"
    );
    let named = Config::parse("node.yaml", "node: {id: n1}").unwrap();
    assert_eq!(named.node_id(bound), "n1");
}

#[test]
fn a_redis_url_may_have_every_part_or_hardly_any() {
    let server = |url: &str| redis(&format!("broker: {{kind: redis, url: \"{url}\"}}")).server;
    let full = server("redis://me:a%20b@[::1]:7000/5");
    assert_eq!(full.location.to_string(), "[::1]:7000");
    assert_eq!((full.database, full.username.as_deref()), (5, Some("me")));
    assert_eq!(full.password.unwrap().expose(), "a b");
    let short = server("redis://cache");
    assert_eq!(short.location.to_string(), "cache:6379");
    assert_eq!(
        (short.database, short.username, short.password),
        (0, None, None)
    );
    let unix = server("unix:///run/redis.sock?db=2&pass=x");
    assert_eq!(unix.location.to_string(), "unix:/run/redis.sock");
    assert_eq!((unix.database, unix.password.unwrap().expose()), (2, "x"));
}

#[test]
fn a_prefix_is_a_plain_name_and_no_relay_channel_begins_with_it() {
    let url = "url: \"redis://cache\"";
    let prefix = |text: &str| format!("broker: {{kind: redis, {url}, prefix: {text}}}");
    assert_eq!(
        &*redis(&format!("broker: {{kind: redis, {url}}}")).prefix,
        "causeway"
    );
    for good in ["a", "staging-2.eu_1", &"p".repeat(64)] {
        assert_eq!(&*redis(&prefix(good)).prefix, good);
    }
    for bad in ["", "a b", " a", "a:", "a:b", "{}", "{a}", "a*", "a\\n", "ä"] {
        let error = Config::parse("node.yaml", &prefix(&format!("\"{bad}\"")));
        let error = error.unwrap_err().to_string();
        let expected = "node.yaml:1:45: broker.prefix: expected 1 to 64 of letters, digits, `-`, `_` and `.`, found ";
        assert!(error.starts_with(expected), "{error}");
    }
    refused(
        &prefix(&"p".repeat(65)),
        &expect![
            "node.yaml:1:45: broker.prefix: expected 1 to 64 of letters, digits, `-`, `_` and `.`, found 65 bytes"
        ],
    );
    let with_relay = |channel: &str| {
        let relay =
            format!("endpoints: [{{path: /ws, protocol: websocket, channel: \"{channel}\"}}]");
        Config::parse("node.yaml", &format!("{}\n{relay}", prefix("staging")))
    };
    for channel in ["global", "staging", "staging2:x"] {
        with_relay(channel).unwrap();
    }
    let error = with_relay("staging:x").unwrap_err().to_string();
    assert_eq!(
        error,
        "node.yaml:2:46: endpoints[0].channel: names that begin with \"staging:\" (broker.prefix) are the node's own, expected another one"
    );
    assert!(with_relay("causeway:x").is_err());
}

#[test]
fn a_cluster_is_an_alternative_to_urls_and_sentinels() {
    let cluster = |settings: &str| format!("broker: {{kind: redis, cluster: {{{settings}}}}}");
    let one = "servers: [\"a:1\"]";
    let server = redis(&cluster(one)).server;
    assert_eq!(server.location.to_string(), "cluster:a:1");
    let full = cluster(
        "servers: [\"a:1\", \"[::1]:2\"], user: me, password: hunter2, announce: {\"10.0.0.1:1\": \"a:1\"}, \
         relay_pubsub: classic, unready_when_partial: false, tls: {}",
    );
    let server = redis(&full).server;
    let RedisLocation::Cluster(servers) = &server.location else {
        panic!("a cluster is expected")
    };
    assert_eq!((servers.servers.len(), servers.announce.len()), (2, 1));
    assert_eq!(servers.announce[0].1, servers.servers[0]);
    assert_eq!(servers.relay_pubsub, RelayPubSub::Classic);
    assert!(!servers.is_unready_when_partial && server.tls.is_some());
    assert_eq!(server.username.as_deref(), Some("me"));
    for (text, expected) in [
        (
            format!("broker: {{kind: redis, url: \"redis://a\", cluster: {{{one}}}}}"),
            "broker.cluster: expected one of url, urls, sentinel and cluster",
        ),
        (
            format!("broker: {{cluster: {{{one}}}}}"),
            "broker.cluster: it is only for `kind: redis`",
        ),
        (
            cluster("user: me"),
            "broker.cluster.user: a user needs a password",
        ),
        (
            cluster(""),
            "broker.cluster.servers: expected 1 to 64 servers, each as host:port, found 0",
        ),
        (
            cluster("servers: [\"a:1\", \"a:1\"]"),
            "broker.cluster.servers[1]: this server is there already",
        ),
        (
            cluster(&format!("{one}, announce: {{a: \"b:1\"}}")),
            "broker.cluster.announce: expected host:port for each host:port that the cluster names, such as \"10.0.0.1:6379\": \"127.0.0.1:7001\", found \"a\"",
        ),
    ] {
        let error = Config::parse("node.yaml", &text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn sentinels_are_an_alternative_to_urls() {
    let sentinel = |settings: &str| format!("broker: {{kind: redis, sentinel: {{{settings}}}}}");
    let full = sentinel(
        "master: main, servers: [\"10.0.0.1:26379\", \"[::1]:7000\", \"s.example:1\"], user: me, \
         password: hunter2, database: 3, sentinel_user: you, sentinel_password: hunter3, tls: {}",
    );
    let server = redis(&full).server;
    let RedisLocation::Sentinel(sentinels) = &server.location else {
        panic!("sentinels are expected")
    };
    let addresses = sentinels.servers.iter().map(ToString::to_string);
    let expected = ["10.0.0.1:26379", "[::1]:7000", "s.example:1"];
    assert!(addresses.eq(expected));
    assert_eq!((sentinels.master.as_str(), server.database), ("main", 3));
    assert_eq!(server.username.as_deref(), Some("me"));
    assert_eq!(sentinels.username.as_deref(), Some("you"));
    assert_eq!(server.tls, Some(RedisTls { ca: None }));
    assert_eq!(sentinels.tls, server.tls);
    assert!(!format!("{server:?}").contains("hunter"), "{server:?}");

    let one = "master: main, servers: [\"a:1\"]";
    for (text, expected) in [
        (
            format!("broker: {{kind: redis, url: \"redis://a\", sentinel: {{{one}}}}}"),
            "node.yaml:1:42: broker.sentinel: expected one of url, urls and sentinel",
        ),
        (
            format!("broker: {{sentinel: {{{one}}}}}"),
            "node.yaml:1:10: broker.sentinel: it is only for `kind: redis`",
        ),
        (
            sentinel("master: main"),
            "node.yaml:1:24: broker.sentinel.servers: expected 1 to 16 Sentinels, each as host:port, found 0",
        ),
        (
            sentinel("master: main, servers: [\"a:1\", \"a:1\"]"),
            "node.yaml:1:65: broker.sentinel.servers[1]: this Sentinel is there already",
        ),
        (
            sentinel("servers: [\"a:1\"]"),
            "node.yaml:1:24: broker.sentinel.master: expected the name of the primary in the configuration of the Sentinels, 1 to 255 of letters, digits, `-`, `_` and `.`, found \"\"",
        ),
        (
            sentinel(&format!("{one}, user: me")),
            "node.yaml:1:67: broker.sentinel.user: a user needs a password",
        ),
    ] {
        let error = Config::parse("node.yaml", &text).unwrap_err().to_string();
        let without_place = |text: &str| text.splitn(4, ':').nth(3).unwrap_or_default().to_owned();
        assert_eq!(without_place(&error), without_place(expected), "{error}");
    }
    for bad in [
        "a",
        "a:",
        ":1",
        "a:0",
        "a:65536",
        "::1:7",
        "redis://a:1",
        "a b:1",
    ] {
        let text = sentinel(&format!("master: main, servers: [\"{bad}\"]"));
        let error = Config::parse("node.yaml", &text).unwrap_err().to_string();
        assert!(
            error.contains("expected host:port, such as"),
            "{bad}: {error}"
        );
    }
}

#[test]
fn a_password_is_never_shown() {
    let config = Config::parse(
        "node.yaml",
        "broker: {kind: redis, url: \"redis://:hunter2@cache\"}",
    );
    let shown = format!("{:?}", config.unwrap());
    assert!(
        shown.contains("***") && !shown.contains("hunter2"),
        "{shown}"
    );
    let wrong = "broker: {kind: redis, url: \"redis://:hunter2@cache:port\"}";
    let error = Config::parse("node.yaml", wrong).unwrap_err().to_string();
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn origins_are_kept_as_browsers_send_them() {
    let origins = |list: &str| {
        let text =
            format!("endpoints: [{{path: /a, protocol: websocket, allowed_origins: {list}}}]");
        Config::parse("node.yaml", &text).unwrap().endpoints[0]
            .allowed_origins
            .clone()
    };
    let list = "[\"HTTPS://Chat.Example:443\", \"http://localhost:3000\", \"http://[::1]:80\"]";
    let expected = [
        "https://chat.example",
        "http://localhost:3000",
        "http://[::1]",
    ];
    assert_eq!(
        origins(list),
        AllowedOrigins::Listed(expected.map(str::to_owned).to_vec())
    );
    assert_eq!(origins("[\"*\"]"), AllowedOrigins::Any);
    assert_eq!(origins("same"), AllowedOrigins::Same);
}

#[test]
fn zero_threads_and_null_mean_the_default() {
    let config = Config::parse("node.yaml", "threads: 0\nlimits: null\npage: null\n").unwrap();
    assert_eq!(config, Config::default_without_file());
}

#[test]
fn the_admin_listener_is_on_loopback_beside_the_port_of_the_clients_unless_told() {
    let admin = |text: &str| {
        let admin = Config::parse("node.yaml", text).unwrap().admin;
        admin.map(|address| address.to_string())
    };
    for (text, expected) in [
        ("", "127.0.0.1:10000"),
        ("admin: {}", "127.0.0.1:10000"),
        ("admin: null", "127.0.0.1:10000"),
        ("listen: 0.0.0.0:9001", "127.0.0.1:10001"),
        ("listen: \"[::]:9001\"", "127.0.0.1:10001"),
        ("listen: \"[::1]:9001\"", "[::1]:10001"),
        ("listen: 127.0.0.2:9001", "127.0.0.2:10001"),
        ("listen: 10.0.0.1:64535", "127.0.0.1:65535"),
        ("listen: 10.0.0.1:64536", "127.0.0.1:0"),
        ("listen: 127.0.0.1:0", "127.0.0.1:0"),
        ("admin: { address: 0.0.0.0:9100 }", "0.0.0.0:9100"),
    ] {
        assert_eq!(admin(text).as_deref(), Some(expected), "{text}");
    }
    for text in ["admin: none", "admin: { address: none }"] {
        assert_eq!(admin(text), None, "{text}");
    }
}

#[test]
fn an_admin_listener_that_cannot_be_is_refused_with_its_place() {
    for (text, expected) in [
        (
            "\nadmin: off",
            "node.yaml:2:1: admin: expected settings such as {address: \"127.0.0.1:10000\"}, or \"none\", found \"off\"",
        ),
        (
            "admin:\n  address: localhost",
            "node.yaml:2:3: admin.address: expected an address and a port, such as \"127.0.0.1:9000\" or \"[::]:9000\", found \"localhost\"",
        ),
        (
            "admin: { address: 127.0.0.1:9000 }",
            "node.yaml:1:10: admin.address: expected another port than that of listen (127.0.0.1:9000), found \"127.0.0.1:9000\"",
        ),
        (
            "admin: { address: 0.0.0.0:9000 }",
            "node.yaml:1:10: admin.address: expected another port than that of listen (127.0.0.1:9000), found \"0.0.0.0:9000\"",
        ),
    ] {
        let errors = Config::parse("node.yaml", text).unwrap_err();
        assert_eq!(errors.to_string().trim_end(), expected);
    }
}

#[test]
fn every_mistake_of_a_file_is_reported_at_once_with_its_place() {
    let text = "\
node: { id: \"a b\" }
listen: localhost
threads: 2000
broker:
  kind: redis
  publish_queues: 0
  publish_queue_wait: 2h
endpoints:
  - path: chat/
  - { path: /ready, protocol: websocket, heartbeat: 5s }
  - { path: /a, protocol: sockjs, mode: echo, channel: global, transports: [] }
  - { path: /a, protocol: sockjs, channel: \"causeway:x\", message_size: 1MiB }
  - { path: /b, protocol: sockjs, channel: \"\", publish_rate: { per_second: 0 } }
  - { path: /c, protocol: sockjs, allowed_origins: any, ping: { interval: 1ms } }
  - { path: /d, protocol: sockjs, allowed_origins: [\"chat.example\", \"https://a.b/\"] }
  - { path: /e, protocol: sockjs, allowed_origins: [\"*\", \"https://a.b\"] }
limits: { connections: 0, head_size: 1KiB }
fanout: { factor: 0.5 }
drain: { lead: 1s, lead_max: 2s, spread: 11s }
log: { level: inf }
";
    refused(
        text,
        &expect![[r#"
        node.yaml:1:9: node.id: expected 1 to 64 of letters, digits, `-`, `_` and `.`, found "a b"
        node.yaml:2:1: listen: expected an address and a port, such as "127.0.0.1:9000" or "[::]:9000", found "localhost"
        node.yaml:3:1: threads: expected 1 to 1024, found 2000
        node.yaml:4:1: broker.url: `kind: redis` needs a url: expected redis[s]://[[user]:password@]host[:port][/database] or unix:///path/to/socket[?db=0&user=...&pass=...]
        node.yaml:6:3: broker.publish_queues: expected 1 to 64, found 0
        node.yaml:7:3: broker.publish_queue_wait: expected 10ms to 1h, found 2h
        node.yaml:9:5: endpoints[0].path: expected a path, such as "/chat": `/` and then letters, digits, `-`, `_`, `.`, `~`, no `/` at the end, found "chat/"
        node.yaml:9:5: endpoints[0].protocol: expected `sockjs` or `websocket`, or `mode: channels`, which needs none
        node.yaml:10:7: endpoints[1].path: expected another path: the node serves /ready itself
        node.yaml:10:42: endpoints[1].heartbeat: expected none: this setting is only for `protocol: sockjs`
        node.yaml:11:47: endpoints[2].channel: expected none: a channel is only for `mode: relay`
        node.yaml:11:64: endpoints[2].transports: expected at least one of websocket, xhr_streaming, eventsource, htmlfile, xhr, jsonp
        node.yaml:12:7: endpoints[3].path: duplicate path "/a", endpoints[2] has it already
        node.yaml:12:35: endpoints[3].channel: expected another name: those that begin with "causeway:" are reserved for the node
        node.yaml:12:58: endpoints[3].message_size: expected at most limits.body_size (512KiB), found 1MiB
        node.yaml:13:35: endpoints[4].channel: expected a channel name of 1 to 255 bytes, found 0 bytes
        node.yaml:13:64: endpoints[4].publish_rate.per_second: expected 1 to 1000000, found 0
        node.yaml:14:35: endpoints[5].allowed_origins: expected `same`, ["*"] or a list of origins, found "any"
        node.yaml:14:65: endpoints[5].ping.interval: expected 100ms to 1h, found 1ms
        node.yaml:15:53: endpoints[6].allowed_origins[0]: expected an origin, such as "https://chat.example" or "http://localhost:3000", without a path, found "chat.example"
        node.yaml:15:69: endpoints[6].allowed_origins[1]: expected an origin, such as "https://chat.example" or "http://localhost:3000", without a path, found "https://a.b/"
        node.yaml:16:35: endpoints[7].allowed_origins: "*" allows every origin, expected it alone
        node.yaml:17:11: limits.connections: expected 1 to 100000000, found 0
        node.yaml:17:27: limits.head_size: expected 8KiB to 1MiB, found 1KiB
        node.yaml:18:11: fanout.factor: expected 1 to 100, found 0.5
        node.yaml:19:20: drain.lead_max: expected no drain.lead_max with drain.lead: that one is the lead for all probers of /ready
        node.yaml:19:34: drain.spread: expected at most drain.timeout (10s), found 11s
        node.yaml:20:8: log.level: expected error, warn, info, debug, trace or off, or directives such as "info,causeway_node::broker=debug", found "inf""#]],
    );
}

#[test]
fn each_mistake_says_what_would_be_right() {
    let cases: [(&str, Expect); 23] = [
        (
            "broker: { kind: redis }",
            expect![
                "node.yaml:1:1: broker.url: `kind: redis` needs a url: expected redis[s]://[[user]:password@]host[:port][/database] or unix:///path/to/socket[?db=0&user=...&pass=...]"
            ],
        ),
        (
            "broker: { url: \"redis://cache\" }",
            expect!["node.yaml:1:11: broker.url: expected none: a URL is only for `kind: redis`"],
        ),
        (
            "broker: { kind: redis, url: \"rediss://cache/#insecure\" }",
            expect![
                "node.yaml:1:24: broker.url: expected no `#insecure`: the certificate of the server has to be verified; its CA goes into broker.tls.ca"
            ],
        ),
        (
            "broker: { kind: redis, urls: [] }",
            expect!["node.yaml:1:24: broker.urls: expected 1 to 64 URLs, found 0"],
        ),
        (
            "broker: { kind: redis, urls: [\"redis://a\", \"redis://b\", \"redis://a:6379/1\"] }",
            expect![
                "node.yaml:1:57: broker.urls[2]: duplicate server a:6379, expected another one"
            ],
        ),
        (
            "broker: { kind: redis, url: \"redis://a\", urls: [\"redis://b\"] }",
            expect![
                "node.yaml:1:42: broker.urls: expected either broker.url or broker.urls, found both"
            ],
        ),
        (
            "broker: { kind: redis, url: \"redis://a\", tls: {} }",
            expect![
                "node.yaml:1:42: broker.tls: expected none: it is only for URLs that begin with rediss://"
            ],
        ),
        (
            "broker: { kind: redis, url: \"rediss://a\", tls: { ca: /nowhere.pem } }",
            expect![
                "node.yaml:1:50: broker.tls.ca: expected certificates in PEM in /nowhere.pem: No such file or directory (os error 2)"
            ],
        ),
        (
            "broker: { kind: redis, url: \"http://cache\" }",
            expect![
                "node.yaml:1:24: broker.url: expected redis[s]://[[user]:password@]host[:port][/database] or unix:///path/to/socket[?db=0&user=...&pass=...]"
            ],
        ),
        (
            "broker: { kind: redis, url: { env: CAUSEWAY_TEST_UNSET } }",
            expect![
                "node.yaml:1:24: broker.url: the environment has no variable `CAUSEWAY_TEST_UNSET`"
            ],
        ),
        (
            "broker: { kind: kafka }",
            expect![
                "node.yaml:1:11: broker.kind: unknown value \"kafka\", expected \"memory\" or \"redis\""
            ],
        ),
        (
            "broker: { kind: redis, url: \"redis://cache\", publish_queue_size: 32KiB }\nendpoints: [{path: /a, protocol: websocket}, {path: /b, protocol: websocket, mode: echo}]",
            expect![
                "node.yaml:2:13: endpoints[0].message_size: expected at most broker.publish_queue_size (32KiB), found 64KiB"
            ],
        ),
        (
            "limits: { body_size: 1KiB }\nendpoints: [{path: /a, protocol: websocket}, {path: /b, protocol: sockjs}]",
            expect![
                "node.yaml:2:46: endpoints[1].message_size: expected at most limits.body_size (1KiB), found 64KiB"
            ],
        ),
        (
            "endpoints: []",
            expect![
                "node.yaml:1:1: endpoints: expected at least one endpoint; leave the key out for the three defaults"
            ],
        ),
        (
            "endpoints: [{protocol: sockjs}]",
            expect![[r#"node.yaml:1:13: endpoints[0].path: expected a path, such as "/chat""#]],
        ),
        (
            "endpoints: [{path: /a, protocol: sockjs, transports: [websocket, flash]}]",
            expect![
                "node.yaml:1:66: endpoints[0].transports[1]: unknown value \"flash\", expected one of \"websocket\", \"xhr_streaming\", \"eventsource\", \"htmlfile\", \"xhr\", \"jsonp\", \"http_stream\", \"sse\", \"uni_sse\""
            ],
        ),
        (
            "endpoints: [{path: /a, protocol: sockjs, client_script: sockjs.js}]",
            expect![[
                r#"node.yaml:1:42: endpoints[0].client_script: expected the address of sockjs-client, such as "https://cdn.example/sockjs.min.js" or "/sockjs.min.js", found "sockjs.js""#
            ]],
        ),
        (
            "endpoints: [{path: /a, protocol: sockjs, client_script: '/a\">'}]",
            expect![[
                r#"node.yaml:1:42: endpoints[0].client_script: expected the address of sockjs-client, such as "https://cdn.example/sockjs.min.js" or "/sockjs.min.js", found "/a\">""#
            ]],
        ),
        (
            "endpoints: [{path: /a, protocol: sockjs, allowed_origins: 7}]",
            expect![[
                r#"node.yaml:1:42: endpoints[0].allowed_origins: expected `same`, ["*"] or a list of origins, found 7"#
            ]],
        ),
        (
            "limits: { head_timeout: 10 }",
            expect![[
                r#"node.yaml:1:11: limits.head_timeout: expected a duration with its unit, such as "250ms", "10s", "5m" or "1h", found 10"#
            ]],
        ),
        (
            "limits: { head_size: 16KB }",
            expect![[
                r#"node.yaml:1:11: limits.head_size: expected a size with its unit, such as "512B", "64KiB" or "1MiB", found "16KB""#
            ]],
        ),
        (
            "trusted_proxies: [10.0.0.0/33]",
            expect![[
                r#"node.yaml:1:19: trusted_proxies[0]: expected an address or a range, such as "10.0.0.0/8", "192.168.1.7" or "fd00::/8", found "10.0.0.0/33""#
            ]],
        ),
        (
            "listn: 1",
            expect!["node.yaml:1:1: listn: unknown setting \"listn\", did you mean \"listen\"?"],
        ),
    ];
    for (text, expected) in cases {
        refused(text, &expected);
    }
}

#[test]
fn a_log_filter_is_a_level_or_directives() {
    for level in [
        "info",
        "OFF",
        "info,causeway_node::broker=debug",
        "warn,hyper=trace",
    ] {
        let text = format!("log: {{ level: \"{level}\" }}");
        assert_eq!(Config::parse("node.yaml", &text).unwrap().log.level, level);
    }
}

#[test]
fn ranges_include_their_ends() {
    for (text, fits) in [
        ("limits: { head_size: 8191B }", false),
        ("limits: { head_size: 8KiB }", true),
        ("limits: { head_size: 1MiB }", true),
        ("limits: { head_size: 1048577B }", false),
        ("fanout: { window: 0s }", true),
        ("fanout: { window: 1s }", true),
        ("fanout: { window: 1001ms }", false),
        ("fanout: { factor: 1.0 }", true),
        ("fanout: { factor: .nan }", false),
    ] {
        assert_eq!(Config::parse("node.yaml", text).is_ok(), fits, "{text}");
    }
}

#[test]
fn keys_are_read_and_never_shown() {
    let secret = "0123456789abcdef0123456789abcdef";
    let text = format!(
        "auth: {{keys: [{{algorithm: HS256, key: {secret}, id: a}}, {{algorithm: HS256, key: {secret}x}}], audience: [chat]}}"
    );
    let config = Config::parse("node.yaml", &text).unwrap();
    let ids: Vec<_> = config.auth.keys.iter().map(|key| key.id()).collect();
    assert_eq!(ids, [Some("a"), None]);
    assert!(!format!("{config:?}").contains(&secret[..8]));
}

#[test]
fn a_key_that_is_of_no_use_is_refused_with_its_place() {
    refused(
        "auth:
  keys:
    - { algorithm: HS256, key: hunter2 }
    - { algorithm: RS256, key: hunter2, id: '' }
    - { algorithm: HS256, key: 0123456789abcdef0123456789abcdef, id: a }
    - { algorithm: HS256, key: 0123456789abcdef0123456789abcdef, id: a }
  audience: ['']
  issuer: ''
  leeway: 1h
",
        &expect![[r#"
            node.yaml:3:27: auth.keys[0].key: expected a secret of at least 32 bytes, found 7
            node.yaml:4:27: auth.keys[1].key: expected a public key in PEM, which begins with "-----BEGIN PUBLIC KEY-----"
            node.yaml:4:41: auth.keys[1].id: expected 1 to 255 bytes, found 0
            node.yaml:6:66: auth.keys[3].id: duplicate id "a", auth.keys[2] has it already
            node.yaml:7:14: auth.audience[0]: expected a text, found ""
            node.yaml:8:3: auth.issuer: expected a text, found ""; leave it out to accept any issuer that has a key
            node.yaml:9:3: auth.leeway: expected 0s to 10m, found 1h"#]],
    );
    refused(
        "auth: { keys: [{ algorithm: none, key: x }] }",
        &expect![
            "node.yaml:1:18: auth.keys[0].algorithm: unknown value \"none\", expected one of \"HS256\", \"RS256\", \"PS256\", \"ES256\", \"ES384\", \"EdDSA\""
        ],
    );
    let missing = Config::parse("node.yaml", "auth: {key_set: /nonexistent/keys.json}");
    let missing = missing.unwrap_err().to_string();
    assert!(
        missing.starts_with("node.yaml:1:8: auth.key_set: /nonexistent/keys.json: cannot read"),
        "{missing}"
    );
}

#[test]
fn a_hook_that_cannot_be_asked_is_refused_with_its_place() {
    refused(
        "hooks:
  connect: app.example/hooks
  rpc: ftp://app.example/
  publish: https://user:hunter2@app.example/
  refresh: 'http://'
  subscribe: http://127.0.0.1:3000/ok
  timeout: 2m
  open: 0
  response_size: 17MiB
  forward_headers: [Cookie, 'a b', Content-Length, Host]
  headers: { 'x:y': a, X-Key: \"a\\nb\", Connection: close }
  ca: /nonexistent/ca.pem
",
        &expect![[r#"
            node.yaml:2:3: hooks.connect: expected an address such as "https://app.example/hooks/connect", with http or https and without a user
            node.yaml:3:3: hooks.rpc: expected an address such as "https://app.example/hooks/connect", with http or https and without a user
            node.yaml:4:3: hooks.publish: expected an address such as "https://app.example/hooks/connect", with http or https and without a user
            node.yaml:5:3: hooks.refresh: expected an address such as "https://app.example/hooks/connect", with http or https and without a user
            node.yaml:7:3: hooks.timeout: expected 10ms to 1m, found 2m
            node.yaml:8:3: hooks.open: expected 1 to 10000, found 0
            node.yaml:9:3: hooks.response_size: expected 1KiB to 16MiB, found 17MiB
            node.yaml:10:29: hooks.forward_headers[1]: expected the name of a header, found "a b"
            node.yaml:10:36: hooks.forward_headers[2]: expected another header: the node sets content-length itself
            node.yaml:10:52: hooks.forward_headers[3]: expected another header: the node sets host itself
            node.yaml:11:14: hooks.headers.x:y: expected the name of a header, found "x:y"
            node.yaml:11:24: hooks.headers.X-Key: expected a text that fits a header, of one line
            node.yaml:11:39: hooks.headers.Connection: expected another header: the node sets connection itself
            node.yaml:12:3: hooks.ca: expected certificates in PEM in /nonexistent/ca.pem: No such file or directory (os error 2)"#]],
    );
}

#[test]
fn a_hook_has_limits_of_its_own_or_those_of_all() {
    let text = "hooks:
  timeout: 2s
  open: 9
  connect: http://app.example/connect
  rpc: { address: http://app.example/rpc, timeout: 10s, open: 3 }
  publish: { address: http://app.example/publish, open: 4 }
";
    let hooks = Config::parse("node.yaml", text).unwrap().hooks;
    let limits = |hook: &Option<Hook>| {
        let hook = hook.as_ref().unwrap();
        (
            hook.address.path().to_owned(),
            hook.timeout.as_secs(),
            hook.open_max,
        )
    };
    assert_eq!(limits(&hooks.connect), ("/connect".to_owned(), 2, 9));
    assert_eq!(limits(&hooks.rpc), ("/rpc".to_owned(), 10, 3));
    assert_eq!(limits(&hooks.publish), ("/publish".to_owned(), 2, 4));
    refused(
        "hooks: { publish: { open: 4 } }",
        &expect![r#"node.yaml:1:10: hooks.publish: "address" is missing"#],
    );
    refused(
        "hooks:
  rpc: { address: nowhere, timeout: 2m, open: 0 }
  emulated_headers: [Host]
",
        &expect![[r#"
            node.yaml:2:10: hooks.rpc.address: expected an address such as "https://app.example/hooks/connect", with http or https and without a user
            node.yaml:2:28: hooks.rpc.timeout: expected 10ms to 1m, found 2m
            node.yaml:2:41: hooks.rpc.open: expected 1 to 10000, found 0
            node.yaml:3:22: hooks.emulated_headers[0]: expected another header: the node sets host itself"#]],
    );
}

#[test]
fn a_lease_outlives_some_renewals_that_fail() {
    refused(
        "registry: {renew: 2s, lease: 5s}\nnode: {advertise: 10.0.0.1, zone: \"a b\"}",
        &expect![[r#"
            node.yaml:1:23: registry.lease: expected at least 3 times registry.renew (6s), found 5s
            node.yaml:2:8: node.advertise: expected an address and a port, such as "10.0.0.1:9000" or "[fd00::1]:9000", found "10.0.0.1"
            node.yaml:2:29: node.zone: expected 1 to 64 of letters, digits, `-`, `_` and `.`, found "a b""#]],
    );
    let config = Config::parse(
        "node.yaml",
        "registry: {renew: 1s, lease: 3s}\nnode: {advertise: \"[::1]:9000\", zone: east}",
    )
    .unwrap();
    assert_eq!(config.registry.lease, Duration::from_secs(3));
    assert_eq!(config.advertise.as_deref(), Some("[::1]:9000"));
    for wrong in [
        "::1:9000",
        "host",
        "host:",
        "host:0",
        "host:65536",
        ":9000",
        "a b:1",
    ] {
        let text = format!("node: {{advertise: \"{wrong}\"}}");
        assert!(Config::parse("node.yaml", &text).is_err(), "{wrong}");
    }
}

#[test]
fn the_api_is_there_once_it_has_keys_that_nobody_guesses() {
    let api = |text: &str| Config::parse("node.yaml", text).unwrap().api;
    assert_eq!(api("api: {path: /server}"), None);
    let with_keys = "api: {keys: [0123456789abcdef, 0123456789abcdefg], ack: replicated}";
    let with_keys = api(with_keys).unwrap();
    assert_eq!((with_keys.path.as_str(), with_keys.keys.len()), ("/api", 2));
    assert_eq!(with_keys.ack, Ack::Replicated);
    refused(
        "api: {path: /ws/api, keys: [0123456789abcdef, 0123456789abcde], ack: maybe}",
        &expect![
            "node.yaml:1:65: api.ack: unknown value \"maybe\", expected one of \"fast\", \"stored\", \"replicated\""
        ],
    );
    refused(
        "api: {path: /ws/api, keys: [0123456789abcdef, 0123456789abcde]}",
        &expect![[r#"
            node.yaml:1:7: api.path: expected a path apart from the endpoint "/ws", found "/ws/api"
            node.yaml:1:47: api.keys[1]: expected at least 16 characters of ASCII, found 15 bytes"#]],
    );
}

#[test]
fn what_cannot_work_is_told_with_its_place_and_is_no_mistake() {
    let config = Config::parse(
        "node.yaml",
        r#"
page: true
endpoints:
  - { path: /connection, mode: channels, allowed_origins: ["https://*.chat.example", "https://chat.example"] }
  - { path: /ws, protocol: sockjs }
channels:
  namespaces:
    - { name: open, subscribe: anyone }
    - { name: asked, subscribe: hook, publish: hook, lifecycle: true }
"#,
    )
    .unwrap();
    let warnings: Vec<String> = config.warnings().iter().map(ToString::to_string).collect();
    expect![[r#"
        node.yaml:2:1: page: the page is not served: it connects to an endpoint /ws with `protocol: websocket`, and there is none
        node.yaml:4:26: endpoints[0].mode: no client can connect: this needs `auth.keys` or `auth.key_set` for tokens, `hooks.connect`, or `auth.anonymous: true`
        node.yaml:4:60: endpoints[0].allowed_origins[0]: no browser has this origin: "*" stands for every origin if it stands alone, and for nothing within one, found "https://*.chat.example"
        node.yaml:7:3: channels.namespaces: nobody gets lifecycle events: without Redis they need the address `hooks.lifecycle`
        node.yaml:9:22: channels.namespaces[1].subscribe: no client can subscribe without a token: `hook` needs the address `hooks.subscribe`
        node.yaml:9:39: channels.namespaces[1].publish: no client can publish: `hook` needs the address `hooks.publish`"#]]
    .assert_eq(&warnings.join("\n"));
    assert!(!config.page);
}

#[test]
fn what_can_work_is_not_warned_about() {
    for text in [
        "",
        "endpoints: [{ path: /chat, protocol: websocket }]",
        "page: false\nendpoints: [{ path: /chat, protocol: websocket, allowed_origins: ['*'] }]",
        "page: true\nendpoints: [{ path: /ws, protocol: websocket }]",
        "auth: { anonymous: true }\nendpoints: [{ path: /c, mode: channels }]\nchannels: { namespaces: [{ name: a }] }",
        "hooks: { connect: 'http://b/c', subscribe: 'http://b/s', publish: 'http://b/p' }\nendpoints: [{ path: /c, mode: channels }]\n\
         channels: { namespaces: [{ name: a, subscribe: hook, publish: hook }] }",
        "hooks: { lifecycle: 'http://b/l' }\nlifecycle: { connections: true }",
        "hooks: { lifecycle: 'http://b/l' }\nchannels: { namespaces: [{ name: a, lifecycle: true }] }",
        "broker: { kind: redis, url: 'redis://127.0.0.1' }\nlifecycle: { connections: true }",
    ] {
        let config = Config::parse("node.yaml", text).unwrap();
        assert!(
            config.warnings().is_empty(),
            "{text}: {:?}",
            config.warnings()
        );
    }
    let hook_alone = "hooks: { lifecycle: 'http://b/l' }";
    let warnings = Config::parse("n", hook_alone).unwrap().warnings().to_vec();
    expect!["n:1:10: hooks.lifecycle: no events are sent there: this needs `lifecycle.connections: true`, or `lifecycle: true` in one of `channels.namespaces`"]
        .assert_eq(&warnings[0].to_string());
    let without = Config::parse("n", "endpoints: [{ path: /a, protocol: sockjs }]").unwrap();
    assert!(!without.page && Config::default_without_file().page);
}

#[test]
fn lifecycle_events_are_off_unless_they_are_asked_for_and_have_bounds() {
    let lifecycle = |text: &str| Config::parse("node.yaml", text).unwrap().lifecycle;
    assert!(!lifecycle("").is_wanted());
    let all = lifecycle(
        "lifecycle: { connections: true, coalesce: 0s, keep: 100 }
channels: { namespaces: [{ name: a }, { name: b, lifecycle: true }] }",
    );
    let expected = Lifecycle {
        connections: true,
        channels: true,
        coalesce: Duration::ZERO,
        keep: 100,
    };
    assert_eq!(all, expected);
    refused(
        "lifecycle: { coalesce: 2h, keep: 99, hook: 'http://b' }",
        &expect![
            "node.yaml:1:38: lifecycle.hook: unknown setting \"hook\", expected one of \"connections\", \"coalesce\", \"keep\""
        ],
    );
    refused(
        "lifecycle: { coalesce: 2h, keep: 99 }
hooks: { lifecycle: { address: ftp://b/, timeout: 2m } }",
        &expect![[r#"
            node.yaml:1:14: lifecycle.coalesce: expected 0s to 1h, found 2h
            node.yaml:1:28: lifecycle.keep: expected 100 to 10000000, found 99
            node.yaml:2:23: hooks.lifecycle.address: expected an address such as "https://app.example/hooks/connect", with http or https and without a user
            node.yaml:2:42: hooks.lifecycle.timeout: expected 10ms to 1m, found 2m"#]],
    );
}

#[test]
fn old_names_of_settings_are_read_with_a_warning() {
    let text = "broker:
  kind: redis
  url: redis://127.0.0.1
  lanes: 3
  lane_bytes: 2MiB
  lane_wait: 7s
hooks: { answer_size: 2KiB }
limits: { answer_timeout: 3s }
";
    let config = Config::parse("node.yaml", text).unwrap();
    let warnings: Vec<String> = config.warnings().iter().map(ToString::to_string).collect();
    expect![[r#"
        node.yaml:4:3: broker.lanes: the setting is called "publish_queues" now; the next version does not know the old name
        node.yaml:5:3: broker.lane_bytes: the setting is called "publish_queue_size" now; the next version does not know the old name
        node.yaml:6:3: broker.lane_wait: the setting is called "publish_queue_wait" now; the next version does not know the old name
        node.yaml:7:10: hooks.answer_size: the setting is called "response_size" now; the next version does not know the old name
        node.yaml:8:11: limits.answer_timeout: the setting is called "send_timeout" now; the next version does not know the old name"#]]
    .assert_eq(&warnings.join("\n"));
    assert_eq!(warnings.len(), RENAMED.len(), "each has its warning");
    let Broker::Redis(redis) = &config.broker else {
        panic!("the broker is {:?}", config.broker);
    };
    let queues = (
        redis.publish_queues,
        redis.publish_queue_bytes_max,
        redis.publish_queue_wait,
    );
    assert_eq!(queues, (3, 2 << 20, Duration::from_secs(7)));
    assert_eq!(config.hooks.response_bytes_max, 2048);
    assert_eq!(config.limits.send_timeout, Duration::from_secs(3));
}
