//! The task behind the feeds: reads what is missing, and ends feeds that nobody needs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Feeds;
use super::channel::Feed;
use super::sequence::Lost;

/// Streams that are read at a time; the broker pipelines them.
const READS_MAX: usize = 256;

/// From a read that failed to the next attempt.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

impl Feeds {
    /// Fills gaps and ends idle feeds, until `shutdown`.
    ///
    /// # Cancel safety
    ///
    /// Dropping it leaves gaps open and idle feeds where they are.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let mut reads = JoinSet::new();
        loop {
            while reads.len() < READS_MAX
                && let Some((since, feed)) = self.next_read()
            {
                reads.spawn(Arc::clone(&self).fill(feed, since));
            }
            let next_idle = self.end_idle();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some(ended) = reads.join_next() => {
                    if let Err(error) = ended {
                        std::panic::resume_unwind(error.into_panic()); // A bug, and the node must not go on.
                    }
                }
                () = self.changed.notified() => {}
                () = time::sleep_until(next_idle) => {}
            }
        }
    }

    /// Fills the gap of a feed that is known `since`, or tells its members that it cannot be done.
    async fn fill(self: Arc<Self>, feed: Arc<Feed>, since: Instant) {
        while let Err(error) = feed.fill(&self).await {
            debug!(channel = %feed.channel, %error, "cannot read what is missing");
            if self.config.gap_timeout <= since.elapsed() {
                return feed.give_up(&self, Lost::Unreadable);
            }
            time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Ends feeds whose time without members is over; when to look again.
    fn end_idle(&self) -> Instant {
        let now = Instant::now();
        loop {
            let mut due = self.due.lock();
            match due.idle.front() {
                None => return now + self.config.linger,
                Some((at, _)) if now < *at => return *at,
                Some(_) => {}
            }
            let Some((_, feed)) = due.idle.pop_front() else {
                continue;
            };
            drop(due);
            self.end_if_idle(&feed);
        }
    }

    /// Takes a feed without members out of the map; it is idle for at least as long as it was listed.
    fn end_if_idle(&self, feed: &Arc<Feed>) {
        let mut feeds = self.feeds.write();
        feed.usage.is_listed.store(false, Ordering::Release);
        if feed.usage.users.load(Ordering::Acquire) == 0 {
            self.remove_from(&mut feeds, feed);
        }
    }
}
