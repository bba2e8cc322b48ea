//! One client's connection while it is open: reads messages and writes queued output.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use bytes::Bytes;

use crate::client::relay::HandoffError;
use crate::client::relay::WaitBudget;
use crate::config::Endpoint;
use crate::hub::outbox::SocketOutbox;
use crate::hub::outbox::SocketState;
use crate::metrics::Metrics;
use crate::protocol::disconnect::Disconnect;
use crate::protocol::frame::websocket::MessageKind;
use crate::protocol::frame::websocket::SocketFormat;
use crate::protocol::handoff::BadFrame;
use crate::protocol::handoff::Notice;
use crate::transport::websocket::peer::Finished;
use crate::transport::websocket::peer::Peer;
use crate::transport::websocket::peer::Work;
use crate::transport::websocket::reader::ReadEnd;
use crate::transport::websocket::reader::Reader;
use crate::transport::websocket::scratch;

/// A message in a JSON string is at most six times as long: `\u0000`.
const JSON_ESCAPE_MAX: usize = 6;

/// A client that is connected.
pub(super) struct Connection {
    pub(super) outbox: Arc<SocketOutbox>,
    pub(super) reader: Reader,
    pub(super) peer: Peer,
    /// Pending work for messages of the client; boxed because rarely present.
    pub(super) work: Option<Box<Work>>,
    /// The reader has unread bytes, which come first: sent after the request, or after a message that paused reading.
    resumes: bool,
    /// What is left for the messages of the last read.
    wait_budget: WaitBudget,
}

/// How the open connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Our close frame is queued; the client's is not received yet.
    Closing,
    /// Our close frame is queued, and the client's bytes cannot be parsed any more.
    Failed,
    /// The client has closed, and our reply is queued.
    Closed,
    /// The socket has failed.
    Lost,
    /// The client continues on another node, and the edge is told so.
    HandedOff,
}

/// Whether reading continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reads {
    On,
    /// Not before some pending work is done.
    NotNow,
}

impl Connection {
    /// Logs that the client was disconnected because it reads too slowly.
    pub(super) fn log_slow(&self, bytes_queued: usize) {
        self.peer.log_slow(&self.outbox, bytes_queued);
    }

