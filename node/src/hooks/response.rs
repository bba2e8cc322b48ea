//! Responses of the backend, parsed and validated.

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::auth::grant;
use crate::auth::grant::ConnectGrant;
use crate::auth::grant::RawChannels;
use crate::auth::grant::RawOverrides;
use crate::auth::grant::RawSubscriptions;
use crate::auth::grant::RefreshGrant;
use crate::auth::grant::SubscribeGrant;
use crate::config::DataKind;
use crate::hooks::HookError;
use crate::protocol;
use crate::protocol::ProtocolError;

/// Codes that backends written for Centrifugo use may be those of the protocol: after 109 an SDK gets another
/// token, after 3503 it does not reconnect. Lower error codes are the SDKs' own.
const ERROR_CODES: std::ops::RangeFrom<u32> = 100..;
const DISCONNECT_CODES: std::ops::RangeInclusive<u32> = 3000..=4999;

/// The longest reason: a close frame has room for 123 bytes.
const REASON_BYTES_MAX: usize = 123;

/// One of the three kinds of response.
#[derive(Debug, PartialEq)]
pub(super) enum HookResponse<T> {
    Granted(T),
    Error(ProtocolError),
    Disconnect { code: u32, reason: String },
}

/// The decision about a connection or subscription that expires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refreshed {
    /// It is extended.
    For(RefreshGrant),
    /// It expires.
    Expired,
}

/// The publication of a client that is granted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PublishGrant {
    /// The data as changed by the application; `None`: the client's.
    pub(crate) data: Option<Bytes>,
    /// Whether it is not stored in the history.
    pub(crate) skip_history: bool,
}

#[derive(Deserialize)]
struct Raw<T> {
    result: Option<T>,
    error: Option<RawError>,
    disconnect: Option<RawDisconnect>,
}

#[derive(Deserialize)]
struct RawError {
    code: u32,
    #[serde(default)]
    message: String,
    #[serde(default)]
    temporary: bool,
}

#[derive(Deserialize)]
struct RawDisconnect {
    code: u32,
    #[serde(default)]
    reason: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Connect {
    user: String,
    expire_at: i64,
    info: Option<Box<RawValue>>,
    b64info: Option<String>,
    data: Option<Box<RawValue>>,
    b64data: Option<String>,
    channels: RawChannels,
    subs: Option<RawSubscriptions>,
    meta: Option<Box<RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refresh {
    expired: bool,
    expire_at: i64,
    info: Option<Box<RawValue>>,
    b64info: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Subscribe {
    expire_at: i64,
    info: Option<Box<RawValue>>,
    b64info: Option<String>,
    data: Option<Box<RawValue>>,
    b64data: Option<String>,
    #[serde(rename = "override")]
    overrides: Option<RawOverrides>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Publish {
    data: Option<Box<RawValue>>,
    b64data: Option<String>,
    skip_history: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Rpc {
    /// The data of an RPC response may be `null`.
    #[serde(deserialize_with = "protocol::present")]
    data: Option<Box<RawValue>>,
    b64data: Option<String>,
}

pub(super) fn connect(response: &[u8]) -> Result<HookResponse<ConnectGrant>, HookError> {
    read(response, |result: Connect| {
        Ok(ConnectGrant {
            user: result.user,
            expire_at: grant::moment(result.expire_at),
            info: grant::either(result.info, result.b64info.as_deref(), "info")?,
            data: grant::either(result.data, result.b64data.as_deref(), "data")?,
            subs: grant::subscriptions(result.channels, result.subs)?,
            meta: grant::either(result.meta, None, "meta")?,
        })
    })
}

pub(super) fn refresh(response: &[u8]) -> Result<HookResponse<Refreshed>, HookError> {
    read(response, |result: Refresh| {
        if result.expired {
            return Ok(Refreshed::Expired);
        }
        let info = grant::either(result.info, result.b64info.as_deref(), "info")?;
        Ok(Refreshed::For(RefreshGrant {
            expire_at: grant::moment(result.expire_at),
            info: Some(info).filter(|info| !info.is_empty()),
        }))
    })
}

pub(super) fn subscribe(response: &[u8]) -> Result<HookResponse<SubscribeGrant>, HookError> {
    read(response, |result: Subscribe| {
        Ok(SubscribeGrant {
            expire_at: grant::moment(result.expire_at),
            info: grant::either(result.info, result.b64info.as_deref(), "info")?,
            data: grant::either(result.data, result.b64data.as_deref(), "data")?,
            overrides: result.overrides.unwrap_or_default().into(),
        })
    })
}

pub(super) fn publish(
    response: &[u8],
    kind: DataKind,
) -> Result<HookResponse<PublishGrant>, HookError> {
    read(response, |result: Publish| {
        let data = grant::either(result.data, result.b64data.as_deref(), "data")?;
        let data = Some(data).filter(|data| !data.is_empty());
        if let (Some(data), DataKind::Json) = (&data, kind) {
            protocol::check_json(data)?;
        }
        Ok(PublishGrant {
            data,
            skip_history: result.skip_history,
        })
    })
}

pub(super) fn rpc(response: &[u8]) -> Result<HookResponse<Bytes>, HookError> {
    read(response, |result: Rpc| {
        Ok(grant::either(
            result.data,
            result.b64data.as_deref(),
            "data",
        )?)
    })
}

/// Parses one of the three. Without any of them, nothing is granted: a backend that responds `{}` to a request that it
/// does not know must not accept all clients.
fn read<R: DeserializeOwned, T>(
    response: &[u8],
    granted: impl FnOnce(R) -> Result<T, HookError>,
) -> Result<HookResponse<T>, HookError> {
    let raw: Raw<R> = serde_json::from_slice(response).map_err(HookError::MalformedResponse)?;
    match raw {
        Raw {
            disconnect: Some(disconnect),
            ..
        } => {
            if !DISCONNECT_CODES.contains(&disconnect.code) {
                return Err(HookError::DisconnectCode(disconnect.code));
            }
            if REASON_BYTES_MAX < disconnect.reason.len() {
                return Err(HookError::LongReason(disconnect.reason.len()));
            }
            Ok(HookResponse::Disconnect {
                code: disconnect.code,
                reason: disconnect.reason,
            })
        }
        Raw {
            error: Some(error), ..
        } => {
            if !ERROR_CODES.contains(&error.code) {
                return Err(HookError::ErrorCode(error.code));
            }
            Ok(HookResponse::Error(ProtocolError {
                code: error.code,
                message: error.message,
                temporary: error.temporary,
            }))
        }
        Raw {
            result: Some(result),
            ..
        } => granted(result).map(HookResponse::Granted),
        Raw { .. } => Err(HookError::Nothing),
    }
}
