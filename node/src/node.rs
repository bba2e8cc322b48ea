//! A node put together, in the order of the flow, and its life from the start to the last client.

use std::io;
use std::iter;
use std::net::SocketAddr;
use std::sync::Arc;

use ::http::HeaderValue;
use causeway_conf::ServiceManager;
use causeway_conf::ServiceState;
use causeway_conf::TooFewOpenFiles;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;
use tracing::info;
use tracing::warn;

use crate::auth;
use crate::auth::Verifier;
use crate::broker;
use crate::broker::Broker;
use crate::broker::Deliver;
use crate::client::channels;
use crate::client::channels::ChannelClients;
use crate::client::relay;
use crate::client::relay::Clients;
use crate::client::session;
use crate::client::session::Quota;
use crate::cluster::control;
use crate::cluster::control::AcceptsClients;
use crate::cluster::control::ChannelCounts;
use crate::cluster::control::Control;
use crate::cluster::control::Demux;
use crate::cluster::directory::Directory;
use crate::cluster::directory::UserWatch;
use crate::cluster::presence::Presence;
use crate::cluster::registry;
use crate::cluster::registry::NotReady;
use crate::cluster::registry::Registry;
use crate::cluster::values::Values;
use crate::config;
use crate::config::Config;
use crate::config::Live;
use crate::config::Mode;
use crate::handoff::ArrivalComponents;
use crate::handoff::Arrivals;
use crate::handoff::Departures;
use crate::handoff::Marks;
use crate::hooks::Hooks;
use crate::hub::Hub;
use crate::hub::HubConfig;
use crate::hub::outbox;
use crate::lifecycle;
use crate::logging;
use crate::metrics::Metrics;
use crate::protocol::channel::ChannelName;
use crate::protocol::instance::Instance;
use crate::redis;
use crate::redis::keys;
use crate::server;
use crate::server::AdminListener;
use crate::server::Server;
use crate::server::ServerConfig;
use crate::server::Services;
use crate::server::Shutdown;
use crate::server::admin;
use crate::server::admin::Admin;
use crate::server::api;
use crate::server::api::Api;
use crate::server::memory_budget::Budget;
use crate::server::memory_budget::Relieved;
use crate::server::open_files::ConnectionLimits;
use crate::server::routing::ApiMount;
use crate::server::routing::ChannelsHttp;
use crate::server::routing::Http;
use crate::server::routing::Mount;
use crate::stream::ChannelStreams;
use crate::transport::websocket::WebSockets;

mod reload;
mod tasks;
mod watchdog;

use reload::Reloader;
use tasks::TaskFailed;
use tasks::Tasks;

/// The status of a process that a second signal ended before its clients had left.
const CUT_SHORT: i32 = 1;

