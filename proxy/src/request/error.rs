//! What the edge itself answers, and when: the one place that turns a failure into an HTTP answer.
//!
//! Bodies are short and say nothing about the backends: whoever may know reads the log.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;

use crate::limits::Limit;

/// Why a request does not get an answer from a backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
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

impl Refusal {
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
pub(crate) struct Answer {
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

/// The answer to a request that `refusal` ended.
pub(crate) fn answer(refusal: Refusal) -> Answer {
    let (mut location, mut allow) = (None, None);
    let (status, body) = match refusal {
        Refusal::NoRoute { status, body } => (status, body),
        Refusal::Malformed(why) => (
            StatusCode::BAD_REQUEST,
            format!("bad request: {why}\n").into(),
        ),
        Refusal::TargetTooLong => (StatusCode::URI_TOO_LONG, "target too long\n".into()),
        Refusal::MethodNotAllowed => {
            allow = Some(METHODS);
            (
                StatusCode::METHOD_NOT_ALLOWED,
                "method not allowed\n".into(),
            )
        }
        Refusal::CodingNotSupported => (
            StatusCode::NOT_IMPLEMENTED,
            "transfer coding not implemented\n".into(),
        ),
        Refusal::VersionNotSupported => (
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "version of HTTP not supported\n".into(),
        ),
        // The method and the body stay what they are (RFC 9110, 15.4.9).
        Refusal::UseHttps(url) => {
            location = Some(url);
            (StatusCode::PERMANENT_REDIRECT, "use https\n".into())
        }
        Refusal::HeadTimeout | Refusal::BodyTimeout(_) => {
            (StatusCode::REQUEST_TIMEOUT, "request timeout\n".into())
        }
        Refusal::HeadTooLarge => (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "request head too large\n".into(),
        ),
        Refusal::Limited(limit) => (limit.status(), limit.body().into()),
        Refusal::NoBackend => (
            StatusCode::SERVICE_UNAVAILABLE,
            "no backend available\n".into(),
        ),
        Refusal::BackendFailed(_) => (StatusCode::BAD_GATEWAY, "bad gateway\n".into()),
        Refusal::BackendTimeout(_) => (StatusCode::GATEWAY_TIMEOUT, "gateway timeout\n".into()),
    };
    let later = matches!(
        status,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS
    );
    let retry_after = later.then_some(RETRY_AFTER);
    Answer {
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
    fn each_refusal_has_the_status_that_its_rfc_names() {
        let cases = [
            (Refusal::Malformed("two hosts"), 400, false),
            (Refusal::UseHttps("https://a/".to_owned()), 308, false),
            (Refusal::HeadTimeout, 408, false),
            (Refusal::HeadTooLarge, 431, false),
            (Refusal::TargetTooLong, 414, false),
            (Refusal::MethodNotAllowed, 405, false),
            (Refusal::CodingNotSupported, 501, false),
            (Refusal::VersionNotSupported, 505, false),
            (Refusal::BackendFailed("it broke"), 502, false),
            (Refusal::BodyTimeout("it is slow"), 408, false),
            (Refusal::NoBackend, 503, true),
            (Refusal::Limited(Limit::Connections), 503, true),
            (Refusal::Limited(Limit::ConnectionsPerAddress), 429, true),
            (Refusal::Limited(Limit::ConnectionRate), 429, true),
            (Refusal::Limited(Limit::Requests), 503, true),
            (Refusal::Limited(Limit::RequestsPerAddress), 429, true),
            (Refusal::Limited(Limit::Tunnels), 503, true),
            (Refusal::Limited(Limit::TunnelsPerAddress), 429, true),
            (Refusal::Limited(Limit::TunnelsPerBackend), 503, true),
            (Refusal::Limited(Limit::RequestsPerBackend), 503, true),
            (Refusal::Limited(Limit::BodySize), 413, false),
            (Refusal::BackendTimeout("it is slow"), 504, false),
        ];
        for (refusal, status, retries) in cases {
            let answer = answer(refusal.clone());
            assert_eq!(answer.status.as_u16(), status, "{refusal}");
            assert_eq!(answer.retry_after.is_some(), retries, "{refusal}");
            assert!(answer.body.ends_with('\n') && answer.body.len() < 40);
        }
    }

    #[test]
    fn a_request_without_a_route_gets_the_configured_answer() {
        let answer = answer(Refusal::NoRoute {
            status: StatusCode::GONE,
            body: "moved\n".into(),
        });
        assert_eq!(
            (answer.status, &*answer.body),
            (StatusCode::GONE, "moved\n")
        );
        assert_eq!(answer.retry_after, None);
    }
}
