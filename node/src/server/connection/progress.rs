//! The progress of an HTTP exchange, which hyper does not expose, derived from its I/O.
//!
//! The socket under hyper, the bodies of request and response, and the service report events; the connection's
//! loop asks for the next [`Step`]. Nothing here waits.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::server::routing::Upgrade;
use crate::server::routing::WaitingPoll;

/// How much of a response a client has to read within the write timeout: half a KB a second with 30 s.
pub(super) const STRIDE_BYTES: usize = 16 << 10;

/// The state of the current exchange.
pub(super) struct Progress {
    /// For the client to read a stride of the response, or the rest.
    send_timeout: Duration,
    state: Mutex<State>,
}

struct State {
    has_received: bool,
    exchange: Exchange,
    is_body_read: bool,
    /// All written bytes are in the socket.
    is_flushed: bool,
    /// Since when the socket accepts too little, and how much it has accepted since.
    stalled: Option<(Instant, usize)>,
    poll: Option<WaitingPoll>,
    upgrade: Option<Upgrade>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Exchange {
    /// There is no whole request head yet.
    Awaited,
    /// The response is being made.
    Responding(After),
    /// hyper has all of the response.
    Responded(After),
}

/// What follows a response.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    NextRequest,
    End,
}

/// The next step of the connection.
pub(super) enum Step {
    /// Nothing was received: the socket only seemed readable.
    Silent,
    /// Idle until the next request: hyper is not needed.
    Idle,
    /// A poll waits: hyper is not needed.
    Rest(WaitingPoll),
    /// It is a WebSocket now.
    Upgrade(Upgrade),
    /// A part of a request head was received.
    ReadingHead,
    /// A request is read or responded to; the client has until `due`.
    Busy {
        /// Set while the client does not read.
        due: Option<Instant>,
    },
    /// It is evicted.
    Evicted,
    /// It has served its last request.
    Done,
}

impl Progress {
    pub(super) fn new(send_timeout: Duration) -> Self {
        Self {
            send_timeout,
            state: Mutex::new(State {
                has_received: false,
                exchange: Exchange::Awaited,
                is_body_read: false,
                is_flushed: true,
                stalled: None,
                poll: None,
                upgrade: None,
            }),
        }
    }

    /// Bytes were received.
    pub(super) fn received(&self) {
        self.state.lock().has_received = true;
    }

    /// A request head is whole.
    pub(super) fn begin(&self, has_no_body: bool) {
        let mut state = self.state.lock();
        state.exchange = Exchange::Responding(After::End);
        state.is_body_read = has_no_body;
    }

    /// The request's body has been read to its end.
    pub(super) fn body_read(&self) {
        self.state.lock().is_body_read = true;
    }

    pub(super) fn is_body_read(&self) -> bool {
        self.state.lock().is_body_read
    }

    /// The request waits for its response, and may do so without hyper.
    pub(super) fn begin_rest(&self, poll: WaitingPoll) {
        self.state.lock().poll = Some(poll);
    }

    /// The response is a 101.
    pub(super) fn begin_upgrade(&self, upgrade: Upgrade) {
        self.state.lock().upgrade = Some(upgrade);
    }

    /// Another request may follow this response; only for a request that was read whole.
    pub(super) fn keep_alive(&self) {
        self.state.lock().exchange = Exchange::Responding(After::NextRequest);
    }

    /// hyper has all of the response, and has not written its end yet.
    pub(super) fn responded(&self) {
        let mut state = self.state.lock();
        if let Exchange::Responding(after) = state.exchange {
            state.exchange = Exchange::Responded(after);
            state.is_flushed = false;
        }
    }

    /// The socket has accepted `bytes`.
    pub(super) fn wrote(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.is_flushed = false;
        if let Some((since, taken)) = &mut state.stalled {
            *taken += bytes;
            if STRIDE_BYTES <= *taken {
                (*since, *taken) = (Instant::now(), 0);
            }
        }
    }

    /// The socket accepts nothing at the moment.
    pub(super) fn blocked(&self) {
        let mut state = self.state.lock();
        state.is_flushed = false;
        state.stalled.get_or_insert_with(|| (Instant::now(), 0));
    }

