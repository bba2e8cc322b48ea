//! `xhr_send`: messages of a session's client in the body of a request.

use http::HeaderValue;
use http::Response;
use http::StatusCode;
use http::header;

use crate::frame::sockjs;
use crate::frame::sockjs::BadFrame;
use crate::session::Sent;
use crate::session::Sessions;
use crate::transport::Body;

/// Hands the messages in `body` on and answers 204, or says what is wrong with them.
///
/// # Cancel safety
///
/// Dropping this future drops the messages that were not handed on yet.
pub(crate) async fn xhr_send(sessions: &Sessions, id: &str, body: &[u8]) -> Response<Body> {
    // Before the body: who sends to a session that is gone must hear 404, whatever it sends.
    if !sessions.knows(id) {
        return status(StatusCode::NOT_FOUND, Body::Empty);
    }
    let messages = match sockjs::decode_array(body) {
        Ok(messages) => messages,
        Err(error) => {
            let text = match error {
                BadFrame::NoPayload => "Payload expected.",
                BadFrame::BrokenJson => "Broken JSON encoding.",
            };
            return plain(StatusCode::INTERNAL_SERVER_ERROR, text.into());
        }
    };
    match sessions.send(id, messages).await {
        Sent::Taken => plain(StatusCode::NO_CONTENT, Body::Empty),
        Sent::Unknown => status(StatusCode::NOT_FOUND, Body::Empty),
    }
}

fn plain(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = status(code, body);
    // Even on a 204: the protocol's suite asks for it.
    let content_type = HeaderValue::from_static("text/plain; charset=UTF-8");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

fn status(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    response
}
