//! The addresses behind the host names of backends.
//!
//! Nobody waits for a lookup but the first who asks for a name. After that there is always an answer: an old one is used at once
//! while a new one is fetched beside it, for as long as lookups hang or fail. A name server that is away takes no backend away.
//!
//! Invariant: for one name there is at most one lookup under way, and all of them end with their [`Names`].

mod known;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::AllowedAddresses;
use crate::net::resolver::known::Known;

/// The most addresses of one name that are used.
pub(crate) const ADDRESSES_MAX: usize = 8;

/// Host names and their addresses.
///
/// Only names of backends get here. Those of backends that are gone are forgotten by [`Names::keep`].
pub(crate) struct Names {
    resolver: Arc<dyn Resolve>,
    names: Mutex<HashMap<HostAndPort, Arc<Name>>>,
    lookups: Mutex<JoinSet<()>>,
}

type HostAndPort = (String, u16);

/// The addresses that a name may have; `None` is any.
pub(crate) type Allowed = Option<Arc<AllowedAddresses>>;

/// Where addresses come from.
#[async_trait]
pub(crate) trait Resolve: Send + Sync {
    /// The addresses of `host`, with `port` in each of them.
    async fn look_up(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// What the system says: `/etc/hosts`, DNS, whatever it is told to ask.
struct System;

#[async_trait]
impl Resolve for System {
    async fn look_up(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let found = tokio::net::lookup_host((host, port)).await?;
        Ok(found.collect())
    }
}

/// One host name and what is known of it.
struct Name {
    host: String,
    port: u16,
    known: watch::Sender<Known>,
    allowed: Mutex<Allowed>,
}

impl Names {
    /// Nothing is known yet; the system will be asked.
    pub(crate) fn new() -> Self {
        Self::by(Arc::new(System))
    }

    fn by(resolver: Arc<dyn Resolve>) -> Self {
        Self {
            resolver,
            names: Mutex::default(),
            lookups: Mutex::default(),
        }
    }

    /// The addresses of `host` in the order in which they are to be dialled, at least one.
    ///
    /// # Errors
    ///
    /// Why the lookup failed, if none has ever found any. Only then it may take as long as a lookup does: the caller has a
    /// deadline. Or that the name has no address that it may have.
    ///
    /// # Cancel safety
    ///
    /// The lookup goes on, and whoever asks next has the use of it.
    pub(crate) async fn resolve(&self, host: &str, port: u16) -> io::Result<Arc<[SocketAddr]>> {
        let name = self.name(host, port);
        let mut known = name.known.subscribe();
        self.refresh(&name);
        let settled = known.wait_for(Known::is_settled).await;
        // Its sender is in `name`, which outlives this wait.
        let addresses = settled.map_or_else(
            |_| Err(io::ErrorKind::NotFound.into()),
            |known| known.addresses(),
        )?;
        name.allowed_of(addresses)
    }

    /// Keeps these names, each with the addresses that it may have, and forgets all others.
    pub(crate) fn keep(&self, wanted: &HashMap<HostAndPort, Allowed>) {
        for ((host, port), allowed) in wanted {
            self.name(host, *port).allowed.lock().clone_from(allowed);
        }
        self.names
            .lock()
            .retain(|name, _| wanted.contains_key(name));
    }

    /// The addresses of `host` as far as they are known, without a wait. Has them looked up again if that is due.
    pub(crate) fn current(&self, host: &str, port: u16) -> Option<Arc<[SocketAddr]>> {
        let name = self.name(host, port);
        self.refresh(&name);
        let known = name.known.borrow();
        known.addresses().ok().filter(|_| known.is_settled())
    }

    /// Takes note that `address` could not be connected to: the others of `host` are dialled before it from now on, and the
    /// name is looked up again soon, since its backend may have moved.
    pub(crate) fn failed(&self, host: &str, port: u16, address: SocketAddr) {
        let name = self.name(host, port);
        name.known.send_if_modified(|known| known.set_back(address));
    }

    fn name(&self, host: &str, port: u16) -> Arc<Name> {
        let mut names = self.names.lock();
        let name = names.entry((host.to_owned(), port)).or_insert_with(|| {
            Arc::new(Name {
                host: host.to_owned(),
                port,
                known: watch::Sender::new(Known::default()),
                allowed: Mutex::new(None),
            })
        });
        Arc::clone(name)
    }

    /// Starts a lookup of `name` if one is due and none is under way.
    fn refresh(&self, name: &Arc<Name>) {
        let now = Instant::now();
        if !name.known.send_if_modified(|known| known.begin(now)) {
            return;
        }
        let (resolver, name) = (Arc::clone(&self.resolver), Arc::clone(name));
        let mut lookups = self.lookups.lock();
        while lookups.try_join_next().is_some() {}
        lookups.spawn(async move {
            let lookup = Lookup(name);
            let found = resolver.look_up(&lookup.0.host, lookup.0.port).await;
            lookup.end(found);
        });
    }

    #[cfg(test)]
    pub(crate) fn knows(&self, name: &HostAndPort) -> bool {
        self.names.lock().contains_key(name)
    }

    /// Has `host` resolve to `addresses` without a lookup.
    #[cfg(test)]
    pub(crate) fn pin(&self, host: &str, port: u16, addresses: &[SocketAddr]) {
        let name = self.name(host, port);
        name.known.send_replace(Known::for_ever(addresses));
    }
}

impl Name {
    /// Those of `addresses` that it may have.
    fn allowed_of(&self, addresses: Arc<[SocketAddr]>) -> io::Result<Arc<[SocketAddr]>> {
        let allowed = self.allowed.lock();
        let Some(allowed) = &*allowed else {
            return Ok(addresses);
        };
        let is_allowed = |address: &&SocketAddr| allowed.contains(address.ip());
        let few: Arc<[SocketAddr]> = addresses.iter().filter(is_allowed).copied().collect();
        if few.is_empty() {
            let host = &self.host;
            let why = format!("{host} has no address that \"discover.allow\" has");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(few)
    }
}

/// A lookup under way. However it ends, the next one may begin.
struct Lookup(Arc<Name>);

impl Lookup {
    fn end(&self, found: io::Result<Vec<SocketAddr>>) {
        let Name { host, known, .. } = &*self.0;
        let error = found.as_ref().err().map(ToString::to_string);
        let now = Instant::now();
        known.send_if_modified(|known| {
            let failed_before = known.is_failing();
            known.end(found, now);
            match (failed_before, known.is_failing()) {
                (false, true) => {
                    tracing::warn!(host, error, "cannot look up a backend's name");
                }
                (true, false) => tracing::info!(host, "a backend's name can be looked up again"),
                _ => {}
            }
            true
        });
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        if self.0.known.borrow().is_under_way() {
            self.end(Err(io::ErrorKind::Interrupted.into()));
        }
    }
}

#[cfg(test)]
mod tests;
