//! Tokens, claims and key sets: no forged token is accepted, and whatever is signed gets a result.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| causeway_node::fuzz::tokens(data));
