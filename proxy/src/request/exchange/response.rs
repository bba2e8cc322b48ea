//! What the edge changes in a response, and the responses of its own.

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

/// With this a backend asks for its client to be bound to another one.
const RELEASE: &str = "causeway-release";

/// With this a backend says that it is stopping.
const DRAIN: &str = "causeway-drain";

/// Headers of this family are between a backend and the edge, but for one.
const PRIVATE_PREFIX: &str = "causeway-";
const NODE: &str = "causeway-node";

impl ProxyState {
    /// Takes in the backend's response, and makes of its head what the client gets. Its framing is settled, and stays.
    ///
    /// # Errors
    ///
    /// [`BadResponse::Nominations`]: it must not be passed on.
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
        let refuses =
            exchange.kind == RequestKind::Upgrade && status != StatusCode::SWITCHING_PROTOCOLS;
        match refuses {
            false => self.report(exchange, Evidence::Responded(status)),
            // A response that was held back while others were asked has counted already.
            true if exchange.tried.contains(&choice.backend.id) => {}
            true => self.report(exchange, Evidence::UpgradeRejected(status)),
        }
        exchange.changes.apply_response(response);
        let bind_to = if released {
            exchange.pool.release(&choice.backend, Instant::now())
        } else {
            (choice.cookie == CookieChange::Set).then(|| Arc::clone(&choice.backend))
        };
        // Browsers take no cookie from the response to a preflight.
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

    /// Makes of the head of an interim response (1xx) what the client gets. Whether it gets it.
    pub(crate) fn finalize_interim(&self, response: &mut impl Response) -> bool {
        response.remove("content-length");
        response.remove("transfer-encoding");
        remove_private(response);
        response.remove_hop_by_hop().is_ok()
    }

    /// The response of the edge itself to a request that `rejection` ended.
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

/// A binding is for one client: a response that carries one must not be stored for others.
fn keep_out_of_shared_caches(response: &mut impl Fields) {
    let says = |directive| response.lists("cache-control", directive);
    if !says("private") && !says("no-store") {
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
