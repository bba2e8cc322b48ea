//! One request, and what the edge decides for it: the same for plain HTTP and for upgrades.
//!
//! Does no I/O. An engine that serves a request asks here in this order: [`ProxyState::admit`], [`ProxyState::attempt_due`] and
//! [`ProxyState::choose`] for each attempt, [`ProxyState::prepare`] for what is sent, [`ProxyState::attempt_failed`] or
//! [`ProxyState::finalize`], and [`ProxyState::log`] at the end.

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
use crate::config::{RouteRules, Stripped};
use crate::http::fields::Request;
use crate::http::forwarded::Forwarded;
use crate::http::hop_by_hop::HopByHop;
use crate::http::scheme::Scheme;
use crate::limits::Gate;
use crate::limits::Limit;
use crate::limits::Pass;
use crate::limits::Seldom;
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

/// What the edge goes by. One for the whole process.
pub(crate) struct ProxyState {
    pub(crate) rules: ArcSwap<Rules>,
    pub(crate) parked: ParkedRequests,
    pub(crate) gate: Arc<Gate>,
    /// Cancelled when the edge begins to end: nobody waits from then on.
    pub(crate) ending: CancellationToken,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) access: AccessLog,
    /// For the line that says that descriptors have run out, of which each request would write one.
    pub(crate) exhausted: Seldom,
    /// The same, of local ports towards one backend.
    pub(crate) no_port: Seldom,
}

/// One request from its head to its line in the access log.
pub(crate) struct Exchange {
    arrived: Instant,
    method: http::Method,
    /// What the access log says that it is for, if there is one.
    logged_target: Option<Box<LoggedTarget>>,
    route: RouteMetrics,
    pool: Arc<Pool>,
    claim: Claim,
    preflight: bool,
    kind: RequestKind,
    forwarded: Forwarded,
    /// What the route changes, and what it takes off the path.
    changes: Arc<RouteRules>,
    stripped: Option<Box<Stripped>>,
    tried: Tried,
    /// How many backends it was sent to, or was to be.
    attempts: usize,
    choice: Option<Choice>,
    /// Whether it was sent a second time to the backend that its client belongs to.
    retried_same_backend: bool,
    parking: Parking,
    /// What the last attempt that failed amounts to for the client.
    failure: Option<Rejection>,
    in_flight: Option<RequestCount>,
    /// Its turn at the chosen backend.
    slot_state: SlotState,
    /// The place at the chosen backend for the tunnel that it may become.
    tunnel_slot: Option<TunnelSlot>,
    body_bytes_max: u64,
    _pass: Pass,
}

/// The parts of a target that are logged.
struct LoggedTarget {
    host: Option<Box<str>>,
    path: Box<str>,
}

/// How a request ended, as far as its carrier knows.
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

    /// Finds out who asks for what, and which pool serves it. Removes what belongs to the client's connection alone, and spells
    /// an upgrade that the route allows in one way.
    ///
    /// # Errors
    ///
    /// [`Rejection::NoRoute`], or [`Rejection::Malformed`] without the host that RFC 9112, 3.2 and RFC 9113, 8.3.1 ask for, and for
    /// what HTTP/2 allows its framing and forbids itself, or [`Rejection::Limited`].
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
            request.set_upgrade(protocol.expect("it came in a header"));
        }
        let request = &*request;
        target::check(request)?;
        let host = request.host();
        // What is asked of the server as a whole goes where its root goes.
        let path = match request.path() {
            "*" => "/",
            path => path,
        };
        let rules = self.rules.load();
        let Some(route) = rules.routes.position(host, path) else {
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
            // The session is bound by the request that follows, which can take a cookie.
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
            _pass: pass,
        })
    }

    /// Takes note that `bytes` of the request's body have come.
    ///
    /// # Errors
    ///
    /// [`Rejection::Limited`] if that is more than may come.
    pub(crate) fn check_body_size(&self, exchange: &Exchange, bytes: u64) -> Result<(), Rejection> {
        if bytes <= exchange.body_bytes_max {
            return Ok(());
        }
        let client = Some(exchange.forwarded.client);
        let limit = self.gate.refuse(Limit::BodySize, client, Instant::now());
        Err(Rejection::Limited(limit))
    }

    /// Lets an upgrade become a tunnel, for as long as that lasts.
    ///
    /// # Errors
    ///
    /// [`Rejection::Limited`] if there are too many.
    pub(crate) fn admit_tunnel(&self, exchange: &Exchange) -> Result<Pass, Rejection> {
        let pass = self
            .gate
            .tunnel(exchange.forwarded.client, exchange.arrived);
        pass.map_err(Rejection::Limited)
    }

    /// The first of `protocols` that the route of this request lets through.
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

    /// Chooses the backend of the next attempt: the same again for a request that waits for it.
    ///
    /// # Errors
    ///
    /// If none is left: what the attempt before amounts to, or [`Rejection::NoBackend`] if there was none.
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

    /// A backend that has room for what the request may become.
    fn pick(&self, exchange: &mut Exchange) -> Result<Choice, Rejection> {
        if exchange.kind == RequestKind::Plain {
            return self.pick_for_request(exchange);
        }
        exchange.tunnel_slot = None;
        loop {
            // Nothing has happened yet in the first attempt.
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

    /// Makes of a request what the backend gets, now that it is connected: without what is ours to know, and with who the client is.
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
    }

    /// The chosen backend refused an upgrade with `status`. Whether another may be asked.
    ///
    /// Not for a client that belongs there: it would be bound elsewhere by one answer of the application, which it may have
    /// brought about itself. If the backend is at fault, its probes find out.
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

    /// Lets a request that no backend has seen go to another one.
    ///
    /// It costs nothing of the budget: nobody has had work with it yet.
    ///
    /// # Errors
    ///
    /// What its failure amounts to, if it has been to as many as it may.
    fn try_another(&self, exchange: &Exchange) -> Result<(), Rejection> {
        if self.rules.load().retries_max < exchange.attempts {
            return Err(exchange.failure());
        }
        self.metrics.retries.inc();
        Ok(())
    }

    /// Whether a request that a backend has seen may be sent again; if so, it is paid for.
    fn may_retry(&self, exchange: &Exchange) -> bool {
        let may = exchange.attempts <= self.rules.load().retries_max;
        let repeats = may && exchange.pool.retry_budget.try_withdraw();
        if repeats {
            self.metrics.retries.inc();
        }
        repeats
    }

    /// Counts the request, and writes its line.
    pub(crate) fn log(&self, exchange: &Exchange, outcome: Outcome<'_>) {
        let (took, status) = (exchange.arrived.elapsed(), outcome.status.unwrap_or(499));
        let (up, down) = (outcome.bytes_in, outcome.bytes_out);
        exchange.route.ended(status, took, up, down);
        if self.access.is_on() {
            self.access.write(exchange.line(Kind::Request, outcome));
        }
    }

    /// Writes the line of a request that got no further than the edge, with why.
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
                ..AccessLine::refused(peer, status)
            });
        }
    }

    /// The same, of what could not be read as a request.
    pub(crate) fn log_unread(&self, peer: Option<IpAddr>, status: u16, error: &str) {
        if self.access.is_on() {
            self.access.write(AccessLine {
                error: Some(error.into()),
                ..AccessLine::refused(peer, status)
            });
        }
    }
}

