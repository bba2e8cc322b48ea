//! Clients that come, have one message echoed, and go: new ones take their places.

use std::io;
use std::time::{Duration, Instant};

use crate::bench::load::{Connection, Driver, Latency, Load, Patience};

/// Places for clients.
const WIDTH: usize = 32;

/// What came of it.
pub(crate) struct Churned {
    /// Clients that came and went.
    pub(crate) clients: u64,
    /// From the start of a connection to the echo of its message.
    pub(crate) latency: Latency,
}

impl Load {
    /// Lets clients come and go for `duration`, each with a message of `payload_bytes`.
    pub(crate) fn churn(
        &mut self,
        payload_bytes: usize,
        duration: Duration,
    ) -> anyhow::Result<Churned> {
        let first = self.connections.len();
        let mut churning = Churning {
            question: self.message(&vec![b'x'; payload_bytes]),
            gone: Vec::new(),
            latency: Latency::default(),
        };
        for _ in 0..WIDTH {
            self.start()?;
        }
        let end = Instant::now() + duration;
        let mut clients = 0;
        let mut patience = Patience::new();
        while Instant::now() < end {
            self.turn(&mut churning, Duration::from_millis(100))?;
            self.all_here()?;
            while let Some(number) = churning.gone.pop() {
                clients += 1;
                self.start_at(number)?;
            }
            patience.check(clients, "clients that came and went")?;
        }
        self.connections.truncate(first);
        Ok(Churned {
            clients,
            latency: churning.latency,
        })
    }
}

struct Churning {
    question: Vec<u8>,
    /// Whose places are free again.
    gone: Vec<usize>,
    latency: Latency,
}

impl Driver for Churning {
    fn opened(&mut self, connection: &mut Connection) -> io::Result<()> {
        connection.send(&self.question)
    }

    fn message(
        &mut self,
        connection: &mut Connection,
        _: &[u8],
        read_at: Instant,
    ) -> io::Result<()> {
        if let Some(started_at) = connection.sent_at.take() {
            self.latency
                .record(read_at.saturating_duration_since(started_at));
            self.gone.push(connection.number());
        }
        Ok(())
    }
}
