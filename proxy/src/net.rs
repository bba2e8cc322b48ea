//! Sockets, file descriptors and host names, without knowledge of HTTP.
//!
//! [`accepted`] wraps accepted sockets, [`pingora_stream`] implements what Pingora requires of a stream,
//! [`descriptors`] divides the file descriptors of the process by purpose, [`exhaustion`] recognises errors that mean that
//! descriptors or ports are exhausted, [`owner_socket`] listens for processes of the own user, [`resolver`] caches the addresses of host names.

pub(crate) mod accepted;
pub(crate) mod descriptors;
pub(crate) mod exhaustion;
pub(crate) mod owner_socket;
pub(crate) mod pingora_stream;
pub(crate) mod resolver;
