//! The endpoints for operators, on listeners of their own: pages that say how the edge is, and actions that change it.
//!
//! Pages (`/live`, `/ready`, `/metrics`, `/backends`, `/certificates`) are for everybody who can connect. The list of tunnels and the
//! actions need the token, or the unix socket ([`access`]). Each action is one line of the log, with who asked for it.

mod access;
mod endpoint;
mod input;
mod socket;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use http::header::{
    ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE,
};
use http::{HeaderValue, Method, Response, StatusCode};
use pingora::apps::http_app::ServeHttp;
use pingora::protocols::http::ServerSession;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::balancer::pool::{Backend, Pools};
use crate::limits::ThrottledLog;
use crate::metrics::Metrics;
use crate::net::descriptors::ADMIN_MAX;
use crate::server::actions::{Acted, ActionError, Actions, Force, OpenTunnels};
use crate::server::admin::access::{Credentials, Denied, Origin};
use crate::server::admin::endpoint::{Action, Endpoint};
use crate::server::admin::input::BadInput;
pub(crate) use crate::server::admin::socket::{
    LIMITS as SOCKET_LIMITS, NAME as SOCKET_NAME, SocketService,
};
use crate::server::listeners::BoundedConfig;
use crate::server::rebalance::Run;
use crate::server::reload::ReloadError;
use crate::tls::Terminator;
use crate::tunnel::{CloseRequest, ListedTunnel};

/// The limits of the admin listener.
pub(crate) const LIMITS: BoundedConfig = BoundedConfig {
    connections: ADMIN_MAX,
    lifetime: Duration::from_secs(30),
};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the admin listeners show and do.
pub(crate) struct Admin {
    pub(crate) pools: watch::Receiver<Arc<Pools>>,
    pub(crate) metrics: Arc<Metrics>,
    /// Those of the listeners with TLS.
    pub(crate) terminators: Vec<Arc<Terminator>>,
    /// Cancelled when the edge begins to drain.
    pub(crate) draining: CancellationToken,
    pub(crate) actions: Actions,
    /// Throttles the log line about requests that may not act.
    pub(crate) denied: ThrottledLog,
}

/// The application of one listener, or of one connection to the socket.
pub(crate) struct AdminApp {
    admin: Arc<Admin>,
    /// `None` is the address of the TCP connection.
    origin: Option<Origin>,
}

impl AdminApp {
    /// The application of the TCP listener.
    pub(crate) fn over_tcp(admin: Arc<Admin>) -> Self {
        Self {
            admin,
            origin: None,
        }
    }

    /// The application of one connection to the socket.
    pub(crate) fn over_socket(admin: Arc<Admin>, peer: Credentials) -> Self {
        Self {
            admin,
            origin: Some(Origin::Socket(peer)),
        }
    }
}

/// A request, with what an action needs of it.
struct Asked {
    origin: Origin,
    method: Method,
    path: String,
    query: Option<String>,
    authorization: Option<HeaderValue>,
}

/// Why a request is not answered with a page or the result of an action.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("not found")]
    NotFound,
    #[error("{method} is not possible here, expected {allowed}")]
    Method {
        method: Method,
        allowed: &'static str,
    },
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("the body has more than {} bytes", input::BODY_BYTES_MAX)]
    TooLarge,
    /// The client has gone, or its body is no body.
    #[error("the body cannot be read")]
    Unreadable,
    #[error(transparent)]
    Input(#[from] BadInput),
    #[error(transparent)]
    Action(#[from] ActionError),
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::Denied(denied) => denied.status(),
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unreadable | Self::Input(_) => StatusCode::BAD_REQUEST,
            Self::Action(error) => match error {
                ActionError::UnknownBackend { .. }
                | ActionError::UnknownPool { .. }
                | ActionError::UnknownTunnel(_) => StatusCode::NOT_FOUND,
                ActionError::PoolMissing { .. } | ActionError::Weight(_) => StatusCode::BAD_REQUEST,
                ActionError::Removed(_)
                | ActionError::ByConfiguration(_)
                | ActionError::LastBackend { .. }
                | ActionError::Rebalancing(_)
                | ActionError::NoFile
                | ActionError::NoTakeover => StatusCode::CONFLICT,
                ActionError::Reload(ReloadError::Invalid(_)) => StatusCode::UNPROCESSABLE_ENTITY,
                ActionError::Reload(ReloadError::NoSuccessor { .. })
                | ActionError::NoSuccessor(_) => StatusCode::SERVICE_UNAVAILABLE,
            },
        }
    }

    /// The outcome in the metrics.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Denied(_) => "denied",
            _ => "refused",
        }
    }
}

