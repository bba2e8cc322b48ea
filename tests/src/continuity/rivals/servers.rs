//! The programs of one system: Redis, the nodes, and what stands before them.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tokio::{net::TcpStream, time::Instant};

use crate::{
    continuity::rivals::{
        System, causeway, centrifugo, haproxy,
        socketio::{self, Adapter},
    },
    harness::{
        edge::{self, Edge},
        http, loopback,
        process::{Process, Signal},
        redis::Redis,
        sentinel::{self, Watched, WatchedConfig},
        wait,
    },
};

/// Within which a node has drained and ended.
const DRAIN_WAIT: Duration = Duration::from_secs(60);

/// What the nodes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setting {
    /// One server.
    OneRedis,
    /// A primary with replicas, and three Sentinels.
    Sentinels {
        /// How many replicas.
        replicas: usize,
        /// How long a server is silent before a Sentinel calls it down.
        down_after: Duration,
    },
}

/// Where a node runs.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// What the node is called.
    pub(super) id: &'a str,
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// What it shares with the others.
    pub(super) store: Store<'a>,
    /// For its configuration.
    pub(super) directory: &'a Path,
}

/// Where Redis is found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Store<'a> {
    /// There.
    One(SocketAddr),
    /// By asking.
    Sentinels {
        /// What the Sentinels call the primary.
        master: &'a str,
        /// The Sentinels.
        servers: &'a [SocketAddr],
    },
}

/// All processes. The fields are dropped in this order.
#[derive(Debug)]
pub(super) struct Servers {
    system: System,
    front: Front,
    nodes: Vec<Node>,
    redis: Shared,
    directory: PathBuf,
}

#[derive(Debug)]
enum Front {
    Edge(Box<Edge>),
    Haproxy {
        address: SocketAddr,
        _process: Box<Process>,
    },
}

#[derive(Debug)]
enum Shared {
    One(Box<Redis>),
    Sentinels {
        watched: Watched,
        addresses: Vec<SocketAddr>,
    },
}

#[derive(Debug)]
struct Node {
    id: String,
    address: SocketAddr,
    process: Process,
}

impl Servers {
    /// Starts everything and waits until it is ready.
    pub(super) async fn start(
        system: System,
        nodes: usize,
        setting: Setting,
        directory: &Path,
    ) -> Result<Self> {
        let redis = Shared::start(setting, directory).await?;
        let mut running = Vec::new();
        for number in 1..=nodes {
            let (id, address) = (format!("n{number}"), free_address()?);
            let process = launch(system, &id, address, &redis, directory)?;
            running.push(Node {
                id,
                address,
                process,
            });
        }
        for node in &mut running {
            node.ready(system).await?;
        }
        let backends = running.iter();
        let backends: Vec<_> = backends
            .map(|node| (node.id.as_str(), node.address))
            .collect();
        let front = Front::start(system, &backends, directory).await?;
        let servers = Self {
            system,
            front,
            nodes: running,
            redis,
            directory: directory.to_owned(),
        };
        for node in &servers.nodes {
            servers.front.takes(&node.id).await?;
        }
        Ok(servers)
    }

    /// Where clients and publishers connect.
    pub(super) fn front(&self) -> SocketAddr {
        match &self.front {
            Front::Edge(edge) => edge.address,
            Front::Haproxy { address, .. } => *address,
        }
    }

    /// Sends SIGTERM to a node, starts it again when it has ended, and waits until it is ready. Returns how long it took to end.
    pub(super) async fn restart(&mut self, number: usize) -> Result<Duration> {
        let began = Instant::now();
        let node = &mut self.nodes[number];
        node.process.signal(Signal::Terminate);
        let status = node.process.exit(DRAIN_WAIT).await?;
        ensure!(status.success(), "{status} {}", node.process.tail());
        let took = began.elapsed();
        node.process = launch(
            self.system,
            &node.id,
            node.address,
            &self.redis,
            &self.directory,
        )?;
        node.ready(self.system).await?;
        self.front.takes(&node.id).await?;
        Ok(took)
    }

