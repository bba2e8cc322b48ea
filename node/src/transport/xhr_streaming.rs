//! `xhr_streaming`: a streaming response, a line feed after each frame.

use bytes::Bytes;
use bytes::BytesMut;

use crate::transport::receive::Framing;
use crate::transport::xhr;

/// The framing of `xhr_streaming`.
pub(crate) struct XhrStreaming;

/// 2,048 bytes and a line feed: some browsers deliver no data of a streaming response before that.
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
