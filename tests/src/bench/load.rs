//! The load generator: thousands of clients on one thread, with as little CPU as can be.
//!
//! One epoll loop, no task and no buffer for each client. A scenario is a [`Driver`] that says what
//! to send when something came; the loop does the rest. A connection that ends before the scenario
//! ends is lost, and counted: the report shows it.

mod churn;
mod connection;
mod exchange;
mod latency;
mod plan;
mod poster;
mod publish;
mod volley;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

pub(crate) use self::connection::Connection;
pub(crate) use self::connection::Driver;
pub(crate) use self::latency::Latency;
pub(crate) use self::plan::Plan;
pub(crate) use self::publish::{Published, Publishing};
pub(crate) use self::volley::Segments;

use self::poster::Poster;
use crate::bench::certificate;
use crate::bench::pipe::{Pipe, SCRATCH_BYTES};

/// Connections that may be half open at a time.
const OPENING_MAX: usize = 64;
/// Clients that share one source address: well below the ports that the kernel gives out.
const CLIENTS_PER_ADDRESS: usize = 5_000;
/// How long the loop may go without any progress where progress is due.
const STALL: Duration = Duration::from_secs(20);
/// How long one load may take in all: whatever a server does, the run goes on.
const DEADLINE: Duration = Duration::from_secs(120);

/// The clients of one scenario.
pub(crate) struct Load {
    plan: Plan,
    poll: Poll,
    events: Events,
    /// By token. `None` once lost.
    connections: Vec<Option<Connection>>,
    scratch: Box<[u8]>,
    lost: Lost,
    /// How many clients read nothing any more.
    stalled: usize,
    /// Who publishes, where clients do not.
    poster: Option<Poster>,
    born: Instant,
    deadline: Instant,
}

/// What has become of connections that should have stayed.
#[derive(Default)]
struct Lost {
    count: usize,
    last: Option<io::Error>,
}

