//! Learns from response bodies which backend has a new session.

use std::fmt;
use std::sync::Arc;

use http::StatusCode;

use crate::balancer::affinity::SessionSearch;
use crate::balancer::pool::Backend;
use crate::balancer::pool::Pool;
use crate::http::fields::Response;
use crate::request::exchange::Exchange;
use crate::request::exchange::ProxyState;

/// Searches the body of one response for the session id in it.
pub(crate) struct NewSession {
    search: SessionSearch,
    pool: Arc<Pool>,
    backend: Arc<Backend>,
}

impl ProxyState {
    /// The search that has to inspect the body of this response before it is sent to the client; `None` for nearly all responses.
    ///
    /// Needed with `affinity.query_parameter`, for a request without a session.
    pub(crate) fn new_session(
        &self,
        exchange: &Exchange,
        response: &impl Response,
    ) -> Option<NewSession> {
        let search = exchange.pool.affinity.search()?;
        let is_readable = response.status() == StatusCode::OK && !response.has("content-encoding");
        if exchange.claim.session.is_some() || exchange.preflight || !is_readable {
            return None;
        }
        Some(NewSession {
            search,
            pool: Arc::clone(&exchange.pool),
            backend: Arc::clone(&exchange.choice.as_ref()?.backend),
        })
    }
}

impl fmt::Debug for NewSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewSession").finish_non_exhaustive()
    }
}

impl NewSession {
    /// Inspects the next piece of the body, before it is sent to the client.
    pub(crate) fn inspect(&mut self, content: &[u8]) {
        if let Some(session) = self.search.inspect(content) {
            self.pool.learn(&session, &self.backend);
        }
    }
}
