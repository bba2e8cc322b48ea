//! The decisions for one request: the same for plain HTTP and for upgrades.
//!
//! Does no I/O. An engine that serves a request calls, in this order: [`ProxyState::admit`]; for each attempt
//! [`ProxyState::attempt_due`], [`ProxyState::choose`] and [`ProxyState::prepare`]; then [`ProxyState::attempt_failed`] or
//! [`ProxyState::finalize`]; [`ProxyState::log`] at the end.

mod failure;
mod parking;
mod queue;
mod response;
mod rules;
mod session;
mod target;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use http::{HeaderValue, StatusCode};
use tokio_util::sync::CancellationToken;

use crate::balancer::affinity::Claim;
use crate::balancer::affinity::SessionKey;
use crate::balancer::pool::AffinityOutcome;
use crate::balancer::pool::Backend;
use crate::balancer::pool::Choice;
use crate::balancer::pool::Evidence;
use crate::balancer::pool::Pool;
use crate::balancer::pool::Pools;
use crate::balancer::pool::RequestCount;
use crate::balancer::pool::RequestKind;
use crate::balancer::pool::Tried;
use crate::balancer::pool::TunnelSlot;
use crate::config::{ProbeKind, RouteRules, Stripped};
use crate::http::fields::Request;
use crate::http::forwarded::Forwarded;
use crate::http::hop_by_hop::HopByHop;
use crate::http::scheme::Scheme;
use crate::limits::Gate;
use crate::limits::Limit;
use crate::limits::Permits;
use crate::limits::ThrottledLog;
use crate::metrics::Metrics;
use crate::metrics::RouteMetrics;
use crate::request::access_log::AccessLine;
use crate::request::access_log::AccessLog;
use crate::request::access_log::Kind;
use crate::request::access_log::excerpt;
use crate::request::error::Rejection;
pub(crate) use crate::request::exchange::failure::{AttemptError, Replay};
use crate::request::exchange::parking::Parking;
use crate::request::exchange::queue::SlotState;
pub(crate) use crate::request::exchange::rules::Rules;
pub(crate) use crate::request::exchange::session::NewSession;
use crate::request::parked::ParkedRequests;
use crate::tls::Connector;
use crate::upstream::Repeatable;

/// The header by which the edge offers handoff to a backend, and a backend accepts it. Never forwarded.
pub(crate) const HANDOFF_HEADER: &str = "causeway-handoff";

/// The path at which a node continues clients of other nodes: between the edge and its backends.
pub(crate) const HANDOFF_PATH: &str = "/.causeway/handoff";

/// The shared state of the proxy: rules, limits, metrics, access log. One for the whole process.
pub(crate) struct ProxyState {
    pub(crate) rules: ArcSwap<Rules>,
    pub(crate) parked: ParkedRequests,
    pub(crate) gate: Arc<Gate>,
    /// Cancelled when the edge begins to shut down: no request stays parked from then on.
    pub(crate) shutdown: CancellationToken,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access: AccessLog,
    /// Throttles the log line about descriptor exhaustion, which each request would write.
    pub(crate) exhausted: ThrottledLog,
    /// The same, for the exhaustion of local ports towards one backend.
    pub(crate) no_port: ThrottledLog,
}

/// The state of one request, from its head to its line in the access log.
pub(crate) struct Exchange {
    arrived: Instant,
    method: http::Method,
    /// Host and path for the access log, if that is enabled.
    logged_target: Option<Box<LoggedTarget>>,
    route: RouteMetrics,
    pool: Arc<Pool>,
    claim: Claim,
    preflight: bool,
    kind: RequestKind,
    forwarded: Forwarded,
    /// The header rules of the route, and the target without the stripped prefix.
    changes: Arc<RouteRules>,
    stripped: Option<Box<Stripped>>,
    tried: Tried,
    /// How many backends were chosen for it so far.
    attempts: usize,
    choice: Option<Choice>,
    /// Whether it was retried once on the backend that its client is bound to.
    retried_same_backend: bool,
    parking: Parking,
    /// The response for the client, should no further attempt succeed.
    failure: Option<Rejection>,
    in_flight: Option<RequestCount>,
    /// Its request slot at the chosen backend (`limits.requests_per_backend`).
    slot_state: SlotState,
    /// The tunnel slot reserved at the chosen backend, for an upgrade.
    tunnel_slot: Option<TunnelSlot>,
    body_bytes_max: u64,
    _permits: Permits,
}

