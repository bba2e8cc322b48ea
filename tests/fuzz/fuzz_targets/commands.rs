//! Commands of channel clients, in both codecs: read as a whole or refused, and what is read can be written down and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| causeway_node::fuzz::commands(data));
