//! Failed attempts and their consequences: evidence about the backend, whether another attempt is made, and the response for the
//! client. One table for requests and upgrades, for all engines.

use std::io;
use std::time::Instant;

use crate::balancer::pool::Evidence;
use crate::http::http1::{BadResponse, ResponseHeadError};
use crate::request::error::Rejection;
use crate::request::exchange::{Exchange, ProxyState};
use crate::request::parked::ParkReason;
use crate::upstream::{DialError, Repeatable};

/// Why an attempt yielded no response that can be forwarded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    /// Nothing has been sent.
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the connection broke while the request was sent")]
    Unsent(#[source] io::Error),
    #[error(transparent)]
    ResponseHeadError(#[from] ResponseHeadError),
    /// The response is ambiguous, or must not be forwarded.
    #[error(transparent)]
    BadResponse(#[from] BadResponse),
    /// A 101 with another protocol than the requested one.
    #[error("the backend switched to a protocol that was not requested")]
    OtherProtocol,
    #[error("the backend did not respond in time")]
    Timeout,
    /// The backend was found to be down while the request waited for its response.
    #[error("the backend went down before it responded")]
    WentDown,
    /// A failure that Pingora reports without details.
    #[error("the connection to the backend failed")]
    Failed,
}

/// Whether the request can be sent again after a backend has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replay {
    /// All of the body that was sent is still buffered.
    Possible,
    Impossible,
}

/// The consequences of a failed attempt.
struct Consequence {
    /// What is reported about the backend.
    evidence: Option<Evidence>,
    /// The response for the client, if it was the last attempt.
    response: Rejection,
    next: Next,
}

/// What may follow a failed attempt.
enum Next {
    /// The backend has not seen the request: it is parked, or another backend is tried.
    ParkOr(ParkReason),
    /// The backend may have seen the request: only an idempotent one is sent again.
    Repeat,
    /// The same, but only if the backend is down and unresponsive: a healthy one may be slow with this request, and so would another.
    RepeatIfDown,
    /// No further attempt: it would fail in the same way.
    Nothing,
}

impl AttemptError {
    fn consequence(&self) -> Consequence {
        let failed = |evidence, why, next| Consequence {
            evidence,
            response: Rejection::BackendFailed(why),
            next,
        };
        let dial = |evidence, response, dial| Consequence {
            evidence,
            response,
            next: Next::ParkOr(dial),
        };
        match self {
            Self::Dial(DialError::Exhausted(_)) => Consequence {
                evidence: None,
                response: Rejection::NoBackend,
                next: Next::Nothing,
            },
            // Ports become free after a while: treated as a refused connection.
            Self::Dial(DialError::NoPort(_)) => {
                dial(None, Rejection::NoBackend, ParkReason::Refused)
            }
            Self::Dial(DialError::Timeout(_)) => dial(
                Some(Evidence::ConnectTimeout),
                Rejection::BackendTimeout("no connection to the backend in time"),
                ParkReason::TimedOut,
            ),
            // Unlike a restart; 502, since the backend is at fault.
            Self::Dial(DialError::Tls(_)) => dial(
                Some(Evidence::TlsFailed),
                Rejection::BackendFailed("the TLS handshake with the backend failed"),
                ParkReason::TimedOut,
            ),
            Self::Dial(DialError::Refused(_) | DialError::Unreachable(_) | DialError::Name(_)) => {
                dial(
                    Some(Evidence::ConnectRefused),
                    Rejection::NoBackend,
                    ParkReason::Refused,
                )
            }
            Self::Unsent(_) => failed(
                Some(Evidence::ConnectionLost),
                "the connection broke while the request was sent",
                Next::Repeat,
            ),
            Self::ResponseHeadError(ResponseHeadError::Broken(_)) => failed(
                Some(Evidence::ConnectionLost),
                "the connection broke or ended before the response",
                Next::Repeat,
            ),
            Self::ResponseHeadError(ResponseHeadError::TooLarge) => failed(
                None,
                "the response head is larger than limits.response_head_size",
                Next::Nothing,
            ),
            Self::ResponseHeadError(ResponseHeadError::Bad(BadResponse::NotHttp)) => failed(
                Some(Evidence::ConnectionLost),
                "the response is not HTTP/1",
                Next::Repeat,
            ),
            Self::ResponseHeadError(ResponseHeadError::Bad(bad)) | Self::BadResponse(bad) => {
                failed(None, why_bad(*bad), Next::Nothing)
            }
            Self::OtherProtocol => failed(
                Some(Evidence::ConnectionLost),
                "the backend switched to a protocol that was not requested",
                Next::Repeat,
            ),
            Self::Failed => failed(
                Some(Evidence::ConnectionLost),
                "the connection to the backend failed",
                Next::Repeat,
            ),
            Self::Timeout => Consequence {
                evidence: Some(Evidence::TimedOut),
                response: Rejection::BackendTimeout("no response in time"),
                next: Next::RepeatIfDown,
            },
            Self::WentDown => Consequence {
                evidence: Some(Evidence::TimedOut),
                response: Rejection::BackendTimeout("the backend went down before it responded"),
                next: Next::Repeat,
            },
        }
    }

    /// Whether the connection ended before a response. If it was reused, the backend may have closed it while it was idle, which is
    /// no evidence against the backend.
    pub(crate) fn is_broken_connection(&self) -> bool {
        matches!(
            self,
            Self::Unsent(_) | Self::ResponseHeadError(ResponseHeadError::Broken(_))
        )
    }
}

/// The access log text for a response that cannot be forwarded.
fn why_bad(bad: BadResponse) -> &'static str {
    match bad {
        BadResponse::NotHttp => "the response is not HTTP/1",
        BadResponse::TooManyHeaders => "the response has more headers than limits.headers",
        BadResponse::Length => "the response has several lengths, or one that is not a number",
        BadResponse::Coding => "the response has a transfer coding other than chunked",
        BadResponse::Nominations => "the Connection header of the response names too many headers",
        BadResponse::UnexpectedUpgrade => "the response is a 101 although no upgrade was requested",
        BadResponse::NotSwitched => "the response accepts an upgrade without switching protocols",
        BadResponse::Chunk => "the response has a malformed chunk",
    }
}

