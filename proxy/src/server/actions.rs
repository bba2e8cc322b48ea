//! What operators do to the running edge: drain, ready, maintenance and weight of a backend, single tunnels, rebalance, reload.
//!
//! Each is done completely or not at all, and says what it has done. Knows nothing of HTTP and of who asks: the admin listener does.
//! What an operator has set for a backend is kept by the backend itself, so that a reload does not touch it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::balancer::pool::{Backend, Override, Pool};
use crate::config::BackendConfig;
use crate::request::exchange::ProxyState;
use crate::server::drains::{Cause, Drains};
use crate::server::rebalance::{Rebalance, Rebalancer, Run};
use crate::server::reload::{Program, ReloadError, Reloaded, Reloader};
use crate::server::successors::{NoSuccessor, SuccessorState};
use crate::tunnel::{CloseRequest, Tunnels};

/// How many ids an error names.
const NAMED_MAX: usize = 20;

/// How long an action waits for a successor, within the lifetime of the connection that asks for it.
const SUCCESSOR_WAIT: Duration = Duration::from_secs(20);

/// Why an action was refused. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActionError {
    #[error("there is no backend \"{id}\"; the backends are {known}")]
    UnknownBackend { id: String, known: String },
    #[error("there is no pool \"{name}\"; the pools are {known}")]
    UnknownPool { name: String, known: String },
    #[error("expected the name of a pool, since there are several: {known}")]
    PoolMissing { known: String },
    #[error("no tunnel has the number {0}; it may have ended")]
    UnknownTunnel(u64),
    #[error("expected a weight from 1 to {max}, not {0}; for no new clients at all, use maintenance", max = BackendConfig::WEIGHT_MAX)]
    Weight(u64),
    /// Adding it to the file again brings it back.
    #[error("backend \"{0}\" was removed; add it to the configuration again and reload")]
    Removed(String),
    /// The file decides.
    #[error(
        "the configuration has backend \"{0}\" in maintenance; change that in the file and reload"
    )]
    ByConfiguration(String),
    /// Its clients would have nowhere to go.
    #[error(
        "no other backend of pool \"{pool}\" is in service; bring one up first, or force it: the clients of \"{id}\" then get errors"
    )]
    LastBackend { id: String, pool: String },
    #[error("pool \"{0}\" is being rebalanced; wait until that is over")]
    Rebalancing(String),
    /// As a part of another program, it has none.
    #[error(
        "this program does not read its configuration from a file; reload it the way it was started"
    )]
    NoFile,
    #[error(transparent)]
    Reload(#[from] ReloadError),
    #[error(transparent)]
    NoSuccessor(#[from] NoSuccessor),
    /// A successor would find no way to the sockets.
    #[error("no process can take over from this one: set \"takeover.socket\" and restart it once")]
    NoTakeover,
}

/// The actions, and what they act on.
pub(crate) struct Actions {
    pub(crate) proxy: Arc<ProxyState>,
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) drains: Arc<Drains>,
    pub(crate) rebalancer: Arc<Rebalancer>,
    pub(crate) tunnels: Arc<Tunnels>,
    /// `None` where the edge is mounted in another program.
    pub(crate) program: Option<Program>,
    /// Held during an action, so that two do not mix.
    pub(crate) serial: Mutex<()>,
}

/// What becomes of the tunnels of a backend that an operator drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenTunnels {
    /// They are closed over this time; `None` is by the settings.
    Close(Option<Duration>),
    Keep,
}

/// Whether an action is done although clients would get errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Force {
    Yes,
    No,
}

/// A backend after an action.
pub(crate) struct Acted {
    pub(crate) backend: Arc<Backend>,
    /// How many tunnels are being closed.
    pub(crate) closing: usize,
}

