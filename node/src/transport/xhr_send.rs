//! `xhr_send`: a JSON array of messages as the body.

use http::Response;
use http::StatusCode;

use crate::client::session::Sessions;
use crate::transport::Body;
use crate::transport::send;

/// Hands the messages in `body` on and answers 204, or says what is wrong with them.
///
/// The media type of the request does not matter: clients send many.
///
/// # Cancel safety
///
/// Dropping this future drops the messages that were not handed on yet.
pub(crate) async fn xhr_send(sessions: &Sessions, id: &str, body: &[u8]) -> Response<Body> {
    let taken = send::plain(StatusCode::NO_CONTENT, Body::Empty);
    send::answer(sessions, id, body, taken).await
}
