use std::collections::BTreeMap;

use bytes::Bytes;
use bytes::BytesMut;
use proptest::collection::btree_map;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;

use super::*;

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn command(id: u32, request: Request) -> Command {
    Command {
        id,
        request: Some(request),
    }
}

fn reply(id: u32, outcome: Outcome) -> Reply {
    Reply {
        id,
        outcome: Some(outcome),
    }
}

fn publication(data: &str) -> Publication {
    Publication {
        data: bytes(data),
        ..Publication::default()
    }
}

fn json(reply: &Reply) -> Result<String, NotJson> {
    let mut out = BytesMut::new();
    Codec::Json.append_reply(&mut out, reply)?;
    Ok(String::from_utf8(out.into()).unwrap())
}

fn decode_json(text: &str) -> Vec<Command> {
    Codec::Json.decode_commands(text.as_bytes()).unwrap()
}

#[test]
fn commands_are_read_as_sdks_write_them() {
    let connect = ConnectRequest {
        token: "t".to_owned(),
        data: bytes(r#"{"a": 1}"#),
        name: "js".to_owned(),
        subs: BTreeMap::from([(
            "news".to_owned(),
            SubscribeRequest {
                recover: true,
                epoch: "e".to_owned(),
                offset: 7,
                ..SubscribeRequest::default()
            },
        )]),
        ..ConnectRequest::default()
    };
    let cases = [
        (
            r#"{"connect":{"token":"t","data":{"a": 1},"name":"js","subs":{"news":{"recover":true,"epoch":"e","offset":7}}},"id":1}"#,
            command(1, Request::Connect(connect)),
        ),
        (
            r#"{"id":2,"publish":{"channel":"c","data":"x"}}"#,
            command(
                2,
                Request::Publish(PublishRequest {
                    channel: "c".to_owned(),
                    data: bytes(r#""x""#),
                    ..PublishRequest::default()
                }),
            ),
        ),
        (
            r#"{"id":3,"subscribe":{"channel":"c","type":1,"tf":{"op":"eq","nodes":[{}]}}}"#,
            command(
                3,
                Request::Subscribe(SubscribeRequest {
                    channel: "c".to_owned(),
                    kind: 1,
                    tf: Some(FilterNode {}),
                    ..SubscribeRequest::default()
                }),
            ),
        ),
        (
            r#"{"id":4,"ping":{}}"#,
            command(4, Request::Ping(PingRequest {})),
        ),
        (
            r#"{"send":{"data":null}}"#,
            command(
                0,
                Request::Send(SendRequest {
                    data: bytes("null"),
                }),
            ),
        ),
        ("{}", Command::default()),
        (
            r#"{"id":5,"dance":{"fast":true}}"#,
            Command {
                id: 5,
                request: None,
            },
        ),
    ];
    for (text, command) in cases {
        assert_eq!(decode_json(text), [command], "{text}");
    }
}

#[test]
fn only_an_empty_command_is_a_pong() {
    assert!(decode_json("{}")[0].is_pong());
    assert!(!decode_json(r#"{"id":1}"#)[0].is_pong());
    assert!(!decode_json(r#"{"ping":{}}"#)[0].is_pong());
}

#[test]
fn several_commands_stand_in_one_message() {
    let ids = |commands: Vec<Command>| commands.iter().map(|c| c.id).collect::<Vec<_>>();
    for text in [
        "{\"id\":1}\n{\"id\":2}",
        "{\"id\":1}{\"id\":2}",
        "{\"id\":1}\r\n\n{\"id\":2}\n",
    ] {
        assert_eq!(ids(decode_json(text)), [1, 2], "{text:?}");
    }
    let protobuf = [2, 8, 1, 0, 2, 8, 2];
    let commands = Codec::Protobuf.decode_commands(&protobuf).unwrap();
    assert_eq!(ids(commands), [1, 0, 2]);
    assert_eq!(ids(decode_json("")), [0_u32; 0]);
}

#[test]
fn what_is_no_command_is_refused_as_a_whole() {
    for text in [
        "{\"id\":1}\n{",
        "[]",
        "{\"id\":-1}",
        "{\"id\":1,\"connect\":3}",
        "{\"subscribe\":{\"channel\":7}}",
        "null",
        "\u{0}",
    ] {
        let decoded = Codec::Json.decode_commands(text.as_bytes());
        assert!(
            matches!(decoded, Err(MalformedCommand::Json(_))),
            "{text:?}"
        );
    }
    for data in [
        &[2, 8, 1, 9, 8][..],
        &[0xff; 11],
        &[1],
        &[4, 34, 2, 10, 9], // A token longer than its message.
    ] {
        let decoded = Codec::Protobuf.decode_commands(data);
        assert!(
            matches!(decoded, Err(MalformedCommand::Protobuf(_))),
            "{data:?}"
        );
    }
}

#[test]
fn replies_are_written_as_sdks_read_them() {
    let subscribed = SubscribeResult {
        recoverable: true,
        epoch: "e".to_owned(),
        offset: 2,
        publications: vec![publication("[1, 2]")],
        ..SubscribeResult::default()
    };
    let cases = [
        (
            reply(1, Outcome::Publish(PublishResult {})),
            r#"{"id":1,"publish":{}}"#,
        ),
        (
            reply(2, Outcome::Error(ErrorCode::Internal.into())),
            r#"{"id":2,"error":{"code":100,"message":"internal server error","temporary":true}}"#,
        ),
        (
            reply(3, Outcome::Subscribe(subscribed)),
            r#"{"id":3,"subscribe":{"recoverable":true,"epoch":"e","publications":[{"data":[1, 2]}],"offset":2}}"#,
        ),
        (
            Reply::push(Push::new("c", Event::Publication(publication("\"x\"")))),
            r#"{"push":{"channel":"c","pub":{"data":"x"}}}"#,
        ),
        (
            Reply::push(Push::unsubscribe("c", UnsubscribeCode::InsufficientState)),
            r#"{"push":{"channel":"c","unsubscribe":{"code":2500,"reason":"insufficient state"}}}"#,
        ),
        (Reply::default(), "{}"),
    ];
    for (reply, text) in cases {
        assert_eq!(json(&reply).unwrap(), text);
    }
}

#[test]
fn a_ping_is_an_empty_reply() {
    let mut out = BytesMut::new();
    protobuf::append_reply(&mut out, &Reply::default());
    assert_eq!(out, protobuf::PING);
    assert_eq!(json(&Reply::default()).unwrap().as_bytes(), json::PING);
}

#[test]
fn several_replies_are_one_line_each() {
    let mut out = BytesMut::new();
    for id in [1, 2] {
        let reply = reply(id, Outcome::Ping(PingResult {}));
        Codec::Json.append_reply(&mut out, &reply).unwrap();
    }
    assert_eq!(out, "{\"id\":1,\"ping\":{}}\n{\"id\":2,\"ping\":{}}");
}

#[test]
fn data_over_several_lines_is_written_on_one() {
    let data = "{\r\n  \"a\": \"one\\ntwo\"\n}\n";
    let push = Reply::push(Push::new("c", Event::Publication(publication(data))));
    let line = json(&push).unwrap();
    assert!(!line.contains(['\n', '\r']), "{line:?}");
    let read: Reply = serde_json::from_str(&line).unwrap();
    let Some(Outcome::Push(Push {
        event: Some(Event::Publication(read)),
        ..
    })) = read.outcome
    else {
        panic!("not a publication: {line}");
    };
    let value = |data: &[u8]| serde_json::from_slice::<serde_json::Value>(data).unwrap();
    assert_eq!(value(&read.data), value(data.as_bytes()));
}

#[test]
fn data_that_is_no_json_is_never_written_as_json() {
    for data in [&b"{"[..], b"\xff\xfe", b"1 2", b"\"a\nb\"", b" "] {
        let publication = Publication {
            data: Bytes::copy_from_slice(data),
            ..Publication::default()
        };
        let push = Reply::push(Push::new("c", Event::Publication(publication)));
        let mut out = BytesMut::from("before");
        if data == b"\"a\nb\"" {
            // A line end within a string is no JSON, but the space that takes its place is: nothing breaks.
            assert!(json::append_reply(&mut out, &push).is_ok());
            continue;
        }
        assert!(json::append_reply(&mut out, &push).is_err(), "{data:?}");
        assert_eq!(out, "before");
    }
}

#[test]
fn an_error_code_says_whether_to_try_again() {
    for code in ErrorCode::ALL {
        let temporary = [100, 111].contains(&(code as u32));
        assert_eq!(code.is_temporary(), temporary, "{code:?}");
        assert!(!code.message().is_empty());
    }
}

#[test]
fn protobuf_data_is_not_copied_out_of_its_message() {
    let whole = Bytes::from(publication(&"x".repeat(1000)).encode_to_vec());
    let read = Publication::decode(whole.clone()).unwrap();
    let (start, end) = (
        whole.as_ptr() as usize,
        whole.as_ptr() as usize + whole.len(),
    );
    assert!((start..end).contains(&(read.data.as_ptr() as usize)));
}

fn any_json() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        Just(Bytes::new()),
        Just(bytes("null")),
        any::<i64>().prop_map(|n| bytes(&n.to_string())),
        any::<String>().prop_map(|text| bytes(&serde_json::to_string(&text).unwrap())),
        vec(any::<String>(), 0..3).prop_map(|list| bytes(&serde_json::to_string(&list).unwrap())),
    ]
}

fn any_info() -> impl Strategy<Value = ClientInfo> {
    (any::<String>(), any::<String>(), any_json(), any_json()).prop_map(
        |(user, client, conn_info, chan_info)| ClientInfo {
            user,
            client,
            conn_info,
            chan_info,
        },
    )
}

fn any_publication() -> impl Strategy<Value = Publication> {
    let tags = btree_map(any::<String>(), any::<String>(), 0..3);
    let info = proptest::option::of(any_info());
    (any_json(), info, any::<u64>(), tags, any::<i64>()).prop_map(
        |(data, info, offset, tags, time)| Publication {
            data,
            info,
            offset,
            tags,
            time,
        },
    )
}

fn any_subscribe() -> impl Strategy<Value = SubscribeRequest> {
    (
        any::<String>(),
        any::<String>(),
        any::<bool>(),
        any::<u64>(),
        any_json(),
        any::<i32>(),
    )
        .prop_map(
            |(channel, token, flag, offset, data, kind)| SubscribeRequest {
                channel,
                token,
                recover: flag,
                epoch: offset.to_string(),
                offset,
                data,
                positioned: !flag,
                recoverable: flag,
                join_leave: !flag,
                delta: String::new(),
                tf: flag.then_some(FilterNode {}),
                flag: i64::from(kind),
                kind,
            },
        )
}

fn any_request() -> impl Strategy<Value = Request> {
    let connect = (
        any::<String>(),
        any_json(),
        btree_map(any::<String>(), any_subscribe(), 0..3),
        btree_map(any::<String>(), any::<String>(), 0..3),
    )
        .prop_map(|(token, data, subs, headers)| {
            Request::Connect(ConnectRequest {
                token,
                data,
                subs,
                headers,
                ..ConnectRequest::default()
            })
        });
    let history = (any::<String>(), any::<i32>(), any::<Option<u64>>()).prop_map(
        |(channel, limit, since)| {
            Request::History(HistoryRequest {
                channel,
                limit,
                since: since.map(|offset| StreamPosition {
                    offset,
                    epoch: "e".to_owned(),
                }),
                reverse: 0 < limit,
            })
        },
    );
    prop_oneof![
        connect,
        any_subscribe().prop_map(Request::Subscribe),
        history,
        (any::<String>(), any_json()).prop_map(|(channel, data)| {
            Request::Publish(PublishRequest {
                channel,
                data,
                kind: 0,
            })
        }),
        any_json().prop_map(|data| Request::Send(SendRequest { data })),
        (any_json(), any::<String>())
            .prop_map(|(data, method)| Request::Rpc(RpcRequest { data, method })),
        Just(Request::Ping(PingRequest {})),
    ]
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        (any::<u32>(), any::<String>(), any::<bool>()).prop_map(|(code, message, temporary)| {
            Outcome::Error(ProtocolError {
                code,
                message,
                temporary,
            })
        }),
        (any::<String>(), any_publication()).prop_map(|(channel, publication)| {
            Outcome::Push(Push::new(&channel, Event::Publication(publication)))
        }),
        (any::<String>(), any_info()).prop_map(|(channel, info)| {
            Outcome::Push(Push::new(&channel, Event::Join(Join { info: Some(info) })))
        }),
        (vec(any_publication(), 0..3), any::<u64>()).prop_map(|(publications, offset)| {
            Outcome::Subscribe(SubscribeResult {
                publications,
                offset,
                recovered: offset % 2 == 0,
                ..SubscribeResult::default()
            })
        }),
        btree_map(any::<String>(), any_info(), 0..3)
            .prop_map(|presence| Outcome::Presence(PresenceResult { presence })),
        Just(Outcome::Ping(PingResult {})),
    ]
}

proptest! {
    #[test]
    fn commands_read_back_as_they_were_written(
        commands in vec((any::<u32>(), proptest::option::of(any_request())), 0..4)
    ) {
        let commands: Vec<Command> =
            commands.into_iter().map(|(id, request)| Command { id, request }).collect();
        let mut protobuf = Vec::new();
        let mut json = Vec::new();
        for command in &commands {
            command.encode_length_delimited(&mut protobuf).unwrap();
            serde_json::to_writer(&mut json, command).unwrap();
        }
        prop_assert_eq!(&Codec::Protobuf.decode_commands(&protobuf).unwrap(), &commands);
        prop_assert_eq!(&Codec::Json.decode_commands(&json).unwrap(), &commands);
    }

    #[test]
    fn replies_read_back_as_they_were_written(id in any::<u32>(), outcome in any_outcome()) {
        let reply = reply(id, outcome);
        let mut protobuf = BytesMut::new();
        Codec::Protobuf.append_reply(&mut protobuf, &reply).unwrap();
        prop_assert_eq!(&Reply::decode_length_delimited(protobuf.freeze()).unwrap(), &reply);
        let line = json(&reply).unwrap();
        prop_assert!(!line.contains(['\n', '\r']));
        prop_assert_eq!(&serde_json::from_str::<Reply>(&line).unwrap(), &reply);
    }

    #[test]
    fn no_bytes_make_a_codec_panic(data in vec(any::<u8>(), 0..200)) {
        let _ = Codec::Protobuf.decode_commands(&data);
        let _ = Codec::Json.decode_commands(&data);
    }
}
