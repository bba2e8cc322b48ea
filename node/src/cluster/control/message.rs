//! The encoding of messages between nodes: requests, commands, and the responses to them.
//!
//! Protobuf, so that nodes of two versions understand each other during an upgrade: an unknown field is
//! ignored, and a body that this version does not know gets no response.
//!
//! Every client that may publish in Redis may write here, so all input is validated.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use crate::auth::grant::Overrides;
use crate::cluster::control::CutAt;
use crate::cluster::directory::CommandResult;
use crate::cluster::directory::ControlCommand;
use crate::cluster::directory::Lifetime;
use crate::cluster::directory::Since;
use crate::cluster::directory::SubscribeCommand;
use crate::cluster::directory::Target;
use crate::protocol::Position;
use crate::protocol::channel::BadChannelName;
use crate::protocol::channel::ChannelName;
use crate::protocol::handoff::Token;
use crate::protocol::instance::ClientId;
use crate::protocol::instance::Instance;
use crate::protocol::instance::Unnamed;

/// One message of a node to another.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    /// The sender, which receives the response.
    pub(super) from: Instance,
    /// The number of the request, the same in its response.
    pub(super) number: u64,
    pub(super) body: Body,
}

/// The content of a message.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Body {
    Request(Request),
    Response(Response),
}

/// What a node is requested to do or to report.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Request {
    /// Execute this command on clients.
    Command(Target, ControlCommand),
    /// Report the counts of clients and channels.
    Counts,
    /// Report the channels with subscribers that match the pattern; empty: all.
    Channels(String),
    /// Prepare the client of this snapshot for the edge's connection that waits with this token.
    Handoff(Token, Bytes),
    /// Continue the client that was prepared for this token, from there on.
    Resume(Token, Vec<CutAt>),
    /// Continue the session over HTTP that was prepared for this token: these messages wait for it.
    ResumeSession(Token, Vec<Bytes>),
}

/// A node's response.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Response {
    CommandResult(CommandResult),
    Counts(Counts),
    Channels(Channels),
    /// Whether it did, or why not.
    Handoff(Result<(), String>),
}

/// The counts of a node.
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
    /// Since the process was started, in seconds.
    #[prost(uint64, tag = "5")]
    pub(crate) uptime: u64,
    /// The version of the program.
    #[prost(string, tag = "6")]
    pub(crate) version: String,
}

/// The channels of a node.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Channels {
    /// How many subscribers each has.
    #[prost(btree_map = "string, uint64", tag = "1")]
    pub(crate) subscribers: BTreeMap<String, u64>,
    /// There are more than fit into one response.
    #[prost(bool, tag = "2")]
    pub(crate) is_cut: bool,
}

