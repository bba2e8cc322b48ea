//! A probe that opens a WebSocket and closes it: what clients of a WebSocket server need to work.

use std::time::Duration;

use futures_util::StreamExt;
use http::header::{HOST, HeaderName, HeaderValue, USER_AGENT as USER_AGENT_NAME};
use http::{Request, Uri};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, handshake::client::Response};

use super::{DRAIN, USER_AGENT, unexpected};
use crate::balancer::pool::ProbeResult;
use crate::config::HealthConfig;

/// How long the closing handshake may take. The probe has passed by then in any case.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(200);

/// The largest message that is read while waiting for the close frame.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Opens a WebSocket on one path.
pub(super) struct WebSocketCheck {
    uri: Uri,
    host: HeaderValue,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl WebSocketCheck {
    pub(super) fn new(config: &HealthConfig) -> Self {
        let uri = format!("ws://{}{}", config.host, config.path);
        let validated = "the path, the host and the headers are validated with the configuration";
        let headers = config.headers.iter().map(|(name, value)| {
            let name = HeaderName::from_static(name.lower());
            (name, value.clone())
        });
        Self {
            uri: uri.parse().expect(validated),
            host: config.host.parse().expect(validated),
            headers: headers.collect(),
        }
    }

    /// Makes the check on an established connection.
    pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> ProbeResult {
        let limits = WebSocketConfig::default()
            .read_buffer_size(4 << 10)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let request = match self.request() {
            Ok(request) => request,
            Err(error) => return failure(&error),
        };
        let mut socket = match client_async_with_config(request, stream, Some(limits)).await {
            Ok((socket, _)) => socket,
            Err(error) => return failure(&error),
        };
        let closing = async {
            socket.close(None).await?;
            while let Some(message) = socket.next().await {
                message?;
            }
            Ok::<(), Error>(())
        };
        // The handshake has succeeded, whatever the result of closing.
        let _ = timeout(CLOSE_TIMEOUT, closing).await;
        ProbeResult::Good
    }

    fn request(&self) -> Result<Request<()>, Error> {
        let mut request = self.uri.clone().into_client_request()?;
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(USER_AGENT_NAME, HeaderValue::from_static(USER_AGENT));
        headers.extend(self.headers.clone());
        Ok(request)
    }
}

fn failure(error: &Error) -> ProbeResult {
    match error {
        Error::Http(response) => {
            let drains = drains(response);
            unexpected(response.status().as_u16(), drains, " instead of 101")
        }
        Error::Io(_)
        | Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(
            ProtocolError::HandshakeIncomplete | ProtocolError::ResetWithoutClosingHandshake,
        ) => ProbeResult::NoResponse("the backend closed the connection of the probe".to_owned()),
        Error::Protocol(ProtocolError::SecWebSocketAcceptKeyMismatch) => {
            ProbeResult::UnexpectedResponse(
                "the response to the probe has a wrong Sec-WebSocket-Accept".to_owned(),
            )
        }
        error => ProbeResult::UnexpectedResponse(format!(
            "the response to the probe is not a WebSocket handshake: {error}"
        )),
    }
}

fn drains(response: &Response) -> bool {
    let value = response.headers().get(DRAIN);
    value.is_some_and(|value| value.as_bytes() == b"1")
}
