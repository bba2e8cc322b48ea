//! `jsonp_send`: a JSON array of messages as the field `d` of a form.

use http::HeaderValue;
use http::Response;
use http::StatusCode;

use crate::client::session::Sessions;
use crate::transport::Body;
use crate::transport::form;
use crate::transport::send;

/// The media type of a form that a page submits.
const FORM: &str = "application/x-www-form-urlencoded";

/// Passes the messages on and responds with `ok`, or with the error in them.
///
/// They are in the field `d` of a form; a body of any other `content_type` is the array itself.
///
/// # Cancel safety
///
/// Dropping this future drops the messages that were not passed on yet.
pub(crate) async fn jsonp_send(
    sessions: &Sessions,
    id: &str,
    content_type: Option<&HeaderValue>,
    body: &[u8],
) -> Response<Body> {
    // Not 204, with which old browsers leave the form's frame loading for ever.
    let taken = send::plain(StatusCode::OK, "ok".into());
    if is_form(content_type) {
        let array = form::field(body, "d").unwrap_or_default();
        send::respond(sessions, id, &array, taken).await
    } else {
        send::respond(sessions, id, body, taken).await
    }
}

fn is_form(content_type: Option<&HeaderValue>) -> bool {
    content_type
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|media| media.trim().eq_ignore_ascii_case(FORM))
}
