//! Requests to the backend, in JSON.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::hooks::headers::ClientHeaders;
use crate::protocol;
use crate::protocol::Codec;

/// The client that a request is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HookClient<'a> {
    /// The id of its connection.
    pub(crate) client: &'a str,
    /// Its transport: `websocket`, `http_stream` ...
    pub(crate) transport: &'static str,
    /// Its protocol.
    pub(crate) codec: Codec,
    /// Its user; empty: anonymous, or not known yet.
    pub(crate) user: &'a str,
    /// Metadata that the application has set for hooks; empty: none.
    pub(crate) meta: &'a Bytes,
    /// Session values to send, in JSON, by name.
    pub(crate) values: &'a [(String, Bytes)],
    /// Headers of its request, and of its `connect`.
    pub(crate) headers: [&'a ClientHeaders; 2],
}

/// A client's `connect` request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connecting<'a> {
    /// Of the program; empty: unknown.
    pub(crate) name: &'a str,
    /// Of the program; empty: unknown.
    pub(crate) version: &'a str,
    /// For the application; empty: nothing.
    pub(crate) data: &'a Bytes,
    /// Channels that it wants to subscribe to.
    pub(crate) channels: &'a [String],
}

/// Fields of every request.
#[derive(Serialize)]
struct About<'a> {
    client: &'a str,
    transport: &'static str,
    protocol: &'static str,
    encoding: &'static str,
    #[serde(skip_serializing_if = "is_empty")]
    user: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    values: BTreeMap<&'a str, &'a RawValue>,
}

/// Data of a client: `data` if it is JSON, else `b64data`.
#[derive(Serialize)]
struct Data<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    b64data: Option<String>,
}

#[derive(Serialize)]
struct Connect<'a> {
    #[serde(flatten)]
    about: About<'a>,
    #[serde(skip_serializing_if = "is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    version: &'a str,
    #[serde(flatten)]
    data: Data<'a>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    channels: &'a [String],
}

#[derive(Serialize)]
struct Channel<'a> {
    #[serde(flatten)]
    about: About<'a>,
    channel: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    token: &'a str,
    #[serde(flatten)]
    data: Data<'a>,
}

#[derive(Serialize)]
struct Rpc<'a> {
    #[serde(flatten)]
    about: About<'a>,
    method: &'a str,
    #[serde(flatten)]
    data: Data<'a>,
}

pub(super) fn connect<'a>(client: &HookClient<'a>, connecting: &Connecting<'a>) -> impl Serialize {
    Connect {
        about: about(client),
        name: connecting.name,
        version: connecting.version,
        data: data(connecting.data),
        channels: connecting.channels,
    }
}

pub(super) fn refresh<'a>(client: &HookClient<'a>) -> impl Serialize {
    about(client)
}

pub(super) fn subscribe<'a>(
    client: &HookClient<'a>,
    channel: &'a str,
    token: &'a str,
    bytes: &'a Bytes,
) -> impl Serialize {
    let about = about(client);
    let data = data(bytes);
    Channel {
        about,
        channel,
        token,
        data,
    }
}

pub(super) fn sub_refresh<'a>(client: &HookClient<'a>, channel: &'a str) -> impl Serialize {
    static NOTHING: Bytes = Bytes::new();
    subscribe(client, channel, "", &NOTHING)
}

pub(super) fn publish<'a>(
    client: &HookClient<'a>,
    channel: &'a str,
    data: &'a Bytes,
) -> impl Serialize {
    subscribe(client, channel, "", data)
}

pub(super) fn rpc<'a>(
    client: &HookClient<'a>,
    method: &'a str,
    bytes: &'a Bytes,
) -> impl Serialize {
    Rpc {
        about: about(client),
        method,
        data: data(bytes),
    }
}

fn about<'a>(client: &HookClient<'a>) -> About<'a> {
    let (protocol, encoding) = match client.codec {
        Codec::Json => ("json", "json"),
        Codec::Protobuf => ("protobuf", "binary"),
    };
    let values = client.values.iter();
    let values = values.filter_map(|(name, value)| Some((name.as_str(), json(value)?)));
    About {
        client: client.client,
        transport: client.transport,
        protocol,
        encoding,
        user: client.user,
        meta: json(client.meta),
        values: values.collect(),
    }
}

fn data(bytes: &Bytes) -> Data<'_> {
    let data = json(bytes);
    let b64data = (data.is_none() && !bytes.is_empty()).then(|| STANDARD.encode(bytes));
    Data { data, b64data }
}

/// `bytes` as JSON, if they are valid JSON within the depth limit.
fn json(bytes: &Bytes) -> Option<&RawValue> {
    protocol::check_json(bytes).ok()?;
    serde_json::from_slice(bytes).ok()
}

fn is_empty(text: &str) -> bool {
    text.is_empty()
}