impl Exchange {
    /// Whether it may be sent twice (RFC 9110, 9.2.2).
    pub(crate) fn repeatable(&self) -> Repeatable {
        match self.method.is_idempotent() {
            true => Repeatable::Yes,
            false => Repeatable::No,
        }
    }

    /// How the backends of its pool are spoken to, unless it is in plain.
    pub(crate) fn tls(&self) -> Option<&Connector> {
        self.pool.tls.as_deref()
    }

    /// The backend of the last attempt.
    pub(crate) fn backend(&self) -> Option<&Arc<Backend>> {
        self.choice.as_ref().map(|choice| &choice.backend)
    }

    /// Its place at the chosen backend, for the tunnel that it becomes.
    pub(crate) fn take_tunnel_slot(&mut self) -> Option<TunnelSlot> {
        self.tunnel_slot.take()
    }

    /// The choice of the last attempt, to come back to it.
    pub(crate) fn choice(&self) -> Option<Choice> {
        self.choice.clone()
    }

    /// Goes back to an earlier choice: what that backend answered is what the client gets.
    pub(crate) fn restore_choice(&mut self, choice: Option<Choice>) {
        self.choice = choice;
    }

    /// Takes the chosen backend out of the game for this request.
    fn exclude_backend(&mut self) {
        if let Some(choice) = &self.choice {
            self.tried.add(&choice.backend);
        }
    }

    /// Whether a request that its backend left without an answer is sent there once more.
    ///
    /// Its client belongs there, and a backend that is being restarted cuts what it has: going elsewhere would move the client.
    fn retries_same_backend(&mut self) -> bool {
        !std::mem::replace(&mut self.retried_same_backend, true) && self.is_bound()
    }

    /// Whether its client belongs to the chosen backend.
    fn is_bound(&self) -> bool {
        let is_bound = |choice: &Choice| choice.affinity == AffinityOutcome::Hit;
        self.choice.as_ref().is_some_and(is_bound)
    }

    /// What to answer when nothing is left to try.
    pub(crate) fn failure(&self) -> Rejection {
        self.failure.clone().unwrap_or(Rejection::NoBackend)
    }

    /// What the access log says of it.
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

    /// Counts an upgrade that has become a tunnel: its own line comes when that ends.
    pub(crate) fn switched(&self) {
        let status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
        self.route.ended(status, self.arrived.elapsed(), 0, 0);
    }

    /// When the request came.
    pub(crate) fn arrived(&self) -> Instant {
        self.arrived
    }
}

/// Whether a browser asks if it may send a request of another site (Fetch, "CORS-preflight request").
fn is_preflight(request: &impl Request) -> bool {
    *request.method() == http::Method::OPTIONS
        && request.has("origin")
        && request.has("access-control-request-method")
}

/// The length of the body, where the head says it.
fn declared_body(request: &impl Request) -> Option<u64> {
    request.text("content-length")?.trim().parse().ok()
}
