//! The maintenance task: reads missing publications, and ends unused streams.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::ChannelStreams;
use super::channel::ChannelStream;
use super::sequence::Lost;

/// Streams that are read at the same time; the broker pipelines the reads.
const READS_MAX: usize = 256;

/// The pause between a read that failed and the next attempt.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

impl ChannelStreams {
    /// Fills gaps and ends unused streams, until `shutdown`.
    ///
    /// # Cancel safety
    ///
    /// Dropping this future leaves gaps unfilled and unused streams in the map.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut reads = JoinSet::new();
        loop {
            while reads.len() < READS_MAX
                && let Some((since, stream)) = self.next_read()
            {
                reads.spawn(Arc::clone(&self).fill(stream, since));
            }
            let next_idle = self.end_idle();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some(ended) = reads.join_next() => {
                    if let Err(error) = ended {
                        std::panic::resume_unwind(error.into_panic()); // A bug: the node must stop.
                    }
                }
                () = self.changed.notified() => {}
                () = time::sleep_until(next_idle) => {}
            }
        }
    }

    /// Fills the gap that a stream has had `since` then; after `gap_timeout`, unsubscribes its members instead.
    async fn fill(self: Arc<Self>, stream: Arc<ChannelStream>, since: Instant) {
        while let Err(error) = stream.fill(&self).await {
            debug!(channel = %stream.channel, %error, "cannot read missing publications");
            if self.config.gap_timeout <= since.elapsed() {
                return stream.abandon(&self, Lost::Unreadable);
            }
            time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Ends streams that have been unused for `linger`; returns when to check again.
    fn end_idle(&self) -> Instant {
        let now = Instant::now();
        loop {
            let mut due = self.due.lock();
            match due.idle.front() {
                None => return now + self.config.linger,
                Some((at, _)) if now < *at => return *at,
                Some(_) => {}
            }
            let Some((_, stream)) = due.idle.pop_front() else {
                continue;
            };
            drop(due);
            self.end_if_idle(&stream);
        }
    }

    /// Removes a stream from the map if it is unused.
    fn end_if_idle(&self, stream: &Arc<ChannelStream>) {
        let mut streams = self.streams.write();
        stream.usage.is_listed.store(false, Ordering::Release);
        if stream.usage.users.load(Ordering::Acquire) == 0 {
            self.remove_from(&mut streams, stream);
        }
    }
}