/// A SockJS session over HTTP, and the pool whose backends may have it.
pub(crate) struct PooledSession {
    pub(crate) pool: Arc<Pool>,
    pub(crate) session: SessionKey,
}

/// The parts of a request target that are logged.
struct LoggedTarget {
    host: Option<Box<str>>,
    path: Box<str>,
}

/// How a request ended, as the engine that served it reports it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcome<'a> {
    pub(crate) status: Option<u16>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) error: Option<&'a str>,
}

impl ProxyState {
    /// The pools that requests are sent to now.
    pub(crate) fn pools(&self) -> Arc<Pools> {
        Arc::clone(&self.rules.load().pools)
    }

    /// Determines client, route, pool and affinity of a request, and applies the limits. Removes its hop-by-hop headers, and writes
    /// the headers of an upgrade that the route allows in canonical form.
    ///
    /// # Errors
    ///
    /// [`Rejection::NoRoute`]; [`Rejection::Malformed`] without the host that RFC 9112, 3.2 and RFC 9113, 8.3.1 require, or for what
    /// HTTP/2 can frame but forbids; [`Rejection::ExpectationFailed`], or [`Rejection::Limited`].
    pub(crate) fn admit(
        &self,
        request: &mut impl Request,
        upgrade: Option<&str>,
        peer: IpAddr,
        scheme: Scheme,
    ) -> Result<Exchange, Rejection> {
        let removed = request.remove_hop_by_hop();
        removed
            .map_err(|_| Rejection::Malformed("the Connection header names too many headers"))?;
        if let Some(protocol) = upgrade {
            let protocol = HeaderValue::from_str(protocol);
            request.set_upgrade(protocol.expect("it was the value of a header"));
        }
        let request = &*request;
        target::check(request)?;
        let host = request.host();
        // `OPTIONS *` is routed as `/`.
        let path = match request.path() {
            "*" => "/",
            path => path,
        };
        let rules = self.rules.load();
        let route = rules.routes.position(host, path);
        // That path is between the edge and its backends.
        let Some(route) = route.filter(|_| path != HANDOFF_PATH) else {
            return Err(Rejection::NoRoute {
                status: rules.no_route.status,
                body: rules.no_route.body.clone(),
            });
        };
        let pool = Arc::clone(rules.pools.get(rules.routes.get(route).pool));
        let arrived = Instant::now();
        let forwarded = rules.forwarder.read(request, peer, scheme);
        let client = forwarded.client;
        let body_bytes_max = self.gate.body_bytes();
        if declared_body(request).is_some_and(|length| body_bytes_max < length) {
            let limit = self.gate.refuse(Limit::BodySize, Some(client), arrived);
            return Err(Rejection::Limited(limit));
        }
        let pass = self.gate.request(client, arrived);
        let pass = pass.map_err(Rejection::Limited)?;
        pool.retry_budget.deposit();
        let changes = Arc::clone(&rules.routes.get(route).rules);
        let stripped = changes.strip(request, forwarded.is_trusted());
        let preflight = is_preflight(request);
        let mut claim = pool.affinity.read(request, path);
        if preflight {
            // The request that follows binds the session: its response can set a cookie.
            claim.session = None;
        }
        Ok(Exchange {
            arrived,
            method: request.method().clone(),
            logged_target: self.access.is_on().then(|| {
                Box::new(LoggedTarget {
                    host: host.map(excerpt),
                    path: excerpt(path),
                })
            }),
            claim,
            preflight,
            kind: match upgrade {
                Some(_) => RequestKind::Upgrade,
                None => RequestKind::Plain,
            },
            forwarded,
            changes,
            stripped: stripped.map(Box::new),
            route: rules.route_metrics[route].clone(),
            pool,
            tried: Tried::default(),
            attempts: 0,
            choice: None,
            retried_same_backend: false,
            parking: Parking::default(),
            failure: None,
            in_flight: None,
            slot_state: SlotState::default(),
            tunnel_slot: None,
            body_bytes_max,
            _permits: pass,
        })
    }

