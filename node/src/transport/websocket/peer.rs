//! The client behind a WebSocket: of a relay endpoint, or a channel client.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;
use std::vec;

use bytes::Bytes;
use tokio::time;
use tokio::time::Instant;
use tokio::time::Sleep;

use crate::client::channels::Admitted;
use crate::client::channels::Commands;
use crate::client::relay::Client;
use crate::client::relay::HandoffError;
use crate::client::relay::Taken;
use crate::client::relay::WaitBudget;
use crate::config::Endpoint;
use crate::config::Mode;
use crate::hub::outbox::SocketOutbox;
use crate::hub::roster::RosterGuard;
use crate::logging;
use crate::logging::SlowClient;
use crate::metrics::Metrics;
use crate::metrics::Transport;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::frame::sockjs;
use crate::protocol::frame::websocket::MessageKind;
use crate::protocol::frame::websocket::SocketFormat;
use crate::protocol::handoff::Target;
use crate::transport::websocket::roster::Entry;

/// A client behind a WebSocket.
pub(super) enum Peer {
    /// A client of a relay, echo or test endpoint.
    Plain {
        client: Arc<Client>,
        /// Its entry in the list for pings and the drain.
        _in_roster: RosterGuard<Entry>,
    },
    /// A client of an endpoint with `mode: channels`.
    Channels(Admitted),
}

/// Pending work for messages of a client.
pub(super) enum Work {
    /// A message waits for room in the broker's queue; reading pauses until then.
    Room(Waiting),
    /// The client is handed off to another node; reading pauses until that has succeeded or failed.
    Handoff(HandingOff),
    /// Commands of a channel client that is to be handed off once they are done.
    Finishing(Finishing),
    /// Commands of a channel client; reading continues while more commands are within the limit.
    Commands(Commands),
}

/// Commands that have to be done before their client is handed off.
pub(super) struct Finishing {
    commands: Option<Commands>,
    target: Target,
    due: Pin<Box<Sleep>>,
}

/// What became of them.
pub(super) enum Finished {
    /// They are done: the client is handed off there.
    Done(Target),
    /// They are not done in time: the client stays.
    TooLate(Commands),
}

/// How long a handoff waits for commands. The client waits for this too.
const COMMANDS_MAX_WAIT: Duration = Duration::from_millis(500);

impl Work {
    /// Finishes `commands` before the client is handed off.
    pub(super) fn finishing(commands: Commands, target: Target) -> Self {
        Self::Finishing(Finishing {
            commands: Some(commands),
            target,
            due: Box::pin(time::sleep(COMMANDS_MAX_WAIT)),
        })
    }
}

impl Finishing {
    /// Must not be called after it was ready.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Finished> {
        let Some(commands) = &mut self.commands else {
            return Poll::Pending;
        };
        let is_done = commands.poll(cx).is_ready();
        if commands.is_closed() {
            return Poll::Pending; // The client is disconnected.
        }
        if is_done {
            return Poll::Ready(Finished::Done(self.target));
        }
        ready!(self.due.as_mut().poll(cx));
        match self.commands.take() {
            Some(commands) => Poll::Ready(Finished::TooLate(commands)),
            None => Poll::Pending,
        }
    }

    /// Whether the client is disconnected.
    pub(super) fn is_closed(&self) -> bool {
        self.commands.as_ref().is_none_or(Commands::is_closed)
    }

    pub(super) fn into_commands(self) -> Option<Commands> {
        self.commands
    }
}

/// Ready when the messages are published or dropped.
type Waiting = Pin<Box<dyn Future<Output = Result<WaitBudget, Disconnect>> + Send>>;

/// Ready when the client is handed off, or cannot be.
type HandingOff = Pin<Box<dyn Future<Output = Result<(), HandoffError>> + Send>>;

