//! Every client sends one message and gets one back.

use std::io;
use std::time::{Duration, Instant};

use crate::bench::load::{Connection, Driver, Load, Patience};

/// Clients that may be in the middle of their exchange at a time.
const EXCHANGING_MAX: usize = 64;

impl Load {
    /// Has each client in turn send `payload_bytes` and wait until as much has come back.
    pub(crate) fn exchange(&mut self, payload_bytes: usize) -> anyhow::Result<()> {
        self.await_each(payload_bytes, self.clients())
    }

    /// Has one client publish `payload_bytes` and waits until every client has it.
    pub(crate) fn spread(&mut self, payload_bytes: usize) -> anyhow::Result<()> {
        self.publish_one(0, 1, &vec![b'x'; payload_bytes])?;
        self.await_each(payload_bytes, 0)
    }

    /// Sends one message from each of the first `senders`, and waits until each client has one.
    fn await_each(&mut self, payload_bytes: usize, senders: usize) -> anyhow::Result<()> {
        let payload = vec![b'x'; payload_bytes];
        let message = self.message(&payload);
        let mut exchange = Exchange {
            payload_bytes,
            answered: 0,
        };
        let mut sent = 0;
        let mut patience = Patience::new();
        while exchange.answered < self.clients() {
            while sent < senders && sent < exchange.answered + EXCHANGING_MAX {
                self.send(sent, &message);
                sent += 1;
            }
            self.turn(&mut exchange, Duration::from_millis(100))?;
            self.all_here()?;
            patience.check(exchange.answered as u64, "clients answered")?;
        }
        Ok(())
    }
}

struct Exchange {
    payload_bytes: usize,
    answered: usize,
}

impl Driver for Exchange {
    fn message(&mut self, _: &mut Connection, payload: &[u8], _: Instant) -> io::Result<()> {
        if payload.len() != self.payload_bytes {
            return Err(io::Error::other(format!(
                "{} bytes came where {} were due",
                payload.len(),
                self.payload_bytes
            )));
        }
        self.answered += 1;
        Ok(())
    }
}
