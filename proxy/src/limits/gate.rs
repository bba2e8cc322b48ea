//! All limits of one edge, applied to connections, handshakes, requests and tunnels.
//!
//! A rejection is counted and logged here, at most once a second for each limit; the caller sends the response.
//!
//! Connections are counted for their peer address, or that in a PROXY header. Requests and tunnels are counted for the client
//! address that trusted proxies report. Connections of those proxies are not counted per address: many clients share them.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use causeway_conf::AddressRange;
use prometheus_client::metrics::counter::Counter;

use crate::config::Config;
use crate::config::Limits;
use crate::limits::AddressPermit;
use crate::limits::Limit;
use crate::limits::Permit;
use crate::limits::ThrottledLog;
use crate::limits::address::PerAddress;
use crate::limits::rate::RateLimit;
use crate::limits::total::Total;
use crate::metrics::Metrics;

/// The limits, and their current use.
pub(crate) struct Gate {
    connections: Total,
    connections_of_address: PerAddress,
    connection_rate: RateLimit,
    handshakes_of_address: PerAddress,
    handshake_rate: RateLimit,
    requests: Total,
    /// The limit of `requests` without a setting.
    requests_most: usize,
    requests_of_address: PerAddress,
    tunnels: Total,
    tunnels_of_address: PerAddress,
    tunnels_of_backend: AtomicU32,
    /// `u32::MAX` is no limit; the queue settings then have no effect.
    requests_of_backend: AtomicU32,
    queue_of_backend: AtomicU32,
    /// In milliseconds.
    queue_time: AtomicU64,
    body_bytes: AtomicU64,
    trusted: ArcSwap<Vec<AddressRange>>,
    rejections: [Rejections; Limit::ALL.len()],
}

/// The log and the counter of one limit's rejections.
struct Rejections {
    log: ThrottledLog,
    counter: Counter,
}

/// The permits of one connection, request or tunnel, released on drop.
#[derive(Debug)]
pub(crate) struct Permits {
    _total: Permit,
    address: Option<AddressPermit>,
}

/// The limits of requests to one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BackendLimit {
    pub(crate) requests_max: u32,
    /// How many further requests may be queued.
    pub(crate) queue_max: u32,
    /// How long each of them may be queued.
    pub(crate) wait_max: Duration,
}

impl Permits {
    pub(crate) fn new(permit: Permit, address_permit: Option<AddressPermit>) -> Self {
        Self {
            _total: permit,
            address: address_permit,
        }
    }

    /// What stands for the address that is counted, for [`Gate::adopt_connection`] and [`Gate::adopt_tunnel`] of another process.
    pub(crate) fn source(&self) -> Option<u64> {
        self.address.as_ref().map(AddressPermit::source)
    }
}

impl Gate {
    /// The limits of `config`. Without a setting, connections and requests are limited to `fitting`.
    pub(crate) fn new(config: &Config, fitting: usize, metrics: &Metrics, now: Instant) -> Self {
        let limits = &config.limits;
        let connections = limits.connections.unwrap_or(fitting);
        let open = metrics.connections_open.clone();
        let rejections = Limit::ALL.map(|limit| Rejections {
            log: ThrottledLog::new(now),
            counter: metrics.limited(limit.name()),
        });
        let gate = Self {
            connections: Total::new(connections, Some(open)),
            connections_of_address: PerAddress::new(None),
            connection_rate: RateLimit::new(None, now),
            handshakes_of_address: PerAddress::new(None),
            handshake_rate: RateLimit::new(None, now),
            requests: Total::new(fitting, None),
            requests_most: fitting,
            requests_of_address: PerAddress::new(None),
            tunnels: Total::new(usize::MAX, None),
            tunnels_of_address: PerAddress::new(None),
            tunnels_of_backend: AtomicU32::new(u32::MAX),
            requests_of_backend: AtomicU32::new(u32::MAX),
            queue_of_backend: AtomicU32::new(0),
            queue_time: AtomicU64::new(0),
            body_bytes: AtomicU64::new(u64::MAX),
            trusted: ArcSwap::default(),
            rejections,
        };
        gate.change(limits, &config.trusted_proxies);
        gate
    }

