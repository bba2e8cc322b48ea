//! What is known about a tunnel beside its bytes: its backend, and the request that it has come from.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::config::backend::BackendId;

/// The tunnels of one backend. The backend owns it, and each of its tunnels refers to it.
#[derive(Debug)]
pub(crate) struct TunnelGroup {
    pub(crate) pool: Box<str>,
    pub(crate) backend: BackendId,
    /// When its last drain began.
    drained: Mutex<Option<Instant>>,
}

impl TunnelGroup {
    pub(crate) fn new(pool: &str, backend: BackendId) -> Arc<Self> {
        Arc::new(Self {
            pool: pool.into(),
            backend,
            drained: Mutex::new(None),
        })
    }

    /// Records that a drain begins, or with `None` that it was called off.
    pub(super) fn set_drained(&self, at: Option<Instant>) {
        *self.drained.lock() = at;
    }

    /// Whether a drain has begun since `request_arrived`: then its tunnel was opened on a backend that its client has to leave.
    pub(super) fn is_drained_since(&self, request_arrived: Instant) -> bool {
        self.drained
            .lock()
            .is_some_and(|drained| request_arrived <= drained)
    }
}

/// The request that became a tunnel, for lists of tunnels and for the access log.
#[derive(Clone, Debug)]
pub(crate) struct TunnelInfo {
    /// Of the backend that has it now.
    pub(crate) group: Arc<TunnelGroup>,
    /// The address of the client, as reported by trusted proxies.
    pub(crate) client: IpAddr,
    /// When the request arrived.
    pub(crate) arrived: SystemTime,
    pub(crate) request_id: Box<str>,
    pub(crate) method: Box<str>,
    /// Known if the access log is on, as is `path`.
    pub(crate) host: Option<Box<str>>,
    /// Without the query.
    pub(crate) path: Option<Box<str>>,
    /// Whether its client was bound to the backend, as in the access log.
    pub(crate) affinity: Option<&'static str>,
    /// Backends that were tried, if it was more than one.
    pub(crate) attempts: Option<u32>,
    /// How long the request was parked.
    pub(crate) waited: Option<Duration>,
}

#[cfg(test)]
impl TunnelInfo {
    /// A tunnel of `group`, from a client on loopback.
    pub(crate) fn of(group: &Arc<TunnelGroup>) -> Self {
        Self {
            group: Arc::clone(group),
            client: IpAddr::from([127, 0, 0, 1]),
            arrived: SystemTime::now(),
            request_id: "r".into(),
            method: "GET".into(),
            host: None,
            path: None,
            affinity: None,
            attempts: None,
            waited: None,
        }
    }

    /// A tunnel of a backend of its own.
    pub(crate) fn any() -> Self {
        let id = "n1".parse().expect("it is an id");
        Self::of(&TunnelGroup::new("p", id))
    }
}
