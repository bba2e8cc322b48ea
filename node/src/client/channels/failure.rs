//! What a command comes to when it fails: an error that the client is told, or its end.

use crate::auth::AuthError;
use crate::client::channels::state::OutOfOrder;
use crate::hooks::Refusal;
use crate::protocol::ErrorCode;
use crate::protocol::ProtocolError;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::disconnect::Farewell;

/// Why a command is not carried out.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Failure {
    /// The client is told so, and stays.
    Error(ProtocolError),
    /// The client is sent away.
    Disconnect(Farewell),
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
                Self::Disconnect(Farewell::by_application(code, reason))
            }
            Refusal::Failed => ErrorCode::Internal.into(),
        }
    }
}

/// What a token for a connection comes to that grants none.
pub(super) fn of_connection_token(error: &AuthError) -> Failure {
    match error {
        AuthError::Expired => ErrorCode::TokenExpired.into(),
        AuthError::Invalid(_) => Disconnect::INVALID_TOKEN.into(),
    }
}

/// What a newer token for a connection comes to that does not prolong it. A stale one closes the connection: SDKs take
/// an error for the end, and a close for the moment to get themselves another token.
pub(super) fn of_refresh_token(error: &AuthError) -> Failure {
    match error {
        AuthError::Expired => Disconnect::EXPIRED.into(),
        AuthError::Invalid(_) => of_connection_token(error),
    }
}

/// The same for a newer token for a subscription.
pub(super) fn of_sub_refresh_token(error: &AuthError) -> Failure {
    match error {
        AuthError::Expired => Disconnect::SUB_EXPIRED.into(),
        AuthError::Invalid(_) => of_subscription_token(error),
    }
}

/// What a token for a subscription comes to that grants none.
pub(super) fn of_subscription_token(error: &AuthError) -> Failure {
    match error {
        AuthError::Expired => ErrorCode::TokenExpired.into(),
        AuthError::Invalid(_) => ErrorCode::PermissionDenied.into(),
    }
}
