//! What nodes say to each other, one by one: questions, orders, and the answers to them.
//!
//! Protobuf, so that nodes of two versions understand each other while one takes over from the other: an
//! unknown field is passed over, and a body that this version does not know is answered by nobody.
//!
//! Anybody who may publish in Redis may write here, so nothing is believed before it is checked.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use crate::auth::grant::Overrides;
use crate::cluster::directory::Given;
use crate::cluster::directory::Lifetime;
use crate::cluster::directory::Order;
use crate::cluster::directory::Since;
use crate::cluster::directory::SubscribeOrder;
use crate::cluster::directory::Target;
use crate::protocol::channel::BadChannelName;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::ClientId;
use crate::protocol::instance::Instance;
use crate::protocol::instance::Unnamed;

/// One message of a node to another.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    /// Who says it, and gets the answer.
    pub(super) from: Instance,
    /// Which question it is, or which it answers.
    pub(super) number: u64,
    pub(super) body: Body,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Body {
    Question(Question),
    Answer(Answer),
}

/// What a node is asked to do or to say.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Question {
    /// Hand this to clients.
    Give(Target, Order),
    /// What do you hold?
    Counts,
    /// Which channels have subscribers on you? Those that match the pattern; empty: all.
    Channels(String),
}

/// What a node answers.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Answer {
    Given(Given),
    Counts(Counts),
    Channels(Channels),
}

/// What a node holds.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Counts {
    /// Connected clients.
    #[prost(uint64, tag = "1")]
    pub(crate) clients: u64,
    /// Different users among them.
    #[prost(uint64, tag = "2")]
    pub(crate) users: u64,
    /// Channels with a subscriber.
    #[prost(uint64, tag = "3")]
    pub(crate) channels: u64,
    /// Subscriptions of clients to channels.
    #[prost(uint64, tag = "4")]
    pub(crate) subscriptions: u64,
    /// How long the process runs, in seconds.
    #[prost(uint64, tag = "5")]
    pub(crate) uptime: u64,
    /// Which version it is.
    #[prost(string, tag = "6")]
    pub(crate) version: String,
}

