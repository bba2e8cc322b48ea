//! SockJS frames: what a client sends is read or refused, and what it is told reads back to the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| causeway_node::fuzz::sockjs(data));
