//! The channels that the node wants to be subscribed to, and those that Redis has confirmed.
//!
//! In a cluster the server itself ends subscriptions whose slot moves to another one, and rejects those of slots that it does not
//! have. Such channels are *parked*: nothing is sent for them until the cluster was asked again.
//!
//! No I/O: the hub changes the wanted channels, and the subscriber's loop takes batches of commands and reports
//! confirmations, until both sets are equal. Wanted channels may change while a command is in flight; the next
//! command is made only once it is confirmed.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::collections::VecDeque;
use std::mem;

use tokio::sync::oneshot;

use crate::protocol::channel::ChannelName;
use crate::redis::Slot;

/// The most channels in one command: larger ones delay other clients of Redis.
const BATCH_CHANNELS_MAX: usize = 512;

/// The wanted and the confirmed channels.
///
/// Invariants: a channel is in `unsettled`, under its `seq`, if and only if it is wanted and not confirmed or the
/// reverse, no command for it is in flight, and it is neither parked nor abandoned; `in_flight`, `confirmed` and `wanted`
/// count the channels in that state; a channel that is neither wanted, confirmed nor in flight is not in the map. So while Redis is
/// unavailable the map grows only by wanted channels.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    channels: HashMap<ChannelName, Channel>,
    /// In a cluster it changes with the slots, and there is none while there are no slots.
    probe_channel: Option<ChannelName>,
    /// In the order in which they were changed.
    unsettled: BTreeMap<u64, ChannelName>,
    next_seq: u64,
    in_flight: usize,
    confirmed: usize,
    wanted: usize,
    /// Sequence numbers below this are of changes before the connection.
    resumed_from: u64,
    /// In a cluster, the commands in flight.
    sent: VecDeque<Sent>,
    parked: usize,
    /// Slots whose publications may be missing until all of their channels are confirmed again.
    returning: HashSet<Slot>,
}

/// A command in flight.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) slot: Slot,
    pub(super) is_subscribe: bool,
    pub(super) channels: Vec<ChannelName>,
    /// Confirmations that are still to come.
    missing: usize,
}

/// What a confirmation means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Confirmed {
    AsWanted,
    /// The server has ended the subscription: the slot has moved. The channel is parked.
    Ended,
}

#[derive(Debug, Default)]
struct Channel {
    is_wanted: bool,
    is_confirmed: bool,
    /// A command that inverts `is_confirmed` was sent.
    is_in_flight: bool,
    /// It is wanted, and this server rejects it for now.
    is_parked: bool,
    /// It is subscribed on another server instead; this one ends it by itself.
    is_abandoned: bool,
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
    /// The channel of probes, which is wanted.
    pub(super) fn probe_channel(&self) -> Option<&ChannelName> {
        self.probe_channel.as_ref()
    }

    /// Wants `channel` and has it carry probes; nothing is done with the previous one.
    pub(super) fn set_probe_channel(&mut self, channel: Option<ChannelName>) {
        if let Some(channel) = &channel {
            self.want(channel, true);
        }
        self.probe_channel = channel;
    }