    /// The socket has accepted everything.
    pub(super) fn flushed(&self) {
        let mut state = self.state.lock();
        state.is_flushed = true;
        state.stalled = None;
    }

    /// Whether there is no whole request head yet.
    pub(super) fn awaits_request(&self) -> bool {
        self.state.lock().exchange == Exchange::Awaited
    }

    /// The upgrade of the connection, if there is one; returned once.
    pub(super) fn upgrade(&self) -> Option<Upgrade> {
        self.state.lock().upgrade.take()
    }

    /// The next step, once hyper can make no more progress.
    pub(super) fn step(&self) -> Step {
        let mut state = self.state.lock();
        let is_flushed = state.is_flushed;
        if let Some(poll) = state.poll.take_if(|_| is_flushed) {
            return Step::Rest(poll);
        }
        match state.exchange {
            Exchange::Awaited if state.has_received => Step::ReadingHead,
            Exchange::Awaited => Step::Silent,
            Exchange::Responded(After::NextRequest) if is_flushed => Step::Idle,
            Exchange::Responded(After::End) if is_flushed => Step::Done,
            Exchange::Responding(_) | Exchange::Responded(_) => Step::Busy {
                due: state.stalled.map(|(since, _)| since + self.send_timeout),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Response;
    use tokio::time;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn name(step: &Step) -> &'static str {
        match step {
            Step::Silent => "silent",
            Step::Idle => "idle",
            Step::Rest(_) => "rest",
            Step::Upgrade(_) => "upgrade",
            Step::ReadingHead => "head",
            Step::Busy { due: None } => "busy",
            Step::Busy { due: Some(_) } => "stalled",
            Step::Evicted => "evicted",
            Step::Done => "done",
        }
    }

    fn step(progress: &Progress) -> &'static str {
        name(&progress.step())
    }

    #[test]
    fn a_connection_is_silent_before_the_first_byte_and_idle_behind_the_last_of_a_response() {
        let progress = Progress::new(TIMEOUT);
        assert_eq!(step(&progress), "silent");
        progress.received();
        assert_eq!(step(&progress), "head");
        progress.begin(true);
        progress.keep_alive();
        assert_eq!(step(&progress), "busy");
        progress.wrote(100);
        progress.flushed();
        assert_eq!(step(&progress), "busy", "the response goes on");
        progress.responded();
        assert_eq!(step(&progress), "busy", "its end is not written");
        progress.flushed();
        assert_eq!(step(&progress), "idle");
    }

    #[test]
    fn a_connection_that_is_not_kept_is_done_with_its_response() {
        let progress = Progress::new(TIMEOUT);
        progress.received();
        progress.begin(false);
        progress.responded();
        progress.flushed();
        assert_eq!(step(&progress), "done");
    }

    #[test]
    fn a_poll_rests_once_everything_before_it_is_written() {
        let progress = Progress::new(TIMEOUT);
        progress.received();
        progress.begin(true);
        progress.blocked();
        progress.begin_rest(Box::pin(async { Response::new(Bytes::new()) }));
        assert_eq!(step(&progress), "stalled");
        progress.flushed();
        assert_eq!(step(&progress), "rest");
        assert_eq!(step(&progress), "busy", "it is given out once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_has_its_time_for_each_stride_of_a_response() {
        let progress = Progress::new(TIMEOUT);
        let due = || match progress.step() {
            Step::Busy { due } => due,
            step => panic!("{}", name(&step)),
        };
        progress.begin(true);
        progress.wrote(1 << 20);
        assert_eq!(due(), None);
        let start = Instant::now();
        progress.blocked();
        time::advance(Duration::from_secs(10)).await;
        progress.blocked();
        progress.wrote(STRIDE_BYTES - 1);
        assert_eq!(due(), Some(start + TIMEOUT));
        progress.wrote(1);
        assert_eq!(due(), Some(Instant::now() + TIMEOUT));
        progress.flushed();
        assert_eq!(due(), None);
    }
}