impl ProxyState {
    /// Handles a failed attempt at the chosen backend, and prepares the next one.
    ///
    /// # Errors
    ///
    /// The response for the client, if there is no next attempt.
    pub(crate) fn attempt_failed(
        &self,
        exchange: &mut Exchange,
        error: &AttemptError,
        replay: Replay,
    ) -> Result<(), Rejection> {
        let Consequence {
            evidence,
            response,
            next,
        } = error.consequence();
        if let Some(choice) = &exchange.choice {
            tracing::debug!(backend = %choice.backend.id, %error, "attempt failed");
        }
        self.log_exhaustion(exchange, error);
        if let Some(evidence) = evidence {
            self.report(exchange, evidence);
        }
        exchange.in_flight = None;
        exchange.failure = Some(response.clone());
        let repeats = match next {
            Next::ParkOr(dial) => {
                if self.park(exchange, dial) {
                    return Ok(());
                }
                exchange.exclude_backend();
                return self.try_another(exchange);
            }
            Next::Repeat => true,
            Next::RepeatIfDown => exchange
                .backend()
                .is_some_and(|backend| backend.is_unresponsive()),
            Next::Nothing => false,
        };
        exchange.parking.gave_up();
        let repeats = repeats
            && replay == Replay::Possible
            && exchange.repeatable() == Repeatable::Yes
            && self.may_retry(exchange);
        if !repeats || !exchange.retries_same_backend() {
            exchange.exclude_backend();
        }
        if repeats { Ok(()) } else { Err(response) }
    }

    /// Logs, throttled, that this machine has run out of descriptors or ports.
    fn log_exhaustion(&self, exchange: &Exchange, error: &AttemptError) {
        let now = Instant::now();
        match error {
            AttemptError::Dial(error @ DialError::Exhausted(_)) => {
                if let Some(times) = self.exhausted.note(now) {
                    tracing::warn!(%error, times, "cannot dial any backend");
                }
            }
            AttemptError::Dial(error @ DialError::NoPort(_)) => {
                if let (Some(choice), Some(times)) = (&exchange.choice, self.no_port.note(now)) {
                    tracing::warn!(backend = %choice.backend.id, %error, times, "cannot dial a backend");
                }
            }
            _ => {}
        }
    }
}
