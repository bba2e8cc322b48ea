//! Request routing: paths, origins and response headers.
//!
//! Owns no socket and no task: an upgrade is returned to the server, which owns both. The path is
//! parsed once, in [`route`].
//!
//! Invariant: no request from an origin that an endpoint does not allow reaches the endpoint.

use std::error::Error;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use causeway_conf::AddressRange;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::Version;
use http::header;
use http::request::Parts;
use tracing::warn;

use crate::config::Endpoint;
use crate::config::Live;
use crate::config::Mode;
use crate::handoff::Arrivals;
use crate::handoff::Departures;
use crate::metrics::Metrics;
use crate::metrics::RefuseReason;
use crate::metrics::Transport;
use crate::protocol::Codec;
use crate::protocol::handoff;
use crate::protocol::handoff::Target;
use crate::transport::Body;

mod api;
mod body;
mod channels;
mod client_address;
mod cookie;
mod cors;
mod handshake;
mod iframe;
mod mount;
mod origin;
mod page;
mod route;
mod sockjs;
mod wire;

pub(crate) use api::ApiMount;
pub(crate) use channels::ChannelsHttp;
pub(crate) use mount::Mount;
pub(crate) use route::Place;
pub(crate) use route::Route;
#[cfg(any(fuzzing, test))]
pub(crate) use route::find as find_route;

use body::BodyLimits;
use channels::ChannelsPlace;
use client_address::client_address;
use origin::Host;
use origin::SEC_FETCH_SITE;
use sockjs::SessionRequest;
use wire::Wire;

/// Tells the edge to bind the client to another node.
const RELEASE: HeaderName = HeaderName::from_static("causeway-release");

/// Settings of routing.
pub(crate) struct HttpConfig {
    /// Whether the chat page is served.
    pub(crate) page: bool,
    /// Peers whose `X-Forwarded-*` is trusted.
    pub(crate) trusted_proxies: Vec<AddressRange>,
    /// The largest request body.
    pub(crate) body_bytes_max: usize,
    /// For a request body to be complete.
    pub(crate) body_timeout: Duration,
}

/// Responds to requests.
pub(crate) struct Http {
    config: Live<HttpConfig>,
    mounts: Vec<Mount>,
    /// For the application's backend.
    api: Option<ApiMount>,
    channels: ChannelsHttp,
    /// Missing in a node without a broker for several.
    arrivals: Option<Arc<Arrivals>>,
    departures: Option<Arc<Departures>>,
    metrics: Arc<Metrics>,
}

/// The purpose of a request: a full node serves all but those of new clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To observe the node.
    Operator,
    /// To use the server API, with one of its keys.
    Api,
    /// To continue an existing session.
    Session,
    /// Anything else.
    New,
}

/// What a request results in.
pub(crate) enum HttpOutcome {
    /// A complete response.
    Response(Response<Body>),
    /// A 101: the connection is a WebSocket from there on.
    Upgrade(Response<Body>, Upgrade),
    /// A long poll. It borrows nothing from the request.
    Poll(WaitingPoll),
}

/// The response of a poll. Dropping it means that the client has disconnected, and interrupts the
/// session.
pub(crate) type WaitingPoll = Pin<Box<dyn Future<Output = Response<Bytes>> + Send>>;

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
struct Source {
    /// The address of the client.
    client: IpAddr,
    /// Whether it comes by an edge that can have another node continue the client.
    is_by_edge: bool,
}

/// What is served once the 101 is written.
pub(crate) enum Upgrade {
    /// A new client.
    Client(ClientUpgrade),
    /// A client that another node hands off.
    Handoff,
}

/// A WebSocket of a new client.
pub(crate) struct ClientUpgrade {
    /// The endpoint of the client.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The transport.
    pub(crate) transport: Transport,
    /// Whether the edge can hand the client off to another node.
    pub(crate) can_hand_off: bool,
    /// The request's, for channel clients.
    pub(crate) headers: HeaderMap,
}

