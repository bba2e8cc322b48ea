//! Upgrades where Pingora reads the requests: detaches the connection from Pingora inside the request filter.
//!
//! A session without a connection takes its place, which Pingora then finishes.

use std::io::Cursor;
use std::time::Instant;

use bytes::BytesMut;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Version};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::server::HttpSession;
use pingora_proxy::Session;

use crate::downstream::Connection;
use crate::http::fields::Request as _;
use crate::http::http1::{BodyLength, RequestHead};
use crate::limits::Permits;
use crate::request::error::Rejection;
use crate::request::forward::{Engine, Incoming, Upgrade, may_upgrade};

/// The result of [`detach_upgrade`].
pub(super) enum UpgradeOutcome {
    /// The request is not an upgrade that its route allows.
    NotUpgrade,
    /// The request has been served: its connection was detached from the session.
    Detached,
    /// The request is to be rejected; its connection is still in the session.
    Rejected(Rejection),
}

/// Serves the request of `downstream` with `engine` if it is an upgrade that its route allows.
pub(super) async fn detach_upgrade(engine: &Engine, downstream: &mut Session) -> UpgradeOutcome {
    let ServerSession::H1(_) = downstream.as_downstream() else {
        return UpgradeOutcome::NotUpgrade;
    };
    let request = downstream.req_header();
    let Some(protocol) = allowed_upgrade(engine, request) else {
        return UpgradeOutcome::NotUpgrade;
    };
    if !has_no_body(request) {
        return UpgradeOutcome::Rejected(Rejection::Malformed("an upgrade with a body"));
    }
    // Pingora owns the connections: only tunnels are counted.
    let permit = match engine.proxy.gate.connection(None, Instant::now()) {
        Ok(permit) => permit,
        Err(limit) => return UpgradeOutcome::Rejected(Rejection::Limited(limit)),
    };
    let upgrade = Upgrade {
        protocol,
        connection: Permits::new(permit, None),
    };
    detach(engine, downstream, upgrade).await;
    UpgradeOutcome::Detached
}

/// Detaches the connection from `downstream`, and serves its request.
async fn detach(engine: &Engine, downstream: &mut Session, upgrade: Upgrade) {
    let request = downstream.req_header().clone();
    let mut replacement = ServerSession::new_http1(Box::new(Cursor::new(Vec::new())));
    // A proxy that wraps the edge may still read the request and the address of its client.
    if !set_request(&mut replacement, request.clone()).await {
        return;
    }
    // Pingora looks up addresses at the socket and caches them: do so before it is detached.
    let _ = (downstream.client_addr(), downstream.server_addr());
    if let (Some(new), Some(old)) = (
        replacement.digest_mut(),
        downstream.as_downstream().digest(),
    ) {
        *new = old.clone();
    }
    replacement.set_keepalive(None);
    let taken = std::mem::replace(downstream.as_downstream_mut(), replacement);
    if let ServerSession::H1(session) = taken
        && let Some(mut client) = connection_of(session).await
        && let Some(head) = RequestHead::of(&request)
    {
        let body = BodyLength::Bytes(0);
        client.begin_request(0, body, head.version());
        let incoming = Incoming {
            client,
            head,
            body,
            upgrade: Some(upgrade),
        };
        // An upgrade is always the last request of its connection.
        let _ = engine.serve(incoming).await;
    }
}

/// Sets `request` as the request of a session that has read nothing yet. Whether that succeeded.
async fn set_request(session: &mut ServerSession, request: RequestHeader) -> bool {
    // Pingora sets a head only by parsing bytes; that head is then replaced by `request`.
    session.set_pipelined_prefix(BytesMut::from(&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..]));
    let read = matches!(session.read_request().await, Ok(true));
    if read {
        *session.req_header_mut() = request;
    }
    read
}

/// The protocol of the upgrade, if `request` is one that its route allows.
fn allowed_upgrade(engine: &Engine, request: &RequestHeader) -> Option<String> {
    let protocols = requested_upgrades(request)?;
    let host = request
        .headers
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    let target = std::str::from_utf8(request.raw_path()).ok()?;
    engine.proxy.allowed_upgrade(host, target, &protocols)
}

/// The connection of a request without a body, with the bytes that were read after its head.
async fn connection_of(mut session: HttpSession) -> Option<Connection> {
    // Pingora returns the bytes that it has read ahead only for a next request on the same connection.
    session.set_server_keepalive(Some(1));
    session.set_keepalive_reuses_remaining(None);
    session.set_pipelining_enabled(true);
    let (stream, ahead) = session.reuse().await.ok()??.into_parts();
    let mut connection = Connection::new(stream);
    connection.ahead = ahead.unwrap_or_default();
    Some(connection)
}

/// The protocols in the Upgrade header of `request`, in order of preference, if it is an upgrade (RFC 9110, 7.8).
pub(crate) fn requested_upgrades(request: &RequestHeader) -> Option<Vec<String>> {
    let tokens = |name| {
        let values = request.headers.get_all(name).into_iter();
        values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|token| token.trim().to_ascii_lowercase())
    };
    let is_upgrade =
        request.version == Version::HTTP_11 && tokens(CONNECTION).any(|token| token == "upgrade");
    let method = request.method.as_str();
    let protocols: Vec<String> = tokens(UPGRADE)
        .filter(|token| !token.is_empty() && may_upgrade(method, token))
        .collect();
    (is_upgrade && !protocols.is_empty()).then_some(protocols)
}

/// Whether `request` certainly has no body.
pub(crate) fn has_no_body(request: &RequestHeader) -> bool {
    let values = |name| request.headers.get_all(name).into_iter();
    let length = BodyLength::of_request(
        request.version,
        values(CONTENT_LENGTH).map(HeaderValue::as_bytes),
        values(TRANSFER_ENCODING).map(HeaderValue::as_bytes),
    );
    length == Ok(BodyLength::Bytes(0))
}
