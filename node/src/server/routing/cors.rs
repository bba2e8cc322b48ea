//! Headers by which browsers let pages of other origins read a response, and caches keep off it.

use std::time::Duration;
use std::time::SystemTime;

use http::HeaderMap;
use http::HeaderValue;
use http::header;

/// `Cache-Control` of SockJS, exactly as the protocol's test suite expects it.
const NO_CACHE: HeaderValue =
    HeaderValue::from_static("no-store, no-cache, no-transform, must-revalidate, max-age=0");

/// For how long preflights and pages that never change are kept.
const YEAR: Duration = Duration::from_secs(31_536_000);

/// Lets the page that sent `request` read the response.
///
/// The origin is checked before; here it is only named again. It is repeated rather than `*`
/// because SockJS clients send cookies, and browsers then refuse `*`.
pub(crate) fn share(request: &HeaderMap, response: &mut HeaderMap) {
    match request.get(header::ORIGIN) {
        Some(origin) => {
            response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, copy(origin));
            let credentials = HeaderValue::from_static("true");
            response.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, credentials);
        }
        None => {
            response.insert(
                header::ACCESS_CONTROL_ALLOW_ORIGIN,
                HeaderValue::from_static("*"),
            );
        }
    }
    if let Some(names) = request.get(header::ACCESS_CONTROL_REQUEST_HEADERS)
        && !names.is_empty()
    {
        response.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, copy(names));
    }
    response.insert(header::VARY, HeaderValue::from_static("Origin"));
}

/// A clone would keep the whole request in memory for as long as its response is waited for.
fn copy(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
}

/// Responds to a preflight: `methods` may be used, and browsers may cache that for a year.
pub(crate) fn preflight(methods: &'static str, now: SystemTime, response: &mut HeaderMap) {
    response.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static(methods),
    );
    response.insert(header::ACCESS_CONTROL_MAX_AGE, YEAR.as_secs().into());
    cache_for_a_year(now, response);
}

/// Lets everyone keep the response.
pub(crate) fn cache_for_a_year(now: SystemTime, response: &mut HeaderMap) {
    let cache_control = HeaderValue::from_static("public, max-age=31536000");
    response.insert(header::CACHE_CONTROL, cache_control);
    let expires = httpdate::fmt_http_date(now + YEAR);
    let expires = HeaderValue::try_from(expires).expect("a date is ASCII");
    response.insert(header::EXPIRES, expires);
}

/// Keeps caches off the response.
pub(crate) fn no_cache(response: &mut HeaderMap) {
    response.insert(header::CACHE_CONTROL, NO_CACHE);
}
