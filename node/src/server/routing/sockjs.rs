//! SockJS over HTTP: the responses of each place of an endpoint, and the headers that the protocol requires.

use std::error::Error;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::Response;
use http::StatusCode;
use http::header;
use http::request::Parts;
use tokio::time;

use crate::client::session::ReceiveError;
use crate::client::session::Receiver;
use crate::config::Mode;
use crate::config::Sockjs;
use crate::config::SockjsTransport;
use crate::server::routing::HttpOutcome;
use crate::server::routing::Source;
use crate::server::routing::body;
use crate::server::routing::body::BodyLimits;
use crate::server::routing::cookie;
use crate::server::routing::cors;
use crate::server::routing::mount::Mount;
use crate::server::routing::mount::SockjsMount;
use crate::server::routing::text;
use crate::server::routing::wire::Wire;
use crate::transport;
use crate::transport::BadCallback;
use crate::transport::Body;
use crate::transport::Callback;

/// How often a receiver that finds another one at work looks again, and how long it waits in between: a quarter of a second in
/// all, a few round trips of the edge, and little for a client that is in the wrong.
const BUSY_LOOKS: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(25);

/// The `/info` of the endpoint: which transports it offers.
pub(super) fn info(sockjs: &Sockjs, parts: &Parts) -> Response<Body> {
    let mut response = if parts.method == Method::OPTIONS {
        let mut response = preflight("OPTIONS, GET");
        if sockjs.cookie_needed {
            cookie::set_jsessionid(&parts.headers, response.headers_mut());
        }
        response
    } else {
        let websocket = sockjs.allows(SockjsTransport::Websocket);
        let body = format!(
            r#"{{"websocket":{websocket},"origins":["*:*"],"cookie_needed":{},"entropy":{}}}"#,
            sockjs.cookie_needed,
            fastrand::u32(..),
        );
        let mut response = Response::new(Body::from(body));
        let content_type = HeaderValue::from_static("application/json; charset=UTF-8");
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, content_type);
        cors::no_cache(response.headers_mut());
        response
    };
    cors::share(&parts.headers, response.headers_mut());
    response
}

/// A request of a session, and its client.
#[derive(Clone, Copy)]
pub(super) struct SessionRequest<'a> {
    /// The session, as the client named it.
    pub(super) id: &'a str,
    /// The requested transport.
    pub(super) wire: Wire,
    pub(super) source: Source,
}

/// Responds to a request of a session.
///
/// # Cancel safety
///
/// Dropping this future means that the client went away: what it sent and is not handed on yet is dropped.
pub(super) async fn session<B>(
    mount: &Mount,
    request: SessionRequest<'_>,
    parts: &Parts,
    body: B,
    limits: BodyLimits,
) -> HttpOutcome
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut headers = HeaderMap::new();
    if request.wire.is_cross_origin() {
        cors::share(&parts.headers, &mut headers);
    }
    if mount.sockjs().settings.cookie_needed {
        cookie::set_jsessionid(&parts.headers, &mut headers);
    }
    if parts.method == Method::OPTIONS {
        return now(preflight("OPTIONS, POST"), headers);
    }
    cors::no_cache(&mut headers);
    // Receivers send no body, but hyper reports a closed connection only after the end of the body has been read.
    match body::read(body, limits).await {
        Ok(body) => respond(mount, request, parts, &body, headers).await,
        Err(error) => {
            error.log(&mount.endpoint.path, limits);
            now(text(error.status(), format!("{error}\n")), headers)
        }
    }
}

