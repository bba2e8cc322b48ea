//! Closed loop: as soon as a client's answer has come, it asks again.

use std::io;
use std::time::{Duration, Instant};

use crate::bench::load::{Connection, Driver, Latency, Load, Patience};

/// What came of a closed loop.
pub(crate) struct Volleyed {
    /// Answers that came.
    pub(crate) answers: u64,
    /// From each question to its answer.
    pub(crate) latency: Latency,
}

impl Load {
    /// Keeps every client asking for `duration`: a WebSocket message of `payload_bytes` that is
    /// echoed, or the plan's request.
    pub(crate) fn volley(
        &mut self,
        payload_bytes: usize,
        duration: Duration,
    ) -> anyhow::Result<Volleyed> {
        let question = self.message(&vec![b'x'; payload_bytes]);
        for index in 0..self.clients() {
            self.send(index, &question);
        }
        let mut volley = Volley {
            question,
            end: Instant::now() + duration,
            open_questions: self.clients(),
            answers: 0,
            latency: Latency::default(),
        };
        let mut patience = Patience::new();
        while 0 < volley.open_questions {
            self.turn(&mut volley, Duration::from_millis(100))?;
            self.all_here()?;
            patience.check(volley.answers, "questions answered")?;
        }
        Ok(Volleyed {
            answers: volley.answers,
            latency: volley.latency,
        })
    }
}

struct Volley {
    question: Vec<u8>,
    end: Instant,
    open_questions: usize,
    answers: u64,
    latency: Latency,
}

impl Driver for Volley {
    fn message(
        &mut self,
        connection: &mut Connection,
        _: &[u8],
        read_at: Instant,
    ) -> io::Result<()> {
        self.answers += 1;
        if let Some(sent_at) = connection.sent_at {
            self.latency
                .record(read_at.saturating_duration_since(sent_at));
        }
        if self.end <= read_at {
            self.open_questions -= 1;
            return Ok(());
        }
        connection.sent_at = Some(Instant::now());
        connection.send(&self.question)
    }
}
