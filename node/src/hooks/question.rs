//! What the backend is asked, as JSON has it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::hooks::headers::ClientHeaders;
use crate::protocol;
use crate::protocol::Codec;

/// About whom the backend is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker<'a> {
    /// The id of its connection.
    pub(crate) client: &'a str,
    /// What it is connected by: `websocket`, `http_stream` ...
    pub(crate) transport: &'static str,
    /// What it speaks.
    pub(crate) codec: Codec,
    /// Its user; empty: nobody, or not known yet.
    pub(crate) user: &'a str,
    /// What the application said of the connection for the hooks; empty: nothing.
    pub(crate) meta: &'a Bytes,
    /// Session values that go along, in JSON, by their names.
    pub(crate) values: &'a [(String, Bytes)],
    /// Of its request, and of its `connect`.
    pub(crate) headers: [&'a ClientHeaders; 2],
}

/// What a client says of itself when it connects.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connecting<'a> {
    /// Of the program; empty: unknown.
    pub(crate) name: &'a str,
    /// Of the program; empty: unknown.
    pub(crate) version: &'a str,
    /// For the application; empty: nothing.
    pub(crate) data: &'a Bytes,
    /// What it wants to hear from the start.
    pub(crate) channels: &'a [String],
}

/// Fields that every question has.
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

/// Bytes of a client: `data` if they are JSON, else `b64data`.
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

pub(super) fn connect<'a>(asker: &Asker<'a>, connecting: &Connecting<'a>) -> impl Serialize {
    Connect {
        about: about(asker),
        name: connecting.name,
        version: connecting.version,
        data: data(connecting.data),
        channels: connecting.channels,
    }
}

pub(super) fn refresh<'a>(asker: &Asker<'a>) -> impl Serialize {
    about(asker)
}

pub(super) fn subscribe<'a>(
    asker: &Asker<'a>,
    channel: &'a str,
    token: &'a str,
    bytes: &'a Bytes,
) -> impl Serialize {
    let about = about(asker);
    let data = data(bytes);
    Channel {
        about,
        channel,
        token,
        data,
    }
}

pub(super) fn sub_refresh<'a>(asker: &Asker<'a>, channel: &'a str) -> impl Serialize {
    static NOTHING: Bytes = Bytes::new();
    subscribe(asker, channel, "", &NOTHING)
}

pub(super) fn publish<'a>(asker: &Asker<'a>, channel: &'a str, data: &'a Bytes) -> impl Serialize {
    subscribe(asker, channel, "", data)
}

pub(super) fn rpc<'a>(asker: &Asker<'a>, method: &'a str, bytes: &'a Bytes) -> impl Serialize {
    Rpc {
        about: about(asker),
        method,
        data: data(bytes),
    }
}

fn about<'a>(asker: &Asker<'a>) -> About<'a> {
    let (protocol, encoding) = match asker.codec {
        Codec::Json => ("json", "json"),
        Codec::Protobuf => ("protobuf", "binary"),
    };
    let values = asker.values.iter();
    let values = values.filter_map(|(name, value)| Some((name.as_str(), json(value)?)));
    About {
        client: asker.client,
        transport: asker.transport,
        protocol,
        encoding,
        user: asker.user,
        meta: json(asker.meta),
        values: values.collect(),
    }
}

fn data(bytes: &Bytes) -> Data<'_> {
    let data = json(bytes);
    let b64data = (data.is_none() && !bytes.is_empty()).then(|| STANDARD.encode(bytes));
    Data { data, b64data }
}

/// `bytes` as JSON, if they are JSON that any parser reads.
fn json(bytes: &Bytes) -> Option<&RawValue> {
    protocol::check_json(bytes).ok()?;
    serde_json::from_slice(bytes).ok()
}

fn is_empty(text: &str) -> bool {
    text.is_empty()
}
