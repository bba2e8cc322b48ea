//! Which clients there are, and which of them publish.

use std::{collections::BTreeMap, fmt};

/// What a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A plain WebSocket of a relay endpoint.
    Relay,
    /// SockJS over WebSocket, on the same channels.
    SockjsWebSocket,
    /// SockJS by xhr-polling, on the same channels.
    SockjsPolling,
    /// SockJS by xhr-streaming, on the same channels.
    SockjsStreaming,
    /// Channels with a history, over WebSocket.
    History,
    /// Channels without one, over WebSocket.
    NoHistory,
}

impl Kind {
    /// Whether it has a connection that can be handed off.
    #[must_use]
    pub fn is_websocket(self) -> bool {
        !matches!(self, Self::SockjsPolling | Self::SockjsStreaming)
    }

    fn stream(self) -> Stream {
        match self {
            Self::History => Stream::History,
            Self::NoHistory => Stream::NoHistory,
            _ => Stream::Relay,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relay => "relay, WebSocket",
            Self::SockjsWebSocket => "relay, SockJS over WebSocket",
            Self::SockjsPolling => "relay, SockJS xhr-polling",
            Self::SockjsStreaming => "relay, SockJS xhr-streaming",
            Self::History => "channels with history",
            Self::NoHistory => "channels without history",
        })
    }
}

/// Twenty clients in turn: their shares.
const MIX: [Kind; 20] = {
    use Kind::{History, NoHistory, Relay, SockjsPolling, SockjsStreaming, SockjsWebSocket};
    [
        Relay,
        History,
        Relay,
        NoHistory,
        SockjsWebSocket,
        Relay,
        History,
        Relay,
        NoHistory,
        SockjsPolling,
        Relay,
        History,
        Relay,
        NoHistory,
        SockjsWebSocket,
        Relay,
        History,
        Relay,
        NoHistory,
        SockjsStreaming,
    ]
};

/// The kinds of channels in turn: as many as their clients are.
const STREAMS: [Stream; 5] = [
    Stream::Relay,
    Stream::History,
    Stream::Relay,
    Stream::NoHistory,
    Stream::Relay,
];

/// At least one of each kind.
pub const CHANNELS_MIN: usize = STREAMS.len();

/// Of so many relay channels, one is published to by a client of SockJS.
const SOCKJS_PUBLISHERS: usize = 6;

/// What a channel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// That of two relay endpoints, of which one is for SockJS. A client publishes.
    Relay,
    /// With a history. The application publishes through the server API.
    History,
    /// Without one. A client publishes.
    NoHistory,
}

/// One channel.
#[derive(Clone, Debug)]
pub struct Channel {
    /// Its name.
    pub name: String,
    /// What it is.
    pub stream: Stream,
}

impl Channel {
    /// The channel of this number.
    #[must_use]
    pub fn new(number: usize) -> Self {
        let stream = STREAMS[number % STREAMS.len()];
        let name = match stream {
            Stream::Relay => format!("relay-{number}"),
            Stream::History => format!("past:{number}"),
            Stream::NoHistory => format!("live:{number}"),
        };
        Self { name, stream }
    }
}

/// How a client is connected to the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Not at all secured.
    Plain,
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// One client.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Which one.
    pub number: usize,
    /// What it is.
    pub kind: Kind,
    /// The channel that it is on.
    pub channel: usize,
    /// Whether it publishes there.
    pub publishes: bool,
    /// How it is connected.
    pub security: Security,
}

/// All of them.
#[derive(Debug)]
pub struct Population {
    /// By number.
    pub channels: Vec<Channel>,
    /// By number.
    pub members: Vec<Member>,
}

impl Population {
    /// So many clients on so many channels.
    #[must_use]
    pub fn new(clients: usize, channels: usize) -> Self {
        let channels: Vec<Channel> = (0..channels).map(Channel::new).collect();
        let of = |stream: Stream| -> Vec<usize> {
            let numbers = 0..channels.len();
            let of_stream = numbers.filter(|number| channels[*number].stream == stream);
            of_stream.collect()
        };
        let places = [Stream::Relay, Stream::History, Stream::NoHistory].map(of);
        let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
        let mut members: Vec<Member> = (0..clients)
            .map(|number| {
                let kind = MIX[number % MIX.len()];
                let count = counts.entry(kind).or_default();
                let places = &places[kind.stream() as usize];
                let channel = places[*count % places.len()];
                // Half of the WebSockets, of each kind and on each channel.
                let security = match (*count + *count / places.len()) % 4 {
                    0 if kind.is_websocket() => Security::Tls12,
                    2 if kind.is_websocket() => Security::Tls13,
                    _ => Security::Plain,
                };
                *count += 1;
                Member {
                    number,
                    kind,
                    channel,
                    publishes: false,
                    security,
                }
            })
            .collect();
        for (number, channel) in channels.iter().enumerate() {
            let first = |wanted: Kind, members: &[Member]| {
                let mut members = members.iter();
                members.position(|member| member.kind == wanted && member.channel == number)
            };
            let by_sockjs = number % SOCKJS_PUBLISHERS == 0;
            let publisher = match channel.stream {
                Stream::History => None,
                Stream::NoHistory => first(Kind::NoHistory, &members),
                Stream::Relay => by_sockjs
                    .then(|| first(Kind::SockjsWebSocket, &members))
                    .flatten()
                    .or_else(|| first(Kind::Relay, &members)),
            };
            if let Some(publisher) = publisher {
                members[publisher].publishes = true;
            }
        }
        Self { channels, members }
    }

    /// How many there are of each kind.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        let mut counts = BTreeMap::new();
        for member in &self.members {
            *counts.entry(member.kind).or_default() += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_are_those_of_the_issue_and_each_channel_has_one_publisher() {
        for (clients, channels) in [(9_000, 100), (240, 30), (60, 10)] {
            let population = Population::new(clients, channels);
            let counts = population.counts();
            let share = |kind| counts[&kind] * 100 / clients;
            assert_eq!(
                [
                    Kind::Relay,
                    Kind::History,
                    Kind::NoHistory,
                    Kind::SockjsWebSocket
                ]
                .map(share),
                [40, 20, 20, 10]
            );
            let over_tls = population.members.iter();
            let over_tls = over_tls.filter(|member| member.security != Security::Plain);
            let websockets = clients * 9 / 10;
            assert!(over_tls.count().abs_diff(websockets / 2) <= websockets / 20);
            for (number, channel) in population.channels.iter().enumerate() {
                let members = population.members.iter();
                let there = members.filter(|member| member.channel == number);
                let publishers = there.clone().filter(|member| member.publishes).count();
                let expected = usize::from(channel.stream != Stream::History);
                assert_eq!(publishers, expected, "{channel:?}");
                assert!(there.count() != 0, "{channel:?}");
            }
        }
    }
}
