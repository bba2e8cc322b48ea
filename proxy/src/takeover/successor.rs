//! The new process: gets the sockets of the running one, and continues its tunnels.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use causeway_conf::{ServiceManager, ServiceState};
use parking_lot::Mutex;
use pingora::server::ShutdownWatch;
use pingora::services::background::BackgroundService;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::balancer::pool::{Pool, Pools, State};
use crate::config::Timeouts;
use crate::net::owner_socket::SocketFile;
use crate::request::forward::{AdoptedTunnel, CannotAdopt, ForeignTunnel};
use crate::server::app::{AdoptedIdle, EdgeApp};
use crate::server::listeners::{BindError, BoundListener, Opening, SharedListener};
use crate::server::logging;
use crate::server::reload::Reloader;
use crate::server::workers::Workers;
use crate::takeover::BATCH_TUNNELS_MAX;
use crate::takeover::channel::{Channel, DESCRIPTORS_MAX, MESSAGE_WAIT, Received, TakeoverError};
use crate::takeover::wire;
use crate::takeover::wire::{
    BackendOverride, Kind, ListenerName, Taken, VERSIONS, WireIdle, WireTunnel,
};
use crate::tunnel::TunnelInfo;

/// How long the pools may take to find the backends that the predecessor knows.
const DISCOVERY_WAIT: Duration = Duration::from_secs(10);

/// How long the first probes may take.
const PROBE_WAIT: Duration = Duration::from_secs(3);

/// How often it is checked whether all backends were probed.
const PROBE_PAUSE: Duration = Duration::from_millis(20);

/// The exit code of a process that cannot take over: the running one goes on.
const CANNOT_TAKE_OVER: i32 = 2;

/// What a process gets from its predecessor before it starts.
pub(crate) struct Inheritance {
    channel: std::os::unix::net::UnixStream,
    listeners: VecDeque<SharedListener>,
    /// The pools in which the predecessor has backends.
    pools: Vec<String>,
    overrides: Vec<BackendOverride>,
}

impl Inheritance {
    /// Asks the process that listens on `socket`. It accepts as before until [`Successor`] accepts.
    ///
    /// # Errors
    ///
    /// [`TakeoverError`]: the running process goes on.
    pub(crate) fn request(socket: &Path) -> Result<Self, TakeoverError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(Self::negotiate(socket))
    }

    async fn negotiate(socket: &Path) -> Result<Self, TakeoverError> {
        let connected = timeout(MESSAGE_WAIT, UnixStream::connect(socket)).await;
        let connected = connected.map_err(|_| TakeoverError::Timeout(MESSAGE_WAIT))?;
        let stream = connected.map_err(|source| TakeoverError::Connect {
            path: socket.display().to_string(),
            source,
        })?;
        let channel = Channel::new(stream);
        // A process that refuses may not read it.
        let hello = channel.send(&wire::hello(&VERSIONS), &[]).await;
        let version = channel.expect(Kind::Version, MESSAGE_WAIT).await;
        let version = version.map_err(|error| match hello {
            Err(first) if matches!(error, TakeoverError::Closed) => first,
            _ => error,
        })?;
        wire::read_version(&version.payload).ok_or(TakeoverError::Malformed)?;
        let received = channel.expect(Kind::Listeners, MESSAGE_WAIT).await?;
        let legacy = wire::read_legacy(&received.payload).ok_or(TakeoverError::Malformed)?;
        if legacy.listeners.len() != received.descriptors.len() {
            return Err(TakeoverError::TooFewDescriptors);
        }
        let shared = |(name, socket): (ListenerName, OwnedFd)| SharedListener {
            requested: name.requested,
            address: name.address,
            socket,
        };
        let listeners = legacy.listeners.into_iter().zip(received.descriptors);
        Ok(Self {
            channel: channel.into_std()?,
            listeners: listeners.map(shared).collect(),
            pools: legacy.pools,
            overrides: legacy.overrides,
        })
    }

    /// The listener for `address`: that of the predecessor, or a new one.
    ///
    /// # Errors
    ///
    /// [`BindError`] if neither can be used.
    pub(crate) fn listener(
        &mut self,
        address: SocketAddr,
        timeouts: &Timeouts,
    ) -> Result<BoundListener, BindError> {
        let names = self.listeners.iter().map(|shared| ListenerName {
            requested: shared.requested,
            address: shared.address,
        });
        match matching(&names.collect::<Vec<_>>(), address)
            .and_then(|place| self.listeners.remove(place))
        {
            Some(shared) => BoundListener::inherit(address, shared, timeouts),
            None => BoundListener::new(address, timeouts),
        }
    }
}

