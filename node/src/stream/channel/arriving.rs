//! Members that another node hands off to this one, until they join: what they must get that no history holds.
//!
//! Such a member gets everything behind a mark that both nodes receive at the same place. Publications with an offset can
//! be recovered when it joins; everything else that is delivered behind the mark is held here.

use crate::protocol::Event;
use crate::protocol::channel::ChannelName;
use crate::stream::channel::membership::InUse;

/// A member that is going to join. It must be given to [`ChannelStreams::resume`](crate::stream::ChannelStreams::resume).
pub(crate) struct Arriving {
    pub(in crate::stream) in_use: InUse,
    pub(in crate::stream) number: u64,
}

/// The members of one channel that are going to join.
#[derive(Default)]
pub(super) struct ArrivingMembers {
    members: Vec<(u64, Held)>,
    next: u64,
}

/// What one of them must get.
struct Held {
    receives_joins: bool,
    bytes_max: usize,
    /// Whether the mark was received.
    is_marked: bool,
    events: Vec<Event>,
    bytes_queued: usize,
    is_over_limit: bool,
}

/// The memory that an event takes in addition to its data.
const EVENT_BYTES: usize = 200;

impl Arriving {
    /// The channel's name, as the one copy that all its members share.
    pub(crate) fn channel(&self) -> &ChannelName {
        &self.in_use.stream().channel
    }

    /// The mark is received: what is delivered from now on is for the member. Must be called between the publications
    /// before and behind the mark.
    pub(crate) fn mark(&self) {
        self.in_use.stream().arriving.lock().mark(self.number);
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.in_use.stream().arriving.lock().take(self.number);
    }
}

impl ArrivingMembers {
    /// Adds a member, for which at most `bytes_max` are held. Returns its number.
    pub(super) fn add(&mut self, receives_joins: bool, bytes_max: usize) -> u64 {
        self.next += 1;
        let held = Held {
            receives_joins,
            bytes_max,
            is_marked: false,
            events: Vec::new(),
            bytes_queued: 0,
            is_over_limit: false,
        };
        self.members.push((self.next, held));
        self.next
    }

    fn mark(&mut self, number: u64) {
        let marked = self.members.iter_mut().find(|(one, _)| *one == number);
        if let Some((_, held)) = marked {
            held.is_marked = true;
        }
    }

    /// Holds an event for all members behind their mark.
    pub(super) fn hold(&mut self, event: &Event) {
        let is_join = matches!(event, Event::Join(_) | Event::Leave(_));
        let cost = EVENT_BYTES
            + prost::Message::encoded_len(&crate::protocol::Push::new("", event.clone()));
        for (_, held) in &mut self.members {
            if !held.is_marked || (is_join && !held.receives_joins) {
                continue;
            }
            held.bytes_queued += cost;
            if held.bytes_max < held.bytes_queued {
                held.is_over_limit = true;
                held.events = Vec::new();
            } else {
                held.events.push(event.clone());
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Removes a member. Returns what was held for it; `None` if its mark was not received, or if it was too much.
    pub(super) fn take(&mut self, number: u64) -> Option<Vec<Event>> {
        let at = self.members.iter().position(|(one, _)| *one == number)?;
        let (_, held) = self.members.swap_remove(at);
        if self.members.is_empty() {
            self.members = Vec::new();
        }
        (held.is_marked && !held.is_over_limit).then_some(held.events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Join;
    use crate::protocol::Publication;

    fn publication(data: &'static str) -> Event {
        Event::Publication(Publication {
            data: data.as_bytes().into(),
            ..Publication::default()
        })
    }

    #[test]
    fn what_is_delivered_behind_the_mark_is_held_in_order() {
        let mut members = ArrivingMembers::default();
        let (one, other) = (members.add(true, 10_000), members.add(false, 10_000));
        let unmarked = members.add(true, 10_000);
        members.hold(&publication("before"));
        members.mark(one);
        let join = Event::Join(Join { info: None });
        members.hold(&publication("1"));
        members.mark(other);
        members.hold(&join);
        members.hold(&publication("2"));
        let (first, second) = (publication("1"), publication("2"));
        assert_eq!(members.take(one), Some(vec![first, join, second.clone()]));
        assert_eq!(members.take(other), Some(vec![second]));
        assert_eq!(members.take(unmarked), None);
        assert!(members.is_empty());
    }

    #[test]
    fn a_member_for_which_too_much_is_held_gets_nothing() {
        let mut members = ArrivingMembers::default();
        let number = members.add(true, 2 * EVENT_BYTES + 100);
        members.mark(number);
        for _ in 0..3 {
            members.hold(&publication("x"));
        }
        assert_eq!(members.take(number), None);
    }
}