impl Actions {
    /// Takes `id` out of service and closes its tunnels, or keeps them.
    ///
    /// A backend that is removed or in maintenance stays as it is: only its tunnels are closed.
    ///
    /// # Errors
    ///
    /// [`ActionError::UnknownBackend`], or [`ActionError::LastBackend`] unless forced.
    pub(crate) fn drain(
        &self,
        id: &str,
        open: OpenTunnels,
        force: Force,
    ) -> Result<Acted, ActionError> {
        let _serial = self.serial.lock();
        let (pool, backend) = self.find(id)?;
        let now = Instant::now();
        if backend.is_probed() {
            Self::check_others(&pool, &backend, force)?;
            pool.set_override(&backend, Some(Override::Drain), now);
        }
        let closing = match open {
            OpenTunnels::Close(spread) => {
                let configured = || self.reloader.drain_config().backend_spread;
                let spread = spread.unwrap_or_else(configured);
                self.drains.start(&backend, Cause::Operator, spread, now)
            }
            OpenTunnels::Keep => {
                self.drains.stop(&backend);
                0
            }
        };
        Ok(Acted { backend, closing })
    }

    /// Lifts a drain or a maintenance that an operator has set. Tunnels that are not closed yet stay.
    ///
    /// # Errors
    ///
    /// [`ActionError::UnknownBackend`], [`ActionError::Removed`] or [`ActionError::ByConfiguration`].
    pub(crate) fn ready(&self, id: &str) -> Result<Acted, ActionError> {
        let _serial = self.serial.lock();
        let (pool, backend) = self.find_in_service(id)?;
        self.drains.stop(&backend);
        pool.set_override(&backend, None, Instant::now());
        Ok(Acted {
            backend,
            closing: 0,
        })
    }

    /// Lets no client go to `id`, also none that it has. Its tunnels stay, and probes go on.
    ///
    /// # Errors
    ///
    /// As [`Actions::ready`], or [`ActionError::LastBackend`] unless forced.
    pub(crate) fn maintenance(&self, id: &str, force: Force) -> Result<Acted, ActionError> {
        let _serial = self.serial.lock();
        let (pool, backend) = self.find_in_service(id)?;
        Self::check_others(&pool, &backend, force)?;
        self.drains.stop(&backend);
        pool.set_override(&backend, Some(Override::Maintenance), Instant::now());
        Ok(Acted {
            backend,
            closing: 0,
        })
    }

    /// Gives `id` another weight, until the next reload or restart.
    ///
    /// # Errors
    ///
    /// [`ActionError::Weight`], [`ActionError::UnknownBackend`] or [`ActionError::Removed`].
    pub(crate) fn set_weight(&self, id: &str, weight: u64) -> Result<Acted, ActionError> {
        let is_valid = |weight: &u32| (1..=BackendConfig::WEIGHT_MAX).contains(weight);
        let valid = u32::try_from(weight).ok().filter(is_valid);
        let valid = valid.ok_or(ActionError::Weight(weight))?;
        let _serial = self.serial.lock();
        let (pool, backend) = self.find(id)?;
        if backend.is_removed() {
            return Err(ActionError::Removed(id.to_owned()));
        }
        self.reloader.set_weight(&pool.name, &backend, valid);
        Ok(Acted {
            backend,
            closing: 0,
        })
    }

    /// Ends the tunnel with this number.
    ///
    /// # Errors
    ///
    /// [`ActionError::UnknownTunnel`] if it is not open.
    pub(crate) fn close_tunnel(&self, key: u64, request: CloseRequest) -> Result<(), ActionError> {
        let tunnel = self.tunnels.find(key);
        let tunnel = tunnel.ok_or(ActionError::UnknownTunnel(key))?;
        tunnel.request_close(request);
        Ok(())
    }

