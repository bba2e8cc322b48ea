//! Replies of Redis to a subscriber: the same ones, however the bytes are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Some((cut, replies)) = data.split_first() {
        causeway_node::fuzz::replies(replies, *cut);
    }
});
