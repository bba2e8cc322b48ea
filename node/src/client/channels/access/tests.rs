use bytes::Bytes;

use super::*;
use crate::config::Ack;
use crate::config::HistoryOptions;
use crate::config::SlowReader;
use crate::protocol::FilterNode;

const CODE: ErrorCode = ErrorCode::PermissionDenied;

fn options() -> ChannelOptions {
    ChannelOptions {
        namespace: "chat".to_owned(),
        subscribe: SubscribeAccess::Anyone,
        user_limited: false,
        publish: PublishAccess::Anyone,
        read_presence: ReadAccess::Anyone,
        read_history: ReadAccess::Anyone,
        history: None,
        recovery: false,
        presence: false,
        join_leave: false,
        force_push_join_leave: false,
        lifecycle: false,
        data: DataKind::Json,
        slow: SlowReader::Disconnect,
        ack: Ack::Fast,
    }
}

fn asking<'a>(channel: &'a str, user: &'a str, is_subscribed: bool) -> Asking<'a> {
    Asking {
        channel,
        user,
        is_subscribed,
    }
}

#[test]
fn who_may_subscribe() {
    use SubscribeAccess::*;
    for (access, user, has_token, expected) in [
        (Nobody, "ann", true, Err(CODE)),
        (Nobody, "ann", false, Err(CODE)),
        (Token, "ann", false, Err(CODE)),
        (Token, "", true, Ok(Way::Token)),
        (Hook, "", false, Ok(Way::Hook)),
        (Hook, "", true, Ok(Way::Token)),
        (Authenticated, "", false, Err(CODE)),
        (Authenticated, "ann", false, Ok(Way::Open)),
        (Authenticated, "ann", true, Ok(Way::Token)),
        (Anyone, "", false, Ok(Way::Open)),
        (Anyone, "", true, Ok(Way::Token)),
    ] {
        let options = ChannelOptions {
            subscribe: access,
            ..options()
        };
        let way = subscribe(&options, asking("chat:a", user, false), has_token);
        assert_eq!(way, expected, "{access:?} {user:?} {has_token}");
    }
}

#[test]
fn a_name_that_names_users_is_for_them_where_it_means_something() {
    for (user_limited, access, user, expected) in [
        (true, SubscribeAccess::Token, "42", Ok(Way::Open)),
        (true, SubscribeAccess::Token, "7", Err(CODE)),
        (true, SubscribeAccess::Anyone, "7", Err(CODE)),
        (true, SubscribeAccess::Anyone, "", Err(CODE)),
        (true, SubscribeAccess::Nobody, "42", Err(CODE)),
        (false, SubscribeAccess::Anyone, "7", Ok(Way::Open)),
        (false, SubscribeAccess::Token, "42", Err(CODE)),
    ] {
        let options = ChannelOptions {
            subscribe: access,
            user_limited,
            ..options()
        };
        let way = subscribe(&options, asking("chat:inbox#42,43", user, false), false);
        assert_eq!(way, expected, "{user_limited} {access:?} {user:?}");
    }
}

#[test]
fn who_may_publish() {
    use PublishAccess::*;
    for (access, user, is_subscribed, expected) in [
        (Nobody, "ann", true, Err(CODE)),
        (Hook, "", false, Ok(Way::Hook)),
        (Subscribers, "ann", false, Err(CODE)),
        (Subscribers, "", true, Ok(Way::Open)),
        (Authenticated, "", true, Err(CODE)),
        (Authenticated, "ann", false, Ok(Way::Open)),
        (Anyone, "", false, Ok(Way::Open)),
    ] {
        let options = ChannelOptions {
            publish: access,
            ..options()
        };
        let way = publish(&options, asking("chat:a", user, is_subscribed));
        assert_eq!(way, expected, "{access:?} {user:?} {is_subscribed}");
    }
}

