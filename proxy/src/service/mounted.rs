//! Upgrades where Pingora reads the requests: the connection leaves Pingora's hands inside the request filter.
//!
//! What is left behind is a session on no connection, which Pingora finishes and forgets.

use std::io::Cursor;
use std::time::Instant;

use http::Version;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v1::server::HttpSession;
use pingora_proxy::Session;

use crate::carrier::Carrier;
use crate::carrier::Unread;
use crate::error::Refusal;
use crate::http1::RequestHead;
use crate::limits::Pass;
use crate::takeover::Takeover;
use crate::takeover::can_begin;
use crate::takeover::check;
use crate::takeover::set_request;

/// What the edge needs besides where no listener of its own stands before it.
pub(crate) struct Mounted {
    pub(crate) upgrades: Takeover,
}

/// What became of a request.
pub(super) enum Taken {
    /// It is none of ours.
    No,
    /// It has been answered, or is a tunnel: its connection is gone from the session.
    Over,
    /// It is to be refused, and its connection is where it was.
    Refused(Refusal),
}

impl Mounted {
    /// Serves the request of `downstream` if it is an upgrade that its route allows, whatever comes of it.
    pub(super) async fn take_over(&self, downstream: &mut Session) -> Taken {
        let ServerSession::H1(_) = downstream.as_downstream() else {
            return Taken::No;
        };
        let request = downstream.req_header();
        let Some(protocol) = self.protocol(request) else {
            return Taken::No;
        };
        if let Err(refusal) = check(request, body_of(request), &protocol) {
            return Taken::Refused(refusal);
        }
        // Of connections, tunnels alone are ours to count.
        let gate = &self.upgrades.policy.gate;
        let permit = match gate.connection(None, Instant::now()) {
            Ok(permit) => permit,
            Err(limit) => return Taken::Refused(Refusal::Limited(limit)),
        };
        let pass = Pass::new(permit, None);
        self.carry_off(downstream, protocol, pass).await;
        Taken::Over
    }

    async fn carry_off(&self, downstream: &mut Session, protocol: String, pass: Pass) {
        let request = downstream.req_header().clone();
        let mut left_behind = ServerSession::new_http1(Box::new(Cursor::new(Vec::new())));
        // Whoever has wrapped the edge may still ask what the request was, and whose.
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
            && let Some(carrier) = carrier_of(session).await
            && let Some(head) = RequestHead::of(&request)
        {
            let nothing = Unread::Bytes(0);
            let serving = self
                .upgrades
                .take_over(carrier, head, nothing, protocol, pass);
            serving.await;
        }
    }

    /// The upgrade that the route of `request` lets through, if it asks for one.
    fn protocol(&self, request: &RequestHeader) -> Option<String> {
        let protocols = asks_for(request)?;
        let host = request
            .headers
            .get(HOST)
            .and_then(|host| host.to_str().ok());
        let target = std::str::from_utf8(request.raw_path()).ok()?;
        self.upgrades
            .policy
            .allowed_upgrade(host, target, &protocols)
    }
}

/// The connection of a request without a body, with all that was read behind its head.
async fn carrier_of(mut session: HttpSession) -> Option<Carrier> {
    // Pingora hands out what it read too much only for the next request of the same connection.
    session.set_server_keepalive(Some(1));
    session.set_keepalive_reuses_remaining(None);
    session.set_pipelining_enabled(true);
    let (stream, ahead) = session.reuse().await.ok()??.into_parts();
    let mut carrier = Carrier::new(stream);
    carrier.ahead = ahead.unwrap_or_default();
    Some(carrier)
}

/// What `request` would switch to, best first, if it asks for a switch at all (RFC 9110, 7.8).
pub(crate) fn asks_for(request: &RequestHeader) -> Option<Vec<String>> {
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
        .filter(|token| !token.is_empty() && can_begin(method, token))
        .collect();
    (asks && !protocols.is_empty()).then_some(protocols)
}

/// Whether `request` has a body; whatever could be read in two ways counts as one.
pub(crate) fn body_of(request: &RequestHeader) -> Unread {
    let headers = &request.headers;
    let mut lengths = headers.get_all(CONTENT_LENGTH).into_iter();
    match (
        headers.contains_key(TRANSFER_ENCODING),
        lengths.next(),
        lengths.next(),
    ) {
        (false, None, _) => Unread::Bytes(0),
        (false, Some(length), None)
            if !length.is_empty() && length.as_bytes().iter().all(|digit| *digit == b'0') =>
        {
            Unread::Bytes(0)
        }
        _ => Unread::Unknown,
    }
}
