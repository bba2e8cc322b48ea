//! Asking a backend to switch protocols.
//!
//! A 101 gives the socket back with every byte that came behind it; any other answer keeps it, for its body to be passed on.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::fields::{Answer, Fields};
use crate::http1::{AnswerHead, AnswerReader, NoHead};
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
    /// The connection broke.
    #[error("the request could not be sent")]
    Unsent(#[from] io::Error),
    /// The connection ended or broke, or what came is not HTTP.
    #[error(transparent)]
    NoHead(#[from] NoHead),
    /// It switched to something that nobody asked for.
    #[error("the backend switched to another protocol than `{0}`")]
    OtherProtocol(String),
}

/// What a backend answered.
pub(crate) struct Asked {
    /// That it has switched, if that is its status: what follows on `socket` is no longer HTTP.
    pub(crate) answer: AnswerHead,
    pub(crate) socket: Socket,
    /// What came behind it in the same read.
    pub(crate) early: Vec<u8>,
}

impl Asked {
    /// Whether it has switched.
    pub(crate) fn has_switched(&self) -> bool {
        self.answer.status() == StatusCode::SWITCHING_PROTOCOLS
    }
}

/// Sends `request`, which asks for `protocol`, and reads the head of the answer, within `limit`.
///
/// # Errors
///
/// [`HandshakeError`]; the connection is closed.
///
/// # Cancel safety
///
/// Dropping it closes the connection: the backend sees a client that left.
pub(crate) async fn ask(
    mut socket: Socket,
    request: &[u8],
    protocol: &str,
    limit: Duration,
) -> Result<Asked, HandshakeError> {
    // One deadline for all of it: a limit for each read beside it could end first, and look like a broken connection.
    let asking = async {
        socket.write_all(request).await?;
        socket.flush().await?;
        let mut reader = AnswerReader::default();
        loop {
            let answer = poll_fn(|cx| reader.poll(cx, &mut socket)).await?;
            let status = answer.status();
            if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                return Ok((answer, reader.into_rest()));
            }
        }
    };
    let asked = timeout(limit, asking).await;
    let (answer, early) = asked.unwrap_or(Err(HandshakeError::Timeout(limit)))?;
    let asked = Asked {
        answer,
        socket,
        early,
    };
    let switched_to = asked.answer.text("upgrade").unwrap_or_default().trim();
    if asked.has_switched() && !switched_to.eq_ignore_ascii_case(protocol) {
        return Err(HandshakeError::OtherProtocol(protocol.to_owned()));
    }
    Ok(asked)
}
