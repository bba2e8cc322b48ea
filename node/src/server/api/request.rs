//! The bodies of API requests, in the format of Centrifugo's HTTP API.
//!
//! Unknown fields are ignored, as its servers do, so that newer SDKs work.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::Error as _;
use serde_json::value::RawValue;

use super::ApiError;
use crate::auth::grant::RawOverrides;
use crate::cluster::directory::Target;
use crate::cluster::values::Owner;
use crate::config::Ack;
use crate::protocol;
use crate::protocol::BadData;
use crate::protocol::JSON_DEPTH_MAX;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::ClientId;

/// Any of them. The names of the variants are those of the methods.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    Publish(Publish),
    Broadcast(Publish),
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
    Disconnect(Disconnect),
    Refresh(Refresh),
    Presence(OfChannel),
    PresenceStats(OfChannel),
    History(History),
    HistoryRemove(OfChannel),
    Channels(Channels),
    Info(Info),
    ValuePut(ValuePut),
    ValueGet(ValueNamed),
    ValueDelete(ValueNamed),
    ValueList(ValueOwner),
}

impl Request {
    /// Reads the body of a request for `method`.
    ///
    /// # Errors
    ///
    /// There is no such method, or the body is not what it takes.
    pub(super) fn parse(method: &str, body: &[u8]) -> Result<Self, ApiError> {
        fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
            // A method without parameters may have no body.
            let body: &[u8] = if body.is_empty() { b"{}" } else { body };
            // serde would accept an array as the fields in their order.
            if body.trim_ascii_start().starts_with(b"[") {
                let error = serde_json::Error::custom("expected an object, found an array");
                return Err(ApiError::malformed(error));
            }
            serde_json::from_slice(body).map_err(ApiError::malformed)
        }
        Ok(match method {
            "publish" => Self::Publish(read(body)?),
            "broadcast" => Self::Broadcast(read(body)?),
            "subscribe" => Self::Subscribe(read(body)?),
            "unsubscribe" => Self::Unsubscribe(read(body)?),
            "disconnect" => Self::Disconnect(read(body)?),
            "refresh" => Self::Refresh(read(body)?),
            "presence" => Self::Presence(read(body)?),
            "presence_stats" => Self::PresenceStats(read(body)?),
            "history" => Self::History(read(body)?),
            "history_remove" => Self::HistoryRemove(read(body)?),
            "channels" => Self::Channels(read(body)?),
            "info" => Self::Info(read(body)?),
            "value_put" => Self::ValuePut(read(body)?),
            "value_get" => Self::ValueGet(read(body)?),
            "value_delete" => Self::ValueDelete(read(body)?),
            "value_list" => Self::ValueList(read(body)?),
            _ => return Err(ApiError::no_method(method)),
        })
    }

    /// The name of its method.
    pub(super) fn method(&self) -> &'static str {
        match self {
            Self::Publish(_) => "publish",
            Self::Broadcast(_) => "broadcast",
            Self::Subscribe(_) => "subscribe",
            Self::Unsubscribe(_) => "unsubscribe",
            Self::Disconnect(_) => "disconnect",
            Self::Refresh(_) => "refresh",
            Self::Presence(_) => "presence",
            Self::PresenceStats(_) => "presence_stats",
            Self::History(_) => "history",
            Self::HistoryRemove(_) => "history_remove",
            Self::Channels(_) => "channels",
            Self::Info(_) => "info",
            Self::ValuePut(_) => "value_put",
            Self::ValueGet(_) => "value_get",
            Self::ValueDelete(_) => "value_delete",
            Self::ValueList(_) => "value_list",
        }
    }
}

/// Several requests at once.
#[derive(Debug, Deserialize)]
pub(super) struct Batch {
    pub(super) commands: Vec<Box<RawValue>>,
    /// Whether they may overtake each other.
    #[serde(default)]
    pub(super) parallel: bool,
}

/// What to publish, and where. (Fields stand one by one, here and below: raw JSON cannot be in a flattened
/// struct.)
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Publish {
    /// Of `publish`.
    pub(super) channel: String,
    /// Of `broadcast`.
    pub(super) channels: Vec<String>,
    #[serde(deserialize_with = "protocol::present")]
    pub(super) data: Option<Box<RawValue>>,
    pub(super) b64data: Option<String>,
    pub(super) skip_history: bool,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) idempotency_key: String,
    /// Only what has changed is to be sent: not offered.
    pub(super) delta: bool,
    /// The acknowledgement to wait for; missing: the configured one.
    pub(super) ack: Option<Ack>,
}

