//! Which channels the node wants, and which of them Redis has confirmed.
//!
//! Plain: the hub changes the wishes, the subscriber's loop takes batches of commands out and puts
//! confirmations in, and the two sets approach each other for ever. Wishes may change while a command is
//! under way; the next command goes out only once it is confirmed.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::mem;

use tokio::sync::oneshot;

use crate::protocol::channel::ChannelName;

/// The most channels in one command: larger ones hold up whatever else Redis has to do.
const BATCH_CHANNELS_MAX: usize = 512;

/// What is wanted and what is confirmed.
///
/// Invariants: a channel is in `unsettled`, under its `place`, if and only if its wish is not fulfilled and
/// no command for it is under way; `under_way`, `confirmed` and `wanted` count the channels in that state;
/// a channel that is neither wanted, confirmed nor under way is not in the map. So nothing grows while Redis is away
/// but by what is wanted.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    channels: HashMap<ChannelName, Channel>,
    /// In the order of their wishes.
    unsettled: BTreeMap<u64, ChannelName>,
    next_place: u64,
    under_way: usize,
    confirmed: usize,
    wanted: usize,
    /// Places below this are of wishes older than the connection.
    resumed_from: u64,
}

#[derive(Debug, Default)]
struct Channel {
    is_wanted: bool,
    is_confirmed: bool,
    /// A command that turns `is_confirmed` around was sent.
    is_under_way: bool,
    place: Option<u64>,
    /// Those who wait until the channel is confirmed.
    waiting: Vec<oneshot::Sender<()>>,
}

/// How many channels are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) wanted: usize,
    pub(super) confirmed: usize,
}

/// Whether a channel is subscribed, for who wants to be sure.
#[derive(Debug)]
pub(super) enum Confirmation {
    /// It is.
    Here,
    /// This is told when it is, and is dropped if nobody wants it any more.
    Awaited(oneshot::Receiver<()>),
    /// Nobody wants it.
    Never,
}

/// Commands to send; neither list is longer than [`BATCH_CHANNELS_MAX`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) subscribe: Vec<ChannelName>,
    pub(super) unsubscribe: Vec<ChannelName>,
}

/// A confirmation that nothing asked for: the two sides no longer agree, so the connection must go.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("redis confirmed a subscription that was not asked for")]
pub(super) struct Unasked;

impl Subscriptions {
    /// Wishes for `channel`, or no longer. Whether a batch may be ready now that was not before.
    pub(super) fn want(&mut self, channel: &ChannelName, is_wanted: bool) -> bool {
        if !is_wanted && !self.channels.contains_key(channel) {
            return false;
        }
        let state = self.channels.entry(channel.clone()).or_default();
        if mem::replace(&mut state.is_wanted, is_wanted) == is_wanted {
            return false;
        }
        if is_wanted {
            self.wanted += 1;
        } else {
            self.wanted -= 1;
            state.waiting.clear();
        }
        self.settle(channel)
    }

    /// The next commands, once those before are all confirmed.
    pub(super) fn next_batch(&mut self) -> Option<Batch> {
        if 0 < self.under_way {
            return None;
        }
        let mut batch = Batch::default();
        while self.under_way < BATCH_CHANNELS_MAX
            && let Some((_, channel)) = self.unsettled.pop_first()
            && let Some(state) = self.channels.get_mut(&channel)
        {
            state.place = None;
            state.is_under_way = true;
            self.under_way += 1;
            if state.is_wanted {
                batch.subscribe.push(channel);
            } else {
                batch.unsubscribe.push(channel);
            }
        }
        (0 < self.under_way).then_some(batch)
    }

    /// Takes note that Redis has subscribed (or unsubscribed) `channel`.
    ///
    /// # Errors
    ///
    /// [`Unasked`] if no such command is under way.
    pub(super) fn confirm(&mut self, channel: &str, is_subscribed: bool) -> Result<(), Unasked> {
        let (name, state) = self.channels.get_key_value(channel).ok_or(Unasked)?;
        if !state.is_under_way || state.is_confirmed == is_subscribed {
            return Err(Unasked);
        }
        let name = name.clone();
        let state = self.channels.get_mut(channel).ok_or(Unasked)?;
        state.is_under_way = false;
        state.is_confirmed = is_subscribed;
        self.under_way -= 1;
        if is_subscribed {
            self.confirmed += 1;
            for waiting in state.waiting.drain(..) {
                let _ = waiting.send(()); // Who is gone does not want to know.
            }
        } else {
            self.confirmed -= 1;
        }
        self.settle(&name);
        Ok(())
    }

    /// Whether `channel` is subscribed, or how to learn when it is.
    pub(super) fn confirmation(&mut self, channel: &ChannelName) -> Confirmation {
        match self.channels.get_mut(channel) {
            Some(state) if !state.is_wanted => Confirmation::Never,
            Some(state) if state.is_confirmed && !state.is_under_way => Confirmation::Here,
            Some(state) => {
                let (waiting, confirmed) = oneshot::channel();
                state.waiting.retain(|waiting| !waiting.is_closed());
                state.waiting.push(waiting);
                Confirmation::Awaited(confirmed)
            }
            None => Confirmation::Never,
        }
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            wanted: self.wanted,
            confirmed: self.confirmed,
        }
    }

    /// The connection is gone: nothing is confirmed, nothing under way, all that is wanted is asked anew.
    pub(super) fn lose_all(&mut self) {
        self.unsettled.clear();
        self.under_way = 0;
        self.confirmed = 0;
        self.channels.retain(|_, state| state.is_wanted);
        for (channel, state) in &mut self.channels {
            *state = Channel {
                is_wanted: true,
                place: Some(self.next_place),
                waiting: mem::take(&mut state.waiting),
                ..Channel::default()
            };
            self.unsettled.insert(self.next_place, channel.clone());
            self.next_place += 1;
        }
        self.resumed_from = self.next_place;
    }

    /// The channel of a publication, if it is subscribed or about to be.
    pub(super) fn find(&self, channel: &str) -> Option<&ChannelName> {
        self.channels.get_key_value(channel).map(|(name, _)| name)
    }

    /// Whether all that was wanted when the connection was lost is confirmed again (or given up).
    pub(super) fn is_resumed(&self) -> bool {
        let oldest = self.unsettled.first_key_value().map(|(place, _)| *place);
        self.under_way == 0 && oldest.is_none_or(|place| self.resumed_from <= place)
    }

    /// Whether commands wait for their confirmation.
    pub(super) fn is_waiting(&self) -> bool {
        0 < self.under_way
    }

    /// Channels that are confirmed.
    pub(super) fn confirmed(&self) -> usize {
        self.confirmed
    }

    /// Puts `channel` where it belongs after a change. Whether that is newly into `unsettled`.
    fn settle(&mut self, channel: &ChannelName) -> bool {
        let Some(state) = self.channels.get_mut(channel) else {
            return false;
        };
        let is_unsettled = !state.is_under_way && state.is_wanted != state.is_confirmed;
        match state.place {
            None if is_unsettled => {
                state.place = Some(self.next_place);
                self.unsettled.insert(self.next_place, channel.clone());
                self.next_place += 1;
                return true;
            }
            Some(place) if !is_unsettled => {
                state.place = None;
                self.unsettled.remove(&place);
            }
            _ => {}
        }
        if !state.is_wanted && !state.is_confirmed && !state.is_under_way {
            self.channels.remove(channel);
        }
        false
    }
}

#[cfg(test)]
mod tests;
