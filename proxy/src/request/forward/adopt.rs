//! Tunnels of another process that are continued here.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::balancer::pool::Backend;
use crate::request::forward::Engine;
use crate::request::forward::handoff::Place;
use crate::request::forward::tunnel::{TunnelPermits, TunnelRecord, spawn};
use crate::tunnel::{BareSocket, ParkedTunnel, Socket, Tunnel, TunnelAge, TunnelInfo, TunnelState};

/// A tunnel of another process.
pub(crate) struct ForeignTunnel {
    pub(crate) client: OwnedFd,
    pub(crate) backend: OwnedFd,
    pub(crate) state: TunnelState,
    pub(crate) info: TunnelInfo,
    pub(crate) age: TunnelAge,
    pub(crate) request_age: Duration,
    /// What stands for the addresses that are counted for its connection and for itself.
    pub(crate) permit_sources: [Option<u64>; 2],
}

/// Why a tunnel or an idle connection of another process cannot be continued here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CannotAdopt {
    #[error("limits.connections is reached")]
    Limit,
    #[error("its sockets cannot be used: {0}")]
    Socket(#[from] io::Error),
    #[error("its state is not possible")]
    State,
    #[error("no listener has its address, or it has other settings for TLS")]
    Listener,
}

/// A tunnel of another process that can be continued here, and does not run yet. Dropped, it leaves both sockets as they are.
pub(crate) struct AdoptedTunnel {
    tunnel: Tunnel<Socket, Socket, Place>,
    record: TunnelRecord,
    runtime: Handle,
}

impl AdoptedTunnel {
    /// Runs it.
    pub(crate) fn start(self) {
        spawn(self.tunnel, self.record, &self.runtime);
    }
}

impl Engine {
    /// Takes a tunnel of another process to `backend`, to be continued on `runtime`. Nothing is read or written yet.
    ///
    /// # Errors
    ///
    /// [`CannotAdopt`]; its sockets are as they were.
    pub(crate) fn adopt(
        &self,
        foreign: ForeignTunnel,
        backend: &Arc<Backend>,
        runtime: &Handle,
    ) -> Result<AdoptedTunnel, CannotAdopt> {
        let [connection, tunnel] = foreign.permit_sources;
        let gate = &self.proxy.gate;
        let connection = gate.adopt_connection(connection);
        let permits = TunnelPermits {
            connection: connection.ok_or(CannotAdopt::Limit)?,
            tunnel: gate.adopt_tunnel(tunnel),
            at_backend: backend.reserve_tunnel(u32::MAX),
        };
        // Sockets are registered with it.
        let _runtime = runtime.enter();
        let (client, to_backend) = (
            BareSocket::from_descriptor(foreign.client)?,
            BareSocket::from_descriptor(foreign.backend)?,
        );
        let now = Instant::now();
        let arrived = now.checked_sub(foreign.request_age).unwrap_or(now);
        let tunnels = &self.tunnels;
        let entry = tunnels.register_with(foreign.info, arrived, &foreign.age);
        let tunnel = Tunnel::unpark(ParkedTunnel {
            client,
            backend: to_backend,
            state: foreign.state,
            entry,
        });
        let context = Arc::clone(&self.tunnel_context);
        Ok(AdoptedTunnel {
            tunnel: tunnel.ok_or(CannotAdopt::State)?,
            record: TunnelRecord::new(context, arrived, backend.open_tunnel(), permits),
            runtime: runtime.clone(),
        })
    }
}
