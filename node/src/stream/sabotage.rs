//! A node that does its worst on purpose, so that `make chaos` can be seen to find it. No release build has it.
//!
//! `CAUSEWAY_SABOTAGE=drop:300` keeps every 300th stored publication from the members of its channel,
//! `repeat:300` gives it to them twice, `swap:300` after the one that follows it. The feed believes that all
//! is well.

use std::collections::HashMap;
use std::env;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use tracing::error;

use super::Feeds;
use super::channel::Feed;
use crate::hub::Delivered;
use crate::protocol::Publication;
use crate::protocol::channel::ChannelName;

/// Where it is asked for.
const VARIABLE: &str = "CAUSEWAY_SABOTAGE";

/// What is done wrong, and how often.
#[derive(Debug)]
pub(super) struct Sabotage {
    deed: Deed,
    /// Of so many publications, to one.
    every: u64,
    count: AtomicU64,
    /// By the feed's seats, what goes out behind the next one.
    held: Mutex<HashMap<ChannelName, Arc<Publication>>>,
}

#[derive(Debug, Clone, Copy)]
enum Deed {
    Drop,
    Repeat,
    Swap,
}

impl Sabotage {
    /// What the environment asks for, if anything. What it asks for in other words is nothing.
    pub(super) fn asked_for() -> Option<Self> {
        let text = env::var(VARIABLE).ok()?;
        let (deed, every) = text.split_once(':')?;
        let deed = match deed {
            "drop" => Deed::Drop,
            "repeat" => Deed::Repeat,
            "swap" => Deed::Swap,
            _ => return None,
        };
        let every = every.parse().ok().filter(|every| 0 < *every)?;
        error!(
            ?deed,
            every, "publications are tampered with, as {VARIABLE} says"
        );
        Some(Self {
            deed,
            every,
            count: AtomicU64::new(0),
            held: Mutex::default(),
        })
    }

    /// Delivers `publication`, or does not.
    pub(super) fn deliver(
        &self,
        feeds: &Feeds,
        feed: &Feed,
        publication: &Arc<Publication>,
    ) -> Delivered {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let is_victim = count % self.every == self.every - 1;
        match self.deed {
            Deed::Drop if is_victim => return Delivered::Yes,
            Deed::Repeat if is_victim => {
                feed.push_publication(feeds, publication);
            }
            Deed::Swap if is_victim => {
                let held = Arc::clone(publication);
                self.held.lock().insert(feed.seats.clone(), held);
                return Delivered::Yes;
            }
            Deed::Drop | Deed::Repeat | Deed::Swap => {}
        }
        let delivered = feed.push_publication(feeds, publication);
        let held = self.held.lock().remove(&feed.seats);
        held.map_or(delivered, |held| feed.push_publication(feeds, &held))
    }
}