/// Which of the listeners is that for `address`: the one that was configured so, or has it.
fn matching(listeners: &[ListenerName], address: SocketAddr) -> Option<usize> {
    let by = |is_it: fn(&ListenerName, SocketAddr) -> bool| {
        listeners.iter().position(|name| is_it(name, address))
    };
    by(|name, address| name.requested == address)
        .or_else(|| by(|name, address| name.address == address))
}

/// Takes over from the running process once everything else has started.
pub(crate) struct Successor {
    /// Taken by the service when it starts.
    pub(crate) inheritance: Mutex<Option<Inheritance>>,
    pub(crate) app: Arc<EdgeApp>,
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) manager: Arc<ServiceManager>,
    /// Of the listeners for clients.
    pub(crate) opening: Opening,
    /// The files of unix sockets, which replace those of the predecessor.
    pub(crate) files: Vec<Arc<SocketFile>>,
    /// Cancelled when nothing more comes from the predecessor.
    pub(crate) inherited: CancellationToken,
    /// Cancelled to drain this process.
    pub(crate) handed_over: CancellationToken,
}

#[async_trait]
impl BackgroundService for Successor {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let Some(inheritance) = self.inheritance.lock().take() else {
            return;
        };
        let prepared = self.prepare(inheritance).await;
        let channel = prepared.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot take over, the running process goes on");
            self.files.iter().for_each(|file| file.discard());
            logging::flush();
            std::process::exit(CANNOT_TAKE_OVER);
        });
        // From here on this process serves, whatever becomes of the other one.
        self.opening.open();
        let workers = self.opening.accepting().await;
        if let Err(error) = self.announce(&channel).await {
            if let TakeoverError::Refused(_) = &error {
                tracing::error!(%error, "cannot take over, draining");
                self.files.iter().for_each(|file| file.discard());
                self.inherited.cancel();
                return self.handed_over.cancel();
            }
            tracing::warn!(%error, "the former process has gone, serving without its tunnels");
        }
        for file in &self.files {
            if let Err(error) = file.place() {
                tracing::error!(%error, "cannot replace a socket of the former process");
            }
        }
        self.manager.notify(ServiceState::Ready);
        tracing::info!("taken over, accepting");
        let (started, mut count) = (Instant::now(), Count::default());
        match self.adopt_all(&channel, &workers, &mut count).await {
            Ok(()) => tracing::info!(
                tunnels = count.tunnels,
                idle_connections = count.idle_connections,
                after = ?started.elapsed(),
                "takeover complete"
            ),
            Err(error) => tracing::error!(
                tunnels = count.tunnels,
                idle_connections = count.idle_connections,
                %error,
                "takeover incomplete"
            ),
        }
        self.inherited.cancel();
    }
}

impl Successor {
    /// Waits until this process could serve everything that the other one serves, and it agrees.
    async fn prepare(&self, inheritance: Inheritance) -> Result<Channel, TakeoverError> {
        let channel = Channel::new(UnixStream::from_std(inheritance.channel)?);
        let discovered = timeout(DISCOVERY_WAIT, self.discovered(&inheritance.pools)).await;
        if discovered.is_err() {
            return Err(TakeoverError::NoBackends(DISCOVERY_WAIT));
        }
        self.set_overrides(&inheritance.overrides);
        // One that does not respond may take longer; it is used like one that was not probed yet.
        let _ = timeout(PROBE_WAIT, self.probed()).await;
        channel.send(&wire::empty(Kind::Ready), &[]).await?;
        self.adopt_sessions(&channel).await?;
        Ok(channel)
    }

    /// Remembers the sessions that the other process sends until it says that this one may begin to accept.
    async fn adopt_sessions(&self, channel: &Channel) -> Result<(), TakeoverError> {
        let pools = self.app.proxy.pools();
        let mut adopted = 0;
        loop {
            let received = timeout(MESSAGE_WAIT, channel.receive()).await;
            let received = received.map_err(|_| TakeoverError::Timeout(MESSAGE_WAIT))??;
            match received.kind {
                Kind::Sessions => {
                    let sessions = wire::read_sessions(&received.payload);
                    let (pool, part) = sessions.ok_or(TakeoverError::Malformed)?;
                    adopted += pools
                        .named(&pool)
                        .map_or(0, |pool| pool.adopt_sessions(&part));
                }
                Kind::Go => break,
                _ => return Err(TakeoverError::Malformed),
            }
        }
        if 0 < adopted {
            tracing::info!(sessions = adopted, "sessions taken over");
        }
        Ok(())
    }

