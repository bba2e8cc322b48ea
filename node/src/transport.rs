//! The transports of clients: encode a session's frames as bytes, and decode bytes into messages.
//!
//! A SockJS transport over HTTP is a [`receive::Framing`], a few lines in a file of its own; what they share is in
//! [`receive`] and [`send`]. No transport knows paths, origins or cookies (the server's routing does), and none calls the
//! hub.

mod body;
mod callback;
pub(crate) mod channel_http;
pub(crate) mod emulation;
mod eventsource;
pub(crate) mod form;
mod htmlfile;
mod jsonp;
mod jsonp_send;
mod receive;
mod send;
pub(crate) mod websocket;
mod xhr;
mod xhr_send;
mod xhr_streaming;

pub(crate) use body::Body;
pub(crate) use callback::BadCallback;
pub(crate) use callback::Callback;
pub(crate) use eventsource::Eventsource;
pub(crate) use htmlfile::Htmlfile;
pub(crate) use jsonp::Jsonp;
pub(crate) use jsonp_send::jsonp_send;
pub(crate) use receive::poll;
pub(crate) use receive::stream;
pub(crate) use xhr::Xhr;
pub(crate) use xhr_send::xhr_send;
pub(crate) use xhr_streaming::XhrStreaming;
