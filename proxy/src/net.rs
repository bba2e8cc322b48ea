//! Sockets, file descriptors and host names, without knowledge of HTTP.
//!
//! [`accepted`] is a client's connection as the kernel hands it over, [`pingora_stream`] what Pingora asks of a stream,
//! [`descriptors`] shares out the file descriptors of the process, [`exhaustion`] recognises errors that say that the machine has
//! run out of something, [`resolver`] caches the addresses of host names.

pub(crate) mod accepted;
pub(crate) mod descriptors;
pub(crate) mod exhaustion;
pub(crate) mod pingora_stream;
pub(crate) mod resolver;