/// One entry of `/backends`.
#[derive(Serialize)]
struct BackendView {
    pool: String,
    id: String,
    address: String,
    weight: u32,
    /// That of the configuration; an operator may have set another one.
    configured_weight: u32,
    zone: Option<Box<str>>,
    /// The deploy that it belongs to, if it is known.
    generation: Option<u64>,
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
    /// What an operator has set: `drain` or `maintenance`.
    operator: Option<&'static str>,
    /// How many tunnels a drain or a rebalance has yet to close.
    closing: usize,
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

/// One entry of `/tunnels`.
#[derive(Serialize)]
struct TunnelView<'a> {
    id: u64,
    pool: &'a str,
    backend: &'a str,
    client: String,
    /// When its request arrived, in UNIX seconds.
    since: f64,
    /// How long it has been open, in seconds.
    lasts: f64,
    /// For how long no bytes have passed, in seconds, within the precision of the edge's clock for that.
    idle: f64,
    bytes_in: u64,
    bytes_out: u64,
    request_id: &'a str,
    host: Option<&'a str>,
    path: Option<&'a str>,
    /// Whether it has been asked to close.
    closing: bool,
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
        let unix = unix_now();
        let pools = Arc::clone(&self.pools.borrow());
        let views = pools.iter().flat_map(|pool| {
            let backends = pool.backends().into_iter();
            backends.map(|backend| self.view(&backend, unix, now))
        });
        let views: Vec<BackendView> = views.collect();
        to_json(&views)
    }

    /// The entry of `backend`; `unix` is the time of day at `now`.
    fn view(&self, backend: &Arc<Backend>, unix: Duration, now: Instant) -> BackendView {
        let status = backend.status(now);
        BackendView {
            pool: backend.tunnels.pool.to_string(),
            id: backend.id.to_string(),
            address: backend.address.to_string(),
            weight: backend.weight(),
            configured_weight: backend.configured_weight(),
            zone: backend.zone(),
            generation: backend.generation(),
            backup: backend.tier().is_backup(),
            state: status.state.name(),
            since: (unix.saturating_sub(status.lasts)).as_secs_f64(),
            lasts: status.lasts.as_secs_f64(),
            why: status.why,
            tunnels: status.tunnels,
            in_flight: status.requests,
            waiting: status.waiting,
            operator: status.operator.map(|operator| operator.name()),
            closing: self.actions.drains.left(backend).unwrap_or_default(),
        }
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
        to_json(&views)
    }

    /// The response to a request, and the value of its `Allow` header if the method is wrong.
    async fn respond(&self, asked: &Asked, session: &mut ServerSession) -> Page {
        let endpoint = match Endpoint::of(&asked.path) {
            Some(endpoint) if endpoint.allows(&asked.method) => endpoint,
            Some(endpoint) => {
                return refusal(&Refused::Method {
                    method: asked.method.clone(),
                    allowed: endpoint.allowed(),
                });
            }
            None => return refusal(&Refused::NotFound),
        };
        if endpoint == Endpoint::Page {
            return self.page(&asked.path, Instant::now());
        }
        let name = endpoint.name();
        let result = match self.check_access(asked) {
            Ok(()) => self.carry_out(&endpoint, asked, session).await,
            Err(denied) => Err(denied.into()),
        };
        match result {
            Ok(value) => {
                self.metrics.admin_action(name, "done");
                (StatusCode::OK, JSON, to_json(&value))
            }
            Err(refused) => {
                self.metrics.admin_action(name, refused.outcome());
                self.log_refusal(asked, name, &refused);
                refusal(&refused)
            }
        }
    }

    fn check_access(&self, asked: &Asked) -> Result<(), Denied> {
        let authorization = asked.authorization.as_ref().map(HeaderValue::as_bytes);
        let token = self.actions.reloader.admin_token();
        access::check(asked.origin, authorization, token.as_ref())
    }

    fn log_refusal(&self, asked: &Asked, action: &'static str, refused: &Refused) {
        let (who, why) = (asked.who(), refused.to_string());
        if !matches!(refused, Refused::Denied(_)) {
            tracing::warn!(who, action, path = asked.path, why, "admin action refused");
        } else if let Some(times) = self.denied.note(Instant::now()) {
            tracing::warn!(who, action, times, why, "admin action denied");
        }
    }

    /// Lists tunnels or does the action, which is allowed.
    async fn carry_out(
        &self,
        endpoint: &Endpoint,
        asked: &Asked,
        session: &mut ServerSession,
    ) -> Result<Value, Refused> {
        let action = match endpoint {
            Endpoint::Action(action) => action,
            Endpoint::Page | Endpoint::Tunnels => return self.tunnels(asked.query.as_deref()),
        };
        let body = read_body(session).await?;
        let (name, who) = (endpoint.name(), asked.who());
        let value = match action {
            Action::Drain(id) => {
                let input: input::Drain = input::body(&body)?;
                let open = match input.tunnels {
                    Some(input::Tunnels::Keep) => OpenTunnels::Keep,
                    Some(input::Tunnels::Close) | None => {
                        OpenTunnels::Close(input::spread(input.spread)?)
                    }
                };
                let force = force(input.force);
                self.acted(name, &who, self.actions.drain(id, open, force)?)
            }
            Action::Ready(id) => {
                let input::Nothing {} = input::body(&body)?;
                self.acted(name, &who, self.actions.ready(id)?)
            }
            Action::Maintenance(id) => {
                let input: input::Maintenance = input::body(&body)?;
                let acted = self.actions.maintenance(id, force(input.force))?;
                self.acted(name, &who, acted)
            }
            Action::Weight(id) => {
                let input: input::Weight = input::body(&body)?;
                self.acted(name, &who, self.actions.set_weight(id, input.weight)?)
            }
            Action::CloseTunnel(number) => {
                let number = input::tunnel(number)?;
                let input: input::Close = input::body(&body)?;
                let (code, request) = match input.code {
                    None | Some(1012) => (1012, CloseRequest::OperatorRestart),
                    Some(1001) => (1001, CloseRequest::OperatorGoingAway),
                    Some(code) => return Err(BadInput::code(code).into()),
                };
                self.actions.close_tunnel(number, request)?;
                tracing::info!(who, action = name, tunnel = number, code, "admin action");
                json!({ "id": number, "code": code })
            }
            Action::Rebalance => {
                let input: input::Rebalance = input::body(&body)?;
                let (pool, spread) = (input.pool.as_deref(), input::spread(input.spread)?);
                let result = self.actions.rebalance(pool, spread, run(input.dry_run))?;
                tracing::info!(
                    who,
                    action = name,
                    pool = result.pool,
                    dry_run = result.dry_run,
                    closing = result.closing,
                    "admin action"
                );
                to_value(&result)
            }
            Action::Upgrade => {
                let input::Nothing {} = input::body(&body)?;
                let successor = self.actions.upgrade().await?;
                tracing::info!(who, action = name, ?successor, "admin action");
                json!({ "successor": successor })
            }
            Action::Reload => {
                let input: input::Reload = input::body(&body)?;
                let run = run(input.dry_run);
                let result = self.actions.reload(run).await?;
                let dry_run = run == Run::Dry;
                tracing::info!(
                    who,
                    action = name,
                    dry_run,
                    backends = result.plan.backends.len(),
                    closing = result.plan.tunnels_closed,
                    hands_over = result.plan.hands_over,
                    "admin action"
                );
                let mut value = to_value(&result);
                value["dry_run"] = json!(dry_run);
                value
            }
        };
        Ok(value)
    }

    /// Logs what was done to a backend, and returns its entry.
    fn acted(&self, action: &'static str, who: &str, acted: Acted) -> Value {
        let view = self.view(&acted.backend, unix_now(), Instant::now());
        tracing::info!(
            who,
            action,
            pool = view.pool,
            backend = view.id,
            state = view.state,
            weight = view.weight,
            tunnels = view.tunnels,
            closing = acted.closing,
            "admin action"
        );
        let mut value = to_value(&view);
        value["closing"] = json!(acted.closing);
        value
    }

    /// A page of the list of tunnels.
    fn tunnels(&self, query: Option<&str>) -> Result<Value, Refused> {
        let (filter, limit) = input::page(query)?;
        let page = self.actions.tunnels.page(&filter, limit);
        let now = SystemTime::now();
        let views: Vec<TunnelView<'_>> = page
            .tunnels
            .iter()
            .map(|tunnel| tunnel_view(tunnel, now))
            .collect();
        let last = page.tunnels.last().map(|tunnel| tunnel.handle.key());
        Ok(json!({
            "tunnels": to_value(&views),
            "matching": page.matching,
            "next": last.filter(|_| views.len() == limit),
        }))
    }
}

