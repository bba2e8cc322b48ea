//! `htmlfile`: a streaming page with a script for each frame. For Internet Explorer, which runs scripts while a page loads.

use bytes::BufMut;
use bytes::Bytes;
use bytes::BytesMut;

use crate::protocol::frame::sockjs;
use crate::transport::Callback;
use crate::transport::receive::Framing;

/// The framing of `htmlfile`.
pub(crate) struct Htmlfile {
    callback: Callback,
}

/// The page before and after the callback, exactly as in the protocol.
const HEAD: [&str; 2] = [
    r#"<!doctype html>
<html><head>
  <meta http-equiv="X-UA-Compatible" content="IE=edge" />
  <meta http-equiv="Content-Type" content="text/html; charset=UTF-8" />
</head><body><h2>Don't panic!</h2>
  <script>
    document.domain = document.domain;
    var c = parent."#,
    ";
    c.start();
    function p(d) {c.message(d);};
    window.onload = function() {c.stop();};
  </script>",
];

/// Browsers run no script before they have received this much of a page.
const HEAD_BYTES_MIN: usize = 1024;

impl Htmlfile {
    /// Calls the methods of `callback` in the page around this one.
    pub(crate) fn new(callback: Callback) -> Self {
        Self { callback }
    }
}

impl Framing for Htmlfile {
    fn content_type(&self) -> &'static str {
        "text/html; charset=UTF-8"
    }

    fn prelude(&self) -> Bytes {
        let [before, behind] = HEAD;
        let head = format!("{before}{}{behind}", self.callback.as_str());
        format!("{head:HEAD_BYTES_MIN$}\r\n\r\n").into()
    }

    fn append(&self, out: &mut BytesMut, frame: &[u8]) {
        out.put_slice(b"<script>\np(");
        sockjs::append_literal(out, frame);
        out.put_slice(b");\n</script>\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> Htmlfile {
        Htmlfile::new(Callback::of_query(Some("c=cb")).unwrap())
    }

    #[test]
    fn the_page_is_long_enough_to_be_shown() {
        let prelude = String::from_utf8(wire().prelude().to_vec()).unwrap();
        assert!(HEAD_BYTES_MIN < prelude.len());
        assert!(prelude.ends_with(" \r\n\r\n"));
        assert!(prelude.contains("var c = parent.cb;\n"));
    }

    #[test]
    fn no_message_ends_the_script() {
        let mut out = BytesMut::new();
        wire().append(&mut out, b"a[\"</script><!--\"]");
        assert_eq!(
            out,
            "<script>\np(\"a[\\\"\\u003c/script>\\u003c!--\\\"]\");\n</script>\r\n"
        );
    }
}