#[test]
fn who_may_ask() {
    use ReadAccess::*;
    for (access, user, is_subscribed, expected) in [
        (Nobody, "ann", true, Err(CODE)),
        (Subscribers, "ann", false, Err(CODE)),
        (Subscribers, "", true, Ok(())),
        (Authenticated, "", true, Err(CODE)),
        (Authenticated, "ann", false, Ok(())),
        (Anyone, "", false, Ok(())),
    ] {
        let options = ChannelOptions {
            read_presence: access,
            read_history: access,
            presence: true,
            history: Some(HistoryOptions {
                size: 1,
                lifetime: std::time::Duration::from_secs(1),
                meta_lifetime: std::time::Duration::from_secs(1),
            }),
            ..options()
        };
        let asking = asking("chat:a", user, is_subscribed);
        assert_eq!(presence(&options, asking), expected, "{access:?} {user:?}");
        assert_eq!(history(&options, asking), expected, "{access:?} {user:?}");
    }
}

#[test]
fn what_is_not_kept_cannot_be_asked_for() {
    let asking = asking("chat:a", "ann", true);
    assert_eq!(presence(&options(), asking), Err(ErrorCode::NotAvailable));
    assert_eq!(history(&options(), asking), Err(ErrorCode::NotAvailable));
}

#[test]
fn only_a_protobuf_client_takes_part_in_a_binary_channel() {
    for (data, spoken, fits) in [
        (DataKind::Json, Codec::Json, true),
        (DataKind::Json, Codec::Protobuf, true),
        (DataKind::Binary, Codec::Protobuf, true),
        (DataKind::Binary, Codec::Json, false),
    ] {
        let options = ChannelOptions { data, ..options() };
        let result = codec(&options, spoken);
        assert_eq!(result.is_ok(), fits, "{data:?} {spoken:?}");
        if let Err(error) = result {
            assert_eq!(error.code, ErrorCode::NotAvailable as u32);
            assert!(error.message.contains("Protobuf"), "{}", error.message);
        }
    }
}

#[test]
fn what_is_not_offered_is_refused() {
    let plain = SubscribeRequest::default();
    assert_eq!(is_offered(&plain), Ok(()));
    for request in [
        SubscribeRequest {
            kind: 1,
            ..plain.clone()
        },
        SubscribeRequest {
            delta: "fossil".to_owned(),
            ..plain.clone()
        },
        SubscribeRequest {
            tf: Some(FilterNode {}),
            ..plain.clone()
        },
    ] {
        assert_eq!(is_offered(&request), Err(ErrorCode::NotAvailable));
    }
}

#[test]
fn a_publication_is_what_its_channel_carries() {
    for (data, bytes, kind, expected) in [
        (DataKind::Json, &b"{\"a\": 1}"[..], 0, Ok(())),
        (DataKind::Json, b"null", 0, Ok(())),
        (DataKind::Json, b"", 0, Err(ErrorCode::BadRequest)),
        (DataKind::Json, b"{", 0, Err(ErrorCode::BadRequest)),
        (DataKind::Json, b"1 2", 0, Err(ErrorCode::BadRequest)),
        (DataKind::Json, b"\xff", 0, Err(ErrorCode::BadRequest)),
        (DataKind::Binary, b"\xff", 0, Ok(())),
        (DataKind::Binary, b"", 0, Ok(())),
        (DataKind::Json, b"1", 1, Err(ErrorCode::NotAvailable)),
    ] {
        let options = ChannelOptions { data, ..options() };
        let request = PublishRequest {
            data: Bytes::from_static(bytes),
            kind,
            ..PublishRequest::default()
        };
        let publishable = is_publishable(&options, &request).map_err(|error| error.code);
        assert_eq!(
            publishable,
            expected.map_err(|code| code as u32),
            "{bytes:?}"
        );
    }
}

#[test]
fn what_a_backend_is_told_is_json_that_parsers_read() {
    let deep = "[".repeat(61) + &"]".repeat(61);
    for (codec, data, readable) in [
        (Codec::Json, &deep[1..121], true),
        (Codec::Json, &deep, false),
        // Bytes are not JSON, whatever they look like.
        (Codec::Protobuf, &deep, true),
    ] {
        let read = is_readable(codec, data.as_bytes());
        assert_eq!(read.is_ok(), readable, "{codec:?} {data}");
    }
}
