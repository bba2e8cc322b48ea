//! Caches the addresses of backends' host names.
//!
//! Only the first lookup of a name is waited for. After that a stale result is used at once while a new one is fetched in the
//! background, for as long as lookups hang or fail: a failing name server does not make backends unreachable.
//!
//! Invariant: there is at most one lookup of a name at a time, and all lookups are aborted when their [`Names`] is dropped.

mod cache_entry;

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
use crate::net::resolver::cache_entry::CacheEntry;

/// The most addresses of one name that are used.
pub(crate) const ADDRESSES_MAX: usize = 8;

/// A cache of host names and their addresses.
///
/// It holds only names of backends. [`Names::keep`] removes those of removed backends.
pub(crate) struct Names {
    resolver: Arc<dyn Resolve>,
    names: Mutex<HashMap<HostAndPort, Arc<Name>>>,
    lookups: Mutex<JoinSet<()>>,
}

type HostAndPort = (String, u16);

/// The addresses that a name may have; `None` allows any.
pub(crate) type Allowed = Option<Arc<AllowedAddresses>>;

/// Looks up host names.
#[async_trait]
pub(crate) trait Resolve: Send + Sync {
    /// The addresses of `host`, with `port` in each of them.
    async fn look_up(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The resolver of the system, as configured: `/etc/hosts`, DNS and others.
struct System;

#[async_trait]
impl Resolve for System {
    async fn look_up(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let found = tokio::net::lookup_host((host, port)).await?;
        Ok(found.collect())
    }
}

/// One host name and its cached addresses.
struct Name {
    host: String,
    port: u16,
    entry: watch::Sender<CacheEntry>,
    allowed: Mutex<Allowed>,
}

impl Names {
    /// An empty cache in front of the system's resolver.
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

    /// The addresses of `host` in the order in which to dial them, at least one.
    ///
    /// # Errors
    ///
    /// The error of the lookup, if none has ever succeeded; only then the call waits for a lookup, so the caller needs a
    /// deadline. [`io::ErrorKind::PermissionDenied`] if none of the addresses is allowed.
    ///
    /// # Cancel safety
    ///
    /// The lookup goes on, and later calls use its result.
    pub(crate) async fn resolve(&self, host: &str, port: u16) -> io::Result<Arc<[SocketAddr]>> {
        let name = self.name(host, port);
        let mut entry = name.entry.subscribe();
        self.refresh(&name);
        let settled = entry.wait_for(CacheEntry::has_result).await;
        // This fails only if the sender is dropped, and `name` holds it.
        let addresses = settled.map_or_else(
            |_| Err(io::ErrorKind::NotFound.into()),
            |entry| entry.addresses(),
        )?;
        name.allowed_of(addresses)
    }

    /// Keeps these names, each with the addresses that it may have, and removes all others.
    pub(crate) fn keep(&self, wanted: &HashMap<HostAndPort, Allowed>) {
        for ((host, port), allowed) in wanted {
            self.name(host, *port).allowed.lock().clone_from(allowed);
        }
        self.names
            .lock()
            .retain(|name, _| wanted.contains_key(name));
    }

    /// The addresses of `host` that are cached, without waiting. Starts a lookup if one is due.
    pub(crate) fn current(&self, host: &str, port: u16) -> Option<Arc<[SocketAddr]>> {
        let name = self.name(host, port);
        self.refresh(&name);
        let entry = name.entry.borrow();
        entry.addresses().ok().filter(|_| entry.has_result())
    }

    /// Records that connecting to `address` failed: the other addresses of `host` are dialled before it from now on, and the
    /// name is looked up again soon, since its backend may have moved.
    pub(crate) fn failed(&self, host: &str, port: u16, address: SocketAddr) {
        let name = self.name(host, port);
        name.entry.send_if_modified(|entry| entry.demote(address));
    }

    fn name(&self, host: &str, port: u16) -> Arc<Name> {
        let mut names = self.names.lock();
        let name = names.entry((host.to_owned(), port)).or_insert_with(|| {
            Arc::new(Name {
                host: host.to_owned(),
                port,
                entry: watch::Sender::new(CacheEntry::default()),
                allowed: Mutex::new(None),
            })
        });
        Arc::clone(name)
    }

    /// Starts a lookup of `name` if one is due and none is running.
    fn refresh(&self, name: &Arc<Name>) {
        let now = Instant::now();
        if !name.entry.send_if_modified(|entry| entry.start_lookup(now)) {
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

    /// Makes `host` resolve to `addresses` without a lookup.
    #[cfg(test)]
    pub(crate) fn pin(&self, host: &str, port: u16, addresses: &[SocketAddr]) {
        let name = self.name(host, port);
        name.entry.send_replace(CacheEntry::pinned(addresses));
    }
}

impl Name {
    /// Those of `addresses` that are allowed.
    fn allowed_of(&self, addresses: Arc<[SocketAddr]>) -> io::Result<Arc<[SocketAddr]>> {
        let allowed = self.allowed.lock();
        let Some(allowed) = &*allowed else {
            return Ok(addresses);
        };
        let is_allowed = |address: &&SocketAddr| allowed.contains(address.ip());
        let usable: Arc<[SocketAddr]> = addresses.iter().filter(is_allowed).copied().collect();
        if usable.is_empty() {
            let host = &self.host;
            let why = format!("{host} has no address that is in \"discover.allow\"");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(usable)
    }
}

/// A running lookup. Dropping it before its end counts as a failure, so that the next one can start.
struct Lookup(Arc<Name>);

impl Lookup {
    fn end(&self, found: io::Result<Vec<SocketAddr>>) {
        let Name { host, entry, .. } = &*self.0;
        let error = found.as_ref().err().map(ToString::to_string);
        let now = Instant::now();
        entry.send_if_modified(|entry| {
            let failed_before = entry.is_failing();
            entry.finish_lookup(found, now);
            match (failed_before, entry.is_failing()) {
                (false, true) => {
                    tracing::warn!(host, error, "cannot resolve the host name of a backend");
                }
                (true, false) => {
                    tracing::info!(host, "the host name of a backend can be resolved again")
                }
                _ => {}
            }
            true
        });
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        if self.0.entry.borrow().lookup_running() {
            self.end(Err(io::ErrorKind::Interrupted.into()));
        }
    }
}

#[cfg(test)]
mod tests;
