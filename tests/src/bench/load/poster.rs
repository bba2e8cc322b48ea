//! The backend of an application, which publishes by HTTP requests on a few connections that are kept.
//!
//! Requests do not wait for the responses to those before them: the load is open.

use std::io;
use std::net::TcpStream;
use std::time::Instant;

use mio::event::Event;
use mio::{Interest, Registry, Token};

use crate::bench::dialect::Dialect;
use crate::bench::load::connection::{Connection, Driver};
use crate::bench::load::pipe;
use crate::bench::load::plan::Plan;

/// The token of the first connection: behind those of all clients.
const FIRST: usize = 1 << 40;
/// Connections that requests take turns with.
const CONNECTIONS: usize = 16;

/// Publishes to the servers of a plan.
pub(super) struct Poster {
    plan: Plan,
    connections: Vec<Connection>,
    posted: usize,
    /// What ended it.
    error: Option<io::Error>,
}

impl Poster {
    /// Connects to where the clients of `clients` do.
    pub(super) fn connect(clients: &Plan, registry: &Registry) -> io::Result<Self> {
        let mut connections = Vec::new();
        for number in 0..CONNECTIONS {
            let stream = TcpStream::connect(clients.address(number))?;
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let mut stream = mio::net::TcpStream::from_std(stream);
            let both = Interest::READABLE | Interest::WRITABLE;
            registry.register(&mut stream, Token(FIRST + number), both)?;
            connections.push(Connection::ready(pipe(stream, clients)?, number));
        }
        let plan = Plan::new(clients.address(0), Dialect::http("/", None));
        Ok(Self {
            plan,
            connections,
            posted: 0,
            error: None,
        })
    }

    /// Sends a request. What goes wrong is told by [`Poster::check`].
    pub(super) fn post(&mut self, request: &[u8]) {
        let connection = &mut self.connections[self.posted % CONNECTIONS];
        self.posted += 1;
        if let Err(error) = connection.send(request) {
            self.error.get_or_insert(error);
        }
    }

    /// Takes the responses that have come, if `event` is about one of its connections.
    pub(super) fn advance(&mut self, event: &Event, scratch: &mut [u8]) {
        let number = event.token().0.checked_sub(FIRST);
        if let Some(connection) = number.and_then(|number| self.connections.get_mut(number))
            && let Err(error) = connection.advance(event, &self.plan, scratch, &mut Responses)
        {
            self.error.get_or_insert(error);
        }
    }

    /// Fails if a request has failed, or a connection was lost.
    pub(super) fn check(&mut self) -> io::Result<()> {
        self.error.take().map_or(Ok(()), Err)
    }
}

struct Responses;

impl Driver for Responses {
    fn message(&mut self, _: &mut Connection, body: &[u8], _: Instant) -> io::Result<()> {
        let body = String::from_utf8_lossy(body);
        match body.contains("\"error\":") {
            true => Err(io::Error::other(format!("publishing: {body}"))),
            false => Ok(()),
        }
    }
}
