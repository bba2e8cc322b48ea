//! The channels that the node wants to be subscribed to, and those that Redis has confirmed.
//!
//! No I/O: the hub changes the wanted channels, and the subscriber's loop takes batches of commands and reports
//! confirmations, until both sets are equal. Wanted channels may change while a command is in flight; the next
//! command is made only once it is confirmed.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::mem;

use tokio::sync::oneshot;

use crate::protocol::channel::ChannelName;

/// The most channels in one command: larger ones delay other clients of Redis.
const BATCH_CHANNELS_MAX: usize = 512;

/// The wanted and the confirmed channels.
///
/// Invariants: a channel is in `unsettled`, under its `seq`, if and only if it is wanted and not confirmed or the
/// reverse, and no command for it is in flight; `in_flight`, `confirmed` and `wanted` count the channels in that
/// state; a channel that is neither wanted, confirmed nor in flight is not in the map. So while Redis is
/// unavailable the map grows only by wanted channels.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    channels: HashMap<ChannelName, Channel>,
    /// In the order in which they were changed.
    unsettled: BTreeMap<u64, ChannelName>,
    next_seq: u64,
    in_flight: usize,
    confirmed: usize,
    wanted: usize,
    /// Sequence numbers below this are of changes before the connection.
    resumed_from: u64,
}

#[derive(Debug, Default)]
struct Channel {
    is_wanted: bool,
    is_confirmed: bool,
    /// A command that inverts `is_confirmed` was sent.
    is_in_flight: bool,
    seq: Option<u64>,
    /// Callers that wait until the channel is confirmed.
    waiting: Vec<oneshot::Sender<()>>,
}

/// How many channels are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) wanted: usize,
    pub(super) confirmed: usize,
}

/// Whether a subscription is confirmed.
#[derive(Debug)]
pub(super) enum Confirmation {
    /// It is.
    Here,
    /// This is sent to when it is, and dropped if the channel is no longer wanted.
    Awaited(oneshot::Receiver<()>),
    /// The channel is not wanted.
    Never,
}

/// Commands to send; neither list is longer than [`BATCH_CHANNELS_MAX`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) subscribe: Vec<ChannelName>,
    pub(super) unsubscribe: Vec<ChannelName>,
}

/// A confirmation without a command: the two sides no longer agree, so the connection has to be closed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unexpected confirmation of a subscription")]
pub(super) struct UnexpectedConfirmation;

impl Subscriptions {
    /// Sets whether `channel` is wanted. Returns whether there may be a new batch.
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

    /// The next commands, once all previous ones are confirmed.
    pub(super) fn next_batch(&mut self) -> Option<Batch> {
        if 0 < self.in_flight {
            return None;
        }
        let mut batch = Batch::default();
        while self.in_flight < BATCH_CHANNELS_MAX
            && let Some((_, channel)) = self.unsettled.pop_first()
            && let Some(state) = self.channels.get_mut(&channel)
        {
            state.seq = None;
            state.is_in_flight = true;
            self.in_flight += 1;
            if state.is_wanted {
                batch.subscribe.push(channel);
            } else {
                batch.unsubscribe.push(channel);
            }
        }
        (0 < self.in_flight).then_some(batch)
    }

    /// Records that Redis has subscribed (or unsubscribed) `channel`.
    ///
    /// # Errors
    ///
    /// [`UnexpectedConfirmation`] if no such command is in flight.
    pub(super) fn confirm(
        &mut self,
        channel: &str,
        is_subscribed: bool,
    ) -> Result<(), UnexpectedConfirmation> {
        let (name, state) = self
            .channels
            .get_key_value(channel)
            .ok_or(UnexpectedConfirmation)?;
        if !state.is_in_flight || state.is_confirmed == is_subscribed {
            return Err(UnexpectedConfirmation);
        }
        let name = name.clone();
        let state = self
            .channels
            .get_mut(channel)
            .ok_or(UnexpectedConfirmation)?;
        state.is_in_flight = false;
        state.is_confirmed = is_subscribed;
        self.in_flight -= 1;
        if is_subscribed {
            self.confirmed += 1;
            for waiting in state.waiting.drain(..) {
                let _ = waiting.send(()); // The caller may have stopped waiting.
            }
        } else {
            self.confirmed -= 1;
        }
        self.settle(&name);
        Ok(())
    }

    /// Whether `channel` is subscribed, or a receiver that is notified when it is.
    pub(super) fn confirmation(&mut self, channel: &ChannelName) -> Confirmation {
        match self.channels.get_mut(channel) {
            Some(state) if !state.is_wanted => Confirmation::Never,
            Some(state) if state.is_confirmed && !state.is_in_flight => Confirmation::Here,
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

    /// The connection is lost: nothing is confirmed or in flight, and all wanted channels are subscribed again.
    pub(super) fn lose_all(&mut self) {
        self.unsettled.clear();
        self.in_flight = 0;
        self.confirmed = 0;
        self.channels.retain(|_, state| state.is_wanted);
        for (channel, state) in &mut self.channels {
            *state = Channel {
                is_wanted: true,
                seq: Some(self.next_seq),
                waiting: mem::take(&mut state.waiting),
                ..Channel::default()
            };
            self.unsettled.insert(self.next_seq, channel.clone());
            self.next_seq += 1;
        }
        self.resumed_from = self.next_seq;
    }

    /// The channel of a publication, if it is subscribed or about to be.
    pub(super) fn find(&self, channel: &str) -> Option<&ChannelName> {
        self.channels.get_key_value(channel).map(|(name, _)| name)
    }

    /// Whether all channels that were wanted when the connection was lost are confirmed again (or no longer wanted).
    pub(super) fn is_resumed(&self) -> bool {
        let oldest = self.unsettled.first_key_value().map(|(seq, _)| *seq);
        self.in_flight == 0 && oldest.is_none_or(|seq| self.resumed_from <= seq)
    }

    /// Whether commands await their confirmation.
    pub(super) fn is_waiting(&self) -> bool {
        0 < self.in_flight
    }

    /// Channels that are confirmed.
    pub(super) fn confirmed(&self) -> usize {
        self.confirmed
    }

    /// Updates `unsettled` after a change of `channel`. Returns whether it was added.
    fn settle(&mut self, channel: &ChannelName) -> bool {
        let Some(state) = self.channels.get_mut(channel) else {
            return false;
        };
        let is_unsettled = !state.is_in_flight && state.is_wanted != state.is_confirmed;
        match state.seq {
            None if is_unsettled => {
                state.seq = Some(self.next_seq);
                self.unsettled.insert(self.next_seq, channel.clone());
                self.next_seq += 1;
                return true;
            }
            Some(seq) if !is_unsettled => {
                state.seq = None;
                self.unsettled.remove(&seq);
            }
            _ => {}
        }
        if !state.is_wanted && !state.is_confirmed && !state.is_in_flight {
            self.channels.remove(channel);
        }
        false
    }
}

#[cfg(test)]
mod tests;
