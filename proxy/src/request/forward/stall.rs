//! Timeouts of a request without progress, by what it waits for.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::config::Timeouts;

/// How long the edge waits for a 100 of the backend before it sends its own: as long as curl waits.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitsFor {
    /// More of the request's body.
    ClientBody,
    /// A 100 or a response, without which the client does not send its body.
    Continue,
    /// The client, which has to read what it was sent.
    ClientRead,
    /// The backend, which has to read what it was sent.
    BackendRead,
    /// The response, or more of it.
    Response,
    /// The response to an upgrade, which has one deadline for all of it.
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

/// One timer for all waits of a request. It restarts with each progress, and when the kind of wait changes.
pub(super) struct StallTimer<'a> {
    sleep: Pin<&'a mut Sleep>,
    waits_for: Option<(WaitsFor, u64)>,
}

impl<'a> StallTimer<'a> {
    /// Uses `sleep`, whose deadline is set by the first [`StallTimer::poll`].
    pub(super) fn new(sleep: Pin<&'a mut Sleep>) -> Self {
        Self {
            sleep,
            waits_for: None,
        }
    }

    /// Restarts the timer at the next poll.
    pub(super) fn restart(&mut self) {
        self.waits_for = None;
    }

    /// Ready when the request has waited for `waits_for` beyond its timeout, with `progress` unchanged.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        waits_for: WaitsFor,
        progress: u64,
        timeouts: &Timeouts,
    ) -> Poll<()> {
        if self.waits_for != Some((waits_for, progress)) {
            self.waits_for = Some((waits_for, progress));
            self.sleep
                .as_mut()
                .reset(Instant::now() + waits_for.limit(timeouts));
        }
        self.sleep.as_mut().poll(cx)
    }
}
