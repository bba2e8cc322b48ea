//! The bytes on the wire to and from clients.

pub(crate) mod sockjs;
pub(crate) mod websocket;
