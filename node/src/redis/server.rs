//! The servers that the broker's settings name.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Commands;
use super::Connector;
use super::cluster;
use super::cluster::Cluster;
use super::connect::ConnectOptions;
use super::connect::ExpectedRole;
use super::keys::Keys;
use super::sentinel::Follower;
use super::tenure::CurrentPrimary;
use crate::config;
use crate::config::RedisLocation;
use crate::metrics::Metrics;

/// One of the servers, or a cluster: its settings, the way to connect to it, and the names of what is in it.
#[derive(Clone)]
pub(crate) struct Server {
    /// With this server alone.
    pub(crate) config: config::Redis,
    pub(crate) access: Access,
    pub(crate) keys: Keys,
}

/// How to connect.
#[derive(Clone)]
pub(crate) enum Access {
    One(Connector),
    Cluster(Arc<Cluster>),
}

/// The servers, and what follows their primaries.
pub(crate) struct Started {
    /// In the order of the configuration; none for the memory broker. Nothing is connected yet.
    pub(crate) servers: Vec<Server>,
    /// They end after the shutdown; the last known primaries stay in use.
    pub(crate) tasks: JoinSet<()>,
}

/// Starts to look for the servers of `broker`. `node_id` is part of the names of connections.
pub(crate) fn start(
    broker: &config::Broker,
    node_id: &str,
    metrics: &Arc<Metrics>,
    shutdown: &CancellationToken,
) -> Started {
    let configs = match broker {
        config::Broker::Memory => Vec::new(),
        config::Broker::Redis(config) => config.shards(),
    };
    let mut tasks = JoinSet::new();
    let server = |config: config::Redis| {
        let keys = match &config.server.location {
            RedisLocation::Cluster(cluster) => {
                Keys::in_cluster(&config.prefix, cluster.relay_pubsub)
            }
            RedisLocation::At(_) | RedisLocation::Sentinel(_) => Keys::new(&config.prefix),
        };
        let options = ConnectOptions {
            keys: keys.clone(),
            node_id: node_id.to_owned(),
            connect_timeout: config.connect_timeout,
            response_timeout: config.response_timeout,
        };
        let server = config.server.clone();
        let access = match &config.server.location {
            RedisLocation::At(address) => {
                let role = ExpectedRole::Any;
                Access::One(Connector::to(address.clone(), server, role, options))
            }
            RedisLocation::Cluster(servers) => {
                let cluster = Cluster::new(servers, &server, options);
                let follower = cluster::Follower::new(Arc::clone(&cluster), Arc::clone(metrics));
                tasks.spawn(follower.run(shutdown.clone()));
                Access::Cluster(cluster)
            }
            RedisLocation::Sentinel(sentinels) => {
                let primary = Arc::new(CurrentPrimary::new(sentinels.master.clone()));
                let follower = Follower::new(
                    Arc::clone(&primary),
                    sentinels,
                    &server,
                    (options.clone(), config.backoff_max),
                    Arc::clone(metrics),
                );
                tasks.spawn(follower.run(shutdown.clone()));
                Access::One(Connector::to_primary(primary, server, options))
            }
        };
        Server {
            access,
            keys,
            config,
        }
    };
    let servers = configs.into_iter().map(server).collect();
    Started { servers, tasks }
}

impl Server {
    /// A connection for commands, made with the first one. `role` is part of its name.
    pub(crate) fn commands(&self, role: &'static str) -> Commands {
        match &self.access {
            Access::One(connector) => Commands::to_one(connector.clone(), role),
            Access::Cluster(cluster) => Commands::to_cluster(Arc::clone(cluster), role),
        }
    }

    /// The way to connect to a server that is no cluster.
    #[cfg(test)]
    pub(crate) fn connector(&self) -> Connector {
        match &self.access {
            Access::One(connector) => connector.clone(),
            Access::Cluster(_) => panic!("it is a cluster"),
        }
    }
}
