//! How many members each channel has on this node.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ChannelStreams;
use super::channel::ChannelStream;
use crate::cluster::control::ChannelCounts;

impl ChannelCounts for ChannelStreams {
    fn each(&self, show: &mut dyn FnMut(&str, u64)) {
        // Copied, so that counting does not block joins.
        let streams: Vec<Arc<ChannelStream>> = self.streams.read().values().cloned().collect();
        for stream in streams.iter().filter(|stream| !stream.has_ended()) {
            let users = stream.usage.users.load(Ordering::Relaxed);
            if 0 < users {
                show(stream.channel.as_str(), users as u64);
            }
        }
    }
}
