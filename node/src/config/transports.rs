//! The transports that an endpoint can switch off one by one.

/// The wires of channel clients that can be switched off one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelTransport {
    /// In JSON or in Protobuf.
    Websocket,
    /// A streamed response, with requests beside it.
    HttpStream,
    /// Server-sent events, with requests beside them.
    Sse,
    /// Server-sent events alone.
    UniSse,
}

/// The wires of SockJS that can be switched off one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SockjsTransport {
    /// Both WebSockets: with SockJS frames and raw.
    Websocket,
    XhrStreaming,
    Eventsource,
    Htmlfile,
    Xhr,
    Jsonp,
}
