//! `eventsource`: a streaming response of server-sent events with one frame each.

use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;

use crate::transport::receive::Framing;

/// The framing of `eventsource`.
pub(crate) struct Eventsource;

impl Framing for Eventsource {
    fn content_type(&self) -> &'static str {
        "text/event-stream" // Without a charset, as the protocol's test suite expects: events are always UTF-8.
    }

    fn prelude(&self) -> Bytes {
        Bytes::from_static(b"\r\n")
    }

    /// The client runs `decodeURI` over the data, and a bare `%` would throw there.
    fn append(&self, out: &mut BytesMut, frame: &[u8]) {
        out.put_slice(b"data: ");
        for &byte in frame {
            match byte {
                b'%' => out.put_slice(b"%25"),
                b'\r' => out.put_slice(b"%0D"),
                b'\n' => out.put_slice(b"%0A"),
                0 => out.put_slice(b"%00"),
                _ => out.put_u8(byte),
            }
        }
        out.put_slice(b"\r\n\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_that_decode_uri_accepts() {
        for (frame, event) in [
            (&b"o"[..], &b"data: o\r\n\r\n"[..]),
            (b"a[\"100 %\"]", b"data: a[\"100 %25\"]\r\n\r\n"),
            (b"%25", b"data: %2525\r\n\r\n"),
            (b"\r\n\0", b"data: %0D%0A%00\r\n\r\n"),
        ] {
            let mut out = BytesMut::new();
            Eventsource.append(&mut out, frame);
            assert_eq!(out, event);
        }
    }
}
