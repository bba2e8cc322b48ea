//! The admin endpoints, on a listener of their own: `/live`, `/ready`, `/metrics`, `/backends` and `/certificates`.
//!
//! Read-only. Not meant for clients: nothing here is authenticated.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Response, StatusCode};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::balancer::pool::Pools;
use crate::metrics::Metrics;
use crate::net::descriptors::ADMIN_MAX;
use crate::server::listeners::BoundedConfig;
use crate::tls::Terminator;

/// The limits of the admin listener.
pub(crate) const LIMITS: BoundedConfig = BoundedConfig {
    connections: ADMIN_MAX,
    lifetime: Duration::from_secs(30),
};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The application of the admin listener.
pub(crate) struct Admin {
    pub(crate) pools: watch::Receiver<Arc<Pools>>,
    pub(crate) metrics: Arc<Metrics>,
    /// Those of the listeners with TLS.
    pub(crate) terminators: Vec<Arc<Terminator>>,
    /// Cancelled when the edge begins to drain.
    pub(crate) draining: CancellationToken,
}

/// One entry of `/backends`.
#[derive(Serialize)]
struct BackendView {
    pool: String,
    id: String,
    address: String,
    weight: u32,
    zone: Option<Box<str>>,
    backup: bool,
    state: &'static str,
    /// When it entered the state, in UNIX seconds.
    since: f64,
    /// How long it has been in the state, in seconds.
    lasts: f64,
    why: String,
    tunnels: usize,
    in_flight: usize,
    /// Parked requests of its clients.
    waiting: usize,
}

/// One entry of `/certificates`.
#[derive(Serialize)]
struct CertificateView {
    listener: String,
    /// The file with the certificate.
    file: String,
    /// `good`, `previous`, `out_of_date` or `unusable`.
    state: &'static str,
    /// The problem; empty if there is none.
    why: String,
    /// The DNS names of the served certificate.
    names: Vec<String>,
    /// When the served certificate expires, in UNIX seconds.
    ends: Option<u64>,
}

/// Status, content type and body.
type Page = (StatusCode, &'static str, String);

impl Admin {
    /// The response to a request for `path`.
    fn page(&self, path: &str, now: Instant) -> Page {
        match path {
            "/live" => (StatusCode::OK, TEXT, "live\n".to_owned()),
            "/ready" => match self.not_ready() {
                None => (StatusCode::OK, TEXT, "ready\n".to_owned()),
                Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, TEXT, reason),
            },
            "/metrics" => (StatusCode::OK, OPENMETRICS, self.metrics.encode()),
            "/backends" => (StatusCode::OK, JSON, self.backends(now)),
            "/certificates" => (StatusCode::OK, JSON, self.certificates(SystemTime::now())),
            _ => (StatusCode::NOT_FOUND, TEXT, "not found\n".to_owned()),
        }
    }

    /// Why the edge should get no new clients, or `None` if it is ready.
    ///
    /// One ready pool is enough: all edges see a dead pool alike, and taking all edges out of service would take the other
    /// pools down too.
    fn not_ready(&self) -> Option<String> {
        if self.draining.is_cancelled() {
            return Some("draining\n".to_owned());
        }
        let ready = self.pools.borrow().iter().any(|pool| pool.is_ready());
        (!ready).then(|| "no backend is up\n".to_owned())
    }

    fn backends(&self, now: Instant) -> String {
        let unix = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let pools = Arc::clone(&self.pools.borrow());
        let views = pools.iter().flat_map(|pool| {
            pool.backends().into_iter().map(|backend| {
                let status = backend.status(now);
                BackendView {
                    pool: pool.name.clone(),
                    id: backend.id.to_string(),
                    address: backend.address.to_string(),
                    weight: backend.weight(),
                    zone: backend.zone(),
                    backup: backend.tier().is_backup(),
                    state: status.state.name(),
                    since: (unix.saturating_sub(status.lasts)).as_secs_f64(),
                    lasts: status.lasts.as_secs_f64(),
                    why: status.why,
                    tunnels: status.tunnels,
                    in_flight: status.requests,
                    waiting: status.waiting,
                }
            })
        });
        let views: Vec<BackendView> = views.collect();
        json(&views)
    }

    fn certificates(&self, now: SystemTime) -> String {
        let of_listener = |terminator: &Arc<Terminator>| {
            let listener = terminator.name().to_owned();
            let all = terminator.certificates(now).into_iter();
            all.map(move |certificate| CertificateView {
                listener: listener.clone(),
                file: certificate.path.display().to_string(),
                state: certificate.state.name(),
                why: certificate.why,
                names: certificate.names,
                ends: certificate.ends.map(|ends| ends.as_secs()),
            })
        };
        let views: Vec<CertificateView> = self.terminators.iter().flat_map(of_listener).collect();
        json(&views)
    }
}

fn json<T: Serialize>(views: &[T]) -> String {
    let mut json = serde_json::to_string(views).expect("text and numbers become JSON");
    json.push('\n');
    json
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, downstream: &mut ServerSession) -> Response<Vec<u8>> {
        // Only few connections may be open at a time: none is kept for a possible next request.
        downstream.set_keepalive(None);
        let request = downstream.req_header();
        let is_allowed = matches!(request.method, Method::GET | Method::HEAD);
        let head_only = request.method == Method::HEAD;
        let (status, kind, body) = match is_allowed {
            true => self.page(request.uri.path(), Instant::now()),
            false => (
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                "method not allowed\n".to_owned(),
            ),
        };
        let length = body.len();
        let mut response = Response::new(match head_only {
            true => Vec::new(),
            false => body.into_bytes(),
        });
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if !is_allowed {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

#[cfg(test)]
mod tests;
