//! Namespaces: what a file may say of them, and which channel they are for.

use super::*;

/// The file that shows channels.
const EXAMPLE: &str = include_str!("../../../../conf/channels.yaml");

const ENDPOINT: &str = "endpoints: [{path: /c, mode: channels}]\n";

fn channels(namespaces: &str) -> Channels {
    let text = format!("channels: {{namespaces: [{namespaces}]}}");
    Config::parse("node.yaml", &text).unwrap().channels
}

#[test]
fn the_example_says_what_its_comments_say() {
    let config = Config::parse("channels.yaml", EXAMPLE).unwrap();
    let Protocol::Channels(endpoint) = &config.endpoints[0].protocol else {
        panic!("an endpoint for channels is expected");
    };
    assert!(endpoint.allows(ChannelTransport::Websocket));
    let options = |channel: &str| config.channels.namespaces.options(channel).unwrap();
    assert!(options("chat:room1").recovery && options("chat:room1").join_leave);
    assert_eq!(options("prices:gold").slow, SlowReader::Latest);
    assert_eq!(options("prices:gold").publish, PublishAccess::Nobody);
    assert!(options("user:inbox#42").user_limited);
}

#[test]
fn what_a_namespace_does_not_say_opens_nothing() {
    let namespaces = channels("{name: chat}").namespaces;
    let options = namespaces.options("chat:a").unwrap();
    let expected = ChannelOptions {
        namespace: "chat".to_owned(),
        subscribe: SubscribeAccess::Token,
        user_limited: false,
        publish: PublishAccess::Nobody,
        read_presence: ReadAccess::Subscribers,
        read_history: ReadAccess::Subscribers,
        history: None,
        recovery: false,
        presence: false,
        join_leave: false,
        force_push_join_leave: false,
        lifecycle: false,
        data: DataKind::Json,
        slow: SlowReader::Disconnect,
        ack: Ack::Fast,
    };
    assert_eq!(**options, expected);
}

#[test]
fn what_is_kept_is_acknowledged_once_it_is_kept() {
    let namespaces = channels("{name: a, history: {size: 2, lifetime: 1m}}").namespaces;
    let options = namespaces.options("a:b").unwrap();
    assert_eq!(options.ack, Ack::Stored);
    let history = options.history.unwrap();
    assert_eq!((history.size, history.lifetime.as_secs()), (2, 60));
    assert_eq!(history.meta_lifetime.as_secs(), 30 * 24 * 60 * 60);
}

#[test]
fn a_channel_belongs_to_what_stands_before_its_first_colon() {
    let namespaces = channels("{name: chat}, {name: \"\"}").namespaces;
    let of = |channel: &str| namespaces.options(channel).map(|one| one.namespace.clone());
    for (channel, namespace) in [
        ("chat:room", Some("chat")),
        ("chat:room:1", Some("chat")),
        ("chat:", Some("chat")),
        ("chat", Some("")),
        ("news", Some("")),
        ("news:today", None),
        ("Chat:room", None),
        (":room", None),
    ] {
        assert_eq!(of(channel).as_deref(), namespace, "{channel}");
    }
    assert_eq!(channels("{name: chat}").namespaces.options("news"), None);
}

