//! Access control for channels: plain decisions by the namespace's options.

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

/// The client of a request, with respect to the channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) channel: &'a str,
    /// Empty: anonymous.
    pub(super) user: &'a str,
    /// Whether it is subscribed to the channel.
    pub(super) is_subscribed: bool,
}

/// The decision about a request that is not rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is allowed.
    Allowed,
    /// The client's token decides.
    Token,
    /// The application's backend decides.
    Hook,
}

/// Decides a request to subscribe.
///
/// # Errors
///
/// The client may not.
pub(super) fn subscribe(
    options: &ChannelOptions,
    subject: Subject<'_>,
    has_token: bool,
) -> Result<Decision, ErrorCode> {
    let names_users = options.user_limited && auth::names_users(subject.channel);
    match options.subscribe {
        SubscribeAccess::Nobody => Err(ErrorCode::PermissionDenied),
        _ if has_token => Ok(Decision::Token),
        _ if names_users => open(auth::is_let_in(subject.channel, subject.user)),
        SubscribeAccess::Token => Err(ErrorCode::PermissionDenied),
        SubscribeAccess::Hook => Ok(Decision::Hook),
        SubscribeAccess::Authenticated => open(!subject.user.is_empty()),
        SubscribeAccess::Anyone => Ok(Decision::Allowed),
    }
}

/// Decides a request to publish.
///
/// # Errors
///
/// The client may not.
pub(super) fn publish(
    options: &ChannelOptions,
    subject: Subject<'_>,
) -> Result<Decision, ErrorCode> {
    match options.publish {
        PublishAccess::Nobody => Err(ErrorCode::PermissionDenied),
        PublishAccess::Hook => Ok(Decision::Hook),
        PublishAccess::Subscribers => open(subject.is_subscribed),
        PublishAccess::Authenticated => open(!subject.user.is_empty()),
        PublishAccess::Anyone => Ok(Decision::Allowed),
    }
}

/// Decides a request for presence.
///
/// # Errors
///
/// The client may not, or the channel has no presence.
pub(super) fn presence(options: &ChannelOptions, subject: Subject<'_>) -> Result<(), ErrorCode> {
    if !options.presence {
        return Err(ErrorCode::NotAvailable);
    }
    read(options.read_presence, subject)
}

/// Decides a request for history.
///
/// # Errors
///
/// The client may not, or the channel has no history.
pub(super) fn history(options: &ChannelOptions, subject: Subject<'_>) -> Result<(), ErrorCode> {
    if options.history.is_none() {
        return Err(ErrorCode::NotAvailable);
    }
    read(options.read_history, subject)
}

/// Whether a client that uses `codec` can use a channel.
///
/// # Errors
///
/// It cannot; the message says which codec to use.
pub(super) fn codec(options: &ChannelOptions, codec: Codec) -> Result<(), ProtocolError> {
    match (options.data, codec) {
        (DataKind::Binary, Codec::Json) => Err(ProtocolError {
            message: "the channel carries binary data: connect with Protobuf".to_owned(),
            ..ErrorCode::NotAvailable.into()
        }),
        (DataKind::Binary, Codec::Protobuf) | (DataKind::Json, _) => Ok(()),
    }
}

/// Whether a request to subscribe uses supported features only.
///
/// # Errors
///
/// It does not.
pub(super) fn is_supported(request: &SubscribeRequest) -> Result<(), ErrorCode> {
    let extras = request.kind != 0 || request.tf.is_some() || !request.delta.is_empty();
    if extras {
        return Err(ErrorCode::NotAvailable);
    }
    Ok(())
}

/// Whether a publication has data that the channel can carry: JSON, or any bytes, also none.
///
/// # Errors
///
/// It uses a feature that is not supported, or its data is not of the channel's kind.
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

/// Whether the application's backend can parse what a client sends to it.
///
/// # Errors
///
/// The JSON is nested more deeply than common parsers allow.
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

fn read(access: ReadAccess, subject: Subject<'_>) -> Result<(), ErrorCode> {
    open(match access {
        ReadAccess::Nobody => false,
        ReadAccess::Subscribers => subject.is_subscribed,
        ReadAccess::Authenticated => !subject.user.is_empty(),
        ReadAccess::Anyone => true,
    })
    .map(drop)
}

fn open(may: bool) -> Result<Decision, ErrorCode> {
    if may {
        Ok(Decision::Allowed)
    } else {
        Err(ErrorCode::PermissionDenied)
    }
}

#[cfg(test)]
mod tests;