    /// Sets whether `channel` is wanted. Returns whether there may be a new batch.
    pub(super) fn want(&mut self, channel: &ChannelName, is_wanted: bool) -> bool {
        if !is_wanted && !self.channels.contains_key(channel) {
            return false;
        }
        let state = self.channels.entry(channel.clone()).or_default();
        if mem::replace(&mut state.is_wanted, is_wanted) == is_wanted {
            return false;
        }
        state.is_abandoned = false;
        if mem::take(&mut state.is_parked) {
            self.parked -= 1;
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

    /// Wants a channel that was subscribed on another server; publications of `slot` may be missing until it is confirmed.
    pub(super) fn move_in(&mut self, channel: &ChannelName, slot: Slot) {
        self.want(channel, true);
        self.returns(slot);
    }

    /// No longer wants a channel whose slot has moved to another server, which makes this one end the subscription.
    pub(super) fn abandon(&mut self, channel: &ChannelName, slot: Slot) {
        self.returning.remove(&slot); // It returns there.
        self.want(channel, false);
        if let Some(state) = self.channels.get_mut(channel) {
            state.is_abandoned = true;
            self.settle(channel);
        }
    }

    /// Publications of `slot` may be missing until all that is wanted now is confirmed.
    fn returns(&mut self, slot: Slot) {
        self.returning.insert(slot);
        self.resumed_from = self.next_seq;
    }

    /// Notes a command for channels of one slot of a cluster.
    pub(super) fn note_sent(&mut self, slot: Slot, is_subscribe: bool, channels: Vec<ChannelName>) {
        self.sent.push_back(Sent {
            slot,
            is_subscribe,
            missing: channels.len(),
            channels,
        });
    }

    /// The oldest command in flight.
    pub(super) fn oldest_sent(&self) -> Option<&Sent> {
        self.sent.front()
    }

    /// The server has rejected the oldest command in flight, as it does not have the slot, or not now. What it was to
    /// subscribe is parked.
    pub(super) fn rejected(&mut self) {
        let Some(sent) = self.sent.pop_front() else {
            return;
        };
        for channel in &sent.channels {
            let Some(state) = self.channels.get_mut(channel) else {
                continue;
            };
            if !mem::take(&mut state.is_in_flight) {
                continue; // It was confirmed.
            }
            self.in_flight -= 1;
            if !sent.is_subscribe {
                // A server that does not have the slot has no subscriptions of it.
                if mem::take(&mut state.is_confirmed) {
                    self.confirmed -= 1;
                }
            } else if state.is_wanted {
                state.is_parked = true;
                self.parked += 1;
                self.returning.insert(sent.slot);
            }
            self.settle(channel);
        }
    }

    /// Has parked channels subscribed again. Returns whether there are any.
    pub(super) fn unpark(&mut self) -> bool {
        if self.parked == 0 {
            return false;
        }
        let is_parked =
            |(channel, state): (&ChannelName, &Channel)| state.is_parked.then(|| channel.clone());
        let parked: Vec<ChannelName> = self.channels.iter().filter_map(is_parked).collect();
        for channel in &parked {
            if let Some(state) = self.channels.get_mut(channel) {
                state.is_parked = false;
            }
            self.settle(channel);
        }
        self.parked = 0;
        self.resumed_from = self.next_seq;
        true
    }

    /// Slots of which no wanted channel is missing any more, once everything is confirmed; `slot_of` is the slot of a channel.
    pub(super) fn returned(&mut self, slot_of: impl Fn(&ChannelName) -> Slot) -> HashSet<Slot> {
        if self.returning.is_empty() || !self.is_resumed() {
            return HashSet::new();
        }
        let parked = self.parked_slots(slot_of);
        let (missing, returned) = mem::take(&mut self.returning)
            .into_iter()
            .partition(|slot| parked.contains(slot));
        self.returning = missing;
        returned
    }

    /// The slots of all wanted channels, without those that have a parked one; those are still to return.
    pub(super) fn resumed_slots(
        &mut self,
        slot_of: impl Fn(&ChannelName) -> Slot,
    ) -> HashSet<Slot> {
        self.returning = self.parked_slots(&slot_of);
        let slots = self.wanted_slots(slot_of);
        slots.difference(&self.returning).copied().collect()
    }

    /// The slots of all wanted channels.
    pub(super) fn wanted_slots(&self, slot_of: impl Fn(&ChannelName) -> Slot) -> HashSet<Slot> {
        let wanted = self.channels.iter().filter(|(_, state)| state.is_wanted);
        wanted.map(|(channel, _)| slot_of(channel)).collect()
    }

    fn parked_slots(&self, slot_of: impl Fn(&ChannelName) -> Slot) -> HashSet<Slot> {
        if self.parked == 0 {
            return HashSet::new();
        }
        let parked = self.channels.iter().filter(|(_, state)| state.is_parked);
        parked.map(|(channel, _)| slot_of(channel)).collect()
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

    /// The same in a cluster, whose servers end subscriptions by themselves too.
    ///
    /// # Errors
    ///
    /// [`UnexpectedConfirmation`]: the two sides no longer agree.
    pub(super) fn confirm_sharded(
        &mut self,
        channel: &str,
        is_subscribed: bool,
        slot_of: impl Fn(&ChannelName) -> Slot,
    ) -> Result<Confirmed, UnexpectedConfirmation> {
        let (name, state) = self
            .channels
            .get_key_value(channel)
            .ok_or(UnexpectedConfirmation)?;
        if state.is_in_flight {
            let sent = self.sent.front_mut().ok_or(UnexpectedConfirmation)?;
            if sent.is_subscribe != is_subscribed || !sent.channels.contains(name) {
                return Err(UnexpectedConfirmation);
            }
            sent.missing -= 1;
            if sent.missing == 0 {
                self.sent.pop_front();
            }
            self.confirm(channel, is_subscribed)?;
            return Ok(Confirmed::AsWanted);
        }
        if is_subscribed || !state.is_confirmed {
            return Err(UnexpectedConfirmation);
        }
        let name = name.clone();
        let slot = slot_of(&name);
        let state = self
            .channels
            .get_mut(channel)
            .ok_or(UnexpectedConfirmation)?;
        state.is_confirmed = false;
        self.confirmed -= 1;
        if !state.is_wanted {
            self.settle(&name);
            return Ok(Confirmed::AsWanted);
        }
        state.is_parked = true;
        self.parked += 1;
        self.settle(&name);
        self.returning.insert(slot);
        Ok(Confirmed::Ended)
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
        self.parked = 0;
        self.sent.clear();
        self.returning.clear();
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

    /// The channel of a publication, if it is wanted here. In a cluster it may have moved to another server, whose publications
    /// must not be followed by earlier ones of this one.
    pub(super) fn find(&self, channel: &str) -> Option<&ChannelName> {
        let (name, state) = self.channels.get_key_value(channel)?;
        state.is_wanted.then_some(name)
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
        let is_held = state.is_in_flight || state.is_parked || state.is_abandoned;
        let is_unsettled = !is_held && state.is_wanted != state.is_confirmed;
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
