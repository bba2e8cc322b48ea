//! The wires of clients: how a session's frames become bytes, and bytes become messages.
//!
//! A wire over HTTP is a [`receive::Framing`], a few lines in a file of its own; everything that the
//! wires share is in [`receive`]. None of them knows paths, origins or cookies (that is `http`), and
//! none calls the hub.

mod body;
mod receive;
pub(crate) mod websocket;
mod xhr;
mod xhr_send;
mod xhr_streaming;

pub(crate) use body::Body;
pub(crate) use receive::poll;
pub(crate) use receive::stream;
pub(crate) use xhr::Xhr;
pub(crate) use xhr_send::xhr_send;
pub(crate) use xhr_streaming::XhrStreaming;
