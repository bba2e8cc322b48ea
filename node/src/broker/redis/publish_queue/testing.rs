//! Entries for tests, outside a publish queue.

use super::*;
use crate::broker::Until;

/// One that nobody waits for.
pub(in crate::broker::redis) fn relayed(channel: &str, data: &str) -> Entry {
    Entry {
        channel: ChannelName::new(channel).unwrap(),
        data: data.to_owned().into(),
        storing: None,
        expires_at: Instant::now(),
        cost: 1,
        is_probe: false,
        slot: Slot::default(),
        refusal: None,
    }
}

/// One on channel `a` that is to be stored, if anybody waited.
pub(in crate::broker::redis) fn storing(data: &str) -> Entry {
    let (reply, _) = oneshot::channel();
    let channel = ChannelName::new("a").unwrap();
    let store = Store {
        channel,
        body: data.to_owned().into(),
        retention: None,
        idempotency: None,
        until: Until::Stored,
    };
    Entry {
        storing: Some(Storing { store, reply }),
        ..relayed("causeway:ch:{a}", data)
    }
}
