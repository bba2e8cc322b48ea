//! One client's connection while it is open: read what comes, write what waits.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;

use crate::client::Patience;
use crate::frame::websocket::MessageKind;
use crate::frame::websocket::SocketFormat;
use crate::metrics::Metrics;
use crate::outbox::SocketOutbox;
use crate::outbox::SocketState;
use crate::transport::websocket::peer::Peer;
use crate::transport::websocket::peer::Waiting;
use crate::transport::websocket::reader::ReadEnd;
use crate::transport::websocket::reader::Reader;
use crate::transport::websocket::scratch;

/// A message in a JSON string is at most six times as long: `\u0000`.
const JSON_ESCAPE_MAX: usize = 6;

/// A client that is connected.
pub(super) struct Connection {
    pub(super) outbox: Arc<SocketOutbox>,
    pub(super) reader: Reader,
    peer: Peer,
    /// Something has to be done about the client's message first, and nothing is read meanwhile.
    waiting: Option<Waiting>,
    /// The reader has kept something, which comes first: what the client sent behind its request, or what it
    /// sent before it took its echoes.
    resumes: bool,
    /// What is left of it for the messages of the last read.
    patience: Patience,
}

/// How the open connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Our close frame is on its way; the client's is not here yet.
    Closing,
    /// So it is, and what the client sends is no longer WebSocket frames.
    Failed,
    /// The client has closed, and our answer is on its way.
    Closed,
    /// The socket is of no more use.
    Lost,
}

impl Connection {
    /// `read_ahead`: what the client sent behind its request.
    pub(super) fn new(outbox: Arc<SocketOutbox>, peer: Peer, read_ahead: &[u8]) -> Self {
        let message_bytes_max = peer.endpoint().message_bytes_max;
        let mut reader = Reader::new(match outbox.format() {
            SocketFormat::Raw | SocketFormat::Json | SocketFormat::Protobuf => message_bytes_max,
            SocketFormat::Sockjs => message_bytes_max * JSON_ESCAPE_MAX + "[\"\"]".len(),
        });
        if !read_ahead.is_empty() {
            reader.keep(read_ahead);
        }
        Self {
            outbox,
            reader,
            peer,
            waiting: None,
            resumes: !read_ahead.is_empty(),
            patience: Patience::Left,
        }
    }

    /// What counts its client.
    pub(super) fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(self.peer.metrics())
    }

    /// Does what can be done now. Ready once the connection is no longer open.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let flushed = self.outbox.poll_flush(cx);
            match self.outbox.state() {
                SocketState::Open => {}
                SocketState::Closing => return Poll::Ready(End::Closing),
                SocketState::Dead => return Poll::Ready(End::Lost),
            }
            if flushed.is_pending() && self.peer.is_echoed() {
                return Poll::Pending; // Who does not take his echoes is not read, rather than cut off.
            }
            let read = if self.waiting.is_some() {
                ready!(self.poll_room(cx))
            } else if std::mem::take(&mut self.resumes) {
                self.take(|reader, outbox, take| reader.resume(outbox, take))
            } else {
                ready!(self.poll_read(cx))
            };
            if let ControlFlow::Break(end) = read {
                return Poll::Ready(end);
            }
        }
    }

    /// Waits until the message is done with, then takes what came behind it.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<ControlFlow<End>> {
        let Some(waiting) = &mut self.waiting else {
            return Poll::Ready(ControlFlow::Continue(()));
        };
        let published = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        self.outbox.resume_reading();
        Poll::Ready(match published {
            Ok(patience) => {
                self.patience = patience;
                self.take(|reader, outbox, take| reader.resume(outbox, take))
            }
            Err(disconnect) => {
                self.outbox.close(disconnect);
                ControlFlow::Break(End::Closing)
            }
        })
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<ControlFlow<End>> {
        let outbox = Arc::clone(&self.outbox);
        let read = ready!(scratch::poll_read(outbox.stream(), cx, |input| {
            if input.is_empty() {
                return ControlFlow::Break(End::Lost);
            }
            outbox.mark_heard();
            self.patience = Patience::Left;
            self.take(|reader, outbox, take| reader.read(outbox, input, take))
        }));
        Poll::Ready(read.unwrap_or(ControlFlow::Break(End::Lost)))
    }

    /// Lets `read` hand its messages to the client.
    fn take(
        &mut self,
        read: impl FnOnce(&mut Reader, &SocketOutbox, &mut Take<'_>) -> Result<(), ReadEnd>,
    ) -> ControlFlow<End> {
        let Self {
            outbox,
            reader,
            peer,
            waiting,
            resumes,
            patience,
            ..
        } = self;
        let echoes = peer.is_echoed();
        let mut broken = None;
        let result = read(reader, outbox, &mut |kind, data| {
            match peer.hand_over(outbox.format(), kind, &data, *patience) {
                Ok(None) if echoes && !outbox.is_idle() => *resumes = true,
                Ok(None) => return ControlFlow::Continue(()),
                Ok(Some(room)) => {
                    outbox.pause_reading();
                    *waiting = Some(room);
                }
                Err(disconnect) => broken = Some(disconnect),
            }
            ControlFlow::Break(())
        });
        match (broken, result) {
            (Some(disconnect), _) => {
                outbox.close(disconnect);
                ControlFlow::Break(End::Closing)
            }
            (None, Ok(())) => ControlFlow::Continue(()),
            (None, Err(ReadEnd::Closed)) => ControlFlow::Break(End::Closed),
            (None, Err(ReadEnd::Failed(disconnect))) => {
                outbox.close(disconnect);
                ControlFlow::Break(End::Failed)
            }
        }
    }
}

type Take<'a> = dyn FnMut(MessageKind, Bytes) -> ControlFlow<()> + 'a;
