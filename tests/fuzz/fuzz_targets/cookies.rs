//! Cookie headers: whatever they hold, ours are found and taken out, and nobody forges one.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| causeway_proxy::fuzz::cookies(data));
