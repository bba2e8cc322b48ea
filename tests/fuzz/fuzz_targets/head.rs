//! Heads of requests: what is judged to be one is read in the same way by Pingora.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| causeway_proxy::fuzz::head(data));