impl Http {
    /// Serves `mounts`, whose paths differ.
    pub(crate) fn new(
        config: HttpConfig,
        mounts: Vec<Mount>,
        channels: ChannelsHttp,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            config: Live::new(config),
            mounts,
            api: None,
            channels,
            arrivals: None,
            departures: None,
            metrics,
        }
    }

    /// Serves `api` too, apart from all mounts.
    pub(crate) fn with_api(self, api: Option<ApiMount>) -> Self {
        Self { api, ..self }
    }

    /// Accepts clients that other nodes hand off, too.
    pub(crate) fn with_arrivals(self, arrivals: Option<Arc<Arrivals>>) -> Self {
        Self { arrivals, ..self }
    }

    /// Hands sessions over HTTP off, too.
    pub(crate) fn with_departures(self, departures: Option<Arc<Departures>>) -> Self {
        Self { departures, ..self }
    }

    /// Replaces the settings.
    pub(crate) fn reload(&self, config: HttpConfig) {
        self.config.set(config);
    }

    /// The endpoint at `path`.
    pub(crate) fn mount(&self, path: &str) -> Option<&Mount> {
        let mut mounts = self.mounts.iter();
        mounts.find(|mount| mount.endpoint.path == path)
    }

    /// The purpose of a request for `path` with these headers.
    pub(crate) fn purpose(&self, path: &str, headers: &HeaderMap) -> Purpose {
        if let Some(api) = &self.api
            && api.method(path).is_some()
        {
            return if api.api.admit(headers) {
                Purpose::Api
            } else {
                Purpose::New
            };
        }
        let endpoints = self.mounts.iter().map(|mount| &*mount.endpoint);
        match route::find(path, endpoints, self.config.get().page) {
            Some(Route::Endpoint(index, Place::Session { id, .. })) => {
                let sessions = self.mounts[index].sessions();
                if sessions.is_some_and(|sessions| sessions.contains(id, Instant::now())) {
                    Purpose::Session
                } else {
                    Purpose::New
                }
            }
            // Commands of clients whose replies go over a stream of this node or of another.
            Some(Route::Endpoint(_, Place::Channels(ChannelsPlace::Emulation))) => Purpose::Session,
            _ => Purpose::New,
        }
    }

    /// Responds to one request from `peer`.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future means that the client went away: its poll, if it is one, interrupts the
    /// session.
    pub(crate) async fn respond<B>(&self, request: Request<B>, peer: IpAddr) -> HttpOutcome
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (parts, body) = request.into_parts();
        if !has_host(&parts) {
            return text(StatusCode::BAD_REQUEST, "one Host header is expected\n").into();
        }
        if let Some(api) = &self.api
            && let Some(method) = api.method(parts.uri.path())
        {
            return api
                .respond(method, &parts, body, self.body_limits())
                .await
                .into();
        }
        if parts.uri.path() == handoff::PATH && self.is_trusted(peer) {
            match parts.headers.get(handoff::SESSION) {
                Some(id) => return self.hand_off_session(&parts, id).await.into(),
                None if self.arrivals.is_some() => return expect_client(&parts),
                None => {}
            }
        }
        let endpoints = self.mounts.iter().map(|mount| &*mount.endpoint);
        let Some(route) = route::find(parts.uri.path(), endpoints, self.config.get().page) else {
            return text(StatusCode::NOT_FOUND, "not found\n").into();
        };
        if !route.allows(&parts.method) {
            return method_not_allowed(route.allow()).into();
        }
        match route {
            Route::Page(asset) => asset.respond().into(),
            Route::Move => move_on(&parts.headers).into(),
            Route::Endpoint(index, place) => {
                let mount = &self.mounts[index];
                if !self.is_origin_allowed(&parts.headers, mount, place, peer) {
                    return origin_refused(mount, place).into();
                }
                let trusted = &self.config.get().trusted_proxies;
                let source = Source {
                    client: client_address(&parts.headers, peer, trusted),
                    is_by_edge: self.departures.is_some()
                        && self.is_trusted(peer)
                        && offers_handoff(&parts.headers),
                };
                let mut outcome = self.endpoint(mount, place, &parts, body, source).await;
                if let HttpOutcome::Upgrade(response, Upgrade::Client(upgrade)) = &mut outcome
                    && self.arrivals.is_some()
                    && self.is_trusted(peer)
                {
                    offer_handoff(&parts.headers, response, upgrade);
                }
                outcome
            }
        }
    }

    async fn endpoint<B>(
        &self,
        mount: &Mount,
        place: Place<'_>,
        parts: &Parts,
        body: B,
        source: Source,
    ) -> HttpOutcome
    where
        B: http_body::Body<Data = Bytes> + Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let transport = match place {
            Place::Greeting => return text(StatusCode::OK, "Welcome to SockJS!\n").into(),
            Place::Info => return sockjs::info(&mount.sockjs().settings, parts).into(),
            Place::Iframe => return mount.iframe_page(&parts.headers).into(),
            Place::Session { id, wire } => {
                let limits = self.body_limits();
                let request = SessionRequest { id, wire, source };
                let response = sockjs::session(mount, request, parts, body, limits);
                return response.await;
            }
            Place::Channels(place) => {
                let limits = self.body_limits();
                let response = self.channels.respond(mount, place, parts, body, limits);
                return response.await.into();
            }
            Place::ChannelsWebsocket => Transport::ChannelsJson,
            Place::Websocket => Transport::Websocket,
            Place::RawWebsocket => Transport::SockjsRaw,
            Place::SessionWebsocket => Transport::SockjsWebsocket,
        };
        match handshake::accept(parts, !body.is_end_stream()) {
            Ok(mut headers) => {
                let mut upgrade = ClientUpgrade {
                    endpoint: Arc::clone(&mount.endpoint),
                    transport,
                    can_hand_off: false,
                    headers: HeaderMap::new(),
                };
                if place == Place::ChannelsWebsocket {
                    if handshake::choose_codec(&parts.headers, &mut headers) == Codec::Protobuf {
                        upgrade.transport = Transport::ChannelsProtobuf;
                    }
                    upgrade.headers = parts.headers.clone();
                }
                let mut response = Response::new(Body::Empty);
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                *response.headers_mut() = headers;
                HttpOutcome::Upgrade(response, Upgrade::Client(upgrade))
            }
            Err(error) => {
                let mut response = text(StatusCode::BAD_REQUEST, error.to_string());
                *response.status_mut() = error.respond(response.headers_mut());
                response.into()
            }
        }
    }

    /// Hands the session `id` off, as an edge asks; without a target it ends its receiver.
    async fn hand_off_session(&self, request: &Parts, id: &HeaderValue) -> Response<Body> {
        let id = id.to_str().unwrap_or_default();
        let target = request.headers.get(handoff::HEADER);
        if target.is_none() && request.method == Method::POST {
            return self.end_receiver(id);
        }
        let target = target.and_then(|target| Target::parse(target.to_str().ok()?).ok());
        let (Some(departures), Some(target), &Method::POST) =
            (&self.departures, target, &request.method)
        else {
            let expected = "POST with Causeway-Handoff: INSTANCE TOKEN is expected\n";
            return text(StatusCode::BAD_REQUEST, expected);
        };
        let relays = self.mounts.iter().filter(|mount| {
            // Another mode has nothing that another node could continue.
            matches!(mount.endpoint.mode, Mode::Relay { .. })
        });
        let now = Instant::now();
        let sessions = relays.filter_map(|mount| mount.sessions()?.get(id, now));
        let mut sessions = sessions.collect::<Vec<_>>();
        let Some(session) = sessions.pop() else {
            return text(StatusCode::NOT_FOUND, "there is no such session\n");
        };
        if !sessions.is_empty() {
            let several = "sessions of several endpoints have this name\n";
            return text(StatusCode::CONFLICT, several);
        }
        if let Some(instance) = session.moved_to() {
            let mut response = text(StatusCode::TEMPORARY_REDIRECT, "it was handed off before\n");
            let instance = HeaderValue::try_from(instance.to_string());
            let instance = instance.expect("hexadecimal digits are a valid value");
            response.headers_mut().insert(handoff::HEADER, instance);
            return response;
        }
        let handing_off = departures.hand_off_session(id.to_owned(), session, target);
        match handing_off.await {
            Ok(()) => text(StatusCode::OK, "handed off\n"),
            Err(error) => text(StatusCode::CONFLICT, format!("{error}\n")),
        }
    }

    /// Has the receiver of the session `id` end, of each endpoint that has one of this name.
    fn end_receiver(&self, id: &str) -> Response<Body> {
        let now = Instant::now();
        let sessions = self.mounts.iter();
        let sessions = sessions.filter_map(|mount| mount.sessions()?.get(id, now));
        let ended = sessions.inspect(|session| session.end_receiver()).count();
        match ended {
            0 => text(StatusCode::NOT_FOUND, "there is no such session\n"),
            _ => text(StatusCode::OK, "its receiver ends\n"),
        }
    }

    fn is_trusted(&self, peer: IpAddr) -> bool {
        client_address::is_trusted(&self.config.get().trusted_proxies, peer.to_canonical())
    }

    fn body_limits(&self) -> BodyLimits {
        BodyLimits {
            bytes_max: self.config.get().body_bytes_max,
            timeout: self.config.get().body_timeout,
        }
    }

    fn is_origin_allowed(
        &self,
        headers: &HeaderMap,
        mount: &Mount,
        place: Place<'_>,
        peer: IpAddr,
    ) -> bool {
        let trusted = self.is_trusted(peer);
        let is_allowed = match place {
            // Cached copies are served without a request, so its own headers restrict who may frame it.
            Place::Iframe => return true,
            Place::Session {
                wire: Wire::Jsonp, ..
            } => origin::is_script_allowed,
            _ => origin::is_allowed,
        };
        let allowed_origins = mount.allowed_origins.get();
        let allowed = is_allowed(&allowed_origins, headers, &Host::of(headers, trusted));
        if !allowed {
            self.metrics.refused(RefuseReason::Origin);
            if let Some(held_back) = mount.refusals.admit(Instant::now()) {
                warn!(
                    endpoint = mount.endpoint.path,
                    origin = ?headers.get(header::ORIGIN),
                    referer = ?headers.get(header::REFERER).filter(|_| !headers.contains_key(header::ORIGIN)),
                    setting = "allowed_origins",
                    held_back,
                    "request rejected: the endpoint's setting does not allow its origin",
                );
            }
        }
        allowed
    }
}

