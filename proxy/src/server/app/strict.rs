//! Checks that a request head is valid HTTP/1 (RFC 9112) and cannot be read in more than one way.
//!
//! The RFC lets a server tolerate a good deal: a bare line feed, a length together with chunks, a repeated length. Backends may
//! tolerate other things, and request smuggling needs one request that two parsers read differently. So nothing is tolerated;
//! the status is the one that the RFC names.

use http::Version;
use httparse::{Header, Request};

use crate::http::http1::{BadFraming, BodyLength};
use crate::http::target::Target;
use crate::http::target::host_alone;
use crate::request::error::Rejection;

/// Rewrites a later minor version of HTTP/1 to HTTP/1.1, the highest that is supported (RFC 9110, 6.2).
pub(super) fn normalize_version(head: &mut [u8]) {
    let end = head
        .iter()
        .position(|byte| *byte == b'\r')
        .unwrap_or_default();
    if let Some(
        [
            ..,
            b' ',
            b'H',
            b'T',
            b'T',
            b'P',
            b'/',
            b'1',
            b'.',
            minor @ b'2'..=b'9',
        ],
    ) = head.get_mut(..end)
    {
        *minor = b'1';
    }
}

/// Maps a parse error of httparse to an error response.
pub(super) fn rejection(head: &[u8], error: httparse::Error) -> Rejection {
    match error {
        httparse::Error::TooManyHeaders => Rejection::HeadTooLarge,
        httparse::Error::Version if has_version(head) => Rejection::VersionNotSupported,
        httparse::Error::Version => Rejection::Malformed("no HTTP version in the request line"),
        httparse::Error::HeaderName => Rejection::Malformed("a header name is not a token"),
        httparse::Error::HeaderValue => Rejection::Malformed("a control character in a header"),
        httparse::Error::NewLine => Rejection::Malformed("a line does not end with CR LF"),
        _ => Rejection::Malformed("no request line"),
    }
}

/// Whether the first line has three words, the third of which is an HTTP version (RFC 9112, 2.3).
fn has_version(head: &[u8]) -> bool {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ').skip(2);
    let (version, more) = (words.next().unwrap_or_default(), words.next());
    more.is_none()
        && matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// Checks a head that httparse has parsed. Returns where its body ends.
///
/// # Errors
///
/// The error response that the request gets.
pub(super) fn check(head: &[u8], request: &Request<'_, '_>) -> Result<BodyLength, Rejection> {
    let bare = |pair: &[u8]| pair[1] == b'\n' && pair[0] != b'\r';
    if head.windows(2).any(bare) {
        return Err(Rejection::Malformed(
            "a line feed without a carriage return",
        ));
    }
    let method = request.method.unwrap_or_default();
    if method == "CONNECT" {
        return Err(Rejection::MethodNotAllowed);
    }
    let target = Target::of(method, request.path.unwrap_or_default());
    let target = target.ok_or(Rejection::Malformed(
        "the request target is neither a path nor a URL",
    ))?;
    check_host(request, target)?;
    body_length(request)
}

fn check_host(request: &Request<'_, '_>, target: Target<'_>) -> Result<(), Rejection> {
    let mut hosts = named(request, "host");
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version == Some(0) => Ok(()),
        (None, _) => Err(Rejection::Malformed("no Host header")),
        (Some(_), Some(_)) => Err(Rejection::Malformed("more than one Host header")),
        (Some(host), None) => {
            let host = std::str::from_utf8(host.value).unwrap_or_default();
            let differs = matches!(target, Target::Absolute { authority, .. } if authority != host);
            match host_alone(host) {
                Some(_) if !differs => Ok(()),
                Some(_) => Err(Rejection::Malformed(
                    "Host differs from the host in the target",
                )),
                None => Err(Rejection::Malformed("Host is not valid")),
            }
        }
    }
}

fn body_length(request: &Request<'_, '_>) -> Result<BodyLength, Rejection> {
    let version = match request.version {
        Some(0) => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let values = |name| named(request, name).map(|header| header.value);
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    BodyLength::of_request(version, lengths, codings).map_err(|bad| match bad {
        BadFraming::CodingNotSupported => Rejection::CodingNotSupported,
        BadFraming::Malformed(why) => Rejection::Malformed(why),
    })
}

fn named<'a>(
    request: &'a Request<'_, '_>,
    name: &'static str,
) -> impl Iterator<Item = &'a Header<'a>> {
    request
        .headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
}
