//! `jsonp`: long polling with script elements, one call with a frame for each response.

use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;

use crate::protocol::frame::sockjs;
use crate::transport::Callback;
use crate::transport::receive::Framing;
use crate::transport::xhr;

/// The framing of `jsonp`.
pub(crate) struct Jsonp {
    callback: Callback,
}

impl Jsonp {
    /// Calls `callback`.
    pub(crate) fn new(callback: Callback) -> Self {
        Self { callback }
    }
}

impl Framing for Jsonp {
    fn content_type(&self) -> &'static str {
        xhr::CONTENT_TYPE
    }

    fn prelude(&self) -> Bytes {
        Bytes::new()
    }

    /// The comment comes first so that no plug-in mistakes the callback for a header of its own file format.
    fn append(&self, out: &mut BytesMut, frame: &[u8]) {
        out.put_slice(b"/**/");
        out.put_slice(self.callback.as_str().as_bytes());
        out.put_u8(b'(');
        sockjs::append_literal(out, frame);
        out.put_slice(b");\r\n");
    }
}
