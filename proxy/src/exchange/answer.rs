//! What the edge changes in an answer, and the answers it gives itself.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderValue;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use pingora::http::ResponseHeader;

use crate::error;
use crate::error::Refusal;
use crate::exchange::Exchange;
use crate::exchange::Policy;
use crate::fields::{Answer, Fields};
use crate::pool::Choice;
use crate::pool::CookieChange;
use crate::pool::Evidence;

/// With this a backend asks for its client to be bound to another one.
const RELEASE: &str = "causeway-release";

/// Headers of this family are between a backend and the edge, but for one.
const PRIVATE_PREFIX: &str = "causeway-";
const NODE: &str = "causeway-node";

impl Policy {
    /// Takes note of the backend's answer, and makes of its head what the client gets.
    pub(crate) fn answered(&self, exchange: &Exchange, response: &mut impl Answer) {
        let Some(choice) = &exchange.choice else {
            return;
        };
        self.report(exchange, Evidence::Answered(response.status()));
        self.dress(exchange, choice, response);
    }

    /// As [`Policy::answered`], for an ordinary answer to an upgrade.
    pub(crate) fn answered_refusing(&self, exchange: &Exchange, response: &mut impl Answer) {
        let Some(choice) = &exchange.choice else {
            return;
        };
        // An answer that was held back while others were asked has counted already.
        if !exchange.tried.contains(&choice.backend.id) {
            self.report(exchange, Evidence::UpgradeRefused(response.status()));
        }
        self.dress(exchange, choice, response);
    }

    fn dress(&self, exchange: &Exchange, choice: &Choice, response: &mut impl Answer) {
        let released = response.has(RELEASE);
        remove_private(response);
        let bind_to = if released {
            exchange.pool.release(&choice.backend, Instant::now())
        } else {
            (choice.cookie == CookieChange::Set).then(|| Arc::clone(&choice.backend))
        };
        // Browsers take no cookie from the answer to a preflight.
        let Some(backend) = bind_to.filter(|_| !exchange.preflight) else {
            return;
        };
        let scheme = exchange.forwarded.scheme;
        if let Some(cookie) = exchange.pool.set_cookie(&backend, Instant::now(), scheme) {
            response.append("Set-Cookie", cookie);
            keep_out_of_shared_caches(response);
        }
    }

    /// The answer of the edge itself to a request that `refusal` ended.
    pub(crate) fn own_answer(&self, refusal: Refusal) -> (Box<ResponseHeader>, Bytes) {
        let reason = refusal.reason();
        let (head, body) = own_answer(refusal);
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

/// A binding is for one client: an answer that carries one must not be stored for others.
fn keep_out_of_shared_caches(response: &mut impl Fields) {
    let says = |directive| response.lists("cache-control", directive);
    if !says("private") && !says("no-store") {
        response.append("Cache-Control", HeaderValue::from_static("private"));
    }
}

/// An answer of the edge itself: head and body.
fn own_answer(refusal: Refusal) -> (Box<ResponseHeader>, Bytes) {
    let answer = error::answer(refusal);
    let body = Bytes::from(answer.body.into_owned());
    let fill = |head: &mut ResponseHeader| -> pingora::Result<()> {
        head.insert_header(CONTENT_TYPE, "text/plain; charset=utf-8")?;
        head.insert_header(CONTENT_LENGTH, body.len())?;
        head.insert_header(CACHE_CONTROL, "no-store")?;
        if let Some(location) = answer.location {
            head.insert_header(LOCATION, location)?;
        }
        if let Some(allow) = answer.allow {
            head.insert_header(ALLOW, allow)?;
        }
        if let Some(after) = answer.retry_after {
            head.insert_header(RETRY_AFTER, after.as_secs())?;
        }
        Ok(())
    };
    let mut head =
        ResponseHeader::build(answer.status, Some(5)).expect("a status of our own is valid");
    fill(&mut head).expect("headers of our own are valid");
    (Box::new(head), body)
}
