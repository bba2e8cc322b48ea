//! The load generator: thousands of clients on one thread, with as little CPU as can be.
//!
//! One epoll loop, no task and no buffer for each client. A scenario is a [`Driver`] that says what
//! to send when something came; the loop does the rest. A connection that ends before the scenario
//! ends is lost, and counted: the report shows it.

mod connection;
mod exchange;
mod latency;
mod plan;
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
pub(crate) use self::publish::Publishing;

use crate::bench::certificate;
use crate::bench::pipe::{Pipe, SCRATCH_BYTES};

/// Connections that may be half open at a time.
const OPENING_MAX: usize = 64;
/// Clients that share one source address: well below the ports that the kernel gives out.
const CLIENTS_PER_ADDRESS: usize = 5_000;
/// How long the loop may go without any progress where progress is due.
const STALL: Duration = Duration::from_secs(20);

/// The clients of one scenario.
pub(crate) struct Load {
    plan: Plan,
    poll: Poll,
    events: Events,
    /// By token. `None` once lost.
    connections: Vec<Option<Connection>>,
    scratch: Box<[u8]>,
    lost: Lost,
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
        })
    }

    /// Opens `count` clients, a few at a time, and returns when the last is ready for messages.
    pub(crate) fn open(&mut self, count: usize) -> anyhow::Result<()> {
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
        let index = self.connections.len();
        let host = 2 + u8::try_from(index / CLIENTS_PER_ADDRESS).map_err(io::Error::other)?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
        // A reset at the end leaves no port behind that waits for a minute.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.set_tcp_nodelay(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0)).into())?;
        match socket.connect(&self.plan.address.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let mut stream = TcpStream::from_std(socket.into());
        let both = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(&mut stream, Token(index), both)?;
        let pipe = match &self.plan.tls {
            None => Pipe::new(stream),
            Some(config) => Pipe::over_tls(stream, config, certificate::NAME)?,
        };
        self.connections.push(Some(Connection::new(pipe, index)));
        Ok(())
    }

    /// Waits at most `timeout` for events and hands them to `driver`.
    fn turn(&mut self, driver: &mut impl Driver, timeout: Duration) -> io::Result<()> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in &self.events {
            let slot = &mut self.connections[event.token().0];
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

    /// Sends `bytes` on one connection, unless it is lost.
    fn send(&mut self, index: usize, bytes: &[u8]) {
        let Some(slot) = self.connections.get_mut(index) else {
            return;
        };
        if let Some(connection) = slot {
            connection.sent_at = Some(Instant::now());
            if let Err(error) = connection.send(bytes) {
                *slot = None;
                self.lost.count += 1;
                self.lost.last = Some(error);
            }
        }
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
