//! The formats of messages in a streaming response.

use bytes::BufMut;
use bytes::BytesMut;

/// The format of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lines {
    /// A line of JSON for each reply and push: `http_stream`.
    Bare,
    /// Each reply and push in Protobuf, after its length: `http_stream` for clients that use Protobuf.
    Delimited,
    /// A server-sent event for each message: `sse`.
    Events,
    /// A server-sent event for each push, without the envelope that distinguishes it from replies: `uni_sse`.
    EventsOneWay,
}

/// The envelope of a push.
const PUSH: (&[u8], &[u8]) = (b"{\"push\":", b"}");

impl Lines {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Bare | Self::Delimited => "application/octet-stream",
            Self::Events | Self::EventsOneWay => "text/event-stream",
        }
    }

    /// Appends `message`: JSON on one or several lines, or Protobuf. `id` is the id of an event.
    pub(super) fn append(self, out: &mut BytesMut, message: &[u8], id: Option<&str>) {
        if self == Self::Delimited {
            return out.put_slice(message);
        }
        for line in message.split(|&byte| byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            match self {
                Self::Bare | Self::Delimited => out.put_slice(line),
                Self::Events => append_data(out, line),
                Self::EventsOneWay => append_data(out, without_push(line)),
            }
            out.put_u8(b'\n');
        }
        if let Some(id) = id {
            append_field(out, "id", id);
        }
        if self != Self::Bare {
            out.put_u8(b'\n');
        }
    }
}

/// Appends a field of an event.
pub(super) fn append_field(out: &mut BytesMut, name: &str, value: &str) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value.as_bytes());
    out.put_u8(b'\n');
}

fn append_data(out: &mut BytesMut, line: &[u8]) {
    out.put_slice(b"data: ");
    out.put_slice(line);
}

fn without_push(line: &[u8]) -> &[u8] {
    let (before, behind) = PUSH;
    line.strip_prefix(before)
        .and_then(|line| line.strip_suffix(behind))
        .unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(lines: Lines, message: &str) -> String {
        written_with(lines, message, None)
    }

    fn written_with(lines: Lines, message: &str, id: Option<&str>) -> String {
        let mut out = BytesMut::new();
        lines.append(&mut out, message.as_bytes(), id);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn a_message_is_encoded_in_the_format_of_its_transport() {
        for (lines, message, expected) in [
            (Lines::Bare, "{}", "{}\n"),
            (
                Lines::Bare,
                "{\"id\":1}\n{\"id\":2}",
                "{\"id\":1}\n{\"id\":2}\n",
            ),
            (Lines::Events, "{}", "data: {}\n\n"),
            (
                Lines::Events,
                "{\"id\":1}\n{\"id\":2}",
                "data: {\"id\":1}\ndata: {\"id\":2}\n\n",
            ),
            (
                Lines::Events,
                "{\"push\":{\"channel\":\"a\"}}",
                "data: {\"push\":{\"channel\":\"a\"}}\n\n",
            ),
            (
                Lines::EventsOneWay,
                "{\"push\":{\"channel\":\"a\"}}",
                "data: {\"channel\":\"a\"}\n\n",
            ),
            (Lines::EventsOneWay, "{}", "data: {}\n\n"),
            (Lines::Delimited, "\u{2}a\n", "\u{2}a\n"),
        ] {
            assert_eq!(written(lines, message), expected);
        }
    }

    #[test]
    fn an_event_may_have_an_id() {
        let event = written_with(Lines::EventsOneWay, "{\"push\":{}}", Some("a=e:1"));
        assert_eq!(event, "data: {}\nid: a=e:1\n\n");
    }
}