    /// Changes all limits except `limits.connections`. Permits that are held stay valid.
    pub(crate) fn change(&self, limits: &Limits, trusted: &[AddressRange]) {
        self.connections_of_address
            .change(limits.connections_per_address);
        self.connection_rate
            .change(limits.connection_rate_per_address);
        self.handshakes_of_address
            .change(Some(limits.handshakes_per_address));
        self.handshake_rate
            .change(limits.handshake_rate_per_address);
        self.requests
            .change(limits.requests.unwrap_or(self.requests_most));
        self.requests_of_address.change(limits.requests_per_address);
        self.tunnels.change(limits.tunnels.unwrap_or(usize::MAX));
        self.tunnels_of_address.change(limits.tunnels_per_address);
        let of_backend = limits.tunnels_per_backend.unwrap_or(u32::MAX);
        self.tunnels_of_backend.store(of_backend, Ordering::Relaxed);
        let of_backend = limits.requests_per_backend.unwrap_or(u32::MAX);
        self.requests_of_backend
            .store(of_backend, Ordering::Relaxed);
        let queue = limits.queue_per_backend;
        self.queue_of_backend.store(queue, Ordering::Relaxed);
        let queue_time = limits.queue_time.as_millis();
        let queue_time = u64::try_from(queue_time).unwrap_or(u64::MAX);
        self.queue_time.store(queue_time, Ordering::Relaxed);
        let body_bytes = limits.body_size.unwrap_or(u64::MAX);
        self.body_bytes.store(body_bytes, Ordering::Relaxed);
        self.trusted.store(Arc::new(trusted.to_vec()));
    }

    /// Admits a connection under the total limit. `from` is only for the log.
    ///
    /// # Errors
    ///
    /// [`Limit::Connections`].
    pub(crate) fn connection(&self, from: Option<IpAddr>, now: Instant) -> Result<Permit, Limit> {
        let permit = self.connections.try_acquire();
        permit.ok_or_else(|| self.refuse(Limit::Connections, from, now))
    }

    /// Admits a connection under the limits for `address`.
    ///
    /// # Errors
    ///
    /// [`Limit::ConnectionRate`] or [`Limit::ConnectionsPerAddress`].
    pub(crate) fn connection_from(
        &self,
        address: IpAddr,
        now: Instant,
    ) -> Result<Option<AddressPermit>, Limit> {
        if self.trusts(address) {
            return Ok(None);
        }
        if !self.connection_rate.allows(address, now) {
            return Err(self.refuse(Limit::ConnectionRate, Some(address), now));
        }
        let address_permit = self.connections_of_address.try_acquire(address);
        address_permit.map_err(|_| self.refuse(Limit::ConnectionsPerAddress, Some(address), now))
    }

    /// Admits a TLS handshake with `address`.
    ///
    /// # Errors
    ///
    /// [`Limit::HandshakeRate`] or [`Limit::HandshakesPerAddress`].
    pub(crate) fn handshake(
        &self,
        address: IpAddr,
        now: Instant,
    ) -> Result<Option<AddressPermit>, Limit> {
        if self.trusts(address) {
            return Ok(None);
        }
        if !self.handshake_rate.allows(address, now) {
            return Err(self.refuse(Limit::HandshakeRate, Some(address), now));
        }
        let address_permit = self.handshakes_of_address.try_acquire(address);
        address_permit.map_err(|_| self.refuse(Limit::HandshakesPerAddress, Some(address), now))
    }

    /// Admits a request of `client`.
    ///
    /// # Errors
    ///
    /// [`Limit::Requests`] or [`Limit::RequestsPerAddress`].
    pub(crate) fn request(&self, client: IpAddr, now: Instant) -> Result<Permits, Limit> {
        let address_permit = self.requests_of_address.try_acquire(client);
        let address_permit = address_permit
            .map_err(|_| self.refuse(Limit::RequestsPerAddress, Some(client), now))?;
        let permit = self.requests.try_acquire();
        let permit = permit.ok_or_else(|| self.refuse(Limit::Requests, Some(client), now))?;
        Ok(Permits::new(permit, address_permit))
    }