/// The channels of a node.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Channels {
    /// How many subscribers each has.
    #[prost(btree_map = "string, uint64", tag = "1")]
    pub(crate) subscribers: BTreeMap<String, u64>,
    /// There are more than one answer holds.
    #[prost(bool, tag = "2")]
    pub(crate) is_cut: bool,
}

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("not a message between nodes")]
    Undecodable(#[from] prost::DecodeError),
    #[error("not the name of an instance or a client")]
    Unnamed(#[from] Unnamed),
    #[error("not the name of a channel")]
    Channel(#[from] BadChannelName),
    /// Of a newer version, or incomplete.
    #[error("a message without a body that this version knows")]
    Unknown,
}

mod wire {
    //! The messages as they are encoded.

    use bytes::Bytes;

    use super::Channels;
    use super::Counts;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Message {
        #[prost(string, tag = "1")]
        pub(super) from: String,
        #[prost(uint64, tag = "2")]
        pub(super) number: u64,
        #[prost(oneof = "Body", tags = "3, 4, 5, 6, 7, 8")]
        pub(super) body: Option<Body>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Body {
        #[prost(message, tag = "3")]
        Give(Give),
        #[prost(message, tag = "4")]
        AskCounts(Nothing),
        #[prost(string, tag = "5")]
        AskChannels(String),
        #[prost(message, tag = "6")]
        Given(Given),
        #[prost(message, tag = "7")]
        Counts(Counts),
        #[prost(message, tag = "8")]
        Channels(Channels),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Nothing {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Given {
        #[prost(uint32, tag = "1")]
        pub(super) taken: u32,
        #[prost(uint32, tag = "2")]
        pub(super) busy: u32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Give {
        /// Missing: whoever the client's user is.
        #[prost(string, optional, tag = "1")]
        pub(super) user: Option<String>,
        /// Empty: all clients of the user.
        #[prost(string, tag = "2")]
        pub(super) client: String,
        #[prost(string, repeated, tag = "3")]
        pub(super) except: Vec<String>,
        #[prost(oneof = "Order", tags = "4, 5, 6, 7, 8")]
        pub(super) order: Option<Order>,
        /// Instead of user and client.
        #[prost(message, optional, tag = "9")]
        pub(super) session: Option<Session>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Session {
        /// Empty: whoever the client's user is.
        #[prost(string, tag = "1")]
        pub(super) user: String,
        #[prost(string, tag = "2")]
        pub(super) session: String,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Order {
        #[prost(message, tag = "4")]
        Disconnect(Ending),
        #[prost(message, tag = "5")]
        Unsubscribe(Ending),
        #[prost(message, tag = "6")]
        Subscribe(Subscribe),
        #[prost(message, tag = "7")]
        Refresh(Refresh),
        #[prost(bytes = "bytes", tag = "8")]
        Input(Bytes),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Ending {
        #[prost(uint32, tag = "1")]
        pub(super) code: u32,
        #[prost(string, tag = "2")]
        pub(super) reason: String,
        /// Of a subscription; else empty.
        #[prost(string, tag = "3")]
        pub(super) channel: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Refresh {
        #[prost(bool, tag = "1")]
        pub(super) expired: bool,
        /// UNIX seconds; 0: never.
        #[prost(uint64, tag = "2")]
        pub(super) until: u64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Subscribe {
        #[prost(string, tag = "1")]
        pub(super) channel: String,
        #[prost(bytes = "bytes", tag = "2")]
        pub(super) info: Bytes,
        #[prost(bytes = "bytes", tag = "3")]
        pub(super) data: Bytes,
        #[prost(message, optional, tag = "4")]
        pub(super) since: Option<Since>,
        #[prost(bool, optional, tag = "5")]
        pub(super) presence: Option<bool>,
        #[prost(bool, optional, tag = "6")]
        pub(super) join_leave: Option<bool>,
        #[prost(bool, optional, tag = "7")]
        pub(super) force_push_join_leave: Option<bool>,
        #[prost(bool, optional, tag = "8")]
        pub(super) force_positioning: Option<bool>,
        #[prost(bool, optional, tag = "9")]
        pub(super) force_recovery: Option<bool>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Since {
        #[prost(uint64, tag = "1")]
        pub(super) offset: u64,
        #[prost(string, tag = "2")]
        pub(super) epoch: String,
    }
}

impl Message {
    pub(super) fn encode(self) -> Bytes {
        let body = match self.body {
            Body::Question(Question::Give(target, order)) => {
                wire::Body::Give(print_give(target, order))
            }
            Body::Question(Question::Counts) => wire::Body::AskCounts(wire::Nothing {}),
            Body::Question(Question::Channels(pattern)) => wire::Body::AskChannels(pattern),
            Body::Answer(Answer::Given(Given { taken, busy })) => {
                wire::Body::Given(wire::Given { taken, busy })
            }
            Body::Answer(Answer::Counts(counts)) => wire::Body::Counts(counts),
            Body::Answer(Answer::Channels(channels)) => wire::Body::Channels(channels),
        };
        let message = wire::Message {
            from: self.from.to_string(),
            number: self.number,
            body: Some(body),
        };
        message.encode_to_vec().into()
    }

    /// Reads what another node, or anybody, has written.
    ///
    /// # Errors
    ///
    /// [`Malformed`]; nothing of it counts.
    pub(super) fn decode(data: Bytes) -> Result<Self, Malformed> {
        let message = wire::Message::decode(data)?;
        let body = match message.body.ok_or(Malformed::Unknown)? {
            wire::Body::Give(give) => {
                let (target, order) = parse_give(give)?;
                Body::Question(Question::Give(target, order))
            }
            wire::Body::AskCounts(_) => Body::Question(Question::Counts),
            wire::Body::AskChannels(pattern) => Body::Question(Question::Channels(pattern)),
            wire::Body::Given(wire::Given { taken, busy }) => {
                Body::Answer(Answer::Given(Given { taken, busy }))
            }
            wire::Body::Counts(counts) => Body::Answer(Answer::Counts(counts)),
            wire::Body::Channels(channels) => Body::Answer(Answer::Channels(channels)),
        };
        Ok(Self {
            from: Instance::parse(&message.from)?,
            number: message.number,
            body,
        })
    }
}

fn print_give(target: Target, order: Order) -> wire::Give {
    let mut give = wire::Give {
        order: Some(print_order(order)),
        ..wire::Give::default()
    };
    match target {
        Target::Client(client) => give.client = client.to_string(),
        Target::ClientOf { user, client } => {
            give.user = Some(user);
            give.client = client.to_string();
        }
        Target::Session { user, session } => {
            let session = session.to_string();
            give.session = Some(wire::Session { user, session });
        }
        Target::User { user, except } => {
            give.user = Some(user);
            give.except = except.iter().map(ToString::to_string).collect();
        }
    }
    give
}

fn print_order(order: Order) -> wire::Order {
    match order {
        Order::Disconnect { code, reason } => wire::Order::Disconnect(wire::Ending {
            code,
            reason,
            channel: String::new(),
        }),
        Order::Unsubscribe {
            channel,
            code,
            reason,
        } => wire::Order::Unsubscribe(wire::Ending {
            code,
            reason,
            channel: channel.to_string(),
        }),
        Order::Subscribe(subscribe) => wire::Order::Subscribe(wire::Subscribe {
            channel: subscribe.channel.to_string(),
            info: subscribe.info,
            data: subscribe.data,
            since: subscribe.recover_since.map(|since| wire::Since {
                offset: since.offset,
                epoch: since.epoch,
            }),
            presence: subscribe.overrides.presence,
            join_leave: subscribe.overrides.join_leave,
            force_push_join_leave: subscribe.overrides.force_push_join_leave,
            force_positioning: subscribe.overrides.force_positioning,
            force_recovery: subscribe.overrides.force_recovery,
        }),
        Order::Refresh(lifetime) => wire::Order::Refresh(match lifetime {
            Lifetime::Expired => wire::Refresh {
                expired: true,
                until: 0,
            },
            Lifetime::Until(until) => wire::Refresh {
                expired: false,
                until,
            },
            Lifetime::Endless => wire::Refresh {
                expired: false,
                until: 0,
            },
        }),
        Order::Input(data) => wire::Order::Input(data),
    }
}

fn parse_give(give: wire::Give) -> Result<(Target, Order), Malformed> {
    let client = match give.client.as_str() {
        "" => None,
        client => Some(ClientId::parse(client)?),
    };
    let target = match (give.session, give.user, client) {
        (Some(of), _, _) => Target::Session {
            session: ClientId::parse(&of.session)?,
            user: of.user,
        },
        (None, None, Some(client)) => Target::Client(client),
        (None, Some(user), Some(client)) => Target::ClientOf { user, client },
        (None, Some(user), None) => {
            let except = give.except.iter().map(|client| ClientId::parse(client));
            let except = except.collect::<Result<_, _>>()?;
            Target::User { user, except }
        }
        (None, None, None) => return Err(Malformed::Unknown),
    };
    let order = match give.order.ok_or(Malformed::Unknown)? {
        wire::Order::Disconnect(ending) => Order::Disconnect {
            code: ending.code,
            reason: ending.reason,
        },
        wire::Order::Unsubscribe(ending) => Order::Unsubscribe {
            channel: ChannelName::new(&ending.channel)?,
            code: ending.code,
            reason: ending.reason,
        },
        wire::Order::Subscribe(subscribe) => Order::Subscribe(Box::new(SubscribeOrder {
            channel: ChannelName::new(&subscribe.channel)?,
            info: subscribe.info,
            data: subscribe.data,
            recover_since: subscribe.since.map(|since| Since {
                offset: since.offset,
                epoch: since.epoch,
            }),
            overrides: Overrides {
                presence: subscribe.presence,
                join_leave: subscribe.join_leave,
                force_push_join_leave: subscribe.force_push_join_leave,
                force_positioning: subscribe.force_positioning,
                force_recovery: subscribe.force_recovery,
            },
        })),
        wire::Order::Refresh(refresh) => Order::Refresh(match refresh.until {
            _ if refresh.expired => Lifetime::Expired,
            0 => Lifetime::Endless,
            until => Lifetime::Until(until),
        }),
        wire::Order::Input(data) => Order::Input(data),
    };
    Ok((target, order))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn messages() -> Vec<Message> {
        let from = Instance::random();
        let client = ClientId::random(from);
        let user = || "ann".to_owned();
        let channel = || ChannelName::new("a").unwrap();
        let reason = || "because".to_owned();
        let targets = [
            Target::Client(client),
            Target::ClientOf {
                user: user(),
                client,
            },
            Target::Session {
                user: String::new(),
                session: client,
            },
            Target::User {
                user: user(),
                except: vec![client],
            },
            Target::User {
                user: String::new(),
                except: Vec::new(),
            },
        ];
        let orders = [
            Order::Disconnect {
                code: 3000,
                reason: reason(),
            },
            Order::Unsubscribe {
                channel: channel(),
                code: 2500,
                reason: reason(),
            },
            Order::Subscribe(Box::new(SubscribeOrder {
                channel: channel(),
                info: Bytes::from_static(b"{}"),
                data: Bytes::from_static(b"1"),
                recover_since: Some(Since {
                    offset: 7,
                    epoch: "e".to_owned(),
                }),
                overrides: Overrides {
                    presence: Some(false),
                    ..Overrides::default()
                },
            })),
            Order::Refresh(Lifetime::Expired),
            Order::Refresh(Lifetime::Endless),
            Order::Refresh(Lifetime::Until(1)),
            Order::Input(Bytes::from_static(b"\xff")),
        ];
        let give = |target: &Target, order: &Order| {
            Body::Question(Question::Give(target.clone(), order.clone()))
        };
        let mut bodies = vec![
            Body::Question(Question::Counts),
            Body::Question(Question::Channels("a*".to_owned())),
            Body::Answer(Answer::Given(Given { taken: 1, busy: 2 })),
            Body::Answer(Answer::Counts(Counts {
                clients: 1,
                ..Counts::default()
            })),
            Body::Answer(Answer::Channels(Channels {
                subscribers: BTreeMap::from([("a".to_owned(), 3)]),
                is_cut: true,
            })),
        ];
        bodies.extend(targets.iter().map(|target| give(target, &orders[0])));
        bodies.extend(orders.iter().map(|order| give(&targets[0], order)));
        let message = |body| Message {
            from,
            number: 9,
            body,
        };
        bodies.into_iter().map(message).collect()
    }

    #[test]
    fn every_message_reads_back() {
        for message in messages() {
            let data = message.clone().encode();
            assert_eq!(Message::decode(data).unwrap(), message);
        }
    }

    #[test]
    fn a_message_that_is_cut_off_or_changed_is_an_error_or_another_message() {
        for message in messages() {
            let data = message.encode();
            for end in 0..data.len() {
                let _ = Message::decode(data.slice(..end));
            }
            for index in 0..data.len() {
                let mut changed = data.to_vec();
                changed[index] ^= 0x41;
                let _ = Message::decode(changed.into());
            }
        }
    }

    #[test]
    fn a_body_of_a_later_version_is_an_error() {
        let from = Instance::random().to_string();
        let message = wire::Message {
            from,
            number: 1,
            body: None,
        };
        let decoded = Message::decode(message.encode_to_vec().into());
        assert!(matches!(decoded, Err(Malformed::Unknown)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(data.into());
        }
    }
}
