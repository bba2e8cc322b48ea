//! Request bodies: read whole, within a size and a time.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt;
use http_body_util::LengthLimitError;
use http_body_util::Limited;
use tokio::time;

use crate::logging;

/// How large a body may be and how long it may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimits {
    /// In bytes, without chunk framing.
    pub(crate) bytes_max: usize,
    /// From the end of the head to the end of the body.
    pub(crate) timeout: Duration,
}

/// Why reading a body failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadBody {
    /// It is larger than allowed.
    #[error("the body is too large")]
    TooLarge,
    /// It was not complete in time.
    #[error("the body was not complete in time")]
    Late,
    /// It ended early, or its chunks are malformed.
    #[error("the body is malformed")]
    Malformed,
}

impl BadBody {
    /// The status of the response.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Late => StatusCode::REQUEST_TIMEOUT,
            Self::Malformed => StatusCode::BAD_REQUEST,
        }
    }
}

impl BadBody {
    /// Logs that a request to `path` had a body that `limits` do not allow, if that is what was wrong.
    pub(crate) fn log(&self, path: &str, limits: BodyLimits) {
        if matches!(self, Self::TooLarge) {
            logging::too_large(path, "limits.body_size", limits.bytes_max);
        }
    }
}

/// Reads all of `body`.
///
/// # Errors
///
/// [`BadBody`]: the rest is not read, and the connection ends with the response.
pub(crate) async fn read<B>(body: B, limits: BodyLimits) -> Result<Bytes, BadBody>
where
    B: http_body::Body<Data = Bytes> + Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    if (limits.bytes_max as u64) < body.size_hint().lower() {
        return Err(BadBody::TooLarge);
    }
    let body = Limited::new(body, limits.bytes_max);
    match time::timeout(limits.timeout, body.collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(BadBody::TooLarge),
        Ok(Err(_)) => Err(BadBody::Malformed),
        Err(_) => Err(BadBody::Late),
    }
}