#[test]
fn what_a_client_may_send_at_once_fits_its_channels() {
    let sizes = |text: &str| {
        let text = format!(
            "channels: {{namespaces: [{{name: a}}], limits: {{channels_per_client: 200}}}}\n{text}"
        );
        let config = Config::parse("node.yaml", &text).unwrap_or_else(|error| panic!("{error}"));
        let endpoint = &config.endpoints[0];
        (
            endpoint.message_bytes_max >> 10,
            endpoint.received_bytes_max() >> 10,
        )
    };
    let endpoint = |more: &str| format!("endpoints: [{{path: /a, mode: channels{more}}}]\n");
    let redis = |more: &str| format!("broker: {{kind: redis, url: \"redis://a\"{more}}}\n");
    for (text, expected) in [
        (endpoint(""), (64, 864)),
        (endpoint(", message_size: 16KiB"), (16, 816)),
        (endpoint(", message_size: 16MiB"), (16 << 10, 16 << 10)),
        (endpoint(", commands_size: 70KiB"), (64, 70)),
        (endpoint("") + &redis(""), (64, 864)),
        (endpoint("") + &redis(", message_size: 512KiB"), (64, 511)),
        (
            endpoint("") + &redis(", publish_queue_size: 64KiB"),
            (64, 64),
        ),
        (
            endpoint(", transports: [websocket, uni_sse]") + &redis(", publish_queue_size: 64KiB"),
            (64, 864),
        ),
    ] {
        assert_eq!(sizes(&text), expected, "{text}");
    }
    refused(
        "channels: {namespaces: [{name: a}]}
broker: {kind: redis, url: \"redis://a\"}
endpoints:
  - { path: /a, mode: channels, commands_size: 10KiB }
  - { path: /b, mode: channels, commands_size: 1MiB }
  - { path: /c, mode: channels, commands_size: 65MiB, transports: [websocket] }
  - { path: /d, protocol: websocket, commands_size: 1MiB }
  - { path: /e, protocol: sockjs, command_rate: { per_second: 10 } }
  - { path: /f, mode: channels, command_rate: { per_second: 0 } }
",
        &expect![[r#"
            node.yaml:4:33: endpoints[0].commands_size: expected at least message_size (64KiB), found 10KiB
            node.yaml:5:33: endpoints[1].commands_size: expected at most 1023KiB, so that it fits broker.message_size and broker.publish_queue_size on its way between nodes (or no transports http_stream and sse), found 1MiB
            node.yaml:6:33: endpoints[2].commands_size: expected 1B to 64MiB, found 65MiB
            node.yaml:7:38: endpoints[3].commands_size: expected none: this setting is only for `mode: channels`
            node.yaml:8:35: endpoints[4].command_rate: expected none: this setting is only for `mode: channels`
            node.yaml:9:49: endpoints[5].command_rate.per_second: expected 1 to 1000000, found 0"#]],
    );
}

#[test]
fn a_contradiction_is_refused_where_it_stands() {
    let text = "\
channels:
  linger: 2h
  limits: { channels_per_client: 0, connections_per_user: 0 }
  namespaces:
    - { subscribe: anyone }
    - { name: \"a b\", recovery: true }
    - { name: chat, join_leave: true }
    - { name: chat, history: { size: 0, lifetime: 1h, meta_lifetime: 1m }, ack: fast }
    - { name: last, history: { size: 1, lifetime: 1h }, recovery: true, slow: latest }
";
    refused(
        text,
        &expect![[r#"
            node.yaml:2:3: channels.linger: expected 0s to 1h, found 2h
            node.yaml:3:13: channels.limits.channels_per_client: expected 1 to 1000000, found 0
            node.yaml:3:37: channels.limits.connections_per_user: expected 1 to 100000000, found 0
            node.yaml:5:7: channels.namespaces[0].name: expected a name, such as `chat` for channels like `chat:room1`; "" is for those without a namespace
            node.yaml:6:9: channels.namespaces[1].name: expected up to 64 of letters, digits, `-`, `_` and `.`, found "a b"
            node.yaml:6:22: channels.namespaces[1].recovery: clients can only recover what is kept: this needs `history`
            node.yaml:7:21: channels.namespaces[2].join_leave: the members of a node that failed are known from presence: this needs `presence: true`
            node.yaml:8:9: channels.namespaces[3].name: duplicate name "chat", channels.namespaces[2] has it already
            node.yaml:8:32: channels.namespaces[3].history.size: expected 1 to 1000000, found 0
            node.yaml:8:55: channels.namespaces[3].history.meta_lifetime: expected at least lifetime (1h), found 1m
            node.yaml:8:76: channels.namespaces[3].ack: with `history` a publication is acknowledged once it is kept: expected `stored` or `replicated`
            node.yaml:9:73: channels.namespaces[4].slow: with `recovery: true` a client gets every publication: expected `disconnect`"#]],
    );
}

#[test]
fn an_endpoint_for_channels_says_what_it_does_not_have() {
    let cases = [
        (
            ENDPOINT.to_owned(),
            expect![
                "node.yaml:1:24: endpoints[0].mode: `mode: channels` needs at least one of `channels.namespaces`, such as {name: chat, subscribe: authenticated}"
            ],
        ),
        (
            "channels: {namespaces: [{name: a}]}\nendpoints: [{path: /c, mode: channels, protocol: websocket, read_only: true, heartbeat: 1s, transports: [sse, xhr]}]".to_owned(),
            expect![[r#"
                node.yaml:2:40: endpoints[0].protocol: expected none: `mode: channels` has a protocol of its own
                node.yaml:2:61: endpoints[0].read_only: expected none: with `mode: channels`, `publish` of each namespace says who may publish
                node.yaml:2:78: endpoints[0].heartbeat: expected none: this setting is only for `protocol: sockjs`
                node.yaml:2:111: endpoints[0].transports[1]: expected one of websocket, http_stream, sse, uni_sse"#]],
        ),
        (
            "endpoints: [{path: /a, protocol: sockjs, transports: [websocket, sse]}, {path: /b, protocol: websocket, transports: [websocket]}]".to_owned(),
            expect![[r#"
                node.yaml:1:66: endpoints[0].transports[1]: expected one of websocket, xhr_streaming, eventsource, htmlfile, xhr, jsonp
                node.yaml:1:105: endpoints[1].transports: expected none: this setting is only for `protocol: sockjs` and `mode: channels`"#]],
        ),
    ];
    for (text, expected) in cases {
        refused(&text, &expected);
    }
}
