//! How long a request may stand still, by what it waits for.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::config::Timeouts;

/// How long a client that expects a 100 waits for the backend's before it gets one from the edge: as long as curl waits.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// More of the request's body.
    ClientBody,
    /// A 100 or a response, without which the client does not send its body.
    Continue,
    /// The client, which has to take what it was sent.
    ClientRead,
    /// The backend, which has to take what it was sent.
    BackendRead,
    /// The response, or more of it.
    Response,
    /// The response to an upgrade, all of which has one deadline.
    Upgrade,
}

impl WaitsFor {
    fn limit(self, timeouts: &Timeouts) -> Duration {
        match self {
            Self::ClientBody => timeouts.downstream_read,
            Self::Continue => CONTINUE_WAIT,
            Self::ClientRead => timeouts.downstream_write,
            Self::BackendRead => timeouts.upstream_write,
            Self::Response => timeouts.upstream_read,
            Self::Upgrade => timeouts.upgrade,
        }
    }
}

/// One timer for all of a request's waits. It is set anew by each progress, and when something else is waited for.
pub(super) struct StallTimer<'a> {
    sleep: Pin<&'a mut Sleep>,
    waits: Option<(WaitsFor, u64)>,
}

impl<'a> StallTimer<'a> {
    /// By a timer that has not been set yet.
    pub(super) fn new(sleep: Pin<&'a mut Sleep>) -> Self {
        Self { sleep, waits: None }
    }

    /// Begins anew with the next wait.
    pub(super) fn restart(&mut self) {
        self.waits = None;
    }

    /// Ready when the request has waited for this for too long: `progress` has not changed meanwhile.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        waits: WaitsFor,
        progress: u64,
        timeouts: &Timeouts,
    ) -> Poll<()> {
        if self.waits != Some((waits, progress)) {
            self.waits = Some((waits, progress));
            self.sleep
                .as_mut()
                .reset(Instant::now() + waits.limit(timeouts));
        }
        self.sleep.as_mut().poll(cx)
    }
}
