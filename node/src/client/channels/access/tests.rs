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

fn subject<'a>(channel: &'a str, user: &'a str, is_subscribed: bool) -> Subject<'a> {
    Subject {
        channel,
        user,
        is_subscribed,
    }
}

#[test]
fn subscribe_access() {
    use SubscribeAccess::*;
    for (access, user, has_token, expected) in [
        (Nobody, "ann", true, Err(CODE)),
        (Nobody, "ann", false, Err(CODE)),
        (Token, "ann", false, Err(CODE)),
        (Token, "", true, Ok(Decision::Token)),
        (Hook, "", false, Ok(Decision::Hook)),
        (Hook, "", true, Ok(Decision::Token)),
        (Authenticated, "", false, Err(CODE)),
        (Authenticated, "ann", false, Ok(Decision::Allowed)),
        (Authenticated, "ann", true, Ok(Decision::Token)),
        (Anyone, "", false, Ok(Decision::Allowed)),
        (Anyone, "", true, Ok(Decision::Token)),
    ] {
        let options = ChannelOptions {
            subscribe: access,
            ..options()
        };
        let decision = subscribe(&options, subject("chat:a", user, false), has_token);
        assert_eq!(decision, expected, "{access:?} {user:?} {has_token}");
    }
}

#[test]
fn a_channel_name_with_users_is_limited_to_them_if_configured() {
    for (user_limited, access, user, expected) in [
        (true, SubscribeAccess::Token, "42", Ok(Decision::Allowed)),
        (true, SubscribeAccess::Token, "7", Err(CODE)),
        (true, SubscribeAccess::Anyone, "7", Err(CODE)),
        (true, SubscribeAccess::Anyone, "", Err(CODE)),
        (true, SubscribeAccess::Nobody, "42", Err(CODE)),
        (false, SubscribeAccess::Anyone, "7", Ok(Decision::Allowed)),
        (false, SubscribeAccess::Token, "42", Err(CODE)),
    ] {
        let options = ChannelOptions {
            subscribe: access,
            user_limited,
            ..options()
        };
        let decision = subscribe(&options, subject("chat:inbox#42,43", user, false), false);
        assert_eq!(decision, expected, "{user_limited} {access:?} {user:?}");
    }
}

#[test]
fn publish_access() {
    use PublishAccess::*;
    for (access, user, is_subscribed, expected) in [
        (Nobody, "ann", true, Err(CODE)),
        (Hook, "", false, Ok(Decision::Hook)),
        (Subscribers, "ann", false, Err(CODE)),
        (Subscribers, "", true, Ok(Decision::Allowed)),
        (Authenticated, "", true, Err(CODE)),
        (Authenticated, "ann", false, Ok(Decision::Allowed)),
        (Anyone, "", false, Ok(Decision::Allowed)),
    ] {
        let options = ChannelOptions {
            publish: access,
            ..options()
        };
        let decision = publish(&options, subject("chat:a", user, is_subscribed));
        assert_eq!(decision, expected, "{access:?} {user:?} {is_subscribed}");
    }
}

#[test]
fn presence_and_history_access() {
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
        let subject = subject("chat:a", user, is_subscribed);
        assert_eq!(presence(&options, subject), expected, "{access:?} {user:?}");
        assert_eq!(history(&options, subject), expected, "{access:?} {user:?}");
    }
}

#[test]
fn presence_and_history_are_not_available_if_they_are_off() {
    let subject = subject("chat:a", "ann", true);
    assert_eq!(presence(&options(), subject), Err(ErrorCode::NotAvailable));
    assert_eq!(history(&options(), subject), Err(ErrorCode::NotAvailable));
}

#[test]
fn only_protobuf_clients_can_use_a_binary_channel() {
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
fn unsupported_features_are_rejected() {
    let plain = SubscribeRequest::default();
    assert_eq!(is_supported(&plain), Ok(()));
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
        assert_eq!(is_supported(&request), Err(ErrorCode::NotAvailable));
    }
}

#[test]
fn a_publication_has_data_of_its_channels_kind() {
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
fn data_for_a_backend_is_json_that_common_parsers_accept() {
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
