//! Tokens, claims and key sets: nothing that a stranger made is believed, and whatever is signed gets an answer.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| causeway_node::fuzz::tokens(data));
