//! Whose messages a WebSocket carries: a relay's client's, or a channel client's.

use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::vec;

use bytes::Bytes;
use futures_util::task::noop_waker_ref;
use tokio::time::Instant;

use crate::channels::Admitted;
use crate::client::Client;
use crate::client::Patience;
use crate::client::Taken;
use crate::config::Endpoint;
use crate::config::Mode;
use crate::disconnect::Disconnect;
use crate::frame::sockjs;
use crate::frame::websocket::MessageKind;
use crate::frame::websocket::SocketFormat;
use crate::metrics::Metrics;
use crate::roster::Place;
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

/// A message whose client is not read further before it is done with.
pub(super) type Waiting = Pin<Box<dyn Future<Output = Result<Patience, Disconnect>> + Send>>;

impl Peer {
    /// The rules that it lives by.
    pub(super) fn endpoint(&self) -> &Endpoint {
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

    /// Whether it is answered with what it says, and nothing else.
    pub(super) fn is_echoed(&self) -> bool {
        self.endpoint().mode == Mode::Echo
    }

    /// Gives what stands in one WebSocket message to the client, and returns what it has to wait for.
    ///
    /// # Errors
    ///
    /// The client broke a rule and is to be sent away.
    pub(super) fn hand_over(
        &self,
        format: SocketFormat,
        kind: MessageKind,
        data: &Bytes,
        patience: Patience,
    ) -> Result<Option<Waiting>, Disconnect> {
        match self {
            Self::Plain { client, .. } => hand_over(client, format, kind, data, patience),
            Self::Channels(admitted) => {
                let client = Arc::clone(admitted.client());
                let data = data.clone();
                let waiting: Waiting = Box::pin(async move {
                    client.receive(data).await;
                    Ok(Patience::Left)
                });
                Ok(begin(waiting).break_value())
            }
        }
    }
}

/// Lets a message come as far as it does without waiting. Mostly that is the end, and what the client sent
/// behind it need not be kept.
fn begin(mut waiting: Waiting) -> ControlFlow<Waiting> {
    let mut nobody = Context::from_waker(noop_waker_ref());
    match waiting.as_mut().poll(&mut nobody) {
        Poll::Ready(_) => ControlFlow::Continue(()),
        Poll::Pending => ControlFlow::Break(waiting), // The next poll has the task's waker.
    }
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
