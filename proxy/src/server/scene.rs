//! An edge without connections, for tests of what acts on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::balancer::affinity::{Binding, Claim, Freshness};
use crate::balancer::pool::{
    AffinityOutcome, Backend, Pool, ProbeResult, RequestKind, State, Tried, TunnelCount,
};
use crate::config::Config;
use crate::server::actions::{Actions, Force, OpenTunnels};
use crate::server::components::Components;
use crate::tunnel::{Entry, TunnelInfo};

/// Two backends.
pub(super) const TWO: &str = "{ id: n1, address: 'a:1' }, { id: n2, address: 'a:2' }";

pub(super) fn config(backends: &str, more: &str) -> Config {
    let text =
        format!("pools: [{{ name: p, backends: [{backends}] }}]\nlog: {{ access: off }}\n{more}");
    Config::parse("test.yaml", &text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// A tunnel that is open as long as this lives.
pub(super) type OpenTunnel = (Entry, TunnelCount);

/// An edge whose backends are up.
pub(super) struct Scene {
    pub(super) components: Components,
    pub(super) actions: Actions,
}

impl Scene {
    pub(super) fn new(backends: &str, more: &str) -> Self {
        let components = Components::new(&config(backends, more)).unwrap();
        let scene = Self {
            actions: components.actions(None),
            components,
        };
        scene.probe_all(&ProbeResult::Good);
        scene
    }

    pub(super) fn pool(&self) -> Arc<Pool> {
        Arc::clone(self.components.proxy.pools().iter().next().unwrap())
    }

    pub(super) fn backend(&self, id: &str) -> Arc<Backend> {
        self.components.proxy.pools().find(id).unwrap().1
    }

    pub(super) fn state(&self, id: &str) -> State {
        self.backend(id).state()
    }

    pub(super) fn probe_all(&self, result: &ProbeResult) {
        for backend in self.pool().backends() {
            self.pool().probed(&backend, result.clone(), Instant::now());
        }
    }

    /// Drains a backend as an operator does. How many tunnels are to be closed.
    pub(super) fn drain(&self, id: &str) -> usize {
        let open = OpenTunnels::Close(Some(Duration::ZERO));
        let acted = self.actions.drain(id, open, Force::No);
        acted.map(|acted| acted.closing).unwrap()
    }

    pub(super) fn reload(&self, backends: &str) {
        self.reload_with(backends, "");
    }

    pub(super) fn reload_with(&self, backends: &str, more: &str) {
        let config = config(backends, more);
        self.components
            .reloader
            .apply(&config, Instant::now())
            .unwrap();
    }

    /// Opens a tunnel to `backend`.
    pub(super) fn open(&self, backend: &Arc<Backend>) -> OpenTunnel {
        let info = TunnelInfo::of(&backend.tunnels);
        let entry = self.components.tunnels.register(info, Instant::now());
        (entry, backend.open_tunnel())
    }

    pub(super) fn choose(&self, claim: &Claim) -> Option<(String, AffinityOutcome)> {
        let choice = self.pool().choose(
            claim,
            RequestKind::Upgrade,
            &Tried::default(),
            Instant::now(),
        );
        let choice = choice.ok()?;
        Some((choice.backend.id.to_string(), choice.affinity))
    }

    pub(super) fn new_clients(&self) -> Vec<String> {
        let chosen = (0..20).filter_map(|_| self.choose(&Claim::default()));
        let mut ids: Vec<String> = chosen.map(|(id, _)| id).collect();
        ids.sort();
        ids.dedup();
        ids
    }
}

/// A client that was bound to `id` some time ago.
pub(super) fn bound_to(id: &str) -> Claim {
    Claim {
        bindings: vec![Binding {
            id: id.parse().unwrap(),
            bound_at: 1,
            freshness: Freshness::Current,
        }],
        ..Claim::default()
    }
}
