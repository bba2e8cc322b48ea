//! `xhr_send`: a JSON array of messages as the body.

use http::Response;
use http::StatusCode;

use crate::client::session::Sessions;
use crate::transport::Body;
use crate::transport::send;

/// Passes the messages in `body` on and responds with 204, or with the error in them.
///
/// The media type of the request does not matter: clients send many.
///
/// # Cancel safety
///
/// Dropping this future drops the messages that were not passed on yet.
pub(crate) async fn xhr_send(sessions: &Sessions, id: &str, body: &[u8]) -> Response<Body> {
    let taken = send::plain(StatusCode::NO_CONTENT, Body::Empty);
    send::respond(sessions, id, body, taken).await
}
