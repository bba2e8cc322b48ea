//! The values that labels may have: closed sets, so that no client can make up a time series.

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
    /// A channel client that is told over a stream of lines.
    ChannelsHttpStream,
    /// A channel client that is told by server-sent events.
    ChannelsSse,
    /// The same, of one that only listens.
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

    /// What goes over which wire, as the application's backend is told it.
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

/// What came of a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovered {
    /// The client got everything that it had missed.
    Hit,
    /// It had missed more than `channels.limits` allow, and was told so.
    OverLimit,
    /// What it had missed is no longer known, and it was told so.
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

/// Why a message will not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum DropReason {
    /// No room came up in its lane within `broker.lane_wait`.
    LaneFull,
    /// It waited in its lane for `broker.lane_wait` and Redis was still away.
    LaneExpired,
    /// It was written to Redis and no answer came: it may have arrived, a retry might double it.
    Unacknowledged,
    /// Redis answered with an error.
    Refused,
    /// It is larger than its lane.
    TooLarge,
    /// The node stopped before it could be published.
    Stopping,
    /// It came from Redis and is larger than `broker.message_size`.
    Oversized,
    /// It is not UTF-8, and a SockJS client can only take text.
    NotUtf8,
    /// It is not JSON, and the client speaks JSON.
    NotJson,
    /// A channel client said it to the application, and nobody takes it.
    NoReceiver,
    /// Too many who come and go wait to be told.
    NewsFull,
    /// The hub's task does not keep up, and too much waits for it.
    HubFull,
    /// It came a second time.
    Repeated,
    /// No node can have published it.
    Malformed,
    /// Too many messages of other nodes wait.
    ControlFull,
    /// It came on this node's own channel, and no node can have sent it.
    ControlMalformed,
}

impl DropReason {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::LaneFull => "lane_full",
            Self::LaneExpired => "lane_expired",
            Self::Unacknowledged => "unacknowledged",
            Self::Refused => "refused",
            Self::TooLarge => "too_large",
            Self::Stopping => "stopping",
            Self::Oversized => "oversized",
            Self::NotUtf8 => "not_utf8",
            Self::NotJson => "not_json",
            Self::NoReceiver => "no_receiver",
            Self::NewsFull => "news_full",
            Self::HubFull => "hub_full",
            Self::Repeated => "repeated",
            Self::Malformed => "malformed",
            Self::ControlFull => "control_full",
            Self::ControlMalformed => "control_malformed",
        }
    }
}

/// Why a connection or a request was turned away.
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
    /// `allowed_origins` of the endpoint does not name the Origin.
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

/// Which connections to Redis are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Those of the lanes.
    Publish,
    /// The one that brings publications.
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

/// What the application's backend is asked about.
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

/// How a question to the application's backend ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HookOutcome {
    /// The application said yes.
    Granted,
    /// The application said no.
    Refused,
    /// There was no answer that could be used.
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
