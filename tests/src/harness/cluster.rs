//! The whole path: Redis, nodes and the edge in front of them.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::json;

use crate::harness::{
    edge::{self, Edge, Program},
    loopback,
    node::{self, Node},
    redis::Redis,
    scratch::Scratch,
    settings::Settings,
};

/// Three nodes, or as many as asked for, behind one edge.
///
/// The fields are dropped in this order: the edge first, its files last.
#[derive(Debug)]
pub struct Cluster {
    /// What clients connect to.
    pub edge: Edge,
    /// `n1`, `n2`, ...
    pub nodes: Vec<Node>,
    /// What the nodes share.
    pub redis: Redis,
    /// Where the files of all of them are.
    pub scratch: Scratch,
}

/// What a [`Cluster`] is made of.
#[derive(Debug)]
pub struct ClusterConfig {
    /// What the edge runs in.
    pub program: Program,
    /// How many nodes.
    pub nodes: usize,
    /// Changes the settings of every node.
    pub node_settings: fn(Settings) -> Settings,
    /// Changes the settings of the edge.
    pub edge_settings: fn(Settings) -> Settings,
}

impl ClusterConfig {
    /// Three nodes and nothing but defaults.
    #[must_use]
    pub fn three_nodes() -> Self {
        Self {
            program: Program::Edge,
            nodes: 3,
            node_settings: |settings| settings,
            edge_settings: |settings| settings,
        }
    }

    /// The same with the edge in this program.
    #[must_use]
    pub fn with_edge_in(self, program: Program) -> Self {
        Self { program, ..self }
    }
}

impl Cluster {
    /// Starts all of it and waits until every node is ready and the edge knows it.
    ///
    /// # Errors
    ///
    /// One of them did not start.
    pub async fn start(name: &str, config: ClusterConfig) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        let redis = Redis::start(loopback::own(), scratch.path()).await?;
        let mut nodes = Vec::new();
        for number in 1..=config.nodes {
            let settings = node::settings_with_redis(&redis.url())
                .with("listen", json!(loopback::own_any_port()));
            let settings = (config.node_settings)(settings);
            nodes.push(Node::start(&format!("n{number}"), settings, scratch.path()).await?);
        }
        for node in &nodes {
            node.ready().await?;
        }
        let backends: Vec<(&str, SocketAddr)> = nodes
            .iter()
            .map(|node| (node.id.as_str(), node.address))
            .collect();
        let edge = Edge::start_in(
            config.program,
            &(config.edge_settings)(edge::settings(&backends)),
            scratch.path(),
        )
        .await?;
        for node in &nodes {
            edge.backend_in_state(&node.id, "up").await?;
        }
        Ok(Self {
            edge,
            nodes,
            redis,
            scratch,
        })
    }

    /// The node with this id.
    ///
    /// # Panics
    ///
    /// There is none.
    pub fn node(&mut self, id: &str) -> &mut Node {
        self.nodes
            .iter_mut()
            .find(|node| node.id == id)
            .expect("the edge names only backends that it was given")
    }
}