    /// Checks `bytes`, the length of the request body so far, against `limits.body_size`.
    ///
    /// # Errors
    ///
    /// [`Rejection::Limited`] if it is larger.
    pub(crate) fn check_body_size(&self, exchange: &Exchange, bytes: u64) -> Result<(), Rejection> {
        if bytes <= exchange.body_bytes_max {
            return Ok(());
        }
        let client = Some(exchange.forwarded.client);
        let limit = self.gate.refuse(Limit::BodySize, client, Instant::now());
        Err(Rejection::Limited(limit))
    }

    /// Takes the permits that a tunnel needs; they are held for its lifetime.
    ///
    /// # Errors
    ///
    /// [`Rejection::Limited`] if there are too many.
    pub(crate) fn admit_tunnel(&self, exchange: &Exchange) -> Result<Permits, Rejection> {
        let pass = self
            .gate
            .tunnel(exchange.forwarded.client, exchange.arrived);
        pass.map_err(Rejection::Limited)
    }

    /// The first of `protocols` that the route of this request allows.
    pub(crate) fn allowed_upgrade(
        &self,
        host: Option<&str>,
        target: &str,
        protocols: &[String],
    ) -> Option<String> {
        let target: http::Uri = target.parse().ok()?;
        let host = target
            .authority()
            .map(http::uri::Authority::as_str)
            .or(host);
        let rules = self.rules.load();
        let route = rules.routes.find(host, target.path())?;
        protocols
            .iter()
            .find(|protocol| route.allows_upgrade(protocol))
            .cloned()
    }

    /// Chooses the backend of the next attempt: the same one for a parked request.
    ///
    /// # Errors
    ///
    /// If none is left: the response for the previous attempt, or [`Rejection::NoBackend`] if there was none.
    pub(crate) fn choose(&self, exchange: &mut Exchange) -> Result<Arc<Backend>, Rejection> {
        exchange.in_flight = None;
        let choice = match &exchange.choice {
            Some(choice) if exchange.parking.is_parked() => choice.clone(),
            _ => self.pick(exchange)?,
        };
        let backend = Arc::clone(&choice.backend);
        let last = exchange.choice.replace(choice);
        if last.is_none_or(|last| last.backend.id != backend.id) {
            exchange.attempts += 1;
        }
        exchange.in_flight = Some(backend.start_request(exchange.kind));
        Ok(backend)
    }

    /// A backend with a free slot: for a request, or for the tunnel that an upgrade becomes.
    fn pick(&self, exchange: &mut Exchange) -> Result<Choice, Rejection> {
        if exchange.kind == RequestKind::Plain {
            return self.pick_for_request(exchange);
        }
        exchange.tunnel_slot = None;
        loop {
            // The first attempt follows at once: no second look at the clock.
            let now = match exchange.attempts {
                0 => exchange.arrived,
                _ => Instant::now(),
            };
            let (claim, kind) = (&exchange.claim, exchange.kind);
            let Ok(choice) = exchange.pool.choose(claim, kind, &exchange.tried, now) else {
                let rejection = exchange.failure();
                if let Rejection::Limited(limit) = rejection {
                    self.gate
                        .refuse(limit, Some(exchange.forwarded.client), now);
                }
                return Err(rejection);
            };
            exchange.tunnel_slot = choice
                .backend
                .reserve_tunnel(self.gate.tunnels_of_backend());
            if exchange.tunnel_slot.is_some() {
                return Ok(choice);
            }
            exchange.tried.add(&choice.backend);
            let full = Rejection::Limited(Limit::TunnelsPerBackend);
            exchange.failure.get_or_insert(full);
        }
    }

    /// Rewrites a request for the backend, now that it is connected: removes the edge's cookies, adds the forwarding headers, and
    /// applies the rules of the route.
    pub(crate) fn prepare(&self, exchange: &mut Exchange, request: &mut impl Request) {
        exchange.parking.returned();
        target::for_server(request);
        exchange.pool.affinity.strip(request);
        self.rules
            .load()
            .forwarder
            .write(&exchange.forwarded, request);
        let stripped = exchange.stripped.as_deref();
        exchange.changes.apply_request(stripped, request);
        request.remove(HANDOFF_HEADER);
        if exchange.offers_handoff() {
            request.append("Causeway-Handoff", HeaderValue::from_static("1"));
        }
    }