impl Publish {
    /// The data, from whichever field has it. `null` is data, and bytes may be none.
    pub(super) fn data(&self) -> Result<Bytes, ApiError> {
        if self.data.is_none() && self.b64data.is_none() {
            return Err(ApiError::bad_request("expected `data` or `b64data`"));
        }
        let base64 = self.b64data.as_deref().unwrap_or_default();
        json_or_base64("b64data", self.data.as_deref(), base64)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ClientTarget {
    pub(super) user: String,
    pub(super) client: String,
    /// The session id that a client over HTTP streaming or SSE got with its connect reply.
    pub(super) session: String,
}

impl ClientTarget {
    /// All clients of the user, or the one that is named.
    pub(super) fn target(self, except: Vec<ClientId>) -> Result<Target, ApiError> {
        if !self.session.is_empty() {
            if !self.client.is_empty() {
                return Err(ApiError::bad_request(
                    "expected either `client` or `session`, found both",
                ));
            }
            let session = client_id(&self.session)?;
            let user = self.user;
            return Ok(Target::Session { user, session });
        }
        let client = match self.client.as_str() {
            "" => None,
            client => Some(client_id(client)?),
        };
        match (self.user, client) {
            (user, None) if user.is_empty() => Err(ApiError::bad_request(
                "expected `user`, `client` or `session`",
            )),
            (user, Some(client)) if user.is_empty() => Ok(Target::Client(client)),
            (user, Some(client)) => Ok(Target::ClientOf { user, client }),
            (user, None) => Ok(Target::User { user, except }),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Subscribe {
    pub(super) user: String,
    pub(super) client: String,
    pub(super) session: String,
    pub(super) channel: String,
    pub(super) info: Option<Box<RawValue>>,
    pub(super) b64info: String,
    pub(super) data: Option<Box<RawValue>>,
    pub(super) b64data: String,
    pub(super) recover_since: Option<Position>,
    #[serde(rename = "override")]
    pub(super) overrides: Option<RawOverrides>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Position {
    pub(super) offset: u64,
    pub(super) epoch: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Unsubscribe {
    #[serde(flatten)]
    pub(super) target: ClientTarget,
    pub(super) channel: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Disconnect {
    #[serde(flatten)]
    pub(super) target: ClientTarget,
    pub(super) whitelist: Vec<String>,
    pub(super) disconnect: Option<Ending>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ending {
    pub(super) code: u32,
    pub(super) reason: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Refresh {
    #[serde(flatten)]
    pub(super) target: ClientTarget,
    pub(super) expired: bool,
    pub(super) expire_at: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct OfChannel {
    pub(super) channel: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct History {
    pub(super) channel: String,
    /// How many; 0: none, only the position. Below: as many as a page may have.
    pub(super) limit: i64,
    pub(super) since: Option<Position>,
    pub(super) reverse: bool,
}

impl History {
    /// How many publications the response may have, of at most `page_max`.
    pub(super) fn page(&self, page_max: usize) -> usize {
        usize::try_from(self.limit).map_or(page_max, |limit| limit.min(page_max))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Channels {
    pub(super) pattern: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Info {}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ValueOwner {
    pub(super) user: String,
    pub(super) client: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ValueNamed {
    #[serde(flatten)]
    pub(super) owner: ValueOwner,
    pub(super) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ValuePut {
    pub(super) user: String,
    pub(super) client: String,
    pub(super) name: String,
    pub(super) value: Option<Box<RawValue>>,
    /// In seconds.
    pub(super) ttl: u64,
}

impl ValueOwner {
    /// A user or a client, not both.
    pub(super) fn owner(self) -> Result<Owner, ApiError> {
        match (self.user.as_str(), self.client.as_str()) {
            ("", "") => Err(ApiError::bad_request("expected `user` or `client`")),
            ("", client) => Ok(Owner::Client(client_id(client)?)),
            (_, "") => Ok(Owner::User(self.user)),
            _ => Err(ApiError::bad_request(
                "expected either `user` or `client`, found both",
            )),
        }
    }
}

/// The channel, which has to have a name.
pub(super) fn channel(name: &str) -> Result<ChannelName, ApiError> {
    ChannelName::new(name).map_err(|error| ApiError::bad_request(error.to_string()))
}

pub(super) fn client_id(text: &str) -> Result<ClientId, ApiError> {
    ClientId::parse(text).map_err(|error| ApiError::bad_request(format!("`client`: {error}")))
}

/// JSON, or bytes in base64, or nothing.
pub(super) fn json_or_base64(
    field: &'static str,
    json: Option<&RawValue>,
    base64: &str,
) -> Result<Bytes, ApiError> {
    match (json, base64) {
        (Some(json), "") if JSON_DEPTH_MAX < protocol::depth(json.get().as_bytes()) => {
            Err(ApiError::bad_request(BadData::TooDeep.to_string()))
        }
        (Some(json), "") => Ok(Bytes::copy_from_slice(json.get().as_bytes())),
        (_, base64) => decode(field, base64),
    }
}

fn decode(field: &'static str, base64: &str) -> Result<Bytes, ApiError> {
    let decoded = STANDARD.decode(base64);
    let bytes = decoded
        .map_err(|_| ApiError::bad_request(format!("expected `{field}` in standard base64")))?;
    Ok(bytes.into())
}
