//! `xhr_streaming`: one long answer, a frame and a line feed for each piece.

use bytes::Bytes;
use bytes::BytesMut;

use crate::transport::receive::Framing;
use crate::transport::xhr;

/// The wire of `xhr_streaming`.
pub(crate) struct XhrStreaming;

/// 2,048 bytes and a line feed, which browsers want to see before they hand on what streams in.
static PRELUDE: [u8; 2049] = {
    let mut prelude = [b'h'; 2049];
    prelude[2048] = b'\n';
    prelude
};

impl Framing for XhrStreaming {
    fn content_type(&self) -> &'static str {
        xhr::CONTENT_TYPE
    }

    fn prelude(&self) -> Bytes {
        Bytes::from_static(&PRELUDE)
    }

    fn append(&self, out: &mut BytesMut, frame: &[u8]) {
        xhr::append_line(out, frame);
    }
}
