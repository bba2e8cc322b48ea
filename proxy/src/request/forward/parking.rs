//! Where tunnels go whose tasks have ended so that another process continues them.
//!
//! A parked tunnel is nobody's until it is resumed or released: its sockets are open, and nothing reads or writes them.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::balancer::pool::Backend;
use crate::tunnel;

/// What a tunnel responds to a request to be parked. Each request has one response.
pub(crate) enum ParkReply {
    Parked(Box<dyn ParkedTunnel>),
    /// It cannot be parked now, or has ended.
    Stays,
}

/// A tunnel without a task. It counts as open.
pub(crate) trait ParkedTunnel: Send + Sync {
    fn tunnel(&self) -> &tunnel::ParkedTunnel;

    fn backend(&self) -> &Backend;

    /// How long ago its request arrived.
    fn request_age(&self) -> Duration;

    /// What stands for the addresses that are counted for its connection and for itself.
    fn permit_sources(&self) -> [Option<u64>; 2];

    /// Continues it here, on the thread where it was.
    fn resume(self: Box<Self>);

    /// Gives it up: another process continues it. The sockets are closed here, and stay open there.
    fn release(self: Box<Self>);
}

/// Takes the responses of tunnels that were requested to be parked. Without a receiver they stay.
#[derive(Default)]
pub(crate) struct Parking {
    replies: Mutex<Option<mpsc::Sender<ParkReply>>>,
}

impl Parking {
    /// Parks tunnels from here on, until the receiver is closed; it still has to receive what was sent before. At most
    /// `replies_max` replies wait in it, and further tunnels stay.
    pub(crate) fn open(&self, replies_max: usize) -> mpsc::Receiver<ParkReply> {
        let (sender, receiver) = mpsc::channel(replies_max);
        *self.replies.lock() = Some(sender);
        receiver
    }

    /// A place for one reply, which then arrives, whatever becomes of the receiver; `None` if nobody waits for it.
    pub(super) fn reserve(&self) -> Option<mpsc::OwnedPermit<ParkReply>> {
        let replies = self.replies.lock().clone()?;
        replies.try_reserve_owned().ok()
    }
}
