//! Forwarding headers: whatever they say, what the next hop is told is well-formed and names the same client.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| causeway_proxy::fuzz::forwarded(data));
