//! Who may do what in a channel: plain decisions by the namespace's options.

use crate::auth;
use crate::config::ChannelOptions;
use crate::config::DataKind;
use crate::config::PublishAccess;
use crate::config::ReadAccess;
use crate::config::SubscribeAccess;
use crate::protocol;
use crate::protocol::BadData;
use crate::protocol::Codec;
use crate::protocol::ErrorCode;
use crate::protocol::ProtocolError;
use crate::protocol::PublishRequest;
use crate::protocol::SubscribeRequest;

/// What is known of a client that wants something in a channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) channel: &'a str,
    /// Empty: nobody in particular.
    pub(super) user: &'a str,
    /// Whether it hears the channel.
    pub(super) is_subscribed: bool,
}

/// What a decision is left to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To nothing: it may.
    Open,
    /// To the token that the client shows.
    Token,
    /// To the application's backend.
    Hook,
}

/// How a wish to subscribe is decided.
///
/// # Errors
///
/// It is, and the answer is no.
pub(super) fn subscribe(
    options: &ChannelOptions,
    asking: Asking<'_>,
    has_token: bool,
) -> Result<Way, ErrorCode> {
    let names_users = options.user_limited && auth::names_users(asking.channel);
    match options.subscribe {
        SubscribeAccess::Nobody => Err(ErrorCode::PermissionDenied),
        _ if has_token => Ok(Way::Token),
        _ if names_users => open(auth::is_let_in(asking.channel, asking.user)),
        SubscribeAccess::Token => Err(ErrorCode::PermissionDenied),
        SubscribeAccess::Hook => Ok(Way::Hook),
        SubscribeAccess::Authenticated => open(!asking.user.is_empty()),
        SubscribeAccess::Anyone => Ok(Way::Open),
    }
}

/// How a wish to publish is decided.
///
/// # Errors
///
/// It is, and the answer is no.
pub(super) fn publish(options: &ChannelOptions, asking: Asking<'_>) -> Result<Way, ErrorCode> {
    match options.publish {
        PublishAccess::Nobody => Err(ErrorCode::PermissionDenied),
        PublishAccess::Hook => Ok(Way::Hook),
        PublishAccess::Subscribers => open(asking.is_subscribed),
        PublishAccess::Authenticated => open(!asking.user.is_empty()),
        PublishAccess::Anyone => Ok(Way::Open),
    }
}

/// Whether a client may ask who is there.
///
/// # Errors
///
/// It may not, or nobody knows.
pub(super) fn presence(options: &ChannelOptions, asking: Asking<'_>) -> Result<(), ErrorCode> {
    if !options.presence {
        return Err(ErrorCode::NotAvailable);
    }
    read(options.read_presence, asking)
}

/// Whether a client may ask what was said.
///
/// # Errors
///
/// It may not, or nothing is kept.
pub(super) fn history(options: &ChannelOptions, asking: Asking<'_>) -> Result<(), ErrorCode> {
    if options.history.is_none() {
        return Err(ErrorCode::NotAvailable);
    }
    read(options.read_history, asking)
}

/// Whether a client that speaks `codec` can take part in a channel.
///
/// # Errors
///
/// It cannot, and is told what would be right.
pub(super) fn codec(options: &ChannelOptions, codec: Codec) -> Result<(), ProtocolError> {
    match (options.data, codec) {
        (DataKind::Binary, Codec::Json) => Err(ProtocolError {
            message: "the channel carries binary data: connect with Protobuf".to_owned(),
            ..ErrorCode::NotAvailable.into()
        }),
        (DataKind::Binary, Codec::Protobuf) | (DataKind::Json, _) => Ok(()),
    }
}

/// Whether a wish to subscribe is one that is served here.
///
/// # Errors
///
/// It asks for what is not offered.
pub(super) fn is_offered(request: &SubscribeRequest) -> Result<(), ErrorCode> {
    let extras = request.kind != 0 || request.tf.is_some() || !request.delta.is_empty();
    if extras {
        return Err(ErrorCode::NotAvailable);
    }
    Ok(())
}

/// Whether a publication is one that a channel can carry: JSON, or any bytes, of which there may be none.
///
/// # Errors
///
/// It asks for what is not offered, or is not what the channel carries.
pub(super) fn is_publishable(
    options: &ChannelOptions,
    request: &PublishRequest,
) -> Result<(), ProtocolError> {
    if request.kind != 0 {
        return Err(ErrorCode::NotAvailable.into());
    }
    match options.data {
        DataKind::Binary => Ok(()),
        DataKind::Json => protocol::check_json(&request.data).map_err(bad_data),
    }
}

/// Whether the application's backend can read what a client says to it.
///
/// # Errors
///
/// Its JSON is of a depth at which parsers give up.
pub(super) fn is_readable(codec: Codec, data: &[u8]) -> Result<(), ProtocolError> {
    if codec == Codec::Json && protocol::JSON_DEPTH_MAX < protocol::depth(data) {
        return Err(bad_data(BadData::TooDeep));
    }
    Ok(())
}

fn bad_data(bad: BadData) -> ProtocolError {
    ProtocolError {
        message: format!("bad request: {bad}"),
        ..ErrorCode::BadRequest.into()
    }
}

fn read(access: ReadAccess, asking: Asking<'_>) -> Result<(), ErrorCode> {
    open(match access {
        ReadAccess::Nobody => false,
        ReadAccess::Subscribers => asking.is_subscribed,
        ReadAccess::Authenticated => !asking.user.is_empty(),
        ReadAccess::Anyone => true,
    })
    .map(drop)
}

fn open(may: bool) -> Result<Way, ErrorCode> {
    if may {
        Ok(Way::Open)
    } else {
        Err(ErrorCode::PermissionDenied)
    }
}

#[cfg(test)]
mod tests;
