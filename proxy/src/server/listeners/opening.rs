//! When listeners begin to accept, and whether they do.

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::server::workers::Workers;

/// The beginning of one service that listens. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    open: CancellationToken,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// The threads of the service, once it is open.
    workers: Option<Workers>,
    /// How many listeners do not accept yet.
    missing: usize,
}

impl Opening {
    /// For a service that accepts as soon as it is started.
    pub(crate) fn at_once() -> Self {
        let opening = Self::later();
        opening.open();
        opening
    }

    /// For a service that waits for [`Opening::open`].
    pub(crate) fn later() -> Self {
        Self {
            open: CancellationToken::new(),
            progress: watch::Sender::new(Progress::default()),
        }
    }

    /// The beginning of another service, at the same time.
    pub(crate) fn beside(&self) -> Self {
        Self {
            open: self.open.clone(),
            ..Self::later()
        }
    }

    pub(crate) fn open(&self) {
        self.open.cancel();
    }

    /// Ready when every listener accepts; with the threads that serve the connections.
    pub(crate) async fn accepting(&self) -> Workers {
        let mut progress = self.progress.subscribe();
        let done = progress.wait_for(|it| it.workers.is_some() && it.missing == 0);
        // The sender is in `self`.
        let workers = done.await.ok().and_then(|it| it.workers.clone());
        workers.expect("it was waited for")
    }

    /// Ready when the service may accept.
    pub(super) async fn opened(&self) {
        self.open.cancelled().await;
    }

    /// There are so many listeners.
    pub(super) fn expect(&self, listeners: usize, workers: &Workers) {
        self.progress.send_modify(|progress| {
            progress.workers = Some(workers.clone());
            progress.missing = listeners;
        });
    }

    /// One more listener accepts.
    pub(super) fn note_accepting(&self) {
        self.progress
            .send_modify(|progress| progress.missing = progress.missing.saturating_sub(1));
    }
}
