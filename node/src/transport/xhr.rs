//! `xhr`: long polling, one frame and a line feed for each response.

use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;

use crate::transport::receive::Framing;

/// The framing of `xhr`.
pub(crate) struct Xhr;

/// The media type of both XHR transports and of `jsonp`: one that old browsers deliver before the response has ended.
pub(super) const CONTENT_TYPE: &str = "application/javascript; charset=UTF-8";

impl Framing for Xhr {
    fn content_type(&self) -> &'static str {
        CONTENT_TYPE
    }

    fn prelude(&self) -> Bytes {
        Bytes::new()
    }

    fn append(&self, out: &mut BytesMut, frame: &[u8]) {
        append_line(out, frame);
    }
}

/// Appends `frame` as a line, as both XHR transports do.
pub(super) fn append_line(out: &mut BytesMut, frame: &[u8]) {
    out.put_slice(frame);
    out.put_u8(b'\n');
}
