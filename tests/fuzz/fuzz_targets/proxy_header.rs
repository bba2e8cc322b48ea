//! PROXY headers: what is decided does not change with what comes next.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| causeway_proxy::fuzz::proxy_header(data));
