//! Closed loop: as soon as a client's response has come, it asks again.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::bench::load::{Connection, Driver, Latency, Load, Patience};
use crate::harness::segments::{Ends, SocketQueues};

/// What came of a closed loop.
pub(crate) struct Volleyed {
    /// Responses that came.
    pub(crate) responses: u64,
    /// From each question to its response.
    pub(crate) latency: Latency,
}

/// How a question is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segments {
    /// In one write.
    One,
    /// The head in one write, and the payload in another once the server has read the head: no read returns both.
    Two,
}

impl Load {
    /// Keeps every client asking for `duration`: a WebSocket message of `payload_bytes` that is
    /// echoed, or the plan's request.
    pub(crate) fn volley(
        &mut self,
        payload_bytes: usize,
        duration: Duration,
        segments: Segments,
    ) -> anyhow::Result<Volleyed> {
        let mut first = self.message(&vec![b'x'; payload_bytes]);
        let second = match segments {
            Segments::One => Vec::new(),
            Segments::Two => first.split_off(first.len().saturating_sub(payload_bytes)),
        };
        let mut volley = Volley {
            first,
            begun: Vec::new(),
            in_two: segments == Segments::Two,
            end: Instant::now() + duration,
            open_questions: self.clients(),
            responses: 0,
            latency: Latency::default(),
        };
        let mut payloads = match segments {
            Segments::One => None,
            Segments::Two => Some(Payloads::new(self, second)?),
        };
        for index in 0..self.clients() {
            self.send(index, &volley.first);
            volley.begins(index);
        }
        let mut patience = Patience::new();
        while 0 < volley.open_questions {
            let most = if volley.begun.is_empty() {
                Duration::from_millis(100)
            } else {
                Duration::ZERO
            };
            self.turn(&mut volley, most)?;
            self.all_here()?;
            if let Some(payloads) = &mut payloads {
                payloads.send_due(self, &mut volley.begun);
            }
            patience.check(volley.responses, "questions answered")?;
        }
        Ok(Volleyed {
            responses: volley.responses,
            latency: volley.latency,
        })
    }
}

/// Sends the payload of a question once the server has read its head, which the kernel tells.
struct Payloads {
    queues: SocketQueues,
    /// By client.
    ends: Vec<Ends>,
    payload: Vec<u8>,
}

impl Payloads {
    fn new(load: &Load, payload: Vec<u8>) -> anyhow::Result<Self> {
        let ends = load.connections.iter().map(|connection| {
            let connection = connection.as_ref().context("a connection is lost")?;
            let stream = &connection.pipe.stream;
            Ok(Ends {
                near: stream.local_addr()?,
                far: stream.peer_addr()?,
            })
        });
        Ok(Self {
            queues: SocketQueues::open()?,
            ends: ends.collect::<anyhow::Result<_>>()?,
            payload,
        })
    }

    /// Sends the payload for each client of `begun` whose head the server has read.
    fn send_due(&mut self, load: &mut Load, begun: &mut Vec<usize>) {
        let before = begun.len();
        begun.retain(|&client| {
            let unread = self.queues.unread(self.ends[client]);
            // A connection that the server has closed fails when it is written to.
            let is_due = unread.map_or(true, |unread| unread == 0);
            if is_due {
                load.send_rest(client, &self.payload);
            }
            !is_due
        });
        if begun.len() == before && 0 < before {
            // The server may need this processor to read.
            thread::yield_now();
        }
    }
}

struct Volley {
    /// All of a question, or its head where the payload is sent apart.
    first: Vec<u8>,
    in_two: bool,
    /// The clients that have sent the head and not yet the payload.
    begun: Vec<usize>,
    end: Instant,
    open_questions: usize,
    responses: u64,
    latency: Latency,
}

impl Volley {
    /// Notes that a client has sent the first write of its question.
    fn begins(&mut self, client: usize) {
        if self.in_two {
            self.begun.push(client);
        }
    }
}

impl Driver for Volley {
    fn message(
        &mut self,
        connection: &mut Connection,
        _: &[u8],
        read_at: Instant,
    ) -> io::Result<()> {
        self.responses += 1;
        if let Some(sent_at) = connection.sent_at {
            self.latency
                .record(read_at.saturating_duration_since(sent_at));
        }
        if self.end <= read_at {
            self.open_questions -= 1;
            return Ok(());
        }
        connection.sent_at = Some(Instant::now());
        self.begins(connection.number());
        connection.send(&self.first)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};

    use super::*;
    use crate::bench::dialect::Dialect;
    use crate::bench::load::Plan;

    const BODY: usize = 1_024;
    const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

    /// A server of one client, which responds to requests with a body of [`BODY`] until the client closes; the length of each read.
    fn serve() -> (SocketAddr, thread::JoinHandle<Vec<usize>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut reads, mut request, mut bytes) = (Vec::new(), Vec::new(), [0; 8 * BODY]);
            while let Ok(count @ 1..) = stream.read(&mut bytes) {
                reads.push(count);
                request.extend_from_slice(&bytes[..count]);
                let head = request.windows(4).position(|end| end == b"\r\n\r\n");
                if head.is_some_and(|head| request.len() == head + 4 + BODY) {
                    request.clear();
                    stream.write_all(RESPONSE).unwrap();
                }
            }
            reads
        });
        (address, served)
    }

    fn reads(segments: Segments) -> Vec<usize> {
        let (address, served) = serve();
        let plan = Plan::new(address, Dialect::http_post("/", None));
        let mut load = Load::new(plan).unwrap();
        load.open(1).unwrap();
        let volleyed = load.volley(BODY, Duration::from_millis(100), segments);
        assert!(0 < volleyed.unwrap().responses);
        drop(load);
        served.join().unwrap()
    }

    #[test]
    fn a_server_reads_head_and_body_at_once_or_one_after_the_other() {
        let at_once = reads(Segments::One);
        assert!(at_once.iter().all(|read| BODY < *read), "{at_once:?}");
        let apart = reads(Segments::Two);
        assert!(apart.len().is_multiple_of(2), "{apart:?}");
        for read in apart.chunks(2) {
            assert!(read[0] < BODY && read[1] == BODY, "{apart:?}");
        }
    }
}
