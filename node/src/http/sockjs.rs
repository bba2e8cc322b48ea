//! What SockJS answers over HTTP: each place of an endpoint, and the headers that the protocol wants.

use std::error::Error;
use std::net::IpAddr;
use std::time::Instant;
use std::time::SystemTime;

use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::Response;
use http::StatusCode;
use http::header;
use http::request::Parts;

use crate::config::Sockjs;
use crate::config::SockjsTransport;
use crate::http::body;
use crate::http::body::BodyLimits;
use crate::http::cookie;
use crate::http::cors;
use crate::http::mount::Mount;
use crate::http::mount::SockjsMount;
use crate::http::text;
use crate::http::wire::Wire;
use crate::transport;
use crate::transport::BadCallback;
use crate::transport::Body;
use crate::transport::Callback;

/// Says what the endpoint can.
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

/// What is wanted of a session, and by whom.
#[derive(Clone, Copy)]
pub(super) struct SessionRequest<'a> {
    /// The session, as the client named it.
    pub(super) id: &'a str,
    /// What the client wants of it.
    pub(super) wire: Wire,
    /// The client's address.
    pub(super) client: IpAddr,
}

/// Answers a request of a session.
///
/// # Cancel safety
///
/// Dropping this future means that the client went away: its poll, if it is one, interrupts the session.
pub(super) async fn session<B>(
    mount: &Mount,
    request: SessionRequest<'_>,
    parts: &Parts,
    body: B,
    limits: BodyLimits,
) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut response = if parts.method == Method::OPTIONS {
        preflight("OPTIONS, POST")
    } else {
        // Receivers send none, but hyper sees a client go away only behind the end of the body.
        let mut response = match body::read(body, limits).await {
            Ok(body) => answer(mount, request, parts, &body).await,
            Err(error) => text(error.status(), format!("{error}\n")),
        };
        cors::no_cache(response.headers_mut());
        response
    };
    if request.wire.is_cross_origin() {
        cors::share(&parts.headers, response.headers_mut());
    }
    if mount.sockjs().settings.cookie_needed {
        cookie::set_jsessionid(&parts.headers, response.headers_mut());
    }
    response
}

async fn answer(
    mount: &Mount,
    request: SessionRequest<'_>,
    parts: &Parts,
    body: &[u8],
) -> Response<Body> {
    let SessionRequest { id, wire, client } = request;
    let SockjsMount {
        settings, sessions, ..
    } = mount.sockjs();
    let receive = || sessions.receive(id, client, Instant::now(), || mount.connect_session());
    let bytes_max = settings.response_bytes_max;
    let callback = || Callback::of_query(parts.uri.query());
    match wire {
        Wire::Xhr => transport::poll(receive(), transport::Xhr).await,
        Wire::XhrStreaming => transport::stream(receive(), transport::XhrStreaming, bytes_max),
        Wire::XhrSend => transport::xhr_send(sessions, id, body).await,
        Wire::Eventsource => transport::stream(receive(), transport::Eventsource, bytes_max),
        Wire::Htmlfile => match callback() {
            Ok(callback) => {
                transport::stream(receive(), transport::Htmlfile::new(callback), bytes_max)
            }
            Err(error) => bad_callback(error),
        },
        Wire::Jsonp => match callback() {
            Ok(callback) => {
                let mut response =
                    transport::poll(receive(), transport::Jsonp::new(callback)).await;
                let nosniff = HeaderValue::from_static("nosniff");
                response
                    .headers_mut()
                    .insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
                response
            }
            Err(error) => bad_callback(error),
        },
        Wire::JsonpSend => {
            let content_type = parts.headers.get(header::CONTENT_TYPE);
            transport::jsonp_send(sessions, id, content_type, body).await
        }
    }
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
