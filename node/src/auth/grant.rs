//! Grants of the application to a client: by the claims of a token, or by the response of a hook, with the same types.
//!
//! Plain data, validated when parsed. Times are UNIX seconds, as the application writes them.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::Deserializer;
use serde::de::Error as _;
use serde::de::IgnoredAny;
use serde::de::MapAccess;
use serde::de::SeqAccess;
use serde::de::Unexpected;
use serde::de::Visitor;
use serde::de::value::MapAccessDeserializer;
use serde_json::value::RawValue;

use crate::protocol;
use crate::protocol::JSON_DEPTH_MAX;

/// A connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ConnectGrant {
    /// The user; empty: the client is anonymous.
    pub(crate) user: String,
    /// When it expires unless refreshed; `None`: never.
    pub(crate) expire_at: Option<u64>,
    /// The connection's info for others in a channel; empty: none.
    pub(crate) info: Bytes,
    /// Data for the client in the reply; empty: none.
    pub(crate) data: Bytes,
    /// Server-side subscriptions.
    pub(crate) subs: BTreeMap<String, SubscribeGrant>,
    /// Metadata that only hooks receive; empty: none.
    pub(crate) meta: Bytes,
}

/// A subscription.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SubscribeGrant {
    /// When it expires unless refreshed; `None`: never.
    pub(crate) expire_at: Option<u64>,
    /// The client's info for others in the channel; empty: none.
    pub(crate) info: Bytes,
    /// Data for the client in the reply; empty: none.
    pub(crate) data: Bytes,
    /// Options that differ from the channel's namespace.
    pub(crate) overrides: Overrides,
}

/// The extension of a connection or a subscription.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RefreshGrant {
    /// When it expires now; `None`: never.
    pub(crate) expire_at: Option<u64>,
    /// The new info for others; `None`: unchanged.
    pub(crate) info: Option<Bytes>,
}

/// Options that one subscription overrides; `None`: the namespace's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    pub(crate) presence: Option<bool>,
    pub(crate) join_leave: Option<bool>,
    pub(crate) force_push_join_leave: Option<bool>,
    pub(crate) force_positioning: Option<bool>,
    pub(crate) force_recovery: Option<bool>,
}

/// Why a field with data is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadField {
    /// It is not valid base64.
    #[error("expected `{0}` in base64")]
    NotBase64(&'static str),
    /// Some clients could not parse it.
    #[error("expected `{0}` of at most {JSON_DEPTH_MAX} levels of arrays and objects")]
    TooDeep(&'static str),
}

/// The options of one channel in `subs`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RawSubscription {
    info: Option<Box<RawValue>>,
    b64info: Option<String>,
    data: Option<Box<RawValue>>,
    b64data: Option<String>,
    #[serde(rename = "override")]
    overrides: Option<RawOverrides>,
}

/// `override`: each option is `{"value": true}` or `{"value": false}`.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RawOverrides {
    presence: Option<Value>,
    join_leave: Option<Value>,
    force_push_join_leave: Option<Value>,
    force_positioning: Option<Value>,
    force_recovery: Option<Value>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct Value {
    value: Option<bool>,
}

impl RawSubscription {
    /// The options, validated.
    ///
    /// # Errors
    ///
    /// [`BadField`] names the option that is wrong.
    pub(crate) fn grant(self) -> Result<SubscribeGrant, BadField> {
        Ok(SubscribeGrant {
            expire_at: None,
            info: either(self.info, self.b64info.as_deref(), "info")?,
            data: either(self.data, self.b64data.as_deref(), "data")?,
            overrides: self.overrides.unwrap_or_default().into(),
        })
    }
}

impl From<RawOverrides> for Overrides {
    fn from(raw: RawOverrides) -> Self {
        let value = |option: Option<Value>| option.map(|option| option.value.unwrap_or_default());
        Self {
            presence: value(raw.presence),
            join_leave: value(raw.join_leave),
            force_push_join_leave: value(raw.force_push_join_leave),
            force_positioning: value(raw.force_positioning),
            force_recovery: value(raw.force_recovery),
        }
    }
}

/// The value of the field `name` in its two forms: bytes in base64 (`b64...`), which take precedence, or a JSON value. Empty
/// if neither is set.
///
/// # Errors
///
/// [`BadField`].
pub(crate) fn either(
    json: Option<Box<RawValue>>,
    base64: Option<&str>,
    name: &'static str,
) -> Result<Bytes, BadField> {
    if let Some(text) = base64.filter(|text| !text.is_empty()) {
        let bytes = STANDARD.decode(text);
        return Ok(bytes.map_err(|_| BadField::NotBase64(name))?.into());
    }
    let is_too_deep = |json: &RawValue| JSON_DEPTH_MAX < protocol::depth(json.get().as_bytes());
    if json.as_deref().is_some_and(is_too_deep) {
        return Err(BadField::TooDeep(name));
    }
    let json = json.map(|json| Box::<str>::from(json).into_boxed_bytes());
    Ok(json.map_or_else(Bytes::new, Bytes::from))
}

/// The channels of a connection, as libraries write them: a name that is `null` or empty is ignored.
pub(crate) type RawChannels = Option<Vec<Option<String>>>;

/// The same with options, which may be `null`. PHP writes an empty map as `[]`.
#[derive(Debug, Default)]
pub(crate) struct RawSubscriptions(BTreeMap<String, Option<RawSubscription>>);

impl<'de> Deserialize<'de> for RawSubscriptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Subscriptions;

        impl<'de> Visitor<'de> for Subscriptions {
            type Value = RawSubscriptions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a key for each channel")
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Self::Value, M::Error> {
                BTreeMap::deserialize(MapAccessDeserializer::new(map)).map(RawSubscriptions)
            }

            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Self::Value, S::Error> {
                match seq.next_element::<IgnoredAny>()? {
                    None => Ok(RawSubscriptions::default()),
                    Some(_) => Err(S::Error::invalid_type(Unexpected::Seq, &self)),
                }
            }
        }

        deserializer.deserialize_any(Subscriptions)
    }
}

/// All server-side subscriptions: those of `channels` without options, and those of `subs` with options.
///
/// # Errors
///
/// [`BadField`] names the option that is wrong.
pub(crate) fn subscriptions(
    channels: RawChannels,
    subs: Option<RawSubscriptions>,
) -> Result<BTreeMap<String, SubscribeGrant>, BadField> {
    let plain = channels.unwrap_or_default().into_iter().flatten();
    let mut all: BTreeMap<_, _> = plain
        .map(|channel| (channel, SubscribeGrant::default()))
        .collect();
    for (channel, options) in subs.unwrap_or_default().0 {
        all.insert(channel, options.unwrap_or_default().grant()?);
    }
    all.remove("");
    Ok(all)
}

/// A time for which 0 means none.
pub(crate) fn moment(seconds: i64) -> Option<u64> {
    u64::try_from(seconds).ok().filter(|&seconds| 0 < seconds)
}
