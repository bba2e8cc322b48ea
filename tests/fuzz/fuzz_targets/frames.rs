//! WebSocket frames: the edge and the node see the same boundaries, however the bytes are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let edge = causeway_proxy::fuzz::frame_ends(data);
    let node = causeway_node::fuzz::message_ends(data);
    assert!(
        node.iter().all(|end| edge.contains(end)),
        "a message ends where a frame ends: {node:?} {edge:?}"
    );
});