    /// Tells a node that this edge can have another node continue the session of the request.
    pub(crate) fn offer_session_handoff(&self, exchange: &Exchange, request: &mut impl Request) {
        if exchange.is_of_session() {
            request.append("Causeway-Handoff", HeaderValue::from_static("1"));
        }
    }

    /// The chosen backend rejected an upgrade with `status`. Whether another one is tried.
    ///
    /// Not for a client that is bound to the backend: one response of the application, which the client may have provoked, would
    /// bind it elsewhere. If the backend is faulty, its probes find out.
    pub(crate) fn upgrade_rejected(&self, exchange: &mut Exchange, status: StatusCode) -> bool {
        let failing = matches!(
            status,
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
        );
        let repeatable = exchange.repeatable() == Repeatable::Yes && !exchange.is_bound();
        if !failing || !repeatable || !self.may_retry(exchange) {
            return false;
        }
        self.report(exchange, Evidence::UpgradeRejected(status));
        exchange.in_flight = None;
        exchange.exclude_backend();
        true
    }

    fn report(&self, exchange: &Exchange, evidence: Evidence) {
        if let Some(choice) = &exchange.choice {
            exchange
                .pool
                .report(&choice.backend, evidence, Instant::now());
        }
    }

    /// Allows another backend for a request that no backend has seen. It is not charged to the retry budget.
    ///
    /// # Errors
    ///
    /// The response for the client, if `limits.retries` is reached.
    fn try_another(&self, exchange: &Exchange) -> Result<(), Rejection> {
        if self.rules.load().retries_max < exchange.attempts {
            return Err(exchange.failure());
        }
        self.metrics.retries.inc();
        Ok(())
    }

    /// Whether a request that a backend has seen may be sent again; if so, the retry budget is charged.
    fn may_retry(&self, exchange: &Exchange) -> bool {
        let may = exchange.attempts <= self.rules.load().retries_max;
        let repeats = may && exchange.pool.retry_budget.try_withdraw();
        if repeats {
            self.metrics.retries.inc();
        }
        repeats
    }

    /// Counts the request, and writes its line in the access log.
    pub(crate) fn log(&self, exchange: &Exchange, outcome: Outcome<'_>) {
        let (took, status) = (exchange.arrived.elapsed(), outcome.status.unwrap_or(499));
        let (up, down) = (outcome.bytes_in, outcome.bytes_out);
        exchange.route.ended(status, took, up, down);
        if self.access.is_on() {
            self.access.write(exchange.line(Kind::Request, outcome));
        }
    }

    /// Writes the access log line of a request that was not admitted, with the reason.
    pub(crate) fn log_rejected(
        &self,
        request: &impl Request,
        peer: Option<IpAddr>,
        status: u16,
        error: &str,
    ) {
        if self.access.is_on() {
            self.access.write(AccessLine {
                method: Some(request.method().as_str().into()),
                host: request.host().map(excerpt),
                path: Some(excerpt(request.path())),
                error: Some(error.into()),
                ..AccessLine::rejected(peer, status)
            });
        }
    }

    /// The same, for input that could not be parsed as a request.
    pub(crate) fn log_unread(&self, peer: Option<IpAddr>, status: u16, error: &str) {
        if self.access.is_on() {
            self.access.write(AccessLine {
                error: Some(error.into()),
                ..AccessLine::rejected(peer, status)
            });
        }
    }
}

impl Exchange {
    /// Whether the backend is offered to hand the tunnel off: where nodes are expected.
    pub(crate) fn offers_handoff(&self) -> bool {
        self.kind == RequestKind::Upgrade && self.pool.health.kind == ProbeKind::Node
    }

    /// Whether it belongs to a SockJS session over HTTP, of a pool where nodes are expected.
    fn is_of_session(&self) -> bool {
        self.kind == RequestKind::Plain
            && self.pool.health.kind == ProbeKind::Node
            && self.claim.session.is_some()
    }

    /// Its SockJS session over HTTP, in a pool where nodes are expected.
    pub(crate) fn session(&self) -> Option<PooledSession> {
        let is_of_session = self.is_of_session();
        let session = self.claim.session.as_ref().filter(|_| is_of_session)?;
        Some(PooledSession {
            pool: Arc::clone(&self.pool),
            session: session.clone(),
        })
    }

    /// Its session, if that is to be handed off before the request can be served.
    pub(crate) fn departing_session(&self) -> Option<PooledSession> {
        let session = self.claim.session.as_ref();
        let session = session.filter(|_| self.is_of_session())?;
        self.pool.departing_holder(session)?;
        self.session()
    }