impl Asked {
    /// Who asks, for the log.
    fn who(&self) -> String {
        match self.origin {
            Origin::Tcp(_) if self.authorization.is_some() => format!("token, {}", self.origin),
            Origin::Tcp(_) | Origin::Socket(_) => self.origin.to_string(),
        }
    }
}

fn tunnel_view(tunnel: &ListedTunnel, now: SystemTime) -> TunnelView<'_> {
    let info = tunnel.handle.info();
    let seconds = |since: SystemTime, until: SystemTime| {
        let passed = until.duration_since(since).unwrap_or_default();
        passed.as_millis() as f64 / 1000.0
    };
    let lasts = seconds(info.arrived, now);
    TunnelView {
        id: tunnel.handle.key(),
        pool: &info.group.pool,
        backend: info.group.backend.as_str(),
        client: info.client.to_string(),
        since: seconds(SystemTime::UNIX_EPOCH, info.arrived),
        lasts,
        // It is counted in ticks, and a tunnel is never idle for longer than it is open.
        idle: tunnel.idle.as_secs_f64().min(lasts),
        bytes_in: tunnel.bytes_from_client,
        bytes_out: tunnel.bytes_from_backend,
        request_id: &info.request_id,
        host: info.host.as_deref(),
        path: info.path.as_deref(),
        closing: tunnel.is_closing,
    }
}

