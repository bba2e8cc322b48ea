//! Reload at SIGHUP: the node reads its file and the settings of its environment again.
//!
//! They are read and checked as a whole before anything changes; what is not valid changes nothing. Changed settings
//! that need a restart are named in one warning, at each reload until the restart.

use std::path::PathBuf;
use std::sync::Arc;

use causeway_conf::ServiceManager;
use causeway_conf::ServiceState;
use tokio::signal::unix::Signal;
use tokio::task;
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::auth::Verifier;
use crate::client::channels::ChannelClients;
use crate::client::session::Quota;
use crate::client::session::QuotaConfig;
use crate::config::Config;
use crate::logging;
use crate::metrics::Metrics;
use crate::metrics::Reload;
use crate::server::Server;
use crate::server::api::Api;
use crate::server::routing::HttpConfig;

/// Applies new configurations.
pub(super) struct Reloader {
    /// What the node was started with.
    pub(super) started: Config,
    /// What is told when a reload begins and ends.
    pub(super) manager: Arc<ServiceManager>,
    pub(super) parts: Parts,
}

/// The parts of the node whose settings a reload changes.
pub(super) struct Parts {
    pub(super) verifier: Arc<Verifier>,
    pub(super) api: Option<Arc<Api>>,
    pub(super) channel_clients: Arc<ChannelClients>,
    pub(super) quota: Arc<Quota>,
    pub(super) server: Arc<Server>,
    pub(super) metrics: Arc<Metrics>,
}

/// The limits on sessions over HTTP.
pub(super) fn quota(config: &Config) -> QuotaConfig {
    QuotaConfig {
        sessions_max: config.limits.sessions,
        half_open_max: config.limits.sessions_per_address,
    }
}

/// The settings of requests.
pub(super) fn http(config: &Config) -> HttpConfig {
    HttpConfig {
        page: config.page,
        trusted_proxies: config.trusted_proxies.clone(),
        body_bytes_max: config.limits.body_bytes_max,
        body_timeout: config.limits.body_timeout,
    }
}

impl Reloader {
    /// Reads `file` and the environment of the process again at each signal, until `shutdown`.
    pub(super) async fn run(
        self,
        file: Option<PathBuf>,
        mut hangups: Signal,
        shutdown: CancellationToken,
    ) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = hangups.recv() => {}
            }
            let file = file.clone();
            self.manager.notify(ServiceState::Reloading);
            self.reload(file).await;
            self.manager.notify(ServiceState::Ready);
        }
    }

    /// Reads `file` and applies it. An invalid one changes nothing.
    async fn reload(&self, file: Option<PathBuf>) {
        // Not on a thread that others need: the file system may hang.
        let loading = task::spawn_blocking(move || Config::load(file.as_deref()));
        let errors = match loading.await {
            Ok(Ok(config)) => return self.apply(config),
            Ok(Err(errors)) => errors.to_string(),
            Err(panicked) => panicked.to_string(), // The log has its panic.
        };
        self.parts.metrics.reloaded(Reload::Refused);
        error!(errors, "configuration refused, the old one stays");
    }

    /// Applies `config`.
    fn apply(&self, config: Config) {
        let parts = &self.parts;
        let needing_restart = self.started.needing_restart(&config);
        let warnings = config.warnings().to_vec();
        logging::set_level(&config.log.level);
        parts.quota.reload(quota(&config));
        let served = parts.server.http();
        served.reload(http(&config));
        for endpoint in &config.endpoints {
            // A new or removed endpoint needs a restart.
            if let Some(mount) = served.mount(&endpoint.path) {
                mount.reload(endpoint.allowed_origins.clone());
            }
        }
        if let (Some(api), Some(config_of_api)) = (&parts.api, &config.api) {
            let namespaces = config.channels.namespaces.clone();
            api.reload(&config_of_api.keys, namespaces);
        }
        parts.verifier.reload(config.auth);
        parts.channel_clients.reload(config.channels);
        parts.server.reload(config.limits);
        parts.metrics.reloaded(Reload::Applied);
        info!("configuration applied");
        for warning in &warnings {
            warn!(%warning, "configuration warning");
        }
        if !needing_restart.is_empty() {
            let settings = needing_restart.join(", ");
            warn!(settings, "these settings take a restart");
        }
    }
}
