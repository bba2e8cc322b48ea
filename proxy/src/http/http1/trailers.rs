//! Trailer fields (RFC 9110, 6.5), and which of them may be forwarded.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

/// The most fields in one trailer section.
const FIELDS_MAX: usize = 64;

/// Names that are not allowed in trailers: framing, routing, the client's identity, and fields that control how a message is
/// processed (RFC 9110, 6.5.1). They would mislead a receiver that merges trailers into headers.
const FORBIDDEN: [&str; 27] = [
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "location",
    "max-forwards",
    "pragma",
    "proxy",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-real-ip",
    "x-request-id",
];

/// Parses a trailer section, with its line ends. Fields that may not be forwarded are left out.
pub(crate) fn parse_trailers(lines: &[u8]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value)
            && fields.len() < FIELDS_MAX
        {
            fields.append(name, value);
        }
    }
    keep_allowed(&mut fields);
    fields
}

/// Removes fields that are not allowed in trailers.
pub(crate) fn keep_allowed(fields: &mut HeaderMap) {
    let is_forbidden = |name: &HeaderName| {
        let name = name.as_str();
        FORBIDDEN.contains(&name)
            || name.starts_with("x-forwarded-")
            || name.starts_with("sec-websocket-")
            || name.starts_with("causeway-")
            || name.contains('_')
    };
    let forbidden: Vec<HeaderName> = fields
        .keys()
        .filter(|name| is_forbidden(name))
        .cloned()
        .collect();
    for name in forbidden {
        fields.remove(name);
    }
}

/// Writes the last chunk, and `trailers` after it.
pub(crate) fn write_last_chunk(trailers: Option<&HeaderMap>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_trailer_fields_are_left_out() {
        let lines = b"X-Sum: 1\r\nContent-Length: 5\r\nx-forwarded-for: 6.6.6.6\r\nx_sum: 2\r\nX-Sum:  3 \r\nbroken\r\n";
        let fields = parse_trailers(lines);
        let mut out = Vec::new();
        write_last_chunk(Some(&fields), &mut out);
        assert_eq!(out, b"0\r\nx-sum: 1\r\nx-sum: 3\r\n\r\n");
        out.clear();
        write_last_chunk(None, &mut out);
        assert_eq!(out, b"0\r\n\r\n");
    }

    #[test]
    fn the_number_of_trailer_fields_is_bounded() {
        let lines: String = (0..1000).map(|at| format!("x-{at}: 1\r\n")).collect();
        assert_eq!(parse_trailers(lines.as_bytes()).len(), FIELDS_MAX);
    }
}