    /// `read_ahead`: what the client sent after its request.
    pub(super) fn new(outbox: Arc<SocketOutbox>, peer: Peer, read_ahead: &[u8]) -> Self {
        let message_bytes_max = peer.endpoint().received_bytes_max();
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
            work: None,
            resumes: !read_ahead.is_empty(),
            wait_budget: WaitBudget::Full,
        }
    }

    /// The metrics that count its client.
    pub(super) fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(self.peer.metrics())
    }

    /// The endpoint that its client uses.
    pub(super) fn endpoint(&self) -> Arc<Endpoint> {
        Arc::clone(self.peer.endpoint())
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
                return Poll::Pending; // Reading pauses while echoes are queued, instead of disconnecting the client.
            }
            match self.poll_work(cx) {
                ControlFlow::Continue(Reads::On) => {}
                ControlFlow::Continue(Reads::NotNow) => return Poll::Pending,
                ControlFlow::Break(end) => return Poll::Ready(end),
            }
            if !self.resumes && self.reader.has_handoff() {
                match self.reader.take_handoff() {
                    Ok(Some(target)) => {
                        let pending = self.work.take().map(|work| *work);
                        self.work = Some(Box::new(match pending {
                            Some(Work::Commands(commands)) => Work::finishing(commands, target),
                            _ => self.peer.hand_off(target),
                        }));
                        continue;
                    }
                    Ok(None) => {}
                    Err(BadFrame) => {
                        self.outbox.close(Disconnect::PROTOCOL);
                        return Poll::Ready(End::Failed);
                    }
                }
            }
            let read = if std::mem::take(&mut self.resumes) {
                self.take(|reader, outbox, take| reader.resume(outbox, take))
            } else {
                ready!(self.poll_read(cx))
            };
            if let ControlFlow::Break(end) = read {
                return Poll::Ready(end);
            }
        }
    }

    /// Polls pending work, and returns whether reading continues meanwhile.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> ControlFlow<End, Reads> {
        if let Some(Work::Finishing(finishing)) = self.work.as_deref_mut() {
            match finishing.poll(cx) {
                Poll::Pending => {}
                Poll::Ready(Finished::Done(target)) => {
                    self.work = Some(Box::new(self.peer.hand_off(target)));
                }
                Poll::Ready(Finished::TooLate(commands)) => {
                    let reason = "a command is not done yet";
                    self.outbox.send(&Notice::Kept(reason).frame());
                    self.work = Some(Box::new(Work::Commands(commands)));
                }
            }
        }
        let Some(work) = &mut self.work else {
            return ControlFlow::Continue(Reads::On);
        };
        let (is_done, reads) = match &mut **work {
            Work::Room(waiting) => match waiting.as_mut().poll(cx) {
                Poll::Pending => (false, Reads::NotNow),
                Poll::Ready(Ok(wait_budget)) => {
                    self.wait_budget = wait_budget;
                    (true, Reads::On)
                }
                Poll::Ready(Err(disconnect)) => {
                    self.outbox.close(disconnect);
                    return ControlFlow::Break(End::Closing);
                }
            },
            Work::Handoff(handoff) => match handoff.as_mut().poll(cx) {
                Poll::Pending => (false, Reads::NotNow),
                Poll::Ready(Ok(())) => {
                    self.outbox.send_last(&Notice::Done.frame());
                    return ControlFlow::Break(End::HandedOff);
                }
                Poll::Ready(Err(HandoffError::Kept(reason))) => {
                    self.outbox.send(&Notice::Kept(&reason).frame());
                    (true, Reads::On)
                }
                Poll::Ready(Err(HandoffError::Lost)) => {
                    self.outbox.close_to_reconnect();
                    return ControlFlow::Break(End::Closing);
                }
            },
            Work::Finishing(finishing) => {
                if finishing.is_closed() {
                    return ControlFlow::Break(End::Closing);
                }
                (false, Reads::NotNow)
            }
            Work::Commands(commands) => {
                let is_done = commands.poll(cx).is_ready();
                if commands.is_closed() {
                    return ControlFlow::Break(End::Closing);
                }
                let reads = if commands.takes_more() {
                    Reads::On
                } else {
                    Reads::NotNow
                };
                (is_done, reads)
            }
        };
        if is_done {
            self.work = None;
        }
        match reads {
            Reads::On if self.outbox.is_reading_paused() => self.outbox.resume_reading(),
            Reads::NotNow if !self.outbox.is_reading_paused() => self.outbox.pause_reading(),
            Reads::On | Reads::NotNow => {}
        }
        ControlFlow::Continue(reads)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<ControlFlow<End>> {
        let outbox = Arc::clone(&self.outbox);
        let read = ready!(scratch::poll_read(outbox.stream(), cx, |input| {
            if input.is_empty() {
                return ControlFlow::Break(End::Lost);
            }
            outbox.mark_received();
            self.wait_budget = WaitBudget::Full;
            self.take(|reader, outbox, take| reader.read(outbox, input, take))
        }));
        Poll::Ready(read.unwrap_or(ControlFlow::Break(End::Lost)))
    }

    /// Calls `read`, and passes its messages to the client.
    fn take(
        &mut self,
        read: impl FnOnce(&mut Reader, &SocketOutbox, &mut Take<'_>) -> Result<(), ReadEnd>,
    ) -> ControlFlow<End> {
        let Self {
            outbox,
            reader,
            peer,
            work,
            resumes,
            wait_budget,
        } = self;
        let echoes = peer.is_echoed();
        let mut broken = None;
        let result = read(reader, outbox, &mut |kind, data| {
            match peer.hand_over(work, outbox.format(), kind, data, *wait_budget) {
                Ok(ControlFlow::Continue(())) if !echoes || outbox.is_idle() => {
                    return ControlFlow::Continue(());
                }
                Ok(_) => *resumes = true,
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