/// Reads the body of an action.
async fn read_body(session: &mut ServerSession) -> Result<Vec<u8>, Refused> {
    let mut body = Vec::new();
    loop {
        match session.read_request_body().await {
            Ok(Some(piece)) if input::BODY_BYTES_MAX < body.len() + piece.len() => {
                return Err(Refused::TooLarge);
            }
            Ok(Some(piece)) => body.extend_from_slice(&piece),
            Ok(None) => return Ok(body),
            Err(_) => return Err(Refused::Unreadable),
        }
    }
}

fn force(is_forced: bool) -> Force {
    if is_forced { Force::Yes } else { Force::No }
}

fn run(is_dry: bool) -> Run {
    if is_dry { Run::Dry } else { Run::Do }
}

/// The response that says why a request is refused.
fn refusal(refused: &Refused) -> Page {
    let error = json!({ "error": refused.to_string() });
    (refused.status(), JSON, to_json(&error))
}

fn unix_now() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

fn to_value(view: &impl Serialize) -> Value {
    serde_json::to_value(view).expect("text and numbers become JSON")
}

fn to_json(view: &impl Serialize) -> String {
    let mut json = serde_json::to_string(view).expect("text and numbers become JSON");
    json.push('\n');
    json
}

#[async_trait]
impl ServeHttp for AdminApp {
    async fn response(&self, downstream: &mut ServerSession) -> Response<Vec<u8>> {
        // Only few connections may be open at a time: none is kept for a possible next request.
        downstream.set_keepalive(None);
        let peer = downstream.client_addr().and_then(|peer| peer.as_inet());
        let origin = self.origin.unwrap_or(Origin::Tcp(peer.copied()));
        let request = downstream.req_header();
        let asked = Asked {
            origin,
            method: request.method.clone(),
            path: request.uri.path().to_owned(),
            query: request.uri.query().map(str::to_owned),
            authorization: request.headers.get(AUTHORIZATION).cloned(),
        };
        let (status, kind, body) = self.admin.respond(&asked, downstream).await;
        let length = body.len();
        let mut response = Response::new(match asked.method == Method::HEAD {
            true => Vec::new(),
            false => body.into_bytes(),
        });
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::METHOD_NOT_ALLOWED
            && let Some(endpoint) = Endpoint::of(&asked.path)
        {
            headers.insert(ALLOW, HeaderValue::from_static(endpoint.allowed()));
        }
        response
    }
}

#[cfg(test)]
mod tests;