/// Responds to a request whose `body` is whole, with `headers` besides those of its wire.
async fn respond(
    mount: &Mount,
    request: SessionRequest<'_>,
    parts: &Parts,
    body: &[u8],
    mut headers: HeaderMap,
) -> HttpOutcome {
    let SessionRequest { id, wire, source } = request;
    let SockjsMount {
        settings, sessions, ..
    } = mount.sockjs();
    let receiver = receive(mount, id, source);
    let bytes_max = settings.response_bytes_max;
    let callback = || Callback::of_query(parts.uri.query());
    let response = match wire {
        Wire::Xhr => return later(transport::poll(receiver.await, transport::Xhr), headers),
        Wire::XhrStreaming => transport::stream(receiver.await, transport::XhrStreaming, bytes_max),
        Wire::XhrSend => transport::xhr_send(sessions, id, body).await,
        Wire::Eventsource => transport::stream(receiver.await, transport::Eventsource, bytes_max),
        Wire::Htmlfile => match callback() {
            Ok(callback) => transport::stream(
                receiver.await,
                transport::Htmlfile::new(callback),
                bytes_max,
            ),
            Err(error) => bad_callback(error),
        },
        Wire::Jsonp => match callback() {
            Ok(callback) => {
                let nosniff = HeaderValue::from_static("nosniff");
                headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
                let poll = transport::poll(receiver.await, transport::Jsonp::new(callback));
                return later(poll, headers);
            }
            Err(error) => bad_callback(error),
        },
        Wire::JsonpSend => {
            let content_type = parts.headers.get(header::CONTENT_TYPE);
            transport::jsonp_send(sessions, id, content_type, body).await
        }
    };
    now(response, headers)
}

fn now(mut response: Response<Body>, headers: HeaderMap) -> HttpOutcome {
    response.headers_mut().extend(headers);
    HttpOutcome::Response(response)
}

fn later(
    poll: impl Future<Output = Response<Bytes>> + Send + 'static,
    headers: HeaderMap,
) -> HttpOutcome {
    HttpOutcome::Poll(Box::pin(async move {
        let mut response = poll.await;
        response.headers_mut().extend(headers);
        response
    }))
}

/// Attaches a receiver to the session `id`.
async fn receive(mount: &Mount, id: &str, source: Source) -> Result<Receiver, ReceiveError> {
    let sessions = &mount.sockjs().sessions;
    // What only this node knows of the client has no other node to continue it.
    let is_by_edge = source.is_by_edge && matches!(mount.endpoint.mode, Mode::Relay { .. });
    patiently(|| {
        let connect = || mount.connect_session();
        sessions.receive(id, source.client, is_by_edge, Instant::now(), connect)
    })
    .await
}

/// Calls `attach` until it finds the place free, within bounds.
///
/// A receiver at work gets a moment to be gone: a client that gave a request up and asks again may be faster than the end of
/// the connection that it gave up, above all through a proxy.
async fn patiently<T>(
    mut attach: impl FnMut() -> Result<T, ReceiveError>,
) -> Result<T, ReceiveError> {
    for _ in 0..BUSY_LOOKS {
        match attach() {
            Err(ReceiveError::Busy) => time::sleep(BUSY_PAUSE).await,
            decided => return decided,
        }
    }
    attach()
}

fn bad_callback(error: BadCallback) -> Response<Body> {
    text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

fn preflight(methods: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = StatusCode::NO_CONTENT;
    cors::preflight(methods, SystemTime::now(), response.headers_mut());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_goes_in_time_leaves_its_place_to_the_next() {
        for looks in [0, 1, BUSY_LOOKS] {
            let (started, mut looked) = (time::Instant::now(), 0);
            let attached = patiently(|| {
                looked += 1;
                (looks < looked).then_some(()).ok_or(ReceiveError::Busy)
            });
            assert_eq!(attached.await, Ok(()));
            assert_eq!(started.elapsed(), looks * BUSY_PAUSE);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_stays_keeps_its_place() {
        let started = time::Instant::now();
        let busy: Result<(), _> = patiently(|| Err(ReceiveError::Busy)).await;
        assert_eq!(busy, Err(ReceiveError::Busy));
        assert_eq!(started.elapsed(), BUSY_LOOKS * BUSY_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_node_says_so_at_once() {
        let started = time::Instant::now();
        let full: Result<(), _> = patiently(|| Err(ReceiveError::NodeFull)).await;
        assert_eq!(full, Err(ReceiveError::NodeFull));
        assert_eq!(started.elapsed(), Duration::ZERO);
    }
}
