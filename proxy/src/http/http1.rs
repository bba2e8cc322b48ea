//! HTTP/1 message heads: the original bytes, and the changes that the edge has made.
//!
//! An unchanged header is sent as it was received, in its place and original spelling. There is no map: a head has about a
//! dozen headers, and comparing with each costs less than hashing one.

mod body;
mod body_length;
mod chunks;
mod reading;
mod request;
mod response;
mod trailers;

use bytes::BytesMut;
use http::HeaderValue;

use crate::http::fields::{Fields, text};
pub(crate) use crate::http::http1::body::{ResponseBody, write_chunk};
pub(crate) use crate::http::http1::body_length::{BadFraming, BodyLength};
pub(crate) use crate::http::http1::chunks::{ChunkError, Chunks, Part};
pub(crate) use crate::http::http1::reading::{
    ResponseHeadError, ResponseLimits, ResponseReader, SCRATCH, poll_read_scratch,
};
pub(crate) use crate::http::http1::request::{NotHttp1, RequestHead, RequestLine};
pub(crate) use crate::http::http1::response::{
    BadResponse, Framing, ResponseHead, settle_framing, write_own,
};
pub(crate) use crate::http::http1::trailers::{keep_allowed, parse_trailers, write_last_chunk};

/// The most headers that `limits.headers` may allow.
pub(crate) const HEADERS_MOST: usize = 1024;

/// How many headers the edge adds to a request, and about how many bytes.
const ADDED: usize = 8;
const ADDED_BYTES: usize = 256;

/// A parsed head.
#[derive(Debug)]
pub(crate) struct Head<L> {
    bytes: BytesMut,
    line: L,
    original: Vec<Line>,
    added: Vec<(&'static str, Value)>,
    /// The values of added headers that are text.
    texts: Vec<u8>,
}

/// The value of a header that was added.
#[derive(Debug)]
enum Value {
    /// A text in `Head::texts`.
    Text(Span),
    Whole(HeaderValue),
}

/// A head that was parsed in place. [`Parsed::with`] combines it with the same bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parsed<L> {
    line: L,
    original: Vec<Line>,
}

/// A range of bytes in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    from: u32,
    to: u32,
}

/// The ranges of one header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Line {
    name: Span,
    value: Span,
}

impl Span {
    /// The range of `part`, which has to be a subslice of `head`.
    fn of(part: &[u8], head: &[u8]) -> Self {
        let from = part.as_ptr().addr() - head.as_ptr().addr();
        debug_assert!(
            from + part.len() <= head.len(),
            "`part` is a subslice of `head`"
        );
        Self::between(from, from + part.len())
    }

    fn between(from: usize, to: usize) -> Self {
        // Heads are limited to far less than 4 GiB.
        let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Self {
            from: offset(from),
            to: offset(to),
        }
    }

    fn in_head(self, head: &[u8]) -> &[u8] {
        &head[self.from as usize..self.to as usize]
    }
}

/// The end of the empty line after the headers. A bare line feed counts as a line end here, so that a head with one is found and then rejected.
pub(crate) fn find_end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(found) = bytes[at..].iter().position(|byte| *byte == b'\n') {
        at += found + 1;
        match &bytes[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

impl<L> Parsed<L> {
    /// From the result of httparse for `head`.
    fn new(line: L, headers: &[httparse::Header<'_>], head: &[u8]) -> Self {
        let lines = headers.iter().map(|header| Line {
            name: Span::of(header.name.as_bytes(), head),
            value: Span::of(header.value, head),
        });
        Self {
            line,
            original: lines.collect(),
        }
    }

    /// The head, given the bytes that were parsed.
    pub(crate) fn with(self, bytes: BytesMut) -> Head<L> {
        Head {
            bytes,
            line: self.line,
            original: self.original,
            added: Vec::new(),
            texts: Vec::new(),
        }
    }
}

impl<L> Head<L> {
    /// All headers, by name and value.
    fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let original = self.original.iter().map(|line| {
            let part = |span: Span| span.in_head(&self.bytes);
            (part(line.name), part(line.value))
        });
        let added = self.added.iter();
        original.chain(added.map(|(name, value)| (name.as_bytes(), self.bytes_of(value))))
    }

    fn bytes_of<'a>(&'a self, value: &'a Value) -> &'a [u8] {
        match value {
            Value::Text(span) => span.in_head(&self.texts),
            Value::Whole(value) => value.as_bytes(),
        }
    }

    /// Writes the headers, and the empty line after them.
    fn write_fields(&self, out: &mut Vec<u8>) {
        for (name, value) in self.fields() {
            out.extend_from_slice(name);
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
}

impl<L> Fields for Head<L> {
    fn values(&self, name: &'static str) -> impl Iterator<Item = &[u8]> {
        let is = move |other: &[u8]| other.eq_ignore_ascii_case(name.as_bytes());
        let original = self.original.iter();
        let original = original.filter(move |line| is(line.name.in_head(&self.bytes)));
        let added = self.added.iter();
        let added = added.filter(move |(other, _)| is(other.as_bytes()));
        original
            .map(|line| line.value.in_head(&self.bytes))
            .chain(added.map(|(_, value)| self.bytes_of(value)))
    }

    fn remove_if(&mut self, mut unwanted: impl FnMut(&[u8]) -> bool) {
        let Self {
            bytes,
            original,
            added,
            ..
        } = self;
        original.retain(|line| !unwanted(line.name.in_head(bytes)));
        added.retain(|(name, _)| !unwanted(name.as_bytes()));
    }

    fn append(&mut self, name: &'static str, value: HeaderValue) {
        self.added.push((name, Value::Whole(value)));
    }

    fn append_text(&mut self, name: &'static str, value: &str) {
        debug_assert!(text(value.as_bytes()).is_some());
        if self.added.is_empty() {
            self.added.reserve(ADDED);
            self.texts.reserve(ADDED_BYTES);
        }
        let from = self.texts.len();
        self.texts.extend_from_slice(value.as_bytes());
        let span = Span::between(from, self.texts.len());
        self.added.push((name, Value::Text(span)));
    }
}