impl From<Response<Body>> for HttpOutcome {
    fn from(response: Response<Body>) -> Self {
        Self::Response(response)
    }
}

/// The response to an edge that opens a connection for a client of another node.
fn expect_client(request: &Parts) -> HttpOutcome {
    let has = |name: HeaderName, expected: &str| {
        let value = request.headers.get(name);
        value.is_some_and(|value| value == expected)
    };
    let is_offer = request.method == Method::GET
        && has(header::UPGRADE, "causeway-handoff")
        && has(handoff::HEADER, "1");
    if !is_offer {
        let text = "GET with Upgrade: causeway-handoff and Causeway-Handoff: 1 is expected\n";
        return self::text(StatusCode::BAD_REQUEST, text).into();
    }
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    let protocol = HeaderValue::from_static("causeway-handoff");
    headers.insert(header::UPGRADE, protocol);
    headers.insert(handoff::HEADER, HeaderValue::from_static("1"));
    HttpOutcome::Upgrade(response, Upgrade::Handoff)
}

/// Whether the edge can have another node continue the client.
fn offers_handoff(request: &HeaderMap) -> bool {
    request
        .get(handoff::HEADER)
        .is_some_and(|value| value == "1")
}

/// Accepts that the edge may hand the client off to another node, if it offers that.
fn offer_handoff(request: &HeaderMap, response: &mut Response<Body>, upgrade: &mut ClientUpgrade) {
    let has_clients = matches!(
        upgrade.endpoint.mode,
        Mode::Relay { .. } | Mode::Echo | Mode::Channels
    );
    if offers_handoff(request) && has_clients {
        upgrade.can_hand_off = true;
        let accepted = HeaderValue::from_static("1");
        response.headers_mut().insert(handoff::HEADER, accepted);
    }
}

