//! How many hear which channel on this node.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Feeds;
use super::channel::Feed;
use crate::cluster::control::Census;

impl Census for Feeds {
    fn each(&self, show: &mut dyn FnMut(&str, u64)) {
        // Copied, so that nobody who joins waits for whoever counts.
        let feeds: Vec<Arc<Feed>> = self.feeds.read().values().cloned().collect();
        for feed in feeds.iter().filter(|feed| !feed.has_ended()) {
            let users = feed.usage.users.load(Ordering::Relaxed);
            if 0 < users {
                show(feed.channel.as_str(), users as u64);
            }
        }
    }
}
