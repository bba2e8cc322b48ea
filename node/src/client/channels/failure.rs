//! The result of a command that fails: an error reply, or a disconnect.

use crate::auth::AuthError;
use crate::client::channels::state::OutOfOrder;
use crate::hooks::Refusal;
use crate::protocol::ErrorCode;
use crate::protocol::ProtocolError;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::disconnect::DisconnectMessage;

/// Why a command failed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Failure {
    /// The client gets an error reply and stays connected.
    Error(ProtocolError),
    /// The client is disconnected.
    Disconnect(DisconnectMessage),
}

impl From<ProtocolError> for Failure {
    fn from(error: ProtocolError) -> Self {
        Self::Error(error)
    }
}

impl From<ErrorCode> for Failure {
    fn from(code: ErrorCode) -> Self {
        Self::Error(code.into())
    }
}

impl From<Disconnect> for Failure {
    fn from(disconnect: Disconnect) -> Self {
        Self::Disconnect(disconnect.into())
    }
}

impl From<OutOfOrder> for Failure {
    fn from(OutOfOrder: OutOfOrder) -> Self {
        Self::Disconnect(Disconnect::BAD_REQUEST.into())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Error(error) => Self::Error(error),
            Refusal::Disconnect { code, reason } => {
                Self::Disconnect(DisconnectMessage::by_application(code, reason))
            }
            Refusal::Failed => ErrorCode::Internal.into(),
        }
    }
}

/// The failure for an invalid connection token.
pub(super) fn of_connection_token(error: &AuthError) -> Failure {
    match error {
        AuthError::Expired => ErrorCode::TokenExpired.into(),
        AuthError::Invalid(_) => Disconnect::INVALID_TOKEN.into(),
    }
}

/// The failure for an invalid token in a `refresh`. An expired one disconnects the client: SDKs treat an error as final,
/// but get a new token after a disconnect.
pub(super) fn of_refresh_token(error: &AuthError) -> Failure {
    match error {
        AuthError::Expired => Disconnect::EXPIRED.into(),
        AuthError::Invalid(_) => of_connection_token(error),
    }
}

/// The failure for an invalid token in a `sub_refresh`, as with `refresh`.
pub(super) fn of_sub_refresh_token(error: &AuthError) -> Failure {
    match error {
        AuthError::Expired => Disconnect::SUB_EXPIRED.into(),
        AuthError::Invalid(_) => of_subscription_token(error),
    }
}

/// The failure for an invalid subscription token.
pub(super) fn of_subscription_token(error: &AuthError) -> Failure {
    match error {
        AuthError::Expired => ErrorCode::TokenExpired.into(),
        AuthError::Invalid(_) => ErrorCode::PermissionDenied.into(),
    }
}