/// Redirects to the page and has the edge bind the browser to another node, unless another site sent the browser here.
fn move_on(request: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::SEE_OTHER;
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, HeaderValue::from_static("/"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if is_same_site_navigation(request) {
        headers.insert(RELEASE, HeaderValue::from_static("1"));
    }
    response
}

/// Whether the request is from a page of this site, typed by the user, or not from a browser.
fn is_same_site_navigation(request: &HeaderMap) -> bool {
    request
        .get_all(SEC_FETCH_SITE)
        .iter()
        .all(|site| site == "same-origin" || site == "none")
}

fn origin_refused(mount: &Mount, place: Place<'_>) -> Response<Body> {
    let path = &mount.endpoint.path;
    let known = match place {
        Place::Session {
            wire: Wire::Jsonp, ..
        } => " (without an Origin, the page is known by its Referer)",
        _ => "",
    };
    let body = format!(
        "origin not allowed{known}; `allowed_origins` of the endpoint {path} can allow it\n"
    );
    text(StatusCode::FORBIDDEN, body)
}

fn method_not_allowed(allow: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    response
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

/// HTTP/1.1 requires exactly one `Host`, RFC 9112 section 3.2; older clients may send none.
fn has_host(parts: &Parts) -> bool {
    match parts.headers.get_all(header::HOST).iter().count() {
        0 => parts.version < Version::HTTP_11,
        count => count == 1,
    }
}

fn text(status: StatusCode, text: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static("text/plain; charset=UTF-8");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}
