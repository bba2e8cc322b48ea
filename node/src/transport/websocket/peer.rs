//! Whose messages a WebSocket carries: a relay's client's, or a channel client's.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::vec;

use bytes::Bytes;
use tokio::time::Instant;

use crate::client::channels::Admitted;
use crate::client::channels::Commands;
use crate::client::relay::Client;
use crate::client::relay::Patience;
use crate::client::relay::Taken;
use crate::config::Endpoint;
use crate::config::Mode;
use crate::hub::outbox::SocketOutbox;
use crate::hub::roster::Place;
use crate::logging;
use crate::logging::SlowClient;
use crate::metrics::Metrics;
use crate::metrics::Transport;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::frame::sockjs;
use crate::protocol::frame::websocket::MessageKind;
use crate::protocol::frame::websocket::SocketFormat;
use crate::transport::websocket::roster::Entry;

/// A client behind a WebSocket.
pub(super) enum Peer {
    /// Of an endpoint whose messages are passed on as they are.
    Plain {
        client: Arc<Client>,
        /// Among those that are pinged, and sent away when the node stops.
        _place: Place<Entry>,
    },
    /// Of an endpoint with `mode: channels`.
    Channels(Admitted),
}

/// What messages of a client have led to and is not done.
pub(super) enum Work {
    /// A message waits for room, and its client is not read further before it has it.
    Room(Waiting),
    /// Commands of a channel client, who is read on while there is room for more of them.
    Commands(Commands),
}

/// Ready when what waited for room has it, or has been given up.
type Waiting = Pin<Box<dyn Future<Output = Result<Patience, Disconnect>> + Send>>;

impl Peer {
    /// The rules that it lives by.
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

    /// Logs that it was disconnected because it reads too slowly.
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

    /// Whether it is answered with what it says, and nothing else.
    pub(super) fn is_echoed(&self) -> bool {
        self.endpoint().mode == Mode::Echo
    }

    /// Gives what stands in one WebSocket message to the client, and keeps in `work` what is not done at once. Breaks if
    /// the client is not to be read further before it is.
    ///
    /// # Errors
    ///
    /// The client broke a rule and is to be sent away.
    pub(super) fn hand_over(
        &self,
        work: &mut Option<Box<Work>>,
        format: SocketFormat,
        kind: MessageKind,
        data: Bytes,
        patience: Patience,
    ) -> Result<ControlFlow<()>, Disconnect> {
        match self {
            Self::Plain { client, .. } => {
                let waiting = hand_over(client, format, kind, &data, patience)?;
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

/// Carries the commands in `data` out as far as they go without waiting. Mostly that is the end, and then nothing is kept.
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
    patience: Patience,
) -> Result<Option<Waiting>, Disconnect> {
    let now = Instant::now();
    if format == SocketFormat::Raw {
        return Ok(match client.try_message(data, kind, now)? {
            Taken::Done => None,
            Taken::NoRoom(data) => {
                let rest = Vec::new().into_iter();
                Some(wait_for_room(client, data, rest, patience))
            }
        });
    }
    let decoded = sockjs::decode_messages(data).map_err(|_| Disconnect::BROKEN_FRAMING)?;
    let mut messages = decoded.into_iter();
    while let Some(message) = messages.next() {
        let taken = client.try_message(message.as_bytes(), MessageKind::Text, now)?;
        if let Taken::NoRoom(data) = taken {
            return Ok(Some(wait_for_room(client, data, messages, patience)));
        }
    }
    Ok(None)
}

fn wait_for_room(
    client: &Arc<Client>,
    first: Bytes,
    rest: vec::IntoIter<String>,
    mut patience: Patience,
) -> Waiting {
    let client = Arc::clone(client);
    Box::pin(async move {
        client.wait_for_room(first, &mut patience).await?;
        for message in rest {
            let text = MessageKind::Text;
            client
                .on_message(message.into(), text, &mut patience)
                .await?;
        }
        Ok(patience)
    })
}
