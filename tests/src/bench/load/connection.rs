//! One connection of the load generator: it opens, upgrades and takes messages apart.

use std::io;
use std::time::Instant;

use mio::event::Event;

use crate::bench::dialect::{Joining, Protocol};
use crate::bench::load::plan::Plan;
use crate::bench::pipe::{Filled, Pipe};
use crate::bench::wire::{self, Parsed};

/// What a scenario does when something happens on a connection.
pub(crate) trait Driver {
    /// The connection is ready for messages.
    fn opened(&mut self, _connection: &mut Connection) -> io::Result<()> {
        Ok(())
    }

    /// A WebSocket message, or the body of an HTTP response, came with the read of `read_at`.
    fn message(
        &mut self,
        connection: &mut Connection,
        payload: &[u8],
        read_at: Instant,
    ) -> io::Result<()>;
}

/// A client's connection to the server under test.
pub(crate) struct Connection {
    pub(super) pipe: Pipe,
    number: usize,
    phase: Phase,
    /// When the scenario last sent something, if it cares.
    pub(crate) sent_at: Option<Instant>,
    /// How many messages have come.
    pub(crate) received: u64,
    /// Whether it reads nothing any more, as a client that hangs.
    pub(super) is_stalled: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Upgrading,
    Joining,
    Open,
}

impl Connection {
    pub(super) fn new(pipe: Pipe, number: usize) -> Self {
        Self {
            pipe,
            number,
            phase: Phase::Connecting,
            sent_at: None,
            received: 0,
            is_stalled: false,
        }
    }

    /// One that stands already, for requests.
    pub(super) fn ready(pipe: Pipe, number: usize) -> Self {
        Self {
            phase: Phase::Open,
            ..Self::new(pipe, number)
        }
    }

