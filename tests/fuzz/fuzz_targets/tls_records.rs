//! TLS records of tunnels: the same comes of them, however the bytes are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| causeway_proxy::fuzz::tls_records(data));