impl Peer {
    /// The endpoint that it uses.
    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        match self {
            Self::Plain { client, .. } => client.endpoint(),
            Self::Channels(admitted) => admitted.client().endpoint(),
        }
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        match self {
            Self::Plain { client, .. } => client.metrics(),
            Self::Channels(admitted) => admitted.client().metrics(),
        }
    }

    /// Logs that the client was disconnected because it reads too slowly.
    pub(super) fn log_slow(&self, outbox: &SocketOutbox, bytes_queued: usize) {
        match self {
            Self::Channels(admitted) => admitted.client().log_slow(bytes_queued),
            Self::Plain { client, .. } => {
                let peer = outbox.peer().map(|peer| peer.to_string());
                logging::slow_client(&SlowClient {
                    client: &peer.unwrap_or_default(),
                    user: "",
                    endpoint: &client.endpoint().path,
                    transport: match outbox.format() {
                        SocketFormat::Sockjs => Transport::SockjsWebsocket.as_str(),
                        _ => Transport::Websocket.as_str(),
                    },
                    bytes_queued,
                });
            }
        }
    }

    /// Hands the client off to another node.
    pub(super) fn hand_off(&self, target: Target) -> Work {
        Work::Handoff(match self {
            Self::Plain { client, .. } => Box::pin(Arc::clone(client).hand_off(target)),
            Self::Channels(admitted) => Box::pin(admitted.hand_off(target)),
        })
    }

    /// Whether its endpoint only echoes.
    pub(super) fn is_echoed(&self) -> bool {
        self.endpoint().mode == Mode::Echo
    }

    /// Passes one WebSocket message to the client, and stores in `work` what is not done at once. Breaks if reading has to
    /// pause until it is done.
    ///
    /// # Errors
    ///
    /// The client has violated a limit or the protocol, and has to be disconnected.
    pub(super) fn hand_over(
        &self,
        work: &mut Option<Box<Work>>,
        format: SocketFormat,
        kind: MessageKind,
        data: Bytes,
        wait_budget: WaitBudget,
    ) -> Result<ControlFlow<()>, Disconnect> {
        match self {
            Self::Plain { client, .. } => {
                let waiting = hand_over(client, format, kind, &data, wait_budget)?;
                *work = waiting.map(|waiting| Box::new(Work::Room(waiting)));
                Ok(match work {
                    None => ControlFlow::Continue(()),
                    Some(_) => ControlFlow::Break(()),
                })
            }
            Self::Channels(admitted) => Ok(carry_out(admitted, work, data)),
        }
    }
}

/// Executes the commands in `data` up to their first wait. Usually they are done then, and nothing is stored in `work`.
fn carry_out(admitted: &Admitted, work: &mut Option<Box<Work>>, data: Bytes) -> ControlFlow<()> {
    let reads_on = |commands: &Commands| {
        if commands.takes_more() && !commands.is_closed() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    };
    if let Some(Work::Commands(commands)) = work.as_deref_mut() {
        commands.push(data);
        return reads_on(commands);
    }
    let mut commands = Commands::new(admitted.client());
    commands.push(data);
    let flow = reads_on(&commands);
    if !commands.is_done() {
        *work = Some(Box::new(Work::Commands(commands)));
    }
    flow
}

fn hand_over(
    client: &Arc<Client>,
    format: SocketFormat,
    kind: MessageKind,
    data: &[u8],
    wait_budget: WaitBudget,
) -> Result<Option<Waiting>, Disconnect> {
    let now = Instant::now();
    if format == SocketFormat::Raw {
        return Ok(match client.try_message(data, kind, now)? {
            Taken::Done => None,
            Taken::NoRoom(data) => {
                let rest = Vec::new().into_iter();
                Some(wait_for_room(client, data, rest, wait_budget))
            }
        });
    }
    let decoded = sockjs::decode_messages(data).map_err(|_| Disconnect::BROKEN_FRAMING)?;
    let mut messages = decoded.into_iter();
    while let Some(message) = messages.next() {
        let taken = client.try_message(message.as_bytes(), MessageKind::Text, now)?;
        if let Taken::NoRoom(data) = taken {
            return Ok(Some(wait_for_room(client, data, messages, wait_budget)));
        }
    }
    Ok(None)
}

fn wait_for_room(
    client: &Arc<Client>,
    first: Bytes,
    rest: vec::IntoIter<String>,
    mut wait_budget: WaitBudget,
) -> Waiting {
    let client = Arc::clone(client);
    Box::pin(async move {
        client.wait_for_room(first, &mut wait_budget).await?;
        for message in rest {
            let text = MessageKind::Text;
            client
                .on_message(message.into(), text, &mut wait_budget)
                .await?;
        }
        Ok(wait_budget)
    })
}