    /// Which of the clients it is.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// Sends bytes that are already a WebSocket frame or a request.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pipe.send(bytes)
    }

    pub(super) fn advance(
        &mut self,
        event: &Event,
        plan: &Plan,
        scratch: &mut [u8],
        driver: &mut impl Driver,
    ) -> io::Result<()> {
        if self.is_stalled {
            return Ok(());
        }
        if event.is_writable() || event.is_error() {
            if self.phase == Phase::Connecting && !self.connected(plan, driver)? {
                return Ok(());
            }
            self.pipe.flush()?;
        }
        if event.is_readable() || event.is_read_closed() {
            self.read(event.is_read_closed(), plan, scratch, driver)?;
        }
        Ok(())
    }

    /// Asks whether the connection stands, and goes on with the upgrade if it does.
    fn connected(&mut self, plan: &Plan, driver: &mut impl Driver) -> io::Result<bool> {
        if let Some(error) = self.pipe.stream.take_error()? {
            return Err(error);
        }
        match self.pipe.stream.peer_addr() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
            Err(error) => return Err(error),
        }
        if plan.dialect.protocol == Protocol::Http {
            self.phase = Phase::Open;
            driver.opened(self)?;
        } else {
            self.phase = Phase::Upgrading;
            let (address, channel) = (plan.address(self.number), plan.channel(self.number));
            let request = plan.dialect.upgrade(address, self.number, channel);
            self.pipe.send(&request)?;
        }
        Ok(true)
    }

    /// Reads until the socket has no more: readiness comes as an edge, and only once.
    fn read(
        &mut self,
        closing: bool,
        plan: &Plan,
        scratch: &mut [u8],
        driver: &mut impl Driver,
    ) -> io::Result<()> {
        loop {
            match self.pipe.fill(scratch)? {
                Filled::Bytes { length, more } => {
                    let bytes = &scratch[..length];
                    let used = self.take(bytes, plan, driver)?;
                    self.pipe.keep(&bytes[used..]);
                    if !more && !closing {
                        return Ok(());
                    }
                }
                Filled::Nothing => return Ok(()),
                Filled::End => return Err(io::Error::other("the server closed the connection")),
            }
        }
    }

    /// Takes what is whole from `bytes` and says how much of them that was.
    fn take(&mut self, bytes: &[u8], plan: &Plan, driver: &mut impl Driver) -> io::Result<usize> {
        let read_at = Instant::now();
        let mut used = 0;
        while used < bytes.len() {
            let rest = &bytes[used..];
            let taken = match self.phase {
                Phase::Connecting | Phase::Upgrading => self.take_switch(rest, plan, driver)?,
                Phase::Open if plan.dialect.protocol == Protocol::Http => {
                    self.take_response(rest, read_at, driver)?
                }
                Phase::Joining | Phase::Open => self.take_frame(rest, plan, read_at, driver)?,
            };
            if taken == 0 {
                break;
            }
            used += taken;
        }
        Ok(used)
    }

    fn take_switch(
        &mut self,
        bytes: &[u8],
        plan: &Plan,
        driver: &mut impl Driver,
    ) -> io::Result<usize> {
        let Some(response) = Response::parse(bytes)? else {
            return Ok(0);
        };
        if response.status != 101 {
            return Err(io::Error::other(format!(
                "the upgrade was answered {}",
                response.status
            )));
        }
        self.phase = Phase::Joining;
        let joining = plan.dialect.upgraded(plan.channel(self.number));
        self.join(joining, driver)?;
        Ok(response.head_length)
    }

    fn join(&mut self, joining: Joining, driver: &mut impl Driver) -> io::Result<()> {
        match joining {
            Joining::Waits => Ok(()),
            Joining::Sends(text) => self.send_message(text.as_bytes()),
            Joining::Joined => {
                self.phase = Phase::Open;
                driver.opened(self)
            }
        }
    }

    fn send_message(&mut self, text: &[u8]) -> io::Result<()> {
        let mut frame = Vec::new();
        wire::append_masked(&mut frame, wire::TEXT, text);
        self.pipe.send(&frame)
    }

    fn take_frame(
        &mut self,
        bytes: &[u8],
        plan: &Plan,
        read_at: Instant,
        driver: &mut impl Driver,
    ) -> io::Result<usize> {
        let head = match wire::parse(bytes) {
            Parsed::Frame(head) => head,
            Parsed::Incomplete => return Ok(0),
            Parsed::Fragment => return Err(io::Error::other("the server sent a fragment")),
        };
        let payload = &bytes[head.payload_start..head.end];
        match head.opcode {
            wire::TEXT | wire::BINARY if self.phase == Phase::Joining => {
                let joining = plan.dialect.joining(payload);
                let joining = joining
                    .map_err(|said| io::Error::other(format!("the server refused: {said}")))?;
                self.join(joining, driver)?;
            }
            wire::TEXT | wire::BINARY => match plan.dialect.heartbeat(payload) {
                Some(response) => self.send_message(response)?,
                None => plan.dialect.payloads(payload, |payload| {
                    self.received += 1;
                    driver.message(self, payload, read_at)
                })?,
            },
            wire::PING => {
                let mut pong = Vec::new();
                wire::append_masked(&mut pong, wire::PONG, payload);
                self.pipe.send(&pong)?;
            }
            wire::CLOSE => {
                let code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                return Err(io::Error::other(format!("the server closed with {code:?}")));
            }
            _ => {}
        }
        Ok(head.end)
    }

    fn take_response(
        &mut self,
        bytes: &[u8],
        read_at: Instant,
        driver: &mut impl Driver,
    ) -> io::Result<usize> {
        let Some(response) = Response::parse(bytes)? else {
            return Ok(0);
        };
        if !(200..300).contains(&response.status) {
            return Err(io::Error::other(format!(
                "a request was answered {}",
                response.status
            )));
        }
        let end = response.head_length + response.body_length;
        let Some(body) = bytes.get(response.head_length..end) else {
            return Ok(0);
        };
        self.received += 1;
        driver.message(self, body, read_at)?;
        Ok(end)
    }
}

/// What the head of an HTTP response says that matters here.
struct Response {
    status: u16,
    head_length: usize,
    body_length: usize,
}

impl Response {
    fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        let head_length = match response.parse(bytes).map_err(io::Error::other)? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial => return Ok(None),
        };
        let body_length = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("content-length"))
            .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
            .unwrap_or(0);
        Ok(Some(Self {
            status: response.code.unwrap_or(0),
            head_length,
            body_length,
        }))
    }
}