    /// Admits a tunnel of `client`.
    ///
    /// # Errors
    ///
    /// [`Limit::Tunnels`] or [`Limit::TunnelsPerAddress`].
    pub(crate) fn tunnel(&self, client: IpAddr, now: Instant) -> Result<Permits, Limit> {
        let address_permit = self.tunnels_of_address.try_acquire(client);
        let address_permit =
            address_permit.map_err(|_| self.refuse(Limit::TunnelsPerAddress, Some(client), now))?;
        let permit = self.tunnels.try_acquire();
        let permit = permit.ok_or_else(|| self.refuse(Limit::Tunnels, Some(client), now))?;
        Ok(Permits::new(permit, address_permit))
    }

    /// Admits a connection that another process has admitted before, under the total limit; with its [`Permits::source`].
    pub(crate) fn adopt_connection(&self, source: Option<u64>) -> Option<Permits> {
        let permit = self.connections.try_acquire()?;
        let address = source.and_then(|source| self.connections_of_address.acquire(source));
        Some(Permits::new(permit, address))
    }

    /// Counts a tunnel that another process has admitted before: no limit ends an open tunnel.
    pub(crate) fn adopt_tunnel(&self, source: Option<u64>) -> Permits {
        let address = source.and_then(|source| self.tunnels_of_address.acquire(source));
        Permits::new(self.tunnels.acquire(), address)
    }

    /// How many tunnels one backend may have.
    pub(crate) fn tunnels_of_backend(&self) -> u32 {
        self.tunnels_of_backend.load(Ordering::Relaxed)
    }

    /// The limits of requests to one backend; `None` is no limit.
    pub(crate) fn requests_of_backend(&self) -> Option<BackendLimit> {
        let requests_max = self.requests_of_backend.load(Ordering::Relaxed);
        (requests_max < u32::MAX).then(|| BackendLimit {
            requests_max,
            queue_max: self.queue_of_backend.load(Ordering::Relaxed),
            wait_max: Duration::from_millis(self.queue_time.load(Ordering::Relaxed)),
        })
    }

    /// The largest request body in bytes.
    pub(crate) fn body_bytes(&self) -> u64 {
        self.body_bytes.load(Ordering::Relaxed)
    }

    /// Counts a rejection, and logs it at most once a second. Returns `limit`.
    pub(crate) fn refuse(&self, limit: Limit, client: Option<IpAddr>, now: Instant) -> Limit {
        let rejections = &self.rejections[limit as usize];
        rejections.counter.inc();
        if let Some(times) = rejections.log.note(now) {
            let client = client.map(tracing::field::display);
            tracing::warn!(
                limit = limit.name(),
                client,
                times,
                "limit reached, rejecting"
            );
        }
        limit
    }

    /// Whether `address` is a trusted proxy.
    fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let trusted = self.trusted.load();
        trusted.iter().any(|range| range.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(limits: &str) -> Config {
        let text = format!(
            "pools: [{{name: p, backends: [{{id: a, address: 127.0.0.1:1}}]}}]\nroutes: [{{path: /, pool: p}}]\ntrusted_proxies: [10.0.0.0/8]\nlimits: {{ {limits} }}\n"
        );
        Config::parse("test.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"))
    }

