//! What is served under one path, and by which rules.

use std::time::Duration;

use crate::config::ChannelTransport;
use crate::config::SockjsTransport;
use crate::config::settings;
use crate::protocol::channel::ChannelName;

/// One path of the node and the rules for its clients.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Endpoint {
    /// Begins with `/` and does not end with one.
    pub(crate) path: String,
    pub(crate) protocol: Protocol,
    pub(crate) mode: Mode,
    /// Clients only listen; one that sends is disconnected.
    pub(crate) read_only: bool,
    /// The largest message that a client may send; of a channel client, the largest command.
    pub(crate) message_bytes_max: usize,
    /// How fast one client may send; `None`: as fast as it can.
    pub(crate) publish_rate: Option<PublishRate>,
    /// What may wait for one client that reads slowly.
    pub(crate) outbox_bytes_max: usize,
    /// From which pages browsers may connect.
    pub(crate) allowed_origins: AllowedOrigins,
    /// For every WebSocket of this endpoint, raw or SockJS.
    pub(crate) ping: Ping,
}

impl Endpoint {
    /// The largest WebSocket message, or what a request may say: one message, or several commands of a channel client.
    pub(crate) fn received_bytes_max(&self) -> usize {
        match &self.protocol {
            Protocol::Channels(channels) => channels.commands_bytes_max,
            Protocol::Sockjs(_) | Protocol::Websocket => self.message_bytes_max,
        }
    }

    /// The setting of the endpoint that says [`Self::received_bytes_max`].
    pub(crate) fn received_setting(&self) -> &'static str {
        match &self.protocol {
            Protocol::Channels(_) => "commands_size",
            Protocol::Sockjs(_) | Protocol::Websocket => "message_size",
        }
    }
}

/// What clients speak.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Protocol {
    Sockjs(Sockjs),
    /// WebSocket, one message for each publication.
    Websocket,
    /// Centrifugo's client protocol.
    Channels(ChannelsEndpoint),
}

/// Where a client's messages go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// To everyone on one channel, on all nodes.
    Relay { channel: ChannelName },
    /// Back to the client.
    Echo,
    /// Nowhere: the client is disconnected at once.
    Close,
    /// Nowhere: the response has as many `x` as the message requests.
    Amplify,
    /// Nowhere: the client gets `tick!` once a second.
    Ticker,
    /// To the channels that the client names, see [`Protocol::Channels`].
    Channels,
}

/// An endpoint's own settings with `mode: channels`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChannelsEndpoint {
    /// Never empty, without duplicates.
    pub(crate) transports: Vec<ChannelTransport>,
    /// The most that a client may send at once: several commands, each of at most `message_bytes_max`.
    pub(crate) commands_bytes_max: usize,
    /// How fast a client may send commands other than publications; `None`: the default, see
    /// [`command_rate`](Self::command_rate).
    pub(crate) command_rate: Option<PublishRate>,
}

impl ChannelsEndpoint {
    /// How fast a client may send commands that may have so many channels. By default the burst has room for a client that
    /// comes back to all of them and asks for the history and the presence of each.
    pub(crate) fn command_rate(&self, channels_per_client: usize) -> PublishRate {
        let channels = u32::try_from(channels_per_client).unwrap_or(u32::MAX);
        self.command_rate.unwrap_or(PublishRate {
            per_second: settings::COMMANDS_PER_SECOND,
            burst: channels
                .saturating_mul(settings::COMMANDS_PER_CHANNEL)
                .max(settings::COMMANDS_AT_ONCE),
        })
    }

    /// Whether clients may use `transport`.
    pub(crate) fn allows(&self, transport: ChannelTransport) -> bool {
        self.transports.contains(&transport)
    }
}

/// SockJS's own settings.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sockjs {
    /// Never empty, without duplicates.
    pub(crate) transports: Vec<SockjsTransport>,
    /// How often a waiting receiver gets an `h` frame.
    pub(crate) heartbeat: Duration,
    /// How long a session may go without a receiver before it is closed.
    pub(crate) disconnect_delay: Duration,
    /// The bytes of a streaming response before it ends and the client makes a new request.
    pub(crate) response_bytes_max: usize,
    /// Whether a JSESSIONID cookie is set, for balancers that stick to it.
    pub(crate) cookie_needed: bool,
    /// The address of sockjs-client for the iframe page; `None`: the page is not served.
    pub(crate) client_script: Option<String>,
}

impl Sockjs {
    /// Whether clients may use `transport`.
    pub(crate) fn allows(&self, transport: SockjsTransport) -> bool {
        self.transports.contains(&transport)
    }
}

/// A token bucket: `per_second` on the long run, `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublishRate {
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
}

/// When an idle WebSocket is pinged, and when it times out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ping {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

/// From which pages browsers may connect. A client that sends no Origin is no browser and may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AllowedOrigins {
    /// The page came from the host that the request names.
    Same,
    /// Any page.
    Any,
    /// These, in lower case, without a default port: `https://chat.example`.
    Listed(Vec<String>),
}
