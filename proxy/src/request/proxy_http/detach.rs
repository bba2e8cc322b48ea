//! Upgrades where Pingora reads the requests: the connection leaves Pingora's hands inside the request filter.
//!
//! What is left behind is a session on no connection, which Pingora finishes and forgets.

use std::io::Cursor;
use std::time::Instant;

use bytes::BytesMut;
use http::Version;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::server::HttpSession;
use pingora_proxy::Session;

use crate::downstream::{BodyLength, Connection};
use crate::http::fields::Request as _;
use crate::http::http1::RequestHead;
use crate::limits::Pass;
use crate::request::error::Rejection;
use crate::request::forward::{Engine, Incoming, Upgrade, may_upgrade};

/// What became of a request.
pub(super) enum UpgradeOutcome {
    /// It is none of ours.
    NotUpgrade,
    /// It has been answered, or is a tunnel: its connection is gone from the session.
    Detached,
    /// It is to be refused, and its connection is where it was.
    Rejected(Rejection),
}

/// Has `engine` serve the request of `downstream` if it is an upgrade that its route allows, whatever comes of it.
pub(super) async fn detach_upgrade(engine: &Engine, downstream: &mut Session) -> UpgradeOutcome {
    let ServerSession::H1(_) = downstream.as_downstream() else {
        return UpgradeOutcome::NotUpgrade;
    };
    let request = downstream.req_header();
    let Some(protocol) = allowed(engine, request) else {
        return UpgradeOutcome::NotUpgrade;
    };
    if body_length(request) != BodyLength::Bytes(0) {
        return UpgradeOutcome::Rejected(Rejection::Malformed("an upgrade with a body"));
    }
    // Of connections, tunnels alone are ours to count.
    let permit = match engine.proxy.gate.connection(None, Instant::now()) {
        Ok(permit) => permit,
        Err(limit) => return UpgradeOutcome::Rejected(Rejection::Limited(limit)),
    };
    let upgrade = Upgrade {
        protocol,
        connection: Pass::new(permit, None),
    };
    detach(engine, downstream, upgrade).await;
    UpgradeOutcome::Detached
}

/// Takes the connection out of `downstream`, and serves its request.
async fn detach(engine: &Engine, downstream: &mut Session, upgrade: Upgrade) {
    let request = downstream.req_header().clone();
    let mut left_behind = ServerSession::new_http1(Box::new(Cursor::new(Vec::new())));
    // A proxy that wraps the edge may still ask what the request was, and whose.
    if !set_request(&mut left_behind, request.clone()).await {
        return;
    }
    // Addresses are looked up at the socket, and kept: by now it is still the client's.
    let _ = (downstream.client_addr(), downstream.server_addr());
    if let (Some(left), Some(of_client)) = (
        left_behind.digest_mut(),
        downstream.as_downstream().digest(),
    ) {
        *left = of_client.clone();
    }
    left_behind.set_keepalive(None);
    let taken = std::mem::replace(downstream.as_downstream_mut(), left_behind);
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
        // An upgrade is the last request of its connection.
        let _ = engine.serve(incoming).await;
    }
}

/// Has a session that has read nothing yet stand for `request`. Whether it does.
async fn set_request(session: &mut ServerSession, request: RequestHeader) -> bool {
    // Pingora takes a head only from bytes; these give way to the one that it has parsed already.
    session.set_pipelined_prefix(BytesMut::from(&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..]));
    let read = matches!(session.read_request().await, Ok(true));
    if read {
        *session.req_header_mut() = request;
    }
    read
}

/// The upgrade that the route of `request` lets through, if it asks for one.
fn allowed(engine: &Engine, request: &RequestHeader) -> Option<String> {
    let protocols = requested_upgrades(request)?;
    let host = request
        .headers
        .get(HOST)
        .and_then(|host| host.to_str().ok());
    let target = std::str::from_utf8(request.raw_path()).ok()?;
    engine.proxy.allowed_upgrade(host, target, &protocols)
}

/// The connection of a request without a body, with all that was read behind its head.
async fn connection_of(mut session: HttpSession) -> Option<Connection> {
    // Pingora hands out what it read too much only for the next request of the same connection.
    session.set_server_keepalive(Some(1));
    session.set_keepalive_reuses_remaining(None);
    session.set_pipelining_enabled(true);
    let (stream, ahead) = session.reuse().await.ok()??.into_parts();
    let mut connection = Connection::new(stream);
    connection.ahead = ahead.unwrap_or_default();
    Some(connection)
}

/// What `request` would switch to, best first, if it asks for a switch at all (RFC 9110, 7.8).
pub(crate) fn requested_upgrades(request: &RequestHeader) -> Option<Vec<String>> {
    let tokens = |name| {
        let values = request.headers.get_all(name).into_iter();
        values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(|token| token.trim().to_ascii_lowercase())
    };
    let asks =
        request.version == Version::HTTP_11 && tokens(CONNECTION).any(|token| token == "upgrade");
    let method = request.method.as_str();
    let protocols: Vec<String> = tokens(UPGRADE)
        .filter(|token| !token.is_empty() && may_upgrade(method, token))
        .collect();
    (asks && !protocols.is_empty()).then_some(protocols)
}

/// Whether `request` has a body; whatever could be read in two ways counts as one.
pub(crate) fn body_length(request: &RequestHeader) -> BodyLength {
    let headers = &request.headers;
    let mut lengths = headers.get_all(CONTENT_LENGTH).into_iter();
    match (
        headers.contains_key(TRANSFER_ENCODING),
        lengths.next(),
        lengths.next(),
    ) {
        (false, None, _) => BodyLength::Bytes(0),
        (false, Some(length), None)
            if !length.is_empty() && length.as_bytes().iter().all(|digit| *digit == b'0') =>
        {
            BodyLength::Bytes(0)
        }
        _ => BodyLength::Chunked,
    }
}