/// Why a message is rejected.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("not a message between nodes")]
    Undecodable(#[from] prost::DecodeError),
    #[error("not the name of an instance or a client")]
    Unnamed(#[from] Unnamed),
    #[error("not the name of a channel")]
    Channel(#[from] BadChannelName),
    #[error("not the token of a handoff")]
    Token,
    /// Of a newer version, or incomplete.
    #[error("the message has no body that this version knows")]
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
        #[prost(oneof = "Body", tags = "3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
        pub(super) body: Option<Body>,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum Body {
        #[prost(message, tag = "3")]
        Command(CommandMessage),
        #[prost(message, tag = "4")]
        AskCounts(Empty),
        #[prost(string, tag = "5")]
        AskChannels(String),
        #[prost(message, tag = "6")]
        CommandResult(CommandResult),
        #[prost(message, tag = "7")]
        Counts(Counts),
        #[prost(message, tag = "8")]
        Channels(Channels),
        #[prost(message, tag = "9")]
        Handoff(Handoff),
        /// Empty: the client is accepted.
        #[prost(string, tag = "10")]
        HandoffRefused(String),
        #[prost(message, tag = "11")]
        Resume(Resume),
        #[prost(message, tag = "12")]
        ResumeSession(ResumeSession),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ResumeSession {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) token: Bytes,
        #[prost(bytes = "bytes", repeated, tag = "2")]
        pub(super) queued: Vec<Bytes>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Resume {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) token: Bytes,
        #[prost(message, repeated, tag = "2")]
        pub(super) cut: Vec<CutAt>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct CutAt {
        #[prost(string, tag = "1")]
        pub(super) channel: String,
        /// Missing: the channel has no history.
        #[prost(message, optional, tag = "2")]
        pub(super) position: Option<Since>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Handoff {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) token: Bytes,
        #[prost(bytes = "bytes", tag = "2")]
        pub(super) snapshot: Bytes,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Empty {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct CommandResult {
        #[prost(uint32, tag = "1")]
        pub(super) accepted: u32,
        #[prost(uint32, tag = "2")]
        pub(super) busy: u32,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct CommandMessage {
        /// Missing: any user.
        #[prost(string, optional, tag = "1")]
        pub(super) user: Option<String>,
        /// Empty: all clients of the user.
        #[prost(string, tag = "2")]
        pub(super) client: String,
        #[prost(string, repeated, tag = "3")]
        pub(super) except: Vec<String>,
        #[prost(oneof = "ControlCommand", tags = "4, 5, 6, 7, 8")]
        pub(super) command: Option<ControlCommand>,
        /// Instead of user and client.
        #[prost(message, optional, tag = "9")]
        pub(super) session: Option<Session>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Session {
        /// Empty: any user.
        #[prost(string, tag = "1")]
        pub(super) user: String,
        #[prost(string, tag = "2")]
        pub(super) session: String,
    }

    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(super) enum ControlCommand {
        #[prost(message, tag = "4")]
        Disconnect(CodeAndReason),
        #[prost(message, tag = "5")]
        Unsubscribe(CodeAndReason),
        #[prost(message, tag = "6")]
        Subscribe(Subscribe),
        #[prost(message, tag = "7")]
        Refresh(Refresh),
        #[prost(bytes = "bytes", tag = "8")]
        Input(Bytes),
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct CodeAndReason {
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
            Body::Request(Request::Command(target, command)) => {
                wire::Body::Command(print_command_message(target, command))
            }
            Body::Request(Request::Counts) => wire::Body::AskCounts(wire::Empty {}),
            Body::Request(Request::Channels(pattern)) => wire::Body::AskChannels(pattern),
            Body::Request(Request::Handoff(token, snapshot)) => {
                let token = token.bytes();
                wire::Body::Handoff(wire::Handoff { token, snapshot })
            }
            Body::Request(Request::Resume(token, cut)) => {
                let token = token.bytes();
                let cut = cut.into_iter().map(print_cut).collect();
                wire::Body::Resume(wire::Resume { token, cut })
            }
            Body::Request(Request::ResumeSession(token, queued)) => {
                let token = token.bytes();
                wire::Body::ResumeSession(wire::ResumeSession { token, queued })
            }
            Body::Response(Response::Handoff(accepted)) => {
                wire::Body::HandoffRefused(accepted.err().unwrap_or_default())
            }
            Body::Response(Response::CommandResult(CommandResult { accepted, busy })) => {
                wire::Body::CommandResult(wire::CommandResult { accepted, busy })
            }
            Body::Response(Response::Counts(counts)) => wire::Body::Counts(counts),
            Body::Response(Response::Channels(channels)) => wire::Body::Channels(channels),
        };
        let message = wire::Message {
            from: self.from.to_string(),
            number: self.number,
            body: Some(body),
        };
        message.encode_to_vec().into()
    }

    /// Decodes a message, which may come from any publisher.
    ///
    /// # Errors
    ///
    /// [`Malformed`]; the message is ignored.
    pub(super) fn decode(data: Bytes) -> Result<Self, Malformed> {
        let message = wire::Message::decode(data)?;
        let body = match message.body.ok_or(Malformed::Unknown)? {
            wire::Body::Command(message) => {
                let (target, command) = parse_command_message(message)?;
                Body::Request(Request::Command(target, command))
            }
            wire::Body::AskCounts(_) => Body::Request(Request::Counts),
            wire::Body::AskChannels(pattern) => Body::Request(Request::Channels(pattern)),
            wire::Body::Handoff(wire::Handoff { token, snapshot }) => {
                let token = Token::from_bytes(&token).ok_or(Malformed::Token)?;
                Body::Request(Request::Handoff(token, snapshot))
            }
            wire::Body::Resume(wire::Resume { token, cut }) => {
                let token = Token::from_bytes(&token).ok_or(Malformed::Token)?;
                let cut = cut.into_iter().map(parse_cut).collect::<Result<_, _>>()?;
                Body::Request(Request::Resume(token, cut))
            }
            wire::Body::ResumeSession(wire::ResumeSession { token, queued }) => {
                let token = Token::from_bytes(&token).ok_or(Malformed::Token)?;
                Body::Request(Request::ResumeSession(token, queued))
            }
            wire::Body::HandoffRefused(reason) if reason.is_empty() => {
                Body::Response(Response::Handoff(Ok(())))
            }
            wire::Body::HandoffRefused(reason) => Body::Response(Response::Handoff(Err(reason))),
            wire::Body::CommandResult(wire::CommandResult { accepted, busy }) => {
                Body::Response(Response::CommandResult(CommandResult { accepted, busy }))
            }
            wire::Body::Counts(counts) => Body::Response(Response::Counts(counts)),
            wire::Body::Channels(channels) => Body::Response(Response::Channels(channels)),
        };
        Ok(Self {
            from: Instance::parse(&message.from)?,
            number: message.number,
            body,
        })
    }
}

fn print_cut(cut: CutAt) -> wire::CutAt {
    let position = cut.position.map(|position| wire::Since {
        offset: position.offset,
        epoch: position.epoch.to_string(),
    });
    wire::CutAt {
        channel: cut.channel.to_string(),
        position,
    }
}

fn parse_cut(cut: wire::CutAt) -> Result<CutAt, Malformed> {
    let position = cut.position.map(|position| Position {
        offset: position.offset,
        epoch: position.epoch.as_str().into(),
    });
    Ok(CutAt {
        channel: ChannelName::new(&cut.channel)?,
        position,
    })
}

fn print_command_message(target: Target, command: ControlCommand) -> wire::CommandMessage {
    let mut message = wire::CommandMessage {
        command: Some(print_command(command)),
        ..wire::CommandMessage::default()
    };
    match target {
        Target::Client(client) => message.client = client.to_string(),
        Target::ClientOf { user, client } => {
            message.user = Some(user);
            message.client = client.to_string();
        }
        Target::Session { user, session } => {
            let session = session.to_string();
            message.session = Some(wire::Session { user, session });
        }
        Target::User { user, except } => {
            message.user = Some(user);
            message.except = except.iter().map(ToString::to_string).collect();
        }
    }
    message
}

fn print_command(command: ControlCommand) -> wire::ControlCommand {
    match command {
        ControlCommand::Disconnect { code, reason } => {
            wire::ControlCommand::Disconnect(wire::CodeAndReason {
                code,
                reason,
                channel: String::new(),
            })
        }
        ControlCommand::Unsubscribe {
            channel,
            code,
            reason,
        } => wire::ControlCommand::Unsubscribe(wire::CodeAndReason {
            code,
            reason,
            channel: channel.to_string(),
        }),
        ControlCommand::Subscribe(subscribe) => wire::ControlCommand::Subscribe(wire::Subscribe {
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
        ControlCommand::Refresh(lifetime) => wire::ControlCommand::Refresh(match lifetime {
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
        ControlCommand::Input(data) => wire::ControlCommand::Input(data),
    }
}

fn parse_command_message(
    message: wire::CommandMessage,
) -> Result<(Target, ControlCommand), Malformed> {
    let client = match message.client.as_str() {
        "" => None,
        client => Some(ClientId::parse(client)?),
    };
    let target = match (message.session, message.user, client) {
        (Some(of), _, _) => Target::Session {
            session: ClientId::parse(&of.session)?,
            user: of.user,
        },
        (None, None, Some(client)) => Target::Client(client),
        (None, Some(user), Some(client)) => Target::ClientOf { user, client },
        (None, Some(user), None) => {
            let except = message.except.iter().map(|client| ClientId::parse(client));
            let except = except.collect::<Result<_, _>>()?;
            Target::User { user, except }
        }
        (None, None, None) => return Err(Malformed::Unknown),
    };
    let command = match message.command.ok_or(Malformed::Unknown)? {
        wire::ControlCommand::Disconnect(ended) => ControlCommand::Disconnect {
            code: ended.code,
            reason: ended.reason,
        },
        wire::ControlCommand::Unsubscribe(ended) => ControlCommand::Unsubscribe {
            channel: ChannelName::new(&ended.channel)?,
            code: ended.code,
            reason: ended.reason,
        },
        wire::ControlCommand::Subscribe(subscribe) => {
            ControlCommand::Subscribe(Box::new(SubscribeCommand {
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
            }))
        }
        wire::ControlCommand::Refresh(refresh) => ControlCommand::Refresh(match refresh.until {
            _ if refresh.expired => Lifetime::Expired,
            0 => Lifetime::Endless,
            until => Lifetime::Until(until),
        }),
        wire::ControlCommand::Input(data) => ControlCommand::Input(data),
    };
    Ok((target, command))
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
        let commands = [
            ControlCommand::Disconnect {
                code: 3000,
                reason: reason(),
            },
            ControlCommand::Unsubscribe {
                channel: channel(),
                code: 2500,
                reason: reason(),
            },
            ControlCommand::Subscribe(Box::new(SubscribeCommand {
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
            ControlCommand::Refresh(Lifetime::Expired),
            ControlCommand::Refresh(Lifetime::Endless),
            ControlCommand::Refresh(Lifetime::Until(1)),
            ControlCommand::Input(Bytes::from_static(b"\xff")),
        ];
        let message = |target: &Target, command: &ControlCommand| {
            Body::Request(Request::Command(target.clone(), command.clone()))
        };
        let mut bodies = vec![
            Body::Request(Request::Counts),
            Body::Request(Request::Channels("a*".to_owned())),
            Body::Request(Request::Handoff(Token::random(), Bytes::from_static(b"s"))),
            Body::Request(Request::Resume(
                Token::random(),
                vec![
                    CutAt {
                        channel: channel(),
                        position: Some(Position {
                            offset: 7,
                            epoch: "e".into(),
                        }),
                    },
                    CutAt {
                        channel: channel(),
                        position: None,
                    },
                ],
            )),
            Body::Request(Request::ResumeSession(
                Token::random(),
                vec![Bytes::from_static(b"\"a\""), Bytes::new()],
            )),
            Body::Response(Response::Handoff(Ok(()))),
            Body::Response(Response::Handoff(Err("full".to_owned()))),
            Body::Response(Response::CommandResult(CommandResult {
                accepted: 1,
                busy: 2,
            })),
            Body::Response(Response::Counts(Counts {
                clients: 1,
                ..Counts::default()
            })),
            Body::Response(Response::Channels(Channels {
                subscribers: BTreeMap::from([("a".to_owned(), 3)]),
                is_cut: true,
            })),
        ];
        bodies.extend(targets.iter().map(|target| message(target, &commands[0])));
        bodies.extend(commands.iter().map(|command| message(&targets[0], command)));
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
