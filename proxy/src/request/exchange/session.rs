//! Learning which backend has a session that its server has just named.

use std::fmt;
use std::sync::Arc;

use http::StatusCode;

use crate::balancer::affinity::SessionSearch;
use crate::balancer::pool::Backend;
use crate::balancer::pool::Pool;
use crate::http::fields::Response;
use crate::request::exchange::Exchange;
use crate::request::exchange::ProxyState;

/// Watches the content of one response for the session that it names.
pub(crate) struct NewSession {
    search: SessionSearch,
    pool: Arc<Pool>,
    backend: Arc<Backend>,
}

impl ProxyState {
    /// What has to see the content of this response before its client does; `None` for nearly all.
    ///
    /// It is for a client that belongs to no session yet, where sessions are named by a parameter of the query.
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
    /// Looks at more of the content, which goes to the client next.
    pub(crate) fn see(&mut self, content: &[u8]) {
        if let Some(session) = self.search.see(content) {
            self.pool.learn(&session, &self.backend);
        }
    }
}