/// Why a node cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The system gives no threads or no signals.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
    /// There may be too few open files.
    #[error(transparent)]
    OpenFiles(#[from] TooFewOpenFiles),
    /// The address cannot be listened on: in use, of another machine, or not allowed.
    #[error("cannot listen on {address} (setting `{setting}`): {error}")]
    Listen {
        /// The setting that names it.
        setting: &'static str,
        /// What was asked for.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// A part that must never end has ended: a bug, and its panic is in the log.
    #[error("a part of the node has failed")]
    Failed,
}

/// How far a node is on its way down. Each step is cancelled after the one before it.
#[derive(Default)]
struct Lifecycle {
    /// A person waits for the end.
    interrupted: CancellationToken,
    /// Not ready any more.
    draining: CancellationToken,
    /// The listener is closed and clients are disconnected.
    closing: CancellationToken,
    /// The clients are gone.
    stopped: CancellationToken,
    /// What is told of it.
    manager: Arc<ServiceManager>,
}

/// Says whether a node could start with `config`: whether there are enough open files, and whether it may listen where it should.
/// An address in use is no error: it may be that of the running node.
///
/// # Errors
///
/// [`RunError`], as [`run`] would have it.
pub fn check(config: &Config) -> Result<(), RunError> {
    open_files()?;
    for (setting, address) in addresses(config) {
        match server::check(address, &config.tcp) {
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                return Err(RunError::Listen {
                    setting,
                    address,
                    error,
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// What is listened on, by the names of the settings.
fn addresses(config: &Config) -> impl Iterator<Item = (&'static str, SocketAddr)> {
    let admin = config.admin.map(|address| ("admin.address", address));
    iter::once(("listen", config.listen)).chain(admin)
}

fn bind(
    setting: &'static str,
    address: SocketAddr,
    config: &config::Tcp,
) -> Result<TcpListener, RunError> {
    server::bind(address, config).map_err(|error| RunError::Listen {
        setting,
        address,
        error,
    })
}

/// Runs a node until a signal has ended it and its clients have left.
///
/// # Errors
///
/// [`RunError`]: mostly before anything is served.
pub fn run(config: Config) -> Result<(), RunError> {
    logging::start(&config.log)?;
    let _flush = logging::FlushAtEnd;
    for warning in config.warnings() {
        warn!(%warning, "configuration warning");
    }
    let mut builder = runtime::Builder::new_multi_thread();
    if let Some(threads) = config.threads {
        builder.worker_threads(threads);
    }
    let runtime = builder.enable_all().build()?;
    runtime.block_on(async {
        let manager = Arc::new(ServiceManager::from_environment());
        let lifecycle = Lifecycle {
            manager: Arc::clone(&manager),
            ..Lifecycle::default()
        };
        let mut signals = JoinSet::new();
        signals.spawn(drain_on_signal(&lifecycle)?);
        signals.spawn(say_that_nothing_is_reopened()?);
        let node = Node::start(config, lifecycle)?;
        let mut watchdog = JoinSet::new();
        watchdog.spawn({
            let manager = Arc::clone(&manager);
            async move { watchdog::run(&manager).await }
        });
        // Connections wait in the listener's backlog from here on, and no signal ends the process any more.
        manager.notify(ServiceState::Ready);
        node.live().await
    })
}

/// A node at work that accepts no connections yet.
struct Node {
    listener: TcpListener,
    /// Where operators connect.
    #[cfg(test)]
    admin: Option<SocketAddr>,
    server: Arc<Server>,
    /// What clients need: hub, broker, and client services.
    tasks: Tasks,
    lifecycle: Lifecycle,
}

impl Node {
    /// Starts everything but the accepting.
    fn start(config: Config, lifecycle: Lifecycle) -> Result<Self, RunError> {
        let listener = bind("listen", config.listen, &config.tcp)?;
        let address = listener.local_addr()?;
        let admin_listener = config
            .admin
            .map(|address| bind("admin.address", address, &config.tcp))
            .transpose()?;
        let node_id = config.node_id(address);
        let connections = connection_limits(&config, open_files()?);

        let instance = Instance::random();
        let budget = Budget::new(config.limits.memory);
        let metrics = Metrics::new();
        let hub = Hub::new(
            HubConfig {
                fanout: config.fanout.clone(),
                pinned: relayed_channels(&config),
            },
            Arc::clone(&metrics),
        );
        let streams = ChannelStreams::new(
            config.channels.streams,
            Arc::clone(&hub),
            Arc::clone(&metrics),
        );
        let (inbox, inbox_receiver) = control::inbox(instance, Arc::clone(&metrics));
        let marks = Marks::new(Arc::clone(&streams) as Arc<dyn Deliver>);
        let demux = Demux {
            inbox,
            rest: Arc::clone(&marks) as Arc<dyn Deliver>,
        };
        let redis = redis::start(&config.broker, &node_id, &metrics, &lifecycle.stopped);
        let servers = redis.servers;
        let broker = broker::start(
            &servers,
            &node_id,
            Arc::new(demux),
            Arc::clone(&metrics),
            lifecycle.stopped.clone(),
        );
        streams.start(Arc::clone(&broker.broker));
        let relay: Arc<dyn Broker> = broker.broker;
        let (join_leave, pending_join_leave) = channels::join_leave_queue(Arc::clone(&metrics));
        let registry = registry::start(
            &servers,
            &config.registry,
            registry::Dependencies {
                about: registry::Node {
                    instance,
                    id: node_id.clone(),
                    address: config.advertise.clone(),
                    zone: config.zone.clone(),
                    generation: config.generation,
                    leaving: false,
                },
                needs: needs(&config),
                listener: Arc::new(join_leave),
                metrics: Arc::clone(&metrics),
                draining: lifecycle.draining.clone(),
                shutdown: lifecycle.stopped.clone(),
            },
        );
        let directory = Directory::new(Arc::clone(&registry.registry) as Arc<dyn UserWatch>);
        let clients = Clients::new(Arc::clone(&hub), Arc::clone(&relay), Arc::clone(&metrics));
        let presence = Presence::new(Arc::clone(&registry.registry));
        let values = Arc::new(Values::new(&servers, &config.values));
        let verifier = Arc::new(Verifier::new(config.auth.clone()));
        let hooks = Hooks::new(config.hooks.clone(), Arc::clone(&metrics));
        let lifecycle_events = lifecycle::start(
            &servers,
            &config.lifecycle,
            &lifecycle::Dependencies {
                instance,
                node_id: node_id.clone(),
                registry: Arc::clone(&registry.registry),
                hooks: Arc::clone(&hooks),
                metrics: Arc::clone(&metrics),
                shutdown: lifecycle.stopped.clone(),
            },
        );
        let (lifecycle_events, lifecycle_tasks) = match lifecycle_events {
            Some(started) => (Some(started.lifecycle), started.tasks),
            None => (None, JoinSet::new()),
        };
        if let Some(events) = &lifecycle_events {
            streams.set_lifecycle(Arc::clone(events));
        }
        let channel_clients = ChannelClients::new(channels::Components {
            config: config.channels.clone(),
            streams: Arc::clone(&streams),
            instance,
            presence: Arc::clone(&presence),
            directory: Arc::clone(&directory),
            verifier: Arc::clone(&verifier),
            hooks,
            values: Arc::clone(&values),
            lifecycle: lifecycle_events,
            metrics: Arc::clone(&metrics),
        });
        let has_others = matches!(config.broker, config::Broker::Redis(_));
        let arrivals = has_others.then(|| {
            relay.subscribe_everywhere(&keys::handoff_marks());
            Arrivals::new(ArrivalComponents {
                instance,
                clients: Arc::clone(&clients),
                channel_clients: Arc::clone(&channel_clients),
                registry: Arc::clone(&registry.registry),
                endpoints: config.endpoints.clone(),
                broker: Arc::clone(&relay),
                marks: Arc::clone(&marks),
                draining: lifecycle.draining.clone(),
            })
        });
        let control = Control::new(control::Components {
            registry: Arc::clone(&registry.registry),
            directory: Arc::clone(&directory),
            broker: Arc::clone(&relay),
            channel_counts: Arc::clone(&streams) as Arc<dyn ChannelCounts>,
            arrivals: arrivals
                .clone()
                .map(|arrivals| arrivals as Arc<dyn AcceptsClients>),
            metrics: Arc::clone(&metrics),
        });
        let api = config.api.as_ref().map(|api| {
            let parts = api::Parts {
                streams: Arc::clone(&streams),
                presence: Arc::clone(&presence),
                control: Arc::clone(&control),
                values: Arc::clone(&values),
            };
            Arc::new(Api::new(api, config.channels.namespaces.clone(), parts))
        });
        let mounted_api = config.api.as_ref().zip(api.clone());
        let mounted_api = mounted_api.map(|(config, api)| ApiMount {
            path: config.path.clone(),
            api,
        });
        let departures = has_others.then(|| {
            Arc::new(Departures {
                control: Arc::clone(&control),
                broker: Arc::clone(&relay),
                marks,
                tasks: channel_clients.background_tasks().clone(),
            })
        });
        if let Some(departures) = &departures {
            clients.set_hand_off(Arc::clone(departures) as Arc<dyn relay::HandOff>);
            channel_clients.set_hand_off(Arc::clone(departures) as Arc<dyn channels::HandOff>);
        }
        let websockets = WebSockets::new(
            Arc::clone(&clients),
            Arc::clone(&channel_clients),
            arrivals.clone(),
            config.drain.clone(),
        );
        let quota = Quota::new(reload::quota(&config));
        let mounts: Vec<_> = config
            .endpoints
            .iter()
            .map(|endpoint| Mount::new(Arc::clone(endpoint), Arc::clone(&clients), &quota))
            .collect();
        let sessions: Vec<_> = mounts.iter().filter_map(Mount::sessions).cloned().collect();
        if let Some(arrivals) = &arrivals {
            arrivals.set_sessions(mounts.iter().filter_map(|mount| {
                Some((mount.endpoint.path.clone(), Arc::clone(mount.sessions()?)))
            }));
        }

        let mut tasks = Tasks::default();
        let (stopped, closing) = (&lifecycle.stopped, &lifecycle.closing);
        tasks.adopt("redis", stopped, redis.tasks);
        tasks.adopt("broker", stopped, broker.tasks);
        tasks.adopt("registry", stopped, registry.tasks);
        tasks.adopt("lifecycle events", stopped, lifecycle_tasks);
        let running = Arc::clone(&control).run(inbox_receiver, stopped.clone());
        tasks.spawn("control", stopped, running);
        let watching = auth::watch(Arc::clone(&verifier), stopped.clone());
        tasks.spawn("keys for tokens", stopped, watching);
        let telling = pending_join_leave.run(Arc::clone(&streams), stopped.clone());
        tasks.spawn("joins and leaves", stopped, telling);
        let running = Arc::clone(&hub).run(Arc::clone(&relay), stopped.clone());
        tasks.spawn("hub", stopped, running);
        tasks.spawn("channel streams", stopped, streams.run(stopped.clone()));
        let sweeping = session::sweep(sessions.clone(), stopped.clone());
        tasks.spawn("sessions", stopped, sweeping);
        if config
            .endpoints
            .iter()
            .any(|endpoint| endpoint.mode == Mode::Ticker)
        {
            let ticking = relay::tick(Arc::clone(&hub), stopped.clone());
            tasks.spawn("ticker", stopped, ticking);
        }
        tasks.spawn("websockets", closing, {
            let (websockets, endpoints) = (Arc::clone(&websockets), config.endpoints.clone());
            let closing = closing.clone();
            async move { websockets.run(&endpoints, closing).await }
        });
        tasks.spawn("channel clients", closing, {
            let pings = config.endpoints.iter().map(|endpoint| endpoint.ping);
            let clients = Arc::clone(&channel_clients);
            clients.run(pings.collect(), config.drain.clone(), closing.clone())
        });

        tasks.spawn("memory", stopped, {
            let channel_clients = Arc::clone(&channel_clients);
            let websockets = Arc::clone(&websockets);
            let sessions = sessions.clone();
            let relieve = move |bytes| {
                let mut clients = channel_clients.queued();
                clients.extend(websockets.queued());
                clients.extend(sessions.iter().flat_map(|table| table.queued()));
                let shed = outbox::shed(&clients, bytes);
                Relieved {
                    clients: shed.clients,
                    bytes: shed.bytes,
                }
            };
            let keeping = budget.clone().run(relieve, stopped.clone());
            let stopped = stopped.clone();
            async move {
                keeping.await;
                stopped.cancelled().await; // There may be no limit.
            }
        });

        let http = reload::http(&config);
        let channels_http = ChannelsHttp {
            clients: Arc::clone(&channel_clients),
            control,
        };
        let node_id_header = HeaderValue::try_from(&node_id).expect("the configuration checks it");
        let admin = Admin::new(
            readiness(relay, registry.registry, &config.broker),
            {
                let clients = Arc::clone(&channel_clients);
                Box::new(move |count| clients.slowest(count))
            },
            Arc::clone(&metrics),
            lifecycle.draining.clone(),
        );
        let admin = Arc::new(admin.with_generation(config.generation));
        let admin_address = admin_listener.as_ref().map(TcpListener::local_addr);
        let admin_address = admin_address.transpose()?;
        if let Some((listener, address)) = admin_listener.zip(admin_address) {
            info!(%address, listener = "admin", node = node_id, "listening");
            let listener = AdminListener {
                listener,
                admin: Arc::clone(&admin),
                node_id: node_id_header.clone(),
            };
            tasks.spawn("admin listener", closing, listener.run(closing.clone()));
        }
        let services = Services {
            admin,
            http: Http::new(http, mounts, channels_http, Arc::clone(&metrics))
                .with_api(mounted_api)
                .with_arrivals(arrivals)
                .with_departures(departures),
            websockets,
            sessions,
        };
        let server = ServerConfig {
            node_id: node_id_header,
            limits: Live::new(config.limits.clone()),
            connections,
            budget: Arc::clone(&budget),
            drain: config.drain.clone(),
        };
        let server = Server::new(
            server,
            services,
            Arc::clone(&metrics),
            lifecycle.closing.clone(),
        );
        let file = config.file.clone();
        let reloader = Reloader {
            started: config,
            manager: Arc::clone(&lifecycle.manager),
            parts: reload::Parts {
                verifier,
                api,
                channel_clients,
                quota,
                server: Arc::clone(&server),
                metrics,
            },
        };
        let hangups = signal(SignalKind::hangup())?;
        let reloading = reloader.run(file, hangups, lifecycle.stopped.clone());
        tasks.spawn("reload", &lifecycle.stopped, reloading);
        info!(%address, listener = "node", node = node_id, connections_max = connections.clients, "listening");
        Ok(Self {
            listener,
            #[cfg(test)]
            admin: admin_address,
            server,
            tasks,
            lifecycle,
        })
    }

    /// Serves until the clients have left, then ends what they needed.
    async fn live(self) -> Result<(), RunError> {
        let Self {
            listener,
            server,
            mut tasks,
            lifecycle,
            ..
        } = self;
        let mut serving = JoinSet::new();
        let shutdown = Shutdown {
            draining: lifecycle.draining,
            interrupted: lifecycle.interrupted,
        };
        serving.spawn(server.serve(listener, shutdown));
        tokio::select! {
            biased;
            ended = serving.join_next() => {
                if let Some(Err(error)) = ended {
                    return Err(failed(&error));
                }
            }
            TaskFailed = tasks.failed() => return Err(RunError::Failed),
        }
        lifecycle.stopped.cancel();
        let ended = tasks.wait().await;
        ended.map_err(|TaskFailed| RunError::Failed)?;
        info!("stopped");
        Ok(())
    }
}

/// What the node needs of Redis besides Pub/Sub.
fn needs(config: &Config) -> registry::Needs {
    let endpoints = config.endpoints.iter();
    let has_channels = { endpoints }.any(|endpoint| endpoint.mode == Mode::Channels);
    let has_api = config.api.is_some();
    registry::Needs {
        registry: has_channels || has_api || config.advertise.is_some(),
        streams: has_channels || has_api,
        values: has_api || !config.hooks.values.is_empty(),
        lifecycle: config.lifecycle.is_wanted(),
    }
}

/// Whether the node is ready, by the broker and by the registry.
fn readiness(
    broker: Arc<dyn Broker>,
    registry: Arc<Registry>,
    config: &config::Broker,
) -> admin::Readiness {
    let is_unready_when_full = match config {
        config::Broker::Memory => false,
        config::Broker::Redis(redis) => redis.is_unready_when_full,
    };
    Box::new(move || {
        broker.readiness().map_err(|reason| reason.to_string())?;
        match registry.readiness() {
            Ok(()) => Ok(None),
            Err(NotReady::Full(reason)) if !is_unready_when_full => Ok(Some(reason)),
            Err(NotReady::Full(reason) | NotReady::Other(reason)) => Err(reason),
        }
    })
}

fn failed(error: &tokio::task::JoinError) -> RunError {
    error!(%error, "a part of the node has failed, the node stops");
    RunError::Failed
}

/// The channels of relay endpoints: subscribed all the time, so that a node's first client waits for
/// nothing.
fn relayed_channels(config: &Config) -> Vec<ChannelName> {
    let mut channels: Vec<_> = config
        .endpoints
        .iter()
        .filter_map(|endpoint| match &endpoint.mode {
            Mode::Relay { channel } => Some(channel.clone()),
            _ => None,
        })
        .collect();
    channels.sort();
    channels.dedup();
    channels
}

/// Raises the limit of open files, and returns it.
fn open_files() -> Result<u64, TooFewOpenFiles> {
    // What POSIX guarantees at least is little, and better than not to start.
    let files = causeway_conf::raise_open_files().unwrap_or_else(|error| {
        warn!(%error, "cannot raise the limit of open files");
        1024
    });
    TooFewOpenFiles::check(files, ConnectionLimits::FILES_NEEDED)
}

/// What the configuration allows, within what so many open files do.
fn connection_limits(config: &Config, files: u64) -> ConnectionLimits {
    let fitting = ConnectionLimits::fitting(files);
    let Some(wanted) = config.limits.connections else {
        return fitting;
    };
    if fitting.clients < wanted {
        warn!(
            wanted,
            fitting = fitting.clients,
            "limits.connections is more than the limit of open files allows, which holds"
        );
    }
    fitting.with_clients(wanted)
}

/// Begins the drain at the first SIGTERM or SIGINT and ends the process at the second.
fn drain_on_signal(lifecycle: &Lifecycle) -> io::Result<impl Future<Output = ()> + Send + use<>> {
    let manager = Arc::clone(&lifecycle.manager);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (draining, interrupted) = (lifecycle.draining.clone(), lifecycle.interrupted.clone());
    Ok(async move {
        for is_first in [true, false] {
            let is_interrupt = tokio::select! {
                _ = terminate.recv() => false,
                _ = interrupt.recv() => true,
            };
            if is_first {
                if is_interrupt {
                    interrupted.cancel();
                }
                manager.notify(ServiceState::Stopping);
                draining.cancel();
            }
        }
        warn!("second signal: ending at once");
        logging::flush();
        std::process::exit(CUT_SHORT);
    })
}

/// Logs a line for each SIGUSR1, by which logs are rotated.
fn say_that_nothing_is_reopened() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut signals = signal(SignalKind::user_defined1())?;
    Ok(async move {
        while signals.recv().await.is_some() {
            info!("SIGUSR1 ignored: log lines go to standard error, there is no file to reopen");
        }
    })
}

#[cfg(test)]
mod tests;
