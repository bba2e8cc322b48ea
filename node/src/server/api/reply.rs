//! Responses of the API: a result or an error.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::cluster::control::ControlError;
use crate::cluster::registry::Unavailable;
use crate::cluster::values::ValueError;
use crate::protocol::ClientInfo;
use crate::protocol::ErrorCode;
use crate::protocol::Publication;
use crate::stream::PublishFailed;

/// Why there is no result. Codes are Centrifugo's; messages are our own and state what is expected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ApiError {
    pub(super) code: u32,
    pub(super) message: String,
}

/// `{"result": ...}` or `{"error": ...}`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Response<T> {
    Result(T),
    Error(ApiError),
}

/// The outcome of a valid request.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Outcome {
    Done {},
    Published(Published),
    Broadcast {
        responses: Vec<Response<Published>>,
    },
    Presence {
        presence: BTreeMap<String, ClientInfo>,
    },
    PresenceStats {
        num_clients: usize,
        num_users: usize,
    },
    History {
        publications: Vec<Publication>,
        offset: u64,
        epoch: String,
    },
    Channels {
        channels: BTreeMap<String, Subscribers>,
    },
    Info {
        nodes: Vec<NodeInfo>,
    },
    Value {
        /// `null` if there is none.
        value: Option<Box<RawValue>>,
    },
    Deleted {
        deleted: bool,
    },
    Values {
        values: BTreeMap<String, Box<RawValue>>,
    },
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Published {
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) offset: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) epoch: String,
}

#[derive(Debug, Serialize)]
pub(super) struct Subscribers {
    pub(super) num_clients: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct NodeInfo {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) num_clients: u64,
    pub(super) num_users: u64,
    pub(super) num_subs: u64,
    pub(super) num_channels: u64,
    /// In seconds.
    pub(super) uptime: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(offset: &u64) -> bool {
    *offset == 0
}

impl ApiError {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code: code as u32,
            message: message.into(),
        }
    }

    pub(super) fn bad_request(what: impl Into<String>) -> Self {
        Self::new(
            ErrorCode::BadRequest,
            format!("bad request: {}", what.into()),
        )
    }

    pub(super) fn not_available(what: impl Into<String>) -> Self {
        Self::new(
            ErrorCode::NotAvailable,
            format!("not available: {}", what.into()),
        )
    }

    pub(super) fn unknown_channel() -> Self {
        Self::new(
            ErrorCode::UnknownChannel,
            ErrorCode::UnknownChannel.message(),
        )
    }

    pub(super) fn no_method(method: &str) -> Self {
        // Untrusted text may be logged by the application, so it is shortened.
        let method: String = method.chars().take(64).collect();
        Self::new(
            ErrorCode::MethodNotFound,
            format!("method not found: {method:?}"),
        )
    }

    #[expect(clippy::needless_pass_by_value, reason = "it is used as a function")]
    pub(super) fn malformed(error: serde_json::Error) -> Self {
        Self::bad_request(error.to_string())
    }

    pub(super) fn internal(error: &dyn std::error::Error) -> Self {
        Self::new(
            ErrorCode::Internal,
            format!("internal server error: {error}"),
        )
    }

    pub(super) fn is_no_method(&self) -> bool {
        self.code == ErrorCode::MethodNotFound as u32
    }
}

impl From<Unavailable> for ApiError {
    fn from(error: Unavailable) -> Self {
        Self::internal(&error)
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        Self::internal(&error)
    }
}

impl From<ValueError> for ApiError {
    fn from(error: ValueError) -> Self {
        match error {
            ValueError::Name(_) | ValueError::TooLarge { .. } | ValueError::Ttl => {
                Self::bad_request(error.to_string())
            }
            ValueError::TooMany | ValueError::Full => {
                Self::new(ErrorCode::LimitExceeded, format!("limit exceeded: {error}"))
            }
            ValueError::Unavailable(_) => Self::internal(&error),
        }
    }
}

impl From<PublishFailed> for ApiError {
    fn from(error: PublishFailed) -> Self {
        match error {
            PublishFailed::FastWithHistory
            | PublishFailed::NothingToReplicate
            | PublishFailed::FastWithKey => Self::bad_request(error.to_string()),
            PublishFailed::Store(_) if error.is_too_large() => Self::bad_request(error.to_string()),
            PublishFailed::Store(_) => Self::internal(&error),
        }
    }
}

impl<T> From<Result<T, ApiError>> for Response<T> {
    fn from(result: Result<T, ApiError>) -> Self {
        match result {
            Ok(result) => Self::Result(result),
            Err(error) => Self::Error(error),
        }
    }
}

/// Bytes as a JSON value. They were checked to be JSON when they were received.
pub(super) fn raw(json: &Bytes) -> Option<Box<RawValue>> {
    let text = std::str::from_utf8(json).ok()?;
    RawValue::from_string(text.to_owned()).ok()
}
