//! The values of labels: closed sets, so that clients cannot create time series.

/// How a client is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// WebSocket without framing: an endpoint with `protocol: websocket`.
    Websocket,
    /// `/websocket` of a SockJS endpoint: WebSocket without SockJS frames.
    SockjsRaw,
    /// A SockJS session over WebSocket.
    SockjsWebsocket,
    /// A SockJS session over HTTP; its receivers may alternate between transports.
    SockjsHttp,
    /// A channel client over WebSocket, in JSON.
    ChannelsJson,
    /// A channel client over WebSocket, in Protobuf.
    ChannelsProtobuf,
    /// A channel client over an HTTP stream.
    ChannelsHttpStream,
    /// A channel client over server-sent events.
    ChannelsSse,
    /// A unidirectional channel client over server-sent events.
    ChannelsUniSse,
}

impl Transport {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Websocket => "websocket",
            Self::SockjsRaw => "sockjs_raw",
            Self::SockjsWebsocket => "sockjs_websocket",
            Self::SockjsHttp => "sockjs_http",
            Self::ChannelsJson => "channels_json",
            Self::ChannelsProtobuf => "channels_protobuf",
            Self::ChannelsHttpStream => "channels_http_stream",
            Self::ChannelsSse => "channels_sse",
            Self::ChannelsUniSse => "channels_uni_sse",
        }
    }

    /// The name of the transport in hook requests.
    pub(crate) const fn wire(self) -> &'static str {
        match self {
            Self::ChannelsJson | Self::ChannelsProtobuf => "websocket",
            Self::ChannelsHttpStream => "http_stream",
            Self::ChannelsSse => "sse",
            Self::ChannelsUniSse => "uni_sse",
            other => other.as_str(),
        }
    }
}

/// The result of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovered {
    /// The client got all missed publications.
    Hit,
    /// It had missed more than `channels.limits` allow, and was told that it cannot recover.
    OverLimit,
    /// Missed publications are no longer stored, and it was told that it cannot recover.
    Miss,
}

/// The result of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reload {
    Applied,
    Refused,
}

impl Reload {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "refused",
        }
    }
}

/// Why a message was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum DropReason {
    /// Its publish queue was full for `broker.publish_queue_wait`.
    QueueFull,
    /// It waited in its publish queue for `broker.publish_queue_wait` and Redis was still unavailable.
    QueueExpired,
    /// It was written to Redis without a reply: it may have been published, and a retry might duplicate it.
    Unacknowledged,
    /// Redis replied with an error.
    Refused,
    /// It is larger than its publish queue.
    TooLarge,
    /// The node stopped before it could be published.
    Stopping,
    /// It came from Redis and is larger than `broker.message_size`.
    Oversized,
    /// It is not UTF-8, and SockJS clients can only receive text.
    NotUtf8,
    /// It is not JSON, and the client uses the JSON protocol.
    NotJson,
    /// A channel client sent it to the application, which is not supported.
    NoReceiver,
    /// Too many join and leave events are pending.
    JoinLeaveFull,
    /// The queue of the hub's task is full.
    HubFull,
    /// It was received twice.
    Repeated,
    /// It is undecodable.
    Malformed,
    /// The queue of control messages is full.
    ControlFull,
    /// An undecodable message on the control channel.
    ControlMalformed,
}

impl DropReason {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "publish_queue_full",
            Self::QueueExpired => "publish_queue_expired",
            Self::Unacknowledged => "unacknowledged",
            Self::Refused => "refused",
            Self::TooLarge => "too_large",
            Self::Stopping => "stopping",
            Self::Oversized => "oversized",
            Self::NotUtf8 => "not_utf8",
            Self::NotJson => "not_json",
            Self::NoReceiver => "no_receiver",
            Self::JoinLeaveFull => "join_leave_full",
            Self::HubFull => "hub_full",
            Self::Repeated => "repeated",
            Self::Malformed => "malformed",
            Self::ControlFull => "control_full",
            Self::ControlMalformed => "control_malformed",
        }
    }
}

/// Why a connection or a request was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefuseReason {
    /// `limits.connections` is reached.
    Connections,
    /// `limits.memory` is almost reached.
    Memory,
    /// `limits.sessions` is reached.
    Sessions,
    /// `limits.sessions_per_address` is reached.
    SessionsPerAddress,
    /// `allowed_origins` of the endpoint does not list the Origin.
    Origin,
}

impl RefuseReason {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Memory => "memory",
            Self::Sessions => "sessions",
            Self::SessionsPerAddress => "sessions_per_address",
            Self::Origin => "origin",
        }
    }
}

/// The kind of a connection to Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Those of the publish queues.
    Publish,
    /// The one that receives publications.
    Subscribe,
}

impl Side {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
        }
    }
}

/// The kind of a hook request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Connect,
    Refresh,
    Subscribe,
    SubRefresh,
    Publish,
    Rpc,
    Lifecycle,
}

impl Hook {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Refresh => "refresh",
            Self::Subscribe => "subscribe",
            Self::SubRefresh => "sub_refresh",
            Self::Publish => "publish",
            Self::Rpc => "rpc",
            Self::Lifecycle => "lifecycle",
        }
    }
}

/// The outcome of a hook request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HookOutcome {
    /// The application has granted it.
    Granted,
    /// The application has rejected it.
    Refused,
    /// There was no valid response.
    Failed,
}

impl HookOutcome {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}
