//! Fault injection, to prove that `make chaos` detects lost, repeated and reordered publications. Debug builds only.
//!
//! `CAUSEWAY_SABOTAGE=drop:300` drops every 300th stored publication, `repeat:300` delivers it twice, `swap:300`
//! delivers it after the next one. The stream's own state is as if all were delivered in order.

use std::collections::HashMap;
use std::env;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use tracing::error;

use super::ChannelStreams;
use super::channel::ChannelStream;
use crate::hub::Delivered;
use crate::protocol::Publication;
use crate::protocol::channel::ChannelName;

/// The environment variable that turns it on.
const VARIABLE: &str = "CAUSEWAY_SABOTAGE";

/// The fault, and how often it is injected.
#[derive(Debug)]
pub(super) struct Sabotage {
    fault: Fault,
    /// One publication in so many is affected.
    every: u64,
    count: AtomicU64,
    /// By `hub_channel` of the stream, the publication to deliver after the next one.
    held: Mutex<HashMap<ChannelName, Arc<Publication>>>,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Drop,
    Repeat,
    Swap,
}

impl Sabotage {
    /// Reads the environment variable; `None` if it is not set or not valid.
    pub(super) fn from_environment() -> Option<Self> {
        let text = env::var(VARIABLE).ok()?;
        let (fault, every) = text.split_once(':')?;
        let fault = match fault {
            "drop" => Fault::Drop,
            "repeat" => Fault::Repeat,
            "swap" => Fault::Swap,
            _ => return None,
        };
        let every = every.parse().ok().filter(|every| 0 < *every)?;
        error!(
            ?fault,
            every, "faults are injected into deliveries, because {VARIABLE} is set"
        );
        Some(Self {
            fault,
            every,
            count: AtomicU64::new(0),
            held: Mutex::default(),
        })
    }

    /// Delivers `publication`, or injects the fault.
    pub(super) fn deliver(
        &self,
        streams: &ChannelStreams,
        stream: &ChannelStream,
        publication: &Arc<Publication>,
    ) -> Delivered {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let is_affected = count % self.every == self.every - 1;
        match self.fault {
            Fault::Drop if is_affected => return Delivered::Yes,
            Fault::Repeat if is_affected => {
                stream.push_publication(streams, publication);
            }
            Fault::Swap if is_affected => {
                let held = Arc::clone(publication);
                self.held.lock().insert(stream.hub_channel.clone(), held);
                return Delivered::Yes;
            }
            Fault::Drop | Fault::Repeat | Fault::Swap => {}
        }
        let delivered = stream.push_publication(streams, publication);
        let held = self.held.lock().remove(&stream.hub_channel);
        held.map_or(delivered, |held| stream.push_publication(streams, &held))
    }
}
