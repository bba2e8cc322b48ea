//! The opening handshake of a WebSocket, RFC 6455 section 4.2.
//!
//! Extensions are declined by not naming them in the response, and so are subprotocols, but for those of the
//! channel protocol.

use http::HeaderMap;
use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::Version;
use http::header;
use http::request::Parts;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::protocol::Codec;

/// The one version of the protocol.
const VERSION: HeaderValue = HeaderValue::from_static("13");

/// Why a request is no opening handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadHandshake {
    /// `Upgrade` does not name WebSocket.
    #[error("Can \"Upgrade\" only to \"WebSocket\".")]
    NoUpgrade,
    /// `Connection` does not name the upgrade, so a proxy on the way may not know of it.
    #[error("\"Connection\" must be \"Upgrade\".")]
    NoConnection,
    /// Older than HTTP/1.1, or with a body.
    #[error("Not a valid websocket request")]
    NotValid,
    /// The key is not 16 bytes in base64.
    #[error("\"Sec-WebSocket-Key\" must be 16 bytes in base64.")]
    BadKey,
    /// A version that is not spoken here.
    #[error("\"Sec-WebSocket-Version\" must be 13.")]
    BadVersion,
}

impl BadHandshake {
    /// The status of the response; adds the headers that go with it.
    pub(crate) fn respond(self, headers: &mut HeaderMap) -> StatusCode {
        match self {
            Self::BadVersion => {
                headers.insert(header::SEC_WEBSOCKET_VERSION, VERSION);
                StatusCode::UPGRADE_REQUIRED
            }
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// Checks a request and returns the headers of the 101 that accepts it.
///
/// # Errors
///
/// [`BadHandshake`]: the first thing that is wrong.
pub(crate) fn accept(request: &Parts, has_body: bool) -> Result<HeaderMap, BadHandshake> {
    debug_assert_eq!(request.method, Method::GET, "the method is checked before");
    let headers = &request.headers;
    if !has_token(headers, header::UPGRADE, "websocket") {
        return Err(BadHandshake::NoUpgrade);
    }
    if !has_token(headers, header::CONNECTION, "upgrade") {
        return Err(BadHandshake::NoConnection);
    }
    if request.version < Version::HTTP_11 || has_body {
        return Err(BadHandshake::NotValid);
    }
    if only(headers, header::SEC_WEBSOCKET_VERSION) != Some(&VERSION) {
        return Err(BadHandshake::BadVersion);
    }
    let key = only(headers, header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let key = key.filter(|key| is_key(key)).ok_or(BadHandshake::BadKey)?;

    let accept = HeaderValue::try_from(derive_accept_key(key)).expect("base64 is ASCII");
    let mut response = HeaderMap::new();
    response.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    response.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// The codec that a channel client asks for. If it offers a known subprotocol, that is added to the response.
pub(crate) fn choose_codec(request: &HeaderMap, response: &mut HeaderMap) -> Codec {
    let known = [
        ("centrifuge-protobuf", Codec::Protobuf),
        ("centrifuge-json", Codec::Json),
    ];
    let offered = |(name, _): &&(&'static str, Codec)| {
        has_token(request, header::SEC_WEBSOCKET_PROTOCOL, name)
    };
    match known.iter().find(offered) {
        None => Codec::Json,
        Some(&(name, codec)) => {
            let name = HeaderValue::from_static(name);
            response.insert(header::SEC_WEBSOCKET_PROTOCOL, name);
            codec
        }
    }
}

/// Whether one of the comma-separated values of `name` is `token`, in any case.
fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// The value of a header that must be there once.
fn only(headers: &HeaderMap, name: header::HeaderName) -> Option<&HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// Whether `key` is 16 bytes in base64: 22 digits and two signs for what is missing.
fn is_key(key: &[u8]) -> bool {
    let is_digit = |digit: &u8| digit.is_ascii_alphanumeric() || matches!(digit, b'+' | b'/');
    key.len() == 24 && key.ends_with(b"==") && key[..22].iter().all(is_digit)
}

#[cfg(test)]
mod tests;
