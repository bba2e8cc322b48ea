//! Tests of the opening handshake: the RFC's own example, and one wrong thing at a time.

use http::Request;

use super::*;

fn request(change: impl FnOnce(&mut Parts)) -> Parts {
    let (mut parts, ()) = Request::get("/ws")
        .header("host", "node")
        .header("upgrade", "websocket")
        .header("connection", "Upgrade")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-version", "13")
        .body(())
        .unwrap()
        .into_parts();
    change(&mut parts);
    parts
}

fn with(name: &'static str, value: &'static str) -> Parts {
    request(|parts| {
        parts.headers.insert(name, HeaderValue::from_static(value));
    })
}

fn without(name: &str) -> Parts {
    request(|parts| {
        parts.headers.remove(name);
    })
}

#[test]
fn the_example_of_the_rfc_is_accepted() {
    let headers = accept(&request(|_| ()), false).unwrap();
    assert_eq!(
        headers["sec-websocket-accept"],
        "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    );
    assert_eq!(headers["upgrade"], "websocket");
    assert_eq!(headers["connection"], "Upgrade");
}

#[test]
fn what_browsers_and_proxies_send_is_accepted() {
    for parts in [
        with("upgrade", "WebSocket"),
        with("connection", "keep-alive, Upgrade"),
        with("connection", "upgrade"),
        with("sec-websocket-extensions", "permessage-deflate"),
        with("sec-websocket-protocol", "chat"),
    ] {
        let headers = accept(&parts, false).unwrap();
        assert_eq!(headers.len(), 3, "extensions and subprotocols are declined");
    }
}

#[test]
fn one_wrong_thing_is_named() {
    for (parts, error) in [
        (without("upgrade"), BadHandshake::NoUpgrade),
        (with("upgrade", "h2c"), BadHandshake::NoUpgrade),
        (without("connection"), BadHandshake::NoConnection),
        (with("connection", "close"), BadHandshake::NoConnection),
        (without("sec-websocket-version"), BadHandshake::BadVersion),
        (with("sec-websocket-version", "8"), BadHandshake::BadVersion),
        (without("sec-websocket-key"), BadHandshake::BadKey),
        (with("sec-websocket-key", ""), BadHandshake::BadKey),
        (
            with("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ"),
            BadHandshake::BadKey,
        ),
        (
            with("sec-websocket-key", "dGhlIHNhbXBsZSBub25j!Q=="),
            BadHandshake::BadKey,
        ),
        (
            request(|parts| parts.version = Version::HTTP_10),
            BadHandshake::NotValid,
        ),
    ] {
        assert_eq!(accept(&parts, false), Err(error));
    }
    assert_eq!(accept(&request(|_| ()), true), Err(BadHandshake::NotValid));
}

#[test]
fn two_keys_are_none() {
    let parts = request(|parts| {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        parts.headers.append("sec-websocket-key", key);
    });
    assert_eq!(accept(&parts, false), Err(BadHandshake::BadKey));
}

#[test]
fn another_version_is_told_ours() {
    let mut headers = HeaderMap::new();
    assert_eq!(
        BadHandshake::BadVersion.respond(&mut headers),
        StatusCode::UPGRADE_REQUIRED
    );
    assert_eq!(headers["sec-websocket-version"], "13");
}

#[test]
fn a_channel_client_speaks_what_it_offers_and_json_if_it_says_nothing() {
    for (offered, codec, named) in [
        (None, Codec::Json, None),
        (Some("chat"), Codec::Json, None),
        (
            Some("centrifuge-json"),
            Codec::Json,
            Some("centrifuge-json"),
        ),
        (
            Some("centrifuge-protobuf"),
            Codec::Protobuf,
            Some("centrifuge-protobuf"),
        ),
        (
            Some("chat, centrifuge-protobuf"),
            Codec::Protobuf,
            Some("centrifuge-protobuf"),
        ),
    ] {
        let mut request = HeaderMap::new();
        if let Some(offered) = offered {
            let offered = HeaderValue::from_static(offered);
            request.insert(header::SEC_WEBSOCKET_PROTOCOL, offered);
        }
        let mut response = HeaderMap::new();
        assert_eq!(choose_codec(&request, &mut response), codec, "{offered:?}");
        let answered = response.get(header::SEC_WEBSOCKET_PROTOCOL);
        assert_eq!(answered.map(|name| name.to_str().unwrap()), named);
    }
}
