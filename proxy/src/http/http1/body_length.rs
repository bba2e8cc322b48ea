//! Where the body of a request ends, by its head (RFC 9112, 6.3).
//!
//! This is the one place that decides it, whichever engine has parsed the head. Of what the RFC lets a server tolerate nothing is:
//! request smuggling needs one request that two parsers read differently.

use http::Version;

/// The length of a request body, as its head announces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyLength {
    /// Exactly this many bytes.
    Bytes(u64),
    /// Chunked transfer coding.
    Chunked,
}

/// Why it is not known where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadFraming {
    /// The head has no or several readings.
    Malformed(&'static str),
    /// A transfer coding besides chunked.
    CodingNotSupported,
}

impl BodyLength {
    /// By the values of all `Content-Length` and all `Transfer-Encoding` headers of a request. Without either there is no body.
    ///
    /// # Errors
    ///
    /// [`BadFraming`] unless there is only one reading.
    pub(crate) fn of_request<'a>(
        version: Version,
        lengths: impl IntoIterator<Item = &'a [u8]>,
        codings: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Self, BadFraming> {
        let malformed = BadFraming::Malformed;
        let mut lengths = lengths.into_iter();
        let length = match (lengths.next(), lengths.next()) {
            (_, Some(_)) => return Err(malformed("more than one Content-Length")),
            (length, None) => length
                .map(|length| decimal(length).ok_or(malformed("Content-Length is not a number"))),
        };
        let length = length.transpose()?;
        let mut codings = codings.into_iter().peekable();
        if codings.peek().is_none() {
            return Ok(Self::Bytes(length.unwrap_or(0)));
        }
        if version == Version::HTTP_10 {
            return Err(malformed("a transfer coding in HTTP/1.0"));
        }
        if length.is_some() {
            return Err(malformed("Content-Length together with Transfer-Encoding"));
        }
        let codings: Vec<&[u8]> = codings
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .collect();
        let is_chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
        match codings.as_slice() {
            [only] if is_chunked(only) => Ok(Self::Chunked),
            [before @ .., last] if is_chunked(last) => {
                let is_bad = |coding: &&[u8]| is_chunked(coding) || coding.is_empty();
                match before.iter().any(is_bad) {
                    true => Err(malformed(
                        "chunked is repeated, or an empty transfer coding precedes it",
                    )),
                    false => Err(BadFraming::CodingNotSupported),
                }
            }
            _ => Err(malformed("the last transfer coding is not chunked")),
        }
    }
}

/// A plain decimal number: no sign, no spaces, no list, and at most `i64::MAX`, which every parser can hold.
fn decimal(value: &[u8]) -> Option<u64> {
    if !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: i64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    u64::try_from(number).ok()
}