    /// Whether its method is idempotent (RFC 9110, 9.2.2).
    pub(crate) fn repeatable(&self) -> Repeatable {
        if self.method.is_idempotent() {
            Repeatable::Yes
        } else {
            Repeatable::No
        }
    }

    /// The TLS connector of its pool; `None` if its backends use plain TCP.
    pub(crate) fn tls(&self) -> Option<&Connector> {
        self.pool.tls.as_deref()
    }

    /// The backend of the last attempt.
    pub(crate) fn backend(&self) -> Option<&Arc<Backend>> {
        self.choice.as_ref().map(|choice| &choice.backend)
    }

    /// The tunnel slot at the chosen backend.
    pub(crate) fn take_tunnel_slot(&mut self) -> Option<TunnelSlot> {
        self.tunnel_slot.take()
    }

    /// The choice of the last attempt, for [`Exchange::restore_choice`].
    pub(crate) fn choice(&self) -> Option<Choice> {
        self.choice.clone()
    }

    /// Restores an earlier choice: the response of that backend goes to the client.
    pub(crate) fn restore_choice(&mut self, choice: Option<Choice>) {
        self.choice = choice;
    }

    /// Excludes the chosen backend from further attempts of this request.
    fn exclude_backend(&mut self) {
        if let Some(choice) = &self.choice {
            self.tried.add(&choice.backend);
        }
    }

    /// Whether a retry after a failed attempt goes to the same backend: once, for a client that is bound to it.
    ///
    /// A backend that restarts breaks its connections: a retry on another one would bind the client elsewhere.
    fn retries_same_backend(&mut self) -> bool {
        !std::mem::replace(&mut self.retried_same_backend, true) && self.is_bound()
    }

    /// Whether its client is bound to the chosen backend.
    fn is_bound(&self) -> bool {
        let is_bound = |choice: &Choice| choice.affinity == AffinityOutcome::Hit;
        self.choice.as_ref().is_some_and(is_bound)
    }

    /// The response when no backend is left to try.
    pub(crate) fn failure(&self) -> Rejection {
        self.failure.clone().unwrap_or(Rejection::NoBackend)
    }

    /// Its line in the access log.
    pub(crate) fn line(&self, kind: Kind, outcome: Outcome<'_>) -> AccessLine {
        let logged_target = self.logged_target.as_deref();
        AccessLine {
            ts: SystemTime::now() - self.arrived.elapsed(),
            kind,
            client: Some(self.forwarded.client),
            request_id: Some(self.forwarded.request_id().into()),
            method: Some(self.method.as_str().into()),
            host: logged_target.and_then(|logged_target| logged_target.host.clone()),
            path: logged_target.map(|logged_target| logged_target.path.clone()),
            status: outcome.status,
            duration_ms: self.arrived.elapsed(),
            bytes_in: outcome.bytes_in,
            bytes_out: outcome.bytes_out,
            backend: self.backend().map(|backend| backend.id.as_str().into()),
            affinity: self.choice.as_ref().map(|choice| choice.affinity.as_str()),
            attempts: (self.attempts > 1).then_some(self.attempts),
            waited_ms: self.parking.duration(),
            close_reason: None,
            close_code: None,
            client_code: None,
            backend_code: None,
            error: outcome.error.map(Into::into),
        }
    }

    /// Counts an upgrade that has become a tunnel, whose line is written when the tunnel ends.
    pub(crate) fn switched(&self) {
        let status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
        self.route.ended(status, self.arrived.elapsed(), 0, 0);
    }

    /// The address of its client, as reported by trusted proxies.
    pub(crate) fn client(&self) -> IpAddr {
        self.forwarded.client
    }

    /// When the request arrived.
    pub(crate) fn arrived(&self) -> Instant {
        self.arrived
    }
}

/// Whether it is a CORS preflight request (Fetch, "CORS-preflight request").
fn is_preflight(request: &impl Request) -> bool {
    *request.method() == http::Method::OPTIONS
        && request.has("origin")
        && request.has("access-control-request-method")
}

/// The length of the body, if the head has one.
fn declared_body(request: &impl Request) -> Option<u64> {
    request.text("content-length")?.trim().parse().ok()
}