    /// Ready when each pool has a backend in which the predecessor has one.
    async fn discovered(&self, names: &[String]) {
        let mut pools = self.reloader.pools();
        let is_complete = |pools: &Arc<Pools>| {
            let mut wanted = pools.iter().filter(|pool| names.contains(&pool.name));
            wanted.all(|pool| !pool.backends().is_empty())
        };
        // The sender lives as long as `self`.
        let _ = pools.wait_for(is_complete).await;
    }

    /// Sets for backends what operators have set in the other process.
    fn set_overrides(&self, overrides: &[BackendOverride]) {
        let pools = self.app.proxy.pools();
        for BackendOverride { pool, backend, to } in overrides {
            let found = pools.named(pool).zip(backend.parse().ok());
            let found = found.and_then(|(pool, id)| Some((pool, pool.backend(&id)?)));
            match found {
                Some((pool, backend)) => pool.set_override(&backend, Some(*to), Instant::now()),
                None => tracing::info!(pool, backend, "there is no such backend any more"),
            }
        }
    }

    /// Ready when no backend is in the state in which it has not been probed.
    async fn probed(&self) {
        let is_unknown = |pool: &Arc<Pool>| {
            let backends = pool.backends();
            backends.iter().any(|it| it.state() == State::Unknown)
        };
        while self.app.proxy.pools().iter().any(is_unknown) {
            tokio::time::sleep(PROBE_PAUSE).await;
        }
    }

    async fn announce(&self, channel: &Channel) -> Result<(), TakeoverError> {
        channel.send(&wire::empty(Kind::Accepting), &[]).await?;
        let received = channel.receive().await?;
        match received.kind {
            Kind::Yours => Ok(()),
            _ => Err(TakeoverError::Malformed),
        }
    }

    /// Continues all tunnels and idle connections that the other process sends, and counts them.
    async fn adopt_all(
        &self,
        channel: &Channel,
        workers: &Workers,
        count: &mut Count,
    ) -> Result<(), TakeoverError> {
        loop {
            let Received {
                kind,
                payload,
                descriptors,
            } = channel.receive().await?;
            match kind {
                Kind::End => return Ok(()),
                Kind::Tunnels => {
                    let tunnels = wire::read_tunnels(&payload, BATCH_TUNNELS_MAX);
                    drop(payload);
                    let tunnels = tunnels.ok_or(TakeoverError::Malformed)?;
                    let runtime = |number| workers.for_listener(count.tunnels + number);
                    let (taken, adopted) = self.adopt(tunnels, descriptors, runtime);
                    self.settle(channel, &taken).await?;
                    count.tunnels += adopted.len();
                    let metrics = &self.app.proxy.metrics;
                    metrics.tunnels_taken_over.inc_by(adopted.len() as u64);
                    adopted.into_iter().for_each(AdoptedTunnel::start);
                }
                Kind::Idle => {
                    let idle = wire::read_idle_connections(&payload, DESCRIPTORS_MAX);
                    drop(payload);
                    let idle = idle.ok_or(TakeoverError::Malformed)?;
                    let runtime = |number| workers.for_listener(count.idle_connections + number);
                    let (taken, adopted) = self.adopt_idle(idle, descriptors, runtime);
                    self.settle(channel, &taken).await?;
                    count.idle_connections += adopted.len();
                    adopted.into_iter().for_each(AdoptedIdle::start);
                }
                _ => return Err(TakeoverError::Malformed),
            }
        }
    }

    /// Tells the other process what is taken, and waits for its commit: without it they are the other process's. However long it takes:
    /// only one of both may go on.
    async fn settle(&self, channel: &Channel, taken: &Taken) -> Result<(), TakeoverError> {
        channel.send(&wire::took(taken), &[]).await?;
        match channel.receive().await?.kind {
            Kind::Commit => Ok(()),
            _ => Err(TakeoverError::Malformed),
        }
    }

