//! What the edge itself answers, and when: the one place that turns a failure into an HTTP answer.
//!
//! Bodies are short and say nothing about the backends: whoever may know reads the log.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;

use crate::limits::Limit;

/// Why a request does not get an answer from a backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejection {
    /// The head is not HTTP, or what it asks for is ambiguous.
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    /// The head was not complete within its deadline.
    #[error("the request head did not arrive in time")]
    HeadTimeout,
    /// The body did not go on within `timeouts.downstream_read`, or came more slowly than `timeouts.request_body_rate`.
    #[error("the request body did not arrive in time: {0}")]
    BodyTimeout(&'static str),
    /// The head is larger than `limits.head_size`.
    #[error("the request head is too large")]
    HeadTooLarge,
    /// The request line alone is larger than `limits.head_size`.
    #[error("the target of the request is too long")]
    TargetTooLong,
    /// CONNECT: the edge is no proxy that clients choose.
    #[error("CONNECT is not served here")]
    MethodNotAllowed,
    /// The body comes in a coding besides chunked.
    #[error("the transfer coding is not known here")]
    CodingNotSupported,
    /// The request line names an HTTP that is not spoken here.
    #[error("the version of HTTP is not known here")]
    VersionNotSupported,
    /// No route matches: the configured answer.
    #[error("no route matches")]
    NoRoute {
        status: StatusCode,
        body: Cow<'static, str>,
    },
    /// The listener only sends clients to https, at this URL.
    #[error("plain HTTP is not served here")]
    UseHttps(String),
    /// There is as much as there may be of something, or more of it.
    #[error("refused because of limits.{}", .0.name())]
    Limited(Limit),
    /// No backend is left to try.
    #[error("no backend is available")]
    NoBackend,
    /// The backend went away, or its response cannot be passed on, after it had been sent the request.
    #[error("the backend failed: {0}")]
    BackendFailed(&'static str),
    /// The backend, or the dial to it, took too long.
    #[error("the backend did not respond in time: {0}")]
    BackendTimeout(&'static str),
}

impl Rejection {
    /// The name in the metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::HeadTimeout => "head_timeout",
            Self::BodyTimeout(_) => "body_timeout",
            Self::HeadTooLarge => "head_size",
            Self::TargetTooLong => "target_size",
            Self::MethodNotAllowed => "method",
            Self::CodingNotSupported => "coding",
            Self::VersionNotSupported => "version",
            Self::NoRoute { .. } => "no_route",
            Self::UseHttps(_) => "use_https",
            Self::Limited(limit) => limit.name(),
            Self::NoBackend => "no_backend",
            Self::BackendFailed(_) => "backend_failed",
            Self::BackendTimeout(_) => "backend_timeout",
        }
    }
}

/// A complete answer with a text body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ErrorResponse {
    pub(crate) status: StatusCode,
    pub(crate) body: Cow<'static, str>,
    /// For the `Retry-After` header, in whole seconds.
    pub(crate) retry_after: Option<Duration>,
    /// For the `Location` header.
    pub(crate) location: Option<String>,
    /// For the `Allow` header.
    pub(crate) allow: Option<&'static str>,
}

/// What 405 names (RFC 9110, 15.5.6): the methods that HTTP itself has. Any other is passed on as well.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE";

/// How soon a client may come back after a 503 or a 429: about one round of health checks.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The answer to a request that `rejection` ended.
pub(crate) fn error_response(rejection: Rejection) -> ErrorResponse {
    let (mut location, mut allow) = (None, None);
    let (status, body) = match rejection {
        Rejection::NoRoute { status, body } => (status, body),
        Rejection::Malformed(why) => (
            StatusCode::BAD_REQUEST,
            format!("bad request: {why}\n").into(),
        ),
        Rejection::TargetTooLong => (StatusCode::URI_TOO_LONG, "target too long\n".into()),
        Rejection::MethodNotAllowed => {
            allow = Some(METHODS);
            (
                StatusCode::METHOD_NOT_ALLOWED,
                "method not allowed\n".into(),
            )
        }
        Rejection::CodingNotSupported => (
            StatusCode::NOT_IMPLEMENTED,
            "transfer coding not implemented\n".into(),
        ),
        Rejection::VersionNotSupported => (
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "version of HTTP not supported\n".into(),
        ),
        // The method and the body stay what they are (RFC 9110, 15.4.9).
        Rejection::UseHttps(url) => {
            location = Some(url);
            (StatusCode::PERMANENT_REDIRECT, "use https\n".into())
        }
        Rejection::HeadTimeout | Rejection::BodyTimeout(_) => {
            (StatusCode::REQUEST_TIMEOUT, "request timeout\n".into())
        }
        Rejection::HeadTooLarge => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "request head too large\n".into(),
        ),
        Rejection::Limited(limit) => (limit.status(), limit.body().into()),
        Rejection::NoBackend => (
            StatusCode::SERVICE_UNAVAILABLE,
            "no backend available\n".into(),
        ),
        Rejection::BackendFailed(_) => (StatusCode::BAD_GATEWAY, "bad gateway\n".into()),
        Rejection::BackendTimeout(_) => (StatusCode::GATEWAY_TIMEOUT, "gateway timeout\n".into()),
    };
    let later = matches!(
        status,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
    );
    let retry_after = later.then_some(RETRY_AFTER);
    ErrorResponse {
        status,
        body,
        retry_after,
        location,
        allow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rejection_has_the_status_that_its_rfc_names() {
        let cases = [
            (Rejection::Malformed("two hosts"), 400, false),
            (Rejection::UseHttps("https://a/".to_owned()), 308, false),
            (Rejection::HeadTimeout, 408, false),
            (Rejection::HeadTooLarge, 431, false),
            (Rejection::TargetTooLong, 414, false),
            (Rejection::MethodNotAllowed, 405, false),
            (Rejection::CodingNotSupported, 501, false),
            (Rejection::VersionNotSupported, 505, false),
            (Rejection::BackendFailed("it broke"), 502, false),
            (Rejection::BodyTimeout("it is slow"), 408, false),
            (Rejection::NoBackend, 503, true),
            (Rejection::Limited(Limit::Connections), 503, true),
            (Rejection::Limited(Limit::ConnectionsPerAddress), 429, true),
            (Rejection::Limited(Limit::ConnectionRate), 429, true),
            (Rejection::Limited(Limit::Requests), 503, true),
            (Rejection::Limited(Limit::RequestsPerAddress), 429, true),
            (Rejection::Limited(Limit::Tunnels), 503, true),
            (Rejection::Limited(Limit::TunnelsPerAddress), 429, true),
            (Rejection::Limited(Limit::TunnelsPerBackend), 503, true),
            (Rejection::Limited(Limit::RequestsPerBackend), 503, true),
            (Rejection::Limited(Limit::BodySize), 413, false),
            (Rejection::BackendTimeout("it is slow"), 504, false),
        ];
        for (rejection, status, retries) in cases {
            let error_response = error_response(rejection.clone());
            assert_eq!(error_response.status.as_u16(), status, "{rejection}");
            assert_eq!(error_response.retry_after.is_some(), retries, "{rejection}");
            assert!(error_response.body.ends_with('\n') && error_response.body.len() < 40);
        }
    }

    #[test]
    fn a_request_without_a_route_gets_the_configured_answer() {
        let error_response = error_response(Rejection::NoRoute {
            status: StatusCode::GONE,
            body: "moved\n".into(),
        });
        assert_eq!(
            (error_response.status, &*error_response.body),
            (StatusCode::GONE, "moved\n")
        );
        assert_eq!(error_response.retry_after, None);
    }
}