impl Load {
    /// A generator without clients.
    pub(crate) fn new(plan: Plan) -> io::Result<Self> {
        Ok(Self {
            plan,
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            connections: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES].into_boxed_slice(),
            lost: Lost::default(),
            stalled: 0,
            poster: None,
            born: Instant::now(),
            deadline: Instant::now() + DEADLINE,
        })
    }

    /// The same generator, which may go on for `duration` more than usual.
    pub(crate) fn lasting(self, duration: Duration) -> Self {
        Self {
            deadline: self.deadline + duration,
            ..self
        }
    }

    /// Opens `count` clients, a few at a time, and returns when the last is ready for messages.
    pub(crate) fn open(&mut self, count: usize) -> anyhow::Result<()> {
        if self.plan.dialect.has_api() && self.poster.is_none() {
            let poster = Poster::connect(&self.plan, self.poll.registry());
            self.poster = Some(poster.context("cannot connect to publish")?);
        }
        let mut opening = Opening { opened: 0 };
        let mut started = 0;
        let mut patience = Patience::new();
        while opening.opened < count {
            while started < count && started - opening.opened < OPENING_MAX {
                self.start().context("cannot open a connection")?;
                started += 1;
            }
            self.turn(&mut opening, Duration::from_millis(100))?;
            self.all_here()?;
            patience.check(opening.opened as u64, "clients opened")?;
        }
        Ok(())
    }

    /// Serves the clients for a while in which nothing is to happen, such as before memory is read.
    pub(crate) fn idle(&mut self, duration: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + duration;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.turn(&mut Ignore, left)?;
        }
        self.all_here()
    }

    /// Has the last `count` clients read nothing from now on.
    pub(crate) fn stall(&mut self, count: usize) {
        for connection in self.connections.iter_mut().rev().take(count).flatten() {
            connection.is_stalled = true;
        }
        self.stalled = count;
    }

    /// The bytes by which a client sends `payload`.
    fn message(&self, payload: &[u8]) -> Vec<u8> {
        self.plan.dialect.message(self.plan.address(0), payload)
    }

    /// How many clients there are, with those that are lost.
    fn clients(&self) -> usize {
        self.connections.len()
    }

    /// How many connections have ended that should not have.
    pub(crate) fn lost(&self) -> usize {
        self.lost.count
    }

    /// Fails if a connection has been lost: for the scenarios that measure what connections cost.
    fn all_here(&mut self) -> anyhow::Result<()> {
        match self.lost.last.take() {
            Some(error) => {
                Err(error).with_context(|| format!("{} connections lost", self.lost.count))
            }
            None => Ok(()),
        }
    }

    fn start(&mut self) -> io::Result<()> {
        self.connections.push(None);
        self.start_at(self.connections.len() - 1)
    }

    /// Begins to connect the client of this number, in the place of who was there.
    fn start_at(&mut self, number: usize) -> io::Result<()> {
        let host = 2 + u8::try_from(number / CLIENTS_PER_ADDRESS).map_err(io::Error::other)?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
        // A reset at the end leaves no port behind that waits for a minute.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0)).into())?;
        match socket.connect(&self.plan.address(number).into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(number), both)?;
        let mut connection = Connection::new(pipe(stream, &self.plan)?, number);
        connection.sent_at = Some(Instant::now());
        self.connections[number] = Some(connection);
        Ok(())
    }

    /// Waits at most `timeout` for events and hands them to `driver`.
    fn turn(&mut self, driver: &mut impl Driver, timeout: Duration) -> io::Result<()> {
        if self.deadline < Instant::now() {
            return Err(io::Error::other("not done in time"));
        }
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in &self.events {
            let Some(slot) = self.connections.get_mut(event.token().0) else {
                if let Some(poster) = &mut self.poster {
                    poster.advance(event, &mut self.scratch);
                }
                continue;
            };
            let Some(connection) = slot else {
                continue;
            };
            if let Err(error) = connection.advance(event, &self.plan, &mut self.scratch, driver) {
                *slot = None;
                self.lost.count += 1;
                self.lost.last = Some(error);
            }
        }
        Ok(())
    }

    /// Sends `bytes`, with which a question begins, on one connection, unless it is lost.
    fn send(&mut self, index: usize, bytes: &[u8]) {
        if let Some(Some(connection)) = self.connections.get_mut(index) {
            connection.sent_at = Some(Instant::now());
        }
        self.send_rest(index, bytes);
    }

    /// Sends `bytes`, with which a question goes on, on one connection, unless it is lost.
    fn send_rest(&mut self, index: usize, bytes: &[u8]) {
        let Some(slot) = self.connections.get_mut(index) else {
            return;
        };
        if let Some(connection) = slot
            && let Err(error) = connection.send(bytes)
        {
            *slot = None;
            self.lost.count += 1;
            self.lost.last = Some(error);
        }
    }
}

/// What carries the bytes of one connection of `plan`.
fn pipe(stream: TcpStream, plan: &Plan) -> io::Result<Pipe> {
    match &plan.tls {
        None => Ok(Pipe::new(stream)),
        Some(config) => Pipe::over_tls(stream, config, certificate::NAME),
    }
}

struct Opening {
    opened: usize,
}

impl Driver for Opening {
    fn opened(&mut self, _connection: &mut Connection) -> io::Result<()> {
        self.opened += 1;
        Ok(())
    }

    fn message(&mut self, _: &mut Connection, _: &[u8], _: Instant) -> io::Result<()> {
        Ok(())
    }
}

/// Takes what comes and does nothing about it.
struct Ignore;

impl Driver for Ignore {
    fn message(&mut self, _: &mut Connection, _: &[u8], _: Instant) -> io::Result<()> {
        Ok(())
    }
}

/// Notices when a count that should grow does not.
struct Patience {
    count: u64,
    since: Instant,
}

impl Patience {
    fn new() -> Self {
        Self {
            count: 0,
            since: Instant::now(),
        }
    }

    /// Fails if `count` has stood still for too long.
    fn check(&mut self, count: u64, what: &str) -> anyhow::Result<()> {
        if self.over(count, STALL) {
            bail!("stalled at {count} {what}");
        }
        Ok(())
    }

    /// Whether `count` has stood still for longer than `limit`.
    fn over(&mut self, count: u64, limit: Duration) -> bool {
        if self.count < count {
            *self = Self {
                count,
                since: Instant::now(),
            };
        }
        limit < self.since.elapsed()
    }
}