    /// Takes the idle connections of a batch, as far as possible. None of them runs yet.
    fn adopt_idle<'a>(
        &self,
        idle: Vec<WireIdle>,
        descriptors: Vec<OwnedFd>,
        runtime: impl Fn(usize) -> &'a Handle,
    ) -> (Taken, Vec<AdoptedIdle>) {
        let mut taken = Taken {
            each: vec![false; idle.len()],
            is_full: descriptors.len() != idle.len(),
        };
        if taken.is_full {
            tracing::error!("cannot take connections over: the limit of open files is reached");
            return (taken, Vec::new());
        }
        let mut adopted = Vec::new();
        for (place, (idle, descriptor)) in idle.into_iter().zip(descriptors).enumerate() {
            let WireIdle {
                state,
                permit_source,
            } = idle;
            match self
                .app
                .adopt(descriptor, state, permit_source, runtime(place))
            {
                Ok(connection) => {
                    taken.each[place] = true;
                    adopted.push(connection);
                }
                Err(CannotAdopt::Limit) => {
                    taken.is_full = true;
                    break;
                }
                Err(error) => {
                    tracing::debug!(%error, "an idle connection stays with the former process");
                }
            }
        }
        (taken, adopted)
    }

    /// Takes the tunnels of a batch, as far as possible. None of them runs yet.
    fn adopt<'a>(
        &self,
        tunnels: Vec<WireTunnel>,
        descriptors: Vec<OwnedFd>,
        runtime: impl Fn(usize) -> &'a Handle,
    ) -> (Taken, Vec<AdoptedTunnel>) {
        let mut taken = Taken {
            each: vec![false; tunnels.len()],
            is_full: false,
        };
        if descriptors.len() != 2 * tunnels.len() {
            tracing::error!("cannot take tunnels over: the limit of open files is reached");
            taken.is_full = true;
            return (taken, Vec::new());
        }
        let (mut adopted, mut descriptors) = (Vec::new(), descriptors.into_iter());
        for (place, tunnel) in tunnels.into_iter().enumerate() {
            let (Some(client), Some(backend)) = (descriptors.next(), descriptors.next()) else {
                break;
            };
            match self.adopt_one(tunnel, client, backend, runtime(place)) {
                Ok(tunnel) => {
                    taken.each[place] = true;
                    adopted.push(tunnel);
                }
                Err(Untaken::Backend { pool, backend }) => {
                    tracing::debug!(
                        pool,
                        backend,
                        "a tunnel stays: there is no such backend here"
                    );
                }
                Err(Untaken::Other(error @ CannotAdopt::Limit)) => {
                    tracing::warn!(%error, "tunnels stay with the former process");
                    taken.is_full = true;
                    break;
                }
                Err(Untaken::Other(error)) => {
                    tracing::warn!(%error, "a tunnel stays with the former process");
                }
            }
        }
        (taken, adopted)
    }

    fn adopt_one(
        &self,
        tunnel: WireTunnel,
        client: OwnedFd,
        backend: OwnedFd,
        runtime: &Handle,
    ) -> Result<AdoptedTunnel, Untaken> {
        let pools = self.app.proxy.pools();
        let pool = pools.named(&tunnel.pool);
        let id = tunnel.backend.parse().ok();
        let found = pool.zip(id).and_then(|(pool, id)| pool.backend(&id));
        // At another address it is another backend.
        let found = found.filter(|backend| backend.address.to_string() == tunnel.address);
        let Some(to) = found else {
            return Err(Untaken::Backend {
                pool: tunnel.pool,
                backend: tunnel.backend,
            });
        };
        let foreign = ForeignTunnel {
            client,
            backend,
            state: tunnel.state,
            info: TunnelInfo {
                group: Arc::clone(&to.tunnels),
                client: tunnel.client,
                arrived: tunnel.arrived,
                request_id: tunnel.request_id,
                method: tunnel.method,
                host: tunnel.host,
                path: tunnel.path,
                affinity: tunnel.affinity,
                attempts: tunnel.attempts,
                waited: tunnel.waited,
            },
            age: tunnel.age,
            request_age: tunnel.request_age,
            permit_sources: tunnel.permit_sources,
        };
        let adopted = self.app.engine.adopt(foreign, &to, runtime);
        adopted.map_err(Untaken::Other)
    }
}

/// How much was taken over.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    tunnels: usize,
    idle_connections: usize,
}

/// Why a tunnel stays with the other process.
enum Untaken {
    /// It leads to a backend that this process does not have.
    Backend {
        pool: String,
        backend: String,
    },
    Other(CannotAdopt),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_as_it_was_configured_or_by_its_address() {
        let named = |requested: &str, address: &str| ListenerName {
            requested: requested.parse().unwrap(),
            address: address.parse().unwrap(),
        };
        let listeners = [
            named("127.0.0.1:0", "127.0.0.1:4711"),
            named("0.0.0.0:80", "0.0.0.0:80"),
        ];
        for (address, place) in [
            ("127.0.0.1:0", Some(0)),
            ("127.0.0.1:4711", Some(0)),
            ("0.0.0.0:80", Some(1)),
            ("127.0.0.1:80", None),
            ("127.0.0.1:4712", None),
        ] {
            let found = matching(&listeners, address.parse().unwrap());
            assert_eq!(found, place, "{address}");
        }
    }
}
