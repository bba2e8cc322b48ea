//! Changes to the response of a backend, and the responses of the edge itself.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, DATE, LOCATION, RETRY_AFTER,
};
use http::{HeaderValue, StatusCode};
use pingora::http::ResponseHeader;
use pingora::protocols::http::date::get_cached_date;

use crate::balancer::pool::CookieChange;
use crate::balancer::pool::Evidence;
use crate::balancer::pool::RequestKind;
use crate::http::fields::{Fields, Response};
use crate::http::hop_by_hop::HopByHop;
use crate::http::http1::BadResponse;
use crate::request::error;
use crate::request::error::Rejection;
use crate::request::exchange::Exchange;
use crate::request::exchange::ProxyState;

/// The response header by which a backend asks to bind the client to another backend.
const RELEASE: &str = "causeway-release";

/// The response header by which a backend announces that it is stopping.
const DRAIN: &str = "causeway-drain";

/// Headers with this prefix are between a backend and the edge, except [`NODE`].
const PRIVATE_PREFIX: &str = "causeway-";
const NODE: &str = "causeway-node";

impl ProxyState {
    /// Evaluates the backend's response and rewrites its head for the client. The framing is settled before, and not changed.
    ///
    /// # Errors
    ///
    /// [`BadResponse::Nominations`]: it must not be forwarded.
    pub(crate) fn finalize(
        &self,
        exchange: &Exchange,
        response: &mut impl Response,
    ) -> Result<(), BadResponse> {
        let removed = response.remove_hop_by_hop();
        removed.map_err(|_| BadResponse::Nominations)?;
        if !response.has("date") {
            // RFC 9110, 6.6.1.
            response.append("Date", get_cached_date());
        }
        let released = response.has(RELEASE);
        if response.has(DRAIN) {
            self.report(exchange, Evidence::Stopping);
        }
        remove_private(response);
        let Some(choice) = &exchange.choice else {
            return Ok(());
        };
        let status = response.status();
        let is_rejected_upgrade =
            exchange.kind == RequestKind::Upgrade && status != StatusCode::SWITCHING_PROTOCOLS;
        if !is_rejected_upgrade {
            self.report(exchange, Evidence::Responded(status));
        } else if !exchange.tried.contains(&choice.backend.id) {
            // Otherwise it was counted before it was kept while other backends were tried.
            self.report(exchange, Evidence::UpgradeRejected(status));
        }
        exchange.changes.apply_response(response);
        let bind_to = if released {
            exchange.pool.release(&choice.backend, Instant::now())
        } else {
            (choice.cookie == CookieChange::Set).then(|| Arc::clone(&choice.backend))
        };
        // Browsers ignore cookies in the response to a preflight request.
        let Some(backend) = bind_to.filter(|_| !exchange.preflight) else {
            return Ok(());
        };
        let scheme = exchange.forwarded.scheme;
        if let Some(cookie) = exchange.pool.set_cookie(&backend, Instant::now(), scheme) {
            response.append("Set-Cookie", cookie);
            keep_out_of_shared_caches(response);
        }
        Ok(())
    }

    /// Rewrites the head of an interim response (1xx) for the client. Whether it is forwarded.
    pub(crate) fn finalize_interim(&self, response: &mut impl Response) -> bool {
        response.remove("content-length");
        response.remove("transfer-encoding");
        remove_private(response);
        response.remove_hop_by_hop().is_ok()
    }

    /// The response of the edge itself for `rejection`, which is counted.
    pub(crate) fn own_response(&self, rejection: Rejection) -> (Box<ResponseHeader>, Bytes) {
        let reason = rejection.reason();
        let (head, body) = own_response(rejection);
        self.metrics.refused(reason, head.status);
        (head, body)
    }
}

fn remove_private(response: &mut impl Fields) {
    response.remove_if(|name| {
        let prefix = name.get(..PRIVATE_PREFIX.len());
        prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(PRIVATE_PREFIX.as_bytes()))
            && !name.eq_ignore_ascii_case(NODE.as_bytes())
    });
}

/// An affinity cookie is for one client: a response with one must not be stored by shared caches.
fn keep_out_of_shared_caches(response: &mut impl Fields) {
    let has_directive = |directive| response.lists("cache-control", directive);
    if !has_directive("private") && !has_directive("no-store") {
        response.append("Cache-Control", HeaderValue::from_static("private"));
    }
}

/// A response of the edge itself: head and body.
fn own_response(rejection: Rejection) -> (Box<ResponseHeader>, Bytes) {
    let error_response = error::error_response(rejection);
    let body = Bytes::from(error_response.body.into_owned());
    let fill = |head: &mut ResponseHeader| -> pingora::Result<()> {
        head.insert_header(CONTENT_TYPE, "text/plain; charset=utf-8")?;
        head.insert_header(CONTENT_LENGTH, body.len())?;
        head.insert_header(CACHE_CONTROL, "no-store")?;
        head.insert_header(DATE, get_cached_date())?;
        if let Some(location) = error_response.location {
            head.insert_header(LOCATION, location)?;
        }
        if let Some(allow) = error_response.allow {
            head.insert_header(ALLOW, allow)?;
        }
        if let Some(after) = error_response.retry_after {
            head.insert_header(RETRY_AFTER, after.as_secs())?;
        }
        Ok(())
    };
    let mut head = ResponseHeader::build(error_response.status, Some(5))
        .expect("a status of our own is valid");
    fill(&mut head).expect("headers of our own are valid");
    (Box::new(head), body)
}
