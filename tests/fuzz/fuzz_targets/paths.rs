//! Paths: the session that the node finds in one is the session that the edge keeps its client by.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The longest session that the edge looks at; longer ones are served and not kept.
const SESSION_BYTES_MAX: usize = 128;

fuzz_target!(|path: &str| {
    // The edge is given the query too, and the node is not.
    let edge = causeway_proxy::fuzz::sockjs_session(path);
    let bare = path.split(['?', '#']).next().unwrap_or_default();
    if let Some(session) = causeway_node::fuzz::sockjs_session(bare)
        && session.len() <= SESSION_BYTES_MAX
    {
        assert_eq!(edge, Some(session));
    }
});
