//! Messages of a session's client in the body of a request, for every transport.

use http::HeaderValue;
use http::Response;
use http::StatusCode;
use http::header;

use crate::client::session::Sent;
use crate::client::session::Sessions;
use crate::protocol::frame::sockjs;
use crate::protocol::frame::sockjs::BadFrame;
use crate::transport::Body;

/// Passes on the messages in `array`, a JSON array of strings, and responds with `taken`, or with the error in them.
///
/// # Cancel safety
///
/// Dropping this future drops the messages that were not passed on yet.
pub(super) async fn respond(
    sessions: &Sessions,
    id: &str,
    array: &[u8],
    taken: Response<Body>,
) -> Response<Body> {
    // Before the body is decoded: the response for an unknown session is 404, whatever the body.
    if !sessions.knows(id) {
        return status(StatusCode::NOT_FOUND, Body::Empty);
    }
    let messages = match sockjs::decode_array(array) {
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
        Sent::Taken => taken,
        Sent::Unknown => status(StatusCode::NOT_FOUND, Body::Empty),
    }
}

/// A response with media type text, even without a body: browsers would parse it as XML otherwise.
pub(super) fn plain(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = status(code, body);
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
