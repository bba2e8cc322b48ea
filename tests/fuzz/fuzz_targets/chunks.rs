//! Bodies in chunks: they end in one place, however the bytes are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| causeway_proxy::fuzz::chunks(data));
