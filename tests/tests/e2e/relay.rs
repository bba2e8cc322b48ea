//! Relays and SockJS: what one client sends reaches all of them, over every transport, on every node.

mod bad_input;
mod conformance;
mod fan_out;
mod handoff;
mod memory_limit;
mod mixed;
mod origins;
mod oversized;
mod page;
mod redis_away;
mod reference;
mod rfc6455;
mod session_handoff;
mod sessions;
mod slow_clients;
mod sockjs_protocol;
mod transports;