    fn gate(limits: &str, now: Instant) -> Gate {
        Gate::new(&config(limits), 1000, &Metrics::new(), now)
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const PROXY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    /// How many of ten attempts succeed, with all permits held, and the limit that rejects the first other one.
    fn admitted<T>(attempt: impl Fn() -> Result<T, Limit>) -> (usize, Option<Limit>) {
        let attempts: Vec<_> = (0..10).map(|_| attempt()).collect();
        let rejected = attempts.iter().find_map(|attempt| attempt.as_ref().err());
        let count = attempts.iter().filter(|attempt| attempt.is_ok()).count();
        (count, rejected.copied())
    }

    #[test]
    fn each_limit_admits_as_many_as_it_says_and_is_named_in_a_rejection() {
        let now = Instant::now();
        type Attempt = fn(&Gate, Instant) -> Result<(), Limit>;
        let connection: Attempt = |gate, now| gate.connection(None, now).map(std::mem::forget);
        let from: Attempt = |gate, now| gate.connection_from(CLIENT, now).map(std::mem::forget);
        let handshake: Attempt = |gate, now| gate.handshake(CLIENT, now).map(std::mem::forget);
        let request: Attempt = |gate, now| gate.request(CLIENT, now).map(std::mem::forget);
        let tunnel: Attempt = |gate, now| gate.tunnel(CLIENT, now).map(std::mem::forget);
        let rate = "{ per_second: 1, burst: 3 }";
        for (limits, attempt, limit) in [
            ("connections: 3".to_owned(), connection, Limit::Connections),
            (
                "connections_per_address: 3".to_owned(),
                from,
                Limit::ConnectionsPerAddress,
            ),
            (
                format!("connection_rate_per_address: {rate}"),
                from,
                Limit::ConnectionRate,
            ),
            (
                "handshakes_per_address: 3".to_owned(),
                handshake,
                Limit::HandshakesPerAddress,
            ),
            (
                format!("handshake_rate_per_address: {rate}"),
                handshake,
                Limit::HandshakeRate,
            ),
            ("requests: 3".to_owned(), request, Limit::Requests),
            (
                "requests_per_address: 3".to_owned(),
                request,
                Limit::RequestsPerAddress,
            ),
            ("tunnels: 3".to_owned(), tunnel, Limit::Tunnels),
            (
                "tunnels_per_address: 3".to_owned(),
                tunnel,
                Limit::TunnelsPerAddress,
            ),
        ] {
            let gate = gate(&limits, now);
            assert_eq!(
                admitted(|| attempt(&gate, now)),
                (3, Some(limit)),
                "{limits}"
            );
            assert!(limits.starts_with(limit.name()), "{limits}");
            assert_eq!(gate.rejections[limit as usize].counter.get(), 7, "{limits}");
        }
    }

    #[test]
    fn released_permits_can_be_acquired_again() {
        let now = Instant::now();
        let gate = gate("requests: 1, requests_per_address: 1", now);
        let first = gate.request(CLIENT, now).unwrap();
        assert!(gate.request(CLIENT, now).is_err());
        assert_eq!(gate.request(PROXY, now).unwrap_err(), Limit::Requests);
        drop(first);
        drop(gate.request(PROXY, now).unwrap());
        assert!(gate.request(CLIENT, now).is_ok());
    }

    #[test]
    fn connections_of_a_trusted_proxy_are_not_limited_per_address() {
        let now = Instant::now();
        let limits = "connections_per_address: 1, handshakes_per_address: 1";
        let gate = gate(limits, now);
        assert_eq!(admitted(|| gate.connection_from(PROXY, now)), (10, None));
        assert_eq!(admitted(|| gate.handshake(PROXY, now)), (10, None));
    }

    #[test]
    fn what_another_process_has_admitted_is_counted_and_only_connections_are_refused() {
        let now = Instant::now();
        let limits =
            "connections: 2, connections_per_address: 1, tunnels: 1, tunnels_per_address: 1";
        let (before, gate) = (gate(limits, now), gate(limits, now));
        let tunnel = before.tunnel(CLIENT, now).unwrap();
        let address = before.connection_from(CLIENT, now).unwrap();
        let connection = Permits::new(before.connection(None, now).unwrap(), address);
        let adopt = || gate.adopt_connection(connection.source());
        let (first, second) = (adopt().unwrap(), adopt().unwrap());
        assert!(adopt().is_none());
        assert!(gate.connection_from(CLIENT, now).is_err());
        drop((first, second));
        assert!(gate.connection_from(CLIENT, now).is_ok());
        let tunnels = [tunnel.source(), tunnel.source(), None].map(|it| gate.adopt_tunnel(it));
        assert!(gate.tunnel(PROXY, now).is_err());
        drop(tunnels);
        assert_eq!(
            admitted(|| gate.tunnel(CLIENT, now)),
            (1, Some(Limit::TunnelsPerAddress))
        );
    }

    #[test]
    fn limits_can_change_and_omitted_ones_are_removed() {
        let now = Instant::now();
        let gate = gate(
            "requests: 1, tunnels: 1, tunnels_per_backend: 2, body_size: 1KiB",
            now,
        );
        assert_eq!((gate.tunnels_of_backend(), gate.body_bytes()), (2, 1024));
        gate.change(&config("requests: 2").limits, &[]);
        assert_eq!(
            admitted(|| gate.request(CLIENT, now)),
            (2, Some(Limit::Requests))
        );
        assert_eq!(admitted(|| gate.tunnel(CLIENT, now)), (10, None));
        assert_eq!(
            (gate.tunnels_of_backend(), gate.body_bytes()),
            (u32::MAX, u64::MAX)
        );
    }
}
