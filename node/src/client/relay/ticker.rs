//! Endpoints with `mode: ticker`: sends `tick!` to all their clients on this node once a second.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::broker::Deliver;
use crate::hub::Hub;
use crate::protocol::channel::ChannelName;
use crate::protocol::channel::RESERVED_PREFIX;
use crate::protocol::publication::Publication;

const INTERVAL: Duration = Duration::from_secs(1);

const TICK: &str = "tick!";

/// The local channel of the ticks. Nothing is published on it in the broker.
pub(super) fn channel() -> ChannelName {
    ChannelName::new(&format!("{RESERVED_PREFIX}ticker")).expect("it is short")
}

/// Ticks until `shutdown`.
pub(crate) async fn tick(hub: Arc<Hub>, shutdown: CancellationToken) {
    let mut ticks = time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => hub.deliver(vec![Publication {
                channel: channel(),
                data: Bytes::from_static(TICK.as_bytes()),
            }]),
        }
    }
}