    /// Evens out the tunnels of a pool: closes those that backends have over their share, the idle ones first. Their clients reconnect
    /// to the backends with the fewest.
    ///
    /// # Errors
    ///
    /// [`ActionError::UnknownPool`], [`ActionError::PoolMissing`] without a name where there are several, or
    /// [`ActionError::Rebalancing`].
    pub(crate) fn rebalance(
        &self,
        pool: Option<&str>,
        spread: Option<Duration>,
        run: Run,
    ) -> Result<Rebalance, ActionError> {
        let pool = self.pool(pool)?;
        let rebalanced = self
            .rebalancer
            .rebalance(&pool, spread, run, Instant::now());
        rebalanced.ok_or_else(|| ActionError::Rebalancing(pool.name.clone()))
    }

    /// Reads the configuration file again and applies it, or says what that would change.
    ///
    /// # Errors
    ///
    /// [`ActionError::NoFile`], or [`ActionError::Reload`]; then nothing changes.
    pub(crate) async fn reload(&self, run: Run) -> Result<Reloaded, ActionError> {
        let program = self.program.as_ref().ok_or(ActionError::NoFile)?;
        let reloaded = match run {
            Run::Do => self.reloader.reload_program(program, SUCCESSOR_WAIT).await,
            Run::Dry => {
                let plan = self.reloader.plan_reload(program).await;
                plan.map(|plan| Reloaded {
                    plan,
                    successor: None,
                })
            }
        };
        Ok(reloaded?)
    }

    /// Starts the program at the path of this one, to take over from it.
    ///
    /// # Errors
    ///
    /// [`ActionError::NoTakeover`], or [`ActionError::NoSuccessor`].
    pub(crate) async fn upgrade(&self) -> Result<SuccessorState, ActionError> {
        let program = self.program.as_ref();
        let successors = program.and_then(|program| program.successors.as_ref());
        let successors = successors.ok_or(ActionError::NoTakeover)?;
        Ok(successors.successor(SUCCESSOR_WAIT).await?)
    }

    fn find(&self, id: &str) -> Result<(Arc<Pool>, Arc<Backend>), ActionError> {
        let pools = self.proxy.pools();
        pools.find(id).ok_or_else(|| {
            let backends = pools.iter().flat_map(|pool| pool.backends());
            ActionError::UnknownBackend {
                id: id.chars().take(64).collect(),
                known: list(backends.map(|backend| backend.id.to_string())),
            }
        })
    }

    /// The backend called `id`, if the configuration has it in service.
    fn find_in_service(&self, id: &str) -> Result<(Arc<Pool>, Arc<Backend>), ActionError> {
        let (pool, backend) = self.find(id)?;
        if backend.is_removed() {
            return Err(ActionError::Removed(id.to_owned()));
        }
        if !backend.is_probed() {
            return Err(ActionError::ByConfiguration(id.to_owned()));
        }
        Ok((pool, backend))
    }

    fn pool(&self, name: Option<&str>) -> Result<Arc<Pool>, ActionError> {
        let pools = self.proxy.pools();
        let known = || list(pools.iter().map(|pool| pool.name.clone()));
        let found = match name {
            Some(name) => pools.named(name).ok_or_else(|| ActionError::UnknownPool {
                name: name.chars().take(64).collect(),
                known: known(),
            })?,
            None => {
                let mut all = pools.iter();
                match (all.next(), all.next()) {
                    (Some(only), None) => only,
                    _ => return Err(ActionError::PoolMissing { known: known() }),
                }
            }
        };
        Ok(Arc::clone(found))
    }

    fn check_others(pool: &Pool, backend: &Backend, force: Force) -> Result<(), ActionError> {
        if force == Force::Yes || pool.has_other(backend) || !backend.keeps_clients() {
            return Ok(());
        }
        Err(ActionError::LastBackend {
            id: backend.id.to_string(),
            pool: pool.name.clone(),
        })
    }
}

/// The first of `names`, separated by commas.
fn list(names: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = names.collect();
    let more = all.len().saturating_sub(NAMED_MAX);
    let named = all[..all.len() - more].join(", ");
    if more == 0 {
        named
    } else {
        format!("{named} and {more} more")
    }
}

#[cfg(test)]
mod tests;
