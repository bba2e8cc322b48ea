//! How requests are read and responses written. What they do is tested end to end.

use super::*;

fn error(method: &str, body: &str) -> String {
    let error = Request::parse(method, body.as_bytes()).unwrap_err();
    let (status, body) = refuse(error);
    format!("{} {}", status.as_u16(), String::from_utf8_lossy(&body))
}

#[test]
fn what_cannot_be_understood_is_named() {
    for (method, body, expected) in [
        (
            "",
            "{}",
            r#"404 {"error":{"code":104,"message":"method not found: \"\""}}"#,
        ),
        (
            "rpc",
            "{}",
            r#"404 {"error":{"code":104,"message":"method not found: \"rpc\""}}"#,
        ),
        ("publish", "{", "400 "),
        ("publish", "[]", "400 "),
        ("publish", r#"{"channel":1}"#, "400 "),
        ("publish", r#"{"ack":"soon"}"#, "400 "),
        ("publish", r#"{"tags":{"a":1}}"#, "400 "),
        ("history", r#"{"limit":"all"}"#, "400 "),
    ] {
        let found = error(method, body);
        assert!(found.starts_with(expected), "{method} {body}: {found}");
        assert!(found.contains(r#""code":10"#), "{found}");
    }
}

#[test]
fn unknown_fields_are_passed_over_and_missing_ones_have_their_defaults() {
    let body = br#"{"channel":"a","data":{"x": [1 ,2]},"later":{"version":3}}"#;
    let Ok(Request::Publish(publish)) = Request::parse("publish", body) else {
        panic!("a publish is expected")
    };
    assert_eq!(publish.data().unwrap(), r#"{"x": [1 ,2]}"#);
    assert!(!publish.skip_history && publish.ack.is_none() && publish.tags.is_empty());
    assert!(Request::parse("info", b"").is_ok());
    assert!(matches!(
        Request::parse("channels", b"{}"),
        Ok(Request::Channels(_))
    ));
}

#[test]
fn data_is_json_or_base64() {
    let data = |body: &str| match Request::parse("publish", body.as_bytes()) {
        Ok(Request::Publish(publish)) => publish.data(),
        other => panic!("a publish is expected: {other:?}"),
    };
    assert_eq!(data(r#"{"data":null}"#).unwrap(), "null");
    assert_eq!(data(r#"{"data":null,"b64data":null}"#).unwrap(), "null");
    assert_eq!(data(r#"{"b64data":""}"#).unwrap(), "");
    assert_eq!(data(r#"{"b64data":null}"#).unwrap_err().code, 107);
    let deep = format!("{{\"data\":{}{}}}", "[".repeat(61), "]".repeat(61));
    assert_eq!(data(&deep).unwrap_err().code, 107);
    assert_eq!(data(r#"{"data":0}"#).unwrap(), "0");
    assert_eq!(data(r#"{"data":1,"b64data":"/w=="}"#).unwrap(), b"\xff"[..]);
    assert_eq!(data(r#"{"b64data":"?"}"#).unwrap_err().code, 107);
    assert_eq!(data("{}").unwrap_err().code, 107);
}

#[test]
fn the_target_of_a_request_is_a_user_a_client_or_both_or_a_session() {
    use crate::protocol::instance::ClientId;
    use crate::protocol::instance::Instance;

    let client = ClientId::random(Instance::random());
    let target = |user: &str, client: &str, session: &str| {
        let target = request::ClientTarget {
            user: user.to_owned(),
            client: client.to_owned(),
            session: session.to_owned(),
        };
        target.target(Vec::new()).map_err(|error| error.code)
    };
    let (id, user) = (client.to_string(), "ann".to_owned());
    assert_eq!(target("", &id, ""), Ok(Target::Client(client)));
    assert_eq!(
        target("ann", &id, ""),
        Ok(Target::ClientOf { user, client })
    );
    let (user, except) = ("ann".to_owned(), Vec::new());
    assert_eq!(target("ann", "", ""), Ok(Target::User { user, except }));
    assert_eq!(target("", "", ""), Err(107));
    assert_eq!(target("ann", "x", ""), Err(107));
    let session = client;
    for user in ["", "ann"] {
        let expected = Target::Session {
            user: user.to_owned(),
            session,
        };
        assert_eq!(target(user, "", &id), Ok(expected));
    }
    assert_eq!(target("ann", "", "x"), Err(107));
    assert_eq!(target("ann", &id, &id), Err(107));
}

#[test]
fn a_page_of_history_is_never_larger_than_the_limit() {
    for (limit, page) in [(0, 0), (1, 1), (10, 10), (11, 10), (-1, 10), (i64::MIN, 10)] {
        let history = request::History {
            limit,
            ..request::History::default()
        };
        assert_eq!(history.page(10), page, "{limit}");
    }
}

#[test]
fn a_command_of_a_batch_is_one_method_with_its_parameters() {
    let read = |text: &str| serde_json::from_str::<Request>(text).map(|request| request.method());
    assert_eq!(
        read(r#"{"publish":{"channel":"a","data":1}}"#).unwrap(),
        "publish"
    );
    assert_eq!(
        read(r#"{"presence_stats":{"channel":"a"}}"#).unwrap(),
        "presence_stats"
    );
    for wrong in ["{}", r#"{"rpc":{}}"#, r#"{"publish":{},"info":{}}"#, "1"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn results_are_written_as_sdks_read_them() {
    let text = |outcome: Outcome| serde_json::to_string(&outcome).unwrap();
    assert_eq!(text(Outcome::Done {}), "{}");
    assert_eq!(text(Outcome::Published(reply::Published::default())), "{}");
    let published = reply::Published {
        offset: 7,
        epoch: "e".to_owned(),
    };
    let responses = vec![
        Response::Result(published),
        Response::Error(ApiError::unknown_channel()),
    ];
    assert_eq!(
        text(Outcome::Broadcast { responses }),
        r#"{"responses":[{"result":{"offset":7,"epoch":"e"}},{"error":{"code":102,"message":"unknown channel"}}]}"#
    );
    assert_eq!(text(Outcome::Value { value: None }), r#"{"value":null}"#);
}