    /// Kills the primary of Redis, and waits until the Sentinels name another one. Returns how long that took.
    pub(super) async fn fail_over(&mut self) -> Result<Duration> {
        let Shared::Sentinels { watched, .. } = &mut self.redis else {
            bail!("there are no Sentinels");
        };
        let primary = watched.primary().await?;
        let began = Instant::now();
        watched.servers[primary].kill().await?;
        watched.another_primary(primary).await?;
        Ok(began.elapsed())
    }
}

impl Shared {
    async fn start(setting: Setting, directory: &Path) -> Result<Self> {
        match setting {
            Setting::OneRedis => {
                let redis = Redis::start(loopback::own(), directory).await?;
                Ok(Self::One(Box::new(redis)))
            }
            Setting::Sentinels {
                replicas,
                down_after,
            } => {
                let down_after = down_after.as_millis().to_string();
                let config = WatchedConfig {
                    replicas,
                    sentinels: 3,
                    down_after: &down_after,
                    ..WatchedConfig::default()
                };
                let watched = Watched::start(loopback::own(), directory, config).await?;
                let addresses = watched.sentinels.iter();
                let addresses = addresses.map(sentinel::Sentinel::address).collect();
                Ok(Self::Sentinels { watched, addresses })
            }
        }
    }

    fn place(&self) -> Store<'_> {
        match self {
            Self::One(redis) => Store::One(redis.address()),
            Self::Sentinels { addresses, .. } => Store::Sentinels {
                master: sentinel::MASTER,
                servers: addresses,
            },
        }
    }
}

impl Front {
    async fn start(
        system: System,
        backends: &[(&str, SocketAddr)],
        directory: &Path,
    ) -> Result<Self> {
        if system == System::Causeway {
            // Publishers use the server API, which the edge closes unless a route names it.
            let routes =
                json!([{ "path": "/", "pool": "nodes" }, { "path": "/api", "pool": "nodes" }]);
            let settings = edge::settings(backends)
                .with("log.access", json!("off"))
                .with("routes", routes);
            let edge = Edge::start(&settings, directory).await?;
            return Ok(Self::Edge(Box::new(edge)));
        }
        let address = free_address()?;
        let process = haproxy::start(address, backends, ready_path(system), directory)?;
        wait::until("HAProxy to listen", wait::SOON, async || {
            TcpStream::connect(address).await.ok()
        })
        .await
        .with_context(|| process.tail())?;
        Ok(Self::Haproxy {
            address,
            _process: Box::new(process),
        })
    }

    /// Waits until clients get to this node. HAProxy finds out by its checks.
    async fn takes(&self, id: &str) -> Result<()> {
        match self {
            Self::Edge(edge) => edge.backend_in_state(id, "up").await,
            Self::Haproxy { .. } => Ok(()),
        }
    }
}

impl Node {
    async fn ready(&mut self, system: System) -> Result<()> {
        let (address, path) = (self.address, ready_path(system));
        wait::until(
            &format!("{} to be ready", self.id),
            wait::SOON,
            async || {
                let response = http::get(address, path).await.ok()?;
                (response.status == 200).then_some(())
            },
        )
        .await
        .with_context(|| self.process.tail())
    }
}

fn launch(
    system: System,
    id: &str,
    address: SocketAddr,
    redis: &Shared,
    directory: &Path,
) -> Result<Process> {
    let place = Place {
        id,
        address,
        store: redis.place(),
        directory,
    };
    let command = match system {
        System::Causeway => causeway::command(&place),
        System::Centrifugo => centrifugo::command(&place),
        System::SocketIo => socketio::command(&place, Adapter::PubSub),
        System::SocketIoStreams => socketio::command(&place, Adapter::Streams),
    };
    Process::spawn(id, command?, directory)
}

fn ready_path(system: System) -> &'static str {
    match system {
        System::Centrifugo => "/health",
        _ => "/ready",
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind(loopback::own_any_port())?.local_addr()?)
}
