//! Asking a backend to switch protocols.
//!
//! The answer's head is parsed by Pingora. A 101 gives the socket back with every byte that came behind it; any other answer
//! keeps it, for its body to be passed on.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::UPGRADE;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::v1::client::HttpSession;
use tokio::time::timeout;

use crate::tunnel::Socket;

/// Why a backend gave no answer that can be used. It may have seen the request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// It took longer than `timeouts.upgrade`.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The backend was given up meanwhile.
    #[error("the backend went down before it answered")]
    GivenUp,
    /// The connection ended or broke, or what came is not HTTP.
    #[error("no answer from the backend: {0}")]
    Broken(String),
    /// It switched to something that nobody asked for.
    #[error("the backend switched to another protocol than `{0}`")]
    OtherProtocol(String),
}

/// What a backend answered.
pub(crate) enum Asked {
    /// It has switched: what follows on `socket` is no longer HTTP.
    Switched {
        response: Box<ResponseHeader>,
        socket: Socket,
        early: Vec<u8>,
    },
    /// It has not; its answer is an ordinary one.
    Refused(RefusedUpgrade),
}

/// An ordinary answer to an upgrade.
pub(crate) struct RefusedUpgrade {
    pub(crate) response: Box<ResponseHeader>,
    session: Box<HttpSession>,
}

impl RefusedUpgrade {
    /// The next piece of the body; `None` is its end.
    pub(crate) async fn read_body(&mut self) -> pingora::Result<Option<Bytes>> {
        self.session.read_body_bytes().await
    }
}

/// Sends `request`, which asks for `protocol`, and reads the head of the answer.
///
/// # Cancel safety
///
/// Dropping it closes the connection: the backend sees a client that left.
pub(crate) async fn ask(
    socket: Socket,
    request: RequestHeader,
    protocol: &str,
    limits: AskLimits,
) -> Result<Asked, HandshakeError> {
    let mut session = HttpSession::new(Box::new(socket));
    // One deadline for the head: a limit for each read beside it could end first, and look like a broken connection.
    let response = match timeout(limits.answer, exchange_heads(&mut session, request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(HandshakeError::Broken(error.to_string())),
        Err(_) => return Err(HandshakeError::Timeout(limits.answer)),
    };
    session.read_timeout = Some(limits.read);
    if response.status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Asked::Refused(RefusedUpgrade {
            response,
            session: Box::new(session),
        }));
    }
    let switched_to = response
        .headers
        .get(UPGRADE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if !switched_to.trim().eq_ignore_ascii_case(protocol) {
        return Err(HandshakeError::OtherProtocol(protocol.to_owned()));
    }
    let early = read_without_waiting(&mut session).await;
    match session.into_inner().into_any().downcast::<Socket>() {
        Ok(socket) => Ok(Asked::Switched {
            response,
            socket: *socket,
            early,
        }),
        Err(_) => Err(HandshakeError::Broken("the socket was wrapped".to_owned())),
    }
}

/// How long an answer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AskLimits {
    /// To the end of its head.
    pub(crate) answer: Duration,
    /// Between two reads of its body.
    pub(crate) read: Duration,
}

async fn exchange_heads(
    session: &mut HttpSession,
    request: RequestHeader,
) -> pingora::Result<Box<ResponseHeader>> {
    session.write_request_header(Box::new(request)).await?;
    loop {
        session.read_response().await?;
        if let Some(response) = session.resp_header()
            && (!response.status.is_informational()
                || response.status == StatusCode::SWITCHING_PROTOCOLS)
        {
            return Ok(Box::new(response.clone()));
        }
    }
}

/// What came behind the 101 in the same read: Pingora hands it out as the body. One poll, since more may never come.
async fn read_without_waiting(session: &mut HttpSession) -> Vec<u8> {
    let mut reading = std::pin::pin!(tokio::task::unconstrained(session.read_body_bytes()));
    poll_fn(|cx| match reading.as_mut().poll(cx) {
        Poll::Ready(Ok(Some(early))) => Poll::Ready(early.to_vec()),
        Poll::Ready(Ok(None) | Err(_)) | Poll::Pending => Poll::Ready(Vec::new()),
    })
    .await
}
